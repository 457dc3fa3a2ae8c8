"""Verdicts as clients hear them: from the effect that just ended a task, or from the log long after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from swarmd.core.codec import Commit, Garbage
from swarmd.core.events import Cancelled, Completed, Event, Expired, Failed, Failure, MemberLost, Recalled, Spending
from swarmd.core.wire import Outcome

if TYPE_CHECKING:
    from swarmd.core.effects import Ended
    from swarmd.core.state import Place, TaskState

EXPIRED: Final = Failure("expired", "the deadline passed before a verdict")
PARENT_ENDED: Final = Failure("parent_ended", "its parent ended")
#: How the verdict on a task says that nobody had begun it when it was wanted elsewhere.
RECALLED: Final = "recalled"


def lost_members(victims: tuple[str, ...] = ()) -> Failure:
    """The end of a task that took its members with it."""
    named = f": {', '.join(victims)}" if victims else ""
    return Failure("lost_members", f"too many members were lost while running it{named}")


def recalled(reason: str) -> Failure:
    """The end of a task that is to be placed elsewhere."""
    return Failure(RECALLED, reason or "it is to be placed elsewhere")


def outcome_of(ended: Ended) -> Outcome:
    """A verdict that was just folded."""
    task = ended.task
    outcome = Outcome(task.id, ended.state, attempts=task.epoch, seq=ended.place[0], error=ended.failure)
    outcome.spent = Spending(task.spent_tokens, task.spent_microusd, task.spent_steps, task.ran_ms)
    if ended.state == "completed":
        outcome.output, outcome.output_blob = ended.output, ended.output_blob
    return outcome


def outcome_at(
    commit: Commit | Garbage,
    task_id: str,
    place: Place,
    state: TaskState | None = None,
    victims: tuple[str, ...] = (),
) -> Outcome:
    """A verdict read back: `commit` is what the log holds at the verdict's sequence, `state` the verdict if known.

    A child ends with its parent and a lost member's tasks with the member, so the event may be another subject's:
    of a task that ended with a member only `state` tells whether it was the member's or a child of such a one.
    """
    seq, index = place
    event = commit.events[index] if isinstance(commit, Commit) and index < len(commit.events) else None
    fact = event.data if isinstance(event, Event) else None
    if isinstance(fact, MemberLost) and state != "cancelled":
        return Outcome(task_id, "dead", error=lost_members(victims), seq=seq)
    if not isinstance(event, Event) or event.subject != task_id:
        return Outcome(task_id, "cancelled", error=PARENT_ENDED, seq=seq)
    if isinstance(fact, Completed):
        return Outcome(task_id, "completed", fact.output, fact.output_blob, attempts=fact.epoch, seq=seq)
    if isinstance(fact, Failed):
        return Outcome(task_id, "dead", error=fact.failure, attempts=fact.epoch, seq=seq)
    if isinstance(fact, Expired):
        return Outcome(task_id, "expired", error=EXPIRED, seq=seq)
    if isinstance(fact, Recalled):
        return Outcome(task_id, "cancelled", error=recalled(fact.reason), seq=seq)
    reason = fact.reason if isinstance(fact, Cancelled) else ""
    return Outcome(task_id, "cancelled", error=Failure("cancelled", reason or "cancelled"), seq=seq)
