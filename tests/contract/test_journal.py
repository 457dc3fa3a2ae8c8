"""Journals in the order that life has: branches at once, calls cut off, code that was changed meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec import Raw

from swarmd.adapters.fakes import FakeBus
from swarmd.core import kin
from swarmd.core.codec import Codec, Commit
from swarmd.core.errors import Fault
from swarmd.core.events import Completed, Event, Fact, Failed, Resolved, Sent, Suspended
from swarmd.core.turns import ModelReply, ModelRequest, ToolSpec
from swarmd.core.wire import Rest, Start
from swarmd.ports import ToolPolicy
from swarmd.roles.attempt import AgentFailed, AttemptPorts, Child
from swarmd.roles.family import SPAWNS_MAX
from swarmd.roles.journal import Recorded
from swarmd.roles.member import MemberSettings
from swarmd.roles.tool_calls import run_tool
from swarmd.roles.worker import NodeOffer, Worker
from swarmd.sdk import Agent
from tests.contract.test_roles import WAIT_S, attempt_ports, laps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from swarmd.roles.context import Context


class Bell:
    """A tool that says which of its calls it was; a call with `hang` never ends."""

    timeout_ms, output_bytes_max = 60_000, 10_000

    def __init__(self, side_effects: str = "unknown", approval: bool = False) -> None:
        self.spec = ToolSpec("bell", "Ring.", {"type": "object"})
        self.side_effects: Any = side_effects
        self.policy = ToolPolicy(approval=approval)
        self.calls: list[Any] = []
        self.hangs = False

    async def call(self, arguments: dict[str, Any], key: str = "") -> str:
        self.calls.append(arguments["n"])
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        return f"call {arguments['n']}"


class Life:
    """One task through its attempts, over the log of one worker; `resolved` are its waits."""

    def __init__(self, ports: AttemptPorts) -> None:
        self.ports, self.epoch = ports, 0
        self.resolved: dict[str, tuple[int, int]] = {}
        self.children: dict[str, tuple[int, int] | None] = {}
        self.worker: Worker

    async def attempt(self, run: Any, version: str = "1", agent: Agent | None = None) -> Fact:
        """The report on the next attempt, which resumes from all that is recorded."""
        self.epoch += 1
        start = Start("t", self.epoch, "w/b/0", "a", msgspec.Raw(b"null"), version=version)
        start.journal = [place for place, fact in self.facts() if isinstance(fact, Recorded)]
        start.resolved, start.children = dict(self.resolved), dict(self.children)
        node = NodeOffer("n", {"a": agent or Agent("a", run)}, 1)
        self.worker = Worker(MemberSettings("s", "w", "b"), [node], self.ports, FakeBus())
        async with asyncio.timeout(WAIT_S):
            return await self.worker.outcome(start)

    async def resolve(self, key: str, value: Any = None) -> None:
        """Somebody answers a wait, or its time is over."""
        fact = Resolved(term=1, key=key, value=msgspec.Raw(msgspec.json.encode(value)), timed_out=value is None)
        stored = await self.ports.writer.store(Event("t", fact))
        self.resolved[key] = (stored.seq, 0)

    def facts(self) -> list[tuple[tuple[int, int], Fact]]:
        log: Any = self.ports.reader._log
        commits = [commit for commit in map(Codec().decode, log._records) if isinstance(commit, Commit)]
        return [
            ((commit.seq, at), event.data)
            for commit in commits
            for at, event in enumerate(commit.events)
            if isinstance(event, Event)
        ]

    def digests(self) -> list[str]:
        return [fact.question.digest for _, fact in self.facts() if hasattr(fact, "question")]


@pytest.fixture
async def life(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Life]:
    monkeypatch.setattr("swarmd.roles.journal.GRACE_MS", 0)
    made = attempt_ports()
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(made.writer.run())
        yield Life(msgspec.structs.replace(made, run_tool=run_tool))
        writing.cancel()


def output(fact: Fact) -> Any:
    assert isinstance(fact, Completed), fact
    return msgspec.json.decode(fact.output)


# --- tools -----------------------------------------------------------------------------------------


async def test_calls_that_are_approved_in_another_order_keep_their_results(life: Life) -> None:
    bell = Bell(approval=True)
    life.ports = msgspec.structs.replace(life.ports, tools=lambda name: bell)

    async def run(ctx: Context, wanted: Any) -> Any:
        return await asyncio.gather(*(ctx.tool("bell", {"n": n}) for n in (1, 2)))

    assert isinstance(await life.attempt(run), Suspended)
    digests = life.digests()
    await life.resolve("approve:bell#2", {"decision": "approve", "digest": digests[1]})
    assert isinstance(await life.attempt(run), Suspended)
    assert bell.calls == [2]
    await life.resolve("approve:bell#1", {"decision": "approve", "digest": digests[0]})
    first, second = output(await life.attempt(run))
    assert bell.calls == [2, 1]
    assert ("call 1" in first, "call 2" in second) == (True, True)
    assert output(await life.attempt(run)) == [first, second]


async def test_what_a_person_said_of_a_lost_call_is_no_answer_to_another_question(life: Life) -> None:
    bell = Bell("at_most_once")
    bell.hangs = True
    life.ports = msgspec.structs.replace(life.ports, tools=lambda name: bell)

    async def run(ctx: Context, wanted: Any) -> Any:
        rung = await ctx.tool("bell", {"n": 1})
        return [rung, (await ctx.ask("Who rang?")).value]

    async with asyncio.TaskGroup() as group:
        lost = group.create_task(life.attempt(run))
        while not bell.calls:
            await asyncio.sleep(0)
        lost.cancel()
    bell.hangs = False
    waiting = await life.attempt(run)
    assert isinstance(waiting, Suspended)
    ((lost_key,),) = waiting.waits
    await life.resolve(lost_key, {"it": "was made", "result": "rung"})
    waiting = await life.attempt(run)
    assert isinstance(waiting, Suspended)
    ((asked_key,),) = waiting.waits
    assert asked_key != lost_key
    await life.resolve(asked_key, "Ada")
    rung, who = output(await life.attempt(run))
    assert ("rung" in rung, who, bell.calls) == (True, "Ada", [1])


async def test_a_call_that_is_lost_twice_is_asked_about_twice(life: Life) -> None:
    """That the first was not made says nothing of the second."""
    bell = Bell("at_most_once")
    life.ports = msgspec.structs.replace(life.ports, tools=lambda name: bell)

    async def run(ctx: Context, wanted: Any) -> Any:
        return await ctx.tool("bell", {"n": 1})

    async def lose() -> None:
        made, bell.hangs = len(bell.calls), True
        async with asyncio.TaskGroup() as group:
            lost = group.create_task(life.attempt(run))
            while len(bell.calls) == made:
                await asyncio.sleep(0)
            lost.cancel()

    for n in (1, 2):
        await lose()
        assert len(bell.calls) == n
        waiting = await life.attempt(run)
        assert isinstance(waiting, Suspended)
        assert waiting.waits == [[f"tool:bell#1!lost#{n}"]]
        await life.resolve(waiting.waits[0][0], {"it": "was not made"})
    bell.hangs = False
    assert "call 1" in output(await life.attempt(run))
    assert len(bell.calls) == 3
    assert "call 1" in output(await life.attempt(run))
    assert len(bell.calls) == 3


# --- branches --------------------------------------------------------------------------------------


async def test_a_failure_of_a_branch_that_its_agent_survives_fails_again(life: Life) -> None:
    calls: list[int] = []

    def flaky() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("the first time")
        return "fine"

    async def run(ctx: Context, wanted: Any) -> Any:
        both = await asyncio.gather(ctx.step("flaky", flaky), ctx.step("sound", laps), return_exceptions=True)
        return await ctx.step("after", lambda: [str(one) for one in both])

    first = output(await life.attempt(run))
    assert first == ["the first time", "100"]
    assert output(await life.attempt(run)) == first
    assert len(calls) == 1


async def test_a_failure_that_was_told_outside_is_survived_by_whatever_comes_next(life: Life) -> None:
    """A program asks for each step in a branch of its own."""
    calls: list[int] = []

    def flaky() -> None:
        calls.append(1)
        raise Fault("down", "not now")

    async def asked(ctx: Context, told: list[str]) -> None:
        try:
            await ctx.step("flaky", flaky)
        except Fault as error:
            ctx.hand_on(error)
            told.append(error.code)

    async def run(ctx: Context, wanted: Any) -> Any:
        told: list[str] = []
        await asyncio.gather(asked(ctx, told))
        return (await asyncio.gather(ctx.step("instead", lambda: told)))[0]

    assert output(await life.attempt(run)) == ["down"]
    assert output(await life.attempt(run)) == ["down"]
    assert len(calls) == 1


async def test_a_branch_that_fails_its_attempt_is_not_recorded_by_another(life: Life) -> None:
    """The next attempt shall do the failed step again."""

    def fails() -> None:
        raise Fault("down", "not now")

    async def run(ctx: Context, wanted: Any) -> Any:
        async def busy() -> None:
            for n in range(20):
                await ctx.step(f"busy {n}", laps)

        await asyncio.gather(ctx.step("fails", fails), busy())

    assert isinstance(await life.attempt(run), Failed)
    assert [getattr(fact, "key", "") for _, fact in life.facts() if getattr(fact, "key", "") == "fails#1"] == []


async def test_a_branch_between_two_steps_holds_up_a_suspension(life: Life) -> None:
    """The task would sleep until the other branch's wait is over, although this one can go on."""

    async def run(ctx: Context, wanted: Any) -> Any:
        async def busy() -> None:
            for n in range(5):
                await asyncio.gather(ctx.step(f"left {n}", laps), ctx.step(f"right {n}", laps))

        await asyncio.gather(ctx.gather(Child("t~1")), busy())

    life.children = {"t~1": None}
    assert await life.attempt(run) == Suspended(epoch=1, waits=[["t~1"]])
    assert len([fact for _, fact in life.facts() if isinstance(fact, Recorded)]) == 10


