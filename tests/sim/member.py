"""A simulated worker process: several member nodes, many attempts, one writer, one boot per life.

It mirrors the rules of the real worker: a step waits for the receipt of the one before, reports are
repeated until a receipt comes, an attempt is listed until then, and a recorded step is never executed again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw

from swarmd.core import ids, subjects
from swarmd.core.budgets import Purse
from swarmd.core.codec import Garbage, Record
from swarmd.core.events import (
    Awaited,
    Completed,
    Dropped,
    Event,
    Fact,
    Failed,
    Failure,
    GrantWanted,
    MemberJoined,
    MemberLeft,
    Question,
    Returned,
    Sent,
    Spawned,
    Spending,
    Stepped,
    Suspended,
)
from swarmd.core.link import Receiver
from swarmd.core.wire import (
    Beat,
    ChildDone,
    Dispatch,
    Grant,
    Heartbeat,
    Instruct,
    Pause,
    Recall,
    Rejoin,
    Report,
    Start,
    Stop,
    WaitDone,
)
from tests.sim import script as scripts
from tests.sim.log import Writer
from tests.sim.world import Process

if TYPE_CHECKING:
    from tests.sim.orchestrator import Swarm

BEAT_MS = 60
NODES = 2
CAPACITY = 3
STEPS = Stepped | Spawned | Awaited | Sent | Dropped
EVENTS = ("rain", "sun")
STEP = Spending(tokens=3, steps=1)
_dispatches = msgspec.json.Decoder(Dispatch)


class Run:
    """One attempt: where it is in its script, from the journal it was handed and what it did since."""

    def __init__(self, worker: Worker, start: Start) -> None:
        self.worker, self.start = worker, start
        self.script = scripts.decode(bytes(start.input))
        self.done: set[str] = set()
        self.children = dict(start.children)
        self.resolved = set(start.resolved)
        self.stopped = self.paused = self.asking = False
        self.purse = Purse(start.grant)
        self.busy = True
        if start.journal:
            seqs = [seq for seq, _ in start.journal]
            worker.swarm.log.read(worker, seqs, self._resume)
        else:
            self._ready()

    def _resume(self, records: list[Record]) -> None:
        for record, (_, index) in zip(records, self.start.journal, strict=True):
            commit = self.worker.swarm.oracle.codec.decode(record)
            event = commit if isinstance(commit, Garbage) else commit.events[index]
            if not isinstance(event, Event) or not isinstance(event.data, STEPS):
                raise AssertionError(f"the journal of {self.start.task} lists {record.seq}/{index}, no step")
            self.done.add(event.data.key)
        self._ready()

    def _ready(self) -> None:
        self.busy = False
        self.advance()

    def advance(self) -> None:
        """Do the next thing in the script that is not done."""
        if self.stopped or self.busy:
            return
        script, task = self.script, self.start.task
        if self.worker.draining:
            self._report(Returned(epoch=self.start.epoch, reason="drain"))
            return
        if self.paused:
            self._report(Suspended(epoch=self.start.epoch, waits=[]))
            return
        if self.asking or not self._may_go_on():
            return
        hot = script.hot and self.purse.unlimited  # whoever holds a grant does not sit on it
        for n in range(script.steps):
            if f"s{n}" not in self.done:
                self._execute(f"s{n}")
                return
        for n, act in enumerate(script.acts):
            if f"act{n}" not in self.done:
                self._record(self._act(act, f"act{n}"), f"act{n}")
                return
            if not act.startswith("send") and f"act{n}" not in self.resolved:
                if not hot:
                    self._report(Suspended(epoch=self.start.epoch, waits=[[f"act{n}"]]))
                return
        for n, child in enumerate(script.children):
            if f"spawn{n}" not in self.done:
                fact = Spawned(
                    epoch=self.start.epoch, key=f"spawn{n}", n=n, agent=child.agent, input=Raw(scripts.encode(child))
                )
                fact.rank_ms = child.steps * child.ms
                if not child.children:  # whoever waits in its slot for a child must not hold the child's key
                    fact.concurrency_key = ("", "leaf")[n % 2]
                self._record(fact, f"spawn{n}")
                return
        names = [ids.child_id(task, n) for n in range(len(script.children))]
        open_children = [name for name in names if self.children.get(name) is None]
        if script.first and len(open_children) < len(names) and "drop" not in self.done:
            self._record(Dropped(epoch=self.start.epoch, key="drop", children=names), "drop")
            return
        if open_children:
            if not hot:
                groups = [[name] for name in open_children] if script.first else [open_children]
                self._report(Suspended(epoch=self.start.epoch, waits=groups))
            return
        if script.children and "tail" not in self.done:
            self._execute("tail")
            return
        self._finish()

    def _may_go_on(self) -> bool:
        """Whether the next step can be paid for; when it cannot, more is asked for, and a refusal is the end."""
        if self.purse.can(STEP):
            return True
        self.asking = True
        fact = GrantWanted(epoch=self.start.epoch, n=self.purse.ask(), total=self.purse.wanted(STEP))
        self.worker.writer.append([Event(self.start.task, fact)])
        return False

    def granted(self, item: Grant) -> None:
        """The leader's word on the wishes of this attempt."""
        if item.epoch != self.start.epoch:
            return
        self.purse.hear(item.n, item.total, item.refused)
        if not self.asking or self.purse.answered < self.purse.asked:
            return
        self.asking = False
        if self.purse.refused and not (self.stopped or self.busy):
            failure = Failure("budget_exhausted", self.purse.refused)
            self._report(Failed(epoch=self.start.epoch, failure=failure, retryable=False))
        else:
            self.advance()

    def _act(self, act: str, key: str) -> Awaited | Sent:
        """A wait with or without an end (somebody answers and signals in the end), or a message."""
        epoch, chance = self.start.epoch, self.worker.world.chance
        if act.startswith("send:"):
            return Sent(epoch=epoch, key=key, to=act.removeprefix("send:"))
        until_ms = self.worker.world.now_ms + chance.choice((5, 100, 700))
        if act in ("human", "event") and chance.random() < 0.5:
            until_ms = 0
        fact = Awaited(epoch=epoch, key=key, kind=act, until_ms=until_ms)  # type: ignore[arg-type]
        if act == "event":
            fact.name, fact.earlier = chance.choice(EVENTS), chance.random() < 0.3
        elif act == "human":
            escalate_to = ["boss", "chief"][: chance.randint(0, 2)]
            fact.question = Question("Go on?", on_timeout="escalate", escalate_to=escalate_to, timeout_ms=150)
        return fact

    def _finish(self) -> None:
        epoch, chance = self.start.epoch, self.worker.world.chance
        if self.worker.is_sick and self.worker.world.faults.sick_workers and chance.random() < 0.9:
            self._report(Failed(epoch=epoch, failure=Failure("sick", "it is this member")))
        elif self.script.fail == "doom":
            self._report(Failed(epoch=epoch, failure=Failure("doomed", "as scripted"), retryable=False))
        elif self.script.fail == "retry" and chance.random() < 0.6:
            self._report(Failed(epoch=epoch, failure=Failure("flaky", "as scripted")))
        else:
            self._report(Completed(epoch=epoch, output=Raw(b'{"by":%d}' % epoch)))

    def _execute(self, key: str) -> None:
        self.busy = True
        self.worker.swarm.oracle.executing(self.start.task, self.start.epoch, key)
        slow = self.worker.slow if self.worker.world.faults.slow_workers else 1
        if self.script.late and self.start.epoch == 1:
            slow *= 10
        self.worker.later(self.script.ms * slow, lambda: self._executed(key))

    def _executed(self, key: str) -> None:
        if not self.stopped:
            self._record(Stepped(epoch=self.start.epoch, key=key, kind="step", result=Raw(b"1"), tokens=3), key)

    def _record(self, fact: Fact, key: str) -> None:
        self.busy = True
        self.purse.settle(Spending(), Spending(tokens=getattr(fact, "tokens", 0), steps=1))
        self.worker.writer.append([Event(self.start.task, fact)], lambda _: self._recorded(key))

    def _recorded(self, key: str) -> None:
        self.done.add(key)
        self._ready()

    def _report(self, fact: Fact) -> None:
        """The last event of this attempt; it stays listed until the receipt is here."""
        self.busy = True
        self.worker.writer.append([Event(self.start.task, fact)], lambda _: self.worker.ended(self))


