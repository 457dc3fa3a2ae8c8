"""The orchestrator's machine: what to decide, and what to send once it is folded.

Pure: it is told the time, the folded commits and whatever arrived, and it hands back events to append
and messages to send. It decides only while it leads, and only after it has folded its own election.
Submissions go through its `Door`, placements through `Placing`; both keep what is decided but not folded
as overlays, which end when their commit is folded or could not be stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from swarmd.core import effects as fx
from swarmd.core.asks import Ask, Asks
from swarmd.core.clients import ASKED, ClientSide
from swarmd.core.codec import Commit, Garbage
from swarmd.core.commits import WINDOW
from swarmd.core.door import Door
from swarmd.core.events import (
    Assigned,
    Budgeted,
    Cancelled,
    Configured,
    Elected,
    Event,
    Failure,
    Fired,
    Granted,
    MemberLost,
    Quarantined,
    Readmitted,
    Redriven,
    Refused,
    Requeued,
    Settled,
    Submitted,
)
from swarmd.core.evolve import apply
from swarmd.core.granting import Granting
from swarmd.core.health import Links
from swarmd.core.office import LeaderSettings, OwedOutcome, ended_of, rest_of, start_of
from swarmd.core.outcomes import outcome_of
from swarmd.core.placing import Placing
from swarmd.core.quarantine import Wards
from swarmd.core.scaling import Scaling
from swarmd.core.schedules import NoCron, Planner, Slots
from swarmd.core.sharing import Sharing
from swarmd.core.state import Attempt, Member, SwarmState, Task, tombstone
from swarmd.core.timers import Timers, fact_due
from swarmd.core.wire import (
    ChildDone,
    Grant,
    Heartbeat,
    Instruct,
    Item,
    Outcome,
    Pause,
    Receipt,
    Stop,
    WaitDone,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.core.errors import Rejected
    from swarmd.core.health import LinkKey


class Leader(ClientSide):
    """One orchestrator, leading or standing by. `state` is its fold and nobody else's."""

    def __init__(
        self, state: SwarmState, writer: str, boot: str, settings: LeaderSettings, slots: Slots | None = None
    ) -> None:
        self.state = state
        self._slots = slots or NoCron()
        self.writer, self.boot = writer, boot
        self.settings = settings
        self.leading = False
        self.refusing = ""
        self.answers: list[tuple[Ask, Receipt | Outcome]] = []
        self.outcomes: dict[tuple[str, bool], list[Outcome]] = {}
        self.owed: list[OwedOutcome] = []
        self.links = Links(settings.health())
        self._events: list[Event] = []
        self._waiters: dict[str, list[Ask]] = {}
        self._asked = Asks()
        self._read: set[int] = set()
        self._settled_at_ms = self._ticked_at_ms = self._log_ms = 0
        self._new_office()

    def _new_office(self) -> None:
        """Nothing decided in an earlier office stands for anything any more."""
        self.timers = Timers()
        self.planner = Planner(self.state, self._slots)
        self.wards = Wards(self.state)
        self.placing = Placing(self.state, self.settings, self.wards)
        self.placing.folded(self._log_ms)
        self.granting = Granting(self.state, self.settings.budgets)
        self.sharing = Sharing(self.state, self.links)
        self.scaling = Scaling(self.settings.workers_idle_ms)
        self.door = Door(self.state, self.placing, self.settings)

    # --- folding ---

    def fold(self, commit: Commit | Garbage, now_ms: int) -> list[fx.Effect]:
        """Fold one commit and, while leading, act on what follows from it."""
        refused: list[int] = []
        effects = apply(self.state, commit, refused)
        for effect in effects:
            if isinstance(effect, fx.NewTerm):
                self._new_term(effect, now_ms)
        if isinstance(commit, Garbage):
            return effects
        self._log_ms = max(self._log_ms, commit.at_ms)
        if not self.leading:
            return effects
        self.placing.folded(commit.at_ms)
        for effect in effects:
            self._act(effect, now_ms)
        if commit.boot == self.boot and self._is_first_reading(commit.n):
            turned_down = frozenset(refused)
            for index, event in enumerate(commit.events):
                if isinstance(event, Event):
                    self._settle_overlay(event, effects, index not in turned_down)
            self._take_answers()
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
        if effect.new:
            self.timers.deadline(effect.task)
        self.placing.wait(effect.task)

    def _started(self, effect: fx.Started, now_ms: int) -> None:
        task, attempt = effect.task, effect.attempt
        if attempt.epoch in task.attempts:  # a later event of the same commit may have ended it
            self._send_start(self.state.members[attempt.member], task, attempt)
            self._watch(task, attempt, now_ms)

    def _watch(self, task: Task, attempt: Attempt, now_ms: int, *, anew: bool = True) -> None:
        """See to it that an attempt which may be hedged is looked at when it is late."""
        delay_ms = self.placing.hedging.started(task, attempt, anew=anew)
        if delay_ms:
            self.timers.late(task, attempt.epoch, now_ms + delay_ms)

    def _stopped(self, effect: fx.Stopped, now_ms: int) -> None:
        self.links.send(effect.member, Stop(effect.task, effect.epoch))

    def _child_ended(self, effect: fx.ChildEnded, now_ms: int) -> None:
        self._tell_attempts(effect.parent, ChildDone(effect.parent.id, effect.child, effect.place))

    def _delayed(self, effect: fx.Delayed, now_ms: int) -> None:
        if effect.new:
            self.timers.deadline(effect.task)
            self.timers.begin(effect.task)
        else:
            self.timers.back_off(effect.task, now_ms)
            self.placing.freed(effect.task)

    def _parked(self, effect: fx.Parked, now_ms: int) -> None:
        self.placing.ended(effect.task)

    def _rescheduled(self, effect: fx.Rescheduled, now_ms: int) -> None:
        self.planner.arm(effect.schedule, now_ms)
        self._fire(now_ms)

    def _fire(self, now_ms: int) -> None:
        self._events += self.planner.due(now_ms, bool(self.refusing) or self.door.is_full())

    def _wait_opened(self, effect: fx.WaitOpened, now_ms: int) -> None:
        self.timers.wait(effect.task, effect.key, effect.wait.until_ms)

    def _grant_asked(self, effect: fx.GrantAsked, now_ms: int) -> None:
        self.granting.wished()

    def _grant_answered(self, effect: fx.GrantAnswered, now_ms: int) -> None:
        self._tell_grant(effect.task, effect.attempt)

    def _tell_grant(self, task: Task, attempt: Attempt) -> None:
        held, member = attempt.held, self.state.members.get(attempt.member)
        if held is not None and member is not None:
            self.links.send(member, Grant(task.id, attempt.epoch, held.answered, held.total(), held.refused))

    def _tell_attempts(self, task: Task, item: Item) -> None:
        for attempt in task.attempts.values():
            self.links.send(self.state.members[attempt.member], item)

    def _wait_ended(self, effect: fx.WaitEnded, now_ms: int) -> None:
        self._tell_attempts(effect.task, WaitDone(effect.task.id, effect.key, effect.place))

    def _instructed(self, effect: fx.Instructed, now_ms: int) -> None:
        self._tell_attempts(effect.task, Instruct(effect.task.id, effect.place))

    def _pause_wanted(self, effect: fx.PauseWanted, now_ms: int) -> None:
        self._tell_attempts(effect.task, Pause(effect.task.id))

    def _offered(self, effect: fx.Offered, now_ms: int) -> None:
        self.links.offered(effect.member, now_ms)
        if effect.moved:
            self._resend_running(effect.member)

    def _gone(self, effect: fx.Gone, now_ms: int) -> None:
        self.links.gone(effect.member)
        self.wards.gone(effect.member)
        if self.placing.affinity is not None:
            self.placing.affinity.gone(effect.member)

    def _judged(self, effect: fx.Judged, now_ms: int) -> None:
        self.wards.judged(effect.member)

    def _freed(self, effect: fx.Freed, now_ms: int) -> None:
        self.placing.freed(effect.task)

    def _refusal(self, effect: fx.Refusal, now_ms: int) -> None:
        if effect.reply:
            refused = Outcome(effect.subject, "cancelled", error=effect.failure, seq=self.state.seq)
            self.outcomes.setdefault((effect.reply, False), []).append(refused)

    def _settle_overlay(self, event: Event, effects: list[fx.Effect], accepted: bool) -> None:
        """One of our own events is folded, accepted or not: what stood in for it goes."""
        fact = event.data
        if not isinstance(fact, Assigned | Submitted | Refused):
            self._settle_other(event, accepted)
        elif fact.term != self.state.term:
            return  # an earlier office of ours: its overlays went with it
        elif isinstance(fact, Assigned):
            self.placing.settle(event.subject, fact.epoch)
        elif isinstance(fact, Submitted):
            self.door.settle_submitted(event.subject, fact, event)
        else:
            accepted = any(isinstance(effect, fx.Refusal) and effect.subject == event.subject for effect in effects)
            self.door.settle_refused(fact, event, accepted)

    def _settle_other(self, event: Event, accepted: bool) -> None:
        if isinstance(event.data, ASKED):
            late = Failure("too_late", "the task has moved on: ask for its state")
            self._answer(event, Receipt(event.subject) if accepted else Receipt(error=late))
        if isinstance(event.data, Granted | Budgeted):
            self.granting.settle(event)
        elif not accepted:
            self._rearm(event)

    def _rearm(self, event: Event) -> None:
        """What time made necessary did not come about (the commit was void or not stored): see it again."""
        fact, task = event.data, self.state.tasks.get(event.subject)
        if isinstance(fact, MemberLost):
            if fact.member in self.state.members:
                self.links.not_lost(fact.member)
        elif isinstance(fact, Quarantined | Readmitted):
            self.wards.not_stored(fact.member)
        elif isinstance(fact, Fired) and fact.term == self.state.term:
            self.planner.arm(event.subject, self._ticked_at_ms)
        elif task is not None:
            self.timers.again(fact, task, self._ticked_at_ms)

    def _ended(self, ended: fx.Ended, now_ms: int) -> None:
        task = ended.task
        self.placing.ended(task)
        if self.placing.affinity is not None and ended.state == "completed":
            self.placing.affinity.did_well(self.state.tombstones[task.id].member, task.agent, bytes(task.input))
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
        for _, asks in self.door.proposed.values():
            self.answers.extend((ask, Receipt(error=again)) for ask in asks)
        for task_id, asks in self._waiters.items():
            self.answers.extend((ask, Outcome(task_id, "queued", error=again, final=False)) for ask in asks)
        self.answers.extend((ask, Receipt(error=again)) for ask in self._asked)
        self.answers.extend(self.door.answers)
        self._waiters, self._asked, self._events = {}, Asks(), []
        self.outcomes, self.owed = {}, []
        self._new_office()

    def _take_office(self, now_ms: int) -> None:
        """Derive everything a leader owes from the fold alone."""
        state, limits = self.state, self.settings.limits
        self.leading = True
        self._ticked_at_ms = self._settled_at_ms = now_ms
        self._new_office()
        self.placing.begin(now_ms)
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
        self._declare_budgets(now_ms)
        self._events += self.planner.take_office(self.settings.schedules, now_ms)
        for task in state.tasks.values():
            self.timers.deadline(task)
            if task.state == "queued":
                self.placing.wait(task)
            elif task.state == "backoff":
                self.timers.back_off(task, now_ms)
            elif task.state == "delayed":
                self.timers.begin(task)
            self._owe_waits(task)
            for attempt in task.attempts.values():
                self._watch(task, attempt, now_ms, anew=False)
            if task.attempts:
                for item in ended_of(task):
                    self._tell_attempts(task, item)
                for attempt in task.attempts.values():  # it may have heard only the first parts of it
                    for part in rest_of(task, attempt):
                        self.links.send(state.members[attempt.member], part)
        for untold in state.untold:
            buried = tombstone(state, untold.task)
            if buried is not None:
                self.owed.append(OwedOutcome(untold.task, untold.reply, untold.packed, buried))

    def _declare_budgets(self, now_ms: int) -> None:
        fact = self.granting.due(now_ms)
        if fact is not None:
            self._events.append(Event(self.state.swarm, fact))

    def _owe_waits(self, task: Task) -> None:
        """Waits end in any office; what a running task may not have been told is told again."""
        for key, wait in task.awaited.items():
            if wait.resolved is None:
                self.timers.wait(task, key, wait.until_ms)
            elif task.attempts:
                self._tell_attempts(task, WaitDone(task.id, key, wait.resolved))
        for attempt in task.attempts.values():
            if attempt.held is not None and attempt.held.answered:
                self._tell_grant(task, attempt)
        if task.attempts:
            for place in task.told:
                self._tell_attempts(task, Instruct(task.id, place))
            if task.paused:
                self._tell_attempts(task, Pause(task.id))

    # --- members ---

    def heartbeat(self, beat: Heartbeat, now_ms: int) -> None:
        """A process of members is alive; what it lists is compared with the fold once that is as new."""
        self.links.heard(beat, self.state, now_ms)

    def unheard(self, key: LinkKey, now_ms: int) -> None:
        """The broker says that nobody listens where this process' work is sent."""
        if self.leading:
            self.links.unheard(key, now_ms)

    def _resend_running(self, member: Member) -> None:
        """A child swarm has a new delegate: hand it every live attempt again, under the same epochs."""
        for task_id, epoch in member.running.items():
            self._resend(member, task_id, epoch)

    def _resend(self, member: Member, task_id: str, epoch: int) -> None:
        task = self.state.tasks[task_id]
        self._send_start(member, task, task.attempts[epoch])

    def _send_start(self, member: Member, task: Task, attempt: Attempt) -> None:
        self.links.send(member, start_of(task, attempt))
        for item in rest_of(task, attempt):
            self.links.send(member, item)

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
            self.links.forgive(stall, now_ms)
        elif now_ms < self._ticked_at_ms - self.settings.stall_ms:
            self.resign()  # the clock went back: nothing that was set by it would come about for a long time
            return
        self._ticked_at_ms = now_ms
        self.placing.tick(now_ms)
        self._events += self.wards.due(now_ms)
        self._due(now_ms)
        self._fire(now_ms)
        self._declare_budgets(now_ms)
        self._reconcile()
        self.scaling.tick(self, now_ms)
        for child, recall in self.sharing.due(self.placing.overlays, now_ms):
            self.links.send(child, recall)
        for member in self.links.lapsed(now_ms):
            self._events.append(Event(member, MemberLost(term=self.state.term, member=member)))
        if now_ms - self._settled_at_ms >= self.settings.settle_ms:
            self._settle(now_ms)

    def _due(self, now_ms: int) -> None:
        for timer in self.timers.due(now_ms):
            task = self.state.tasks.get(timer.task)
            if timer.kind == "late":
                if task is not None:
                    self.placing.hedging.late(task, timer.epoch)
                continue
            fact = fact_due(timer, task, self.state.term, now_ms) if task else None
            if fact is not None:
                self._events.append(Event(timer.task, fact))

    def _settle(self, now_ms: int) -> None:
        """Say in the log which outcomes were sent and how far the intake is folded, if that has moved."""
        self._settled_at_ms = now_ms
        self._events.extend(self.door.again)
        self.door.again = []
        intake = self.door.intake_done()
        told = self.state.seq if self.state.untold and not self.outcomes and not self.owed else 0
        if told or intake > self.state.intake_seq:
            self._events.append(Event(self.state.swarm, Settled(term=self.state.term, told=told, intake=intake)))

    @property
    def intake_read(self) -> int:
        """The last intake sequence that was handed in."""
        return self.door.intake_read

    def decide(self) -> list[Event]:
        """Every event that is ready to be stored, placements last; called when the writer is free."""
        if not self.leading:
            return []
        # The door first: a cancellation may be of a task that is only proposed, and must not overtake it.
        events, self.door.events = self.door.events, []
        events += self._events
        self._events = []
        events += self.granting.decide()
        if self.granting.declared:  # an attempt that starts before its limits are folded would escape them
            events += self.placing.decide(self.links, self.settings.placements_max)
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
                self.placing.settle(event.subject, fact.epoch)
            elif isinstance(fact, Granted | Budgeted):
                self.granting.settle(event)
            elif isinstance(fact, Submitted):
                self.door.dropped(event.subject, fact, event, error)
            elif isinstance(fact, Refused | Cancelled | Redriven | Configured):
                if error.code != "too_large" and not (isinstance(fact, Refused) and not fact.intake_seq):
                    self.door.again.append(event)
            else:
                if isinstance(fact, ASKED):
                    self._answer(event, Receipt(error=Failure(error.code, error.message)))
                self._rearm(event)
        self._take_answers()

    def _take_answers(self) -> None:
        self.answers += self.door.answers
        self.door.answers = []

    def waiting(self) -> dict[str, int]:
        """How many tasks wait for each agent."""
        return self.placing.waiting()


_ACTS: Final[dict[type[fx.Effect], Callable[[Leader, Any, int], None]]] = {
    fx.Queued: Leader._queued,
    fx.Delayed: Leader._delayed,
    fx.Parked: Leader._parked,
    fx.Rescheduled: Leader._rescheduled,
    fx.PauseWanted: Leader._pause_wanted,
    fx.Instructed: Leader._instructed,
    fx.WaitOpened: Leader._wait_opened,
    fx.WaitEnded: Leader._wait_ended,
    fx.GrantAsked: Leader._grant_asked,
    fx.GrantAnswered: Leader._grant_answered,
    fx.Started: Leader._started,
    fx.Ended: Leader._ended,
    fx.Stopped: Leader._stopped,
    fx.ChildEnded: Leader._child_ended,
    fx.Offered: Leader._offered,
    fx.Gone: Leader._gone,
    fx.Judged: Leader._judged,
    fx.Freed: Leader._freed,
    fx.Refusal: Leader._refusal,
}
