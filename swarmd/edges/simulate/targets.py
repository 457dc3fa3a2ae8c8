"""What placement is held to: every promise that figures can keep or break, and which of them these figures break.

"No worse than" allows for chance: the mean over seeds of our p99 over theirs, with the same seed, may exceed 1 by no
more than its standard error, or by half a percent where that is more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from swarmd.edges.simulate.results import paired

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmd.edges.simulate.results import Result

OURS: Final = "adaptive"
BASELINE: Final = "pull"
#: p99 of ours over that of the baseline, at most.
RATIOS_MAX: Final = {"slow-quarter": 0.8, "stragglers": 1 / 3}
#: A difference of p99 that nobody would notice, however certain it is.
ALIKE: Final = 0.005
#: What hedging may cost, in percent of all other work.
HEDGING_PCT_MAX: Final = 5.0
MAKESPAN_RATIO_MAX: Final = 1.05
#: So many attempts of a tenant that floods the swarm may begin before the single task of another one.
PASSED_MAX: Final = 1


def missed(results: Sequence[Result]) -> list[str]:
    """Each broken promise in words; none for what was not simulated."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.workload, result.policy), []).append(result)
    found = []
    for (workload, policy), ours in groups.items():
        if policy == OURS:
            found += _worse(workload, ours, groups.get((workload, BASELINE), []))
            found += _costly(workload, ours)
    return found


def _worse(workload: str, ours: list[Result], theirs: list[Result]) -> list[str]:
    ratio = paired(ours, theirs)
    if ratio is None:
        return []
    found, said = [], f"{workload}: {OURS} takes {ratio.mean:.3f} ±{ratio.deviation:.3f} of {BASELINE}"
    if ratio.mean > 1 + max(ratio.deviation, ALIKE) + 1e-9:  # one seed that differs is as much as its error
        found.append(f"{said}, more than 1")
    if ratio.mean > RATIOS_MAX.get(workload, ratio.mean):
        found.append(f"{said}, more than {RATIOS_MAX[workload]:.2f}")
    return found


def _costly(workload: str, ours: list[Result]) -> list[str]:
    found, seeds = [], len(ours)
    hedging = sum(one.hedging_pct for one in ours) / seeds
    makespan = sum(one.makespan_ratio for one in ours) / seeds
    passed = max(one.passed_max for one in ours)
    lost = sum(one.tasks - one.completed for one in ours)
    if hedging > HEDGING_PCT_MAX:
        found.append(f"{workload}: hedging costs {hedging:.1f} %, more than {HEDGING_PCT_MAX:.0f}")
    if makespan > MAKESPAN_RATIO_MAX:
        found.append(f"{workload}: makespans are {makespan:.3f} times their bound, more than {MAKESPAN_RATIO_MAX}")
    if workload == "tenants" and passed > PASSED_MAX:
        found.append(f"{workload}: {passed} attempts of others began before a single task, more than {PASSED_MAX}")
    if lost:
        found.append(f"{workload}: {lost} tasks were not completed")
    return found