class Worker(Process):
    """A process with `NODES` members. A crash loses everything; the next life has another boot."""

    role = "worker"

    def __init__(self, swarm: Swarm, name: str) -> None:
        super().__init__(swarm.world, name)
        self.swarm = swarm
        self.writer: Writer
        self.draining = False
        self.runs: dict[tuple[str, int], Run] = {}
        self.members: list[str] = []
        self._receiver = Receiver()
        self._list_wanted = False
        self._boot = ""
        self._eager = self.world.chance.random() < 0.5  #: stops everything itself when asked to join again
        self.slow = self.world.chance.choice((1, 1, 4))
        self.is_sick = self.world.chance.random() < 0.3

    def boot(self) -> None:
        self._boot = f"{self.world.bits(64):016x}"
        self.writer = Writer(self, self.swarm.log, self.role, self.name, self._boot)
        self.runs, self.draining, self._list_wanted = {}, False, False
        self._receiver = Receiver()
        self.members = self.name_members()
        bus, swarm = self.swarm.bus, self.swarm.swarm
        bus.subscribe(self, subjects.dispatch(swarm, self.role, self.name, self._boot), self._on_dispatch)
        bus.subscribe(self, "beat", self._on_beat)
        self.join()
        self._heartbeat()

    def name_members(self) -> list[str]:
        return [ids.node_member(self.name, self._boot, n) for n in range(NODES)]

    def offer(self, member: str) -> MemberJoined:
        agents = ["work", "race", "parent"] if not member.endswith("/1") else ["work", "race"]
        capacity = 0 if self.draining else CAPACITY
        return MemberJoined(member=member, kind="node", agents=agents, capacity=capacity, idempotent=["race", "parent"])

    def join(self) -> None:
        """Offer (or withdraw) every member."""
        self.writer.append([Event(member, self.offer(member)) for member in self.members])

    def drain(self) -> None:
        """Take no more work, hand back what runs, leave, end."""
        if not self.alive or self.draining:
            return
        self.world.say(f"{self.name} drains")
        self.draining = True
        self.join()
        for run in list(self.runs.values()):
            run.advance()
        self._leave_when_empty()

    def _leave_when_empty(self) -> None:
        if not self.runs and self.writer.idle:
            self.writer.append([Event(m, MemberLeft(member=m)) for m in self.members], lambda _: self.crash())
        else:
            self.later(50, self._leave_when_empty)

    def ended(self, run: Run) -> None:
        """The receipt of an attempt's last report is here."""
        if not run.stopped:
            run.stopped = True
            self.runs.pop((run.start.task, run.start.epoch), None)

    # --- the leader ---

    def _on_beat(self, payload: bytes, reply: str) -> None:
        self.writer.seen = max(self.writer.seen, msgspec.json.decode(payload, type=Beat).seq)

    def _on_dispatch(self, payload: bytes, reply: str) -> None:
        dispatch = _dispatches.decode(payload)
        for item in self._receiver.take(dispatch):
            match item:
                case Start():
                    self.begin(item)
                case Stop(task, epoch):
                    self.stop(task, epoch)
                case ChildDone(task, child, place):
                    self._child_done(task, child, place)
                case WaitDone(task, key, place):
                    self._wait_done(task, key, place)
                case Grant(task):
                    for run in self._runs_of(task):
                        run.granted(item)
                case Pause(task):
                    self._pause(task)
                case Instruct(task, place):
                    self.swarm.oracle.instructed(task, place)
                case Recall(task, epoch):
                    self.recall(task, epoch)
                case Report():
                    self._list_wanted = True
                case Rejoin():
                    self.rejoin()

    def recall(self, task: str, epoch: int) -> None:
        """Only children can give back what they have not begun."""

    def describe(self, beat: Heartbeat) -> None:
        """Add to a heartbeat what only a delegate knows."""

    def rejoin(self) -> None:
        """The log does not know these members: whatever runs has no right to, and the leader will say so."""
        if self._eager:
            for task, epoch in list(self.runs):
                self.stop(task, epoch)
        self.join()

    def begin(self, start: Start) -> None:
        self.swarm.oracle.handed_over(start)
        if (start.task, start.epoch) not in self.runs:
            self.runs[start.task, start.epoch] = run = Run(self, start)
            run.advance()

    def stop(self, task: str, epoch: int) -> None:
        run = self.runs.pop((task, epoch), None)
        if run is not None:
            run.stopped = True

    def _child_done(self, task: str, child: str, place: tuple[int, int]) -> None:
        for run in self._runs_of(task):
            run.children[child] = place
            run.advance()

    def _wait_done(self, task: str, key: str, place: tuple[int, int]) -> None:
        self.swarm.oracle.told_result(task, key, place)
        for run in self._runs_of(task):
            run.resolved.add(key)
            run.advance()

    def _pause(self, task: str) -> None:
        for run in self._runs_of(task):
            run.paused = True
            run.advance()

    def _runs_of(self, task: str) -> list[Run]:
        return [run for (which, _), run in self.runs.items() if which == task]

    def counts(self) -> dict[str, int]:
        """Running attempts of every busy member."""
        return Counter(run.start.member for run in self.runs.values())

    def listed(self) -> list[tuple[str, int]]:
        return list(self.runs)

    def _heartbeat(self) -> None:
        self.later(BEAT_MS + self.world.chance.randint(0, 10), self._heartbeat)
        beat = Heartbeat(
            self.role,
            self.name,
            self._boot,
            self._receiver.term,
            self._receiver.ack,
            self.writer.last_receipt,
            self.counts(),
            self.listed() if self._list_wanted else None,
        )
        self._list_wanted = False
        self.describe(beat)
        self.swarm.bus.publish(self, "health", msgspec.json.encode(beat))
