"""What a leader's facts change. Each holds only in the term it was decided in, from the leader of that term."""

from __future__ import annotations

from sys import intern
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw

from swarmd.core import budgets
from swarmd.core import effects as fx
from swarmd.core.budget_facts import BUDGET_LEADER_TRANSITIONS
from swarmd.core.events import (
    Assigned,
    Cancelled,
    Configured,
    Elected,
    Expired,
    Fact,
    Failure,
    Fired,
    MemberLost,
    Redriven,
    Refused,
    Requeued,
    Scheduled,
    Settled,
    Submitted,
    Unscheduled,
)
from swarmd.core.ids import is_uuid7, slot_id
from swarmd.core.learning import LEARNING_TRANSITIONS
from swarmd.core.moves import Sink, end, enter, occupy, open_account, queue, retire
from swarmd.core.outcomes import EXPIRED, lost_members
from swarmd.core.state import EMPTY, USUAL, Attempt, Limits, Member, Planned, SwarmState, Task, tombstone
from swarmd.core.wait_facts import WAIT_TRANSITIONS, leads, reopen_waits

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.core.codec import Commit


def _elected(state: SwarmState, commit: Commit, index: int, subject: str, fact: Elected, out: Sink) -> str:
    if fact.term <= state.term:
        return "old_term"
    state.term = fact.term
    state.leader_writer, state.leader_boot = commit.writer, commit.boot
    out.append(fx.NewTerm(fact.term, commit.writer, commit.boot))
    return ""


