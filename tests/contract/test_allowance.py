"""The member's side of budgets: nothing begins that the grant does not cover, and an answer lets it go on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.fakes import FakeBus
from swarmd.core.codec import Codec, Commit
from swarmd.core.events import Budget, Completed, Event, Fact, Failed, GrantWanted, Stepped
from swarmd.core.turns import ModelReply, ModelRequest, Turn, Usage
from swarmd.core.wire import Grant, Start
from swarmd.roles.attempt import AgentFailed
from swarmd.roles.member import MemberSettings
from swarmd.roles.worker import NodeOffer, Worker
from swarmd.sdk import Agent
from tests.contract.test_roles import attempt_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from swarmd.roles.attempt import AttemptPorts
    from swarmd.roles.context import Context


class Metered:
    """A model that answers at once, bills what it is told to, and counts its calls."""

    name = "fake:metered"

    def __init__(self) -> None:
        self.calls = 0

    async def complete(self, request: ModelRequest, on_delta: Any = None) -> ModelReply:
        self.calls += 1
        return ModelReply("yes", "stop", self.name, usage=Usage(10, 10, cost_microusd=7))

    async def close(self) -> None:
        pass


@pytest.fixture
async def ports() -> AsyncIterator[AttemptPorts]:
    made = attempt_ports()
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(made.writer.run())
        yield made
        writing.cancel()


class Bench:
    """One worker with one attempt, and a leader whose answers are a script."""

    def __init__(self, ports: AttemptPorts, run: Any) -> None:
        self.model = Metered()
        self.ports = msgspec.structs.replace(ports, models=lambda name: self.model)
        self.worker = Worker(
            MemberSettings("s", "w", "b"), [NodeOffer("n", {"a": Agent("a", run)}, 1)], self.ports, FakeBus()
        )

    async def outcome(self, grant: Budget, *answers: Grant) -> Fact:
        start = Start("t", 1, "w/b/0", "a", msgspec.Raw(b"null"), grant=grant)
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            running = group.create_task(self.worker.outcome(start))
            for answer in answers:
                while answer.n > len(self.said(GrantWanted)):
                    await asyncio.sleep(0)
                self.worker.tell(answer)
            return await running

    def said(self, kind: type[Any]) -> list[Any]:
        log: Any = self.ports.reader._log
        commits = [Codec().decode(record) for record in log._records]
        events = [event for commit in commits if isinstance(commit, Commit) for event in commit.events]
        return [event.data for event in events if isinstance(event, Event) and isinstance(event.data, kind)]


ASK = ModelRequest([Turn("user", "1234")], max_output_tokens=19)


async def twice(ctx: Context, wanted: Any) -> Any:
    for _ in range(2):
        await ctx.model(ASK)
    return "done"


async def test_without_a_limit_nobody_is_asked(ports: AttemptPorts) -> None:
    bench = Bench(ports, twice)
    assert isinstance(await bench.outcome(Budget()), Completed)
    assert (bench.model.calls, bench.said(GrantWanted)) == (2, [])
    assert [(step.tokens, step.cost_microusd) for step in bench.said(Stepped)] == [(20, 7), (20, 7)]


async def test_what_the_grant_does_not_cover_is_asked_for_before_the_call(ports: AttemptPorts) -> None:
    bench = Bench(ports, twice)
    fact = await bench.outcome(Budget(tokens=25), Grant("t", 1, 1, Budget(tokens=100)))
    assert isinstance(fact, Completed)
    assert [wish.total for wish in bench.said(GrantWanted)] == [Budget(tokens=40)]
    assert bench.model.calls == 2


async def test_a_refusal_fails_the_attempt_before_the_call_and_says_whose_limit_it_was(ports: AttemptPorts) -> None:
    bench = Bench(ports, twice)
    fact = await bench.outcome(Budget(tokens=25), Grant("t", 1, 1, Budget(tokens=25), "tokens of tenant acme"))
    assert isinstance(fact, Failed)
    assert (fact.failure.code, fact.retryable, bench.model.calls) == ("budget_exhausted", False, 1)
    assert "tokens of tenant acme" in fact.failure.message


async def test_steps_side_by_side_share_one_grant_and_one_wish_at_a_time(ports: AttemptPorts) -> None:
    async def many(ctx: Context, wanted: Any) -> Any:
        return await asyncio.gather(*(ctx.step(f"s{n}", abs, -n) for n in range(6)))

    bench = Bench(ports, many)
    answers = [Grant("t", 1, n, Budget(steps=2 + n)) for n in range(1, 5)]
    assert isinstance(await bench.outcome(Budget(steps=2), *answers), Completed)
    assert [wish.n for wish in bench.said(GrantWanted)] == [1, 2, 3, 4]


async def test_a_refused_agent_may_go_on_with_something_cheaper(ports: AttemptPorts) -> None:
    async def thrifty(ctx: Context, wanted: Any) -> Any:
        with pytest.raises(AgentFailed, match="tokens"):
            await ctx.model(msgspec.structs.replace(ASK, max_output_tokens=10_000))
        return (await ctx.model(ASK, name="short")).text

    bench = Bench(ports, thrifty)
    assert isinstance(await bench.outcome(Budget(tokens=25), Grant("t", 1, 1, Budget(tokens=25), "tokens")), Completed)
    assert bench.model.calls == 1


async def test_an_answer_to_an_older_attempt_is_not_heard(ports: AttemptPorts) -> None:
    bench = Bench(ports, twice)
    fact = await bench.outcome(
        Budget(tokens=25), Grant("t", 0, 1, Budget(tokens=999)), Grant("t", 1, 1, Budget(tokens=25), "tokens of task t")
    )
    assert isinstance(fact, Failed)
