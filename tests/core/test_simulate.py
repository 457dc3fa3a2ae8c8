"""Policies of placement, compared by running the real core on a virtual clock."""

from __future__ import annotations

import pytest

from swarmd.core.errors import Rejected
from swarmd.edges.simulate.run import simulate


def test_the_same_seed_is_the_same_history() -> None:
    first = simulate("steady", "pull", 7, tasks=200)
    assert first == simulate("steady", "pull", 7, tasks=200)
    assert first != simulate("steady", "pull", 8, tasks=200)


@pytest.mark.parametrize("workload", ["steady", "slow-quarter", "stragglers", "failing", "bursts", "mixed", "tenants"])
def test_every_task_gets_its_verdict(workload: str) -> None:
    result = simulate(workload, "pull", 1, tasks=300)
    assert result.completed == result.tasks == 300
    assert 0 < result.p50_ms <= result.p90_ms <= result.p99_ms <= result.max_ms


def test_no_schedule_is_shorter_than_its_bound() -> None:
    result = simulate("dag", "pull", 1, tasks=360)
    assert result.completed == result.tasks == 5
    assert 1.0 <= result.makespan_ratio < 1.3


@pytest.mark.parametrize(("workload", "policy"), [("stedy", "pull"), ("steady", "pul")])
def test_what_does_not_exist_is_named_with_what_does(workload: str, policy: str) -> None:
    with pytest.raises(Rejected, match=r"no (workload|policy) .* choose one of"):
        simulate(workload, policy)
