"""The gate before an endpoint: how many calls at once, whether any at all, and at what rate.

Job: apply the pure machines of `core.model_limits` to the calls of one process; one gate per provider, shared by its
models. Invariants: waiting is bounded and in order of arrival, and a wait that would be longer is a `Fault` that says
how long; what a call was let in with is given back however it ends, also when it is cancelled. The rate is shared with
other processes through a `RateLedger`. A gated model still makes exactly one call.
Must not know: HTTP, providers, agents.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.model_limits import REFUSED, SLICE_MS, Breaker, Buckets, Concurrency, Rate, Slice, full, take, wish_of
from swarmd.core.prices import priced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from swarmd.core.prices import Price
    from swarmd.core.turns import ModelReply, ModelRequest
    from swarmd.ports import Clock, Meter, Model, RateLedger

#: How long a call may wait for its turn: as long as the calls before it may take. It costs a slot and no more.
TURN_WAIT_MS_MAX: Final = 600_000
#: How long it may wait for a rate; a longer wait is the caller's, as a timer and not as a held slot.
RATE_WAIT_MS_MAX: Final = 30_000
WAITING_MAX: Final = 10_000
#: Output tokens expected of a call that sets no limit, until its usage is known.
OUTPUT_TOKENS_GUESS: Final = 500


NO_LIMIT: Final = Rate()


class Entered(Struct):
    """A call that was let in: when, with how many tokens, and whether it is the breaker's probe."""

    at_ms: int
    tokens: int
    is_probe: bool


class LocalRates:
    """A `RateLedger` of one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[str, Buckets] = {}

    async def lease(self, provider: str, rate: Rate, need: Slice, wish: Slice) -> tuple[Slice, int]:
        now = self._clock.now_ms()
        return take(self._buckets.setdefault(provider, full(rate, now)), rate, need, wish, now)


class Gate:
    """One provider's gate. `share` replaces the ledger and the meter once there are some."""

    def __init__(self, provider: str, clock: Clock, rate: Rate = NO_LIMIT, concurrency_max: int = 64) -> None:
        self.provider = provider
        self.concurrency = Concurrency(highest=concurrency_max)
        self.breaker = Breaker()
        self._clock, self._rate = clock, rate
        self._ledger: RateLedger = LocalRates(clock)
        self._meter: Meter | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._drawing = asyncio.Lock()
        self._held, self._held_until, self._debt = Slice(), 0, 0

    def share(self, ledger: RateLedger, meter: Meter | None) -> None:
        self._ledger, self._meter = ledger, meter

    async def enter(self, tokens: int) -> Entered:
        """Wait for a turn. Raises `Fault("circuit_open" | "rate_limited" | "rate_wait" | "endpoint_busy")`, with how
        long to wait,
        `Rejected("request_over_limit")` for a call that no minute has room for."""
        self._refuse_if_open()
        limit = self._rate.tokens_per_minute
        if limit and tokens > limit:
            raise Rejected(
                "request_over_limit",
                f"a call of about {tokens} tokens is over the {limit} a minute that [provider.{self.provider}] allows: "
                "shorten it, or raise tokens_per_minute",
            )
        await self._take_turn()
        try:
            if self._rate.limited:
                await self._draw(tokens)
            self._refuse_if_open()
        except BaseException:
            self._hand_on(None, 0)
            raise
        return Entered(self._clock.now_ms(), tokens, self.breaker.began())

    def leave(self, entered: Entered, code: str | None, *, retry_after_ms: int | None = None, used: int = 0) -> None:
        """The call ended with error `code` ("" for none, None for cancelled) and used so many tokens (0: unknown)."""
        now = self._clock.now_ms()
        if used:
            self._settle(used - entered.tokens, now)
        if code == "rate_limited" and retry_after_ms:
            self.breaker.pause(now, retry_after_ms)
        self.breaker.ended(code, entered.is_probe, now)
        self._hand_on(code, entered.at_ms)
        if self._meter is not None:
            self._meter.gauge("swarmd_model_concurrency", self.concurrency.limit, self.provider)
            self._meter.gauge("swarmd_model_circuit_open", int(self.breaker.tripped), self.provider)

    def _refuse_if_open(self) -> None:
        wait = self.breaker.wait_ms(self._clock.now_ms())
        if not wait:
            return
        if self.breaker.tripped:
            words = f"{self.provider} failed {self.breaker.failures} times in a row and is left alone for {wait} ms"
            raise Fault("circuit_open", words, retry_after_ms=wait)
        raise Fault("rate_limited", f"{self.provider} asked to wait for {wait} ms more", retry_after_ms=wait)

    async def _take_turn(self) -> None:
        if self.concurrency.free and not self._waiting:
            self.concurrency.began()
            return
        if len(self._waiting) >= WAITING_MAX:
            raise Fault("endpoint_busy", f"{WAITING_MAX} calls wait for {self.provider} already", retry_after_ms=1_000)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(TURN_WAIT_MS_MAX / 1000):
                await asyncio.shield(turn)
        except BaseException as error:
            if turn.done():  # it was this call's turn in the very moment that it gave up
                self._hand_on(None, 0)
            turn.cancel()
            if not isinstance(error, TimeoutError):
                raise
            words = f"too many calls wait for {self.provider}: none got its turn within {TURN_WAIT_MS_MAX} ms"
            raise Fault("endpoint_busy", words, retry_after_ms=1_000) from None

    def _hand_on(self, code: str | None, started_ms: int) -> None:
        self.concurrency.ended(code, started_ms, self._clock.now_ms())
        while self._waiting and (self._waiting[0].done() or self.concurrency.free):
            turn = self._waiting.popleft()
            if not turn.done():
                self.concurrency.began()
                turn.set_result(None)

    async def _draw(self, tokens: int) -> None:
        """Take one request and its tokens from the slice at hand, or lease the next slice."""
        deadline = self._clock.now_ms() + RATE_WAIT_MS_MAX
        tokens = tokens if self._rate.tokens_per_minute else 0
        try:
            async with asyncio.timeout(RATE_WAIT_MS_MAX / 1000), self._drawing:
                while True:
                    now, held = self._clock.now_ms(), self._held
                    if now < self._held_until and held.requests >= 1 and held.tokens >= tokens:
                        self._held = Slice(held.requests - 1, held.tokens - tokens)
                        return
                    need = Slice(1, tokens + self._debt)
                    leased, wait = await self._ledger.lease(self.provider, self._rate, need, wish_of(self._rate, need))
                    if not wait:
                        # What was left of the former slice is given up: it may have been leased too long ago.
                        self._held = Slice(leased.requests, leased.tokens - self._debt)
                        self._held_until, self._debt = now + SLICE_MS, 0
                        continue
                    if now + wait > deadline:
                        raise self._over_rate(wait)
                    await self._clock.sleep(wait)
        except TimeoutError:
            raise self._over_rate(RATE_WAIT_MS_MAX) from None

    def _over_rate(self, wait_ms: int) -> Fault:
        words = f"the rate that [provider.{self.provider}] allows is used up for {wait_ms} ms"
        return Fault("rate_wait", words, retry_after_ms=wait_ms)

    def _settle(self, more: int, now_ms: int) -> None:
        """A call used more (or fewer) tokens than it was let in with."""
        if more > 0:
            self._debt += more if self._rate.tokens_per_minute else 0
        elif now_ms < self._held_until:
            self._held = Slice(self._held.requests, self._held.tokens - more)


