"""How hard an endpoint may be pushed: three pure machines, with time handed in and integers only.

- `Concurrency`: calls at once, by additive increase and multiplicative decrease (Chiu and Jain, "Analysis of the
  Increase and Decrease Algorithms for Congestion Avoidance", 1989): up by one per round of full use, halved when it is
  too much.
- `Breaker`: after failures in a row nothing is sent for a while, then one probe decides (Nygard, "Release It!", 2007).
- `Buckets`: requests and tokens per minute (a token bucket each), shared by all who write the same state.

Nothing here knows who calls, or where the shared state is kept.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

#: Fault codes that say that an endpoint has more to do than it can.
OVERLOAD: Final = frozenset({"rate_limited", "model_timeout", "model_stalled", "model_unavailable"})
#: Stands for every refusal of a request: what was asked is wrong, or the account.
REFUSED: Final = "refused"
#: Codes that say nothing against an endpoint's health: it answered, and soundly so for an HTTP server.
HEALTHY: Final = frozenset({"rate_limited", "bad_tool_call", REFUSED})
MILLI: Final = 1_000
MINUTE_MS: Final = 60_000


class Concurrency(Struct):
    """`limit_milli` thousandths of calls may be in flight; between `lowest` and `highest`."""

    highest: int = 64
    limit_milli: int = 16_000
    in_flight: int = 0
    decreased_at_ms: int = 0

    def __post_init__(self) -> None:
        self.limit_milli = min(self.limit_milli, self.highest * MILLI)

    @property
    def limit(self) -> int:
        return self.limit_milli // MILLI

    @property
    def free(self) -> bool:
        return self.in_flight < self.limit

    def began(self) -> None:
        self.in_flight += 1

    def ended(self, code: str | None, started_ms: int, now_ms: int) -> None:
        """A call ended with error `code` ("" for success, None for cancelled).

        One overload halves once, however many calls it hit: those that began before the last halving count no more.
        """
        full = self.in_flight >= self.limit
        self.in_flight -= 1
        if code in OVERLOAD:
            if started_ms >= self.decreased_at_ms:
                self.limit_milli = max(MILLI, self.limit_milli // 2)
                self.decreased_at_ms = now_ms
        elif code == "" and full:  # what was not used proves nothing
            self.limit_milli = min(self.highest * MILLI, self.limit_milli + MILLI * MILLI // self.limit_milli)


class Breaker(Struct):
    """Closed, open until `open_until_ms`, or probing. Each failed probe doubles the time to the next one."""

    failures_max: int = 5
    open_ms: int = 2_000
    open_ms_max: int = 60_000
    failures: int = 0
    trips: int = 0
    open_until_ms: int = 0
    probing: bool = False

    def wait_ms(self, now_ms: int) -> int:
        """0 when a call may be made; else how long to wait at least."""
        if now_ms < self.open_until_ms:
            return self.open_until_ms - now_ms
        return self.open_ms if self.probing else 0

    @property
    def tripped(self) -> bool:
        return self.trips > 0

    def began(self) -> bool:
        """A call begins; whether it is the probe of a breaker that was open."""
        self.probing = self.tripped
        return self.probing

    def ended(self, code: str | None, was_probe: bool, now_ms: int) -> None:
        """A call ended with error `code` ("" for success), or without one to judge by (None: it was cancelled)."""
        if was_probe:
            self.probing = False
        if code is None:
            return
        if not code or code in HEALTHY:
            if self.tripped:
                self.open_until_ms = now_ms  # a call that began before has got through: nobody need wait any more
            self.failures = self.trips = 0
            return
        self.failures += 1
        if self.tripped and not was_probe:
            return  # it began before the breaker opened: its failure is no news
        if self.tripped or self.failures >= self.failures_max:
            self.open_until_ms = now_ms + min(self.open_ms_max, self.open_ms << min(self.trips, 20))
            self.trips += 1

    def pause(self, now_ms: int, wait_ms: int) -> None:
        """The endpoint asked to be left alone for so long (at most the longest open time)."""
        self.open_until_ms = max(self.open_until_ms, now_ms + min(wait_ms, self.open_ms_max))


class Rate(Struct, frozen=True):
    """What a provider allows in a minute; 0 is no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0

    @property
    def limited(self) -> bool:
        return bool(self.requests_per_minute or self.tokens_per_minute)


class Slice(Struct, frozen=True):
    """A part of a rate: so many requests and so many tokens."""

    requests: int = 0
    tokens: int = 0


class Bucket(Struct):
    """One limit. `level` is in units of 1 / (60,000 * 100), so that refilling by the millisecond stays exact."""

    level: int = 0


class Buckets(Struct):
    """The shared state of one provider's rate: what may be taken at `at_ms`, the latest time any taker has seen.

    Clocks of several machines differ; the latest one counts, so a slow clock gets nothing twice.
    """

    at_ms: int
    requests: Bucket
    tokens: Bucket


# Of a limit L per minute the bucket holds 10 % and is refilled by 85 % a minute. A slice that is taken may be used up
# to two seconds later (3 %), so no minute whatsoever sees more than L, except for a single call larger than 15 % of L.
BURST_PERCENT: Final = 10
REFILL_PERCENT: Final = 85
SLICE_MS: Final = 2_000
UNIT: Final = MINUTE_MS * 100
#: What is leased of a limit that is none.
UNLIMITED: Final = 1 << 40


def _capacity(limit: int) -> int:
    return max(UNIT, limit * BURST_PERCENT * MINUTE_MS)


def full(rate: Rate, now_ms: int) -> Buckets:
    """The state before anybody took anything."""
    return Buckets(now_ms, Bucket(_capacity(rate.requests_per_minute)), Bucket(_capacity(rate.tokens_per_minute)))


def take(buckets: Buckets, rate: Rate, need: Slice, wish: Slice, now_ms: int) -> tuple[Slice, int]:
    """Take at least `need` and up to `wish`, in place; the slice taken, or an empty one and how long to wait (ms).

    A call larger than the bucket waits for a full one and leaves a debt that later calls wait for.
    """
    elapsed, buckets.at_ms = max(0, now_ms - buckets.at_ms), max(now_ms, buckets.at_ms)
    pairs = (
        (buckets.requests, rate.requests_per_minute, need.requests, wish.requests),
        (buckets.tokens, rate.tokens_per_minute, need.tokens, wish.tokens),
    )
    wait = 0
    for bucket, limit, least, _ in pairs:
        if not limit:
            continue
        bucket.level = min(_capacity(limit), bucket.level + elapsed * limit * REFILL_PERCENT)
        missing = min(least * UNIT, _capacity(limit)) - bucket.level
        if missing > 0:
            wait = max(wait, -(-missing // (limit * REFILL_PERCENT)))
    if wait:
        return Slice(), wait
    taken = []
    for bucket, limit, least, most in pairs:
        amount = max(least, min(most, bucket.level // UNIT)) if limit else most
        bucket.level -= amount * UNIT if limit else 0
        taken.append(amount)
    return Slice(*taken), 0


def wish_of(rate: Rate, need: Slice) -> Slice:
    """What to lease at once: a second's worth, so that a busy worker asks about once a second."""
    requests, tokens = rate.requests_per_minute, rate.tokens_per_minute
    return Slice(
        max(need.requests, requests // 60) if requests else UNLIMITED,
        max(need.tokens, tokens // 60) if tokens else UNLIMITED,
    )
