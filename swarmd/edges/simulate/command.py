"""`swarmd simulate`: flags to simulations in several processes, and their results as a table, JSON or a picture."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, to_builtins
from msgspec.json import encode

from swarmd.core.errors import Rejected
from swarmd.edges.simulate.plot import picture
from swarmd.edges.simulate.results import Result, Summary, summaries
from swarmd.edges.simulate.run import POLICIES, simulate
from swarmd.edges.simulate.shapes import Workload
from swarmd.edges.simulate.targets import missed
from swarmd.edges.simulate.workloads import GENERATORS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence


SEEDS: Final = 5
ALL: Final = "all"


class Cell(Struct, frozen=True):
    """One simulation that is wanted."""

    workload: str | Workload
    policy: str
    seed: int
    sizes: dict[str, int]

    def run(self) -> Result:
        return simulate(self.workload, self.policy, self.seed, **self.sizes)


def wanted(args: argparse.Namespace, recorded: Workload | None = None) -> list[Cell]:
    """What the flags ask for. Raises `Rejected("bad_usage")` for what makes no sense."""
    for flag in ("seeds", "first_seed", "tasks", "members", "slots", "jobs"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise Rejected("bad_usage", f"--{flag.replace('_', '-')} must be at least 1, not {value}")
    policies = _chosen("policy", args.policy, POLICIES)
    workloads: Sequence[str | Workload]
    sizes = {"tasks": args.tasks, "members": args.members, "slots": args.slots}
    if recorded is not None:
        workloads, seeds = [recorded], args.seeds or 1
    else:
        workloads, seeds = _chosen("workload", args.workload, tuple(GENERATORS)), args.seeds or SEEDS
    given = {name: value for name, value in sizes.items() if value}
    return [
        Cell(workload, policy, args.first_seed + number, given)
        for workload in workloads
        for number in range(seeds)
        for policy in policies
    ]


def _chosen(what: str, given: list[str] | None, known: Sequence[str]) -> list[str]:
    """The names given, by repeated flags or with commas; all that are known if none is."""
    names = [name.strip() for text in given or [ALL] for name in text.split(",")]
    for name in names:
        if name != ALL and name not in known:
            raise Rejected("bad_usage", f"--{what} {name!r}: choose from {', '.join(known)}, or {ALL}")
    return list(known) if ALL in names else list(dict.fromkeys(names))


def run(args: argparse.Namespace, as_json: bool, recorded: Workload | None = None) -> tuple[str, list[str]]:
    """Simulate all that is wanted; what to print, and which targets are missed. Writes the picture if one is named."""
    cells, plot = wanted(args, recorded), Path(args.plot) if args.plot else None
    if plot is not None and (plot.suffix != ".svg" or not plot.absolute().parent.is_dir()):
        raise Rejected("bad_usage", f"--plot {args.plot}: name a file that ends in .svg, in a directory that exists")
    results = all_of(cells, args.jobs or os.cpu_count() or 1, _progress)
    summed = summaries(results)
    if plot is not None:
        plot.write_text(picture(summed), encoding="utf-8")
    late = missed(results)
    return (encode(report(results, summed, late)).decode() if as_json else table(summed)), late


def all_of(cells: Sequence[Cell], processes: int, tell: Callable[[int, int, Result], None]) -> list[Result]:
    """Every result, in the order of `cells`; `tell` hears of each as it comes, with how many there are of how many."""
    found: list[Result | None] = [None] * len(cells)
    for done, (at, result) in enumerate(_each(cells, min(processes, len(cells))), 1):
        found[at] = result
        tell(done, len(cells), result)
    return [result for result in found if result is not None]


def _each(cells: Sequence[Cell], processes: int) -> Iterator[tuple[int, Result]]:
    if processes == 1:
        yield from ((at, cell.run()) for at, cell in enumerate(cells))
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _deaf) as pool:
        running = {pool.submit(cell.run): at for at, cell in enumerate(cells)}
        try:
            yield from ((running[done], done.result()) for done in as_completed(running))
        finally:
            pool.shutdown(cancel_futures=True)


def _deaf() -> None:
    """Ctrl-C reaches the whole group of processes; the one that was started by a person is to end it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _progress(done: int, total: int, result: Result) -> None:
    text = f"{done}/{total}  {result.workload}, {result.policy}, seed {result.seed}: p99 {result.p99_ms / 1000:.2f} s"
    print(text, file=sys.stderr, flush=True)


# --- what is told ----------------------------------------------------------------------------------

TIMES: Final = ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "max_ms", "wait_ms_max")
COLUMNS: Final = (
    *("workload", "policy", "p50 s", "p90 s", "p99 s", "mean s", "max s", "worst wait s"),
    *("tasks/s", "hedging %", "makespan/bound", "p99/pull"),
)


def report(results: Sequence[Result], summed: Sequence[Summary], late: list[str]) -> dict[str, Any]:
    """All figures of all seeds, their summaries, and the targets that are missed."""
    return {"summaries": to_builtins(summed), "missed": late, "runs": to_builtins(results)}


def table(summed: Sequence[Summary]) -> str:
    """For people: means over seeds; p99 with its deviation between seeds, the comparison with its standard error."""
    from swarmd.edges.cli.session import table as aligned

    return aligned(list(COLUMNS), [_row(one) for one in summed])


def _row(one: Summary) -> list[str]:
    times = {name: f"{one.figures[name].mean / 1000:.2f}" for name in TIMES}
    if one.seeds > 1:
        times["p99_ms"] += f" ±{one.figures['p99_ms'].deviation / 1000:.2f}"
    bound, ratio = one.figures["makespan_ratio"].mean, ""
    if one.ratio is not None:
        ratio = f"{one.ratio.mean:.3f}" + (f" ±{one.ratio.deviation:.3f}" if one.seeds > 1 else "")
    return [
        one.workload,
        one.policy,
        *times.values(),
        f"{one.figures['throughput'].mean:.2f}",
        f"{one.figures['hedging_pct'].mean:.1f}",
        f"{bound:.3f}" if bound else "",
        ratio,
    ]