async def test_thousands_of_children_in_one_breath_leave_the_loop_to_others(life: Life) -> None:
    """An attempt that has everything done in one turn of the loop keeps its process from sending heartbeats."""
    in_flight: list[int] = []

    async def run(ctx: Context, wanted: Any) -> Any:
        async def look() -> None:
            while True:
                in_flight.append(len(ctx._in_flight))
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            looking = group.create_task(look())
            children = await asyncio.gather(*(ctx.spawn("b", n) for n in range(1_500)))
            looking.cancel()
        assert [child.task for child in children] == [f"t~{n}" for n in range(1, 1_501)]
        return await ctx.gather(*children)

    assert await life.attempt(run) == Suspended(epoch=1, waits=[["~1..1500"]])
    assert 0 < max(in_flight) <= SPAWNS_MAX
    receipts = [await life.ports.writer.store(Event(f"t~{n + 1}", Completed(1, Raw(b"%d" % n)))) for n in range(1_500)]
    places = [place for place, fact in life.facts() if isinstance(fact, Recorded)]
    start = Start("t", 2, "w/b/0", "a", Raw(b"null"), steps=kin.runs(places))
    start.done = [(n + 1, receipt.seq, 0) for n, receipt in enumerate(receipts)]
    assert len(start.steps) < 100
    assert output(await life.worker.outcome(start)) == list(range(1_500))
    late = Start("t", 3, "w/b/0", "a", Raw(b"null"), more=True)
    async with asyncio.TaskGroup() as group:
        resumed = group.create_task(life.worker.outcome(late))
        await asyncio.sleep(0)
        for part in (  # a leader that says the first part only, and its successor
            Rest("t", 3, 0, start.steps[:5], start.done[:700]),
            Rest("t", 2, 0, start.steps, start.done, True),
            Rest("t", 3, 0, start.steps, start.done[:700]),
            Rest("t", 3, 1, (), start.done[700:], True),
        ):
            life.worker.tell(part)
    assert output(resumed.result()) == list(range(1_500))


