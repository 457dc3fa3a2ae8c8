"""Program agents as child processes: lines over pipes, a clear end.

Job: start an executable in a process group of its own, write and read lines within their limits, end all of it.
Invariants: nothing of it outlives `end`, short of what leaves the group on purpose; it dies with this process (on
Linux); it gets the variables that it was promised and no others; what it writes is held back, not piled up, while
nobody reads it. Must not know what the lines say.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from swarmd.core.errors import Fault, Rejected
from swarmd.supervised import bound_to_us

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from swarmd.core.program import ProgramSpec

#: Variables that every program gets, where they are set.
PLAIN: Final = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR")
WRITE_S: Final = 60.0
KILLED_S: Final = 5.0
#: How long an ended program's last lines may take to come out of the pipe, which a child of its may hold open.
DRAIN_S: Final = 0.5
QUEUE_BYTES_MAX: Final = 1024 * 1024
WORDS_BYTES_MAX: Final = 4_096


class SubprocessPrograms:
    """Starts programs as children of this process; `environ` is where the variables that they get come from."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def check(self, name: str, spec: ProgramSpec) -> None:
        """What can be seen before the first start. Raises `Rejected("bad_program")` saying what to correct."""
        where = f"program {name!r}"
        if spec.cwd and not os.path.isdir(spec.cwd):
            raise Rejected("bad_program", f"{where}: cwd {spec.cwd!r} is no directory")
        missing = [variable for variable in spec.env if variable not in self._environ]
        if missing:
            raise Rejected("bad_program", f"{where} wants the variable {missing[0]}, which is not set")
        if not self._executable(spec):
            hint = "is no executable file" if "/" in spec.command[0] else "is not on the PATH"
            raise Rejected("bad_program", f"{where}: {spec.command[0]!r} {hint}")

    def _executable(self, spec: ProgramSpec) -> str:
        """The path of the command, "" when there is none; one with a slash starts at the program's directory."""
        command = spec.command[0]
        if "/" in command:
            command = os.path.abspath(os.path.join(spec.cwd, command))
        return shutil.which(command, path=self._environ.get("PATH", os.defpath)) or ""

    async def start(self, spec: ProgramSpec, on_words: Callable[[bytes], None]) -> RunningProgram:
        """Start it. Raises `Fault("program_not_started")`."""
        executable = self._executable(spec)
        if not executable:
            raise Fault("program_not_started", f"{spec.command[0]!r} is not there any more, or not executable")
        argv = bound_to_us((executable, *spec.command[1:]), signal.SIGKILL)
        pipes = _Pipes(spec.line_bytes_max, on_words)
        environ = {name: self._environ[name] for name in (*PLAIN, *spec.env) if name in self._environ}
        try:
            await asyncio.get_running_loop().subprocess_exec(
                lambda: pipes, *argv, cwd=spec.cwd or None, env=environ, start_new_session=True
            )
        except OSError as error:
            raise Fault("program_not_started", f"{spec.command[0]} cannot be started: {error}") from None
        return RunningProgram(pipes, spec.stop_timeout_ms / 1000)


class _Pipes(asyncio.SubprocessProtocol):
    """What the event loop tells about the process; wakes whoever waits by `changed`."""

    def __init__(self, line_bytes_max: int, on_words: Callable[[bytes], None]) -> None:
        self.line_bytes_max, self._on_words = line_bytes_max, on_words
        self.transport: asyncio.SubprocessTransport
        self.lines: deque[bytes] = deque()
        self.too_long = self.finished = False
        self.exited, self.writable, self.changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.writable.set()
        self.last_words = b""
        self._part, self._words = bytearray(), bytearray()
        self._queued, self._paused = 0, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.SubprocessTransport", transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._hear(data)
            return
        if self.too_long:
            return
        *whole, rest = data.split(b"\n")
        for end in whole:
            self._part += end
            self._queue()
        self._part += rest
        self.too_long |= len(self._part) > self.line_bytes_max
        if self._queued > QUEUE_BYTES_MAX and not self._paused:
            self._paused = True
            cast("asyncio.ReadTransport", self.transport.get_pipe_transport(1)).pause_reading()
        self.changed.set()

    def _queue(self) -> None:
        line = bytes(self._part)
        self._part.clear()
        if len(line) > self.line_bytes_max:
            self.too_long = True
        elif not self.too_long:
            self.lines.append(line)
            self._queued += len(line) + 1

    def take(self) -> bytes:
        """The next line; goes on reading when there is room again."""
        line = self.lines.popleft()
        self._queued -= len(line) + 1
        pipe = self.transport.get_pipe_transport(1)
        if self._paused and self._queued <= QUEUE_BYTES_MAX // 2 and pipe is not None and not pipe.is_closing():
            self._paused = False
            cast("asyncio.ReadTransport", pipe).resume_reading()
        return line

    @property
    def unfinished(self) -> int:
        """Bytes of a line that has no end."""
        return len(self._part)

    def _hear(self, data: bytes) -> None:
        """Lines of stderr, each cut at its limit."""
        *whole, rest = data.split(b"\n")
        for end in whole:
            self._words += end[: WORDS_BYTES_MAX - len(self._words)]
            self._say()
        self._words += rest[: WORDS_BYTES_MAX - len(self._words)]

    def _say(self) -> None:
        words = bytes(self._words)
        self._words.clear()
        if words.strip():
            self.last_words = words
            self._on_words(words)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 2:
            self._say()
        elif fd == 1:
            self.finished = True
        else:
            self.writable.set()
        self.changed.set()

    def process_exited(self) -> None:
        self.exited.set()
        self.changed.set()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()


