"""`swarmd bench agent`: what the runtime adds to an agent's step, with a model that answers nothing at once.

Everything but the model is real: an embedded broker that syncs each commit to the disk, one orchestrator, workers in
processes of their own. Each step is a recorded model call.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw

from swarmd.adapters.streams import stream_state
from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.wire import Submission
from swarmd.edges.bench import SWARM, Rig, Shape, a_rig
from swarmd.edges.client import Handle

if TYPE_CHECKING:
    import argparse

AGENTS = "swarmd.edges.bench_agents"
#: How long sleeping tasks are watched.
ASLEEP_S = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench agent`."""
    parser.add_argument("--steps", type=int, default=200, help="steps of each run (default: 200)")
    parser.add_argument("--runs", type=int, default=100, help="concurrent runs (default: 100)")
    parser.add_argument("--chars", type=int, default=64, help="characters that each step records (default: 64)")
    parser.add_argument("--turns", type=int, default=500, help="turns of the long conversation (default: 500)")
    parser.add_argument("--turn-chars", type=int, default=2048, help="characters of each of its turns (default: 2048)")
    parser.add_argument("--asleep", type=int, default=10_000, help="tasks that wait for one event (default: 10000)")
    parser.add_argument("--processes", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument("--repeat", type=int, default=3, help="measurements, of which the median counts (default: 3)")


async def run(args: argparse.Namespace) -> int:
    """Measure and print; one JSON object with `--json`."""
    if (
        min(args.steps, args.runs, args.chars, args.turns, args.turn_chars, args.asleep, args.processes, args.repeat)
        < 1
    ):
        raise Rejected("bad_usage", "every number must be at least 1")
    async with a_rig(Shape(args.processes, args.processes, args.runs, False), AGENTS) as rig:
        await rig.client.run("noop_steps", {"steps": 20, "chars": 1})
        result = (
            await _alone(rig, args) | await _together(rig, args) | await _long(rig, args) | await _asleep(rig, args)
        )
    result |= {"steps": args.steps, "runs": args.runs, "chars": args.chars, "cpus": os.cpu_count(), "sync": "always"}
    if getattr(args, "json", False):
        print(msgspec.json.encode(result).decode())
    else:
        for name, value in result.items():
            print(f"{name:28} {value}")
    return 0


async def _alone(rig: Rig, args: argparse.Namespace) -> dict[str, Any]:
    """One run by itself: what its agent waits for each step, and what a step takes in the log."""
    before = await _log_bytes(rig)
    steps = args.steps * 5
    took = await rig.client.run("noop_steps", {"steps": steps, "chars": args.chars, "timed": True})
    bytes_per_step = (await _log_bytes(rig) - before) / steps
    cuts = statistics.quantiles(took, n=100) if len(took) > 1 else took * 99
    return {
        "step_overhead_p50_ms": round(cuts[49], 3),
        "step_overhead_p99_ms": round(cuts[98], 3),
        "bytes_per_step": round(bytes_per_step),
    }


async def _together(rig: Rig, args: argparse.Namespace) -> dict[str, Any]:
    rates: list[float] = []
    before = rig.cpu_s()
    for _ in range(args.repeat):
        wanted = {"steps": args.steps, "chars": args.chars}
        started = perf_counter()
        async with asyncio.TaskGroup() as group:
            for _run in range(args.runs):
                group.create_task(rig.client.run("noop_steps", wanted))
        rates.append(args.steps * args.runs / (perf_counter() - started))
    after, steps = rig.cpu_s(), args.steps * args.runs * args.repeat
    cpu = {kind: round((after[kind] - before[kind]) / steps * 1e6, 1) for kind in after}
    return {"steps_per_s": round(statistics.median(rates)), "rates": [round(r) for r in rates], "cpu_us_per_step": cpu}


async def _long(rig: Rig, args: argparse.Namespace) -> dict[str, Any]:
    """A conversation that grows: the log must grow with it, not with its square."""
    before = await _log_bytes(rig)
    started = perf_counter()
    await rig.client.run("noop_steps", {"steps": args.turns, "chars": args.turn_chars, "grows": True})
    took_s = perf_counter() - started
    text = args.turns * args.turn_chars
    return {
        "long_run_turns": args.turns,
        "long_run_text_bytes": text,
        "long_run_log_bytes_per_text_byte": round((await _log_bytes(rig) - before) / text, 3),
        "long_run_s": round(took_s, 2),
    }


async def _asleep(rig: Rig, args: argparse.Namespace) -> dict[str, Any]:
    """Tasks that wait for an event: what they cost the workers meanwhile, and how soon all have gone on."""
    resident = _resident_mib(rig)
    wanted = [Submission(agent="asleep", input=Raw(b'"dawn"')) for _ in range(args.asleep)]
    handles = [handle for handle in await rig.client.submit_many(wanted) if isinstance(handle, Handle)]
    while (status := await rig.status()).tasks.get("suspended", 0) < len(handles):  # noqa: ASYNC110  # of another process
        await asyncio.sleep(0.1)
    running = status.crew.used
    grown, before, started = _resident_mib(rig) - resident, rig.cpu_s()["workers"], perf_counter()
    await asyncio.sleep(ASLEEP_S)
    share = (rig.cpu_s()["workers"] - before) / (perf_counter() - started)
    started, before_wake = perf_counter(), rig.cpu_s()
    await rig.bus.request(subjects.ctl(SWARM, "signal"), msgspec.json.encode({"name": "dawn"}), 30_000)
    await asyncio.gather(*(rig.client.outcome(handle) for handle in handles))
    took_s, after = perf_counter() - started, rig.cpu_s()
    return {
        "asleep_tasks": len(handles),
        "asleep_slots_held": running,
        "asleep_worker_mib": round(grown, 1),
        "asleep_worker_cpu_share": round(share, 4),
        "asleep_woken_per_s": round(len(handles) / took_s),
        "cpu_us_per_wake": {kind: round((after[kind] - before_wake[kind]) / len(handles) * 1e6, 1) for kind in after},
    }


def _resident_mib(rig: Rig) -> float:
    """Memory of the worker processes (Linux)."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in rig.pids["workers"]]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1024**2


async def _log_bytes(rig: Rig) -> int:
    state = await stream_state(rig.bus, subjects.log_stream(SWARM))
    return int(state["bytes"])
