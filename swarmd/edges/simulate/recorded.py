"""From a recorded log to a workload: what arrived and when, how long it ran, who was there, how fast and how sound.

Pure: it folds commits. How long an attempt ran is the time between the commits of its `assigned` and its report, by the
broker's clock; attempts of one task that handed it on (suspended, returned, completed) add up. Members are compared by
how long they took for the same agent, and a task's work is what it would have been at a typical member. Arrivals stay
where they were, those of children too, whatever a policy does.
"""

from __future__ import annotations

from math import exp, log
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from swarmd.core import effects as fx
from swarmd.core import evolve
from swarmd.core.codec import Commit
from swarmd.core.errors import Rejected
from swarmd.core.events import Completed, Event, Failed, RetryPolicy, Returned, Suspended
from swarmd.core.state import SwarmState
from swarmd.edges.simulate.shapes import Job, MemberShape, Workload

if TYPE_CHECKING:
    from swarmd.core.codec import Garbage
    from swarmd.core.state import Member, Task

#: A member's speed is drawn to 1 as if it had done so many attempts at the typical one.
DOUBT: Final = 3
ROUNDS: Final = 5


class _Task(Struct):
    """A task of the log: when it arrived, and the attempts that did its work: (member, milliseconds)."""

    came_ms: int
    agent: str
    tenant: str
    priority: int
    requires: dict[str, str]
    concurrency_key: str
    ran: list[tuple[str, int]] = field(default_factory=list)
    done: bool = False


class _Member(Struct):
    """A member of the log, from `came_ms` until it left."""

    came_ms: int
    slots: int
    agents: tuple[str, ...]
    labels: dict[str, str]
    left_ms: int = 0
    ended: int = 0
    failed: int = 0


class Recording:
    """Fold commits into it, then ask for the `workload`."""

    def __init__(self, swarm: str) -> None:
        self._state = SwarmState(swarm)
        self._tasks: dict[str, _Task] = {}
        self._members: dict[str, _Member] = {}
        self._running: dict[tuple[str, int], tuple[str, int]] = {}
        self._idempotent: set[str] = set()

    def fold(self, commit: Commit | Garbage) -> None:
        """The next commit of the log."""
        refused: list[int] = []
        effects = evolve.apply(self._state, commit, refused)
        if not isinstance(commit, Commit):
            return
        for effect in effects:
            self._follow(effect, commit.at_ms)
        for index, event in enumerate(commit.events):
            if index not in refused and isinstance(event, Event):
                self._reported(event, commit.at_ms)

    def _follow(self, effect: fx.Effect, at_ms: int) -> None:
        if isinstance(effect, fx.Queued):
            self._arrived(effect.task, at_ms)
        elif isinstance(effect, fx.Started):
            self._running[effect.task.id, effect.attempt.epoch] = (effect.attempt.member, at_ms)
        elif isinstance(effect, fx.Stopped):
            self._running.pop((effect.task, effect.epoch), None)
        elif isinstance(effect, fx.Ended):
            task = self._tasks.get(effect.task.id)
            if task is not None:
                task.done = effect.state == "completed"
        elif isinstance(effect, fx.Offered):
            self._offered(effect.member, at_ms)
        elif isinstance(effect, fx.Gone):
            self._left(effect.member.id, at_ms)

    def _arrived(self, task: Task, at_ms: int) -> None:
        if task.id not in self._tasks:
            self._tasks[task.id] = _Task(
                at_ms, task.agent, task.tenant, task.priority, task.requires, task.concurrency_key
            )

    def _offered(self, member: Member, at_ms: int) -> None:
        known = self._members.get(member.id)
        if known is None:
            known = self._members[member.id] = _Member(at_ms, member.capacity, (), {})
        self._idempotent.update(member.idempotent)
        if not member.capacity:
            self._left(member.id, at_ms)
            return
        known.slots, known.left_ms = member.capacity, 0
        known.agents, known.labels = tuple(member.agents), member.labels

    def _left(self, member: str, at_ms: int) -> None:
        known = self._members[member]
        known.left_ms = known.left_ms or at_ms

    def _reported(self, event: Event, at_ms: int) -> None:
        fact = event.data
        if not isinstance(fact, Completed | Suspended | Returned | Failed):
            return
        member, began_ms = self._running.pop((event.subject, fact.epoch), ("", 0))
        task, host = self._tasks.get(event.subject), self._members.get(member)
        if task is None or host is None:
            return
        host.ended += 1
        if isinstance(fact, Failed):
            host.failed += fact.retryable
        else:
            task.ran.append((member, max(1, at_ms - began_ms)))

    # --- what it comes to ---

    def workload(self, seed: int = 1) -> Workload:
        """Everything that was completed, and who was there. Raises `Rejected("nothing_recorded")`."""
        done = sorted((task for task in self._tasks.values() if task.done and task.ran), key=lambda one: one.came_ms)
        members = {name: one for name, one in self._members.items() if one.slots and one.agents}
        if not done or not members:
            raise Rejected(
                "nothing_recorded", f"the log of swarm {self._state.swarm} holds no completed task to replay"
            )
        speeds = _speeds(done)
        first_ms = min(done[0].came_ms, *(one.came_ms for one in members.values()))
        stays = _indispensable(done, members)
        jobs = [_job(task, speeds, first_ms) for task in done]
        shapes = [
            MemberShape(
                one.slots,
                speeds.get(name, 1.0),
                one.failed / one.ended if one.ended else 0.0,
                agents=one.agents,
                labels=one.labels,
                joins_ms=one.came_ms - first_ms,
                leaves_ms=one.left_ms - first_ms if one.left_ms and name not in stays else 0,
            )
            for name, one in members.items()
        ]
        idempotent = sorted(self._idempotent)
        retry = RetryPolicy(attempts_max=1_000)
        return Workload(f"log of {self._state.swarm}", seed, shapes, jobs, idempotent=idempotent, retry=retry)

    def left_out(self) -> int:
        """How many tasks of the log are not replayed, since they were not completed."""
        return sum(not (task.done and task.ran) for task in self._tasks.values())


