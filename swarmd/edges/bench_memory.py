"""`swarmd bench memory`: a shared memory compared with pymilvus by itself, on the same rows and in the same run.

Ours and the yardstick take turns, so that a machine that is slower for a while is slower for both, and medians count.
How each figure is come by is in `bench_memory_measures.py`; here is what is asked of them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from swarmd.core.errors import Rejected
from swarmd.edges.bench import progress
from swarmd.edges.bench_memory_measures import Measured, Plan
from swarmd.edges.bench_memory_rig import a_rig

if TYPE_CHECKING:
    import argparse

ROWS: Final = 100_000
ROWS_MIN: Final = 500

#: Figure, bound, and whether it is the most (else the least).
TARGETS: Final[tuple[tuple[str, float, bool], ...]] = (
    ("recall_ratio", 1.3, True),
    ("callers_ratio", 6.0, False),
    ("remember_per_s", 10_000, False),
    ("searchable_ratio", 0.8, False),
    ("rebuild_ratio", 0.9, False),
    ("watch_ms_per_memory", 1.0, True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench memory`."""
    parser.add_argument("--rows", type=int, default=ROWS, help=f"memories (default: {ROWS})")
    parser.add_argument("--recalls", type=int, default=100, help="recalls one by one (default: 100)")
    parser.add_argument("--callers", type=int, default=64, help="concurrent callers (default: 64)")
    parser.add_argument("--watches", type=int, default=1_000, help="watches (default: 1000)")
    parser.add_argument("--in-flight", type=int, default=1_024, help="memories without an answer (default: 1024)")
    parser.add_argument("--rounds", type=int, default=4, help="turns of filling both (default: 4)")
    parser.add_argument("--repeat", type=int, default=2, help="turns of whatever else takes long (default: 2)")
    parser.add_argument("--check", action="store_true", help="exit with 1 and name the targets that are missed")


async def run(args: argparse.Namespace) -> int:
    """Measure and print; one JSON object with `--json`."""
    counts = (args.recalls, args.callers, args.watches, args.in_flight, args.rounds, args.repeat)
    if min(counts) < 1 or not ROWS_MIN <= args.rows <= 10_000_000:
        raise Rejected("bad_usage", f"rows must be {ROWS_MIN} to 10000000, and everything else at least 1")
    load = os.getloadavg()[0]
    plan = Plan(args.rows, args.recalls, args.callers, args.watches, args.in_flight, args.rounds, args.repeat)
    async with a_rig() as rig:
        result = await Measured(rig, plan).all()
    missed = missed_targets(result)
    result |= {"missed": missed, "cpus": os.cpu_count(), "load_before": round(load, 2)}
    result["load_after"] = round(os.getloadavg()[0], 2)
    if getattr(args, "json", False):
        print(msgspec.json.encode(result).decode())
    else:
        print(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    if args.check and missed:
        await asyncio.to_thread(sys.stdout.flush)
        for line in missed:
            progress(f"missed: {line}")
        return 1
    return 0


def missed_targets(result: dict[str, Any]) -> list[str]:
    """A line for each target that these figures miss."""
    return [
        f"{name} is {result[name]}, it should be at {'most' if is_most else 'least'} {bound:g}"
        for name, bound, is_most in TARGETS
        if (result[name] > bound if is_most else result[name] < bound)
    ]
