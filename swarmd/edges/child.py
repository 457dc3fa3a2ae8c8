"""One supervised role process of `up`: started, watched, restarted, ended.

Job: know when it is ready by the line it says, keep its output in a log file and pass its warnings on, start it again
after a growing pause when it dies. Invariant: every wait is bounded; a child that cannot even start once is an error of
its owner, not a loop. Must not know what the child does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
from collections import deque
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING, Any, Final

import msgspec

from swarmd.core.errors import Fault, Rejected, SwarmdError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

READY_S: Final = 120.0
"""A role folds its log before it is ready, which takes seconds per million messages."""
STEADY_S: Final = 30.0
PAUSE_S, PAUSE_S_MAX = 0.2, 10.0
DRAIN_OUTPUT_S: Final = 1.0
LINE_BYTES_MAX: Final = 256 * 1024
LOG_BYTES_MAX, LOG_FILES = 10 * 1024 * 1024, 3
_ERROR = re.compile(r"^error: (.*) \(([a-z0-9_]+)\)$")
_LOUD = re.compile(
    r'^\d\d:\d\d:\d\d\.\d+ (?:WARNING|ERROR|CRITICAL)|^\{.*"level": "(?:warning|error|critical)"|^error: '
)
_QUIET = re.compile(r'^\d\d:\d\d:\d\d\.\d+ (?:DEBUG|INFO)|^\{.*"level": "(?:debug|info)"')
_RAISED = re.compile(r"^[\w.]*(?:Error|Exception|Fault|Rejected|Exit|Interrupt)\b.*")


def _how(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


class Child:
    """One process. `run` for as long as it shall live, `wait_ready`, then `stop`."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log_file: Path,
        environment: Mapping[str, str],
        changed: Callable[[], None],
    ) -> None:
        self.name = name
        self.metrics = self.web = ""
        self.restarts = 0
        self.ready = asyncio.Event()
        self._arguments, self._environment = list(arguments), dict(environment)
        self._changed = changed
        self._process: asyncio.subprocess.Process | None = None
        self._ended = asyncio.Event()
        self._stopping = False
        self._last_words: deque[str] = deque(maxlen=20)
        self._loud = False
        self._file = RotatingFileHandler(log_file, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES, delay=True)

    @property
    def pid(self) -> int:
        """The process id, 0 while it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    # --- life ---

    async def run(self) -> None:
        """Start it, and again whenever it dies, until `stop`; returns early when its first start fails."""
        loop, pause_s, first = asyncio.get_running_loop(), PAUSE_S, True
        try:
            while not self._stopping:
                started = loop.time()
                code = await self._live_once()
                if self._stopping:
                    return
                if first and not self.ready.is_set():
                    return
                first = False
                self.ready.clear()
                pause_s = PAUSE_S if loop.time() - started > STEADY_S else min(pause_s * 2, PAUSE_S_MAX)
                self.restarts += 1
                self._changed()
                log.error(
                    "%s %s: %s; starting it again in %.1f s (restart %d)",
                    self.name, _how(code), self.last_words(), pause_s, self.restarts,
                )  # fmt: skip
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._ended.wait()
        finally:
            self._ended.set()
            self._file.close()

    async def _live_once(self) -> int:
        self._last_words.clear()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
            env=self._environment,
            start_new_session=True,  # Ctrl-C at the terminal is for `up`, which ends its children in order.
        )
        self._process = process
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.TaskGroup() as group:
            pumps = [
                group.create_task(self._pump(process.stdout, self._on_output)),
                group.create_task(self._pump(process.stderr, self._on_error)),
            ]
            if self._stopping:
                process.terminate()
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                process.kill()
                raise
            # A grandchild may hold the pipes open: what it says later is not waited for.
            await asyncio.wait(pumps, timeout=DRAIN_OUTPUT_S)
            for pump in pumps:
                pump.cancel()
        return code

    async def wait_ready(self) -> None:
        """Raises the error that the child ended with, or `Fault("not_ready")` when it takes too long."""
        ready, ended = asyncio.Event.wait(self.ready), asyncio.Event.wait(self._ended)
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(ready), group.create_task(ended)]
            await asyncio.wait(waits, timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if not self.ready.is_set():
            if self._ended.is_set():
                raise self._its_error()
            raise Fault("not_ready", f"{self.name} is not ready after {READY_S:.0f} s: {self.last_words()}")

    async def stop(self, timeout_s: float) -> None:
        """SIGTERM, once, then SIGKILL after `timeout_s`; returns when it is gone. Idempotent."""
        told, self._stopping = self._stopping, True
        process = self._process
        if process is None or process.returncode is not None:
            self._ended.set()
            return
        if not told:  # a second signal would cut its draining short
            process.terminate()
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            log.warning("%s (pid %d) did not end within %.0f s: killing it", self.name, process.pid, timeout_s)
            process.kill()
            await process.wait()

    def kill(self) -> None:
        """End it now, without a word."""
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    # --- what it says ---

    async def _pump(self, stream: asyncio.StreamReader, take: Callable[[str], None]) -> None:
        while True:
            try:
                line = await stream.readline()
            except ValueError:
                line = b"(a line too long to show)\n"
            if not line:
                return
            take(line.decode("utf-8", "replace").rstrip("\n"))

    def _on_output(self, line: str) -> None:
        """On stdout the child says that it is ready; whatever else agents print there goes to the log file."""
        try:
            said: Any = msgspec.json.decode(line)
        except msgspec.DecodeError:
            said = None
        if isinstance(said, dict) and said.get("ready") is True:
            self.metrics, self.web = str(said.get("metrics", "")), str(said.get("web", ""))
            self.ready.set()
            self._changed()
        else:
            self._keep(line)

    def _on_error(self, line: str) -> None:
        self._last_words.append(line)
        self._keep(line)
        if _LOUD.match(line):
            self._loud = True
        elif _QUIET.match(line):
            self._loud = False
        if self._loud:  # a traceback belongs to the line above it
            print(f"{self.name}: {line}", file=sys.stderr, flush=True)

    def _keep(self, line: str) -> None:
        self._file.emit(logging.makeLogRecord({"msg": line}))

    def last_words(self) -> str:
        """What it said last, for an error."""
        words = [line.strip(" |+-") for line in self._last_words if line.strip(" |+-")]
        errors = [line for line in words if _RAISED.match(line)]  # a traceback of a group ends in a ruler
        if errors or words:
            return (errors or words)[-1]
        file = self._file.baseFilename  # made when the first line comes
        return f"it said nothing; see {os.path.basename(file)}" if os.path.exists(file) else "it said nothing"

    def _its_error(self) -> SwarmdError:
        """The error that the child ended with, as our own."""
        for line in reversed(self._last_words):
            found = _ERROR.match(line)
            if found:
                kind = Rejected if self._process is not None and self._process.returncode in (2, 3) else Fault
                return kind(found[2], f"{self.name}: {found[1]}")
        return Fault("role_died", f"{self.name} ended at its start: {self.last_words()}")
