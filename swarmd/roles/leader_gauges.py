"""What an orchestrator shows of itself and its swarm as metrics. Reads the machine, changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from swarmd.core.budgets import amounts_of, is_shared

if TYPE_CHECKING:
    from swarmd.core.budgets import Account
    from swarmd.core.leader import Leader
    from swarmd.ports import Meter


#: The measures in the order of accounts, in base units.
_UNITS: Final = (("tokens", 1), ("cost_usd", 1_000_000), ("steps", 1), ("wall_seconds", 1000))


def show_leader(leader: Leader, meter: Meter, now_ms: int) -> None:
    """Leadership, queue, members and their slots; a standby shows only that it stands by."""
    state = leader.state
    meter.gauge("swarmd_leader", float(leader.leading))
    meter.gauge("swarmd_term", state.term)
    if not leader.leading:
        return
    meter.gauge("swarmd_queue_tasks", sum(leader.waiting().values()))
    meter.gauge("swarmd_live_tasks", len(state.tasks))
    members = list(state.members.values())
    reachable = [member for member in members if leader.links.reachable(member)]
    meter.gauge("swarmd_members", len(reachable), "reachable")
    meter.gauge("swarmd_members", len(members) - len(reachable), "unreachable")
    used = sum(len(member.running) for member in members)
    meter.gauge("swarmd_slots", used, "used")
    meter.gauge("swarmd_slots", max(0, sum(member.capacity for member in reachable) - used), "free")
    heard = [leader.links.heard_at_ms(member) for member in reachable]
    meter.gauge("swarmd_heartbeat_age_seconds", max(0, now_ms - min(heard)) / 1000 if heard else 0.0)
    meter.gauge("swarmd_phi_max", leader.links.phi_max(now_ms))
    meter.gauge("swarmd_workers", leader.scaling.workers)
    meter.gauge("swarmd_workers_desired", leader.scaling.desired or 0)
    meter.gauge("swarmd_grants_wanted", len(state.wishes))
    for name, account in state.accounts.items():
        if is_shared(name):  # those of tasks come and go with them: `swarmd status TASK` shows them
            _show_account(name, account, meter)


def _show_account(name: str, account: Account, meter: Meter) -> None:
    for measure, limit in enumerate(amounts_of(account.limit)):
        if limit is not None:
            label, unit = _UNITS[measure]
            meter.gauge("swarmd_budget_limit", limit / unit, name, label)
            meter.gauge("swarmd_budget_spent", account.spent[measure] / unit, name, label)
            meter.gauge("swarmd_budget_reserved", account.reserved[measure] / unit, name, label)