def _indispensable(tasks: list[_Task], members: dict[str, _Member]) -> set[str]:
    """Of those that could do a task, the last to leave: under another policy it may be needed for longer."""
    found: set[str] = set()
    lanes = {(task.agent, tuple(sorted(task.requires.items()))) for task in tasks}
    for agent, requires in lanes:
        able = {
            name: one.left_ms
            for name, one in members.items()
            if agent in one.agents and all(one.labels.get(label) == value for label, value in requires)
        }
        if able and all(able.values()):
            found.add(max(able, key=lambda name: able[name]))
    return found


def _job(task: _Task, speeds: dict[str, float], first_ms: int) -> Job:
    work = sum(ran_ms * speeds.get(member, 1.0) for member, ran_ms in task.ran)
    return Job(
        task.came_ms - first_ms,
        task.agent,
        max(1, round(work)),
        task.tenant,
        task.priority,
        requires=task.requires,
        concurrency_key=task.concurrency_key,
    )


def _speeds(tasks: list[_Task]) -> dict[str, float]:
    """How fast each member is, 1 for a typical one: logarithms of durations as agent plus member, fitted by turns."""
    seen = [(task.agent, member, log(ran_ms)) for task in tasks for member, ran_ms in task.ran]
    agents: dict[str, float] = {}
    slow: dict[str, float] = {}
    for _ in range(ROUNDS):
        agents = _means([(agent, value - slow.get(member, 0.0)) for agent, member, value in seen], 0)
        slow = _means([(member, value - agents[agent]) for agent, member, value in seen], DOUBT)
    return {member: exp(-value) for member, value in slow.items()}


def _means(pairs: list[tuple[str, float]], doubt: int) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for name, value in pairs:
        total = sums.setdefault(name, [0.0, float(doubt)])
        total[0] += value
        total[1] += 1
    return {name: total / count for name, (total, count) in sums.items()}
