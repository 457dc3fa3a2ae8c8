"""Memories as people read them: fitted to the terminal, without what it might obey. Must not know who asked."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from msgspec import Raw

from swarmd.adapters.system import SystemClock
from swarmd.core.memory import SHARED
from swarmd.edges.cli.times import moment_text
from swarmd.roles.tool_calls import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmd.core.memory_wire import Job, MemoryStats, RecalledPassage

BAR: Final = 10
WIDTH_MIN: Final = 40
_AGES: Final = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"))


def width() -> int:
    """Columns of the terminal; of a pipe 100."""
    return max(WIDTH_MIN, shutil.get_terminal_size((100, 24)).columns)


def fitted(text: str, columns: int) -> str:
    """One line of at most so many columns; what is cut off is told by an ellipsis."""
    from rich.cells import cell_len, set_cell_size

    line = " ".join(clean(text).split())
    return line if cell_len(line) <= columns else set_cell_size(line, max(0, columns - 1)).rstrip() + "…"


def bar(similarity: object) -> str:
    """A cosine as a bar and a figure; blank where there is none."""
    if not isinstance(similarity, int | float) or similarity != similarity:
        return " " * (BAR + 5)
    full = round(max(0.0, min(1.0, similarity)) * BAR)
    return "█" * full + "░" * (BAR - full) + f" {similarity:4.2f}"


def age(since_ms: int) -> str:
    """How long ago, in its largest unit."""
    if not since_ms:
        return ""
    passed = max(0, SystemClock().now_ms() - since_ms)
    for unit_ms, unit in _AGES:
        if passed >= unit_ms:
            return f"{passed // unit_ms}{unit} ago"
    return "just now"


def passages_text(passages: Sequence[RecalledPassage]) -> str:
    """What was recalled, two lines each: how near and what, then which and whose."""
    lines = []
    for rank, passage in enumerate(passages, 1):
        head = f"{rank:>3}  {bar(passage.similarity)}  "
        lines.append(head + fitted(passage.text, width() - len(head)))
        lines.append("     " + fitted(_about(passage), width() - 5))
    return "\n".join(lines)


def match_text(seq: int, passage: RecalledPassage) -> str:
    """A match in one line."""
    head = f"{seq:>6}  {bar(passage.similarity)}  "
    tail = "  " + fitted(" · ".join(part for part in (passage.id, passage.author) if part), max(48, width() // 3))
    return head + fitted(passage.text, width() - len(head) - len(tail)) + tail


def _about(passage: RecalledPassage) -> str:
    labels = " ".join(f"{name}={value}" for name, value in passage.labels.items())
    space = "" if passage.space == SHARED else passage.space
    parts = (passage.id, passage.author, age(passage.since_ms), space, passage.source, labels)
    return " · ".join(part for part in parts if part)


def memory_text(memory: RecalledPassage) -> str:
    """All of one memory."""
    task = f"{memory.task} of swarm {memory.swarm}" if memory.task else ""
    about = (
        ("id", memory.id),
        ("space", memory.space),
        ("author", memory.author),
        ("task", task),
        ("source", memory.source),
        ("labels", " ".join(f"{name}={value}" for name, value in memory.labels.items())),
        ("since", moment_text(memory.since_ms)),
        ("expires", moment_text(memory.expires_at_ms)),
        ("sequence", str(memory.seq)),
        ("payload", bytes(memory.payload).decode() if isinstance(memory.payload, Raw) else ""),
    )
    lines = [f"{name:<9}{fitted(value, width() - 9)}" for name, value in about if value]
    return "\n".join([*lines, "", clean(memory.text)])


def stats_text(stats: MemoryStats) -> str:
    """A memory in a few lines."""
    behind = stats.seq - stats.applied
    store = f"up to sequence {stats.applied}" + (f", {behind} behind" if behind > 0 else ", up to date")
    spaces = ", ".join(f"{count} in {space}" for space, count in sorted(stats.spaces.items()))
    lines = [
        f"memory   {stats.memory} at sequence {stats.seq}",
        f"holds    {stats.memories} memories, {stats.dropped} were dropped",
        f"spaces   {spaces}" if spaces else "",
        f"store    generation {stats.generation}, {store}{'' if stats.warm else ', not warm yet'}",
        f"vectors  {stats.embedder}, {stats.dimension} dimensions" if stats.embedder else "",
        f"watches  {stats.watches}, matched up to sequence {stats.matched}" if stats.watches else "",
        f"views    as of {', '.join(map(str, stats.views))}" if stats.views else "",
        f"trouble  {stats.trouble}" if stats.trouble else "",
        f"garbage  {stats.garbage} messages of the log were no commits" if stats.garbage else "",
        *(f"job      {job_text(job)}" for job in stats.jobs),
    ]
    return clean("\n".join(line for line in lines if line))


def job_text(job: Job) -> str:
    of = f" of {job.total}" if job.total else ""
    return f"{job.kind} {job.id}: {job.state}, {job.done}{of}"
