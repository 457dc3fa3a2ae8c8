"""How many bytes a queued task takes: a process of its own, which grows by that many tasks and says by how much.

Run as `python -m swarmd.edges.bench_resident fold|queue TASKS`. "fold" holds the state alone, "queue" what a leader has
besides: its queue, timers and overlays. Prints one JSON object.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from time import process_time
from typing import Final

import msgspec

from swarmd.core.codec import Codec, Record
from swarmd.core.events import Elected
from swarmd.core.evolve import apply
from swarmd.core.leader import Leader
from swarmd.core.office import LeaderSettings
from swarmd.core.state import SwarmState
from swarmd.edges.bench_records import EPOCH_MS, SWARM, leader, submission, task_id
from swarmd.edges.role_process import tune_gc

#: Submissions in a commit; the log's sequences are those of a log whose commits hold so many.
PACKED: Final = 256


def measure(kind: str, tasks: int) -> dict[str, float]:
    """Queue `tasks` tasks; bytes and CPU time for each of them."""
    writer, codec, state = leader(), Codec(), SwarmState(SWARM)
    machine = Leader(state, writer.name, writer.boot, LeaderSettings()) if kind == "queue" else None

    def fold(record: Record) -> None:
        commit = codec.decode(record)
        if machine is None:
            apply(state, commit)
        else:
            machine.fold(commit, record.at_ms)

    fold(writer.store(1, [(SWARM, Elected(term=1))], EPOCH_MS))
    tune_gc()
    before, cpu_s = resident(), 0.0
    for start in range(0, tasks, PACKED):
        seq, now = state.seq + 1, EPOCH_MS + start // 50
        numbers = range(start, min(start + PACKED, tasks))
        record = writer.store(seq, [(task_id(now, number), submission(number)) for number in numbers], now)
        started = process_time()
        fold(record)
        cpu_s += process_time() - started
    del record
    grown = resident() - before
    started = process_time()
    gc.collect()
    collected_s = process_time() - started
    assert len(state.tasks) == tasks
    assert machine is None or sum(machine.waiting().values()) == tasks
    return {
        "bytes_per_task": round(grown / tasks, 1),
        "cpu_us_per_task": round(cpu_s / tasks * 1e6, 2),
        "collection_ms": round(collected_s * 1000, 1),
    }


def resident() -> int:
    """Resident bytes of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(msgspec.json.encode(measure(sys.argv[1], int(sys.argv[2]))).decode())
