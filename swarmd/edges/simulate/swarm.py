"""A swarm on a virtual clock: a real leader with its fold, simulated members, and a heap of what happens when.

Commits are numbered and timed as a broker would, `APPEND_MS` after they were written; the leader writes one at a time,
like a log writer. While nothing is live the clock jumps to the next arrival.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field

from swarmd.core import effects as fx
from swarmd.core.codec import Commit
from swarmd.core.errors import Fault
from swarmd.core.leader import Leader
from swarmd.core.state import SwarmState
from swarmd.core.wire import Submission
from swarmd.edges.simulate.chance import Chance
from swarmd.edges.simulate.members import BOOT, Node, Planner
from swarmd.edges.simulate.shapes import PLANNER, MemberShape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from swarmd.core.codec import Garbage
    from swarmd.core.events import Event
    from swarmd.core.experience import Learned
    from swarmd.core.office import LeaderSettings
    from swarmd.edges.simulate.members import Attempt
    from swarmd.edges.simulate.shapes import Graph, Job, Workload

EPOCH_MS: Final = 1_760_000_000_000
APPEND_MS: Final = 1
TICK_MS: Final = 50
#: Each member's process is heard every so many ticks.
BEAT_TICKS: Final = 5
#: With nothing that runs or arrives, something must come of time alone within so long.
STUCK_MS: Final = 600_000
LEADER: Final = "leader"
SWARM: Final = "simulated"


class Seen(Struct):
    """What was seen of one job: when it came, first ran and ended; `passed` counts attempts of others meanwhile."""

    job: int
    came_ms: int
    passed: int = 0
    began_ms: int = -1
    ended_ms: int = -1
    verdict: str = ""


class Observed(Struct):
    """What a simulation has seen. Times in milliseconds since the beginning, `*_work_ms` in slots times milliseconds.

    `hedged_work_ms` is that of attempts which began beside another one of their task. `makespans` are of graphs.
    """

    jobs: list[Seen] = field(default_factory=list)
    makespans: list[int] = field(default_factory=list)
    attempts: int = 0
    hedges: int = 0
    failures: int = 0
    first_work_ms: int = 0
    hedged_work_ms: int = 0
    ended_ms: int = 0


class Swarm:
    """One simulation; `run` it once."""

    def __init__(self, workload: Workload, settings: LeaderSettings) -> None:
        self.workload, self.seen = workload, Observed()
        self.now_ms = EPOCH_MS
        self.leader = Leader(SwarmState(SWARM), LEADER, BOOT, settings)
        self._heap: list[tuple[int, int, Callable[[Any], None], Any]] = []
        self._count = self._seq = self._leader_commits = self._live = 0
        self._writing = self._ticking = False
        self._ticks = self._moved_ms = 0
        self._by_id: dict[str, Seen] = {}
        self._graphs: dict[str, Graph] = {}
        self._hedges: dict[tuple[str, int], None] = {}
        self._nodes: dict[str, Node] = {f"n{n:03}": Node(f"n{n:03}", m, self) for n, m in enumerate(workload.members)}
        if workload.graphs:
            shape = MemberShape(len(workload.graphs), agents=(PLANNER,))
            self._nodes[PLANNER] = Planner(PLANNER, shape, self, self._graphs)

    # --- the clock ---

    def run(self) -> Observed:
        """Until every job has its verdict. Raises `Fault("stuck")` when nothing happens any more."""
        self._fold("orchestrator", LEADER, [self.leader.campaign()])
        for node in self._nodes.values():
            self._at(EPOCH_MS + node.shape.joins_ms, self._join, node)
            if node.shape.leaves_ms:
                self._at(EPOCH_MS + node.shape.leaves_ms, self._drain, node)
        for number, job in enumerate(self.workload.jobs):
            self._at(EPOCH_MS + job.at_ms + 10, self._arrive, number)
        left = len(self.workload.jobs)
        if self.workload.graphs:
            self._at(EPOCH_MS + 10, self._begin_graph, 0)
            left = len(self.workload.graphs)
        heap = self._heap
        while len(self.seen.jobs) < left or self._live:
            self.now_ms, _, act, what = heapq.heappop(heap)
            act(what)
        self.seen.ended_ms = self.now_ms - EPOCH_MS
        return self.seen

    def _at(self, at_ms: int, act: Callable[[Any], None], what: Any) -> None:
        self._count += 1
        heapq.heappush(self._heap, (at_ms, self._count, act, what))

    def after(self, delay_ms: int, act: Callable[[Attempt], None], attempt: Attempt) -> None:
        self._at(self.now_ms + delay_ms + APPEND_MS, act, attempt)

    def _tick(self, _: None) -> None:
        if not self._live:
            self._ticking = False
            return
        if self.now_ms - self._moved_ms > STUCK_MS and not self._heap:
            waiting = ", ".join(f"{count} for {agent}" for agent, count in self.leader.waiting().items())
            raise Fault("stuck", f"nothing happens any more; waiting: {waiting or 'nothing'}")
        self._ticks += 1
        for number, node in enumerate(self._nodes.values()):
            if (number + self._ticks) % BEAT_TICKS == 0:
                self.leader.heartbeat(node.beat(), self.now_ms)
        self.leader.tick(self.now_ms)
        self._at(self.now_ms + TICK_MS, self._tick, None)
        self._settle()

    # --- the log ---

    def _fold(self, role: str, writer: str, events: list[Event]) -> None:
        """Store one commit and read it back."""
        self._seq += 1
        self._moved_ms = self.now_ms
        if role == "orchestrator":
            self._leader_commits += 1
            n = self._leader_commits
        else:
            node = self._nodes[writer]
            node.commits += 1
            n, node.receipt = node.commits, self._seq
        told: list[Event | Garbage] = [*events]
        self.take(Commit(self._seq, role, writer, BOOT, n, self._seq - 1, f"{BOOT}.{n}", told, self.now_ms))

    def take(self, commit: Commit) -> None:
        """The leader reads a commit of the log."""
        for effect in self.leader.fold(commit, self.now_ms):
            if type(effect) is fx.Ended:
                self._ended(effect)
            elif type(effect) is fx.Started and len(effect.task.attempts) > 1:
                self._hedges[effect.task.id, effect.attempt.epoch] = None
        self._settle()

    def _settle(self) -> None:
        """Hand out what the leader sends, and let its writer have the next commit."""
        for key, dispatch in self.leader.links.flush(self._seq, self.now_ms):
            self._nodes[key[1]].take(dispatch)
        self._write()

    def _write(self) -> None:
        if self._writing:
            return
        events = self.leader.decide()
        if events:
            self._writing = True
            self._at(self.now_ms + APPEND_MS, self._stored, events)

    def _stored(self, events: list[Event]) -> None:
        self._writing = False
        self._fold("orchestrator", LEADER, events)

    def report(self, node: Node, events: list[Event]) -> None:
        self._fold(node.role, node.writer, events)

    # --- members ---

    def _join(self, node: Node) -> None:
        self.report(node, [node.offer(self.workload.idempotent)])

    def _drain(self, node: Node) -> None:
        self.report(node, [node.offer(self.workload.idempotent, capacity=0)])

    def learned(self) -> Mapping[str, Learned]:
        return self.leader.state.learned

    def begins(self, node: Node, attempt: Attempt) -> int:
        """For how long an attempt runs: as long under every policy."""
        workload, shape, seen = self.workload, node.shape, self._by_id.get(attempt.task)
        self.seen.attempts += 1
        if seen is None:
            return max(1, round(self._work_of(attempt.task) / shape.speed))
        if seen.began_ms < 0:
            seen.began_ms = self.now_ms - EPOCH_MS
            seen.passed = self.seen.attempts - 1 - seen.passed
        job = workload.jobs[seen.job]
        work = float(job.work_ms)
        if workload.straggling is not None:
            work = workload.straggling.duration_ms(workload.seed, seen.job, attempt.epoch)
        duration_ms = work / shape.speed
        if shape.failing and Chance(workload.seed, "fails", seen.job, attempt.epoch).uniform() < shape.failing:
            attempt.failing = True
            self.seen.failures += 1
            duration_ms *= shape.fails_after
        return max(1, round(duration_ms))

    def _work_of(self, child: str) -> int:
        parent, _, number = child.rpartition("~")
        return self._graphs[parent].works_ms[int(number) - 1]

    def worked(self, attempt: Attempt) -> None:
        """Count the time of an attempt that is over."""
        ran_ms = self.now_ms - attempt.began_ms
        if self._hedges and (attempt.task, attempt.epoch) in self._hedges:
            del self._hedges[attempt.task, attempt.epoch]
            self.seen.hedges += 1
            self.seen.hedged_work_ms += ran_ms
        else:
            self.seen.first_work_ms += ran_ms

    # --- work ---

    def _arrive(self, number: int) -> None:
        job = self.workload.jobs[number]
        task = f"t{number:07}"
        seen = Seen(number, self.now_ms - EPOCH_MS, self.seen.attempts)
        self._submit(task, seen, self._submission(job))

    def _submission(self, job: Job) -> Submission:
        return Submission(
            agent=job.agent,
            priority=job.priority,
            tenant=job.tenant,
            retry=self.workload.retry,
            requires=job.requires,
            concurrency_key=job.concurrency_key,
        )

    def _begin_graph(self, number: int) -> None:
        task = f"g{number:07}"
        self._graphs[task] = self.workload.graphs[number]
        self._submit(task, Seen(number, self.now_ms - EPOCH_MS), Submission(agent=PLANNER))

    def _submit(self, task: str, seen: Seen, submission: Submission) -> None:
        self._live += 1
        self._moved_ms = self.now_ms
        self.seen.jobs.append(seen)
        self._by_id[task] = seen
        if not self._ticking:
            self._ticking = True
            self.leader.links.renew_all(self.now_ms)
            self._at(self.now_ms, self._tick, None)
        self.leader.submit(submission, task, self.now_ms, False, None)
        self._write()

    def _ended(self, ended: fx.Ended) -> None:
        seen = self._by_id.pop(ended.task.id, None)
        if seen is None:
            return
        self._live -= 1
        seen.ended_ms, seen.verdict = self.now_ms - EPOCH_MS, ended.state
        if self.workload.graphs:
            self.seen.makespans.append(seen.ended_ms - seen.came_ms)
            if seen.job + 1 < len(self.workload.graphs):
                self._at(self.now_ms + 10, self._begin_graph, seen.job + 1)
