"""Roles over the in-process twins of their ports: what is hard to bring about on a real broker."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.fakes import FakeBlobs, FakeBus, FakeClock, FakeLease, FakeLog
from swarmd.adapters.system import SystemEntropy
from swarmd.core import subjects
from swarmd.core.codec import Commit
from swarmd.core.commits import HORIZON
from swarmd.core.errors import Rejected
from swarmd.core.events import Completed, Event, Fact, Failed, MemberJoined, Stepped, Suspended
from swarmd.core.office import LeaderSettings
from swarmd.core.state import SwarmState
from swarmd.core.wire import Beat, Dispatch, Heartbeat, Item, Pause, Report, Start, Stop
from swarmd.edges.client import Client
from swarmd.roles.attempt import AgentFailed, AttemptPorts, Child
from swarmd.roles.member import MemberSettings
from swarmd.roles.orchestrator import Orchestrator, OrchestratorPorts
from swarmd.roles.reading import Reader
from swarmd.roles.worker import NodeOffer, Worker
from swarmd.roles.writer import LogWriter, sign
from swarmd.sdk import Agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from swarmd.roles.context import Context

WAIT_S = 10.0


class Silent:
    """A probe and a meter that nobody reads."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


# --- orchestrator ----------------------------------------------------------------------------------


class Full(FakeLog):
    """A log that takes nothing until `room` is made."""

    room = False

    async def append(self, subject: str, payload: bytes, message_id: str, seen: int) -> Any:
        if not self.room:
            raise Rejected("log_full", "no room")
        return await super().append(subject, payload, message_id, seen)


