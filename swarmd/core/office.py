"""What a leader is set up with, what it hands to members, and the refusals it has words for. It decides nothing."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from swarmd.core.errors import Conflict, Rejected
from swarmd.core.state import Attempt, Limits, SwarmState, Task, Tombstone
from swarmd.core.wire import Start

#: How far the clock that made an id may be ahead of the leader's.
AHEAD_MS_MAX: Final = 60_000


class LeaderSettings(Struct, frozen=True):
    """How a leader behaves; times in milliseconds."""

    limits: Limits = Limits()
    lease_ms: int = 2_000
    resend_ms: int = 600
    settle_ms: int = 500
    stall_ms: int = 500
    placements_max: int = 512


class OwedOutcome(Struct, frozen=True):
    """An outcome whose verdict must be read from the log first (after an election, or long after the end)."""

    task: str
    reply: str
    packed: bool
    buried: Tombstone


def start_of(state: SwarmState, task: Task, attempt: Attempt) -> Start:
    """What a member needs to run this attempt."""
    tokens, steps = grant(state, task)
    return Start(
        task.id,
        attempt.epoch,
        attempt.member,
        task.agent,
        task.input,
        task.input_blob,
        list(attempt.journal.values()),
        task.children,
        task.deadline_at_ms,
        tokens,
        steps,
        task.tenant,
        task.priority,
        task.labels,
        {key: wait.resolved for key, wait in task.awaited.items() if wait.resolved is not None},
        task.told,
        task.version,
    )


def too_old(task_id: str) -> Rejected:
    return Rejected("id_too_old", f"id {task_id} is older than what is remembered: submit under a new id")


def id_taken(task_id: str) -> Conflict:
    return Conflict("id_taken", f"id {task_id} belongs to a task with another agent or input")


def grant(state: SwarmState, task: Task) -> tuple[int, int]:
    """Tokens and steps that an attempt may spend without asking: 0 for no limit, -1 when nothing is left.

    A family has one pot: what a child spends is spent by its parents too, and the least that is left counts.
    """
    tokens = steps = 0
    kin: Task | None = task
    while kin is not None:
        budget = kin.budget
        if budget.tokens:
            tokens = _less(tokens, budget.tokens - kin.spent_tokens)
        if budget.steps:
            steps = _less(steps, budget.steps - kin.spent_steps)
        kin = state.tasks.get(kin.parent) if kin.parent else None
    return tokens, steps


def _less(known: int, remaining: int) -> int:
    found = remaining if remaining > 0 else -1
    return min(known, found) if known else found
