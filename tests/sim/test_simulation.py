"""The default run of the simulation: two hundred seeds and more, and every seed that once failed.

The same over other seeds and over more of them is `long`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.sim.simulation import simulate

CHUNK = 20
#: Of so many first seeds it is also asked what befell them.
STRUCK = 120
SEEDS = 220
SEEDS_LONG = 2_000
FOUND = [
    int(line.split()[0])
    for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


class Tally(NamedTuple):
    """What befell a run of seeds."""

    ignored: frozenset[str]
    submitted_min: int
    takeovers: int
    executions: int
    results: int
    hedged: int
    apart: int


@cache
def tallied(first: int) -> Tally:
    """Simulate the seeds of one chunk, once per process: `Violation` if one of them breaks a promise."""
    ran = [simulate(seed).swarm.oracle for seed in range(first, first + CHUNK)]
    return Tally(
        frozenset(reason for oracle in ran for reason in oracle.state.counters.ignored),
        min(oracle.state.counters.submitted for oracle in ran),
        sum(oracle.state.term > 1 for oracle in ran),
        sum(oracle.executions for oracle in ran),
        sum(len(oracle.results) for oracle in ran),
        sum(oracle.hedged for oracle in ran),
        sum(oracle.apart for oracle in ran),
    )


@pytest.mark.parametrize("first", range(1, SEEDS + 1, CHUNK))
def test_seeds(first: int) -> None:
    tallied(first)


@pytest.mark.long
@pytest.mark.parametrize("first", range(SEEDS + 1, SEEDS_LONG + 1, CHUNK))
def test_more_seeds(first: int) -> None:
    for seed in range(first, first + CHUNK):
        simulate(seed)


def stepping(first: int, last: int, ahead_ms: int) -> None:
    for seed in range(first, last + 1):
        simulate(seed, ahead_ms=ahead_ms)


@pytest.mark.parametrize("ahead_ms", [1_500, 5 * 3_600_000])
def test_seeds_with_orchestrators_whose_clocks_step(ahead_ms: int) -> None:
    """By seconds and by hours, forwards and back, while they lead: nothing is lost and nothing happens twice."""
    stepping(1, 12, ahead_ms)


@pytest.mark.long
@pytest.mark.parametrize("ahead_ms", [1_500, 5 * 3_600_000])
def test_more_seeds_with_orchestrators_whose_clocks_step(ahead_ms: int) -> None:
    stepping(13, 200, ahead_ms)


@pytest.mark.parametrize("seed", [seed for seed in FOUND if seed > SEEDS])
def test_found_seed(seed: int) -> None:
    """Those that `test_seeds` has not run."""
    simulate(seed)


def test_one_seed_is_one_history() -> None:
    first, second = simulate(17), simulate(17)
    assert first.world.trace == second.world.trace
    assert first.swarm.log.records == second.swarm.log.records


def test_the_faults_really_strike() -> None:
    """A simulation in which nothing happens proves nothing: over some seeds every kind of refusal is seen."""
    tallies = [tallied(first) for first in range(1, STRUCK + 1, CHUNK)]
    assert frozenset[str]().union(*(tally.ignored for tally in tallies)) >= {
        "repeated",
        "beyond_horizon",
        "stale_epoch",
        "wrong_member",
        "wrong_role",
        "not_leader",
        "old_term",
        "after_verdict",
        "already_resolved",
        "not_queued",
    }
    assert min(tally.submitted_min for tally in tallies) >= 4
    assert sum(tally.takeovers for tally in tallies) > 30
    assert sum(tally.executions for tally in tallies) > 1500
    assert sum(tally.results for tally in tallies) > 500
    assert sum(tally.hedged for tally in tallies) > 50
    assert sum(tally.apart for tally in tallies) > 10