class Late(FakeLog):
    """A log that has been written to for long: it begins where a snapshot ends."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first = first


def an_orchestrator(log: FakeLog, clock: FakeClock, seq: int = 0) -> Orchestrator:
    async def stores() -> list[Any]:
        return []

    quiet = Silent()
    ports = OrchestratorPorts(
        log, FakeLog(), stores, FakeBus(), FakeLease(clock, {}, "o"), clock, SystemEntropy(), quiet, quiet
    )
    return Orchestrator(SwarmState("s", seq=seq), ("o", "b"), ports, LeaderSettings(), "0")


async def led(orchestrator: Orchestrator, clock: FakeClock, until: Callable[[], bool]) -> None:
    """Run it, with time passing, until something holds."""
    async with asyncio.TaskGroup() as group, asyncio.timeout(WAIT_S):
        running = group.create_task(orchestrator.run())
        while not until():
            await clock.advance(20)  # well under the lease's time to live for each real moment that is waited
            await asyncio.sleep(0.01)
        running.cancel()


async def test_an_election_that_a_full_log_refused_is_held_again() -> None:
    log, clock = Full(), FakeClock()
    orchestrator = an_orchestrator(log, clock)
    started_ms = clock.now_ms()

    def room() -> bool:
        log.room = log.room or clock.now_ms() - started_ms > 1_000
        return orchestrator.leader.leading

    await led(orchestrator, clock, room)


async def test_an_election_at_the_end_of_a_long_log_counts() -> None:
    """Nothing follows the snapshot, so nothing but the snapshot says how far the log is."""
    seq, clock = 3 * HORIZON, FakeClock()
    orchestrator = an_orchestrator(Late(seq + 1), clock, seq)
    await led(orchestrator, clock, lambda: orchestrator.leader.leading)


# --- client ----------------------------------------------------------------------------------------


class Inboxes(FakeBus):
    def inbox(self) -> str:
        return "_INBOX.c"


async def test_what_is_raised_while_a_client_is_held_comes_out_as_it_is() -> None:
    bus: Any = Inboxes()
    with pytest.raises(KeyError, match="mine"):
        async with Client.over(bus, "s"):
            raise KeyError("mine")
    assert bus.subscriptions == []


# --- attempts --------------------------------------------------------------------------------------


def attempt_ports() -> AttemptPorts:
    log, clock, quiet = FakeLog(), FakeClock(), Silent()
    writer = LogWriter(log, sign(subjects.log("s", "worker", "w"), "/s/worker/w", "b", SystemEntropy()), clock, quiet)
    none: Any = quiet
    return AttemptPorts(Reader(log), FakeBlobs(), FakeBus(), clock, SystemEntropy(), writer, none, none, none, quiet)


@pytest.fixture
async def ports() -> AsyncIterator[AttemptPorts]:
    made = attempt_ports()
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(made.writer.run())
        yield made
        writing.cancel()


async def outcome(ports: AttemptPorts, run: Callable[[Context, Any], Awaitable[Any]], **start: Any) -> Fact:
    """What a worker reports on an attempt of an agent that does `run`."""
    node = NodeOffer("n", {"a": Agent("a", run)}, 1)
    worker = Worker(MemberSettings("s", "w", "b"), [node], ports, FakeBus())
    return await worker.outcome(Start("t", 1, "w/b/0", "a", msgspec.Raw(b"null"), **start))


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("base")])
async def test_an_agent_that_ends_the_process_only_fails_its_attempt(
    ports: AttemptPorts, raised: BaseException
) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        raise raised

    fact = await outcome(ports, run)
    assert isinstance(fact, Failed)
    assert (fact.failure.code, fact.retryable) == ("agent_error", True)


async def test_a_step_that_runs_out_of_an_iterator_fails_its_attempt(ports: AttemptPorts) -> None:
    def first() -> int:
        return next(iter([]))

    async def run(ctx: Context, wanted: Any) -> Any:
        return await ctx.step("first", first)

    async with asyncio.timeout(10):
        fact = await outcome(ports, run)
    assert isinstance(fact, Failed)
    assert (fact.failure.code, fact.failure.message) == (
        "agent_error",
        "RuntimeError: the step raised StopIteration",
    )


async def test_steps_that_never_end_leave_room_for_others(ports: AttemptPorts) -> None:
    """Their threads cannot be stopped; a pool of threads would be used up by them."""
    free = threading.Event()

    async def run(ctx: Context, wanted: Any) -> Any:
        hung = (ctx.step(f"hung {n}", free.wait, timeout_s=0.01) for n in range(40))
        await asyncio.gather(*hung, return_exceptions=True)
        return await ctx.step("quick", lambda: 7)

    try:
        async with asyncio.timeout(WAIT_S):
            fact = await outcome(ports, run)
    finally:
        free.set()
    assert isinstance(fact, Completed)


class Speechless(Exception):
    def __str__(self) -> str:
        raise KeyError("no words")


async def test_an_error_without_words_only_fails_its_attempt(ports: AttemptPorts) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        raise Speechless

    fact = await outcome(ports, run)
    assert isinstance(fact, Failed)
    assert fact.failure.message == "Speechless: its text raised KeyError"


async def test_an_agent_that_gathers_within_a_task_group_suspends(ports: AttemptPorts) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.gather(Child("t~1")))

    assert await outcome(ports, run, children={"t~1": None}) == Suspended(epoch=1, waits=[["t~1"]])


async def laps(count: int = 100) -> int:
    """Let everyone else run for so many rounds of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)
    return count


async def recorded(ports: AttemptPorts) -> list[Fact]:
    """What the log holds."""
    last = (await ports.writer.store(Event("end", Suspended(epoch=0, waits=[])))).seq
    commits = (await ports.reader.commits(range(1, last + 1))).values()
    assert all(isinstance(commit, Commit) for commit in commits)
    return [event.data for commit in commits for event in commit.events][:-1]  # type: ignore[union-attr, return-value]


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.roles.journal.GRACE_MS", 0)


@pytest.mark.usefixtures("no_grace")
async def test_a_step_beside_a_gather_is_recorded_before_the_suspension(ports: AttemptPorts) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        await asyncio.gather(ctx.gather(Child("t~1")), ctx.step("paid", laps))

    assert await outcome(ports, run, children={"t~1": None}) == Suspended(epoch=1, waits=[["t~1"]])
    assert [type(fact) for fact in await recorded(ports)] == [Stepped]


@pytest.mark.usefixtures("no_grace")
async def test_a_child_that_ends_before_the_steps_do_makes_a_suspension_needless(ports: AttemptPorts) -> None:
    stored = await ports.writer.store(Event("t~1", Completed(epoch=1, output=msgspec.Raw(b"7"))))

    async def run(ctx: Context, wanted: Any) -> Any:
        async def slow() -> None:
            await laps()
            ctx.resolve("t~1", (stored.seq, 0))
            await laps()

        (outputs, _) = await asyncio.gather(ctx.gather(Child("t~1")), ctx.step("slow", slow))
        return outputs

    fact = await outcome(ports, run, children={"t~1": None})
    assert isinstance(fact, Completed)
    assert msgspec.json.decode(fact.output) == [7]


