"""What members' facts change. A report counts only for a live epoch, from the writer and boot of its member."""

from __future__ import annotations

from sys import intern
from typing import TYPE_CHECKING, Final

from msgspec import UNSET, Raw

from swarmd.core import effects as fx
from swarmd.core.budgets import NO_LIMIT, bounded
from swarmd.core.events import (
    Awaited,
    Completed,
    Dropped,
    Fact,
    Failed,
    Failure,
    GrantWanted,
    MemberJoined,
    MemberLeft,
    Returned,
    Reunited,
    Sent,
    Spawned,
    Stepped,
    Suspended,
)
from swarmd.core.ids import child_id, node_member, swarm_member
from swarmd.core.kin import unpacked
from swarmd.core.learning import learn
from swarmd.core.moves import (
    NOTHING_SPENT,
    Sink,
    end,
    enter,
    open_account,
    queue,
    record,
    retire,
    spend,
    spend_last,
    wish_key,
)
from swarmd.core.state import EMPTY, Attempt, Member, SwarmState, Task
from swarmd.core.wait_facts import begin_wait, deliver, is_resolved

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.core.codec import Commit

#: Instead of the member at which a task has failed, once there are two.
_SEVERAL: Final = "*"
#: No child has a longer way ahead (ten years).
RANK_MS_MAX: Final = 10 * 366 * 86_400_000


def _member_joined(state: SwarmState, commit: Commit, index: int, subject: str, fact: MemberJoined, out: Sink) -> str:
    if fact.kind == "swarm":
        owned = commit.role == "delegate" and fact.member == swarm_member(commit.writer)
    else:
        owned = commit.role == "worker" and fact.member.startswith(node_member(commit.writer, commit.boot, 0)[:-1])
    if not owned:
        return "wrong_member"
    member = state.members.get(fact.member)
    moved = member is not None and member.boot != commit.boot
    if member is None:
        member = Member(fact.member, fact.kind, commit.role, commit.writer, commit.boot, [], 0)
        state.members[fact.member] = member
    member.boot = commit.boot
    member.agents, member.capacity = fact.agents, max(0, fact.capacity)
    member.node, member.labels, member.versions = fact.node, fact.labels, fact.versions
    member.idempotent = fact.idempotent
    out.append(fx.Offered(member, moved))
    return ""


def _member_left(state: SwarmState, commit: Commit, index: int, subject: str, fact: MemberLeft, out: Sink) -> str:
    member = state.members.get(fact.member)
    if member is None or not _speaks_for(commit, member):
        return "wrong_member"
    if member.running:
        return "still_running"
    del state.members[fact.member]
    out.append(fx.Gone(member))
    return ""


def _reunited(state: SwarmState, commit: Commit, index: int, subject: str, fact: Reunited, out: Sink) -> str:
    member = state.members.get(fact.member)
    return "" if member is not None and _speaks_for(commit, member) else "wrong_member"


def _speaks_for(commit: Commit, member: Member) -> bool:
    return commit.boot == member.boot and commit.writer == member.writer and commit.role == member.role


def reported(state: SwarmState, commit: Commit, subject: str, epoch: int) -> tuple[Task, Attempt] | str:
    """The live attempt that this commit's writer may report on, or why there is none."""
    task = state.tasks.get(subject)
    if task is None:
        return "after_verdict"
    attempt = task.attempts.get(epoch)
    if attempt is None:
        return "stale_epoch"
    member = state.members[attempt.member]
    if commit.boot != member.boot or commit.writer != member.writer or commit.role != member.role:
        return "wrong_member"
    return task, attempt


def _stepped(state: SwarmState, commit: Commit, index: int, subject: str, fact: Stepped, out: Sink) -> str:
    found = reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    task, attempt = found
    key, journal = fact.key, attempt.journal
    if key in journal:
        return "repeated_step"
    if journal:  # `record`, without its call
        journal[key] = (commit.seq, index)
    else:
        attempt.journal = {key: (commit.seq, index)}
    spend(state, task, attempt, fact.tokens, fact.cost_microusd, fact.ran_ms)
    return ""


def _awaited(state: SwarmState, commit: Commit, index: int, subject: str, fact: Awaited, out: Sink) -> str:
    found = reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    task, attempt = found
    if fact.key in attempt.journal:
        return "repeated_step"
    known = task.awaited.get(fact.key)
    place = known.place if known else (commit.seq, index)
    record(attempt, fact.key, place)
    spend(state, task, attempt)
    if known is None:
        begin_wait(state, task, fact, place, out)
    return ""


def _sent(state: SwarmState, commit: Commit, index: int, subject: str, fact: Sent, out: Sink) -> str:
    found = reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    task, attempt = found
    if fact.key in attempt.journal:
        return "repeated_step"
    record(attempt, fact.key, (commit.seq, index))
    spend(state, task, attempt)
    if fact.key not in task.sent:
        if task.sent:
            task.sent[fact.key] = None
        else:
            task.sent = {fact.key: None}
        deliver(state, task, fact.to, (commit.seq, index), out)
    return ""


def _dropped(state: SwarmState, commit: Commit, index: int, subject: str, fact: Dropped, out: Sink) -> str:
    found = reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    parent, attempt = found
    if fact.key in attempt.journal:
        return "repeated_step"
    record(attempt, fact.key, (commit.seq, index))
    spend(state, parent, attempt)
    why = Failure("cancelled", fact.reason or "its parent no longer needs it")
    for name in unpacked(subject, fact.children, len(parent.children)) or ():
        child = state.tasks.get(name)
        if child is not None and name in parent.children:
            end(state, fx.Ended(child, "cancelled", (commit.seq, index), failure=why), out)
    return ""


