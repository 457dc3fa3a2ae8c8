"""The pipe to an MCP server that runs as a child process: JSON-RPC, a line a message.

Job: start the server in a process group of its own, carry messages, end the whole group.
Invariants: it gets the variables that were named and those every program needs, nothing else; it dies with this
process; a message above the limit is never held in memory, the call it answers fails instead; what it prints beside
messages is skipped, and too much of that closes the pipe; the end is bounded whatever the server does.
Must not know: tools, agents, what the messages say beyond the id they answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from swarmd.core.errors import Fault, Rejected
from swarmd.supervised import bound_to_us

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp.client._transport import TransportStreams
    from mcp.shared.message import SessionMessage

log = logging.getLogger(__name__)

#: Variables that every program may need and that hold no secret.
PLAIN_VARIABLES: Final = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
#: A server may greet on stdout; one that prints more than this beside its messages does not speak the protocol.
NOISE_BYTES_MAX: Final = 256 * 1024
#: So much of one line is read and thrown away before its sender is taken for broken.
DISCARDED_BYTES_MAX: Final = 256 * 1024**2
CHUNK_BYTES: Final = 64 * 1024
#: How long a server may take to end by itself once its input is closed, and again after SIGTERM.
STOP_S: Final = 0.5
POLL_S: Final = 0.01
WORDS_BYTES: Final = 2_000
_ENDS_BYTES: Final = 512
# Where an id stands in an answer: before its result, or at its very end, never inside the result.
_FIRST_ID: Final = re.compile(rb'^\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,18})\s*,')
_LAST_ID: Final = re.compile(rb'"id"\s*:\s*(\d{1,18})\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$')


class Program:
    """How to start a server. Raises `Rejected("mcp_command")` when there is no such program or variable."""

    def __init__(self, server: str, argv: Sequence[str], names: Sequence[str], environ: Mapping[str, str]) -> None:
        found = shutil.which(argv[0], path=environ.get("PATH"))
        if found is None:
            raise Rejected("mcp_command", f"mcp.{server}: there is no program {argv[0]!r} on the PATH")
        missing = [name for name in names if name not in environ]
        if missing:
            raise Rejected("mcp_command", f"mcp.{server}: its variable {missing[0]} is not set")
        self.server = server
        self.argv = (os.path.abspath(found), *argv[1:])
        self.environ = {name: environ[name] for name in (*PLAIN_VARIABLES, *names) if name in environ}


class Pipe:
    """One life of one server; `said()` is the end of what it wrote to stderr, `ended` is set when its output ends."""

    def __init__(self, program: Program, message_bytes_max: int) -> None:
        self._program, self._bytes_max = program, message_bytes_max
        self._words = bytearray()
        self._noise = 0
        self.ended = asyncio.Event()
        self.pid = 0

    def said(self) -> str:
        lines = self._words.decode("utf-8", "replace").strip().splitlines()
        return " | ".join(lines[-3:])

    @asynccontextmanager
    async def open(self) -> AsyncIterator[TransportStreams]:
        """The streams of messages that the SDK works on. Raises `Fault("mcp_unavailable")`."""
        import anyio

        process = await self._started()
        inward, incoming = anyio.create_memory_object_stream[Any](0)
        outgoing, outward = anyio.create_memory_object_stream[Any](0)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._read, process, inward)
                group.start_soon(self._write, process, outward, inward)
                group.start_soon(self._listen, process)
                try:
                    yield incoming, outgoing
                finally:
                    group.cancel_scope.cancel()
        finally:
            for stream in (inward, incoming, outgoing, outward):
                stream.close()
            with anyio.CancelScope(shield=True):
                await _end(process)

    async def _started(self) -> asyncio.subprocess.Process:
        try:
            process = await asyncio.create_subprocess_exec(
                *bound_to_us(self._program.argv, signal.SIGKILL),
                env=self._program.environ,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise Fault("mcp_unavailable", f"cannot start {self._program.argv[0]}: {error.strerror}") from error
        self.pid = process.pid
        return process

    async def _read(self, process: asyncio.subprocess.Process, inward: MemoryObjectSendStream[Any]) -> None:
        """Pass messages on until the output ends or is no protocol."""
        import anyio

        assert process.stdout is not None
        line = _Line(self._bytes_max)
        try:
            while self._noise <= NOISE_BYTES_MAX and (chunk := await process.stdout.read(CHUNK_BYTES)):
                *whole, rest = chunk.split(b"\n")
                for part in whole:
                    line.add(part)
                    message = self._message(line)
                    line = _Line(self._bytes_max)
                    if message is not None:
                        await inward.send(message)
                line.add(rest)
                if line.size > DISCARDED_BYTES_MAX:
                    self._noise = NOISE_BYTES_MAX + 1
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # the session is gone; whoever closed it ends the process
        finally:
            self.ended.set()
            inward.close()
        if self._noise > NOISE_BYTES_MAX:
            log.warning("MCP server %s prints what is no message; its pipe is closed", self._program.server)

    def _message(self, line: _Line) -> SessionMessage | None:
        """The message in a line, an error in place of one that is too long, or None for noise."""
        from mcp.shared.message import SessionMessage
        from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError, jsonrpc_message_adapter

        if line.size > self._bytes_max:
            answered = line.answered()
            if answered is None:
                self._noise = NOISE_BYTES_MAX + 1  # nobody can be told: the calls in flight fail with the pipe
                return None
            why = f"the answer has {line.size} bytes, above the limit of {self._bytes_max}: ask for less"
            return SessionMessage(
                JSONRPCError(jsonrpc="2.0", id=answered, error=ErrorData(code=INTERNAL_ERROR, message=why))
            )
        if not line.text.strip():
            return None
        try:
            return SessionMessage(jsonrpc_message_adapter.validate_json(bytes(line.text), by_name=False))
        except (ValueError, RecursionError):  # pydantic's error is a ValueError
            self._noise += line.size + 1
            return None

    async def _write(
        self,
        process: asyncio.subprocess.Process,
        outward: MemoryObjectReceiveStream[Any],
        inward: MemoryObjectSendStream[Any],
    ) -> None:
        assert process.stdin is not None
        try:
            async for message in outward:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                process.stdin.write(text.encode() + b"\n")
                await process.stdin.drain()
        except OSError:  # it reads no more: the session must see the end
            self.ended.set()
            inward.close()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Keep the end of what it says on stderr, so that it never blocks there."""
        assert process.stderr is not None
        while chunk := await process.stderr.read(CHUNK_BYTES):
            self._words += chunk
            del self._words[:-WORDS_BYTES]