@pytest.mark.usefixtures("no_grace")
async def test_gathers_within_steps_suspend_although_their_steps_are_in_flight(ports: AttemptPorts) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        first, second = (ctx.step(f"outer {n}", ctx.gather, Child(f"t~{n}")) for n in (1, 2))
        await asyncio.gather(first, second)

    async with asyncio.timeout(WAIT_S):
        fact = await outcome(ports, run, children={"t~1": None, "t~2": None})
    assert isinstance(fact, Suspended)
    assert sorted(fact.waits) == [["t~1"], ["t~2"]]
    assert await recorded(ports) == []


@pytest.mark.usefixtures("no_grace")
async def test_nothing_that_an_agent_does_after_its_suspension_counts(ports: AttemptPorts) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        await asyncio.gather(ctx.gather(Child("t~1")), return_exceptions=True)
        with pytest.raises(AgentFailed, match="is decided") as caught:
            await ctx.spawn("b")
        assert caught.value.code == "attempt_over"
        return await ctx.step("late", laps)

    assert await outcome(ports, run, children={"t~1": None}) == Suspended(epoch=1, waits=[["t~1"]])
    assert await recorded(ports) == []


async def test_what_an_agent_leaves_behind_records_nothing(ports: AttemptPorts) -> None:
    codes: list[str] = []

    async def left(act: Awaitable[Any]) -> None:
        try:
            await act
        except AgentFailed as error:
            codes.append(error.code)

    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:

        async def later(ctx: Context) -> None:
            await laps()
            await ctx.step("later", laps)

        async def run(ctx: Context, wanted: Any) -> Any:
            for act in (ctx.step("begun", laps), later(ctx), ctx.gather(Child("t~1"))):
                group.create_task(left(act))
            await laps(10)

        assert isinstance(await outcome(ports, run, children={"t~1": None}), Completed)
    assert codes == ["attempt_over"] * 3
    assert await recorded(ports) == []


async def test_a_failure_within_a_task_group_keeps_its_code(ports: AttemptPorts) -> None:
    async def fail() -> None:
        raise AgentFailed("no_use", "it is of no use", retryable=False)

    async def run(ctx: Context, wanted: Any) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    fact = await outcome(ports, run)
    assert isinstance(fact, Failed)
    assert (fact.failure.code, fact.retryable) == ("no_use", False)


@pytest.mark.parametrize("size", [1, 300_000])
async def test_a_step_returns_live_what_it_returns_from_the_journal(ports: AttemptPorts, size: int) -> None:
    """JSON knows no integer keys and no tuples, whether the result lies in the event or in a blob."""
    seen: list[Any] = []

    async def run(ctx: Context, wanted: Any) -> Any:
        seen.append(await ctx.step("act", lambda: {1: ("x" * size,)}))

    await outcome(ports, run)
    await outcome(ports, run, journal=[(1, 0)])
    assert seen == [{"1": ["x" * size]}] * 2


async def test_a_step_recorded_as_another_kind_is_a_clear_error(ports: AttemptPorts) -> None:
    async def first(ctx: Context, wanted: Any) -> Any:
        return await ctx.step("spawn", lambda: 1)

    async def second(ctx: Context, wanted: Any) -> Any:
        return (await ctx.spawn("b")).task

    assert isinstance(await outcome(ports, first), Completed)
    fact = await outcome(ports, second, journal=[(1, 0)])
    assert isinstance(fact, Failed)
    assert (fact.failure.code, fact.retryable) == ("journal_mismatch", False)
    assert "spawned 'spawn#1' was recorded as a step" in fact.failure.message