class GatedModel:
    """A model behind its provider's gate, with its replies priced and its calls measured."""

    def __init__(
        self, model: Model, gate: Gate, prices: Mapping[str, Price], meter: Callable[[], Meter | None]
    ) -> None:
        self.name = model.name
        self.inner = model
        self._gate, self._prices, self._meter = gate, prices, meter

    async def complete(self, request: ModelRequest, on_delta: Callable[[str], None] | None = None) -> ModelReply:
        """As the model's own; before any call is made also what `Gate.enter` raises."""
        entered = await self._gate.enter(expected_tokens(request))
        try:
            reply = await self.inner.complete(request, on_delta)
        except Fault as error:
            self._gate.leave(entered, error.code, retry_after_ms=error.retry_after_ms)
            raise
        except SwarmdError:
            self._gate.leave(entered, REFUSED)
            raise
        except BaseException:
            self._gate.leave(entered, None)
            raise
        self._gate.leave(entered, "", used=reply.usage.input_tokens + reply.usage.output_tokens)
        self._account(reply)
        return reply

    async def close(self) -> None:
        await self.inner.close()

    def _account(self, reply: ModelReply) -> None:
        known = priced(reply.model, self.name, reply.usage, self._prices)
        meter = self._meter()
        if meter is None:
            return
        if known:
            meter.count("swarmd_model_cost_usd_total", self.name, by=(reply.usage.cost_microusd or 0) / 1_000_000)
        else:
            meter.count("swarmd_model_unpriced_total", self.name)
        if reply.first_token_ms is not None:
            meter.observe("swarmd_model_first_token_seconds", reply.first_token_ms / 1000, self.name)
        for call in reply.tool_calls:
            if call.problem:
                meter.count("swarmd_model_bad_tool_calls_total", self.name)


def expected_tokens(request: ModelRequest) -> int:
    """Input and output tokens that a call will need, by its characters / 4 and its limit of output."""
    chars = sum(len(turn.content) for turn in request.turns)
    return chars // 4 + (request.max_output_tokens or OUTPUT_TOKENS_GUESS)
