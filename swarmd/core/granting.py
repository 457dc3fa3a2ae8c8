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
Shortage = tuple[str, int]  #: (account, measure) that cannot give what is wanted


class Granting:
    """Answers wishes for one leader in one office. What is decided and not folded yet is not decided again.

    `declared` is whether the fold knows the limits of this leader.
    """

    def __init__(self, state: SwarmState, limits: Mapping[str, Limit]) -> None:
        self._state, self._limits = state, dict(limits)
        self._decided: set[str] = set()
        self._looked_at: tuple[int, int] = (-1, -1)
        self._declaring = False
        self.declared = self._is_declared()

    def _is_declared(self) -> bool:
        return budgets.shared_limits(self._state.accounts) == self._limits

    def due(self, now_ms: int) -> Budgeted | None:
        """The limits as they should be from now on, if the log says otherwise."""
        state = self._state
        if self._declaring:
            return None
        day = now_ms // DAY_MS if any(limit.period == "day" for limit in self._limits.values()) else 0
        if self._is_declared() and day <= state.budget_day:
            return None
        self._declaring = True
        return Budgeted(term=state.term, limits=self._limits, day=day)

    def settle(self, event: Event) -> None:
        """One of our events is folded, whatever the fold made of it, or could not be stored."""
        if isinstance(event.data, Granted):
            self._decided.discard(f"{event.subject} {event.data.epoch} {event.data.n}")
            self._looked_at = (-1, -1)
        else:
            self._declaring = False
            self.declared = self._is_declared()

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
        blocked: list[tuple[Event, Reservation, Shortage]] = []
        for task_id, epoch in state.wishes.values():
            task = state.tasks[task_id]
            held = task.attempts[epoch].held
            if held is None or self._is_decided(task_id, epoch, held):
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
            else:
                blocked.append((Event(task_id, fact), held, (name, measure)))
        if blocked and not events:
            events += self._unstick(blocked)
        return events

    def _unstick(self, blocked: list[tuple[Event, Reservation, Shortage]]) -> list[Event]:
        """Refuse the youngest of the wishes that nobody's work will ever meet, if there are any.

        What a working attempt holds comes back, and so does what somebody holds who waits for such a one.
        """
        coming: set[Shortage] = set()
        for member in self._state.members.values():
            for task_id, epoch in member.running.items():
                held = self._state.tasks[task_id].attempts[epoch].held
                if held is not None and (not budgets.is_open(held) or self._is_decided(task_id, epoch, held)):
                    coming |= _unspent(held)
        while True:
            met = [wish for wish in blocked if wish[2] in coming]
            if not met:
                break
            for wish in met:
                coming |= _unspent(wish[1])
            blocked = [wish for wish in blocked if wish[2] not in coming]
        if not blocked:
            return []
        event = blocked[-1][0]
        assert isinstance(event.data, Granted)
        return [self._decide(event.subject, event.data)]

    def _is_decided(self, task_id: str, epoch: int, held: Reservation) -> bool:
        return f"{task_id} {epoch} {held.asked}" in self._decided

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


def _unspent(held: Reservation) -> set[Shortage]:
    """Of which accounts and measures an attempt holds something."""
    return {(name, measure) for name in held.accounts for measure in range(4) if held.unspent(measure)}