@pytest.mark.parametrize("said", ["caf\udce9", 7])
async def test_a_failure_that_is_no_text_is_told_all_the_same(ports: AttemptPorts, said: Any) -> None:
    """File names that are no UTF-8 stand in errors as half surrogate pairs, which no event can hold."""

    async def run(ctx: Context, wanted: Any) -> Any:
        raise AgentFailed(said, said)

    fact = await outcome(ports, run)
    await ports.writer.store(Event("t", fact))
    commit = (await ports.reader.commits([1]))[1]
    assert isinstance(commit, Commit)
    assert [type(getattr(event, "data", None)) for event in commit.events] == [Failed]


async def test_a_step_whose_name_is_no_text_fails_its_attempt_and_not_the_writer(ports: AttemptPorts) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        return await ctx.step("caf\udce9", lambda: 1)

    fact = await outcome(ports, run)
    assert isinstance(fact, Failed)
    assert (fact.failure.code, fact.retryable) == ("not_text", False)
    assert (await ports.writer.store(Event("t", fact))).seq == 1


async def test_labels_that_are_no_texts_fail_the_spawn(ports: AttemptPorts) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        wrong: Any = {"n": 1}
        await ctx.spawn("b", labels=wrong)

    fact = await outcome(ports, run)
    assert isinstance(fact, Failed)
    assert fact.failure.code == "bad_labels"


# --- processes of members --------------------------------------------------------------------------


class Heart(FakeBus):
    """Keeps the heartbeats that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.beats: list[Heartbeat] = []

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        await super().publish(subject, payload, reply)
        self.beats.append(msgspec.json.decode(payload, type=Heartbeat))


class Employed:
    """A running worker with one agent, and a leader's end of its dispatch."""

    def __init__(self, run: Callable[[Context, Any], Awaitable[Any]], heart: Heart) -> None:
        self.ports, self.heart, self._n = attempt_ports(), heart, 0
        node = NodeOffer("n", {"a": Agent("a", run)}, 1)
        self.worker = Worker(MemberSettings("s", "w", "b"), [node], self.ports, heart)

    async def send(self, *items: Item) -> None:
        self._n += 1
        payload = msgspec.json.encode(Dispatch(1, self._n, 0, list(items)))
        await self.ports.bus.publish(subjects.dispatch("s", "worker", "w", "b"), payload)

    async def start(self, task: str) -> None:
        await self.send(Start(task, 1, "w/b/0", "a", msgspec.Raw(b"null")))

    async def reports(self) -> list[Fact]:
        facts = await recorded(self.ports)
        return [fact for fact in facts if not isinstance(fact, MemberJoined | Suspended)]


@asynccontextmanager
async def employed(
    run: Callable[[Context, Any], Awaitable[Any]], heart: Heart | None = None
) -> AsyncIterator[Employed]:
    """It has joined when this begins, and its process ends, whatever its attempts do, when this does."""
    made = Employed(run, heart or Heart())
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        running = group.create_task(made.worker.run())
        await until(lambda: made.heart.beats != [])
        yield made
        running.cancel()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


async def raises_it() -> None:
    raise asyncio.CancelledError


async def waits_for_what_was_cancelled() -> None:
    gone = asyncio.get_running_loop().create_future()
    gone.cancel()
    await gone


async def cancels_its_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(WAIT_S)


@pytest.mark.parametrize("cancel", [raises_it, waits_for_what_was_cancelled, cancels_its_task])
async def test_an_agent_that_cancels_itself_fails_its_attempt(cancel: Callable[[], Awaitable[None]]) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        await cancel()

    async with employed(run) as there:
        await there.start("t")
        await until(lambda: there.ports.writer.acked == 2)
        (fact,) = await there.reports()
        assert isinstance(fact, Failed)
        assert (fact.failure.code, fact.failure.message) == ("agent_error", "the agent cancelled itself")
        assert fact.retryable


async def test_a_stopped_attempt_reports_nothing() -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        try:
            begun.set()
            await asyncio.sleep(2 * WAIT_S)
        finally:
            ended.set()

    begun, ended = asyncio.Event(), asyncio.Event()
    async with employed(run) as there:
        await there.start("t")
        await begun.wait()
        await there.send(Stop("t", 1))
        await ended.wait()
        assert await there.reports() == []


async def test_a_process_ends_though_an_attempt_runs() -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        begun.set()
        await asyncio.sleep(2 * WAIT_S)

    begun = asyncio.Event()
    async with employed(run) as there:
        await there.start("t")
        await begun.wait()


