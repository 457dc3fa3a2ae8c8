"""A `swarmd up` as a process, for tests of the command line: started, asked, ended by its pid."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START_S = 60.0
END_S = 40.0
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


def swarmd(*arguments: str, stdin: str = "", timeout_s: float = 60.0, **environ: str) -> Done:
    """Run one command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "swarmd", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=timeout_s,
        env={**PLAIN, **environ},
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


class RunningUp:
    """`swarmd up --json` on free ports, ready; leave the `with` block to end it."""

    def __init__(self, data: Path, *flags: str, cwd: Path | None = None, **environ: str) -> None:
        self.data = data
        self._errors = data.parent / f"{data.name}.err"
        command = [sys.executable, "-m", "swarmd", "up", "--json", "--data", str(data)]
        command += ["--port", "0", "--metrics-port", "0", *flags]
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

    def run(self, *arguments: str, stdin: str = "", timeout_s: float = 60.0) -> Done:
        """A command against this broker, as a client without credentials."""
        return swarmd("--nats", str(self.ready["nats"]), *arguments, stdin=stdin, timeout_s=timeout_s)

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
