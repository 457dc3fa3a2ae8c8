"""The fold: one commit changes the state it owns, deterministically, and says what follows from it.

It reads nothing but the log: no clock, no configuration. It never fails; what is stale by epoch, from the
wrong member, of a role without authority, or after a verdict changes nothing and is counted by reason.
It may mutate in place, since it runs tens of thousands of times a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec import Raw

from swarmd.core import effects as fx
from swarmd.core.codec import Commit, Garbage
from swarmd.core.commits import admit
from swarmd.core.events import (
    AUTHORITY,
    Assigned,
    Cancelled,
    Completed,
    Configured,
    Elected,
    Expired,
    Fact,
    Failed,
    Failure,
    MemberJoined,
    MemberLeft,
    MemberLost,
    Redriven,
    Refused,
    Requeued,
    Returned,
    Settled,
    Spawned,
    Stepped,
    Submitted,
    Suspended,
)
from swarmd.core.ids import child_id, is_uuid7, node_member, swarm_member
from swarmd.core.state import Attempt, Limits, Member, Place, SwarmState, Task, TaskState, Tombstone, Untold, tombstone

Sink = list[fx.Effect]
#: A transition returns why it changed nothing, or "" when it was accepted.
Transition = Callable[[SwarmState, Commit, int, str, Any, Sink], str]


def apply(state: SwarmState, commit: Commit | Garbage, refused: list[int] | None = None) -> Sink:
    """Fold one commit; return the effects of its accepted events, in order.

    `refused` collects the indexes of events that changed nothing, for readers who tell events on.
    """
    out: Sink = []
    state.seq = commit.seq
    state.message_id = commit.message_id
    if isinstance(commit, Garbage):
        state.counters.garbage += 1
        return out
    why = admit(state, f"{commit.role}/{commit.writer}/{commit.boot}", commit.n, commit.seen, commit.seq)
    if why:
        _ignore(state, why)
        if refused is not None:
            refused.extend(range(len(commit.events)))
        return out
    for index, event in enumerate(commit.events):
        if isinstance(event, Garbage):
            state.counters.garbage += 1
            continue
        fact = event.data
        kind = type(fact)
        if commit.role in AUTHORITY[kind]:
            why = TRANSITIONS[kind](state, commit, index, event.subject, fact, out)
        else:
            why = "wrong_role"
        if why:
            _ignore(state, why)
            if refused is not None:
                refused.append(index)
    return out


def _ignore(state: SwarmState, why: str) -> None:
    ignored = state.counters.ignored
    ignored[why] = ignored.get(why, 0) + 1


# --- the leader's facts ----------------------------------------------------------------------------


def _leads(state: SwarmState, commit: Commit, term: int) -> bool:
    return term == state.term and commit.boot == state.leader_boot and commit.writer == state.leader_writer


def _elected(state: SwarmState, commit: Commit, index: int, subject: str, fact: Elected, out: Sink) -> str:
    if fact.term <= state.term:
        return "old_term"
    state.term = fact.term
    state.leader_writer, state.leader_boot = commit.writer, commit.boot
    out.append(fx.NewTerm(fact.term, commit.writer, commit.boot))
    return ""


def _configured(state: SwarmState, commit: Commit, index: int, subject: str, fact: Configured, out: Sink) -> str:
    if not _leads(state, commit, fact.term):
        return "not_leader"
    state.limits = Limits(fact.live_tasks_max, fact.remembered_max, fact.dead_max, fact.losses_max)
    return ""


def _settled(state: SwarmState, commit: Commit, index: int, subject: str, fact: Settled, out: Sink) -> str:
    if not _leads(state, commit, fact.term):
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
    if not _leads(state, commit, fact.term):
        return "not_leader"
    if subject in state.tasks or tombstone(state, subject) is not None or subject in state.dead:
        return "repeated_id"
    if subject <= state.forgotten and is_uuid7(subject):
        return "forgotten_id"
    task = Task(
        subject,
        fact.agent,
        fact.digest,
        (commit.seq, index),
        Raw(bytes(fact.input)),
        input_blob=fact.input_blob,
        priority=fact.priority,
        deadline_at_ms=fact.deadline_at_ms,
        tenant=fact.tenant,
        reply=fact.reply,
        packed=fact.packed,
        retry=fact.retry,
        budget=fact.budget,
        labels=fact.labels,
        requires=fact.requires,
    )
    state.tasks[subject] = task
    state.counters.submitted += 1
    out.append(fx.Queued(task, new=True))
    return ""


def _refused(state: SwarmState, commit: Commit, index: int, subject: str, fact: Refused, out: Sink) -> str:
    if not _leads(state, commit, fact.term):
        return "not_leader"
    state.counters.refused += 1
    out.append(fx.Refusal(subject, fact.failure, fact.reply))
    return ""


def _assigned(state: SwarmState, commit: Commit, index: int, subject: str, fact: Assigned, out: Sink) -> str:
    if not _leads(state, commit, fact.term):
        return "not_leader"
    task = state.tasks.get(subject)
    if task is None:
        return "unknown_task"
    member = state.members.get(fact.member)
    if member is None:
        return "unknown_member"
    if fact.epoch != task.epoch + 1:
        return "stale_epoch"
    if task.state == "queued":
        journal, task.journal = task.journal, {}
    elif task.state == "assigned" and len(task.attempts) == 1:
        (other,) = task.attempts.values()
        if other.member == fact.member:
            return "same_member"
        journal = dict(other.journal)
    else:
        return "not_queued"
    attempt = Attempt(fact.epoch, fact.member, journal)
    task.epoch = fact.epoch
    task.state = "assigned"
    task.attempts[fact.epoch] = attempt
    member.running[subject] = fact.epoch
    out.append(fx.Started(task, attempt))
    return ""


def _requeued(state: SwarmState, commit: Commit, index: int, subject: str, fact: Requeued, out: Sink) -> str:
    if not _leads(state, commit, fact.term):
        return "not_leader"
    task = state.tasks.get(subject)
    if task is None:
        return "unknown_task"
    if fact.reason == "retry":
        if task.state != "backoff" or task.epoch != fact.epoch:
            return "stale_epoch"
        _queue(task, out)
        return ""
    if fact.epoch not in task.attempts:
        return "stale_epoch"
    attempt = _retire(state, task, fact.epoch)
    out.append(fx.Stopped(subject, fact.epoch, state.members[attempt.member]))
    if not task.attempts:
        _queue(task, out)
    return ""


def _cancelled(state: SwarmState, commit: Commit, index: int, subject: str, fact: Cancelled, out: Sink) -> str:
    return _end_by_leader(state, commit, index, subject, fact, out)


def _expired(state: SwarmState, commit: Commit, index: int, subject: str, fact: Expired, out: Sink) -> str:
    return _end_by_leader(state, commit, index, subject, fact, out)


def _end_by_leader(
    state: SwarmState, commit: Commit, index: int, subject: str, fact: Cancelled | Expired, out: Sink
) -> str:
    if not _leads(state, commit, fact.term):
        return "not_leader"
    task = state.tasks.get(subject)
    if task is None:
        return "unknown_task"
    if isinstance(fact, Cancelled):
        ended = fx.Ended(
            task, "cancelled", (commit.seq, index), failure=Failure("cancelled", fact.reason or "cancelled")
        )
    else:
        ended = fx.Ended(
            task, "expired", (commit.seq, index), failure=Failure("expired", "the deadline passed before a verdict")
        )
    _end(state, ended, out)
    return ""


def _redriven(state: SwarmState, commit: Commit, index: int, subject: str, fact: Redriven, out: Sink) -> str:
    if not _leads(state, commit, fact.term):
        return "not_leader"
    if subject not in state.dead or subject in state.tasks:
        return "not_dead"
    task = state.dead.pop(subject)
    state.tombstones.pop(subject, None)
    state.older_tombstones.pop(subject, None)
    task.failures = task.losses = task.deadline_at_ms = 0
    state.tasks[subject] = task
    _queue(task, out)
    return ""


def _member_lost(state: SwarmState, commit: Commit, index: int, subject: str, fact: MemberLost, out: Sink) -> str:
    if not _leads(state, commit, fact.term):
        return "not_leader"
    member = state.members.pop(fact.member, None)
    if member is None:
        return "unknown_member"
    for task_id, epoch in list(member.running.items()):
        task = state.tasks[task_id]
        task.losses += 1
        _retire(state, task, epoch)
        if task.attempts:
            continue
        if task.losses > state.limits.losses_max:
            why = Failure("lost_members", f"{task.losses} members were lost while running it")
            _end(state, fx.Ended(task, "dead", (commit.seq, index), failure=why), out)
        else:
            _queue(task, out)
    out.append(fx.Gone(member))
    return ""


# --- the members' facts ----------------------------------------------------------------------------


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
    member.node, member.labels = fact.node, fact.labels
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


def _speaks_for(commit: Commit, member: Member) -> bool:
    return commit.boot == member.boot and commit.writer == member.writer and commit.role == member.role


def _reported(state: SwarmState, commit: Commit, subject: str, epoch: int) -> tuple[Task, Attempt] | str:
    """The live attempt that this commit's writer may report on, or why there is none."""
    task = state.tasks.get(subject)
    if task is None:
        return "after_verdict"
    attempt = task.attempts.get(epoch)
    if attempt is None:
        return "stale_epoch"
    if not _speaks_for(commit, state.members[attempt.member]):
        return "wrong_member"
    return task, attempt