async def test_a_list_too_long_for_a_heartbeat_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Heartbeats go on, at their pace, however often the leader asks; it gets its list once that is short enough."""

    async def run(ctx: Context, wanted: Any) -> Any:
        await ends.wait()

    def counted() -> int:
        return sum(there.heart.beats[-1].running.values())

    ends = asyncio.Event()
    tasks = [f"{number:05d}".rjust(150, "t") for number in range(6_000)]
    async with employed(run) as there:
        for first in range(0, len(tasks), 1_000):
            starts = [Start(task, 1, "w/b/0", "a", msgspec.Raw(b"null")) for task in tasks[first : first + 1_000]]
            await there.send(*starts)
        await until(lambda: counted() == len(tasks))
        before = len(there.heart.beats)
        for _ in range(50):
            await there.send(Report())
            await laps(10)
        await until(lambda: len(there.heart.beats) > before + 1)
        assert len(there.heart.beats) <= before + 10
        assert all(beat.listed is None for beat in there.heart.beats)
        assert len(caplog.records) == 1
        assert "6000 attempts" in caplog.text
        ends.set()
        await until(lambda: counted() == 0)
        await there.send(Report())
        await until(lambda: there.heart.beats[-1].listed == [])


async def test_a_pause_in_the_batch_that_starts_an_attempt_reaches_it() -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        await ctx.step("begun", laps)
        await ctx.step("next", laps)

    async with employed(run) as there:
        await there.send(Start("t", 1, "w/b/0", "a", msgspec.Raw(b"null")), Pause("t"))
        await until(lambda: there.ports.writer.acked == 3)
        assert [type(fact) for fact in await recorded(there.ports)] == [MemberJoined, Stepped, Suspended]


class Narrow(Heart):
    """A broker that takes no heartbeat at first."""

    refused = 0

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        if not self.refused:
            self.refused += 1
            raise Rejected("too_large", "a message is over the broker's limit")
        await super().publish(subject, payload, reply)


async def test_a_heartbeat_that_the_broker_refuses_is_followed_by_others() -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        return None

    heart = Narrow()
    async with employed(run, heart) as there:
        await until(lambda: there.heart.beats != [])
    assert heart.refused == 1


class Refused(Exception):
    """An error of an agent's own, with an argument that nobody can guess."""

    def __init__(self, code: int) -> None:
        super().__init__(f"refused with {code}")
        self.status = code


@pytest.mark.parametrize(
    "error", [ValueError("no"), Refused(7), Rejected("bad", "not so"), AgentFailed("odd", "very"), KeyError("k")]
)
async def test_a_failure_that_an_agent_survives_fails_again_in_the_same_way(
    ports: AttemptPorts, error: Exception
) -> None:
    """The step is not done again, and the agent takes the same turn. What ends the attempt is not recorded."""
    calls: list[str] = []

    def flaky() -> None:
        calls.append("flaky")
        raise error

    async def run(ctx: Context, wanted: Any) -> Any:
        try:
            await ctx.step("flaky", flaky)
        except type(error) as failed:
            seen = f"{type(failed).__name__}: {failed}"
            return await ctx.step("instead", lambda: seen)

    first = await outcome(ports, run)
    assert isinstance(first, Completed)
    again = await outcome(ports, run, journal=[(1, 0), (2, 0)])
    assert isinstance(again, Completed)
    assert bytes(again.output) == bytes(first.output)
    assert calls == ["flaky"]

    async def fails(ctx: Context, wanted: Any) -> Any:
        await ctx.step("flaky", flaky)

    before = len(await recorded(ports))
    assert isinstance(await outcome(ports, fails), Failed)
    assert len(await recorded(ports)) == before + 1  # the mark that the first look made


