"""Walks over what a memory's fold knows are bounded, however much one task has written and read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.core import memory_fold, memory_lineage
from swarmd.core.codec import Commit
from swarmd.core.events import Event, Fact
from swarmd.core.memory import Read, RememberedV2
from swarmd.core.memory_fold import MemoryState
from swarmd.core.memory_lineage import NODES_MAX, lineage
from swarmd.core.memory_wire import LineageRequest

if TYPE_CHECKING:
    import pytest


def state_of(*commits: list[tuple[str, Fact]]) -> MemoryState:
    state = MemoryState("shared")
    for seq, events in enumerate(commits, start=1):
        facts = [Event(subject, fact) for subject, fact in events]
        memory_fold.apply(state, Commit(seq, "memory", "w", "boot", seq, seq - 1, f"boot.{seq}", list(facts)))
    return state


def wrote(task: str, *memories: str) -> list[tuple[str, Fact]]:
    return [(memory, RememberedV2(text=memory, swarm="main", task=task)) for memory in memories]


def read(task: str, *memories: str) -> list[tuple[str, Fact]]:
    return [(task, Read(swarm="main", how="get", memories=dict.fromkeys(memories, 1)))]


def test_a_task_that_read_and_wrote_everything_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def counted(known: memory_fold.Known) -> list[tuple[str, int]]:
        nonlocal looks
        looks += 1
        return [(f"{known.swarm}/{known.task}", known.first[0])]

    monkeypatch.setattr(memory_lineage, "_writers", counted)
    many = [f"m{number}" for number in range(5_000)]
    state = state_of(wrote("boss", *many), read("boss", *many), wrote("boss", "last"), read("next", "last"))
    found = lineage(state, LineageRequest("boss", "main", 20))
    assert (found.cut, len(found.memories) + len(found.tasks)) == (True, NODES_MAX)
    assert looks < 50_000
    monkeypatch.setattr(memory_lineage, "LOOKS_MAX", 100)
    assert lineage(state, LineageRequest("m0", depth=2)).cut


def test_what_lies_beyond_a_task_is_found_from_its_earliest_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_of(
        wrote("one", "a", "b"),
        read("two", "b"),
        wrote("two", "c"),
        read("two", "a"),
        wrote("two", "d"),
    )
    assert {memory.id for memory in lineage(state, LineageRequest("a", depth=1)).memories} == {"a", "d"}
    assert {memory.id for memory in lineage(state, LineageRequest("b", depth=1)).memories} == {"b", "c", "d"}
    found = lineage(state, LineageRequest("one", "main", 2))
    assert {memory.id for memory in found.memories} == {"a", "b", "c", "d"}
    assert not found.cut
