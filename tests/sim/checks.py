"""What must hold: an omniscient observer that folds every record as it is stored and watches what is said.

It looks at the outside of the fold (which event was accepted, what was told to whom) and at the
invariants of the state, not at how the core reaches them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from msgspec import UNSET

from swarmd.core import commits, snapshot
from swarmd.core import effects as fx
from swarmd.core.codec import Codec, Commit, Garbage, Record
from swarmd.core.events import (
    Awaited,
    Completed,
    Dropped,
    Event,
    Failed,
    Fired,
    Redriven,
    Resolved,
    Sent,
    Spawned,
    Stepped,
    Told,
    Unpaused,
)
from swarmd.core.evolve import apply
from swarmd.core.state import TERMINAL, Place, SwarmState
from swarmd.core.wait_facts import is_resolved
from tests.sim import books, shares

if TYPE_CHECKING:
    from swarmd.core.events import Schedule
    from swarmd.core.leader import Leader
    from swarmd.core.office import LeaderSettings
    from swarmd.core.state import Planned, Task
    from swarmd.core.wire import Outcome, Receipt, Start

Key = tuple[str, str, int]
Step = Stepped | Spawned | Awaited | Sent | Dropped


class Violation(AssertionError):
    """The core broke a promise."""


class Oracle:
    """The fold of everything stored, at the moment it is stored, and the books kept beside it."""

    def __init__(self, swarm: str, settings: LeaderSettings) -> None:
        self.state = SwarmState(swarm)
        self.settings = settings
        self.hedged = self.apart = 0
        self.codec = Codec()
        self.accepted: set[str] = set()
        self.verdicts: dict[str, list[tuple[str, Place]]] = {}
        self.redriven: Counter[str] = Counter()
        self.assigned: dict[tuple[str, int], tuple[str, frozenset[str]]] = {}
        self.refused: Counter[str] = Counter()
        self.capacity_max: dict[str, int] = {}
        self.executions = 0
        self.results: dict[tuple[Place, str], Place] = {}
        self.answers: dict[Place, tuple[str, str, str]] = {}
        self.counted: set[Place] = set()
        self.instructions: dict[Place, str] = {}
        self.slots: list[tuple[int, str]] = []
        self._folded: set[Key] = set()

    # --- what is stored ---

    def stored(self, record: Record) -> None:
        """Fold a record and compare what changed with what may change."""
        commit = self.codec.decode(record)
        state = self.state
        if isinstance(commit, Garbage):
            if apply(state, commit):
                raise Violation(f"garbage at {record.seq} had effects")
            return
        live = {event.subject: self._epochs(event.subject) for event in commit.events if isinstance(event, Event)}
        paused = {task.id for task in state.tasks.values() if task.paused}
        before = books.promised(state)
        refused: list[int] = []
        effects = apply(state, commit, refused)
        unsound = shares.wrong(state, self.settings)
        if state.accounts or before:
            unsound = unsound or books.wrong(state, commit, before) or books.over(state)
        if unsound:
            raise Violation(f"{record.seq}: {unsound}")
        key = (f"{commit.role}/{commit.writer}", commit.boot, commit.n)
        void = commit.seen < record.seq - commits.HORIZON
        if effects and (void or key in self._folded):
            raise Violation(f"commit {key} at {record.seq} is {'void' if void else 'repeated'} and had effects")
        if not void:
            self._folded.add(key)
        self._watch(commit, effects, live)
        for index, event in enumerate(commit.events):
            if not isinstance(event, Event):
                continue
            if isinstance(event.data, Step):
                self._check_step(commit, event, event.data, (commit.seq, index))
            elif isinstance(event.data, Resolved):
                self.answers[commit.seq, index] = (event.subject, event.data.key, event.data.by)
                if index not in refused:
                    self.counted.add((commit.seq, index))
            elif isinstance(event.data, Told):
                self.instructions[commit.seq, index] = event.subject
            elif isinstance(event.data, Fired) and index not in refused:
                self.slots.append((event.data.slot_ms, event.subject))
            elif isinstance(event.data, Unpaused):
                paused.discard(event.subject)
        for effect in effects:
            if isinstance(effect, fx.Started) and effect.task.id in paused:
                raise Violation(f"{effect.task.id} was assigned while it was paused")
        self._watch_waits()
        if record.seq % 25 == 0:
            self.check_invariants()

    def _epochs(self, task_id: str) -> frozenset[int]:
        task = self.state.tasks.get(task_id)
        return frozenset(task.attempts) if task else frozenset()

    def _watch(self, commit: Commit, effects: list[fx.Effect], live: dict[str, frozenset[int]]) -> None:
        for effect in effects:
            match effect:
                case fx.Queued(task) | fx.Delayed(task):
                    self.accepted.add(task.id)
                case fx.Started(task, attempt):
                    if (task.id, attempt.epoch) in self.assigned:
                        raise Violation(f"{task.id} was assigned twice at epoch {attempt.epoch}")
                    self.assigned[task.id, attempt.epoch] = (attempt.member, frozenset(attempt.journal))
                    if attempt.epoch in task.attempts:
                        self._check_start(task)
                    member = self.state.members.get(attempt.member)
                    if member and len(member.running) > self.capacity_max.get(member.id, 0):
                        raise Violation(f"{member.id} runs {len(member.running)} attempts, over its capacity")
                case fx.Offered(member, _):
                    self.capacity_max[member.id] = max(self.capacity_max.get(member.id, 0), member.capacity)
                case fx.Judged(member):
                    self.apart += bool(member.quarantined)
                case fx.Refusal(subject):
                    self.refused[subject] += 1
                case fx.Ended():
                    self._check_verdict(commit, effect, live)
                case _:
                    pass
        for event in commit.events:
            if isinstance(event, Event) and isinstance(event.data, Redriven) and event.subject in self.state.tasks:
                self.redriven[event.subject] += 1

    def _check_start(self, task: Task) -> None:
        self.hedged += len(task.attempts) > 1
        unsound = shares.wrong_start(self.state, task)
        if unsound:
            raise Violation(unsound)

    def _check_verdict(self, commit: Commit, ended: fx.Ended, live: dict[str, frozenset[int]]) -> None:
        task_id = ended.task.id
        told = self.verdicts.setdefault(task_id, [])
        told.append((ended.state, ended.place))
        if len(told) > 1 + self.redriven[task_id]:
            raise Violation(f"{task_id} has {len(told)} verdicts: {told}")
        event = commit.events[ended.place[1]]
        if isinstance(event, Event) and isinstance(event.data, Completed | Failed) and event.subject == task_id:
            if event.data.epoch not in live[task_id]:
                raise Violation(f"{task_id} got its verdict from epoch {event.data.epoch}, live were {live[task_id]}")
            self._check_owner(commit, task_id, event.data.epoch)

    def _check_step(self, commit: Commit, event: Event, fact: Step, place: Place) -> None:
        task = self.state.tasks.get(event.subject)
        if task is None:
            return
        for epoch, attempt in task.attempts.items():
            if attempt.journal.get(fact.key) == place and epoch != fact.epoch:
                raise Violation(f"{task.id}: a step of epoch {fact.epoch} is on the branch of epoch {epoch}")
            if attempt.journal.get(fact.key) == place:
                self._check_owner(commit, task.id, epoch)

    def _watch_waits(self) -> None:
        """A result never changes."""
        for task in self.state.tasks.values():
            for key, wait in task.awaited.items():
                if wait.resolved is None:
                    if (task.submitted, key) in self.results:
                        raise Violation(f"{task.id} waits again for {key}, which was resolved")
                elif wait.resolved in self.answers and wait.resolved not in self.counted:
                    raise Violation(f"{task.id}: {key} was resolved by an answer that the fold did not take")
                elif self.results.setdefault((task.submitted, key), wait.resolved) != wait.resolved:
                    raise Violation(f"{task.id}: the result of {key} changed to that at {wait.resolved}")

    def _check_owner(self, commit: Commit, task_id: str, epoch: int) -> None:
        member = self.assigned[task_id, epoch][0]
        if not (member.startswith(f"{commit.writer}/{commit.boot}/") or member == f"swarm/{commit.writer}"):
            raise Violation(f"{task_id}: {commit.writer}/{commit.boot} was believed about {member}'s attempt {epoch}")

    def find(self, task_id: str, seq: int) -> Place | None:
        """The newest verdict up to `seq`, as a catalog would know it when the fold has forgotten the task."""
        places = [place for _, place in self.verdicts.get(task_id, ()) if place[0] <= seq]
        return places[-1] if places else None

    # --- what is said and done ---

    def told_accepted(self, task_id: str) -> None:
        if task_id not in self.accepted:
            raise Violation(f"a client was told that {task_id} is accepted, but the fold never accepted it")

    def told_outcome(self, outcome: Outcome) -> None:
        if not outcome.final or outcome.task not in self.accepted:
            if outcome.final and outcome.task not in self.refused:
                raise Violation(f"an outcome of {outcome.task} was told, which was neither accepted nor refused")
            return
        if not any(state == outcome.state for state, _ in self.verdicts.get(outcome.task, ())):
            raise Violation(f"{outcome.task} was told to be {outcome.state}; verdicts are {self.verdicts}")

    def told_answer(self, task: str, key: str, by: str, receipt: Receipt) -> None:
        """Somebody heard what became of an answer: it counts exactly if the fold took it, whatever came of the task."""
        places = [place for place, said in self.answers.items() if said == (task, key, by)]
        counts = any(place in self.counted for place in places)
        if bool(receipt.task) and not counts:
            raise Violation(f"{by} was told that an answer to {task}/{key} counts, and it does not")
        once = len(places) == 1  # a request that arrived twice is late the second time
        if not receipt.task and counts and once and receipt.error is not UNSET and receipt.error.code == "too_late":
            raise Violation(f"{by} was told to be too late for {task}/{key}, and was not")

    def told_result(self, task: str, key: str, place: Place) -> None:
        """A member was told of a wait's result."""
        if place not in self.results.values():
            raise Violation(f"{task} was told that {key} is resolved at {place}, which it is not")

    def instructed(self, task: str, place: Place) -> None:
        if self.instructions.get(place) != task:
            raise Violation(f"{task} was told of an instruction at {place}, which is not its")

    def handed_over(self, start: Start) -> None:
        """A member got an attempt: the fold must have given it exactly this."""
        known = self.assigned.get((start.task, start.epoch))
        if known is None or known[0] != start.member:
            raise Violation(f"{start.member} was handed {start.task} epoch {start.epoch}, which is not its attempt")
        for key, place in start.resolved.items():
            self.told_result(start.task, key, place)
        for place in start.told:
            self.instructed(start.task, place)

    def executing(self, task_id: str, epoch: int, key: str) -> None:
        """A step begins: its record must not have been accepted when the attempt was assigned."""
        self.executions += 1
        if key in self.assigned[task_id, epoch][1]:
            raise Violation(f"{task_id}: step {key} is recorded and was executed again by epoch {epoch}")

    @staticmethod
    def check_overlays(leader: Leader) -> None:
        """With nothing left to do, a leader must not hold back anything for decisions that are not folded."""
        left: list[object] = [leader.door.proposed, leader.door.again, leader.door.events, leader.placing.overlays]
        left += shares.left_over(leader)
        if any(left) or len(leader.placing):
            raise Violation(f"overlays of {leader.writer} never ended: {left}, {len(leader.placing)} waiting")

    def check_slots(self, planned: Planned, declared: dict[str, Schedule]) -> None:
        """At the end every slot since the schedule was known has fired once, as far as its policy asks for that."""
        schedule, name = planned.schedule, planned.schedule.id
        if schedule != declared.get(name):
            raise Violation(f"schedule {name} is {schedule}, the settings say {declared.get(name)}")
        made = [int(task.partition(":")[2]) for task in self.accepted if task.startswith(f"{name}:")]
        if len(made) != planned.fired or any((slot - planned.anchor_ms) % schedule.every_ms for slot in made):
            raise Violation(f"schedule {name} fired {planned.fired} times, its tasks are of {sorted(made)}")
        first = min((slot for slot, known in self.slots if known == name), default=0)
        wanted = range(first, schedule.until_ms + 1, schedule.every_ms) if first else range(0)
        every_slot = schedule.missed == "all" or schedule.grace_ms >= 60_000
        if every_slot and [slot for slot, known in self.slots if known == name] != list(wanted):
            raise Violation(f"schedule {name} fired {self.slots}, its slots are {list(wanted)}")

    # --- the state itself ---

    def check_invariants(self) -> None:
        state = self.state
        for member in state.members.values():
            for task_id, epoch in member.running.items():
                task = state.tasks.get(task_id)
                if task is None or epoch not in task.attempts or task.attempts[epoch].member != member.id:
                    raise Violation(f"{member.id} runs {task_id}/{epoch}, the task does not know it")
        for task in state.tasks.values():
            if task.state in TERMINAL:
                raise Violation(f"{task.id} is live and {task.state}")
            if (task.state == "assigned") != bool(task.attempts):
                raise Violation(f"{task.id} is {task.state} with attempts {list(task.attempts)}")
            for epoch, attempt in task.attempts.items():
                member_of = state.members.get(attempt.member)
                if member_of is None or member_of.running.get(task.id) != epoch:
                    raise Violation(f"{task.id}/{epoch} is not among what {attempt.member} runs")
            if (task.state == "suspended") != bool(task.waits):
                raise Violation(f"{task.id} is {task.state} and waits for {task.waits}")
            if any(is_resolved(task, name) for group in task.waits for name in group):
                raise Violation(f"{task.id} waits for what is resolved")
            if (task.epoch > 0 and not task.attempts) != (task.id in state.idle):
                raise Violation(f"{task.id} is {task.state} at epoch {task.epoch}, and idle: {task.id in state.idle}")

        self._check_waits()

    def _check_waits(self) -> None:
        """What finds a wait agrees with the waits themselves; nobody sleeps on a resolved group, or runs paused."""
        state = self.state
        questions: dict[str, tuple[str, str]] = {}
        listeners: dict[str, dict[str, set[str]]] = {}
        for task in state.tasks.values():
            if task.paused and task.state == "queued":
                raise Violation(f"{task.id} is paused and waits for a slot")
            if any(not group for group in task.waits):
                raise Violation(f"{task.id} sleeps although all of one group is resolved")
            for key, wait in task.awaited.items():
                if wait.resolved is None and wait.kind == "human":
                    questions[wait.question] = (task.id, key)
                elif wait.resolved is None and wait.kind == "event":
                    listeners.setdefault(wait.name, {}).setdefault(task.id, set()).add(key)
            self._check_mail(task)
        if questions != state.questions or questions.keys() & state.closed.keys():
            raise Violation(f"open questions are {questions}, the index says {state.questions}")
        found = {name: {task: set(keys) for task, keys in tasks.items()} for name, tasks in state.listeners.items()}
        if listeners != found:
            raise Violation(f"open waits for events are {listeners}, the index says {found}")

    @staticmethod
    def _check_mail(task: Task) -> None:
        """A message is received at most once, by a wait or not yet, and no wait is open that would take one."""
        read = [wait.resolved for wait in task.awaited.values() if wait.kind == "message" and wait.resolved]
        unread = [mail.place for mail in task.mailbox]
        if len(set(read + unread)) != len(read + unread):
            raise Violation(f"{task.id} got a message twice: {read} received, {unread} in the mailbox")
        for wait in task.awaited.values():
            if wait.kind == "message" and wait.resolved is None:
                missed = [mail for mail in task.mailbox if wait.name in ("", mail.sender)]
                if missed:
                    raise Violation(f"{task.id} waits for a message that is in its mailbox: {missed}")

    def check_replay(self, records: list[Record], cut: int) -> None:
        """The log from its start, and a snapshot at `cut` plus the tail, must both give this state."""
        fresh = SwarmState(self.state.swarm)
        middle = b""
        for record in records:
            apply(fresh, self.codec.decode(record))
            if record.seq == cut:
                middle = snapshot.encode(fresh)
        truth = snapshot.encode(self.state)
        if snapshot.encode(fresh) != truth:
            raise Violation("a replay from sequence 1 differs from the live fold")
        if middle:
            loaded = snapshot.decode(middle)
            for record in records[cut:]:
                apply(loaded, self.codec.decode(record))
            if snapshot.encode(loaded) != truth:
                raise Violation(f"a snapshot at {cut} plus the tail differs from the live fold")