# --- code that was changed meanwhile ---------------------------------------------------------------


async def test_a_wait_of_a_renamed_step_is_found_again(life: Life) -> None:
    async def old(ctx: Context, wanted: Any) -> Any:
        return await ctx.wait_event("old")

    async def new(ctx: Context, wanted: Any) -> Any:
        with pytest.raises(AgentFailed, match="no event"):
            await ctx.wait_event("new")
        return "over"

    assert await life.attempt(old) == Suspended(epoch=1, waits=[["event:old#1"]])
    renamed = Agent("a", new, "2", {"1": {"event:old": "event:new"}})
    again = await life.attempt(None, agent=renamed)
    assert isinstance(again, Suspended)
    assert again.waits == [["event:old#1"]]
    await life.resolve("event:old#1")
    assert output(await life.attempt(None, agent=renamed)) == "over"


class Down:
    """A model that is out of order for a while."""

    name = "fake:down"

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0

    async def complete(self, request: ModelRequest, on_delta: Any = None) -> ModelReply:
        self.calls += 1
        if self.calls <= self.failures:
            raise Fault("unavailable", "try later", retry_after_ms=60_000)
        return ModelReply("yes", "stop", self.name)

    async def close(self) -> None:
        pass


async def test_a_pause_between_tries_belongs_to_a_step_that_is_renamed(life: Life) -> None:
    model = Down(1)
    life.ports = msgspec.structs.replace(life.ports, models=lambda name: model)

    def asks(name: str) -> Any:
        async def run(ctx: Context, wanted: Any) -> Any:
            return (await ctx.model("well?", model="fake:down", name=name)).text

        return run

    assert isinstance(await life.attempt(asks("old")), Suspended)
    renamed = Agent("a", asks("new"), "2", {"1": {"old": "new"}})
    assert isinstance(await life.attempt(None, agent=renamed), Suspended)
    await life.resolve("old#1!pause#1")
    assert output(await life.attempt(None, agent=renamed)) == "yes"
    assert output(await life.attempt(None, agent=renamed)) == "yes"
    assert model.calls == 2


