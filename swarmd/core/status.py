"""The leader's answers to "how is it going": the swarm as a whole, or one task and what it waits for."""

from __future__ import annotations

from heapq import nsmallest
from itertools import islice
from typing import TYPE_CHECKING, Final

from swarmd.core.budgets import is_open, is_shared, names_of
from swarmd.core.errors import Rejected
from swarmd.core.events import Spending
from swarmd.core.experience import SURE
from swarmd.core.state import Member, SwarmState, Task, Use, live_attempt, tombstone
from swarmd.core.wire import (
    AccountStatus,
    Crew,
    MemberQuery,
    Members,
    MemberStatus,
    NextSlot,
    SwarmStatus,
    TaskStatus,
    TenantStatus,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from swarmd.core.leader import Leader

#: A status lists so many members; five thousand would not fit into a message. The rest is read page by page.
MEMBERS_SHOWN: Final = 256
PAGE_MAX: Final = 1_000
LISTED_BYTES_MAX: Final = 512 * 1024


def swarm_status(leader: Leader, now_ms: int) -> SwarmStatus:
    """The swarm at the sequence that is folded."""
    state = leader.state
    states: dict[str, int] = {}
    for task in state.tasks.values():
        states[task.state] = states.get(task.state, 0) + 1
    if state.dead:
        states["dead"] = len(state.dead)
    counters = {name: getattr(state.counters, name) for name in state.counters.__struct_fields__}
    members = _listed(leader, islice(state.members.values(), MEMBERS_SHOWN), now_ms)
    crew, offers = crews(leader)
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
        [_tenant_status(leader, name, use) for name, use in state.tenants.items() if name or len(state.tenants) > 1],
        dict(state.keys),
        {agent: round(learned.mean_ms) for agent, learned in state.learned.items()},
        crew=crew,
        offers=offers,
    )


def _tenant_status(leader: Leader, name: str, use: Use) -> TenantStatus:
    policy = leader.settings.tenants.get(name)
    return TenantStatus(name, use.live, use.slots, policy.weight if policy is not None else 1.0)


def crews(leader: Leader) -> tuple[Crew, dict[str, Crew]]:
    """All members in figures, and by agent those that can be reached."""
    whole, alike = Crew(), dict[tuple[str, ...], Crew]()
    reachable = leader.links.reachable
    for member in leader.state.members.values():
        whole.members += 1
        used, slots = len(member.running), member.capacity
        whole.used += used
        if not reachable(member):
            continue
        key = tuple(member.agents)
        crew = alike.get(key)
        if crew is None:
            crew = alike[key] = Crew()
        crew.members += 1
        crew.working += slots > 0
        crew.slots += slots
        crew.used += used
    offers: dict[str, Crew] = {}
    for agents, crew in alike.items():  # thousands of members, but few different offers
        crew.reachable = crew.members
        _add(whole, crew)
        for agent in agents:
            _add(offers.setdefault(agent, Crew()), crew)
            offers[agent].members += crew.members
            offers[agent].used += crew.used
    return whole, offers


def _add(total: Crew, crew: Crew) -> None:
    """What only those that can be reached count for."""
    total.reachable += crew.reachable
    total.working += crew.working
    total.slots += crew.slots


def members_page(leader: Leader, query: MemberQuery, now_ms: int) -> Members:
    """One page of the members. Raises `Rejected("bad_field")`."""
    if not 1 <= query.limit <= PAGE_MAX:
        raise Rejected("bad_field", f"a page holds 1 to {PAGE_MAX} members, not {query.limit}")
    state = leader.state
    behind = [name for name in state.members if name > query.after]
    page = nsmallest(query.limit, behind)
    found = _listed(leader, (state.members[name] for name in page), now_ms)
    return Members(found, state.seq, len(state.members), found[-1].member if len(found) < len(behind) else "")


def _listed(leader: Leader, members: Iterable[Member], now_ms: int) -> list[MemberStatus]:
    """The first of these members, at least one, as many as one answer holds."""
    found: list[MemberStatus] = []
    size = 0
    for member in members:
        names = (*member.agents, *member.paces, *member.labels, *member.labels.values())
        size += 400 + sum(len(name) + 24 for name in names)
        if found and size > LISTED_BYTES_MAX:
            break
        found.append(_member_status(leader, member, now_ms))
    return found


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
        quarantined=leader.links.refused.get(member.id) or member.quarantined,
        slowness=_slowness(member),
        labels=member.labels,
        load=leader.links.load(member.id),
    )


def _slowness(member: Member) -> dict[str, float]:
    """Of the agents that it has run often enough to tell."""
    known = {agent: pace.slowness() for agent, pace in member.paces.items() if pace.runs >= SURE}
    return {agent: round(times, 2) for agent, times in known.items()}


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
        list(task.victims),
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
    suited = [m for m in offering if m.bears(task.requires.items())]
    if not suited:
        return f"a member of agent {task.agent!r} with labels {task.requires}: none has them"
    if task.version and not any(task.version in m.runs(task.agent) for m in suited):
        return f"a member with version {task.version} of agent {task.agent!r}, which it began with: none offers it"
    if leader.placing.is_blocked(task.id):
        return f"its concurrency key {task.concurrency_key!r}: as many tasks of it run, or have begun, as may"
    if leader.placing.is_at_bound(task.tenant):
        bound = leader.settings.tenants[task.tenant].slots_max
        return f"a slot of its tenant {task.tenant!r}, which has all {bound} that it may have"
    if task.is_suspect:
        return f"a process of its own: {len(task.victims)} members were lost while they ran it"
    well = [member for member in suited if not member.quarantined]
    if not well:
        return f"its turn as a probe: all {len(suited)} members that suit are quarantined"
    return f"a free slot among {len(well)} members"
