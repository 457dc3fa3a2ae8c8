"""The leader's answers to "how is it going": the swarm as a whole, or one task and what it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.core.budgets import is_open, is_shared, names_of
from swarmd.core.errors import Rejected
from swarmd.core.events import Spending
from swarmd.core.state import Member, SwarmState, Task, live_attempt, tombstone
from swarmd.core.wire import AccountStatus, MemberStatus, NextSlot, SwarmStatus, TaskStatus

if TYPE_CHECKING:
    from swarmd.core.leader import Leader


def swarm_status(leader: Leader, now_ms: int) -> SwarmStatus:
    """The swarm at the sequence that is folded."""
    state = leader.state
    states: dict[str, int] = {}
    for task in state.tasks.values():
        states[task.state] = states.get(task.state, 0) + 1
    if state.dead:
        states["dead"] = len(state.dead)
    counters = {name: getattr(state.counters, name) for name in state.counters.__struct_fields__}
    members = [_member_status(leader, member, now_ms) for member in state.members.values()]
    return SwarmStatus(
        state.swarm,
        state.seq,
        state.term,
        state.leader_writer,
        states,
        counters,
        members,
        leader.waiting(),
        leader.refusing,
        [account_status(state, name) for name in state.accounts if is_shared(name)],
        [NextSlot(one.id, one.agent, one.next_ms) for one in leader.planner.status()],
    )


def _member_status(leader: Leader, member: Member, now_ms: int) -> MemberStatus:
    heard = leader.links.heard_at_ms(member)
    return MemberStatus(
        member.id,
        member.kind,
        member.node,
        member.agents,
        member.capacity,
        len(member.running),
        max(0, now_ms - heard) if heard else -1,
        leader.links.reachable(member),
        round(leader.links.phi(member, now_ms), 2),
    )


def account_status(state: SwarmState, name: str) -> AccountStatus:
    """One account of the fold."""
    account = state.accounts[name]
    return AccountStatus(name, account.limit, Spending(*account.spent), Spending(*account.reserved))


def task_status(leader: Leader, task_id: str) -> TaskStatus:
    """One task from the fold. Raises `Rejected("unknown_task")` when the fold no longer knows it: ask the catalog."""
    state = leader.state
    task = state.tasks.get(task_id) or state.dead.get(task_id)
    if task is None:
        buried = tombstone(state, task_id)
        if buried is None:
            raise Rejected(
                "unknown_task",
                f"no task {task_id} is live or remembered: the catalog may know it (`swarmd status ID`, find.task)",
            )
        return TaskStatus(task_id, buried.state, seq=buried.verdict[0])
    attempt = live_attempt(task)
    journal = attempt.journal if attempt else task.journal
    return TaskStatus(
        task_id,
        task.state,
        task.agent,
        attempt.member if attempt else "",
        task.epoch,
        task.failures,
        len(journal),
        len(task.children),
        _waiting_for(leader, task),
        state.seq,
        Spending(task.spent_tokens, task.spent_microusd, task.spent_steps, task.ran_ms),
        [account_status(state, name) for name in names_of(state.accounts, task.draws, task.tenant)],
    )


def _sleeping(leader: Leader, task: Task) -> str:
    """What a suspended task waits for, the first few of it; of children, what the first one waits for."""
    names = [name for group in task.waits for name in group]
    waits = [(name, task.awaited[name]) for name in names if name in task.awaited]
    words = {"timer": "a time", "event": "event", "message": "a message", "human": "the answer to request"}
    said = [f"{words[wait.kind]} {wait.question or wait.name}".rstrip() for _, wait in waits[:5]]
    children = [name for name in names if name not in task.awaited]
    if children:
        first = leader.state.tasks.get(children[0])
        why = _waiting_for(leader, first) if first is not None and first.state == "queued" else ""
        said.append(f"its children {', '.join(children[:5])}" + (f" ({children[0]} waits for {why})" if why else ""))
    return "; ".join(said)


def _waiting_for(leader: Leader, task: Task) -> str:
    if task.state == "suspended":
        return _sleeping(leader, task)
    if task.state == "paused":
        return "being resumed: it is paused"
    if task.state == "delayed":
        return f"its time, {task.not_before_ms} ms since 1970"
    if task.state == "backoff":
        return f"its back-off after failure {task.failures}"
    wanting = [held.wanted for held in (attempt.held for attempt in task.attempts.values()) if held and is_open(held)]
    if wanting:
        return "a grant: what is left of its budgets is reserved by others"
    if task.state != "queued":
        return ""
    offering = [m for m in leader.state.members.values() if task.agent in m.agents]
    if not offering:
        return f"a member that offers agent {task.agent!r}: none does"
    wanted = task.requires.items()
    suited = [m for m in offering if all(m.labels.get(name) == value for name, value in wanted)]
    if not suited:
        return f"a member of agent {task.agent!r} with labels {task.requires}: none has them"
    if task.version and not any(task.version in m.runs(task.agent) for m in suited):
        return f"a member with version {task.version} of agent {task.agent!r}, which it began with: none offers it"
    return f"a free slot among {len(suited)} members"
