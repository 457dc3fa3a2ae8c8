"""What agents do with a memory, step by step: done once, in their own name, the same when they are resumed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import Failed, Failure, Stepped
from swarmd.roles.attempt import AgentFailed
from swarmd.roles.program_verbs import Verbs
from tests.contract.scripted_memory import ScriptedMemory
from tests.contract.test_journal import Life, life, output

if TYPE_CHECKING:
    from swarmd.roles.context import Context

__all__ = ["life"]


@pytest.fixture
async def memory(life: Life) -> ScriptedMemory:
    bus: Any = life.ports.bus
    clock: Any = life.ports.clock
    return await ScriptedMemory(bus, clock).serve()


class Cut(BaseException):
    """The worker dies here."""


async def test_a_memory_is_kept_found_changed_and_dropped_in_steps(life: Life, memory: ScriptedMemory) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        first = await ctx.remember("the road is wet", labels={"kind": "note"}, space="agent", payload={"n": [1, None]})
        await ctx.remember("nobody saw a cloud", space="swarm", expires_in_ms=60_000)
        found = await ctx.recall("wet road", k=1, min_similarity=0.5, labels={"kind": "note"})
        await ctx.update_memory(first.id, text="the road is dry", labels={"kind": "fact"}, if_seq=first.seq)
        with pytest.raises(Rejected) as caught:
            await ctx.update_memory(first.id, text="the road is long", if_seq=first.seq)
        (now,) = await ctx.get_memories(first.id)
        await ctx.forget_memory(first.id, reason="done")
        gone = await ctx.get_memories(first.id)
        said = [found[0].text, found[0].payload, found[0].similarity, now.text, now.labels, now.payload]
        return [*said, caught.value.code, [one.text for one in gone]]

    first = output(await life.attempt(run))
    assert first[:2] == ["the road is wet", {"n": [1, None]}]
    assert first[2] > 0.5
    assert first[3:] == ["the road is dry", {"kind": "fact"}, {"n": [1, None]}, "stale_update", []]
    asked = len(memory.asked)
    assert output(await life.attempt(run)) == first  # from the journal alone
    assert len(memory.asked) == asked
    kinds = [fact.kind for _, fact in life.facts() if isinstance(fact, Stepped)]
    changes = ["update_memory", "update_memory", "get_memories", "forget_memory", "get_memories"]
    assert kinds == ["remember", "remember", "recall", *changes]
    wet, cloud = memory.held.values()
    assert (wet.author, wet.task, wet.swarm, wet.step, wet.space) == (
        "a",
        "t",
        "main",
        "remember#1",
        "swarm/main/agent/a",
    )
    assert (cloud.space, cloud.expires_at_ms) == ("swarm/main", cloud.since_ms + 60_000)
    assert ("main/t", "recall", wet.id) in memory.reads
    assert {request.task for _, request in memory.asked} == {"t"}


async def test_what_was_remembered_before_a_crash_is_not_doubled(life: Life, memory: ScriptedMemory) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        replies = await asyncio.gather(ctx.remember("one"), ctx.remember("two"))
        return [reply.id for reply in replies]

    writer: Any = life.ports.writer
    stores = writer.store

    async def die(event: Any) -> Any:
        raise Cut

    writer.store = die
    assert isinstance(await life.attempt(run), Failed)
    writer.store = stores
    assert output(await life.attempt(run)) == ["t~remember~1", "t~remember~2"] == list(memory.held)
    assert [verb for verb, _ in memory.asked].count("remember") >= 3


async def test_filters_spaces_and_modes_are_passed_on_and_faults_are_faults(life: Life, memory: ScriptedMemory) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        vector = [1.0] + [0.0] * 1023
        await ctx.recall(vector=vector, k=3, filter='author = "x"', spaces=["swarm"], diversity=0.5, as_of=7)
        await ctx.recall("words", mode="lexical")

    output(await life.attempt(run))
    one, two = (request for _, request in memory.asked)
    assert (one.filter, one.spaces, one.diversity, one.as_of, one.k) == ('author = "x"', ["swarm"], 0.5, 7, 3)
    assert (one.agent, one.task, one.step, two.step, two.mode, two.how) == (
        "a",
        "t",
        "recall#1",
        "recall#2",
        "lexical",
        "recall",
    )

    async def misspelt(ctx: Context, wanted: Any) -> Any:
        await ctx.recall("x", filters="y")  # type: ignore[call-arg]

    failed = await Life(life.ports).attempt(misspelt)
    assert isinstance(failed, Failed)
    assert failed.failure.message == "TypeError: recall() got an unexpected keyword argument 'filters'"


async def refused(life: Life, run: Any) -> tuple[str, bool]:
    fact = await Life(life.ports).attempt(run)
    assert isinstance(fact, Failed), fact
    return fact.failure.code, fact.retryable


async def test_bad_numbers_and_foreign_spaces_are_refused_before_or_by_the_memory(
    life: Life, memory: ScriptedMemory
) -> None:
    assert await refused(life, lambda ctx, _: ctx.recall(vector=[float("nan")])) == ("bad_vector", False)
    assert await refused(life, lambda ctx, _: ctx.remember("x", expires_in_ms=-1)) == ("bad_expiry", False)
    assert await refused(life, lambda ctx, _: ctx.remember("x", payload=object())) == ("not_json", False)
    assert await refused(life, lambda ctx, _: ctx.remember("x", space="swarm/other")) == ("not_allowed", False)
    memory.broken = Failure("memory_behind", "wait")
    assert await refused(life, lambda ctx, _: ctx.recall("x")) == ("memory_behind", True)
    assert memory.held == {}


async def test_while_nobody_serves_a_request_is_made_again(life: Life) -> None:
    clock: Any = life.ports.clock
    bus: Any = life.ports.bus

    async def run(ctx: Context, wanted: Any) -> Any:
        return (await ctx.remember("late")).id

    async with asyncio.TaskGroup() as group:
        attempt = group.create_task(life.attempt(run))
        await clock.advance(300)
        await ScriptedMemory(bus, clock).serve()
        while not attempt.done():
            await clock.advance(100)
            await asyncio.sleep(0)
    assert output(attempt.result()) == "t~remember~1"


async def test_but_not_for_ever(life: Life) -> None:
    clock: Any = life.ports.clock
    async with asyncio.TaskGroup() as group:
        attempt = group.create_task(life.attempt(lambda ctx, _: ctx.recall("x")))
        while not attempt.done():
            await clock.advance(1_000)
            await asyncio.sleep(0)
    failed = attempt.result()
    assert isinstance(failed, Failed)
    assert (failed.failure.code, failed.retryable) == ("no_responders", True)


# --- watches ---------------------------------------------------------------------------------------


async def test_each_match_is_seen_once_also_when_the_call_is_made_again(life: Life, memory: ScriptedMemory) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        await ctx.remember("a wet road, before")
        since = await ctx.watch("wet", "wet road", threshold=0.4, labels={"board": "b"}, expires_in_ms=1_000)
        for text in ("the wet road", "a long road that is wet", "cloud"):
            last = await ctx.remember(text, labels={"board": "b"})
        await ctx.remember("wet road elsewhere")
        seen = []
        while True:
            found = await ctx.matches("wet", at_least_seq=last.seq, max=1)
            seen += [memory.text for memory in found.memories]
            if not found.memories:
                break
            if len(seen) == 1 and ctx.epoch == 1:
                raise AgentFailed("cut", "cut")
        await ctx.unwatch("wet")
        await ctx.unwatch("wet")
        return [since > 0, *seen]

    assert isinstance(await life.attempt(run), Failed)
    assert output(await life.attempt(run)) == [True, "the wet road", "a long road that is wet"]
    calls = [request for verb, request in memory.asked if verb == "matches"]
    assert [call.after for call in calls] == [0, *sorted({call.after for call in calls[1:]})]
    (watch,) = [request for verb, request in memory.asked if verb == "watch"]
    assert (watch.watcher[:4], watch.agent, watch.task, watch.threshold) == ("wet-", "a", "t", 0.4)
    assert watch.expires_at_ms == life.ports.clock.now_ms() + 1_000
    assert memory.watches == {}


async def test_a_wait_for_matches_is_bounded(life: Life, memory: ScriptedMemory) -> None:
    clock: Any = life.ports.clock

    async def run(ctx: Context, wanted: Any) -> Any:
        await ctx.watch("x" * 100, "wet road")
        reply = await ctx.remember("cloud")
        nothing = await ctx.matches("x" * 100, wait_s=50)
        with pytest.raises(Fault) as caught:
            await ctx.matches("x" * 100, at_least_seq=reply.seq)
        return [len(nothing.memories), nothing.seq, caught.value.code]

    memory.behind = 1
    waits = memory._matches

    def takes_its_time(caller: Any, wanted: Any) -> Any:
        clock._now_ms += wanted.wait_ms
        return waits(caller, wanted)

    memory._matches = takes_its_time  # type: ignore[method-assign]
    assert output(await life.attempt(run)) == [0, 1, "memory_behind"]
    assert [request.wait_ms for verb, request in memory.asked if verb == "matches"] == [
        20_000,
        20_000,
        10_000,
        20_000,
        10_000,
    ]


async def test_a_call_for_matches_that_was_cut_off_is_given_the_same_again(life: Life, memory: ScriptedMemory) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        await ctx.watch("x", "wet road")
        await ctx.remember("wet road")
        return [memory.text for memory in (await ctx.matches("x")).memories]

    writer: Any = life.ports.writer
    stores = writer.store

    async def die(event: Any) -> Any:
        if event.data.kind == "matches":
            raise Cut
        return await stores(event)

    writer.store = die
    assert isinstance(await life.attempt(run), Failed)
    writer.store = stores
    assert output(await life.attempt(run)) == ["wet road"]


async def test_programs_have_the_same_verbs(life: Life, memory: ScriptedMemory) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        verbs = Verbs(ctx)

        async def ask(verb: str, **args: Any) -> Any:
            answer = await verbs.perform(verb, msgspec.Raw(msgspec.json.encode(args)))
            return msgspec.json.decode(msgspec.json.encode(answer))

        since = await ask("watch", name="w", text="wet road", threshold=0.4)
        kept = await ask("remember", text="the road is wet", payload={"n": 1}, space="agent")
        found = await ask("recall", text="wet road", k=1, spaces=["agent"], min_similarity=0.5)
        changed = await ask("update_memory", memory=kept["id"], source="s", if_seq=kept["seq"])
        seen = await ask("matches", name="w", at_least_seq=changed["seq"])
        (now,) = await ask("get_memories", ids=[kept["id"]])
        await ask("unwatch", name="w")
        await ask("forget_memory", memory=kept["id"])
        return [since, found[0]["payload"], now["text"], now["source"], len(seen["memories"])]

    assert output(await life.attempt(run)) == [1, {"n": 1}, "the road is wet", "s", 2]


def test_faults_of_a_memory_are_not_told_as_refusals() -> None:
    from swarmd.memory_answers import error_of, read

    assert isinstance(error_of(Failure("busy", "")), Fault)
    assert isinstance(error_of(Failure("bad_filter", "")), Rejected)
    with pytest.raises(Fault, match="cannot read"):
        read(b"no", msgspec.Raw)
