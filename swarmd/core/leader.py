"""The orchestrator's machine: what to decide, and what to send once it is folded.

Pure: it is told the time, the folded commits and whatever arrived, and it hands back events to append
and messages to send. It decides only while it leads, and only after it has folded its own election.
A decision that is not folded yet is an overlay (`_proposed`, `_placing`): it goes when its commit is
folded, whatever the fold made of it, or when the commit could not be stored.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Final

from swarmd.core import commands
from swarmd.core import effects as fx
from swarmd.core.codec import Commit, Garbage
from swarmd.core.commits import WINDOW
from swarmd.core.errors import Conflict, Rejected
from swarmd.core.events import (
    Assigned,
    Cancelled,
    Configured,
    Elected,
    Event,
    Expired,
    Failure,
    MemberLost,
    Redriven,
    Refused,
    Requeued,
    Settled,
    Submitted,
)
from swarmd.core.evolve import apply
from swarmd.core.health import Links
from swarmd.core.ids import is_uuid7, uuid7_prefix
from swarmd.core.office import AHEAD_MS_MAX, LeaderSettings, OwedOutcome, id_taken, left, start_of, too_old
from swarmd.core.outcomes import outcome_of
from swarmd.core.placement import Queue
from swarmd.core.state import Member, SwarmState, Task, Tombstone, tombstone
from swarmd.core.wire import ChildDone, Heartbeat, Outcome, Receipt, Stop, Submission

if TYPE_CHECKING:
    from collections.abc import Callable

#: A caller waiting for an answer; the shell knows what is behind it.
Ask = Any


class Leader:
    """One orchestrator, leading or standing by. `state` is its fold and nobody else's."""

    def __init__(self, state: SwarmState, writer: str, boot: str, settings: LeaderSettings) -> None:
        self.state = state
        self.writer, self.boot = writer, boot
        self.settings = settings
        self.leading = False
        self.refusing = ""
        self.answers: list[tuple[Ask, Receipt | Outcome]] = []
        self.outcomes: dict[tuple[str, bool], list[Outcome]] = {}
        self.owed: list[OwedOutcome] = []
        self.links = Links(settings.lease_ms, settings.resend_ms)
        self._queue = Queue()
        self._events: list[Event] = []
        self._proposed: dict[str, tuple[str, list[Ask]]] = {}
        self._fresh: dict[str, Submitted] = {}
        self._placing: dict[str, tuple[str, int]] = {}
        self._taken: dict[str, int] = {}
        self._waiters: dict[str, list[Ask]] = {}
        self._timers: list[tuple[int, int, str, str, int]] = []
        self._timer_count = 0
        self._again: list[Event] = []
        self._read: set[int] = set()
        self._intake_folded: set[int] = set()
        self._intake_read = state.intake_seq
        self._settled_at_ms = 0
        self._ticked_at_ms = 0

    # --- folding ---

    def fold(self, commit: Commit | Garbage, now_ms: int) -> list[fx.Effect]:
        """Fold one commit and, while leading, act on what follows from it."""
        effects = apply(self.state, commit)
        for effect in effects:
            if isinstance(effect, fx.NewTerm):
                self._new_term(effect, now_ms)
        if not self.leading or isinstance(commit, Garbage):
            return effects
        for effect in effects:
            self._act(effect, now_ms)
        if commit.boot == self.boot and self._is_first_reading(commit.n):
            for event in commit.events:
                if isinstance(event, Event):
                    self._settle_overlay(event, effects)
        return effects

    def _is_first_reading(self, n: int) -> bool:
        """Whether our commit `n` is read for the first time: a repeat must not end what was decided since."""
        if n in self._read:
            return False
        self._read.add(n)
        if len(self._read) > 4 * WINDOW:
            self._read = {known for known in self._read if known > n - WINDOW}
        return True

    def _act(self, effect: fx.Effect, now_ms: int) -> None:
        act = _ACTS.get(type(effect))
        if act is not None:
            act(self, effect, now_ms)

    def _queued(self, effect: fx.Queued, now_ms: int) -> None:
        task = effect.task
        if task.deadline_at_ms and effect.new:  # it may be assigned in this very commit
            self._timer(task.deadline_at_ms, "deadline", task.id, 0)
        if task.id not in self._placing:
            self._queue.push(task)

    def _started(self, effect: fx.Started, now_ms: int) -> None:
        task, attempt = effect.task, effect.attempt
        if attempt.epoch in task.attempts:  # a later event of the same commit may have ended it
            self.links.send(self.state.members[attempt.member], start_of(task, attempt))

    def _stopped(self, effect: fx.Stopped, now_ms: int) -> None:
        self.links.send(effect.member, Stop(effect.task, effect.epoch))

    def _child_ended(self, effect: fx.ChildEnded, now_ms: int) -> None:
        for attempt in effect.parent.attempts.values():
            done = ChildDone(effect.parent.id, effect.child, effect.place)
            self.links.send(self.state.members[attempt.member], done)

    def _delayed(self, effect: fx.Delayed, now_ms: int) -> None:
        task = effect.task
        delay = min(task.retry.backoff_ms << min(max(task.failures - 1, 0), 20), task.retry.backoff_ms_max)
        self._timer(now_ms + max(delay, task.retry_after_ms), "retry", task.id, task.epoch)

    def _offered(self, effect: fx.Offered, now_ms: int) -> None:
        self.links.offered(effect.member, now_ms)
        if effect.moved:
            self._resend_running(effect.member)

    def _gone(self, effect: fx.Gone, now_ms: int) -> None:
        self.links.gone(effect.member)

    def _refusal(self, effect: fx.Refusal, now_ms: int) -> None:
        if effect.reply:
            refused = Outcome(effect.subject, "cancelled", error=effect.failure, seq=self.state.seq)
            self.outcomes.setdefault((effect.reply, False), []).append(refused)

    def _settle_overlay(self, event: Event, effects: list[fx.Effect]) -> None:
        """One of our own events is folded, accepted or not: what stood in for it goes."""
        fact = event.data
        if isinstance(fact, Assigned):
            if fact.term != self.state.term:
                return  # an earlier office of ours: its overlays went with it
            self._unplace(event.subject, fact.epoch)
            task = self.state.tasks.get(event.subject)
            if task is not None and task.state == "queued" and event.subject not in self._placing:
                self._queue.push(task)
        elif isinstance(fact, Submitted):
            if fact.term == self.state.term:
                self._settle_submitted(event, fact)
        elif isinstance(fact, Refused):
            if fact.intake_seq and fact.term == self.state.term:
                if any(isinstance(effect, fx.Refusal) and effect.subject == event.subject for effect in effects):
                    self._intake_folded.add(fact.intake_seq)
                elif not self._is_settled(fact.intake_seq):
                    self._again.append(event)
        else:
            self._rearm(event)

    def _settle_submitted(self, event: Event, fact: Submitted) -> None:
        """Answer who asked. A raw submission has nobody to ask again: it becomes a task or a refusal."""
        proposed = self._proposed.pop(event.subject, None)
        self._fresh.pop(event.subject, None)
        for ask in proposed[1] if proposed else ():
            self.answers.append((ask, self._receipt(event.subject, fact.digest)))
        if self._is_settled(fact.intake_seq):
            return
        known = self._known(event.subject)
        if known is None and self._is_forgotten(event.subject):
            self._refuse(fact.intake_seq, event.subject, too_old(event.subject), fact.reply)
        elif known is None:
            self._proposed[event.subject] = (fact.digest, [])
            self._again.append(event)
        elif known.digest != fact.digest:
            self._refuse(fact.intake_seq, event.subject, id_taken(event.subject), fact.reply)
        else:
            self._intake_folded.add(fact.intake_seq)

    def _is_settled(self, intake_seq: int) -> bool:
        """Whether the fold has this place of the intake (0: no place) behind it."""
        return intake_seq <= self.state.intake_seq or intake_seq in self._intake_folded

    def _rearm(self, event: Event) -> None:
        """What time made necessary did not come about (the commit was void or not stored): see it again."""
        fact, task = event.data, self.state.tasks.get(event.subject)
        if isinstance(fact, MemberLost):
            if fact.member in self.state.members:
                self.links.not_lost(fact.member)
        elif isinstance(fact, Requeued):
            if fact.reason == "retry" and task is not None and task.state == "backoff" and task.epoch == fact.epoch:
                self._timer(self._ticked_at_ms, "retry", event.subject, fact.epoch)
        elif isinstance(fact, Expired) and task is not None and task.deadline_at_ms:
            self._timer(task.deadline_at_ms, "deadline", event.subject, 0)

    def _unplace(self, task_id: str, epoch: int) -> None:
        member, placed = self._placing.get(task_id, ("", 0))
        if placed == epoch:
            del self._placing[task_id]
            self._taken[member] -= 1
            if not self._taken[member]:
                del self._taken[member]

    def _ended(self, ended: fx.Ended, now_ms: int) -> None:
        task = ended.task
        self._queue.discard(task.id)
        asks = self._waiters.pop(task.id, None)
        if not task.reply and not asks:
            return
        outcome = outcome_of(ended)
        if task.reply:
            self.outcomes.setdefault((task.reply, task.packed), []).append(outcome)
        for ask in asks or ():
            self.answers.append((ask, outcome))

    # --- leadership ---

    def campaign(self) -> Event:
        """The event that makes this orchestrator the leader, if it is the first stored of its term."""
        return Event(self.state.swarm, Elected(term=self.state.term + 1))

    def _new_term(self, elected: fx.NewTerm, now_ms: int) -> None:
        won = elected.writer == self.writer and elected.boot == self.boot
        if self.leading or not won:
            self.resign()
        if won:
            self._take_office(now_ms)

    def resign(self) -> None:
        """Stop deciding; callers are told to ask again, which finds the new leader."""
        self.leading = False
        again = Failure("not_leader", "this orchestrator no longer leads: ask again")
        for _, asks in self._proposed.values():
            self.answers.extend((ask, Receipt(error=again)) for ask in asks)
        for task_id, asks in self._waiters.items():
            self.answers.extend((ask, Outcome(task_id, "queued", error=again, final=False)) for ask in asks)
        self._proposed, self._fresh, self._waiters, self._placing, self._taken = {}, {}, {}, {}, {}
        self._queue, self._events, self._timers, self._again = Queue(), [], [], []
        self.outcomes, self.owed = {}, []

    def _take_office(self, now_ms: int) -> None:
        """Derive everything a leader owes from the fold alone."""
        state, limits = self.state, self.settings.limits
        self.leading = True
        self._ticked_at_ms = self._settled_at_ms = now_ms
        self._intake_read, self._intake_folded = state.intake_seq, set()
        self.links.take_office(state, now_ms)
        if limits != state.limits:
            fact = Configured(
                term=state.term,
                live_tasks_max=limits.live_tasks_max,
                remembered_max=limits.remembered_max,
                dead_max=limits.dead_max,
                losses_max=limits.losses_max,
            )
            self._events.append(Event(state.swarm, fact))
        for task in state.tasks.values():
            if task.state == "queued":
                self._queue.push(task)
            elif task.state == "backoff":
                self._delayed(fx.Delayed(task), now_ms)
            if task.deadline_at_ms:
                self._timer(task.deadline_at_ms, "deadline", task.id, 0)
            if task.attempts:
                for child, place in task.children.items():
                    if place is not None:
                        self._child_ended(fx.ChildEnded(task, child, place), now_ms)
        for untold in state.untold:
            buried = tombstone(state, untold.task)
            if buried is not None:
                self.owed.append(OwedOutcome(untold.task, untold.reply, untold.packed, buried))

    # --- commands ---

    def submit(self, submission: Submission, task_id: str, now_ms: int, packed: bool, ask: Ask) -> Receipt | None:
        """Decide on a checked submission. None: the answer to `ask` follows once the fold has accepted it.

        Raises `Rejected` ("not_leader", "swarm_full", "log_full", "id_too_old") or `Conflict` ("id_taken").
        """
        content = commands.digest(submission)
        if not self._is_new(task_id, content, ask, now_ms):
            return None if task_id in self._proposed else Receipt(task_id)
        self._check_room()
        self._proposed[task_id] = (content, [] if ask is None else [ask])
        fact = commands.to_fact(submission, content, self.state.term, now_ms, packed)
        self._events.append(Event(task_id, fact))
        self._fresh[task_id] = fact
        self._queue.push_proposed(task_id, fact)
        return None

    def _is_new(self, task_id: str, content: str, ask: Ask, now_ms: int) -> bool:
        if not self.leading:
            raise Rejected("not_leader", "this orchestrator does not lead: ask again")
        proposed = self._proposed.get(task_id)
        if proposed is not None:
            self._check_same(task_id, proposed[0], content)
            if ask is not None:
                proposed[1].append(ask)
            return False
        known = self._known(task_id)
        if known is not None:
            self._check_same(task_id, known.digest, content)
            return False
        if self._is_forgotten(task_id):
            raise too_old(task_id)
        # Ids sort by their time, so that most need only the first comparison.
        if task_id[:13] > uuid7_prefix(now_ms + AHEAD_MS_MAX) and is_uuid7(task_id):
            # What is forgotten is known by the youngest such id: one from the future would bar all others.
            raise Rejected("bad_id", f"id {task_id} is of a time that has not come: set the clock that made it")
        return True

    def _known(self, task_id: str) -> Task | Tombstone | None:
        state = self.state
        return state.tasks.get(task_id) or tombstone(state, task_id) or state.dead.get(task_id)

    def _is_forgotten(self, task_id: str) -> bool:
        return task_id <= self.state.forgotten and is_uuid7(task_id)

    @staticmethod
    def _check_same(task_id: str, known: str, content: str) -> None:
        if known != content:
            raise id_taken(task_id)

    def _check_room(self) -> None:
        if self.refusing:
            raise Rejected("store_full", self.refusing)
        live = len(self.state.tasks) + len(self._proposed)
        if live >= self.settings.limits.live_tasks_max:
            raise Rejected("swarm_full", f"{live} tasks are live, the limit is {self.settings.limits.live_tasks_max}")

    def _receipt(self, task_id: str, content: str) -> Receipt:
        task = self.state.tasks.get(task_id)
        if task is not None and task.digest == content:
            return Receipt(task_id)
        known = self.state.tasks.get(task_id) or tombstone(self.state, task_id)
        if known is None:
            return Receipt(error=Failure("not_leader", "the submission was not accepted: submit it again"))
        if known.digest != content:
            return Receipt(error=Failure("id_taken", f"id {task_id} belongs to another task"))
        return Receipt(task_id)

    def intake(self, seq: int, task_id: str, submission: Submission | Rejected, now_ms: int) -> None:
        """A raw submission stored in the intake at `seq`: it becomes a task or a refusal, never nothing."""
        if not self.leading:
            return  # whoever leads next reads it again
        self._intake_read = max(self._intake_read, seq)
        if isinstance(submission, Rejected):
            self._refuse(seq, task_id, submission, "")
            return
        try:
            content = commands.digest(submission)
            if not self._is_new(task_id, content, None, now_ms):
                self._repeated_intake(seq, task_id, submission, content, now_ms)
                return
            self._check_room()
        except (Rejected, Conflict) as error:
            self._refuse(seq, task_id, error, submission.reply)
            return
        self._proposed[task_id] = (content, [])
        fact = commands.to_fact(submission, content, self.state.term, now_ms, False)
        fact.intake_seq = seq
        self._events.append(Event(task_id, fact))

    def _repeated_intake(self, seq: int, task_id: str, submission: Submission, content: str, now_ms: int) -> None:
        """The task is there already, or only proposed: then this one is settled when its own event is folded."""
        if task_id not in self._proposed:
            self._intake_folded.add(seq)
            return
        fact = commands.to_fact(submission, content, self.state.term, now_ms, False)
        fact.intake_seq = seq
        self._events.append(Event(task_id, fact))

    def _refuse(self, seq: int, subject: str, error: Rejected | Conflict, reply: str) -> None:
        failure = Failure(error.code, error.message[:500])
        fact = Refused(term=self.state.term, failure=failure, reply=reply, intake_seq=seq)
        self._events.append(Event(subject, fact))

    def refuse(self, subject: str, error: Rejected | Conflict) -> None:
        """Record that a request was turned away."""
        if self.leading:
            self._refuse(0, subject, error, "")

    def cancel(self, task_id: str, reason: str) -> None:
        self._require_live(task_id)
        self._events.append(Event(task_id, Cancelled(term=self.state.term, reason=reason[:500])))

    def redrive(self, task_id: str) -> None:
        if not self.leading:
            raise Rejected("not_leader", "this orchestrator does not lead: ask again")
        if task_id not in self.state.dead:
            raise Rejected("not_dead", f"task {task_id} is not among the dead letters")
        self._events.append(Event(task_id, Redriven(term=self.state.term)))

    def _require_live(self, task_id: str) -> None:
        if not self.leading:
            raise Rejected("not_leader", "this orchestrator does not lead: ask again")
        if task_id not in self.state.tasks and task_id not in self._proposed:
            buried = tombstone(self.state, task_id)
            if buried is not None:
                raise Rejected("finished", f"task {task_id} is already {buried.state}")
            raise Rejected("unknown_task", f"no task {task_id} is known")

    def await_outcome(self, task_id: str, ask: Ask) -> Tombstone | None:
        """Answer `ask` when the task ends; for a finished task, return its tombstone instead."""
        if not self.leading:
            raise Rejected("not_leader", "this orchestrator does not lead: ask again")
        buried = tombstone(self.state, task_id)
        if buried is not None and task_id not in self.state.tasks:
            return buried
        if task_id not in self.state.tasks and task_id not in self._proposed:
            raise Rejected("unknown_task", f"no task {task_id} is known")
        self._waiters.setdefault(task_id, []).append(ask)
        return None

    def give_up(self, task_id: str, ask: Ask) -> Outcome | None:
        """The caller's time is over; None when it was answered meanwhile."""
        asks = self._waiters.get(task_id, [])
        if ask not in asks:
            return None
        asks.remove(ask)
        if not asks:
            del self._waiters[task_id]
        task = self.state.tasks.get(task_id)
        return Outcome(task_id, task.state if task else "queued", seq=self.state.seq, final=False)

    # --- members ---

    def heartbeat(self, beat: Heartbeat, now_ms: int) -> None:
        """A process of members is alive; what it lists is compared with the fold once that is as new."""
        self.links.heard(beat, self.state, now_ms)

    def _resend_running(self, member: Member) -> None:
        """A child swarm has a new delegate: hand it every live attempt again, under the same epochs."""
        for task_id, epoch in member.running.items():
            self._resend(member, task_id, epoch)

    def _resend(self, member: Member, task_id: str, epoch: int) -> None:
        task = self.state.tasks[task_id]
        self.links.send(member, start_of(task, task.attempts[epoch]))

    def _reconcile(self) -> None:
        """Compare listed attempts with the fold: what never arrived is requeued, what has no right is stopped."""
        for link, missing, extra in self.links.compare(self.state):
            for task_id, epoch in extra:
                self.links.send_to(link, Stop(task_id, epoch))
            for member, (task_id, epoch) in missing:
                if member.kind == "swarm":
                    self._resend(member, task_id, epoch)
                else:
                    fact = Requeued(term=self.state.term, epoch=epoch, reason="undelivered")
                    self._events.append(Event(task_id, fact))

    # --- time and decisions ---

    def tick(self, now_ms: int) -> None:
        """Whatever time alone has made necessary."""
        if not self.leading:
            return
        stall = now_ms - self._ticked_at_ms - self.settings.stall_ms
        if stall > 0:
            self.links.forgive(stall)
        self._ticked_at_ms = now_ms
        self._due(now_ms)
        self._reconcile()
        for member in self.links.lapsed(now_ms):
            self._events.append(Event(member, MemberLost(term=self.state.term, member=member)))
        if now_ms - self._settled_at_ms >= self.settings.settle_ms:
            self._settle(now_ms)

    def _due(self, now_ms: int) -> None:
        while self._timers and self._timers[0][0] <= now_ms:
            _, _, kind, task_id, epoch = heapq.heappop(self._timers)
            task = self.state.tasks.get(task_id)
            if task is None:
                continue
            if kind == "deadline" and 0 < task.deadline_at_ms <= now_ms:
                self._events.append(Event(task_id, Expired(term=self.state.term)))
            elif kind == "retry" and task.state == "backoff" and task.epoch == epoch:
                fact = Requeued(term=self.state.term, epoch=epoch, reason="retry")
                self._events.append(Event(task_id, fact))

    def _timer(self, at_ms: int, kind: str, task_id: str, epoch: int) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, (at_ms, self._timer_count, kind, task_id, epoch))

    def _settle(self, now_ms: int) -> None:
        """Say in the log which outcomes were sent and how far the intake is folded, if that has moved."""
        self._settled_at_ms = now_ms
        self._events.extend(self._again)
        self._again = []
        intake = self.state.intake_seq
        self._intake_folded = {seq for seq in self._intake_folded if seq > intake}
        while intake + 1 in self._intake_folded:
            intake += 1
        told = self.state.seq if self.state.untold and not self.outcomes and not self.owed else 0
        if told or intake > self.state.intake_seq:
            self._events.append(Event(self.state.swarm, Settled(term=self.state.term, told=told, intake=intake)))

    @property
    def intake_read(self) -> int:
        """The last intake sequence that was handed in."""
        return self._intake_read

    def decide(self) -> list[Event]:
        """Every event that is ready to be stored, placements included; called when the writer is free."""
        if not self.leading:
            return []
        self._place()
        events, self._events = self._events, []
        return events

    def dropped(self, events: list[Event], error: Rejected) -> None:
        """These events could not be stored: undo what stood in for them and tell who asked.

        What nobody would ask for again is proposed again later, since a full log still lets running work finish.
        """
        for event in events:
            fact = event.data
            if not self.leading or getattr(fact, "term", 0) != self.state.term:
                continue
            if isinstance(fact, Assigned):
                self._settle_overlay(event, [])
            elif isinstance(fact, Submitted) and not fact.intake_seq:
                _, asks = self._proposed.pop(event.subject, ("", []))
                self._fresh.pop(event.subject, None)
                self._queue.discard(event.subject)
                failure = Failure(error.code, error.message)
                self.answers.extend((ask, Receipt(error=failure)) for ask in asks)
            elif isinstance(fact, Submitted) and error.code == "too_large":
                self._proposed.pop(event.subject, None)
                self._refuse(fact.intake_seq, event.subject, error, fact.reply)
            elif isinstance(fact, Submitted | Refused | Cancelled | Redriven | Configured):
                if error.code != "too_large" and not (isinstance(fact, Refused) and not fact.intake_seq):
                    self._again.append(event)
            else:
                self._rearm(event)

    def _place(self) -> None:
        """Give waiting tasks to free slots, submissions of this very commit included.

        Those are placed on the strength of an event that stands before theirs; if the fold refuses it, it
        refuses the placement too.
        """
        if not len(self._queue):
            return
        state, taken = self.state, self._taken
        members = [m for m in state.members.values() if m.capacity and self.links.reachable(m)]
        free = {m.id: m.capacity - len(m.running) - taken.get(m.id, 0) for m in members}
        for task_id, member in self._queue.place(members, free, self.settings.placements_max):
            fact = self._assignment(task_id, member.id)
            if fact is None or task_id in self._placing:
                continue  # gone, or an earlier placement is still on its way: it waits again after that
            self._placing[task_id] = (member.id, fact.epoch)
            taken[member.id] = taken.get(member.id, 0) + 1
            self._events.append(Event(task_id, fact))

    def _assignment(self, task_id: str, member: str) -> Assigned | None:
        task = self.state.tasks.get(task_id)
        if task is not None:
            fact = Assigned(term=self.state.term, epoch=task.epoch + 1, member=member)
            budget, tokens, steps = task.budget, task.spent_tokens, task.spent_steps
        elif task_id in self._fresh:
            fact = Assigned(term=self.state.term, epoch=1, member=member)
            budget, tokens, steps = self._fresh[task_id].budget, 0, 0
        else:
            return None
        if budget.tokens or budget.steps:
            fact.granted_tokens = left(budget.tokens, tokens)
            fact.granted_steps = left(budget.steps, steps)
        return fact

    def waiting(self) -> dict[str, int]:
        """How many tasks wait for each agent."""
        return self._queue.waiting()


_ACTS: Final[dict[type[fx.Effect], Callable[[Leader, Any, int], None]]] = {
    fx.Queued: Leader._queued,
    fx.Delayed: Leader._delayed,
    fx.Started: Leader._started,
    fx.Ended: Leader._ended,
    fx.Stopped: Leader._stopped,
    fx.ChildEnded: Leader._child_ended,
    fx.Offered: Leader._offered,
    fx.Gone: Leader._gone,
    fx.Refusal: Leader._refusal,
}
