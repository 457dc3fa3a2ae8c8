"""`swarmd bench core`: what the pure core does by itself, without a broker, a network or an event loop.

It folds a made log (bench_records.py), starts from a snapshot and the tail behind it, queues tasks in processes of
their own (bench_resident.py), and takes tasks through a leader part by part (bench_leader.py). All times are CPU time
of this process, since whoever else uses the machine must not show; compare them within one run only.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import sys
import zlib
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct, field

from swarmd.core import snapshot
from swarmd.core.codec import Codec, Commit, Record
from swarmd.core.errors import Fault, Rejected
from swarmd.core.evolve import apply
from swarmd.core.state import SwarmState
from swarmd.edges import bench_leader
from swarmd.edges.bench import progress
from swarmd.edges.bench_leader import PARTS
from swarmd.edges.bench_records import SWARM, commits_of, records, rounds
from swarmd.edges.role_process import tune_gc
from swarmd.roles.observer import ObserverSettings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

#: Commits that a reader of the log decodes before it folds them, as `roles/replica.py` does.
SLICE: Final = 64
#: The log is measured in so many stretches, whose median says what a disturbed one hides.
STRETCHES: Final = 20
#: Commits between two snapshots of an observer: a tail is never longer.
TAIL_COMMITS: Final = ObserverSettings(swarm=SWARM, name="o").snapshot_commits
LEADER_TASKS: Final = 20_480
_CODEC: Final = Codec()
COLOURS: Final = ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f")


class Reading(Struct):
    """What reading a log took: events, and CPU seconds for decoding and for folding, by stretch of the log."""

    events: list[int] = field(default_factory=lambda: [0] * STRETCHES)
    decode_s: list[float] = field(default_factory=lambda: [0.0] * STRETCHES)
    fold_s: list[float] = field(default_factory=lambda: [0.0] * STRETCHES)

    def add(self, stretch: int, events: int, decode_s: float, fold_s: float) -> None:
        """One slice more."""
        self.events[stretch] += events
        self.decode_s[stretch] += decode_s
        self.fold_s[stretch] += fold_s

    def median_us(self, spent_s: list[float]) -> float:
        """Microseconds per event in the median stretch."""
        return statistics.median(cpu_s / max(1, count) for cpu_s, count in zip(spent_s, self.events, strict=True)) * 1e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench core`."""
    parser.add_argument("--events", type=int, default=1_000_000, help="events of the log (default: 1000000)")
    parser.add_argument("--steps", type=int, default=3, help="steps of each task in it (default: 3)")
    parser.add_argument("--queued", type=int, default=1_000_000, help="tasks that wait at once (default: 1000000)")
    parser.add_argument("--tasks", type=int, default=5 * LEADER_TASKS, help="tasks through a leader (default: 102400)")
    parser.add_argument("--svg", type=Path, default=None, metavar="FILE", help="draw the leader's parts into this file")


async def run(args: argparse.Namespace) -> int:
    """Measure and print; one JSON object with `--json`."""
    if min(args.queued, args.tasks) < 1 or args.steps < 0 or args.events < 100 * (3 + args.steps):
        raise Rejected("bad_usage", "queued and tasks must be at least 1, steps 0, and events 100 tasks' worth")
    load = os.getloadavg()[0]
    memory = {kind: await _queued(kind, args.queued) for kind in ("fold", "queue")}
    progress(f"{memory['queue']['bytes_per_task']:,.0f} bytes a queued task")
    parts = _leader(args.tasks)
    progress(f"{sum(parts.values()):,.1f} us of a leader a task")
    result = _log(args.events, args.steps)
    result |= {
        "queued_tasks": args.queued,
        "bytes_per_queued_task": memory["queue"]["bytes_per_task"],
        "bytes_per_queued_task_fold": memory["fold"]["bytes_per_task"],
        "queued_collection_ms": memory["queue"]["collection_ms"],
        "leader_cpu_us_per_task": round(sum(parts.values()), 1),
        "leader_cpu_us_per_task_by_part": parts,
        "steps": args.steps,
        "cpus": os.cpu_count(),
        "load_before": round(load, 2),
    }
    if args.svg is not None:
        args.svg.write_text(drawing(parts), encoding="utf-8")
    if getattr(args, "json", False):
        print(msgspec.json.encode(result).decode())
    else:
        for name, value in result.items():
            print(f"{name:32} {value}")
    return 0


# --- memory and the leader -------------------------------------------------------------------------


