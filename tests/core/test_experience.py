"""What is learned: durations, slowness, failures, marks; how fast, how exactly, and when it is forgotten."""

from __future__ import annotations

from math import exp, log

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.experience import BUCKETS_PER_E, COUNT_MAX, Learned, Pace, ended, ran, rated

BUCKET = exp(1 / BUCKETS_PER_E)


def taught(durations: list[int]) -> tuple[Learned, Pace]:
    learned, pace = Learned(), Pace()
    for n, duration_ms in enumerate(durations):
        ran(learned, pace, duration_ms, n)
    return learned, pace


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=400), st.sampled_from([0.1, 0.5, 0.9, 0.95, 0.99, 1.0]))
def test_a_quantile_is_within_a_bucket_of_the_truth(durations: list[int], share: float) -> None:
    learned, _ = taught(durations)
    ordered = sorted(durations)
    rank = next(n for n in range(len(ordered)) if n + 1 >= share * len(ordered))
    truth = ordered[rank]
    assert truth * 0.99 - 1 <= learned.quantile(share) <= truth * BUCKET * 1.01 + 1


@given(st.lists(st.integers(-5, 10**12), max_size=60), st.floats(0, 1))
def test_nothing_that_a_log_may_say_upsets_it(durations: list[int], share: float) -> None:
    learned, pace = taught([max(0, duration) for duration in durations])
    assert learned.quantile(share) >= 0
    assert learned.log_var >= 0
    assert pace.slowness() > 0
    assert msgspec.json.decode(msgspec.json.encode(learned), type=Learned) == learned


def test_a_quantile_follows_a_change() -> None:
    learned, _ = taught([100] * COUNT_MAX)
    assert learned.quantile(0.95) < 130
    pace = Pace()
    for n in range(3 * COUNT_MAX):
        ran(learned, pace, 1_000, n)
    assert learned.quantile(0.5) > 900
    assert learned.total <= COUNT_MAX
    assert abs(learned.mean_ms - 1_000) < 1


def swarm_of(slow: float, runs: int, members: int = 4) -> tuple[Learned, list[Pace]]:
    """All members by turns, the first of them so many times slower; durations vary by a factor of two either way."""
    learned, paces = Learned(), [Pace() for _ in range(members)]
    for n in range(runs * members):
        spread = (0.5, 0.8, 1.0, 1.25, 2.0)[(n * 7 + n // members) % 5]
        which = n % members
        ran(learned, paces[which], round(100 * spread * (slow if which == 0 else 1.0)), n)
    return learned, paces


@pytest.mark.parametrize("slow", [3.0, 4.0, 10.0])
def test_slowness_is_found_within_twenty_runs(slow: float) -> None:
    learned, paces = swarm_of(slow, 20)
    costs = [pace.log_cost(learned, 80) for pace in paces]
    assert costs[0] - sorted(costs)[1] > log(slow) * 0.6
    assert paces[0].slowness() > 1.5 * max(pace.slowness() for pace in paces[1:])


def test_who_is_like_the_others_is_not_called_slow() -> None:
    learned, paces = swarm_of(1.0, 20)
    costs = [pace.log_cost(learned, 80) for pace in paces]
    assert max(costs) - min(costs) < log(1.3)


def test_attempts_shorter_than_the_way_to_a_member_tell_nobody_apart() -> None:
    learned, quick, slow = Learned(), Pace(), Pace()
    for at_ms in range(200):
        ran(learned, quick, 0, at_ms)
        ran(learned, slow, 9, at_ms)
    assert quick.slowness() == slow.slowness() == 1.0


def test_what_was_seen_long_ago_is_forgotten() -> None:
    learned, paces = swarm_of(6.0, 20)
    now = paces[0].log_cost(learned, paces[0].at_ms)
    later = paces[0].log_cost(learned, paces[0].at_ms + 60_000)
    assert later == pytest.approx(now / 2, rel=0.01)
    assert paces[0].log_cost(learned, paces[0].at_ms + 900_000) < 0.01


def test_slowness_that_is_over_is_forgotten_by_what_it_does() -> None:
    learned, paces = swarm_of(6.0, 20)
    for n in range(120):
        ran(learned, paces[n % 4], 100, 80 + n)
    costs = [pace.log_cost(learned, 200) for pace in paces]
    assert max(costs) - min(costs) < log(2)


def test_failures_cost_the_attempts_that_they_take() -> None:
    learned, pace = Learned(), Pace()
    for n in range(20):
        ended(pace, n % 2 == 0, 0)
    assert pace.failing == pytest.approx(0.5, abs=0.06)
    assert pace.log_cost(learned, 0) == pytest.approx(log(2), abs=0.15)
    for _ in range(60):
        ended(pace, False, 0)
    assert pace.failing < 0.05


@given(st.lists(st.floats(-1, 1), max_size=50))
def test_marks_count_for_half(scores: list[float]) -> None:
    learned, pace = Learned(), Pace()
    for score in scores:
        rated(pace, score)
    assert -1 <= pace.score <= 1
    assert log(1 / 1.5) - 1e-9 <= pace.log_cost(learned, 0) <= log(2) + 1e-9
