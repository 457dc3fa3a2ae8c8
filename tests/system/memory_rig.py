"""A memory's log, projection and watches over a real broker, without the node around them: cut off anywhere."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from swarmd.adapters.memory_fakes import FakeVectorStores
from swarmd.adapters.probe import TelemetryProbe
from swarmd.adapters.streams import ensure_stream, memory_streams
from swarmd.adapters.telemetry import Telemetry
from swarmd.adapters.watch_matrix import NumpyWatchMatrix
from swarmd.cached_embedder import CachedEmbedder
from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.memory import Forgotten, RememberedV2, Updated
from swarmd.edges.wiring import CLOCK, ENTROPY, connected, new_boot
from swarmd.hash_embedder import HashEmbedder
from swarmd.ports import VectorQuery
from swarmd.roles.memory_log import LogPorts, MemoryLog
from swarmd.roles.memory_projection import Projection, ProjectionPorts
from swarmd.roles.memory_watch import Watches, WatchPorts
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from swarmd.adapters.nats_connect import NatsSettings
    from swarmd.adapters.nats_server import NatsServer
    from swarmd.core.memory_wire import Job
    from swarmd.edges.wiring import Wire
    from swarmd.ports import Embeddings, Hit, VectorStores

MEMORY = "shared"
_names = count(1)


class Probe(TelemetryProbe):
    """Remembers what it was told."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__(telemetry)
        self.told: list[str] = []

    def trouble(self, where: str, error: Exception) -> None:
        self.told.append(f"{where}: {error}")

    def notice(self, what: str) -> None:
        self.told.append(what)

    def incident(self, what: str) -> None:
        self.told.append(what)

    def heard(self, words: str) -> bool:
        return any(words in told for told in self.told)


class Fickle:
    """An embedder of hashes that can be out of order, and refuses texts that hold a word."""

    def __init__(self, dimension: int = 64) -> None:
        self._inner = HashEmbedder(dimension)
        self.id, self.dimension = self._inner.id, dimension
        self.failure: Exception | None = None
        self.refused = "unspeakable"
        self.longest = 1_000_000

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if self.failure is not None:
            raise self.failure
        if any(self.refused in text or len(text) > self.longest for text in texts):
            raise Rejected("too_long", "this is no text for me")
        return self._inner.embed(texts)


class Embedders:
    """The factory of a test: `fickle`, and hashes of whatever dimension."""

    def __init__(self) -> None:
        self.fickle = Fickle()
        self.asked: list[str] = []
        self.missing: set[str] = set()

    def __call__(self, spec: str, dimension: int) -> Embeddings:
        self.asked.append(spec)
        if spec in self.missing:
            raise Rejected("bad_model", f"there is no {spec} here")
        if spec == "fickle":
            return CachedEmbedder(self.fickle, CLOCK)
        return CachedEmbedder(HashEmbedder(int(spec.partition(":")[2] or 64)), CLOCK)


class Desk:
    """One life of a memory: its fold, its projection, its watches."""

    def __init__(self, wire: Wire, stores: VectorStores, embedders: Embedders, spec: str = "hash:64") -> None:
        self.telemetry = Telemetry("memory", "")
        self.probe = Probe(self.telemetry)
        self.may_write = True
        name = f"m{next(_names)}"
        stream = wire.log(subjects.memory_stream(MEMORY))
        self.log = MemoryLog(MEMORY, name, new_boot(), LogPorts(stream, CLOCK, ENTROPY, self.probe))
        ports = ProjectionPorts(
            stream, stores, embedders, spec, lambda: self.may_write, CLOCK, self.probe, self.telemetry
        )
        self.projection = Projection(self.log, ports)
        self.watches = Watches(
            self.log, self.projection, WatchPorts(NumpyWatchMatrix, CLOCK, self.probe, self.telemetry)
        )
        self._stream = stream

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.log.run())
            await self.log.folded(await self._stream.last_seq())
            group.create_task(self.projection.run())
            group.create_task(self.watches.run())

    async def remember(self, *texts: str, **more: Any) -> int:
        """Texts in one commit, each under its own words as its id."""
        return await self.log.commit(*((text[:40], RememberedV2(text=text, **more)) for text in texts))

    async def update(self, memory: str, text: str) -> int:
        replaces = self.log.state.known[memory].place[0]
        return await self.log.commit((memory, Updated(text=text, replaces=replaces)))

    async def forget(self, memory: str) -> int:
        return await self.log.commit((memory, Forgotten()))

    async def recall(self, text: str, k: int = 5, as_of: int = 0, at_least: int = -1) -> list[str]:
        """Ids, best first, of a store that is as new as the log."""
        (vector,) = await self.projection.vectors([text])
        query = VectorQuery(text=text, vector=vector, k=k, now_ms=CLOCK.now_ms())
        hits: list[Hit]
        hits, _ = await self.projection.search(query, as_of, self.log.seq if at_least < 0 else at_least)
        return [hit.memory.id for hit in hits]

    async def done(self, job: Job) -> Job:
        await until(lambda: job.state != "running")
        return job


class Lives:
    """Starts desks and cuts them off."""

    def __init__(self, nats: NatsSettings, group: asyncio.TaskGroup, stores: VectorStores | None) -> None:
        self.nats, self.group = nats, group
        self.embedders = Embedders()
        self.stores = stores or FakeVectorStores()
        self._running: dict[Desk, asyncio.Task[None]] = {}

    async def desk(self, spec: str = "hash:64", stores: VectorStores | None = None) -> Desk:
        """A desk that runs on a connection of its own."""
        begun: asyncio.Future[Desk] = asyncio.get_running_loop().create_future()

        async def live() -> None:
            async with connected(self.nats, "memory") as wire:
                for config in memory_streams(MEMORY, 50_000_000):
                    await ensure_stream(wire.bus, config)
                desk = Desk(wire, stores or self.stores, self.embedders, spec)
                begun.set_result(desk)
                await desk.run()

        task = self.group.create_task(live())
        await until(lambda: begun.done() or task.done())
        if task.done():
            task.result()
        desk = begun.result()
        self._running[desk] = task
        return desk

    async def warm(self, spec: str = "hash:64", stores: VectorStores | None = None) -> Desk:
        """A desk whose projection is warm."""
        desk = await self.desk(spec, stores)
        await until(lambda: desk.projection.warm)
        return desk

    async def kill(self, desk: Desk) -> None:
        """Cut a desk off: nothing of it goes on."""
        task = self._running.pop(desk)
        task.cancel()
        await asyncio.wait([task])

    async def end(self) -> None:
        for desk in list(self._running):
            await self.kill(desk)


@asynccontextmanager
async def lives(server: NatsServer, stores: VectorStores | None = None) -> AsyncIterator[Lives]:
    from swarmd.adapters.nats_connect import NatsSettings

    async with asyncio.TaskGroup() as group:
        living = Lives(NatsSettings(url=server.url), group, stores)
        try:
            yield living
        finally:
            await living.end()
