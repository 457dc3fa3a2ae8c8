"""What a leader is set up with, what it hands to members, and the refusals it has words for. It decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field

from swarmd.core.budgets import NO_LIMIT
from swarmd.core.errors import Conflict, Rejected
from swarmd.core.events import Limit, Schedule
from swarmd.core.health import HealthSettings
from swarmd.core.keys import KeyPolicy
from swarmd.core.kin import PLAIN_MAX, TOLD_MAX, Run, Verdict, runs, verdicts
from swarmd.core.placement import TenantPolicy
from swarmd.core.policies import PlacementSettings
from swarmd.core.state import Attempt, Limits, Task, Tombstone
from swarmd.core.wire import ChildDone, ChildrenDone, Item, Rest, Start

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Left out of what is sent, as any plain empty dictionary is; nobody writes into it.
_NO_ENTRIES: Final[dict[str, Any]] = {}
#: How far the clock that made an id may be ahead of the leader's.
AHEAD_MS_MAX: Final = 60_000


class LeaderSettings(Struct, frozen=True):
    """How a leader behaves; times in milliseconds. `schedules` are the declared ones, by id.

    `budgets` are limits of the swarm and its tenants, by account: "swarm", "tenant:NAME". `keys` are policies of
    concurrency keys; a name that ends in `*` is for all that begin so.
    """

    limits: Limits = Limits()
    lease_ms: int = 2_000
    resend_ms: int = 600
    gone_ms: int = 700
    phi_lost: float = 8.0
    settle_ms: int = 500
    stall_ms: int = 500
    placements_max: int = 512
    budgets: dict[str, Limit] = field(default_factory=dict)
    schedules: dict[str, Schedule] = field(default_factory=dict)
    placement: PlacementSettings = PlacementSettings()
    tenants: dict[str, TenantPolicy] = field(default_factory=dict)
    keys: dict[str, KeyPolicy] = field(default_factory=dict)
    workers_idle_ms: int = 60_000

    def health(self) -> HealthSettings:
        """What concerns the links to members."""
        return HealthSettings(self.lease_ms, self.resend_ms, self.gone_ms, self.phi_lost)


class OwedOutcome(Struct, frozen=True):
    """An outcome whose verdict must be read from the log first (after an election, or long after the end)."""

    task: str
    reply: str
    packed: bool
    buried: Tombstone


def start_of(task: Task, attempt: Attempt) -> Start:
    """What a member needs to run this attempt; of very many steps and children `rest_of` has the rest."""
    held = attempt.held
    many = len(attempt.journal) > PLAIN_MAX or len(task.children) > PLAIN_MAX
    steps, done = _packed(task, attempt) if many else ((), ())
    more = len(steps) + len(done) > TOLD_MAX
    return Start(
        task.id,
        attempt.epoch,
        attempt.member,
        task.agent,
        task.input,
        task.input_blob,
        () if many else list(attempt.journal.values()),
        _NO_ENTRIES if many else task.children or _NO_ENTRIES,
        task.deadline_at_ms,
        held.total() if held is not None else NO_LIMIT,
        task.tenant,
        task.priority,
        task.labels or _NO_ENTRIES,
        {key: wait.resolved for key, wait in task.awaited.items() if wait.resolved} if task.awaited else {},
        task.told,
        task.version,
        () if more else steps,
        () if more else done,
        more,
    )


def _packed(task: Task, attempt: Attempt) -> tuple[Sequence[Run], Sequence[Verdict]]:
    return runs(attempt.journal.values()), verdicts(task.children.items())


def rest_of(task: Task, attempt: Attempt) -> Iterator[Rest]:
    """What `start_of` has no room for, in items that each fit into a message."""
    if len(attempt.journal) + len(task.children) <= TOLD_MAX:
        return
    steps, done = _packed(task, attempt)
    if len(steps) + len(done) <= TOLD_MAX:
        return
    parts = [Rest(task.id, attempt.epoch, steps=steps[n : n + TOLD_MAX]) for n in range(0, len(steps), TOLD_MAX)]
    parts += [Rest(task.id, attempt.epoch, done=done[n : n + TOLD_MAX]) for n in range(0, len(done), TOLD_MAX)]
    for n, part in enumerate(parts):
        part.n, part.last = n, n == len(parts) - 1
        yield part


def ended_of(task: Task) -> Iterator[Item]:
    """What a new leader tells a running attempt of its children, in the order of the log, as it was first told."""
    ended = sorted((place, child) for child, place in task.children.items() if place is not None)
    if len(ended) <= PLAIN_MAX:
        for place, child in ended:
            yield ChildDone(task.id, child, place)
        return
    told = verdicts((child, place) for place, child in ended)
    for first in range(0, len(told), TOLD_MAX):
        yield ChildrenDone(task.id, told[first : first + TOLD_MAX])


def too_old(task_id: str) -> Rejected:
    return Rejected("id_too_old", f"id {task_id} is older than what is remembered: submit under a new id")


def id_taken(task_id: str) -> Conflict:
    return Conflict("id_taken", f"id {task_id} belongs to a task with another agent or input")
