"""An agent's children: wanted, waited for, cancelled. Each is a step; waiting for them suspends after a grace."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import msgspec
from msgspec import Raw

from swarmd.core import subjects
from swarmd.core.budgets import check_limits
from swarmd.core.commands import check_key
from swarmd.core.events import Budget, Dropped, Spawned
from swarmd.core.ids import check_name, child_id
from swarmd.core.kin import packed
from swarmd.core.outcomes import outcome_at
from swarmd.core.wire import Durations, DurationsQuery
from swarmd.roles.attempt import AgentFailed, Child, ChildFailed
from swarmd.roles.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmd.core.wire import Outcome

PRIORITY_MAX = 1_000
#: So many children are begun at once, and the results of so many read. An agent may want tens of thousands in one
#: breath; whoever does all that in one turn of the loop sends no heartbeat meanwhile, and is given up.
SPAWNS_MAX = 128
READ_MAX = 256
ASK_MS = 5_000


class Spawning(TypedDict, total=False):
    """How a child ranks, and what it may spend."""

    priority: int | None
    budget: Budget | None
    concurrency_key: str
    rank_ms: int


class Family(Journal):
    """The context's side of children."""

    async def spawn(
        self,
        agent: str,
        wanted: Any = None,
        *,
        swarm: str = "",
        labels: Mapping[str, str] | None = None,
        **how: Unpack[Spawning],
    ) -> Child:
        """Want a child task, as a step; `swarm` names a child swarm of this one that shall run it.

        It inherits deadline, tenant and retry policy. Its `priority` is its parent's or lower, and a `budget` of its
        own is spent from its parent's too. `rank_ms` is about how long this task will take from the child's start on
        (`durations` knows): where siblings compete for slots, the one with the longest way ahead goes first.
        """
        check_name("agent", agent)
        fact = Spawned(epoch=self.epoch, key=self._key("spawn"), n=0, agent=agent)
        fact.concurrency_key, fact.rank_ms = (
            check_key(how.get("concurrency_key", "")),
            max(0, int(how.get("rank_ms", 0))),
        )
        fact.requires = {"swarm": check_name("swarm", swarm)} if swarm else {}
        priority, budget = how.get("priority"), how.get("budget")
        if priority is not None:
            fact.priority = max(-PRIORITY_MAX, min(PRIORITY_MAX, int(priority)))
        if budget is not None:
            check_limits("budget", budget)
            fact.budget = budget
        try:  # an event of another shape would be garbage to everyone who reads it
            fact.labels = msgspec.convert(dict(labels or {}), dict[str, str])
        except msgspec.ValidationError as error:
            raise AgentFailed("bad_labels", f"labels are texts by name: {error}", retryable=False) from None
        if fact.key in self._journal:
            return await self._spawn(fact, wanted)
        if self._seats is None:
            self._seats = asyncio.Semaphore(SPAWNS_MAX)
        async with self._seats:
            return await self._spawn(fact, wanted)

    async def _spawn(self, fact: Spawned, wanted: Any) -> Child:
        """The child that is recorded, or that is recorded now."""
        key, agent = fact.key, fact.agent
        recorded = await self._look_up(key, "spawned")
        if isinstance(recorded, Spawned):
            if recorded.agent != agent:
                why = f"spawn {key!r} of {agent!r} was recorded as a spawn of {recorded.agent!r}"
                raise AgentFailed("journal_mismatch", why, retryable=False)
            child = Child(child_id(self.task, recorded.n))
            self._resolved.setdefault(child.task, None)  # of many children only those with a verdict are told of
            return child
        self._spawned += 1
        fact.n = self._spawned
        child = Child(child_id(self.task, fact.n))
        self._resolved[child.task] = None
        with self._acting(key):
            fact.input, fact.input_blob = await self.pack(wanted)
            await self._record(fact)
        return child

    async def durations(self, *agents: str) -> dict[str, int]:
        """How long attempts of these agents take, in milliseconds, as far as the swarm knows. A step."""

        async def act() -> Any:
            payload = msgspec.json.encode(DurationsQuery(list(agents)))
            answer = await self._ports.bus.request(subjects.ctl(self._ports.swarm, "durations"), payload, ASK_MS)
            return msgspec.json.decode(answer, type=Durations).durations

        return msgspec.convert(await self._journaled(self._key("durations"), "durations", act), dict[str, int])

    async def gather(self, *children: Child, return_failures: bool = False) -> list[Any]:
        """The children's outputs, in order. Waits without a slot when they take longer than a moment.

        Raises `ChildFailed` for the first child without an output, or with `return_failures` returns
        an `Outcome` in its place.
        """
        self._check_children(children)
        await self._until_resolved([[child.task for child in children]])
        results: list[Any] = []
        for first in range(0, len(children), READ_MAX):  # a slice at a time: heartbeats want their turn too
            some = children[first : first + READ_MAX]
            results += await asyncio.gather(*(self._result(child, return_failures) for child in some))
        return results

    async def first(self, *children: Child, count: int = 1) -> list[tuple[Child, Any]]:
        """The first `count` children that have a verdict, in the order of their verdicts in the log.

        Each comes with its output, or with its `Outcome` when it has none.
        """
        self._check_children(children)
        if not 1 <= count <= len(children):
            raise AgentFailed("bad_count", f"count must be 1 to {len(children)}, the children", retryable=False)
        while True:
            done = [child for child in children if self._resolved.get(child.task) is not None]
            if len(done) >= count:
                break
            left = [child for child in children if self._resolved.get(child.task) is None]
            groups = [[child.task] for child in left] if count - len(done) < len(left) else [[c.task for c in left]]
            await self._until_resolved(groups)
        done.sort(key=lambda child: self._resolved[child.task] or (0, 0))
        chosen = done[:count]
        results = await asyncio.gather(*(self._result(child, True) for child in chosen))
        return list(zip(chosen, results, strict=True))

    def _check_children(self, children: Sequence[Child]) -> None:
        """Nobody would ever tell of a task that is another's."""
        self._check_open()
        for child in children:
            if child.task not in self._resolved:
                raise AgentFailed("unknown_child", f"task {child.task} is no child of this one", retryable=False)

    async def cancel(self, *children: Child, reason: str = "") -> None:
        """Cancel children that have no verdict yet, and all that they have spawned. A step."""
        key = self._key("cancel")
        if children and await self._look_up(key, "dropped") is None:
            names = packed(self.task, [child.task for child in children])
            with self._acting(key):
                await self._record(Dropped(epoch=self.epoch, key=key, children=names, reason=reason[:500]))

    async def _result(self, child: Child, return_failure: bool) -> Any:
        outcome = await self._outcome(child.task)
        if outcome.state == "completed" and isinstance(outcome.output, Raw):
            return await self._value(outcome.output, outcome.output_blob)
        if return_failure:
            return outcome
        raise ChildFailed(outcome)

    async def _outcome(self, task: str) -> Outcome:
        place = self._resolved[task]
        assert place is not None
        commits = await self._ports.reader.commits([place[0]])
        return outcome_at(commits[place[0]], task, place)
