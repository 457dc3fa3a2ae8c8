"""Memory nodes over a log, a bus and stores in this process, and whoever asks them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from swarmd.adapters.fakes import FakeBus, FakeLog
from swarmd.adapters.memory_fakes import FakeDisk, FakeVectorStores
from swarmd.adapters.system import SystemClock, SystemEntropy
from swarmd.adapters.telemetry import Telemetry
from swarmd.adapters.watch_matrix import NumpyWatchMatrix
from swarmd.cached_embedder import CachedEmbedder
from swarmd.core import subjects
from swarmd.core.events import Failure
from swarmd.core.memory_wire import (
    GetReply,
    LineageReply,
    MemoryStats,
    RecallReply,
    RememberReply,
    RevokeReply,
)
from swarmd.hash_embedder import HashEmbedder
from swarmd.roles.memory_node import MemoryNode, MemoryPorts
from tests.system.memory_rig import Probe
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from swarmd.core.memory_fold import MemoryState
    from swarmd.ports import Stored

T = TypeVar("T")
MEMORY = "shared"
DIMENSION = 64


class Clock(SystemClock):
    """The real clock, which a test may put ahead."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


class Log(FakeLog):
    """A log that knows when each commit was stored."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    async def append(self, subject: str, payload: bytes, message_id: str, seen: int) -> Stored:
        stored = await super().append(subject, payload, message_id, seen)
        if not stored.duplicate:
            (record,) = [record for record in self._records[-1:] if record.seq == stored.seq]
            record.at_ms = self._clock.now_ms()
        return stored


class Held:
    """A lease that several share; a `deluded` holder does not know yet that it lost it."""

    def __init__(self, board: list[str], name: str) -> None:
        self._board, self._name = board, name
        self.deluded = False

    async def look(self) -> int:
        return len(self._board)

    async def acquire(self, mark: int = 0) -> bool:
        if not self._board:
            self._board.append(self._name)
        return self._board == [self._name]

    async def renew(self) -> bool:
        return self.deluded or self._board == [self._name]

    async def release(self) -> None:
        if self._board == [self._name]:
            self._board.clear()


class Running:
    """A node and its life."""

    def __init__(self, node: MemoryNode, lease: Held, probe: Probe, task: asyncio.Task[None]) -> None:
        self.node, self.lease, self.probe, self.task = node, lease, probe, task

    @property
    def state(self) -> MemoryState:
        return self.node.state

    async def stop(self) -> None:
        await self.node.drain()
        await self.kill()

    async def kill(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


class World:
    """One memory's log, bus and stores; nodes come and go."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.group = group
        self.bus, self.clock = FakeBus(), Clock()
        self.log = Log(self.clock)
        self.disk = FakeDisk()
        self.stores = FakeVectorStores(self.disk)
        self.board: list[str] = []
        self.log_bytes_max = 0
        self._names = count(1)
        self.nodes: list[Running] = []

    async def node(
        self, *, is_leading: bool = True, is_warm: bool = False, stores: FakeVectorStores | None = None
    ) -> Running:
        """Another node; it leads unless there is one."""
        name = f"m{next(self._names)}"
        lease, telemetry = Held(self.board, name), Telemetry("memory", "")
        probe = Probe(telemetry)
        ports = MemoryPorts(
            log=self.log,
            bus=self.bus,
            lease=lease,
            stores=stores or self.stores,
            embeddings=lambda spec, dimension: CachedEmbedder(HashEmbedder(DIMENSION), self.clock),
            spec="hash:64",
            matrix=NumpyWatchMatrix,
            clock=self.clock,
            entropy=SystemEntropy(),
            probe=probe,
            meter=telemetry,
            log_size=self._log_size,
        )
        node = MemoryNode(MEMORY, name, f"boot{name}", ports)
        running = Running(node, lease, probe, self.group.create_task(node.run()))
        self.nodes.append(running)
        wanted = node.ready if is_warm else node.leading
        if is_leading:
            await until(lambda: wanted.is_set() or running.task.done())
            if running.task.done():
                running.task.result()
        return running

    async def _log_size(self) -> tuple[int, int]:
        return self.log.size, self.log_bytes_max

    async def tell(self, verb: str, body: Any, **who: Any) -> RememberReply:
        """Ask for a change."""
        return await self.ask(verb, body, RememberReply, **who)

    async def ask(self, verb: str, body: Any, answer: type[T], **who: Any) -> T:
        """Ask as a client, as a member of `swarm`, or as `admin`."""
        swarm, admin = who.get("swarm", ""), who.get("admin", False)
        subject = subjects.memory_verb(MEMORY, verb)
        if swarm:
            subject = subjects.memory_verb_of(MEMORY, swarm, verb)
        elif admin:
            subject = subjects.memory_ctl(MEMORY, verb)
        payload = body if isinstance(body, bytes) else msgspec.json.encode(body if body is not None else {})
        return msgspec.json.decode(await self.bus.request(subject, payload, 30_000), type=answer)

    async def refused(self, verb: str, body: Any = None, **who: Any) -> Failure:
        """The error that this is answered with."""
        reply = await self.ask(verb, body, Refused, **who)
        assert isinstance(reply.error, Failure), f"{verb} was not refused"
        return reply.error

    async def remember(self, text: str, who: dict[str, Any] | None = None, **more: Any) -> RememberReply:
        reply = await self.ask("remember", {"text": text, **more}, RememberReply, **(who or {}))
        return reply

    async def kept(self, text: str, who: dict[str, Any] | None = None, **more: Any) -> int:
        """Remember what cannot be refused; where it is."""
        reply = await self.remember(text, who, **more)
        assert not isinstance(reply.error, Failure), reply.error
        return reply.seq

    async def recall(self, text: str, who: dict[str, Any] | None = None, **more: Any) -> list[str]:
        """The ids recalled, from a store that is as new as the log."""
        at_least = more.pop("at_least_seq", self.nodes[-1].state.seq)
        asked = {"text": text, "at_least_seq": at_least, **more}
        reply = await self.ask("recall", asked, RecallReply, **(who or {}))
        assert not isinstance(reply.error, Failure), reply.error
        return [passage.id for passage in reply.passages]

    async def get(self, *ids: str, **who: Any) -> GetReply:
        more = {name: who.pop(name) for name in ("agent", "task", "step") if name in who}
        return await self.ask("get", {"ids": list(ids), **more}, GetReply, **who)

    async def revoke(self, **conditions: Any) -> RevokeReply:
        return await self.ask("revoke", conditions, RevokeReply, admin=True)

    async def lineage(self, of: str, **more: Any) -> LineageReply:
        return await self.ask("lineage", {"id": of, **more}, LineageReply, admin=True)

    async def stats(self, **who: Any) -> MemoryStats:
        return await self.ask("stats", None, MemoryStats, **who)


class Refused(msgspec.Struct):
    """An answer, as far as it is an error."""

    error: Failure | msgspec.UnsetType = msgspec.UNSET


def code(reply: Any) -> str:
    """The code of the error in an answer; "" where there is none."""
    return reply.error.code if isinstance(reply.error, Failure) else ""


@asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    """A memory without a node."""
    async with asyncio.TaskGroup() as group:
        world = World(group)
        try:
            yield world
        finally:
            for running in world.nodes:
                if not running.task.done():
                    await running.kill()
