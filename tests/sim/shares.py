"""What tenants and concurrency keys have, kept beside the fold; and what a leader must not give away twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.core.keys import Keys

if TYPE_CHECKING:
    from swarmd.core.leader import Leader
    from swarmd.core.office import LeaderSettings
    from swarmd.core.state import SwarmState, Task


def wrong(state: SwarmState, settings: LeaderSettings) -> str:
    """What is wrong with the use of tenants and keys; "" when all is well.

    All leaders have the same settings, decide only after they have folded their own election, and what an earlier one
    has stored since is void: so no key and no tenant ever has more than it may, however often leaders change.
    """
    live: dict[str, int] = {}
    slots: dict[str, int] = {}
    used: dict[str, int] = {}
    for task in state.tasks.values():
        live[task.tenant] = live.get(task.tenant, 0) + 1
        slots[task.tenant] = slots.get(task.tenant, 0) + len(task.attempts)
        if task.concurrency_key and task.attempts:
            used[task.concurrency_key] = used.get(task.concurrency_key, 0) + len(task.attempts)
    if live != {name: use.live for name, use in state.tenants.items()}:
        return f"tenants have {live} live tasks, the fold says {state.tenants}"
    if slots != {name: use.slots for name, use in state.tenants.items()}:
        return f"tenants have {slots} slots, the fold says {state.tenants}"
    if used != state.keys:
        return f"keys have {used} slots, the fold says {state.keys}"
    keys = Keys(settings.keys, {})
    for key, count in used.items():
        if count > keys.policy(key).concurrency:
            return f"{count} attempts of key {key!r} run at once"
    for tenant, policy in settings.tenants.items():
        if 0 < policy.slots_max < slots.get(tenant, 0):
            return f"tenant {tenant!r} has {slots[tenant]} slots, it may have {policy.slots_max}"
    return ""


def wrong_start(state: SwarmState, task: Task) -> str:
    """What is wrong with an attempt that begins beside another one, or beside other suspects; "" when all is well."""
    hosts = [state.members[attempt.member] for attempt in task.attempts.values()]
    if len(hosts) > 2 or len({member.id for member in hosts}) != len(hosts):
        return f"{task.id} has attempts on {[member.id for member in hosts]}"
    if len(hosts) == 2 and any(task.agent not in member.idempotent for member in hosts):
        return f"{task.id} has two attempts of {task.agent}, which is not idempotent"
    if len(task.victims) >= 2:
        for other in state.tasks.values():
            if other is task or len(other.victims) < 2:
                continue
            for attempt in other.attempts.values():
                member = state.members[attempt.member]
                if any((member.writer, member.boot) == (host.writer, host.boot) for host in hosts):
                    return f"{task.id} and {other.id} have lost members before and run in one process"
    return ""


def left_over(leader: Leader) -> list[object]:
    """What placement still keeps when nothing is left to do; empty when all is well."""
    placing = leader.placing
    queue = placing._queue
    kept: list[object] = [placing._placed, placing._fresh, placing._policy.lent, placing.hedging._late]
    kept += [queue._waiting, queue._crowds, queue._backlog, queue._taken, queue._reopening, queue._keys._taken]
    judged = (*leader.wards._proposed, *leader.wards._wards)  # somebody may be judged at this very moment
    kept.append([name for name in judged if name not in leader.state.members])
    return [one for one in kept if one]
