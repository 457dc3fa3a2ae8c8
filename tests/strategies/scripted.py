"""A context for strategies over virtual time: children run on a number of slots, their verdicts are in one order.

What the real one promises, as far as strategies use it: spawns are steps in order, `first` gives verdicts in the order
of the log. With `verdicts` of an earlier run it is a resumed attempt: they are all there at once, in that order.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import msgspec

from swarmd.core.errors import Rejected
from swarmd.core.events import Failure
from swarmd.core.memory_wire import RememberReply
from swarmd.core.turns import ModelReply, ModelRequest, Turn
from swarmd.core.wire import Outcome
from swarmd.roles.memory_steps import Recalled
from swarmd.roles.watch_steps import Matches
from swarmd.text import stems

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    AgentFunction = Callable[[Any], Any]


class Kid(msgspec.Struct, frozen=True):
    """A spawned child."""

    task: str


class ScriptedContext:
    """See the module. `agents` are functions of the input; one that raises `Rejected` fails its task.

    One that is placed in a swarm is called `agent@swarm`.
    """

    def __init__(
        self,
        agents: Mapping[str, AgentFunction] | None = None,
        replies: Sequence[str] = (),
        seconds: Callable[[str, Any], float] = lambda agent, given: 1.0,
        slots: int = 1_000,
        verdicts: Sequence[str] = (),
    ) -> None:
        self.task, self.epoch, self.priority = "t", 1, 0
        self.agents, self.replies = dict(agents or {}), list(replies)
        self.seconds, self.slots, self.known = seconds, slots, list(verdicts)
        self.spawned: list[tuple[str, Any]] = []
        self.ranks: list[int] = []
        self.learned: dict[str, int] = {}
        self.verdicts: list[str] = []
        self.cancelled: list[str] = []
        self.requests: list[ModelRequest] = []
        self.memories: list[tuple[str, dict[str, str]]] = []
        self.watches: dict[str, tuple[str, Mapping[str, str] | None, float]] = {}
        self.fetched: dict[str, int] = {}
        self.missed = 0
        self.steps: list[str] = []
        self.conflicts: list[Any] = []
        self.now = 0.0
        self._queue: list[tuple[int, int]] = []
        self._running: list[tuple[float, int]] = []
        self._results: dict[str, Any] = {}

    async def durations(self, *agents: str) -> dict[str, int]:
        return {agent: self.learned[agent] for agent in agents if agent in self.learned}

    # --- children ---

    async def spawn(
        self, agent: str, wanted: Any = None, *, swarm: str = "", labels: Any = None, rank_ms: int = 0
    ) -> Kid:
        number = len(self.spawned)
        self.spawned.append((f"{agent}@{swarm}" if swarm else agent, msgspec.json.decode(msgspec.json.encode(wanted))))
        self.ranks.append(rank_ms)
        heapq.heappush(self._queue, (-rank_ms, number))
        return Kid(f"t~{number + 1}")

    async def gather(self, *children: Kid, return_failures: bool = False) -> list[Any]:
        results = [await self._result(child) for child in children]
        for result in results:
            if isinstance(result, Outcome) and not return_failures:
                assert isinstance(result.error, Failure)
                raise Rejected("child_failed", f"child {result.task}: {result.error.code}: {result.error.message}")
        return results

    async def first(self, *children: Kid, count: int = 1) -> list[tuple[Kid, Any]]:
        assert 1 <= count <= len(children)
        names = {child.task: child for child in children}
        if self.known:
            chosen = [name for name in self.known if name in names][:count]
            if len(chosen) == count:
                return [(names[name], self._run(int(name[2:]) - 1)) for name in chosen]
        while sum(name in names for name in self.verdicts) < count:
            self._tick()
        chosen = [name for name in self.verdicts if name in names][:count]
        return [(names[name], self._results[name]) for name in chosen]

    async def cancel(self, *children: Kid, reason: str = "") -> None:
        self.cancelled += [child.task for child in children]

    async def _result(self, child: Kid) -> Any:
        if self.known:
            return self._run(int(child.task[2:]) - 1)
        while child.task not in self._results:
            self._tick()
        return self._results[child.task]

    def _tick(self) -> None:
        """Start what there are slots for, then let the next child end."""
        while self._queue and len(self._running) < self.slots:
            _, number = heapq.heappop(self._queue)
            heapq.heappush(self._running, (self.now + self.seconds(*self.spawned[number]), number))
        assert self._running, "waits for ever"
        self.now, number = heapq.heappop(self._running)
        self._results[f"t~{number + 1}"] = self._run(number)
        self.verdicts.append(f"t~{number + 1}")

    def _run(self, number: int) -> Any:
        agent, given = self.spawned[number]
        try:
            function = self.agents.get(agent) or self.agents[agent.partition("@")[0]]
            return msgspec.json.decode(msgspec.json.encode(function(given)))
        except Rejected as error:
            return Outcome(f"t~{number + 1}", "dead", error=Failure(error.code, error.message))

    # --- the rest ---

    async def conflict(self, said: Any) -> None:
        self.conflicts.append(msgspec.json.decode(msgspec.json.encode(said)))

    async def step(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        self.steps.append(name)
        return msgspec.json.decode(msgspec.json.encode(function(*args)))

    async def model(self, prompt: ModelRequest | str, *, model: str = "", name: str = "model") -> ModelReply:
        request = prompt if isinstance(prompt, ModelRequest) else ModelRequest([Turn("user", prompt)])
        self.requests.append(request)
        return ModelReply(self.replies[len(self.requests) - 1], "stop", model or "scripted:model")

    async def remember(self, text: str, *, source: str = "", labels: Mapping[str, str] | None = None) -> RememberReply:
        self.memories.append((text, dict(labels or {})))
        return RememberReply(f"m{len(self.memories)}", len(self.memories))

    async def recall(
        self,
        text: str,
        *,
        k: int = 5,
        labels: Mapping[str, str] | None = None,
        at_least_seq: int = 0,
        mode: str = "hybrid",
        min_similarity: float = -1.0,
    ) -> list[Recalled]:
        assert at_least_seq <= len(self.memories)
        found = self._near(text, labels, min_similarity, 0)
        return sorted(found, key=lambda passage: -passage.score)[:k]

    def _near(self, text: str, labels: Mapping[str, str] | None, threshold: float, after: int) -> list[Recalled]:
        """The memories after a sequence that are near enough; the cosine is that of their sets of stems."""
        wanted, asked = dict(labels or {}).items(), set(stems(text))
        found = []
        for n, (memory, marks) in enumerate(self.memories, 1):
            said = set(stems(memory))
            likeness = len(asked & said) / max(1.0, (len(asked) * len(said)) ** 0.5)
            if n > after and wanted <= marks.items() and likeness >= threshold:
                found.append(Recalled(f"m{n}", memory, likeness, labels=marks, seq=n, similarity=likeness))
        return found

    async def watch(
        self,
        name: str,
        text: str,
        *,
        threshold: float = 0.3,
        labels: Mapping[str, str] | None = None,
        expires_in_ms: int = 0,
    ) -> int:
        assert expires_in_ms > 0
        self.watches[name] = (text, labels, threshold)
        self.fetched[name] = len(self.memories)
        return len(self.memories)

    async def matches(self, name: str, *, at_least_seq: int = 0) -> Matches:
        assert at_least_seq <= len(self.memories)
        if name not in self.watches:
            raise Rejected("unknown_watch", "it has ended")
        after, self.fetched[name] = self.fetched[name], len(self.memories)
        missed, self.missed = self.missed, 0
        return Matches([] if missed else self._near(*self.watches[name], after), len(self.memories), missed)

    async def unwatch(self, name: str) -> None:
        self.watches.pop(name, None)
