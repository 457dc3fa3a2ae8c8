"""Agents on a real memory node: their steps, reuse, and a blackboard, over a log, a bus and a store in this process."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

pytest.importorskip("numpy", reason="needs numpy (pip install 'swarmd[memory]')")

from swarmd.adapters.fakes import FakeBus
from swarmd.core.codec import Codec, Commit
from swarmd.core.events import Completed, Event, Stepped
from swarmd.core.wire import Start
from swarmd.reuse import Reuse
from swarmd.roles.journal import Recorded
from swarmd.roles.member import MemberSettings
from swarmd.roles.worker import NodeOffer, Worker
from swarmd.sdk import Agent
from swarmd.strategies.noticing import Reader
from tests.contract.test_roles import attempt_ports
from tests.system.memory_nodes import World, a_world
from tests.system.swarms import WAIT_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from swarmd.core.events import Fact
    from swarmd.roles.context import Context


class Tasks:
    """Attempts of one agent against the memory of a world; `runs` are the inputs that were really worked on."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ports = msgspec.structs.replace(attempt_ports(), bus=world.bus, clock=world.clock)
        self.runs: list[Any] = []
        self._epoch = 0

    async def run(
        self, task: str, run: Any, wanted: Any = None, reuse: Reuse | None = None, swarm: str = "main"
    ) -> Any:
        """The output of the next attempt of a task."""
        fact = await self.attempt(task, run, wanted, reuse, swarm)
        assert isinstance(fact, Completed), fact
        return msgspec.json.decode(fact.output)

    async def attempt(self, task: str, run: Any, wanted: Any, reuse: Reuse | None, swarm: str) -> Fact:
        async def noted(ctx: Context, given: Any) -> Any:
            self.runs.append(given)
            return await run(ctx, given)

        self._epoch += 1
        start = Start(task, self._epoch, "w/b/0", "desk", msgspec.Raw(msgspec.json.encode(wanted)))
        start.journal = [place for place, fact in self.facts(task) if isinstance(fact, Recorded)]
        node = NodeOffer("n", {"desk": Agent("desk", noted, reuse=reuse)}, 1)
        ports = msgspec.structs.replace(self.ports, swarm=swarm)
        async with asyncio.timeout(WAIT_S):
            return await Worker(MemberSettings("s", "w", "b"), [node], ports, FakeBus()).outcome(start)

    def facts(self, task: str) -> list[Any]:
        log: Any = self.ports.reader._log
        commits = [commit for commit in map(Codec().decode, log._records) if isinstance(commit, Commit)]
        return [
            ((commit.seq, at), event.data)
            for commit in commits
            for at, event in enumerate(commit.events)
            if isinstance(event, Event) and event.subject == task
        ]

    async def stored(self) -> None:
        """Wait until the store is as new as the log."""

        async def is_new() -> bool:
            stats = await self.world.stats()
            return stats.applied == stats.seq and not stats.trouble

        await until(is_new)

    async def result(self, task: str) -> dict[str, Any]:
        """What the step `reuse` of a task says."""
        (found,) = [fact for _, fact in self.facts(task) if isinstance(fact, Stepped) and fact.kind == "reuse"]
        said: dict[str, Any] = msgspec.json.decode(found.result)
        return said


@asynccontextmanager
async def tasks() -> AsyncIterator[Tasks]:
    async with a_world() as world:
        await world.node(is_warm=True)
        made = Tasks(world)
        writing = world.group.create_task(made.ports.writer.run())
        try:
            yield made
        finally:
            writing.cancel()


async def test_steps_do_what_they_say() -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        own = await ctx.remember("the road is wet", space="agent", payload={"n": 1}, labels={"kind": "note"})
        await ctx.remember("the road is wet, says everybody", space="swarm")
        new = await ctx.update_memory(own.id, text="the road is dry now", if_seq=own.seq)
        where: Any = {"spaces": ["agent"], "filter": 'labels.kind = "note"', "mode": "dense"}
        found = await ctx.recall("road", at_least_seq=new.seq, **where)
        (same,) = await ctx.get_memories(own.id, "none")
        gone = await ctx.forget_memory(own.id)
        left = await ctx.recall("road", at_least_seq=gone.seq)
        return [[one.text for one in found], same.payload, same.space, [one.text for one in left]]

    async with tasks() as made:
        first = await made.run("t1", run)
        assert first == [
            ["the road is dry now"],
            {"n": 1},
            "swarm/main/agent/desk",
            ["the road is wet, says everybody"],
        ]
        assert await made.run("t1", run) == first
        ancestry = (await made.world.lineage("t1", swarm="main")).memories
        assert {memory.step for memory in ancestry} == {"remember#1", "remember#2"}


