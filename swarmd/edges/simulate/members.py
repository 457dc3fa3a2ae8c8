"""Simulated members: what a worker process does with what it is given, and what its reports say.

A member takes batches as the real one does, runs as many attempts as it has slots, keeps what it was given beyond that
in a queue of its own, and reports ends as facts. It must not know the leader, nor how its facts are stored.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from swarmd.core.events import Completed, Event, Failed, Failure, MemberJoined, Spawned
from swarmd.core.ids import child_id, node_member
from swarmd.core.link import Receiver
from swarmd.core.wire import ChildDone, Heartbeat, Report, Start, Stop
from swarmd.edges.simulate.shapes import PLANNER, Graph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from swarmd.core.events import Fact
    from swarmd.core.experience import Learned
    from swarmd.core.wire import Dispatch, Item
    from swarmd.edges.simulate.shapes import MemberShape

BOOT: Final = "b"
BROKEN: Final = Failure("simulated", "this member fails")
#: What an agent is taken to need before anything is known of it.
UNKNOWN_MS: Final = 1_000.0


class Attempt(Struct):
    """One attempt at a member: it began at `began_ms` (-1: it waits for a slot) and is `over` once it was stopped."""

    task: str
    epoch: int
    agent: str
    failing: bool = False
    began_ms: int = -1
    over: bool = False


class Outside(Protocol):
    """What a member needs of the simulation around it."""

    now_ms: int

    def begins(self, node: Node, attempt: Attempt) -> int:
        """An attempt begins: for how long it runs, in milliseconds. Sets whether it fails."""
        ...

    def worked(self, attempt: Attempt) -> None:
        """An attempt that had begun has come to its end, or was stopped."""
        ...

    def after(self, delay_ms: int, act: Callable[[Attempt], None], attempt: Attempt) -> None:
        """Call `act` so much later."""
        ...

    def report(self, node: Node, events: list[Event]) -> None:
        """Have facts of a member stored, now."""
        ...

    def learned(self) -> Mapping[str, Learned]:
        """What the log has taught about durations."""
        ...


class Node:
    """One worker process with one member."""

    role: Final = "worker"

    def __init__(self, writer: str, shape: MemberShape, outside: Outside) -> None:
        self.writer, self.shape, self._outside = writer, shape, outside
        self.id = node_member(writer, BOOT, 0)
        self.commits = 0
        self.receipt = 0
        self._receiver = Receiver()
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._waiting: deque[Attempt] = deque()
        self._busy = 0
        self._listing = False

    def offer(self, idempotent: list[str], capacity: int | None = None) -> Event:
        """What it joins with; capacity 0: it drains."""
        shape = self.shape
        slots = shape.slots if capacity is None else capacity
        return Event(
            self.id,
            MemberJoined(
                member=self.id,
                kind="node",
                agents=list(shape.agents),
                capacity=slots,
                node=self.writer,
                labels=shape.labels,
                idempotent=[agent for agent in idempotent if agent in shape.agents],
            ),
        )

    def beat(self) -> Heartbeat:
        """A heartbeat; it lists every attempt after it was asked to."""
        listed = list(self._attempts) if self._listing else None
        self._listing = False
        receiver = self._receiver
        running = {self.id: len(self._attempts)}
        return Heartbeat(
            self.role, self.writer, BOOT, receiver.term, receiver.ack, self.receipt, running, listed=listed
        )

    def take(self, dispatch: Dispatch) -> None:
        """A batch from the leader."""
        for item in self._receiver.take(dispatch):
            self._take(item)

    def _take(self, item: Item) -> None:
        if isinstance(item, Start):
            attempt = Attempt(item.task, item.epoch, item.agent)
            self._attempts[item.task, item.epoch] = attempt
            if self._busy < self.shape.slots:
                self._begin(attempt)
            else:
                self._waiting.append(attempt)
        elif isinstance(item, Stop):
            self._stop(item)
        elif isinstance(item, Report):
            self._listing = True

    def _begin(self, attempt: Attempt) -> None:
        self._busy += 1
        attempt.began_ms = self._outside.now_ms
        self._outside.after(self._outside.begins(self, attempt), self._end, attempt)

    def _stop(self, item: Stop) -> None:
        attempt = self._attempts.pop((item.task, item.epoch), None)
        if attempt is None:
            return
        attempt.over = True
        if attempt.began_ms >= 0:
            self._outside.worked(attempt)
            self._free()

    def _end(self, attempt: Attempt) -> None:
        """Its time is over: its report is stored, unless it was stopped before."""
        if attempt.over:
            return
        del self._attempts[attempt.task, attempt.epoch]
        self._outside.worked(attempt)
        fact: Fact = Completed(epoch=attempt.epoch)
        if attempt.failing:
            fact = Failed(epoch=attempt.epoch, failure=BROKEN)
        self._free()
        self._outside.report(self, [Event(attempt.task, fact)])

    def _free(self) -> None:
        self._busy -= 1
        while self._waiting:
            attempt = self._waiting.popleft()
            if not attempt.over:
                self._begin(attempt)
                return


class Planner(Node):
    """Runs macro-tasks: each task of a graph is spawned as soon as those it needs have ended.

    `graphs` are those of its tasks by id. How long a task's way ahead is follows from what durations were learned.
    """

    def __init__(self, writer: str, shape: MemberShape, outside: Outside, graphs: Mapping[str, Graph]) -> None:
        super().__init__(writer, shape, outside)
        self._graphs = graphs
        self._plans: dict[str, _Plan] = {}

    def _take(self, item: Item) -> None:
        if isinstance(item, Start) and item.agent == PLANNER:
            plan = _Plan(self._graphs[item.task], item.epoch, self._outside.learned())
            self._plans[item.task] = plan
            self._attempts[item.task, item.epoch] = Attempt(item.task, item.epoch, item.agent)
            self._spawn(item.task, plan.ready())
        elif isinstance(item, ChildDone):
            self._spawn(item.task, self._plans[item.task].ended(int(item.child.rpartition("~")[2]) - 1))
        else:
            super()._take(item)

    def _spawn(self, task: str, ready: list[int]) -> None:
        """The tasks that can begin now, or the end of all."""
        plan, events = self._plans[task], list[Event]()
        for number in ready:
            key, agent = f"spawn#{number}", plan.graph.agents[number]
            rank_ms = round(plan.ways_ms[number])
            fact = Spawned(epoch=plan.epoch, key=key, n=number + 1, agent=agent, rank_ms=rank_ms)
            events.append(Event(task, fact))
        if not plan.left:
            del self._plans[task], self._attempts[task, plan.epoch]
            events.append(Event(task, Completed(epoch=plan.epoch)))
        if events:
            attempt = Attempt(task, plan.epoch, PLANNER)
            self._outside.after(0, lambda _: self._outside.report(self, events), attempt)

    @staticmethod
    def child(task: str, number: int) -> str:
        """The id of the task that stands for a node of the graph."""
        return child_id(task, number + 1)


class _Plan:
    """How far a graph is."""

    def __init__(self, graph: Graph, epoch: int, learned: Mapping[str, Learned]) -> None:
        self.graph, self.epoch = graph, epoch
        self.left = len(graph.agents)
        means = {agent: known.mean_ms for agent, known in learned.items()}
        self.ways_ms = graph.ways_ms([means.get(agent, UNKNOWN_MS) for agent in graph.agents])
        self._users = graph.users()
        self._open = [len(needed) for needed in graph.needs]

    def ready(self) -> list[int]:
        return [number for number, needed in enumerate(self._open) if not needed]

    def ended(self, number: int) -> list[int]:
        """One task has ended: those that can begin now."""
        self.left -= 1
        for user in self._users[number]:
            self._open[user] -= 1
        return [user for user in self._users[number] if not self._open[user]]
