"""What waits, messages, instructions and pauses change.

A wait is a step whose result comes from elsewhere. It is opened by a member and resolved once, in whatever state its
task is; a task that sleeps is woken when all of one group of its waits are resolved. A message that nobody waits for
lies in its receiver's mailbox.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from msgspec import UNSET

from swarmd.core import effects as fx
from swarmd.core.events import (
    Awaited,
    Escalated,
    Fact,
    Paused,
    Resolved,
    Signalled,
    Told,
    Unpaused,
)
from swarmd.core.moves import Sink, close_wait, queue, wake
from swarmd.core.state import Mail, Place, SwarmState, Task, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from swarmd.core.codec import Commit

#: Events whose last signal is remembered, for those who ask for earlier ones.
SIGNALS_MAX: Final = 10_000
#: Messages and instructions that a task may have unread.
MAILBOX_MAX: Final = 1_000


def leads(state: SwarmState, commit: Commit, term: int) -> bool:
    """Whether the commit is by the leader of the current term."""
    return term == state.term and commit.boot == state.leader_boot and commit.writer == state.leader_writer


def question_id(task_id: str, key: str) -> str:
    """The id by which people name a question: 10 hexadecimal digits of its task and step."""
    return hashlib.blake2b(f"{task_id}\0{key}".encode(), digest_size=5).hexdigest()


def is_resolved(task: Task, name: str) -> bool:
    """Whether a child has its verdict, or a wait its result."""
    wait = task.awaited.get(name)
    return wait.resolved is not None if wait is not None else task.children[name] is not None


# --- opening and resolving -------------------------------------------------------------------------


def begin_wait(state: SwarmState, task: Task, fact: Awaited, place: Place, out: Sink) -> None:
    """Open a wait; one whose result is here already is resolved at once."""
    wait = Wait(fact.kind, place, fact.until_ms, fact.name)
    if task.awaited:
        task.awaited[fact.key] = wait
    else:
        task.awaited = {fact.key: wait}
    if fact.kind == "human":
        wait.question = question_id(task.id, fact.key)
        if fact.question is not UNSET:
            asked = fact.question
            wait.on_timeout, wait.escalate_to, wait.timeout_ms = asked.on_timeout, asked.escalate_to, asked.timeout_ms
    here: Place | None = None
    if fact.kind == "message":
        here = _take_mail(task, fact.name)
    elif fact.kind == "event" and fact.earlier:
        here = state.signals.get(fact.name)
    if here is not None:
        resolve(state, task, fact.key, here, out)
    else:
        _index(state, task, fact.key, wait)
        out.append(fx.WaitOpened(task, fact.key, wait))


def _index(state: SwarmState, task: Task, key: str, wait: Wait) -> None:
    """Where whoever resolves it finds it."""
    if wait.kind == "human":
        state.questions[wait.question] = (task.id, key)
        state.closed.pop(wait.question, None)
    elif wait.kind == "event":
        state.listeners.setdefault(wait.name, {}).setdefault(task.id, []).append(key)


def reopen_waits(state: SwarmState, task: Task, out: Sink) -> None:
    """A task lives again: what it still waits for can be answered again."""
    for key, wait in task.awaited.items():
        if wait.resolved is None:
            _index(state, task, key, wait)
            out.append(fx.WaitOpened(task, key, wait))


def resolve(state: SwarmState, task: Task, key: str, place: Place, out: Sink) -> None:
    """The result of a wait is at `place`: its running attempts are told, a sleeping task may wake."""
    wait = task.awaited[key]
    close_wait(state, task, key, wait, place)
    wait.resolved = place
    if task.attempts:
        out.append(fx.WaitEnded(task, key, place))
    elif task.state == "suspended":
        wake(state, task, key, out)


def _resolved(state: SwarmState, commit: Commit, index: int, subject: str, fact: Resolved, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    task = state.tasks.get(subject)
    wait = task.awaited.get(fact.key) if task else None
    if task is None or wait is None:
        return "unknown_wait"
    if wait.resolved is not None:
        return "already_resolved"
    resolve(state, task, fact.key, (commit.seq, index), out)
    return ""


def _escalated(state: SwarmState, commit: Commit, index: int, subject: str, fact: Escalated, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    task = state.tasks.get(subject)
    wait = task.awaited.get(fact.key) if task else None
    if task is None or wait is None:
        return "unknown_wait"
    if wait.resolved is not None or fact.level != wait.level + 1:
        return "already_resolved"
    wait.level, wait.name, wait.until_ms = fact.level, fact.to, fact.until_ms
    out.append(fx.WaitOpened(task, fact.key, wait))
    return ""


def _signalled(state: SwarmState, commit: Commit, index: int, subject: str, fact: Signalled, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    place = (commit.seq, index)
    waiting = state.listeners.get(fact.name, {})
    heard = [fact.task] if fact.task in waiting else [] if fact.task else list(waiting)
    for task_id in heard:
        for key in list(waiting[task_id]):
            resolve(state, state.tasks[task_id], key, place, out)
    if not fact.task:
        state.signals.pop(fact.name, None)
        state.signals[fact.name] = place
        if len(state.signals) > SIGNALS_MAX:
            del state.signals[next(iter(state.signals))]
    return ""


# --- messages --------------------------------------------------------------------------------------


def deliver(state: SwarmState, sender: Task, to: str, place: Place, out: Sink) -> None:
    """Hand a message to every live task that `to` names: to one that waits for it, or into the mailbox."""
    for task in list(_receivers(state, sender, to)):
        key = _listening(task, sender.id)
        if key:
            resolve(state, task, key, place, out)
        elif len(task.mailbox) < MAILBOX_MAX:
            task.mailbox = (*task.mailbox, Mail(place, sender.id))
        else:
            state.counters.ignored["mailbox_full"] = state.counters.ignored.get("mailbox_full", 0) + 1


def _receivers(state: SwarmState, sender: Task, to: str) -> Iterator[Task]:
    kind, _, name = to.partition(":")
    if kind == "task":
        found = state.tasks.get(name)
        if found is not None:
            yield found
    elif kind == "member":
        member = state.members.get(name)
        for task_id in member.running if member else ():
            if task_id != sender.id:
                yield state.tasks[task_id]
    elif kind == "agent":  # whoever has begun, a hedged task once
        running = [task_id for member in state.members.values() for task_id in member.running]
        for task_id in dict.fromkeys((*running, *state.idle)):
            if state.tasks[task_id].agent == name and task_id != sender.id:
                yield state.tasks[task_id]
    elif kind == "family":
        parent = state.tasks.get(sender.parent) if sender.parent else None
        kin = [sender.parent, *(parent.children if parent else ()), *sender.children]
        for task_id in dict.fromkeys(kin):
            if task_id in state.tasks and task_id != sender.id:
                yield state.tasks[task_id]


def _listening(task: Task, sender: str) -> str:
    """The key of the first open wait that takes a message of `sender`, or ""."""
    for key, wait in task.awaited.items():
        if wait.kind == "message" and wait.resolved is None and wait.name in ("", sender):
            return key
    return ""


def _take_mail(task: Task, sender: str) -> Place | None:
    """The oldest message of `sender` ("": of anyone), taken out of the mailbox."""
    for at, mail in enumerate(task.mailbox):
        if sender in ("", mail.sender):
            task.mailbox = (*task.mailbox[:at], *task.mailbox[at + 1 :])
            return mail.place
    return None


# --- instructions and pauses -----------------------------------------------------------------------


def _told(state: SwarmState, commit: Commit, index: int, subject: str, fact: Told, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    task = state.tasks.get(subject)
    if task is None:
        return "unknown_task"
    if len(task.told) >= MAILBOX_MAX:
        return "mailbox_full"
    task.told = (*task.told, (commit.seq, index))
    if task.attempts:
        out.append(fx.Instructed(task, (commit.seq, index)))
    return ""


def _paused(state: SwarmState, commit: Commit, index: int, subject: str, fact: Paused, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    task = state.tasks.get(subject)
    if task is None:
        return "unknown_task"
    if task.paused:
        return "already_paused"
    task.paused = True
    if task.state == "queued":
        task.state = "paused"
        out.append(fx.Parked(task))
    elif task.attempts:
        out.append(fx.PauseWanted(task))
    return ""


def _unpaused(state: SwarmState, commit: Commit, index: int, subject: str, fact: Unpaused, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    task = state.tasks.get(subject)
    if task is None:
        return "unknown_task"
    if not task.paused:
        return "not_paused"
    task.paused = False
    if task.state == "paused":
        queue(state, task, out)
    return ""


WAIT_TRANSITIONS: Final[dict[type[Fact], Callable[..., str]]] = {
    Resolved: _resolved,
    Escalated: _escalated,
    Signalled: _signalled,
    Told: _told,
    Paused: _paused,
    Unpaused: _unpaused,
}
