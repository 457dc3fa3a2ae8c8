"""The sandbox of `shell` and `python`: what a script may do, what it cannot reach, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters import sandbox
from swarmd.adapters.sandbox import RunScript, SandboxLimits, open_python, open_shell
from swarmd.core.errors import Rejected
from swarmd.roles.tool_calls import ToolOutcome, run_tool
from tests.contract.scripted_http import http, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 30


def _why_not() -> str:
    try:
        open_shell()
    except Rejected as error:
        return f"needs bubblewrap that works: {error.message[:200]}"
    return ""


needs_bwrap = pytest.mark.skipif(bool(reason := _why_not()), reason=reason)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that everybody may read, since the sandbox of a root daemon runs as nobody."""
    path = Path(tempfile.mkdtemp(prefix="swarmd-test-"))
    path.chmod(0o755)
    (path / "note.txt").write_text("hello\n")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def open_folder(folder: Path) -> Path:
    folder.chmod(0o777)
    return folder


def running(mark: str) -> list[str]:
    """Processes whose command line holds these words."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:  # it ended
            continue
    return found


async def none_runs(mark: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while running(mark):
            await asyncio.sleep(0.02)


async def shell(script: str, *, tool: RunScript | None = None) -> ToolOutcome:
    return await run_tool(tool or open_shell(), {"script": script})


async def python(script: str, *, tool: RunScript | None = None) -> ToolOutcome:
    return await run_tool(tool or open_python(), {"script": script})


@needs_bwrap
class TestWhatItDoes:
    async def test_output_errors_and_status(self) -> None:
        assert await shell("echo one; echo two >&2; exit 3") == ToolOutcome("one\ntwo\n[exit status 3]")
        assert await shell("true") == ToolOutcome("[no output]")
        assert (await python("print(sum(range(5)))")).text == "10\n"
        assert "ZeroDivisionError" in (await python("1/0")).text

    async def test_a_model_learns_what_it_has(self, folder: Path) -> None:
        said = open_shell([str(folder)]).spec.description
        assert "30 s, no network" in said
        assert f"Readable: {folder}." in said

    async def test_roots_are_read_only_unless_declared(self, folder: Path) -> None:
        tool = open_shell([str(folder)])
        assert (tool.side_effects, open_shell(writable=[str(folder)]).side_effects) == ("none", "at_most_once")
        assert (await shell("cat note.txt; touch x", tool=tool)).text.startswith(
            "hello\ntouch: cannot touch 'x': Read-only"
        )

    async def test_a_declared_root_can_be_written(self, open_folder: Path) -> None:
        tool = open_shell(writable=[str(open_folder)])
        assert await shell("echo new > made.txt", tool=tool) == ToolOutcome("[no output]")
        assert (await shell("cat made.txt", tool=tool)).text == "new\n"

    async def test_tmp_is_private_and_not_kept(self) -> None:
        assert (await shell("echo secret > /tmp/kept; ls /tmp")).text == "kept\n"
        assert (await shell("ls -A /tmp")).text == "[no output]"


@needs_bwrap
class TestWhatItCannotReach:
    @pytest.mark.parametrize(
        "path", ["/etc/shadow", "/etc/passwd", "/root", "/home", "/var", "/sys", "/etc/ssl/private"]
    )
    async def test_the_machine(self, path: str) -> None:
        assert "No such file" in (await shell(f"ls -la {path}")).text

    async def test_secrets_in_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
        outcome = await shell("env; cat /proc/*/environ")
        assert "sk-very-secret" not in outcome.text
        assert "OPENAI" not in outcome.text
        assert "PATH=/usr/local/bin" in outcome.text

    async def test_the_network(self) -> None:
        async with serving(http("x")) as server:
            script = f"import socket\nsocket.create_connection(('127.0.0.1', {server.port}), 5)"
            assert "OSError" in (text := (await python(script)).text) or "ConnectionRefused" in text
        assert server.asked == []
        assert (await shell("cat /proc/net/dev | wc -l")).text.strip() == "3"  # two lines of head, and its own loopback

    async def test_other_processes(self) -> None:
        pids = (await shell("ls /proc | grep -c '^[0-9]*$'")).text
        assert int(pids) < 8
        assert (await shell("kill -0 " + str(os.getpid()))).text.endswith("[exit status 1]")

    @pytest.mark.parametrize("path", ["/x", "/dev/x", "/usr/x", "/run/x", "/etc/x"])
    async def test_nothing_but_tmp_can_be_written(self, path: str) -> None:
        assert "[exit status" in (await shell(f"echo x > {path}")).text

    async def test_more_rights(self) -> None:
        said = (await shell("grep -E 'Cap|NoNewPrivs' /proc/self/status; id -u; unshare -Ur true")).text
        assert "CapEff:\t0000000000000000" in said
        assert "CapBnd:\t0000000000000000" in said
        assert "NoNewPrivs:\t1" in said
        assert "65534" in said
        assert "unshare failed" in said


@needs_bwrap
class TestLimits:
    async def test_time(self) -> None:
        mark = f"9{os.getpid()}.5"
        tool = open_shell(limits=SandboxLimits(time_ms=700))
        script = f"echo begun; (setsid sleep {mark} &) ; nohup sleep {mark} & sleep {mark}"
        outcome = await shell(script, tool=tool)
        assert outcome.text == "begun\n[ended, since it ran longer than 0.7 s]"
        await none_runs(f"sleep\0{mark}")

    async def test_what_it_leaves_behind_ends_with_it(self) -> None:
        mark = f"8{os.getpid()}.5"
        await shell(f"setsid sleep {mark} >/dev/null 2>&1 & echo done")
        await none_runs(f"sleep\0{mark}")

    async def test_a_cancelled_call(self) -> None:
        mark = f"7{os.getpid()}.5"
        async with asyncio.TaskGroup() as group:
            call = group.create_task(shell(f"sleep {mark}"))
            async with asyncio.timeout(WAIT_S):
                while not running(f"sleep\0{mark}"):
                    await asyncio.sleep(0.02)
            call.cancel()
        await none_runs(f"sleep\0{mark}")

    def test_a_daemon_that_is_killed(self) -> None:
        mark = f"6{os.getpid()}.5"
        program = (
            "import asyncio\nfrom swarmd.adapters.sandbox import open_shell\n"
            f"asyncio.run(open_shell().call({{'script': 'sleep {mark}'}}))\n"
        )

        async def begun() -> None:
            async with asyncio.timeout(WAIT_S):
                while not running(f"sleep\0{mark}"):
                    await asyncio.sleep(0.02)

        with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as daemon:
            try:
                asyncio.run(begun())
            finally:
                daemon.kill()
        asyncio.run(none_runs(f"sleep\0{mark}"))

    async def test_memory(self) -> None:
        assert "MemoryError" in (await python("x = bytearray(2 * 1024**3)")).text

    async def test_processes(self) -> None:
        """A script that forks without end gets no further than its limit, and leaves nothing."""
        script = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
        made += 1
except OSError as error:
    print("made", made, type(error).__name__, flush=True)
"""
        said = (await python(script)).text
        assert said.endswith("BlockingIOError\n")
        assert int(said.split()[1]) < SandboxLimits().processes_max

    async def test_a_fork_bomb(self) -> None:
        mark = f"bomb{os.getpid()}"
        tool = open_shell(limits=SandboxLimits(time_ms=1_500))
        script = f": {mark}\nb() {{ b | b & }}\nb\nsleep 60"
        outcome = await asyncio.wait_for(shell(script, tool=tool), WAIT_S)
        assert "ended, since" in outcome.text or "fork" in outcome.text
        assert len(outcome.text.encode()) <= tool.output_bytes_max

    async def test_files(self) -> None:
        assert "[exit status" in (await shell("head -c 100000000 /dev/zero > /tmp/large")).text
        limits = SandboxLimits(file_bytes_max=2**40)
        said = (await shell("head -c 100000000 /dev/zero > /tmp/large", tool=open_shell(limits=limits))).text
        assert "No space left" in said

    async def test_output(self) -> None:
        outcome = await shell("echo first; yes | head -c 1000000; echo last")
        assert outcome.text.startswith("first\n")
        assert outcome.text.endswith("last\n")
        assert 900_000 < outcome.cut_bytes < 1_000_000
        endless = await shell("yes")
        assert endless.text.endswith("[ended, since it wrote more than 16777216 bytes]")

    async def test_strange_output(self) -> None:
        assert (await shell(r"printf '\033[2Ja\000b\377'")).text == "[2Jab\ufffd"