def _stepped(state: SwarmState, commit: Commit, index: int, subject: str, fact: Stepped, out: Sink) -> str:
    found = _reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    task, attempt = found
    if fact.key in attempt.journal:
        return "repeated_step"
    attempt.journal[fact.key] = (commit.seq, index)
    task.spent_tokens += max(0, fact.tokens)
    task.spent_steps += 1
    state.counters.steps += 1
    return ""


def _spawned(state: SwarmState, commit: Commit, index: int, subject: str, fact: Spawned, out: Sink) -> str:
    found = _reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    parent, attempt = found
    if fact.key in attempt.journal:
        return "repeated_step"
    child = child_id(subject, fact.n)
    if child in state.tasks and child not in parent.children:
        return "repeated_id"
    attempt.journal[fact.key] = (commit.seq, index)
    parent.spent_steps += 1
    state.counters.steps += 1
    if child in parent.children:
        return ""
    task = Task(
        child,
        fact.agent,
        "",
        (commit.seq, index),
        Raw(bytes(fact.input)),
        input_blob=fact.input_blob,
        priority=parent.priority,
        deadline_at_ms=parent.deadline_at_ms,
        tenant=parent.tenant,
        parent=subject,
        retry=parent.retry,
        budget=parent.budget,
        labels=fact.labels,
        requires=fact.requires,
    )
    parent.children[child] = None
    state.tasks[child] = task
    state.counters.submitted += 1
    out.append(fx.Queued(task, new=True))
    return ""


