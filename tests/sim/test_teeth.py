"""The simulation notices a broken rule: each of them is broken in turn, and some seed must fail for it."""

from __future__ import annotations

import pytest

from tests.sim.breaks import BREAKS, broken
from tests.sim.checks import Violation
from tests.sim.simulation import simulate

SEEDS_MAX = 60


@pytest.mark.parametrize("rule", BREAKS)
def test_a_broken_rule_is_noticed(rule: str) -> None:
    seed = next((seed for seed in range(1, SEEDS_MAX + 1) if not _passes(seed, rule)), None)
    assert seed is not None, f"with the rule {rule!r} broken, {SEEDS_MAX} seeds passed"
    assert _passes(seed, ""), "the same history with the rule in force must be sound"
    with pytest.raises(Violation, match=f"make sim SEED={seed}"):
        simulate(seed, rule)


def _passes(seed: int, rule: str) -> bool:
    try:
        simulate(seed, rule)
    except Violation:
        return False
    return True


def test_only_known_rules_can_be_broken() -> None:
    with pytest.raises(ValueError, match="no such break"), broken("gravity"):
        pass
