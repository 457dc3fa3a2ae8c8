"""The books of all budgets, kept beside the fold: what must hold for accounts and reservations after every commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.core import budgets
from swarmd.core.codec import Commit
from swarmd.core.events import Budgeted, Event

if TYPE_CHECKING:
    from swarmd.core.codec import Garbage
    from swarmd.core.state import SwarmState


def promised(state: SwarmState) -> dict[tuple[str, int], int]:
    """Spent and reserved together, by account and measure."""
    return {
        (name, measure): account.spent[measure] + account.reserved[measure]
        for name, account in state.accounts.items()
        for measure in range(4)
    }


def wrong(state: SwarmState, commit: Commit | Garbage, before: dict[tuple[str, int], int]) -> str:
    """What is wrong with the accounts after `commit`; "" when all is well.

    A leader promises nothing that is not there. What is reserved is what live attempts hold, no more and no less, so
    that however an attempt ends, what it did not spend is free again.
    """
    held: dict[tuple[str, int], int] = {}
    wishes = []
    for task in state.tasks.values():
        for epoch, attempt in task.attempts.items():
            if attempt.held is None:
                continue
            if budgets.is_open(attempt.held):
                wishes.append((task.id, epoch))
            for name in attempt.held.accounts:
                for measure in range(4):
                    held[name, measure] = held.get((name, measure), 0) + attempt.held.unspent(measure)
    if sorted(wishes) != sorted(state.wishes.values()):
        return f"wishes are {state.wishes}, attempts wish {wishes}"
    for name, account in state.accounts.items():
        for measure in range(4):
            if account.reserved[measure] != held.get((name, measure), 0):
                return f"{name} has {account.reserved} reserved, attempts hold {held.get((name, measure), 0)}"
            if account.spent[measure] < 0:
                return f"{name} has spent {account.spent}"
        if name.startswith("task:") and name.removeprefix("task:") not in state.tasks:
            return f"{name} is the account of no live task"
    if not isinstance(commit, Commit) or commit.role != "orchestrator":
        return ""
    if any(isinstance(event, Event) and isinstance(event.data, Budgeted) for event in commit.events):
        return ""
    for key, now in promised(state).items():
        limit = budgets.amounts_of(state.accounts[key[0]].limit)[key[1]]
        if limit is not None and now > max(limit, before.get(key, 0), 0):
            return f"{budgets.in_words(*key)}: {now} are spent and reserved, the limit is {limit}"
    return ""


def over(state: SwarmState) -> str:
    """Whether more was spent and reserved than there is; members that keep to their grants never come to that."""
    for key, now in promised(state).items():
        limit = budgets.amounts_of(state.accounts[key[0]].limit)[key[1]]
        if limit is not None and now > limit:
            return f"{budgets.in_words(*key)}: {now} are spent and reserved, the limit is {limit}"
    return ""