class _Line:
    """A line as it arrives; beyond the limit only its two ends are kept."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.text, self.size = bytearray(), 0
        self._tail = b""

    def add(self, part: bytes) -> None:
        self.size += len(part)
        if self.size <= self._bytes_max:
            self.text += part
            return
        self._tail = ((self._tail or bytes(self.text)) + part)[-_ENDS_BYTES:]
        self.text += part[:_ENDS_BYTES]
        del self.text[_ENDS_BYTES:]

    def answered(self) -> int | None:
        """The id of the request that this answers, where its ends show it."""
        found = _FIRST_ID.search(bytes(self.text)) or _LAST_ID.search(self._tail)
        return int(found[1]) if found else None


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close its input, then SIGTERM, then SIGKILL to the whole group; each step waits `STOP_S` at most.

    Whoever is cancelled on the way still kills: nothing of the server is left.
    """
    try:
        if process.stdin is not None:
            process.stdin.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if await _has_ended(process):
                break
            _signal_group(process.pid, number)
        await _has_ended(process)
    finally:
        _signal_group(process.pid, signal.SIGKILL)  # what it has started and left behind
        try:
            await _has_ended(process)  # killed: its code is here in a moment
        finally:
            transport = getattr(process, "_transport", None)
            if transport is not None:  # a grandchild in another session may still hold the pipes
                transport.close()


async def _has_ended(process: asyncio.subprocess.Process) -> bool:
    """`process.wait()` would also wait for the pipes, which a grandchild may hold open: look at the code instead."""
    for _ in range(round(STOP_S / POLL_S)):
        if process.returncode is not None:
            return True
        await asyncio.sleep(POLL_S)
    return process.returncode is not None


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