def _suspended(state: SwarmState, commit: Commit, index: int, subject: str, fact: Suspended, out: Sink) -> str:
    found = _reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    task, _ = found
    if any(child not in task.children for child in fact.waits):
        return "unknown_wait"
    _retire(state, task, fact.epoch)
    if task.attempts:
        return ""
    task.waits = [child for child in dict.fromkeys(fact.waits) if task.children[child] is None]
    if task.waits:
        task.state = "suspended"
    else:
        _queue(task, out)
    return ""


def _returned(state: SwarmState, commit: Commit, index: int, subject: str, fact: Returned, out: Sink) -> str:
    found = _reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    task, _ = found
    _retire(state, task, fact.epoch)
    if not task.attempts:
        _queue(task, out)
    return ""


def _completed(state: SwarmState, commit: Commit, index: int, subject: str, fact: Completed, out: Sink) -> str:
    found = _reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    task, _ = found
    _end(
        state,
        fx.Ended(task, "completed", (commit.seq, index), fact.output, fact.output_blob),
        out,
        reporter=fact.epoch,
    )
    return ""


def _failed(state: SwarmState, commit: Commit, index: int, subject: str, fact: Failed, out: Sink) -> str:
    found = _reported(state, commit, subject, fact.epoch)
    if isinstance(found, str):
        return found
    task, _ = found
    task.failures += 1
    if fact.retryable and len(task.attempts) > 1:
        _retire(state, task, fact.epoch)
    elif fact.retryable and task.failures < task.retry.attempts_max:
        _retire(state, task, fact.epoch)
        task.state = "backoff"
        task.retry_after_ms = fact.retry_after_ms
        out.append(fx.Delayed(task))
    else:
        _end(
            state,
            fx.Ended(task, "dead", (commit.seq, index), failure=fact.failure),
            out,
            reporter=fact.epoch,
        )
    return ""


# --- shared moves ----------------------------------------------------------------------------------


