"""`swarmd bench core`: its made log is one that a swarm could have written, and its result has all its figures."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import msgspec
import pytest

from swarmd.core.codec import Codec, Commit
from swarmd.core.evolve import apply
from swarmd.core.state import SwarmState
from swarmd.edges import bench_leader
from swarmd.edges.bench_core import drawing
from swarmd.edges.bench_leader import PARTS
from swarmd.edges.bench_records import SWARM, commits_of, records, rounds
from swarmd.roles.writer import EVENTS_MAX

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("steps", [0, 3])
def test_the_made_log_is_accepted_whole(steps: int) -> None:
    sizes, state, codec, packed = rounds(6_000, steps), SwarmState(SWARM), Codec(), set[int]()
    log = list(records(sizes, steps))
    for record in log:
        commit = codec.decode(record)
        assert isinstance(commit, Commit)
        packed.add(len(commit.events))
        apply(state, commit)
    assert len(log) == commits_of(sizes, steps)
    assert (state.counters.ignored, state.counters.garbage, state.tasks) == ({}, 0, {})
    assert state.counters.completed == sum(sizes) == 6_000 // (3 + steps)
    assert state.counters.steps == steps * sum(sizes)
    assert 1 in packed
    assert 200 < max(packed) <= EVENTS_MAX
    assert [record.payload for record in records(sizes, steps)] == [record.payload for record in log]


def test_every_part_of_a_leader_is_measured() -> None:
    parts = bench_leader.measure(600)
    assert list(parts) == list(PARTS)
    assert all(parts[part] > 0 for part in PARTS if part not in ("effects", "read_back"))


def test_the_picture_is_well_formed_and_names_every_part() -> None:
    picture = ElementTree.fromstring(drawing({part: 1.5 for part in PARTS}))
    said = " ".join(picture.itertext())
    assert all(f"1.5 µs · {part}: {what}" in said for part, what in PARTS.items())


async def test_the_bench_says_what_the_core_does(tmp_path: Path) -> None:
    """The floors are a tenth of what a slow machine does: they catch a change of kind, not a busy hour."""
    flags = [
        "--events",
        "12000",
        "--queued",
        "20000",
        "--tasks",
        "1000",
        "--svg",
        str(tmp_path / "parts.svg"),
        "--json",
    ]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "swarmd", "bench", "core", *flags), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(120):
        stdout, _ = await process.communicate()
    assert process.returncode == 0
    result = msgspec.json.decode(stdout)
    assert result["decoded_events_per_s"] > 15_000
    assert result["folded_events_per_s"] > result["decoded_events_per_s"]
    assert set(result["us_per_event"]) == {"decode", "fold"}
    assert 500 < result["bytes_per_queued_task_fold"] < result["bytes_per_queued_task"] < 3_000
    assert result["queued_tasks"] == 20_000
    assert list(result["leader_cpu_us_per_task_by_part"]) == list(PARTS)
    assert result["leader_cpu_us_per_task"] == pytest.approx(
        sum(result["leader_cpu_us_per_task_by_part"].values()), 0.1
    )
    assert 0 < result["start_from_snapshot_cpu_s"] < 10
    assert set(result["start_parts_cpu_s"]) == {"unpack", "snapshot", "tail"}
    assert 0 < result["start_tail_events"] < result["events"]
    assert result["start_tail_commits"] == result["commits"] // 2
    assert (tmp_path / "parts.svg").stat().st_size > 1_000
