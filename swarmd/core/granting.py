"""What a leader says about budgets: the declared limits, a new day's, and answers to attempts that need more.

Every wish is in the fold, so that any leader answers it. One that cannot be met now waits while somebody else who
may give something back still works. When all who hold something of that account wish for more themselves, nobody
would ever go on: the youngest wish is refused, and what it held is free for the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from swarmd.core import budgets
from swarmd.core.events import Budget, Budgeted, Event, Granted, Limit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmd.core.budgets import Reservation
    from swarmd.core.state import SwarmState, Task

DAY_MS: Final = 86_400_000


class Granting:
    """Answers wishes for one leader in one office. What is decided and not folded yet is not decided again."""

    def __init__(self, state: SwarmState, limits: Mapping[str, Limit]) -> None:
        self._state, self._limits = state, dict(limits)
        self._decided: set[str] = set()
        self._looked_at: tuple[int, int] = (-1, -1)
        self._declaring = False

    def due(self, now_ms: int) -> Budgeted | None:
        """The limits as they should be from now on, if the log says otherwise."""
        state = self._state
        if self._declaring:
            return None
        day = now_ms // DAY_MS if any(limit.period == "day" for limit in self._limits.values()) else 0
        if budgets.shared_limits(state.accounts) == self._limits and day <= state.budget_day:
            return None
        self._declaring = True
        return Budgeted(term=state.term, limits=self._limits, day=day)

    def declared(self) -> None:
        """The declaration is folded, or could not be stored."""
        self._declaring = False

    def answered(self, task_id: str, fact: Granted) -> None:
        """An answer is folded, whatever the fold made of it, or could not be stored."""
        self._decided.discard(f"{task_id} {fact.epoch} {fact.n}")
        self._looked_at = (-1, -1)

    def wished(self) -> None:
        """There is a new wish."""
        self._looked_at = (-1, -1)

    def decide(self) -> list[Event]:
        """Answers to all wishes that can have one now, in the order in which they came."""
        state = self._state
        if not state.wishes or self._looked_at == (state.releases, len(state.wishes)):
            return []
        self._looked_at = (state.releases, len(state.wishes))
        events: list[Event] = []
        stuck: dict[str, Event] = {}
        for task_id, epoch in state.wishes.values():
            task = state.tasks[task_id]
            held = task.attempts[epoch].held
            if held is None or f"{task_id} {epoch} {held.asked}" in self._decided:
                continue
            name, measure = budgets.lacking(state.accounts, held)
            fact = Granted(term=state.term, epoch=epoch, n=held.asked)
            if not name:
                fact.total = self._total(task, held)
                events.append(self._decide(task_id, fact))
                continue
            fact.refused = budgets.in_words(name, measure)
            if budgets.is_hopeless(state.accounts[name], measure, held):
                events.append(self._decide(task_id, fact))
            elif not self._others_work(name, held):
                stuck[name] = Event(task_id, fact)
        for event in stuck.values():
            assert isinstance(event.data, Granted)
            events.append(self._decide(event.subject, event.data))
        return events

    def _decide(self, task_id: str, fact: Granted) -> Event:
        self._decided.add(f"{task_id} {fact.epoch} {fact.n}")
        return Event(task_id, fact)

    def _total(self, task: Task, held: Reservation) -> Budget:
        """What is wanted, or what it has and another slice, whichever is more."""
        accounts = self._state.accounts
        names = [name for name in held.accounts if name in accounts]
        slices = budgets.amounts_of(budgets.offer(accounts, names))
        totals = [
            None if granted is None else max(want or 0, granted + (share or 0))
            for granted, want, share in zip(held.granted, budgets.amounts_of(held.wanted), slices, strict=True)
        ]
        return Budget(*totals)

    def _others_work(self, name: str, mine: Reservation) -> bool:
        """Whether some other attempt draws on this account and does not wish for more itself: it will give back."""
        state = self._state
        for member in state.members.values():
            for task_id, epoch in member.running.items():
                held = state.tasks[task_id].attempts[epoch].held
                if held is None or held is mine or name not in held.accounts:
                    continue
                if held.asked == held.answered and any(held.unspent(measure) for measure in range(4)):
                    return True
        return False