def _configured(state: SwarmState, commit: Commit, index: int, subject: str, fact: Configured, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    state.limits = Limits(fact.live_tasks_max, fact.remembered_max, fact.dead_max, fact.losses_max)
    return ""


def _settled(state: SwarmState, commit: Commit, index: int, subject: str, fact: Settled, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    state.intake_seq = max(state.intake_seq, fact.intake)
    done = 0
    for untold in state.untold:
        if untold.seq > fact.told:
            break
        done += 1
    del state.untold[:done]
    return ""


def _submitted(state: SwarmState, commit: Commit, index: int, subject: str, fact: Submitted, out: Sink) -> str:
    if fact.term != state.term or commit.boot != state.leader_boot or commit.writer != state.leader_writer:
        return "not_leader"  # `leads`, without its call, here and in `_assigned`: half of what a leader writes
    if subject in state.tasks or subject in state.tombstones or subject in state.older_tombstones:
        return "repeated_id"
    if subject in state.dead:
        return "repeated_id"
    if subject <= state.forgotten and is_uuid7(subject):
        return "forgotten_id"
    _begin(state, subject, commit, index, fact, out)
    return ""


def _begin(state: SwarmState, subject: str, commit: Commit, index: int, fact: Submitted, out: Sink) -> None:
    """A task is wanted, by whomever."""
    place, at_ms = (commit.seq, index), commit.at_ms
    task = Task(
        subject,
        intern(fact.agent),
        fact.digest,
        place,
        Raw(bytes(fact.input)),
        input_blob=fact.input_blob,
        priority=fact.priority,
        deadline_at_ms=fact.deadline_at_ms,
        tenant=fact.tenant,
        reply=fact.reply and intern(fact.reply),
        packed=fact.packed,
        retry=fact.retry,
        budget=fact.budget,
        labels=fact.labels or EMPTY,
        requires=fact.requires or EMPTY,
        since_ms=at_ms,
        concurrency_key=fact.concurrency_key,
    )
    enter(state, task)
    if task.budget is not USUAL.budget:
        open_account(state, task, task.draws)
    state.counters.submitted += 1
    if fact.not_before_ms:
        task.state, task.not_before_ms = "delayed", fact.not_before_ms
        out.append(fx.Delayed(task, new=True))
    else:
        out.append(fx.Queued(task, new=True))


def _scheduled(state: SwarmState, commit: Commit, index: int, subject: str, fact: Scheduled, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    if fact.schedule.id != subject:
        return "other_schedule"
    schedule = msgspec.structs.replace(fact.schedule, input=Raw(bytes(fact.schedule.input)))
    planned = state.schedules.get(subject)
    if planned is None:
        planned = state.schedules[subject] = Planned(schedule, 0, fact.from_ms)
    planned.schedule = schedule
    planned.anchor_ms = schedule.not_before_ms or fact.from_ms
    planned.slot_ms = max(planned.slot_ms, fact.from_ms)
    out.append(fx.Rescheduled(subject))
    return ""


def _unscheduled(state: SwarmState, commit: Commit, index: int, subject: str, fact: Unscheduled, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    if state.schedules.pop(subject, None) is None:
        return "unknown_schedule"
    out.append(fx.Rescheduled(subject))
    return ""


def _fired(state: SwarmState, commit: Commit, index: int, subject: str, fact: Fired, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    planned = state.schedules.get(subject)
    if planned is None:
        return "unknown_schedule"
    if fact.slot_ms <= planned.slot_ms:
        return "repeated_slot"
    planned.slot_ms = fact.slot_ms
    out.append(fx.Rescheduled(subject))
    schedule, task_id = planned.schedule, slot_id(subject, fact.slot_ms)
    overlaps = schedule.overlap == "skip" and planned.task in state.tasks
    if overlaps or task_id in state.tasks or task_id in state.dead or tombstone(state, task_id) is not None:
        planned.skipped += 1
        return ""
    planned.fired += 1
    planned.fired_ms, planned.task = fact.slot_ms, task_id
    wanted = Submitted(
        term=fact.term,
        agent=schedule.agent,
        digest="",
        input=schedule.input,
        priority=schedule.priority,
        deadline_at_ms=fact.deadline_at_ms,
        tenant=schedule.tenant,
        retry=schedule.retry,
        budget=schedule.budget,
        labels={**schedule.labels, "schedule": subject, "slot_ms": str(fact.slot_ms)},
        requires=schedule.requires,
    )
    _begin(state, task_id, commit, index, wanted, out)
    return ""


def _refused(state: SwarmState, commit: Commit, index: int, subject: str, fact: Refused, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    state.counters.refused += 1
    out.append(fx.Refusal(subject, fact.failure, fact.reply))
    return ""


def _assigned(state: SwarmState, commit: Commit, index: int, subject: str, fact: Assigned, out: Sink) -> str:
    if fact.term != state.term or commit.boot != state.leader_boot or commit.writer != state.leader_writer:
        return "not_leader"
    task = state.tasks.get(subject)
    if task is None:
        return "unknown_task"
    member = state.members.get(fact.member)
    if member is None:
        return "unknown_member"
    epoch = fact.epoch
    if epoch != task.epoch + 1:
        return "stale_epoch"
    offered = member.runs(task.agent)
    if task.version and task.version not in offered:
        return "other_version"
    if task.state == "queued":
        journal, task.journal = task.journal, EMPTY
    elif task.state == "assigned" and len(task.attempts) == 1 and not task.paused:
        (other,) = task.attempts.values()
        if other.member == member.id:
            return "same_member"
        journal = dict(other.journal) if other.journal else EMPTY
    else:
        return "not_queued"
    task.version = task.version or offered[0]
    attempt = Attempt(epoch, member.id, journal, since_ms=commit.at_ms, begun=not journal)
    if state.accounts:
        names = budgets.names_of(state.accounts, task.draws, task.tenant)
        attempt.held = budgets.reserve(state.accounts, names, fact.grant)
    if task.epoch:
        state.idle.pop(subject, None)
    task.epoch = epoch
    task.state = "assigned"
    if task.attempts:
        task.attempts[epoch] = attempt
    else:
        task.attempts = {epoch: attempt}
    member.running[task.id] = epoch
    occupy(state, task, 1)
    out.append(fx.Started(task, attempt))
    return ""


def _requeued(state: SwarmState, commit: Commit, index: int, subject: str, fact: Requeued, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    task = state.tasks.get(subject)
    if task is None:
        return "unknown_task"
    if fact.reason != "undelivered":
        if task.state != ("backoff" if fact.reason == "retry" else "delayed") or task.epoch != fact.epoch:
            return "stale_epoch"
        queue(state, task, out)
        return ""
    if fact.epoch not in task.attempts:
        return "stale_epoch"
    attempt = retire(state, task, fact.epoch)
    out.append(fx.Stopped(subject, fact.epoch, state.members[attempt.member]))
    if not task.attempts:
        queue(state, task, out)
    elif task.concurrency_key:
        out.append(fx.Freed(task))
    return ""


def _end_by_leader(
    state: SwarmState, commit: Commit, index: int, subject: str, fact: Cancelled | Expired, out: Sink
) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    task = state.tasks.get(subject)
    if task is None:
        return "unknown_task"
    place = (commit.seq, index)
    if isinstance(fact, Cancelled):
        why = Failure("cancelled", fact.reason or "cancelled")
        end(state, fx.Ended(task, "cancelled", place, failure=why), out)
    else:
        end(state, fx.Ended(task, "expired", place, failure=EXPIRED), out)
    return ""


def _redriven(state: SwarmState, commit: Commit, index: int, subject: str, fact: Redriven, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    if subject not in state.dead or subject in state.tasks:
        return "not_dead"
    task = state.dead.pop(subject)
    state.tombstones.pop(subject, None)
    state.older_tombstones.pop(subject, None)
    task.failures = task.deadline_at_ms = 0
    task.victims = ()
    task.failed_by = ""
    enter(state, task)
    if task.epoch:
        state.idle[subject] = None
    open_account(state, task, tuple(name for name in task.draws if name != budgets.task_account(subject)))
    reopen_waits(state, task, out)
    queue(state, task, out)
    return ""


def _suspected_ms(state: SwarmState, member: Member) -> int:
    """Since when a member has run the last of its tasks that saw members lost before; 0 when it runs none.

    What kills members has mostly done so before. Whatever ran well until such a suspect came is a bystander; what came
    with it or after it is not, since the suspect may be one itself.
    """
    tasks = ((state.tasks.get(name), epoch) for name, epoch in member.running.items())
    suspects = (task.attempts[epoch].since_ms for task, epoch in tasks if task is not None and task.victims)
    return max(suspects, default=0)


def _member_lost(state: SwarmState, commit: Commit, index: int, subject: str, fact: MemberLost, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    member = state.members.pop(fact.member, None)
    if member is None:
        return "unknown_member"
    suspected_ms = _suspected_ms(state, member)
    for task_id, epoch in list(member.running.items()):
        task = state.tasks.get(task_id)
        if task is None:  # cancelled a moment ago, with its parent that this member ran too
            continue
        if task.victims or task.attempts[epoch].since_ms >= suspected_ms:
            task.victims = (*task.victims, fact.member)
        retire(state, task, epoch)
        if task.attempts:
            if task.concurrency_key:
                out.append(fx.Freed(task))
            continue
        if len(task.victims) > state.limits.losses_max:
            end(state, fx.Ended(task, "dead", (commit.seq, index), failure=lost_members(task.victims)), out)
        else:
            queue(state, task, out)
    out.append(fx.Gone(member))
    return ""


LEADER_TRANSITIONS: Final[dict[type[Fact], Callable[..., str]]] = {
    Elected: _elected,
    Configured: _configured,
    Settled: _settled,
    Submitted: _submitted,
    Scheduled: _scheduled,
    Unscheduled: _unscheduled,
    Fired: _fired,
    Refused: _refused,
    Assigned: _assigned,
    Requeued: _requeued,
    Cancelled: _end_by_leader,
    Expired: _end_by_leader,
    Redriven: _redriven,
    MemberLost: _member_lost,
    **WAIT_TRANSITIONS,
    **LEARNING_TRANSITIONS,
    **BUDGET_LEADER_TRANSITIONS,
}
