"""`swarmd bench load`: latency at shares of what the swarm can do, and how it recovers from more than that.

An open loop: tasks arrive by a schedule made beforehand (a Poisson process), whatever has become of those before. The
latency of each counts from the moment at which it should have arrived, so a client that falls behind hides nothing (no
coordinated omission: Gil Tene, "How not to measure latency"). Everything is real, as in the other benchmarks.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from bisect import bisect_left
from itertools import count
from math import ceil, log10
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from swarmd.core.errors import Fault, Rejected
from swarmd.core.wire import Outcome, Submission
from swarmd.edges.bench import INPUT, SWARM, Shape, a_rig, progress
from swarmd.edges.client import Client, Handle
from swarmd.edges.role_process import tune_gc
from swarmd.edges.simulate.chance import Chance

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from swarmd.adapters.nats_bus import NatsBus

LEVELS: Final = (0.1, 0.5, 0.9, 1.1)
#: What the latency is compared with after an overload.
CALM: Final = 0.5
BATCH: Final = 256
DRAIN_S: Final = 120.0
WINDOW_S: Final = 0.25
#: So many windows in a row must be as before: one alone may be luck.
WINDOWS_CALM: Final = 4
FIRST_RATE: Final = 1_000.0
FASTER, GROWN = 1.6, 1.1
COLUMNS: Final = 48
SPARKS: Final = "▁▂▃▄▅▆▇█"

Sample = tuple[float, float]  #: when a task should have arrived (seconds of the clock), and its latency (s)


class Arrivals(Client):
    """A client that notes when each outcome comes. `due` are the tasks without one, by id."""

    def __init__(self, bus: NatsBus, swarm: str) -> None:
        super().__init__(bus, swarm)
        self.due: dict[str, float] = {}
        self.samples: list[Sample] = []
        self.late: list[float] = []
        self.failed = 0
        self._numbers = count()
        self._idle = asyncio.Event()

    def _settle(self, outcome: Outcome) -> None:
        super()._settle(outcome)
        intended = self.due.pop(outcome.task, None)
        if intended is None:
            return
        self.samples.append((intended, perf_counter() - intended))
        self.failed += outcome.state != "completed"
        self._waiting.pop(outcome.task, None)
        if not self.due:
            self._idle.set()

    async def offer(self, segments: Sequence[tuple[float, float]], seed: int) -> list[float]:
        """Let tasks arrive at each rate (per second) for so long (s); the moments at which the segments end.

        Returns when the last one has been handed in, not when it is done.
        """
        chance, at, ends = Chance("load", seed), perf_counter(), list[float]()
        async with asyncio.TaskGroup() as group:
            for rate, seconds in segments:
                ends.append(at + seconds)
                while at < ends[-1]:
                    batch = list[float]()
                    while at < ends[-1] and at <= perf_counter() and len(batch) < BATCH:
                        batch.append(at)
                        at += chance.exponential(1 / rate)
                    if batch:
                        group.create_task(self._hand_in(batch))
                    await asyncio.sleep(max(0.0, min(at, ends[-1]) - perf_counter()))
                at = ends[-1]
        return ends

    async def _hand_in(self, intended: list[float]) -> None:
        """Submit what should have arrived by now, as one request."""
        names = [f"load-{next(self._numbers)}" for _ in intended]
        self.due |= dict(zip(names, intended, strict=True))
        self.late.append(perf_counter() - intended[0])
        wanted = (Submission(agent="echo", input=INPUT, id=name) for name in names)
        for name, receipt in zip(names, await self.submit_many(wanted), strict=True):
            if not isinstance(receipt, Handle):
                self.failed += 1
                self.due.pop(name, None)
        if not self.due:
            self._idle.set()

    async def drained(self) -> None:
        """Until every task that has arrived has its outcome. Raises `Fault("bench")` when that takes too long."""
        try:
            async with asyncio.timeout(DRAIN_S):
                while self.due:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            raise Fault("bench", f"{len(self.due)} tasks have no outcome after {DRAIN_S:.0f} s") from None

    def take(self) -> list[Sample]:
        """What was measured since this was last asked, by intended arrival."""
        taken, self.samples, self.late = sorted(self.samples), [], []
        return taken


class Level(Struct):
    """One rate of arrival. `done_per_s` is what went out while tasks arrived: less than came in is an overload.

    `late_p99_ms` is by how much this client itself came too late, which counts as latency.
    """

    share: float
    offered_per_s: int
    done_per_s: int
    tasks: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    late_p99_ms: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench load`."""
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each level lasts (default: 10)")
    parser.add_argument("--rate", type=float, default=0.0, help="tasks/s taken for the capacity (default: measured)")
    parser.add_argument("--nodes", type=int, default=50, help="worker nodes (default: 50)")
    parser.add_argument("--processes", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument("--capacity", type=int, default=64, help="slots per worker node (default: 64)")
    parser.add_argument("--seed", type=int, default=1, help="of the schedule of arrivals (default: 1)")


async def run(args: argparse.Namespace) -> int:
    """Measure and print; one JSON object with `--json`."""
    if min(args.nodes, args.processes, args.capacity) < 1 or args.nodes < args.processes:
        raise Rejected("bad_usage", "nodes, processes and capacity must be at least 1, and each process needs a node")
    if not 0.5 <= args.seconds <= 3_600 or not 0 <= args.rate <= 1_000_000:
        raise Rejected("bad_usage", "seconds must be 0.5 to 3600, and rate 0 (measure it) to 1000000")
    shape, load = Shape(args.nodes, args.processes, args.capacity, observer=False), os.getloadavg()[0]
    async with a_rig(shape) as rig, Arrivals.over(rig.bus, SWARM) as client:
        assert isinstance(client, Arrivals)
        tune_gc()
        result = await _measure(client, args)
    result |= {
        "nodes": args.nodes,
        "processes": args.processes,
        "capacity": args.capacity,
        "cpus": os.cpu_count(),
        "load_before": round(load, 2),
    }
    print(msgspec.json.encode(result).decode() if getattr(args, "json", False) else "\n".join(chart(result)))
    return 0


async def _measure(client: Arrivals, args: argparse.Namespace) -> dict[str, Any]:
    capacity = args.rate or await _capacity(client, args)
    progress(f"capacity {capacity:,.0f} tasks/s")
    levels = []
    for share in LEVELS:
        (ended,) = await client.offer([(share * capacity, args.seconds)], args.seed)
        late = client.late
        await client.drained()
        samples = client.take()
        done = sum(at + latency <= ended for at, latency in samples) / args.seconds
        levels.append(_level((share, share * capacity, done), samples, late))
        progress(f"{share:.0%}: p50 {levels[-1].p50_ms} ms, p99 {levels[-1].p99_ms} ms, max {levels[-1].max_ms} ms")
    calm = next(level for level in levels if level.share == CALM)
    recovery = await _recovery(client, args, (capacity, calm.p99_ms / 1000))
    return {
        "capacity_per_s": round(capacity),
        "levels": msgspec.to_builtins(levels),
        **recovery,
        "failed": client.failed,
        "seconds": args.seconds,
        "seed": args.seed,
    }


async def _capacity(client: Arrivals, args: argparse.Namespace) -> float:
    """The most that comes out per second: more comes in each time, until no more comes out.

    Overloaded, everybody packs more into a message, so that what comes out still grows for a while.
    """
    rate, best = FIRST_RATE, 0.0
    while True:
        started = perf_counter()
        (ended,) = await client.offer([(rate, max(1.0, args.seconds / 3))], args.seed)
        await client.drained()
        samples, middle = client.take(), (started + ended) / 2
        done = sum(middle <= at + latency < ended for at, latency in samples) / (ended - middle)
        progress(f"{rate:,.0f} tasks/s come in, {done:,.0f} go out")
        if done < best * GROWN:
            return max(best, done)
        rate, best = rate * FASTER, done


def _level(rates: tuple[float, float, float], samples: list[Sample], late: list[float]) -> Level:
    share, offered, done = rates
    latencies = sorted(latency for _, latency in samples)
    return Level(
        share,
        round(offered),
        round(done),
        len(latencies),
        _ms(quantile(latencies, 0.5)),
        _ms(quantile(latencies, 0.99)),
        _ms(latencies[-1] if latencies else 0.0),
        _ms(quantile(sorted(late), 0.99)),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The least of these values that so many of them do not exceed; 0 for none."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else 0.0


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


async def _recovery(client: Arrivals, args: argparse.Namespace, known: tuple[float, float]) -> dict[str, Any]:
    """Overload, and from one moment to the next half of what the swarm can do: when is the latency as it was?"""
    capacity, bound_s = known
    most = max(LEVELS)
    segments = [(most * capacity, args.seconds), (CALM * capacity, 2 * args.seconds)]
    over, ended = await client.offer(segments, args.seed)
    await client.drained()
    samples = client.take()
    before = medians(samples, over - args.seconds, over)
    after = medians(samples, over, ended)
    recovered = recovered_s(after, bound_s)
    progress("not recovered" if recovered is None else f"recovered {recovered:.2f} s after the overload")
    return {
        "recovery_s": recovered,
        "recovery_bound_ms": _ms(bound_s),
        "window_ms": round(WINDOW_S * 1000),
        "overload_medians_ms": [_ms(median) for median in before],
        "recovery_medians_ms": [_ms(median) for median in after],
    }


def medians(samples: list[Sample], start: float, end: float) -> list[float]:
    """The median latency (s) of what should have arrived in each window; samples are in the order of arrival."""
    found, left = list[float](), bisect_left(samples, (start, 0.0))
    while start + WINDOW_S <= end:
        start += WINDOW_S
        right = bisect_left(samples, (start, 0.0))
        found.append(statistics.median(latency for _, latency in samples[left:right]) if right > left else 0.0)
        left = right
    return found


def recovered_s(after: Sequence[float], bound_s: float) -> float | None:
    """How long after the overload the medians are within the bound, some in a row; None: not in this time."""
    row = min(WINDOWS_CALM, len(after))
    for first in range(len(after) - row + 1):
        if row and max(after[first : first + row]) <= bound_s:
            return first * WINDOW_S
    return None


# --- for people ------------------------------------------------------------------------------------


def chart(result: dict[str, Any]) -> list[str]:
    """The result as text: a line for each level on a logarithmic scale, and the medians of the recovery."""
    levels = [Level(**level) for level in result["levels"]]
    shown = [value for level in levels for value in (level.p50_ms, level.p99_ms, level.max_ms) if value > 0]
    low, high = log10(min(shown, default=0.1)), log10(max(shown, default=1.0))

    def column(value_ms: float) -> int:
        return round((log10(max(value_ms, 10**low)) - low) / max(high - low, 1e-9) * (COLUMNS - 1))

    lines = [f"capacity {result['capacity_per_s']:,} tasks/s; latency in ms, from the intended arrival"]
    lines.append(
        f"{'load':>5} {'tasks/s':>9} {'p50':>9} {'p99':>9} {'max':>9}  █ to p50, ▒ to p99, · to max (logarithmic)"
    )
    for level in levels:
        middle, most, end = column(level.p50_ms), column(level.p99_ms), column(level.max_ms)
        bar = "█" * (middle + 1) + "▒" * (most - middle) + "·" * (end - most)
        figures = f"{level.p50_ms:>9,.1f} {level.p99_ms:>9,.1f} {level.max_ms:>9,.1f}"
        lines.append(f"{level.share:>5.0%} {level.offered_per_s:>9,} {figures}  {bar}")
    before, after = result["overload_medians_ms"], result["recovery_medians_ms"]
    lines.append(f"overload and recovery, median of each {result['window_ms']} ms: {_sparks(before)}|{_sparks(after)}")
    back = result["recovery_s"]
    said = "not within this time" if back is None else f"{back:.2f} s after the overload"
    lines.append(f"back to at most {result['recovery_bound_ms']:,.1f} ms (p99 at {CALM:.0%}): {said}")
    return lines


def _sparks(values: Sequence[float]) -> str:
    """A character for each value, on a logarithmic scale from 1 ms to a minute."""
    last = len(SPARKS) - 1
    return "".join(SPARKS[min(last, max(0, round(log10(max(value, 1.0)) / log10(60_000) * last)))] for value in values)