def _queue(task: Task, out: Sink) -> None:
    task.state = "queued"
    task.waits = []
    out.append(fx.Queued(task))


def _retire(state: SwarmState, task: Task, epoch: int) -> Attempt:
    """End an attempt without a verdict; its branch becomes the journal that the next one starts from."""
    attempt = task.attempts.pop(epoch)
    if not task.attempts:
        task.journal = attempt.journal
    _free(state, task.id, attempt.member)
    return attempt


def _free(state: SwarmState, task_id: str, member_id: str) -> None:
    member = state.members.get(member_id)
    if member is not None:
        member.running.pop(task_id, None)


def _end(state: SwarmState, ended: fx.Ended, out: Sink, reporter: int = 0) -> None:
    """Give a task its verdict: attempts other than `reporter`'s are stopped, live descendants cancelled."""
    _close(state, ended, out, reporter)
    if ended.task.parent:
        _resolve(state, ended.task, ended.place, out)
    if not ended.task.children:
        return
    parents = [ended.task]
    while parents:  # no recursion: how deep tasks nest is up to agents
        parent = parents.pop()
        for child_name, verdict in parent.children.items():
            child = state.tasks.get(child_name)
            if verdict is not None or child is None:
                continue
            parent.children[child_name] = ended.place  # a redriven parent must not wait for it
            orphan = Failure("parent_ended", f"its parent {parent.id} ended")
            _close(state, fx.Ended(child, "cancelled", ended.place, failure=orphan), out)
            parents.append(child)


def _close(state: SwarmState, ended: fx.Ended, out: Sink, reporter: int = 0) -> None:
    """End one task and nothing around it."""
    task, place = ended.task, ended.place
    del state.tasks[task.id]
    task.state = ended.state
    for epoch, attempt in task.attempts.items():
        member = state.members.get(attempt.member)
        if member is None:
            continue
        member.running.pop(task.id, None)
        if epoch != reporter:
            out.append(fx.Stopped(task.id, epoch, member))
    if task.attempts:
        task.journal = task.attempts[reporter or max(task.attempts)].journal
        task.attempts = {}
    _bury(state, task, ended.state, place)
    if task.reply:
        state.untold.append(Untold(task.id, task.reply, task.packed, place[0]))
    out.append(ended)


def _bury(state: SwarmState, task: Task, verdict: TaskState, place: Place) -> None:
    """Leave a tombstone; two generations are kept, so that forgetting is one pointer, not a scan."""
    counters = state.counters
    if verdict == "completed":
        counters.completed += 1
    elif verdict == "dead":
        counters.dead += 1
        state.dead[task.id] = task
        if len(state.dead) > state.limits.dead_max:
            del state.dead[next(iter(state.dead))]
    elif verdict == "cancelled":
        counters.cancelled += 1
    else:
        counters.expired += 1
    state.tombstones[task.id] = Tombstone(task.digest, verdict, place)
    if task.id > state.youngest and is_uuid7(task.id):
        state.youngest = task.id
    if len(state.tombstones) * 2 >= state.limits.remembered_max:
        state.forgotten = max(state.forgotten, state.older_youngest)
        state.older_tombstones, state.tombstones = state.tombstones, {}
        state.older_youngest, state.youngest = state.youngest, ""


def _resolve(state: SwarmState, task: Task, place: Place, out: Sink) -> None:
    """Tell a live parent that a child has its verdict."""
    parent = state.tasks.get(task.parent)
    if parent is None:
        return
    parent.children[task.id] = place
    if parent.attempts:
        out.append(fx.ChildEnded(parent, task.id, place))
    elif parent.state == "suspended" and task.id in parent.waits:
        parent.waits.remove(task.id)
        if not parent.waits:
            _queue(parent, out)


TRANSITIONS: Final[dict[type[Fact], Transition]] = {
    Elected: _elected,
    Configured: _configured,
    Settled: _settled,
    Submitted: _submitted,
    Refused: _refused,
    Assigned: _assigned,
    Requeued: _requeued,
    Cancelled: _cancelled,
    Expired: _expired,
    Redriven: _redriven,
    MemberLost: _member_lost,
    MemberJoined: _member_joined,
    MemberLeft: _member_left,
    Stepped: _stepped,
    Spawned: _spawned,
    Suspended: _suspended,
    Returned: _returned,
    Completed: _completed,
    Failed: _failed,
}
