"""Built-in tools that run a model's own code: `shell` and `python`, in a sandbox of bubblewrap (`bwrap`).

Job: run a script where it sees /usr read-only, a private /tmp and the allowed roots, and nothing else of this machine;
under limits of time, processor, memory, processes, files and output.
Invariants: never without the sandbox: where bwrap is missing, too old or cannot make namespaces, the tool is refused
when it is opened. No network, not even loopback; no capabilities, no further user namespaces; no variable of the
daemon's, whose environment bwrap itself does not get either (its own /proc entry would show it). Never as root: a
daemon that runs as root runs bwrap as user 65534, since limits on processes do not hold for root. What a script has
started ends with it, with its time, with a cancelled call, and with the daemon.
Known limit: memory is bounded for each process, not for all of a call's together; a cgroup around the daemon does that.
Must not know: agents, journals, other tools.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from swarmd.core.errors import Fault, Rejected
from swarmd.core.turns import ToolSpec
from swarmd.ports import ToolOutput, ToolPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmd.ports import SideEffects

NOBODY: Final = 65_534
SCRIPT_CHARS_MAX: Final = 64_000
PROBE_TIMEOUT_S: Final = 10
#: A script that writes more than this is ended: nobody reads so much, and somebody has to.
WRITTEN_BYTES_MAX: Final = 16 * 1024 * 1024
#: How much longer than a script's time a call may take, to end the script and tell what it had written.
ENDING_MS: Final = 5_000
_VERSION_MIN: Final = (0, 8)
_SCRIPT: Final = "/run/script"
_SEARCH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
#: Places of the sandbox's own, which no root may replace.
_OWN: Final = ("/usr", "/proc", "/dev", "/tmp", "/run", "/sys", "/bin", "/lib", "/lib64", "/sbin")
_INSTALL: Final = "install it (Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap)"


class SandboxLimits(Struct, frozen=True):
    """What one script may use. Memory, processor time and file size are for each of its processes."""

    time_ms: int = 30_000
    memory_bytes_max: int = 512 * 1024**2
    processes_max: int = 32
    files_max: int = 256
    file_bytes_max: int = 64 * 1024**2
    scratch_bytes_max: int = 64 * 1024**2
    output_bytes_max: int = 64 * 1024


USUAL: Final = SandboxLimits()


class Ended(Struct):
    """How a script ended: exit status (negative: a signal), what it wrote, and why it was ended by us, if it was."""

    status: int
    output: str
    cut_bytes: int = 0
    ended_by: str = ""


class Sandbox:
    """A way to run one program on scripts. Roots are seen under their own paths, read-only unless `writable`."""

    def __init__(
        self,
        program: Sequence[str],
        roots: Sequence[str] = (),
        writable: Sequence[str] = (),
        limits: SandboxLimits = USUAL,
    ) -> None:
        """Tries the sandbox once. Raises `Rejected("no_sandbox" | "bad_root")` saying what to install or to change."""
        self.limits, self._program = limits, list(program)
        self._roots = [(_root(path), "--ro-bind") for path in roots] + [(_root(path), "--bind") for path in writable]
        self._command = _found_bwrap()
        self._probe()

    async def run(self, script: str) -> Ended:
        """Run a script to its end, or to the end of its time. Raises `Fault("sandbox_failed")`."""
        descriptor = os.memfd_create("script", 0)
        try:
            os.write(descriptor, script.encode("utf-8", "replace"))
            os.lseek(descriptor, 0, os.SEEK_SET)
            process = await asyncio.create_subprocess_exec(
                *self._argv(descriptor),
                *self._program,
                _SCRIPT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(descriptor,),
                env={"PATH": _SEARCH},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise Fault("sandbox_failed", f"cannot start {self._command[0]}: {error.strerror}") from error
        finally:
            os.close(descriptor)
        return await self._to_its_end(process)

    async def _to_its_end(self, process: asyncio.subprocess.Process) -> Ended:
        written = _Ends(self.limits.output_bytes_max - 400)
        ended_by = ""
        assert process.stdout is not None
        try:
            async with asyncio.timeout(self.limits.time_ms / 1000):
                while chunk := await process.stdout.read(65_536):
                    written.add(chunk)
                    if written.size > WRITTEN_BYTES_MAX:
                        ended_by = f"ended, since it wrote more than {WRITTEN_BYTES_MAX} bytes"
                        break
                else:
                    await process.wait()
        except TimeoutError:
            ended_by = f"ended, since it ran longer than {self.limits.time_ms / 1000:g} s"
        finally:
            if process.returncode is None:
                process.kill()  # bwrap's init goes with it, and with init all there is in its namespace
            while await process.stdout.read(65_536):  # closed when the last of them is gone
                pass
            status = await process.wait()
        text, cut_bytes = written.text()
        return Ended(status, text, cut_bytes, ended_by)

    def _argv(self, script: int | None) -> list[str]:
        limits = self.limits
        argv = [*self._command, "--unshare-all", "--unshare-user", "--disable-userns"]
        argv += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox", "--cap-drop", "ALL"]
        argv += ["--die-with-parent", "--new-session", "--clearenv"]
        for name, value in (("PATH", _SEARCH), ("HOME", "/tmp"), ("TMPDIR", "/tmp"), ("LANG", "C.UTF-8")):
            argv += ["--setenv", name, value]
        argv += ["--ro-bind", "/usr", "/usr", *_system_folders()]
        for path in ("/etc/alternatives", "/etc/ld.so.cache"):
            argv += ["--ro-bind-try", path, path]
        argv += ["--proc", "/proc", "--dev", "/dev"]
        for path in ("/dev/shm", "/tmp"):
            argv += ["--size", str(limits.scratch_bytes_max), "--tmpfs", path]
        for root, how in self._roots:
            argv += [how, root, root]
        if script is not None:
            argv += ["--ro-bind-data", str(script), _SCRIPT]
        # Both hold small file systems in memory, which would have no limit.
        argv += ["--remount-ro", "/dev", "--remount-ro", "/"]
        argv += ["--chdir", self._roots[-1][0] if self._roots else "/tmp", "--", "prlimit"]
        argv += [f"--as={limits.memory_bytes_max}", f"--cpu={limits.time_ms // 1000 + 1}", "--core=0"]
        argv += [f"--fsize={limits.file_bytes_max}", f"--nofile={limits.files_max}", f"--nproc={limits.processes_max}"]
        return [*argv, "--"]

    def _probe(self) -> None:
        """Make the sandbox once, with all that it shall hold."""
        argv = [*self._argv(None), *self._program, "-c", ""]
        try:
            done = subprocess.run(
                argv, capture_output=True, timeout=PROBE_TIMEOUT_S, env={"PATH": _SEARCH}, cwd="/", check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Rejected("no_sandbox", f"bubblewrap does not work here: {error}") from None
        if done.returncode == 0:
            return
        said = done.stderr.decode("utf-8", "replace").strip()[:500] or f"exit status {done.returncode}"
        advice = (
            "let ordinary users make user namespaces (sysctl user.max_user_namespaces, "
            "kernel.unprivileged_userns_clone, an AppArmor profile for bwrap; in a container: its seccomp profile)"
        )
        if os.geteuid() == 0:
            advice = f"as root, swarmd runs scripts as user {NOBODY}, who must be able to reach every root; or {advice}"
        raise Rejected("no_sandbox", f"no sandbox can be made, and nothing runs without one: {said}; {advice}")


class RunScript:
    """`shell(script)` or `python(script)`: run a script and return what it wrote, with its exit status if not 0."""

    def __init__(self, name: str, description: str, sandbox: Sandbox, *, has_effects: bool) -> None:
        self._sandbox = sandbox
        self.timeout_ms = sandbox.limits.time_ms + ENDING_MS
        self.output_bytes_max = sandbox.limits.output_bytes_max
        # A script that writes into a root cannot use a key to find out that it was here before.
        self.side_effects: SideEffects = "at_most_once" if has_effects else "none"
        self.policy = ToolPolicy(concurrency=4)
        self.spec = ToolSpec(
            name=name,
            description=description,
            parameters={
                "type": "object",
                "properties": {"script": {"type": "string", "minLength": 1, "maxLength": SCRIPT_CHARS_MAX}},
                "required": ["script"],
                "additionalProperties": False,
            },
        )

    async def call(self, arguments: dict[str, Any], key: str = "") -> ToolOutput:
        """Output and errors as one text. Raises `Rejected("bad_arguments")`, `Fault("sandbox_failed")`."""
        script = arguments["script"]
        if "\0" in script:
            raise Rejected("bad_arguments", "script holds a NUL character")
        ended = await self._sandbox.run(script)
        notes = [ended.ended_by] if ended.ended_by else [f"exit status {ended.status}"] if ended.status else []
        text = ended.output if ended.output or notes else "[no output]"
        if notes:
            text = f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}[{notes[0]}]"
        return ToolOutput(text, ended.cut_bytes)


def open_shell(roots: Sequence[str] = (), writable: Sequence[str] = (), limits: SandboxLimits = USUAL) -> RunScript:
    """The tool `shell`. Raises `Rejected("no_sandbox" | "bad_root")`."""
    sandbox = Sandbox(["/bin/sh"], roots, writable, limits)
    return RunScript(
        "shell", _described("a POSIX shell script", sandbox, roots, writable), sandbox, has_effects=bool(writable)
    )


def open_python(roots: Sequence[str] = (), writable: Sequence[str] = (), limits: SandboxLimits = USUAL) -> RunScript:
    """The tool `python`. Raises `Rejected("no_sandbox" | "bad_root")`, also where no Python is under /usr."""
    found = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if os.access(path, os.X_OK)), "")
    readable = list(roots)
    if not found:  # an interpreter of one's own, such as pyenv's
        found = os.path.realpath(sys.executable)
        readable.insert(0, sys.base_prefix)
    sandbox = Sandbox([found, "-I"], readable, writable, limits)
    what = _described(
        "a Python 3 script, with the standard library only; print what you want to see", sandbox, roots, writable
    )
    return RunScript("python", what, sandbox, has_effects=bool(writable))


def _described(what: str, sandbox: Sandbox, roots: Sequence[str], writable: Sequence[str]) -> str:
    parts = [f"Run {what}. It has {sandbox.limits.time_ms / 1000:g} s, no network, and an empty /tmp that is not kept."]
    if roots:
        parts.append(f"Readable: {', '.join(_root(path) for path in roots)}.")
    if writable:
        parts.append(f"Writable: {', '.join(_root(path) for path in writable)}.")
    return " ".join(parts)


class _Ends:
    """Head and tail of what a script writes, however much it is."""

    def __init__(self, bytes_max: int) -> None:
        self.size = 0
        self._head, self._tail = bytearray(), bytearray()
        self._tail_max = bytes_max // 3
        self._head_max = bytes_max - self._tail_max

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        room = self._head_max - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:]
        if len(self._tail) > self._tail_max:
            del self._tail[: len(self._tail) - self._tail_max]

    def text(self) -> tuple[str, int]:
        """What was kept, and how many bytes were not."""
        cut = self.size - len(self._head) - len(self._tail)
        if not cut:
            return (self._head + self._tail).decode("utf-8", "replace"), 0
        head, tail = self._head.decode("utf-8", "replace"), self._tail.decode("utf-8", "replace")
        return f"{head}\n[... {cut} bytes cut ...]\n{tail}", cut


def _found_bwrap() -> list[str]:
    """The start of the command. Raises `Rejected("no_sandbox")` where a part of it is missing or too old."""
    found: dict[str, str] = {}
    for name, package in (("bwrap", "bubblewrap"), ("prlimit", "util-linux"), ("setpriv", "util-linux")):
        path = shutil.which(name, path=_SEARCH)
        if path is None and name != "setpriv":
            how = _INSTALL if name == "bwrap" else f"install {package}"
            raise Rejected("no_sandbox", f"the tools shell and python need {name}, which is not there: {how}")
        found[name] = path or ""
    try:
        done = subprocess.run([found["bwrap"], "--version"], capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Rejected("no_sandbox", f"{found['bwrap']} does not run: {error}") from None
    version = re.search(rb"(\d+)\.(\d+)", done.stdout)
    if not version or (int(version[1]), int(version[2])) < _VERSION_MIN:
        said = done.stdout.decode("utf-8", "replace").strip() or "no version"
        raise Rejected("no_sandbox", f"bubblewrap 0.8 or newer is needed, this is {said!r}: {_INSTALL}")
    if os.geteuid() != 0:
        return [found["bwrap"]]
    if not found["setpriv"]:
        raise Rejected("no_sandbox", "as root, scripts need setpriv to run as somebody else: install util-linux")
    return [found["setpriv"], f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--", found["bwrap"]]


def _root(path: str) -> str:
    """A root as an absolute path without links. Raises `Rejected("bad_root")`."""
    full = Path(path).expanduser().resolve()
    if not full.is_dir():
        raise Rejected("bad_root", f"the root {full} is not a directory")
    if (
        any(Path(own).is_relative_to(full) for own in _OWN)
        or full.is_relative_to("/proc")
        or full.is_relative_to("/dev")
    ):
        raise Rejected("bad_root", f"a sandbox cannot have the root {full}: name a directory further down")
    return str(full)


def _system_folders() -> list[str]:
    """/bin, /lib and so on: links into /usr on most systems, folders of their own on some."""
    argv: list[str] = []
    for path in ("/bin", "/sbin", "/lib", "/lib64"):
        if os.path.islink(path):
            argv += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            argv += ["--ro-bind", path, path]
    return argv