class RunningProgram:
    """One process of a program agent."""

    def __init__(self, pipes: _Pipes, stop_s: float) -> None:
        self._pipes, self._stop_s = pipes, stop_s
        self._pid = pipes.transport.get_pid()
        self._ended = False

    @property
    def pid(self) -> int:
        return self._pid

    async def send(self, line: bytes) -> None:
        """Write one line; waits while the program does not read."""
        pipe = cast("asyncio.WriteTransport | None", self._pipes.transport.get_pipe_transport(0))
        if pipe is None or pipe.is_closing():
            return  # what it said before it ended is still to be read, and how it ended is what `receive` tells
        pipe.write(line + b"\n")
        try:
            async with asyncio.timeout(WRITE_S):
                await self._pipes.writable.wait()
        except TimeoutError:
            raise Fault("program_deaf", f"the program has not read its stdin for {WRITE_S:.0f} s") from None

    async def receive(self) -> bytes:
        """The next line of stdout."""
        pipes = self._pipes
        while not pipes.lines:
            if pipes.too_long:
                why = f"the program wrote a line of more than {pipes.line_bytes_max} bytes on stdout"
                raise Rejected("program_line_too_long", why)
            if pipes.exited.is_set() or pipes.finished:
                await self._last_lines()
                if pipes.lines:
                    break
                raise Fault("program_exited", self._how_it_ended())
            pipes.changed.clear()
            await pipes.changed.wait()
        return pipes.take()

    async def _last_lines(self) -> None:
        """Wait for both the process and its pipe to end, as far as they do so together."""
        pipes = self._pipes
        try:
            async with asyncio.timeout(DRAIN_S):
                while not (pipes.exited.is_set() and pipes.finished) and not pipes.lines:
                    pipes.changed.clear()
                    await pipes.changed.wait()
        except TimeoutError:
            pass

    def _how_it_ended(self) -> str:
        pipes = self._pipes
        code = pipes.transport.get_returncode()
        if code is None:
            how = "the program closed its stdout"
        elif code >= 0:
            how = f"the program ended with code {code}"
        else:
            how = f"the program was ended by {_signal_name(-code)}"
        if pipes.unfinished:
            how += f" in the middle of a line ({pipes.unfinished} bytes of it)"
        words = pipes.last_words.decode("utf-8", "replace").strip()
        return f"{how} before it said `done` or `fail`" + (f"; its last words: {words}" if words else "")

    async def end(self, *, gently: bool = False) -> None:
        """Close its stdin, SIGTERM its group, then SIGKILL it; `gently` waits for its own end before the first."""
        if self._ended:
            return
        self._ended = True
        pipes = self._pipes
        try:
            stdin = pipes.transport.get_pipe_transport(0)
            if stdin is not None:
                stdin.close()
            if gently:
                await self._exits_within(self._stop_s)
            if not pipes.exited.is_set():
                self._signal(signal.SIGTERM)
                await self._exits_within(self._stop_s)
        finally:  # whoever is cancelled here leaves nothing behind either
            self._signal(signal.SIGKILL)
            pipes.transport.close()
        await self._exits_within(KILLED_S)

    async def _exits_within(self, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._pipes.exited.wait()
        except TimeoutError:
            pass

    def _signal(self, number: signal.Signals) -> None:
        """To the whole group, which is named by the process that began it."""
        try:
            os.killpg(self._pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # nobody is left in it, or nobody whom this process may signal


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
