"""From what one simulation has seen to figures, and from the figures of many seeds to a comparison of policies."""

from __future__ import annotations

from math import sqrt
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmd.edges.simulate.shapes import Workload
    from swarmd.edges.simulate.swarm import Observed


class Result(Struct):
    """One workload of one seed under one policy.

    A sojourn is the time from a task's arrival to its verdict (ms), `wait_ms_max` the longest time to a first attempt,
    and `passed_max` how many attempts of others began during one such wait. Throughput is in tasks per second.
    `hedging_pct` is the time of slots spent on second attempts, in percent of that of all others; `makespan_ratio` the
    mean of makespan over lower bound (0: no graphs).
    """

    workload: str
    policy: str
    seed: int
    tasks: int
    completed: int
    dead: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    max_ms: float
    wait_ms_max: int
    passed_max: int
    throughput: float
    attempts: int
    failures: int
    hedges: int
    hedging_pct: float
    work_ms: int
    makespan_ratio: float = 0.0


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of `ordered` does not exceed, between neighbours by proportion; 0 of nothing."""
    if not ordered:
        return 0.0
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def measured(workload: Workload, policy: str, seen: Observed) -> Result:
    """The figures of one simulation, of the jobs that count."""
    ratios: list[float] = []
    counted = seen.jobs[workload.warm_up :]
    if workload.graphs:
        bounds = [graph.bound_ms(workload.slots()) for graph in workload.graphs]
        pairs = list(zip(seen.makespans, bounds, strict=True))[workload.warm_up :]
        ratios = [makespan / bound for makespan, bound in pairs]
    else:
        counted = [one for one in counted if workload.jobs[one.job].watched]
    sojourns: list[float] = sorted(one.ended_ms - one.came_ms for one in counted)
    first_ms = seen.jobs[0].came_ms if seen.jobs else 0
    return Result(
        workload.name,
        policy,
        workload.seed,
        len(seen.jobs),
        sum(one.verdict == "completed" for one in seen.jobs),
        sum(one.verdict == "dead" for one in seen.jobs),
        quantile(sojourns, 0.5),
        quantile(sojourns, 0.9),
        quantile(sojourns, 0.99),
        fmean(sojourns) if sojourns else 0.0,
        sojourns[-1] if sojourns else 0.0,
        max((one.began_ms - one.came_ms for one in counted if one.began_ms >= 0), default=0),
        max((one.passed for one in counted), default=0),
        (seen.attempts if workload.graphs else len(seen.jobs)) / max(1, seen.ended_ms - first_ms) * 1000,
        seen.attempts,
        seen.failures,
        seen.hedges,
        100 * seen.hedged_work_ms / max(1, seen.first_work_ms),
        seen.first_work_ms + seen.hedged_work_ms,
        fmean(ratios) if ratios else 0.0,
    )


# --- many seeds ------------------------------------------------------------------------------------

FIGURES: Final = (
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "mean_ms",
    "max_ms",
    "throughput",
    "hedging_pct",
    "makespan_ratio",
    "wait_ms_max",
    "passed_max",
    "dead",
)


class Spread(Struct):
    """A figure over seeds: its mean, and the standard deviation between seeds (0 of one)."""

    mean: float
    deviation: float


class Summary(Struct):
    """One workload under one policy, over its seeds.

    `ratio` is p99 (of graphs: the makespan) over that of `pull` with the same seed: the mean over seeds, and the
    standard error of that mean. None where `pull` was not simulated.
    """

    workload: str
    policy: str
    seeds: int
    figures: dict[str, Spread]
    ratio: Spread | None = None


def summaries(results: Sequence[Result], baseline: str = "pull") -> list[Summary]:
    """One summary for each workload and policy, in the order in which they first appear."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.workload, result.policy), []).append(result)
    found = []
    for (workload, policy), group in groups.items():
        figures = {name: _spread([getattr(one, name) for one in group]) for name in FIGURES}
        ratio = None
        if policy != baseline and (workload, baseline) in groups:
            ratio = paired(group, groups[workload, baseline])
        found.append(Summary(workload, policy, len(group), figures, ratio))
    return found


def paired(ours: Sequence[Result], theirs: Sequence[Result]) -> Spread | None:
    """The mean over seeds of our p99 over theirs with the same seed, and its standard error."""
    others = {one.seed: _judged_by(one) for one in theirs}
    ratios = [_judged_by(one) / others[one.seed] for one in ours if others.get(one.seed)]
    if not ratios:
        return None
    spread = _spread(ratios)
    return Spread(spread.mean, spread.deviation / sqrt(len(ratios)))


def _judged_by(result: Result) -> float:
    return result.makespan_ratio or result.p99_ms


def _spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0)
