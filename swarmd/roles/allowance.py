"""What one attempt may spend: looked at before each step, asked for when it does not suffice, settled by its records.

A step begins only when what it may cost at most is held back for it. The wish for more is an event; the leader's answer
comes as an item. Must not know what steps do, nor whose budgets there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from swarmd.core.budgets import Purse
from swarmd.core.events import Event, GrantWanted, Spending, Stepped
from swarmd.core.prices import price_of, worth
from swarmd.roles.attempt import AgentFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from swarmd.core.events import Fact
    from swarmd.core.prices import Price
    from swarmd.core.turns import ModelRequest
    from swarmd.core.wire import Grant, Start
    from swarmd.ports import Clock
    from swarmd.roles.writer import LogWriter

ONE_STEP: Final = Spending(steps=1)
NOTHING: Final = Spending()
#: How many tokens an answer is expected to have when the request sets no limit.
OUTPUT_TOKENS_GUESS: Final = 1_024


class Allowance:
    """Serves one attempt. `until` waits for a condition that is looked at whenever the attempt hears something."""

    def __init__(self, start: Start, writer: LogWriter, clock: Clock) -> None:
        self._start, self._writer, self._clock = start, writer, clock
        self._opened: Purse | None = None
        self._held: dict[str, Spending] = {}
        self._reported_ms = clock.now_ms()

    @property
    def _purse(self) -> Purse:
        """Made when it is first looked into: many an attempt takes no step."""
        if self._opened is None:
            self._opened = Purse(self._start.grant)
        return self._opened

    async def afford(self, key: str, need: Spending, until: Callable[[Callable[[], bool]], Awaitable[None]]) -> None:
        """Hold back what the step under `key` may cost, instead of what was held back for it before.

        Raises `AgentFailed("budget_exhausted")`, naming what has nothing left.
        """
        self.drop(key)
        purse = self._purse
        while not purse.can(self._with_time(need)):
            if purse.asked != purse.answered:
                await until(lambda: purse.asked == purse.answered)
                continue
            total = purse.wanted(self._with_time(need))
            n = purse.ask()
            await self._writer.store(Event(self._start.task, GrantWanted(epoch=self._start.epoch, n=n, total=total)))
            await until(lambda n=n: purse.answered >= n)  # type: ignore[misc]
            if purse.answered == n and purse.refused:
                why = f"the {purse.refused} cannot pay for {key!r}: nothing is left, or all of it is reserved"
                raise AgentFailed("budget_exhausted", why, retryable=False)
        purse.take(need)
        self._held[key] = need

    def _with_time(self, need: Spending) -> Spending:
        """The same and the time that is not reported yet: whoever has none left begins nothing."""
        if self._purse.left().wall_ms is None:
            return need
        return Spending(need.tokens, need.cost_microusd, need.steps, self._unreported_ms() + 1)

    def drop(self, key: str) -> None:
        """The step did not happen, or not yet."""
        need = self._held.pop(key, None)
        if need is not None:
            self._purse.settle(need, NOTHING)

    def bill(self, fact: Fact) -> None:
        """Write into a step's record how long the attempt has run since the last one, and settle the step."""
        ran_ms = 0
        if isinstance(fact, Stepped):
            fact.ran_ms = ran_ms = self.ran_ms()
        tokens, cost = getattr(fact, "tokens", 0), getattr(fact, "cost_microusd", 0)
        need = self._held.pop(getattr(fact, "key", ""), NOTHING)
        self._purse.settle(need, Spending(tokens, cost, 1, ran_ms))

    def ran_ms(self) -> int:
        """How long the attempt ran since this was last asked: it is reported by whoever asks."""
        ran, self._reported_ms = self._unreported_ms(), self._clock.now_ms()
        return ran

    def _unreported_ms(self) -> int:
        return max(0, self._clock.now_ms() - self._reported_ms)

    def hear(self, item: Grant) -> None:
        """The leader's answer to a wish."""
        if item.epoch == self._start.epoch:
            self._purse.hear(item.n, item.total, item.refused)


def call_cost(model: str, request: ModelRequest, prices: Mapping[str, Price]) -> Spending:
    """What a call may cost: its characters / 4 and its limit of output, at the model's price; and a step."""
    chars = sum(len(turn.content) for turn in request.turns) + sum(len(f"{tool.parameters}") for tool in request.tools)
    output = request.max_output_tokens or OUTPUT_TOKENS_GUESS
    return Spending(chars // 4 + output, worth(price_of(model, prices), chars // 4, output), 1)
