"""Which running attempts deserve a second one beside them (Dean and Barroso, "The Tail at Scale", 2013).

Only those of agents that are declared idempotent, once they take longer than nearly all others of their agent, and
only so many that the extra attempts stay a small share. The fold takes the first result and stops the other attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmd.core.policies import PlacementSettings
    from swarmd.core.state import Attempt, SwarmState, Task

#: So many attempts of an agent must have ended before one can be said to be late.
RUNS_MIN: Final = 20
#: Hedges that were not needed are saved up to this number.
SAVED_MAX: Final = 10.0
#: An attempt that would not be missed for this long is not worth another one.
DELAY_MS_MIN: Final = 10


class Hedging:
    """The hedges of one leader in one office."""

    def __init__(self, state: SwarmState, settings: PlacementSettings) -> None:
        self._state, self._settings = state, settings
        self._allowance = 0.0
        self._late: dict[str, int] = {}
        self._quantiles: dict[str, tuple[int, int]] = {}

    def __bool__(self) -> bool:
        """Whether there is something to hedge, and leave to do it."""
        return bool(self._late) and self._allowance >= 1.0

    def started(self, task: Task, attempt: Attempt, *, anew: bool = True) -> int:
        """An attempt began; after how many milliseconds it is late (0: it is not hedged).

        One that ran when this office began (not `anew`) was counted before, and earns no hedge.
        """
        member = self._state.members.get(attempt.member)
        if member is None or task.agent not in member.idempotent or not self._settings.hedge_share:
            return 0
        if len(task.attempts) > 1 or task.is_suspect:
            return 0
        if anew:
            self._allowance = min(SAVED_MAX, self._allowance + self._settings.hedge_share)
        return self._late_after_ms(task.agent)

    def _late_after_ms(self, agent: str) -> int:
        """The quantile that makes an attempt late, looked up anew whenever the agent has run a tenth more."""
        learned = self._state.learned.get(agent)
        if learned is None or learned.runs < RUNS_MIN:
            return 0
        runs, delay_ms = self._quantiles.get(agent, (0, 0))
        if learned.runs > runs + min(runs // 10, 100):
            delay_ms = max(DELAY_MS_MIN, learned.quantile(self._settings.hedge_quantile))
            self._quantiles[agent] = (learned.runs, delay_ms)
        return delay_ms

    def late(self, task: Task, epoch: int) -> None:
        """The time that an attempt was given is over and it still runs."""
        if epoch in task.attempts and len(task.attempts) == 1:
            self._late[task.id] = epoch

    def wanted(self) -> Iterator[tuple[Task, Attempt]]:
        """Attempts to hedge, as many as there is allowance for; each is told once, unless it is `put_off`."""
        for task_id, epoch in list(self._late.items()):
            if self._allowance < 1.0:
                return
            del self._late[task_id]
            task = self._state.tasks.get(task_id)
            attempt = task.attempts.get(epoch) if task is not None else None
            if task is not None and attempt is not None and len(task.attempts) == 1 and not task.paused:
                yield task, attempt

    def over(self, task: Task) -> None:
        """The task has its verdict, or is to wait."""
        self._late.pop(task.id, None)

    def put_off(self, task: Task, attempt: Attempt) -> None:
        """No slot is free for it now."""
        self._late[task.id] = attempt.epoch

    def spent(self) -> None:
        """A hedge was decided."""
        self._allowance -= 1.0

    def came_to_nothing(self, task: Task | None) -> None:
        """A hedge was not stored, or the fold did not take it: what it was for may have another one."""
        self._allowance = min(SAVED_MAX, self._allowance + 1.0)
        if task is not None and len(task.attempts) == 1:
            self._late[task.id] = next(iter(task.attempts))
