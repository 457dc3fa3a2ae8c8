"""What a leader's facts about budgets change: limits of the swarm and its tenants, and answers to wishes for more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from swarmd.core import budgets
from swarmd.core import effects as fx
from swarmd.core.events import Budgeted, Fact, Granted
from swarmd.core.moves import Sink, wish_key
from swarmd.core.wait_facts import leads

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.core.codec import Commit
    from swarmd.core.state import SwarmState


def _budgeted(state: SwarmState, commit: Commit, index: int, subject: str, fact: Budgeted, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    accounts = state.accounts
    limits = {name: limit for name, limit in fact.limits.items() if budgets.is_shared(name)}
    budgets.declare(accounts, limits, fact.day > state.budget_day)
    state.budget_day = max(state.budget_day, fact.day)
    for member in state.members.values():
        for task_id, epoch in member.running.items():
            task = state.tasks[task_id]
            held = task.attempts[epoch].held
            if held is not None:
                budgets.redraw(accounts, held, budgets.names_of(accounts, task.draws, task.tenant))
    state.releases += 1
    return ""


def _granted(state: SwarmState, commit: Commit, index: int, subject: str, fact: Granted, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    task = state.tasks.get(subject)
    attempt = task.attempts.get(fact.epoch) if task else None
    if task is None or attempt is None:
        return "stale_epoch"
    held = attempt.held
    if held is None or fact.n != held.asked or held.answered == fact.n:
        return "not_wanted"
    if not fact.refused and not budgets.top_up(state.accounts, held, budgets.bounded(fact.total)):
        return "nothing_left"
    held.answered, held.refused, held.wanted = fact.n, fact.refused, budgets.NO_LIMIT
    state.wishes.pop(wish_key(subject, fact.epoch), None)
    out.append(fx.GrantAnswered(task, attempt))
    return ""


BUDGET_LEADER_TRANSITIONS: Final[dict[type[Fact], Callable[..., str]]] = {Budgeted: _budgeted, Granted: _granted}