async def test_a_journal_of_other_code_is_an_error_that_shows_both(ports: AttemptPorts) -> None:
    async def old(ctx: Context, wanted: Any) -> Any:
        await ctx.step("fetch", lambda: 1)
        await ctx.step("parse", lambda: 2)

    async def new(ctx: Context, wanted: Any) -> Any:
        await ctx.step("fetch", lambda: 1)
        await ctx.step("store", lambda: 3)

    async def shorter(ctx: Context, wanted: Any) -> Any:
        await ctx.step("fetch", lambda: 1)

    assert isinstance(await outcome(ports, old), Completed)
    for code, found in ((new, "with step 'store#1'"), (shorter, "with its end")):
        fact = await outcome(ports, code, journal=[(1, 0), (2, 0)])
        assert isinstance(fact, Failed)
        assert (fact.failure.code, fact.retryable) == ("journal_mismatch", False)
        assert "goes on with step 'parse#1'" in fact.failure.message
        assert found in fact.failure.message


async def test_a_step_that_takes_too_long_is_stopped_with_a_code(ports: AttemptPorts) -> None:
    async def slow() -> None:
        await asyncio.Event().wait()

    async def run(ctx: Context, wanted: Any) -> Any:
        await ctx.step("slow", slow, timeout_s=0.05)

    fact = await outcome(ports, run)
    assert isinstance(fact, Failed)
    assert (fact.failure.code, fact.retryable) == ("step_timeout", True)
    assert "'slow' took longer than 0.05 s" in fact.failure.message


async def test_a_new_version_takes_over_the_steps_of_the_one_it_migrates_from(ports: AttemptPorts) -> None:
    calls: list[str] = []

    async def old(ctx: Context, wanted: Any) -> Any:
        await ctx.step("fetch", calls.append, "fetch")
        await ctx.step("parse", calls.append, "parse")

    async def new(ctx: Context, wanted: Any) -> Any:
        await ctx.step("load", calls.append, "load")
        await ctx.step("parse", calls.append, "parse")
        await ctx.step("store", calls.append, "store")

    assert isinstance(await outcome(ports, old), Completed)
    node = NodeOffer("n", {"a": Agent("a", new, "2", {"1": {"fetch": "load"}})}, 1)
    worker = Worker(MemberSettings("s", "w", "b"), [node], ports, FakeBus())
    (offer,) = worker.offers()
    assert offer.versions == {"a": ["2", "1"]}
    start = Start("t", 2, "w/b/0", "a", msgspec.Raw(b"null"), journal=[(1, 0), (2, 0)], version="1")
    assert isinstance(await worker.outcome(start), Completed)
    assert calls == ["fetch", "parse", "store"]
    other = await worker.outcome(Start("t", 2, "w/b/0", "a", msgspec.Raw(b"null"), version="3"))
    assert isinstance(other, Failed)
    assert other.failure.code == "no_version"


@pytest.mark.parametrize(
    ("capacity", "labels", "words"),
    [
        (10**12, {}, "at most 100000 attempts"),
        (1, {"zone": "x" * 1_000_000}, "label 'zone'"),
        (1, {"": "x"}, "label ''"),
    ],
)
async def test_a_worker_that_offers_nonsense_ends_with_what_is_wrong(
    capacity: int, labels: dict[str, str], words: str
) -> None:
    worker = Worker(MemberSettings("s", "w", "b"), [NodeOffer("n", {}, capacity, labels)], attempt_ports(), FakeBus())
    with pytest.raises(ExceptionGroup) as ended:
        await worker.run()
    assert ended.group_contains(Rejected, match=words)


async def test_a_worker_that_drains_leaves_when_the_leader_has_heeded_it() -> None:
    """What is on its way to it when it withdraws its offer is run; an earlier farewell would not be accepted."""
    ports = attempt_ports()
    worker = Worker(MemberSettings("s", "w", "b"), [NodeOffer("n", {}, 1)], ports, FakeBus())
    bus: Any = ports.bus
    async with asyncio.TaskGroup() as group, asyncio.timeout(WAIT_S):
        running = group.create_task(worker.run())
        await worker.joined.wait()
        draining = group.create_task(worker.drain(5_000))
        last = 0
        while last < 2:  # the withdrawn offer is stored
            await asyncio.sleep(0.01)
            last = await ports.reader._log.last_seq()
        await bus.publish(subjects.beat("s"), msgspec.json.encode(Beat(1, 1, "o")))
        for _ in range(20):  # turns of the loop: it has heard that
            await asyncio.sleep(0)
        assert not draining.done()
        await bus.publish(subjects.beat("s"), msgspec.json.encode(Beat(1, last, "o")))
        await draining
        running.cancel()
