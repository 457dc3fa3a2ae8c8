"""A simulated child swarm and its delegate: the member is the swarm, the delegate's process comes and goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Raw, Struct

from swarmd.core import ids
from swarmd.core.events import Completed, Event, MemberJoined
from tests.sim.checks import Violation
from tests.sim.member import Worker

if TYPE_CHECKING:
    from swarmd.core.wire import Start
    from tests.sim.orchestrator import Swarm


class ChildTask(Struct):
    """A task in the child's own log."""

    task: str
    epoch: int
    done_at_ms: int
    cancelled: bool = False


class ChildSwarm:
    """What survives every delegate: the child's log, as a table. A task's id is idempotent in it."""

    def __init__(self) -> None:
        self.tasks: dict[str, ChildTask] = {}


class Delegate(Worker):
    """Speaks for the child in the parent's log, under a new boot in each life."""

    role = "delegate"

    def __init__(self, swarm: Swarm, name: str, child: ChildSwarm) -> None:
        super().__init__(swarm, name)
        self._child = child
        self._followed: set[str] = set()
        self._reporting: set[str] = set()

    def boot(self) -> None:
        self._followed, self._reporting = set(), set()
        super().boot()
        self._poll()

    def name_members(self) -> list[str]:
        return [ids.swarm_member(self.name)]

    def offer(self, member: str) -> MemberJoined:
        return MemberJoined(member=member, kind="swarm", agents=["remote"], capacity=2)

    def begin(self, start: Start) -> None:
        self.swarm.oracle.handed_over(start)
        name = ids.delegated_id(self.swarm.swarm, start.task, start.epoch)
        task = self._child.tasks.get(name)
        if task is None:
            done_at_ms = self.world.now_ms + self.world.chance.choice((20, 200, 900))
            task = self._child.tasks[name] = ChildTask(start.task, start.epoch, done_at_ms)
        live = self.swarm.oracle.state.tasks.get(start.task)
        if task.cancelled and live is not None and start.epoch in live.attempts:
            raise Violation(f"{name} was stopped in the child and is handed over again")
        self._followed.add(name)

    def stop(self, task: str, epoch: int) -> None:
        name = ids.delegated_id(self.swarm.swarm, task, epoch)
        self._followed.discard(name)
        if name in self._child.tasks:
            self._child.tasks[name].cancelled = True

    def _poll(self) -> None:
        """Report what the child has finished; the parent's log may hold the report of an earlier life already."""
        self.later(40, self._poll)
        for name in sorted(self._followed):
            task = self._child.tasks[name]
            if task.done_at_ms <= self.world.now_ms and not task.cancelled:
                self._followed.discard(name)
                self._report(name, task)

    def _report(self, name: str, task: ChildTask) -> None:
        self._reporting.add(name)
        fact = Completed(epoch=task.epoch, output=Raw(b'{"by":"child"}'))
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
