"""A server as a child process: launch it, wait until it is ready, restart it when it dies, end it, quote it.

Invariants: the child dies with this process; every wait is bounded; a server that dies again and again is a fault.
Must not know: which server it is, where it listens, how one sees that it is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from msgspec import Struct

from swarmd.core.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger(__name__)

STOP_S: Final = 20.0
#: A life that lasted so long does not count as one of many deaths in a row.
STEADY_S: Final = 30.0
POLL_S: Final = 0.02
WORDS_BYTES: Final = 4096

# Ask the kernel for a signal when the parent dies, then become the server under the same pid. A parent that died before
# the request was made is noticed by comparing its pid. (`preexec_fn` would run Python between fork and exec.)
# Some event loops leave copies of the pipes open in a child, which would then never see or show that one was closed.
_LAUNCHER: Final = """
import ctypes, os, sys
parent, ending, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, ending)
if os.getppid() != parent:
    sys.exit(1)
os.closerange(3, 65536)
os.execv(argv[0], argv)
"""


def bound_to_us(argv: Sequence[str], orphan: signal.Signals) -> tuple[str, ...]:
    """The command that runs `argv`, a path and its arguments, and gets the signal `orphan` when this process dies."""
    return (sys.executable, "-S", "-E", "-c", _LAUNCHER, str(os.getpid()), str(int(orphan)), *argv)


class Child(Struct, frozen=True):
    """What a server is called, and how it is treated.

    `fault` begins the codes of its faults: `<fault>_died`, `<fault>_slow`. `files` is where it says why it ended, the
    most telling first. `orphan` is the signal that it gets when this process dies.
    """

    name: str
    fault: str
    files: tuple[Path, ...]
    ready_s: float
    stop_s: float = STOP_S
    orphan: signal.Signals = signal.SIGTERM


class Supervised:
    """One child process and its successors."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int:
        """The process id, 0 while it is not running."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    @property
    def exit_code(self) -> int | None:
        """How the last process ended, negative for a signal; None while it runs or when there was none."""
        return self._process.returncode if self._process is not None else None

    def rearm(self) -> None:
        """Allow a new start after a `stop`."""
        self._stopping = False

    async def launch(self, argv: Sequence[str], output: BinaryIO, cwd: Path | None = None) -> None:
        """Start a process that runs `argv`, a path and its arguments; `output` gets both of its streams."""
        self._process = await asyncio.create_subprocess_exec(
            *bound_to_us(argv, self._child.orphan),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C at the terminal is for swarmd, which then stops the server last.
        )
        if self._stopping:  # by a `stop` that came too early to see this process
            await self._end()

    async def until_ready(self, is_ready: Callable[[], Awaitable[bool]]) -> None:
        """Ask `is_ready` until it says so. Raises `Fault`: `<fault>_died`, or `<fault>_slow` once it is ended."""
        child, process = self._child, self._launched()
        try:
            async with asyncio.timeout(child.ready_s):
                while process.returncode is None:
                    if await is_ready():
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            await self._end()
            raise Fault(
                f"{child.fault}_slow", f"{child.name} not ready in {child.ready_s:.0f} s: {self.last_words()}"
            ) from error
        except asyncio.CancelledError:
            await self._end()
            raise
        raise Fault(f"{child.fault}_died", f"{child.name} ended at its start: {self.last_words()}")

    async def supervise(
        self, relaunch: Callable[[], Awaitable[None]], restarts_max: int, on_restart: Callable[[int], None] | None
    ) -> None:
        """Await `relaunch()` whenever the process dies, until `stop`; call `on_restart(pid)` after each.

        A `Fault` of `relaunch` counts as one more death. Raises `Fault("<fault>_died")` after more than `restarts_max`
        deaths in a row, each within `STEADY_S` of its start.
        """
        loop, child = asyncio.get_running_loop(), self._child
        failures = 0
        while not self._stopping:
            process, started = self._launched(), loop.time()
            code = await process.wait()
            if self._stopping:
                return
            failures = failures + 1 if loop.time() - started < STEADY_S else 1
            log.error("%s (pid %d) ended with code %s; restarting it", child.name, process.pid, code)
            if failures > restarts_max:
                raise Fault(f"{child.fault}_died", f"{child.name} died {failures} times in a row: {self.last_words()}")
            await asyncio.sleep(min(0.1 * 2 ** (failures - 1), 2.0))
            if self._stopping:
                return
            try:
                await relaunch()
            except Fault as fault:
                log.error("restart failed: %s", fault.message)
                continue
            if on_restart is not None:
                on_restart(self.pid)

    async def stop(self) -> None:
        """End the process: SIGTERM, then SIGKILL after `stop_s`. Idempotent."""
        self._stopping = True
        await self._end()

    def last_words(self) -> str:
        """The tail of the first of `files` that says anything."""
        for file in self._child.files:
            with contextlib.suppress(OSError), open(file, "rb") as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - WORDS_BYTES))
                lines = stream.read().decode(errors="replace").strip().splitlines()
                if lines:
                    return " | ".join(lines[-3:])
        return f"it said nothing; see {self._child.files[-1]}"

    def _launched(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("launch() comes first")
        return self._process

    async def _end(self) -> None:
        process, child = self._process, self._child
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(child.stop_s):
                await process.wait()
        except TimeoutError:
            log.warning("%s (pid %d) ignored SIGTERM for %.0f s; killing it", child.name, process.pid, child.stop_s)
            process.kill()
            await process.wait()
