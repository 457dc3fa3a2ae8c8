"""A TCP relay between two processes that a test can cut: it breaks its connections, or holds back what they say."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Way:
    """A relay to `host:port`. `freeze` holds everything back, `sever` closes all connections and takes no new ones."""

    def __init__(self, host: str, port: int, group: asyncio.TaskGroup) -> None:
        self._to, self._group = (host, port), group
        self._passable = asyncio.Event()
        self._passable.set()
        self._relays: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def freeze(self) -> None:
        self._passable.clear()

    def sever(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for relay in self._relays:
            relay.cancel()

    async def heal(self) -> None:
        """Let everything through again, on the same port; also what opens the way at first."""
        self._passable.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = self._group.create_task(self._relay(reader, writer))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            there, back = await asyncio.open_connection(*self._to)
            writers.append(back)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, back))
                group.create_task(self._pump(there, writer))
        except OSError:
            return
        finally:
            for one in writers:
                one.transport.abort()
                with suppress(OSError):
                    await one.wait_closed()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await source.read(65_536):
                await self._passable.wait()
                target.write(chunk)
                await target.drain()
        target.transport.abort()


@asynccontextmanager
async def a_way(host: str, port: int) -> AsyncIterator[Way]:
    """An open way on a free port."""
    async with asyncio.TaskGroup() as group:
        way = Way(host, port, group)
        await way.heal()
        try:
            yield way
        finally:
            way.sever()
