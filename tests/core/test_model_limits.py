"""The pure policies for endpoints: retries, prices, concurrency, breaker, rates."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.errors import Fault, Rejected
from swarmd.core.model_limits import MILLI, Breaker, Concurrency, Rate, Slice, full, take, wish_of
from swarmd.core.model_retry import RetryLimits, model_order, next_delay, try_elsewhere, turned_away
from swarmd.core.prices import PRICES, Price, cost_of, price_of, priced, worth
from swarmd.core.turns import Usage

ALL_BITS = (1 << 32) - 1


class TestRetries:
    def test_the_ceiling_doubles_and_the_wait_is_anywhere_below(self) -> None:
        fault = Fault("model_unavailable", "x")
        assert [next_delay(n, fault, ALL_BITS, RetryLimits(9)) for n in (1, 2, 3, 8)] == [499, 999, 1999, 29_999]
        assert next_delay(3, fault, 0) == 0
        assert next_delay(9, fault, 0) is None

    def test_what_the_server_asks_for_goes_first(self) -> None:
        assert next_delay(1, Fault("rate_limited", "x", retry_after_ms=7_000), 0) == 7_000
        assert next_delay(1, Fault("rate_limited", "x", retry_after_ms=7_000), ALL_BITS) == 7_499
        assert next_delay(1, Fault("rate_limited", "x", retry_after_ms=3_600_000), 0) is None

    def test_who_was_turned_away_comes_again_however_often(self) -> None:
        away = Fault("rate_wait", "x", retry_after_ms=40_000)
        assert next_delay(999, away, 0) == 40_000
        assert next_delay(999, away, ALL_BITS) == 79_999
        assert turned_away(away)
        assert not turned_away(Fault("rate_limited", "x"))

    @pytest.mark.parametrize(
        ("code", "elsewhere"), [("bad_request", False), ("insufficient_quota", True), ("context_too_long", True)]
    )
    def test_a_refusal_is_not_repeated_but_may_be_asked_elsewhere(self, code: str, elsewhere: bool) -> None:
        assert next_delay(1, Rejected(code, "x"), 0) is None
        assert try_elsewhere(Rejected(code, "x")) is elsewhere

    @given(st.integers(1, 60), st.integers(0, ALL_BITS), st.none() | st.integers(0, 10**7))
    def test_every_wait_is_bounded(self, failures: int, bits: int, asked: int | None) -> None:
        limits = RetryLimits(retries=60)
        wait = next_delay(failures, Fault("x", "y", retry_after_ms=asked), bits, limits)
        assert wait is None or 0 <= wait <= limits.retry_after_ms_max + limits.base_ms

    @pytest.mark.parametrize(
        ("chosen", "expected"),
        [("", ("d:d", "f:f")), ("a:a", ("a:a", "f:f")), (["a:a", "b:b", "a:a"], ("a:a", "b:b")), ([], ("d:d", "f:f"))],
    )
    def test_the_order_of_models(self, chosen: Any, expected: tuple[str, ...]) -> None:
        assert model_order(chosen, "d:d", ["f:f"]) == expected


class TestPrices:
    def test_costs_are_whole_and_rounded_up(self) -> None:
        assert worth(Price(2_500_000, 10_000_000), 1_000, 100) == 2_500 + 1_000
        assert worth(Price(150_000, 600_000), 1, 0) == 1
        assert cost_of("openai:gpt-4o-mini", Usage(1_000_000, 1_000_000)) == 750_000
        assert cost_of("nobody:knows", Usage(9, 9)) == 0

    def test_dated_names_overrides_and_local_models(self) -> None:
        assert price_of("openai:gpt-4o-2024-08-06") == PRICES["openai:gpt-4o"]
        assert price_of("openai:gpt-4o-mini-2024-07-18") == PRICES["openai:gpt-4o-mini"]
        assert price_of("openai:gpt-4o-audio") is None
        assert price_of("openai:gpt-4o", {"openai:gpt-4o": Price(1, 2)}) == Price(1, 2)
        assert price_of("ollama:llama") == Price(0, 0)

    def test_the_bill_of_the_provider_goes_first_and_unknown_is_said(self) -> None:
        billed, guessed, unknown = Usage(1, 1, cost_microusd=77), Usage(1_000_000, 0), Usage(1, 1)
        assert priced("openai:gpt-4o", "openai:gpt-4o", billed)
        assert priced("openai:some-alias", "openai:gpt-4o", guessed)
        assert not priced("x:y", "x:y", unknown)
        assert (billed.cost_microusd, guessed.cost_microusd, unknown.cost_microusd) == (77, 2_500_000, None)
        assert cost_of("openai:gpt-4o", billed) == 77


class TestConcurrency:
    def test_one_overload_halves_once_and_full_use_grows(self) -> None:
        limits = Concurrency()
        for _ in range(16):
            limits.began()
        assert not limits.free
        for _ in range(8):
            limits.ended("rate_limited", started_ms=10, now_ms=20)
        assert limits.limit == 8
        limits.ended("rate_limited", started_ms=30, now_ms=40)
        assert limits.limit == 4
        for _ in range(4):
            limits.began()
        before = limits.limit_milli
        limits.ended("", 50, 60)
        assert limits.limit_milli == before + MILLI // 4

    @given(st.lists(st.sampled_from(["", "rate_limited", "bad_answer", None]), max_size=60), st.integers(1, 40))
    def test_it_stays_within_its_bounds(self, ends: list[str | None], highest: int) -> None:
        limits = Concurrency(highest=highest)
        for now, code in enumerate(ends):
            limits.began()
            limits.ended(code, now, now)
            assert 1 <= limits.limit <= highest
            assert limits.in_flight == 0


class TestBreaker:
    def failing(self, times: int) -> Breaker:
        breaker = Breaker()
        for _ in range(times):
            breaker.ended("model_unavailable", breaker.began(), 0)
        return breaker

    def test_it_opens_after_failures_in_a_row_and_one_probe_decides(self) -> None:
        assert self.failing(4).wait_ms(0) == 0
        breaker = self.failing(5)
        assert (breaker.wait_ms(0), breaker.wait_ms(1_999), breaker.wait_ms(2_000)) == (2_000, 1, 0)
        assert breaker.began()
        assert breaker.wait_ms(2_000) > 0  # one probe at a time
        breaker.ended("model_timeout", True, 2_000)
        assert breaker.wait_ms(2_000) == 4_000
        assert breaker.began()
        breaker.ended("", True, 6_000)
        assert (breaker.wait_ms(6_000), breaker.tripped) == (0, False)

    def test_late_failures_and_cancelled_probes_change_nothing(self) -> None:
        breaker = self.failing(5)
        breaker.ended("model_unavailable", False, 100)
        assert breaker.wait_ms(100) == 1_900
        breaker.ended(None, breaker.began(), 2_000)
        assert breaker.wait_ms(2_000) == 0

    def test_rate_limits_are_no_failures_but_a_pause(self) -> None:
        breaker = Breaker()
        for _ in range(50):
            breaker.ended("rate_limited", breaker.began(), 0)
        breaker.pause(0, 3_000)
        assert (breaker.wait_ms(1_000), breaker.wait_ms(3_000)) == (2_000, 0)


class TestRates:
    @given(
        st.integers(1, 900),
        st.lists(st.tuples(st.integers(0, 4_000), st.integers(1, 3)), min_size=1, max_size=250),
    )
    def test_no_minute_sees_more_than_the_limit(self, limit: int, asks: list[tuple[int, int]]) -> None:
        """Clocks of two takers, one of them two seconds behind."""
        rate, now, granted = Rate(requests_per_minute=limit), 10_000, list[tuple[int, int]]()
        buckets = full(rate, now)
        for index, (pause, _) in enumerate(asks):
            now += pause
            leased, wait = take(buckets, rate, Slice(1), wish_of(rate, Slice(1)), now - 2_000 * (index % 2))
            assert (wait == 0) == (leased.requests > 0)
            granted.append((now, leased.requests))
        for start, _ in granted:
            assert sum(count for at, count in granted if start <= at < start + 60_000) <= max(limit, 1)

    def test_a_wait_is_as_long_as_it_says(self) -> None:
        rate = Rate(tokens_per_minute=60_000)
        buckets = full(rate, 0)
        assert take(buckets, rate, Slice(1, 6_000), Slice(1, 6_000), 0)[1] == 0
        _, wait = take(buckets, rate, Slice(1, 500), Slice(1, 500), 0)
        assert take(buckets, rate, Slice(1, 500), Slice(1, 500), wait - 1)[1] == 1
        assert take(buckets, rate, Slice(1, 500), Slice(1, 500), wait)[1] == 0

    def test_a_call_larger_than_the_bucket_leaves_a_debt(self) -> None:
        rate = Rate(tokens_per_minute=60_000)
        buckets = full(rate, 0)
        leased, wait = take(buckets, rate, Slice(1, 30_000), Slice(1, 30_000), 0)
        assert (leased.tokens, wait) == (30_000, 0)
        assert take(buckets, rate, Slice(1, 1), Slice(1, 1), 0)[1] > 25_000