def _grant_wanted(state: SwarmState, commit: Commit, index: int, subject: str, fact: GrantWanted, out: Sink) -> str:
    found = reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    task, attempt = found
    held = attempt.held
    if held is None or fact.n != held.asked + 1 or held.asked != held.answered:
        return "repeated_wish"
    held.asked, held.wanted = fact.n, bounded(fact.total)
    state.wishes[wish_key(subject, fact.epoch)] = (subject, fact.epoch)
    out.append(fx.GrantAsked(task, attempt))
    return ""


def _spawned(state: SwarmState, commit: Commit, index: int, subject: str, fact: Spawned, out: Sink) -> str:
    found = reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    parent, attempt = found
    if fact.key in attempt.journal:
        return "repeated_step"
    child = child_id(subject, fact.n)
    if child in state.tasks and child not in parent.children:
        return "repeated_id"
    record(attempt, fact.key, (commit.seq, index))
    spend(state, parent, attempt)
    if child in parent.children:
        return ""
    task = Task(
        child,
        intern(fact.agent),
        "",
        (commit.seq, index),
        Raw(bytes(fact.input)),
        input_blob=fact.input_blob,
        priority=parent.priority if fact.priority is None else min(parent.priority, fact.priority),
        deadline_at_ms=parent.deadline_at_ms,
        tenant=parent.tenant,
        parent=subject,
        retry=parent.retry,
        budget=NO_LIMIT if fact.budget is UNSET else fact.budget,
        labels=fact.labels or EMPTY,
        requires=fact.requires or EMPTY,
        since_ms=parent.since_ms,
        rank_ms=min(max(0, fact.rank_ms), RANK_MS_MAX),
        concurrency_key=fact.concurrency_key,
    )
    if parent.children:
        parent.children[child] = None
    else:
        parent.children = {child: None}
    enter(state, task)
    task.draws = parent.draws
    if task.budget is not NO_LIMIT:
        open_account(state, task, parent.draws)
    state.counters.submitted += 1
    out.append(fx.Queued(task, new=True))
    return ""


def _suspended(state: SwarmState, commit: Commit, index: int, subject: str, fact: Suspended, out: Sink) -> str:
    found = reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    task, attempt = found
    wanted: list[list[str]] = []
    for told in fact.waits:
        names = unpacked(subject, told, len(task.children))
        if names is None or any(name not in task.children and name not in task.awaited for name in names):
            return "unknown_wait"
        wanted.append(names)
    if fact.spent is not NOTHING_SPENT:
        spend_last(state, task, attempt, fact.spent)
    for epoch, other in list(task.attempts.items()):
        if epoch != fact.epoch:  # of two hedged attempts the first that has done something goes on
            retire(state, task, epoch)
            out.append(fx.Stopped(subject, epoch, state.members[other.member]))
    retire(state, task, fact.epoch)
    groups = [{name: None for name in group if not is_resolved(task, name)} for group in wanted]
    if groups and all(groups):
        task.state, task.waits = "suspended", tuple(groups)
        if task.concurrency_key:
            out.append(fx.Freed(task))
    else:
        queue(state, task, out)
    return ""


def _returned(state: SwarmState, commit: Commit, index: int, subject: str, fact: Returned, out: Sink) -> str:
    found = reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    task, attempt = found
    if fact.spent is not NOTHING_SPENT:
        spend_last(state, task, attempt, fact.spent)
    retire(state, task, fact.epoch)
    if not task.attempts:
        queue(state, task, out)
    elif task.concurrency_key:
        out.append(fx.Freed(task))
    return ""


def _completed(state: SwarmState, commit: Commit, index: int, subject: str, fact: Completed, out: Sink) -> str:
    found = reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    task, attempt = found
    if fact.spent is not NOTHING_SPENT:
        spend_last(state, task, attempt, fact.spent)
    learn(state, task, attempt, commit.at_ms)
    end(
        state,
        fx.Ended(task, "completed", (commit.seq, index), fact.output, fact.output_blob),
        out,
        reporter=fact.epoch,
    )
    return ""


def _failed(state: SwarmState, commit: Commit, index: int, subject: str, fact: Failed, out: Sink) -> str:
    found = reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    task, attempt = found
    if fact.spent is not NOTHING_SPENT:
        spend_last(state, task, attempt, fact.spent)
    task.failures += 1
    elsewhere = task.failed_by not in ("", attempt.member)
    task.failed_by = _SEVERAL if elsewhere else attempt.member
    # What fails wherever it is tried says nothing of those who try it.
    if fact.retryable and (not elsewhere or state.members[attempt.member].quarantined):
        learn(state, task, attempt, commit.at_ms, failed=True)
    if fact.retryable and len(task.attempts) > 1:
        retire(state, task, fact.epoch)
        if task.concurrency_key:
            out.append(fx.Freed(task))
    elif fact.retryable and task.failures < task.retry.attempts_max:
        retire(state, task, fact.epoch)
        task.state = "backoff"
        task.retry_after_ms = fact.retry_after_ms
        out.append(fx.Delayed(task))
    else:
        end(
            state,
            fx.Ended(task, "dead", (commit.seq, index), failure=fact.failure),
            out,
            reporter=fact.epoch,
        )
    return ""


MEMBER_TRANSITIONS: Final[dict[type[Fact], Callable[..., str]]] = {
    MemberJoined: _member_joined,
    MemberLeft: _member_left,
    Reunited: _reunited,
    Stepped: _stepped,
    Awaited: _awaited,
    Sent: _sent,
    Dropped: _dropped,
    Spawned: _spawned,
    GrantWanted: _grant_wanted,
    Suspended: _suspended,
    Returned: _returned,
    Completed: _completed,
    Failed: _failed,
}
