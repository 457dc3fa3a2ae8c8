"""What clients ask of a leader: submissions, commands about tasks, and waiting for their ends.

A command is answered with what the fold made of it, never before. Must not know how requests arrive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from swarmd.core.errors import Conflict, Rejected
from swarmd.core.events import (
    Cancelled,
    Escalated,
    Event,
    Paused,
    Rated,
    Recalled,
    Redriven,
    Requeued,
    Resolved,
    Scheduled,
    Signalled,
    Told,
    Unpaused,
    Unscheduled,
)
from swarmd.core.state import tombstone
from swarmd.core.wire import Outcome

if TYPE_CHECKING:
    from swarmd.core.asks import Ask, Asks
    from swarmd.core.door import Door
    from swarmd.core.state import SwarmState, Tombstone
    from swarmd.core.wire import Feedback, Receipt, Submission

#: What is decided because somebody asked for it, and answered when it is folded.
ASKED: Final = (
    Cancelled,
    Redriven,
    Requeued,
    Recalled,
    Rated,
    Resolved,
    Escalated,
    Signalled,
    Told,
    Paused,
    Unpaused,
    Scheduled,
    Unscheduled,
)


class ClientSide:
    """The part of a leader that clients talk to."""

    state: SwarmState
    leading: bool
    refusing: str
    door: Door
    answers: list[tuple[Ask, Receipt | Outcome]]
    _events: list[Event]
    _asked: Asks
    _waiters: dict[str, list[Ask]]

    def submit(self, submission: Submission, task_id: str, now_ms: int, packed: bool, ask: Ask) -> Receipt | None:
        """Decide on a checked submission. None: the answer to `ask` follows once the fold has accepted it.

        Raises `Rejected` ("not_leader", "swarm_full", "store_full", "id_too_old") or `Conflict` ("id_taken").
        """
        self.require_office()
        return self.door.submit(submission, task_id, now_ms, packed, ask, self.refusing)

    def intake(self, seq: int, task_id: str, raw: tuple[Submission | Rejected, str], now_ms: int) -> None:
        """What `parse_raw` made of the intake's message at `seq`; whoever leads next reads it again."""
        if self.leading:
            self.door.intake(seq, task_id, raw, now_ms, self.refusing)

    def refuse(self, subject: str, error: Rejected | Conflict) -> None:
        """Record that a request was turned away."""
        if self.leading:
            self.door.refuse(subject, error)

    def require_office(self) -> None:
        """Raises `Rejected("not_leader")` from whoever does not lead."""
        if not self.leading:
            raise Rejected("not_leader", "this orchestrator does not lead: ask again")

    def cancel(self, task_id: str, reason: str, ask: Ask = None) -> None:
        """Cancel a live task and its children; `ask` is answered when the fold has done it."""
        self.require_live(task_id)
        self.propose(Event(task_id, Cancelled(term=self.state.term, reason=reason[:500])), ask)

    def redrive(self, task_id: str, ask: Ask = None) -> None:
        """Give a dead task new attempts; `ask` is answered when the fold has done it."""
        self.require_office()
        if task_id not in self.state.dead:
            raise Rejected("not_dead", f"task {task_id} is not among the dead letters")
        self.propose(Event(task_id, Redriven(term=self.state.term)), ask)

    def recall(self, task_id: str, reason: str, ask: Ask = None) -> None:
        """Give up a task that nobody has begun, since it is to be placed elsewhere; `ask` hears whether it was so."""
        self.require_live(task_id)
        self.propose(Event(task_id, Recalled(term=self.state.term, reason=reason[:500])), ask)

    def rate(self, feedback: Feedback, ask: Ask = None) -> None:
        """Record a judgement of a finished task. Raises `Rejected` ("unknown_task", "not_finished")."""
        self.require_office()
        if feedback.task in self.state.tasks:
            raise Rejected("not_finished", f"task {feedback.task} has no result yet that could be judged")
        if tombstone(self.state, feedback.task) is None:
            raise Rejected("unknown_task", f"no finished task {feedback.task} is remembered")
        fact = Rated(term=self.state.term, score=feedback.score, comment=feedback.comment, by=feedback.by)
        self.propose(Event(feedback.task, fact), ask)

    def propose(self, event: Event, ask: Ask = None) -> None:
        """Have an event stored that somebody asked for; `ask` is answered with what the fold made of it.

        Raises `Rejected("not_leader")`.
        """
        self.require_office()
        self._asked.add(event, ask)
        self._events.append(event)

    def _answer(self, event: Event, receipt: Receipt) -> None:
        ask = self._asked.take(event)
        if ask is not None:
            self.answers.append((ask, receipt))

    def require_live(self, task_id: str) -> None:
        """Raises `Rejected` ("not_leader", "finished", "unknown_task") for what is no live task of this leader."""
        self.require_office()
        if task_id not in self.state.tasks and task_id not in self.door.proposed:
            buried = tombstone(self.state, task_id)
            if buried is not None:
                raise Rejected("finished", f"task {task_id} is already {buried.state}")
            raise Rejected("unknown_task", f"no task {task_id} is known")

    def await_outcome(self, task_id: str, ask: Ask) -> Tombstone | None:
        """Answer `ask` when the task ends; for a finished task, return its tombstone instead."""
        self.require_office()
        buried = tombstone(self.state, task_id)
        if buried is not None and task_id not in self.state.tasks:
            return buried
        if task_id not in self.state.tasks and task_id not in self.door.proposed:
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
