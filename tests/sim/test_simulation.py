"""The default run of the simulation: three hundred seeds, and every seed that once failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.simulation import simulate

CHUNK = 20
SEEDS = 320
FOUND = [
    int(line.split()[0])
    for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("first", range(1, SEEDS + 1, CHUNK))
def test_seeds(first: int) -> None:
    for seed in range(first, first + CHUNK):
        simulate(seed)


@pytest.mark.parametrize("ahead_ms", [1_500, 5 * 3_600_000])
def test_seeds_with_orchestrators_whose_clocks_step(ahead_ms: int) -> None:
    """By seconds and by hours, forwards and back, while they lead: nothing is lost and nothing happens twice."""
    for seed in range(1, 25):
        simulate(seed, ahead_ms=ahead_ms)


@pytest.mark.parametrize("seed", FOUND)
def test_found_seed(seed: int) -> None:
    simulate(seed)


def test_one_seed_is_one_history() -> None:
    first, second = simulate(17), simulate(17)
    assert first.world.trace == second.world.trace
    assert first.swarm.log.records == second.swarm.log.records


def test_the_faults_really_strike() -> None:
    """A simulation in which nothing happens proves nothing: over some seeds every kind of refusal is seen."""
    ignored: set[str] = set()
    takeovers = executions = results = hedged = apart = 0
    for seed in range(1, 121):
        simulation = simulate(seed)
        counters = simulation.swarm.oracle.state.counters
        ignored.update(counters.ignored)
        takeovers += simulation.swarm.oracle.state.term > 1
        executions += simulation.swarm.oracle.executions
        results += len(simulation.swarm.oracle.results)
        hedged += simulation.swarm.oracle.hedged
        apart += simulation.swarm.oracle.apart
        assert counters.submitted >= 4
    assert ignored >= {
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
    assert takeovers > 30
    assert executions > 1500
    assert results > 500
    assert hedged > 50
    assert apart > 10