async def test_a_watch_tells_each_match_once() -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        await ctx.watch("wet", "wet road", threshold=0.5, expires_in_ms=60_000)
        await ctx.remember("the road is wet")
        last = await ctx.remember("nobody saw a cloud")
        one = await ctx.matches("wet", at_least_seq=last.seq)
        none = await ctx.matches("wet", at_least_seq=last.seq)
        late = await ctx.remember("wet roads everywhere")
        two = await ctx.matches("wet", wait_s=20, at_least_seq=late.seq)
        await ctx.unwatch("wet")
        return [[memory.text for memory in found.memories] for found in (one, none, two)]

    async with tasks() as made:
        assert await made.run("t1", run) == [["the road is wet"], [], ["wet roads everywhere"]]
        assert made.world.nodes[0].state.watches == {}


async def test_readers_of_a_board_see_what_others_wrote() -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        reader = Reader("subject-0", "wet road", {"board": "b"}, 2, 0.3)
        await ctx.remember("a wet road", labels={"board": "b"})
        first = await ctx.remember("a wet road, elsewhere", labels={"board": "c"})
        await reader.look(ctx, first.seq)
        before = reader.nearest()
        other = await made.world.kept("wet roads were seen", labels={"board": "b"})
        await reader.look(ctx, other)
        await ctx.unwatch(reader.watch)
        return [before, reader.nearest()]

    async with tasks() as made:
        assert await made.run("t1", run) == [["a wet road"], ["a wet road", "wet roads were seen"]]


QUESTION = "How long does the lease of an attempt live?"


async def think(ctx: Context, given: Any) -> Any:
    return f"answer to {given}"


@pytest.mark.parametrize("scope", ["agent", "swarm", "shared"])
async def test_results_are_reused_until_they_are_revoked(scope: Any) -> None:
    reuse = Reuse(0.9, scope)
    async with tasks() as made:
        assert await made.run("t1", think, QUESTION, reuse) == f"answer to {QUESTION}"
        await made.stored()
        assert await made.run("t2", think, f"{QUESTION}!", reuse) == f"answer to {QUESTION}"
        said = await made.result("t2")
        assert said["memory"] == "t1~reuse_kept~1"
        assert said["similarity"] >= 0.9
        await made.run("t3", think, QUESTION, reuse, swarm="other")
        assert made.runs == ([QUESTION] if scope == "shared" else [QUESTION, QUESTION])
        dry = await made.world.revoke(author="desk", swarm="main", dry=True)
        assert "t2" in {reader.task for reader in dry.readers}
        await made.world.revoke(id=said["memory"], reason="wrong")
        made.runs.clear()
        await made.run("t4", think, QUESTION, reuse)
        assert made.runs == [QUESTION]


async def test_results_expire_and_are_no_knowledge() -> None:
    async def recalls(ctx: Context, given: Any) -> Any:
        return [passage.text for passage in await ctx.recall(QUESTION)]

    reuse = Reuse(expires_s=60)
    async with tasks() as made:
        await made.run("t1", think, QUESTION, reuse)
        await made.stored()
        await made.run("t2", think, QUESTION, reuse)
        assert made.runs == [QUESTION]
        assert await made.run("t3", recalls, "another", reuse) == []
        made.world.clock.ahead_ms = 61_000
        await made.run("t4", think, QUESTION, reuse)
        assert made.runs == [QUESTION, "another", QUESTION]


async def test_a_node_that_follows_another_answers_what_was_asked_in_between() -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        first = await ctx.remember("before")
        await made.world.nodes[0].kill()
        made.world.board.clear()
        made.world.group.create_task(made.world.node())
        second = await ctx.remember("after")
        return [one.text for one in await ctx.get_memories(first.id, second.id)]

    async with tasks() as made:
        assert await made.run("t1", run) == ["before", "after"]
