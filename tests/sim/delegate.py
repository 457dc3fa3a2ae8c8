"""Simulated child swarms and their delegates: the member is the swarm, the delegate's process comes and goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Raw, Struct

from swarmd.core import ids
from swarmd.core.events import Completed, Event, Fact, MemberJoined, Returned
from swarmd.core.sharing import Handed
from swarmd.core.wire import Load, SwarmLoad
from tests.sim.checks import Violation
from tests.sim.member import Worker

if TYPE_CHECKING:
    from collections import Counter

    from swarmd.core.wire import Heartbeat, Start
    from tests.sim.orchestrator import Swarm
    from tests.sim.world import World

SLOTS = 4
LOOK_MS = 100


class ChildTask(Struct):
    """A task in the child's own log. It ends once: done, cancelled, or recalled before anybody had begun it."""

    task: str
    epoch: int
    takes_ms: int
    state: Literal["waiting", "running", "done", "cancelled", "recalled"] = "waiting"
    done_at_ms: int = 0


class ChildSwarm:
    """What survives every delegate: the child's log, as a table. A task's id is idempotent in it."""

    def __init__(self, world: World, name: str, done: Counter[str], broken: str = "") -> None:
        self.world, self.name, self.done, self._broken = world, name, done, broken
        self.tasks: dict[str, ChildTask] = {}
        self.own = 0  #: slots that the child's own clients have taken
        self._advance()

    def _advance(self) -> None:
        """What is done is done, and what waits gets the free slots."""
        self.world.at(20, self._advance)
        for task in self.tasks.values():
            if task.state == "running" and task.done_at_ms <= self.world.now_ms:
                task.state = "done"
                self.done[task.task] += 1
            elif task.state == "recalled" and 0 < task.done_at_ms <= self.world.now_ms:
                task.done_at_ms = 0  # somebody had begun it after all
                self.done[task.task] += 1
        free = self.free()
        for task in self.tasks.values():
            if task.state == "waiting" and free > 0:
                task.state, task.done_at_ms = "running", self.world.now_ms + task.takes_ms
                free -= 1

    def free(self) -> int:
        return SLOTS - self.own - sum(task.state == "running" for task in self.tasks.values())

    def submit(self, name: str, start: Start) -> ChildTask:
        task = self.tasks.get(name)
        if task is None:
            task = self.tasks[name] = ChildTask(start.task, start.epoch, self.world.chance.choice((20, 300, 900)))
        return task

    def load(self, asked: list[str]) -> SwarmLoad:
        """What the child's leader answers to `ctl.load`."""
        waiting = [name for name, task in self.tasks.items() if task.state == "waiting"]
        free = max(0, self.free())
        load = Load(queued=0 if free else len(waiting) + self.own, free=free, members=1)
        return SwarmLoad(self.name, ["remote"], SLOTS, load, waiting=[name for name in waiting if name in asked])

    def recall(self, name: str) -> None:
        task = self.tasks.get(name)
        begun = task is not None and task.state == "running" and self._broken == "recall"
        if task is not None and (task.state == "waiting" or begun):
            task.state = "recalled"

    def cancel(self, name: str) -> None:
        task = self.tasks.get(name)
        if task is not None and task.state in ("waiting", "running"):
            task.state = "cancelled"


class Delegate(Worker):
    """Speaks for the child in the parent's log, under a new boot in each life."""

    role = "delegate"

    def __init__(self, swarm: Swarm, child: ChildSwarm) -> None:
        super().__init__(swarm, child.name)
        self._child = child
        self._handed = Handed()
        self._load: Load | None = None
        self._followed: set[str] = set()
        self._reporting: set[str] = set()

    def boot(self) -> None:
        self._followed, self._reporting = set(), set()
        self._handed, self._load = Handed(), None
        super().boot()
        self._poll()
        self._look()

    def name_members(self) -> list[str]:
        return [ids.swarm_member(self.name)]

    def offer(self, member: str) -> MemberJoined:
        return MemberJoined(member=member, kind="swarm", agents=["remote"], capacity=SLOTS)

    def _name(self, task: str, epoch: int) -> str:
        return ids.delegated_id(self.swarm.swarm, task, epoch)

    def begin(self, start: Start) -> None:
        self.swarm.oracle.handed_over(start)
        name = self._name(start.task, start.epoch)
        task = self._child.submit(name, start)
        live = self.swarm.oracle.state.tasks.get(start.task)
        if task.state == "cancelled" and live is not None and start.epoch in live.attempts:
            raise Violation(f"{name} was stopped in the child and is handed over again")
        self._handed.accepted(name)
        self._followed.add(name)

    def stop(self, task: str, epoch: int) -> None:
        name = self._name(task, epoch)
        self._followed.discard(name)
        self._handed.ended(name)
        self._child.cancel(name)

    def recall(self, task: str, epoch: int) -> None:
        """The child may get the request much later, when this process is long gone."""
        name = self._name(task, epoch)
        self.world.at(self.world.chance.choice((2, 10, 300)), lambda: self._child.recall(name))

    def _look(self) -> None:
        """Ask the child what it has room for; its answer takes a moment, in which both go on."""
        self.later(LOOK_MS, self._look)
        asked = self._handed.look()
        answer = self._child.load(asked)
        self.later(self.world.chance.choice((1, 5, 40)), lambda: self._told(asked, answer))

    def _told(self, asked: list[str], answer: SwarmLoad) -> None:
        self._load = self._handed.told(asked, answer)

    def describe(self, beat: Heartbeat) -> None:
        if self._load is not None:
            beat.load = {self.members[0]: self._load}
            tasks = (self._child.tasks[name] for name in self._handed.recallable())
            beat.recallable = [(task.task, task.epoch) for task in tasks]

    def _poll(self) -> None:
        """Report what the child has finished; the parent's log may hold the report of an earlier life already."""
        self.later(40, self._poll)
        for name in sorted(self._followed):
            task = self._child.tasks[name]
            if task.state in ("done", "recalled"):
                self._followed.discard(name)
                self._handed.ended(name)
                self._report(name, task)

    def _report(self, name: str, task: ChildTask) -> None:
        self._reporting.add(name)
        fact: Fact = Completed(epoch=task.epoch, output=Raw(b'{"by":"child"}'))
        if task.state == "recalled":
            fact = Returned(epoch=task.epoch, reason="recalled")
        self.writer.append([Event(task.task, fact)], lambda _: self._reporting.discard(name))

    def listed(self) -> list[tuple[str, int]]:
        """Every attempt that is under way in the child, or whose report has no receipt."""
        tasks = (self._child.tasks[name] for name in sorted(self._followed | self._reporting))
        return [(task.task, task.epoch) for task in tasks]

    def counts(self) -> dict[str, int]:
        return {self.members[0]: len(self._followed | self._reporting)}

    def rejoin(self) -> None:
        """The work goes on in the child's own log, whoever speaks for it."""
        self.join()
