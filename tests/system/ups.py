"""A `swarmd up` as a process, for tests of the command line: started, asked, ended by its pid."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmd.edges import cli

if TYPE_CHECKING:
    from collections.abc import Mapping

START_S = 60.0
END_S = 40.0
COMMAND_S = 60.0
BENCH_S = 200.0  # it measures for a while, and other tests may run beside it
NONE: Mapping[str, str] = {}
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("SWARMD_", "OPENAI_"))}


class Done:
    """A command that ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> Any:
        """The one object on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    def lines(self) -> list[Any]:
        """The objects on stdout, one per line."""
        return [json.loads(line) for line in self.out.splitlines()]


def swarmd(*arguments: str, environ: Mapping[str, str] = NONE, wait_s: float = COMMAND_S) -> Done:
    """Run one command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "swarmd", *arguments],
        capture_output=True,
        text=True,
        timeout=wait_s,
        env={**PLAIN, **environ},
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def main_here(arguments: list[str], stdin: str, environ: Mapping[str, str] = NONE) -> Done:
    """`swarmd.edges.cli.main` with streams and environment of its own."""
    out, err = io.StringIO(), io.StringIO()
    kept = dict(os.environ), sys.stdin
    os.environ.clear()
    os.environ.update({**PLAIN, **environ})
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main(arguments)
            except SystemExit as ended:
                code = int(ended.code or 0)
    finally:
        os.environ.clear()
        os.environ.update(kept[0])
        sys.stdin = kept[1]
        root = logging.getLogger()
        for writer in [writer for writer in root.handlers if getattr(writer, "swarmd", False)]:
            root.removeHandler(writer)
        logging.captureWarnings(False)
    return Done(code, out.getvalue(), err.getvalue())


class RunningUp:
    """`swarmd up --json` on free ports, ready; leave the `with` block to end it."""

    def __init__(self, data: Path, *flags: str, cwd: Path | None = None, environ: Mapping[str, str] = NONE) -> None:
        self.data = data
        self._errors = data.parent / f"{data.name}.err"
        command = [sys.executable, "-P", "-m", "swarmd", "up", "--json", "--data", str(data)]
        command += ["--port", "0", "--metrics-port", "0", "--web-port", "0", *flags]
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, env={**PLAIN, **environ}, cwd=cwd
            )
        line = self._line()
        if not line:
            self.end()
            raise AssertionError(f"up ended with {self.process.returncode}: {self.errors()}")
        self.ready: dict[str, Any] = json.loads(line)

    def _line(self) -> bytes:
        """The ready line, or nothing when it ended before it was ready."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], START_S)
        return self.process.stdout.readline() if readable else b""

    def errors(self) -> str:
        return self._errors.read_text()

    def pid(self, name: str) -> int:
        """The pid of a process now: restarts change it."""
        ready = json.loads((self.data / "up.json").read_bytes())
        return int(ready["pids"][name])

    def wait_new_pid(self, name: str, old: int) -> int:
        """The pid of the successor of a process that was killed."""
        ends = time.monotonic() + START_S
        while time.monotonic() < ends:
            pid = self.pid(name)
            if pid not in (0, old):
                return pid
            time.sleep(0.02)
        raise AssertionError(f"{name} was not started again: {self.errors()}")

    def run(self, *arguments: str, stdin: str = "") -> Done:
        """A command against this broker, as a client without credentials; within this process, since that is fast.

        On a thread of its own: a command brings its own event loop.
        """
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(main_here, ["--nats", str(self.ready["nats"]), *arguments], stdin).result()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait; the exit code. Idempotent."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def __enter__(self) -> RunningUp:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_gone(pids: list[int], timeout_s: float = END_S) -> list[int]:
    """Those of `pids` that still live after `timeout_s`."""
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends and any(alive(pid) for pid in pids):
        time.sleep(0.02)
    return [pid for pid in pids if alive(pid)]