async def _queued(kind: str, tasks: int) -> dict[str, float]:
    """What `bench_resident` says in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "swarmd.edges.bench_resident", kind, str(tasks)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise Fault("bench", f"measuring {tasks} queued tasks ended with {process.returncode}; its error is above")
    return msgspec.json.decode(out, type=dict[str, float])


def _leader(tasks: int) -> dict[str, float]:
    """CPU microseconds per task by part: the median over several leaders, one after the other."""
    tune_gc()
    measured = [bench_leader.measure(min(LEADER_TASKS, tasks - start)) for start in range(0, tasks, LEADER_TASKS)]
    return {part: round(statistics.median(one[part] for one in measured), 2) for part in PARTS}


# --- the log ---------------------------------------------------------------------------------------


def _log(events: int, steps: int) -> dict[str, Any]:
    """Fold a whole log, and start anew from the snapshot that an observer had saved of it."""
    sizes = rounds(events, steps)
    commits = commits_of(sizes, steps)
    cut = commits - min(TAIL_COMMITS, commits // 2)
    state, reading, tail, stored, saved, saving_s = SwarmState(SWARM), Reading(), list[Record](), 0, b"", 0.0
    tune_gc()
    for records_ in _slices(records(sizes, steps), cut):
        _fold(state, records_, reading, commits)
        stored += sum(len(record.payload) for record in records_)
        if state.seq > cut:
            tail += records_
        elif state.seq == cut:
            started = process_time()
            saved = zlib.compress(snapshot.encode(state), 1)
            saving_s = process_time() - started
    decode_s, fold_s, count = sum(reading.decode_s), sum(reading.fold_s), sum(reading.events)
    progress(f"{count / (decode_s + fold_s):,.0f} decoded events/s")
    last, tasks = snapshot.encode(state), state.counters.completed
    del state
    start = _start(saved, tail, last)
    return {
        "decoded_events_per_s": round(count / (decode_s + fold_s)),
        "folded_events_per_s": round(count / fold_s),
        "us_per_event": {
            "decode": round(reading.median_us(reading.decode_s), 3),
            "fold": round(reading.median_us(reading.fold_s), 3),
        },
        "events": count,
        "commits": commits,
        "tasks": tasks,
        "bytes_per_event": round(stored / count),
        "start_from_log_cpu_s": round(decode_s + fold_s, 2),
        "start_from_snapshot_cpu_s": round(sum(start.values()), 2),
        "start_parts_cpu_s": {name: round(cpu_s, 3) for name, cpu_s in start.items()},
        "start_tail_commits": len(tail),
        "start_tail_events": sum(record.payload.count(b'"specversion"') for record in tail),
        "snapshot_bytes": len(zlib.decompress(saved)),
        "snapshot_stored_bytes": len(saved),
        "snapshot_save_cpu_s": round(saving_s, 2),
    }


def _slices(log: Iterator[Record], cut: int) -> Iterator[list[Record]]:
    """The log as a reader gets it; a slice ends at sequence `cut`."""
    part: list[Record] = []
    for record in log:
        part.append(record)
        if len(part) == SLICE or record.seq == cut:
            yield part
            part = []
    if part:
        yield part


def _fold(state: SwarmState, part: list[Record], reading: Reading, commits: int) -> None:
    """Read one slice of a log of so many commits."""
    started = process_time()
    decoded = [_CODEC.decode(record) for record in part]
    read = process_time()
    for commit in decoded:
        apply(state, commit)
    done = process_time()
    events = sum(len(commit.events) for commit in decoded if isinstance(commit, Commit))
    reading.add(min(STRETCHES - 1, part[-1].seq * STRETCHES // commits), events, read - started, done - read)


def _start(saved: bytes, tail: list[Record], last: bytes) -> dict[str, float]:
    """CPU seconds of a start: what a role does from a stored snapshot to the log's end, `last` as a snapshot."""
    gc.collect()
    started = process_time()
    body = zlib.decompress(saved)
    unpacked = process_time()
    state = snapshot.decode(body)
    loaded = process_time()
    reading = Reading()
    for part in _slices(iter(tail), 0):
        _fold(state, part, reading, tail[-1].seq + 1)
    if snapshot.encode(state) != last:
        raise Fault("bench", "a snapshot and the tail behind it came to another state than the whole log")
    tail_s = sum(reading.decode_s) + sum(reading.fold_s)
    return {"unpack": unpacked - started, "snapshot": loaded - unpacked, "tail": tail_s}


# --- the picture -----------------------------------------------------------------------------------


def drawing(parts: dict[str, float]) -> str:
    """An SVG of a bar: where each microsecond of a task goes in the leader."""
    total, width, row = sum(parts.values()), 720, 24
    shown, at = list[str](), 0.0
    for (name, cpu_us), colour in zip(parts.items(), COLOURS, strict=True):
        wide = cpu_us / total * width
        y = 70 + row * len(shown) // 2
        shown.append(f'<rect x="{at + 20:.1f}" y="20" width="{wide:.1f}" height="32" fill="{colour}"/>')
        shown.append(
            f'<rect x="20" y="{y}" width="14" height="14" fill="{colour}"/>'
            f'<text x="42" y="{y + 12}">{cpu_us:.1f} µs · {name}: {PARTS[name]}</text>'
        )
        at += wide
    height = 70 + row * len(parts) + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 40} {height}" font-family="sans-serif" '
        f'font-size="14"><rect width="100%" height="100%" fill="#ffffff"/>{"".join(shown)}'
        f'<text x="20" y="{height - 14}">{total:.1f} µs of CPU a task in the leader</text></svg>\n'
    )