@needs_bwrap
@pytest.mark.parametrize("root", ["/", "/usr", "/tmp", "/proc", "/dev/shm", "/nowhere/at/all"])
def test_roots_that_would_undo_the_sandbox(root: str) -> None:
    with pytest.raises(Rejected) as caught:
        open_shell([root])
    assert caught.value.code == "bad_root"


class TestWithoutBubblewrap:
    """Never unsandboxed: a tool that cannot be fenced in is refused, in words that help."""

    def test_it_is_missing(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(sandbox, "_SEARCH", str(tmp_path))
        with pytest.raises(Rejected, match="apt-get install bubblewrap") as caught:
            open_shell()
        assert caught.value.code == "no_sandbox"

    @pytest.mark.parametrize(
        ("version", "then", "words"),
        [
            ("bubblewrap 0.4.1", "exit 0", "0.8 or newer"),
            ("", "exit 0", "0.8 or newer"),
            ("bubblewrap 0.8.0", "echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "user namespaces"),
        ],
    )
    def test_it_does_not_work(
        self, version: str, then: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        folder = Path(tempfile.mkdtemp(dir="/tmp"))
        folder.chmod(0o755)
        broken = folder / "bwrap"
        broken.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] && {{ echo '{version}'; exit 0; }}\n{then}\n")
        broken.chmod(0o755)
        monkeypatch.setattr(sandbox, "_SEARCH", f"{folder}:/usr/bin:/bin")
        try:
            with pytest.raises(Rejected, match=words) as caught:
                open_python()
        finally:
            shutil.rmtree(folder)
        assert caught.value.code == "no_sandbox"