async def test_a_pause_of_a_long_name_within_a_step_is_passed_over_with_its_step(life: Life) -> None:
    model, ends = Down(1), [False]
    life.ports = msgspec.structs.replace(life.ports, models=lambda name: model)

    async def run(ctx: Context, wanted: Any) -> Any:
        async def outer() -> Any:
            said = (await ctx.model("well?", model="fake:down", name="m" * 200)).text
            if not ends[0]:
                raise AgentFailed("later", "the next attempt goes on from here")
            return await ctx.step("next", lambda: said)

        return await ctx.step("outer", outer)

    waiting = await life.attempt(run)
    assert isinstance(waiting, Suspended)
    await life.resolve(waiting.waits[0][0])
    assert isinstance(await life.attempt(run), Failed)
    ends[0] = True
    assert output(await life.attempt(run)) == "yes"
    assert model.calls == 2


async def test_a_model_list_that_was_cut_meanwhile_asks_its_last(life: Life) -> None:
    models = {"fake:a": Down(99), "fake:b": Down(1)}
    life.ports = msgspec.structs.replace(life.ports, models=lambda name: models[name])

    def asks(*names: str) -> Any:
        async def run(ctx: Context, wanted: Any) -> Any:
            return (await ctx.model("well?", model=names)).text

        return run

    for _ in range(20):
        fact = await life.attempt(asks("fake:a", "fake:b"))
        if models["fake:b"].calls:
            break
        assert isinstance(fact, Suspended)
        await life.resolve(fact.waits[0][0])
    assert isinstance(fact, Suspended)
    await life.resolve(fact.waits[0][0])
    assert output(await life.attempt(asks("fake:b"))) == "yes"


# --- what no log can hold --------------------------------------------------------------------------


async def test_what_is_nested_too_deep_is_refused_before_it_is_written(life: Life) -> None:
    """A commit with it would be garbage to whoever reads it, and what else is in it with it."""
    deep: Any = {"type": "string"}
    for _ in range(63):
        deep = {"properties": {"a": deep}}

    async def run(ctx: Context, wanted: Any) -> Any:
        await asyncio.gather(ctx.send("other", "sound"), ctx.ask("?", schema=deep))

    fact = await life.attempt(run)
    assert isinstance(fact, Failed)
    assert fact.failure.code == "too_deep"
    assert [type(fact) for _, fact in life.facts()] == [Sent]
