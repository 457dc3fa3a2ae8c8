"""Where a memory comes from and what came of it: walks over what a memory's fold knows. Pure.

A task is a node between memories: it read some and wrote others. What it wrote after it had read a memory may come of
that; what it had read before it wrote a memory may be where that comes from. More is not known, and less is not said.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from swarmd.core.errors import Rejected
from swarmd.core.memory_wire import Ancestry, LineageReply, Reader, Trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from swarmd.core.memory_fold import Known, MemoryState
    from swarmd.core.memory_wire import LineageRequest, RevokeRequest

#: Memories and tasks in one answer, and names in each list of it.
NODES_MAX: Final = 500
NAMES_MAX: Final = 50
DEPTH_MAX: Final = 20
#: Memories that are looked at for one answer: a task may have written and read a hundred thousand, and others wait.
LOOKS_MAX: Final = 20_000


def lineage(state: MemoryState, wanted: LineageRequest) -> LineageReply:
    """The graph around a memory or, where `swarm` is given, a task. Raises `Rejected`."""
    if not 1 <= wanted.depth <= DEPTH_MAX:
        raise Rejected("bad_depth", f"depth is {wanted.depth}: 1 to {DEPTH_MAX} tasks can be followed")
    walk = _Walk(state)
    if wanted.swarm:
        task = f"{wanted.swarm}/{wanted.id}"
        if task not in state.wrote and task not in state.read:
            raise Rejected("unknown_task", f"task {task[:200]} has neither written nor read a memory here")
        walk.task(task, 0)
        back, on = state.read.get(task, [])[:NODES_MAX], list(islice(walk.wrote_after(task, 0), NODES_MAX))
        walk.cut |= len(back) == NODES_MAX or len(on) == NODES_MAX
        walk.memories(back, -1)
        walk.memories(on, 1)
        steps = wanted.depth - 1
    else:
        if wanted.id not in state.known:
            raise Rejected("unknown_memory", f"no memory {wanted.id[:200]} was ever remembered here")
        walk.memories([wanted.id], 0)
        back, on, steps = [wanted.id], [wanted.id], wanted.depth
    walk.go(back, steps, -1)
    walk.go(on, steps, 1)
    return LineageReply(list(walk.found.values()), list(walk.traces.values()), walk.cut)


class _Walk:
    """What was found so far, each once, nearest first."""

    def __init__(self, state: MemoryState) -> None:
        self.state = state
        self.found: dict[str, Ancestry] = {}
        self.traces: dict[str, Trace] = {}
        self.cut = False
        self._looks = 0
        self._passed: dict[tuple[str, int], int] = {}

    def go(self, memories: list[str], steps: int, direction: int) -> None:
        """Follow tasks from `memories`: to those who read them (1), or to those who wrote them (-1)."""
        for _ in range(steps):
            further: dict[str, None] = {}
            for memory in memories:
                known = self.state.known.get(memory)
                held = self.found.get(memory)
                if known is None or held is None:  # there was no room for it
                    continue
                hops = held.hops + direction
                for task, others in self._beyond(known, direction):
                    if not self.task(task, hops):
                        break
                    further |= dict.fromkeys(self.memories(others, hops))
            memories = list(further)

    def _beyond(self, known: Known, direction: int) -> Iterator[tuple[str, Iterable[str]]]:
        """The tasks next to a memory, with the memories beyond them."""
        if direction > 0:
            for task, seq in (known.readers or {}).items():
                if self._is_further(task, seq, direction):
                    yield task, self.wrote_after(task, seq)
        else:
            for task, seq in _writers(known):
                if self._is_further(task, seq, direction):
                    yield task, self._read_before(task, seq)

    def _is_further(self, task: str, seq: int, direction: int) -> bool:
        """Whether more lies beyond this task than was entered from another memory of it."""
        passed = self._passed.get((task, direction))
        if passed is not None and seq * direction >= passed * direction:
            return False
        self._passed[task, direction] = seq
        return True

    def wrote_after(self, task: str, seq: int) -> Iterator[str]:
        """What a task wrote after sequence `seq`, or changed; the latest first."""
        known = self.state.known
        for memory in self._looked_at(reversed(self.state.wrote.get(task, []))):
            if any(writer == task and at > seq for writer, at in _writers(known[memory])):
                yield memory

    def _read_before(self, task: str, seq: int) -> Iterator[str]:
        """What a task had read before sequence `seq`."""
        known = self.state.known
        for memory in self._looked_at(self.state.read.get(task, [])):
            if (known[memory].readers or {})[task] < seq:
                yield memory

    def _looked_at(self, memories: Iterable[str]) -> Iterator[str]:
        """These, as long as there is time for more."""
        for memory in memories:
            if self._looks >= LOOKS_MAX:
                self.cut = True
                return
            self._looks += 1
            yield memory

    def task(self, task: str, hops: int) -> bool:
        """Enter a task; False where there is no more room."""
        if task in self.traces:
            return True
        if not self._has_room():
            return False
        swarm, _, name = task.partition("/")
        wrote, read = self.state.wrote.get(task, []), self.state.read.get(task, [])
        self.cut |= max(len(wrote), len(read)) > NAMES_MAX
        self.traces[task] = Trace(swarm, name, hops, list(dict.fromkeys(wrote[:NAMES_MAX])), read[:NAMES_MAX])
        return True

    def memories(self, memories: Iterable[str], hops: int) -> list[str]:
        """Enter memories; those that were not there before."""
        new = []
        for memory in memories:
            if memory in self.found:
                continue
            if not self._has_room():
                break
            self.found[memory] = ancestry(memory, self.state.known[memory], hops)
            new.append(memory)
        return new

    def _has_room(self) -> bool:
        if len(self.found) + len(self.traces) < NODES_MAX:
            return True
        self.cut = True
        return False


def ancestry(memory: str, known: Known, hops: int = 0) -> Ancestry:
    """What the fold knows of a memory."""
    readers = islice((known.readers or {}).items(), NAMES_MAX)
    versions = [known.first[0], *(edit.seq for edit in known.updates or ())]
    return Ancestry(
        memory,
        known.author,
        known.swarm,
        known.task,
        known.step,
        known.space,
        known.since_ms,
        versions[-NAMES_MAX:],
        known.gone_seq,
        [reader_of(task, [memory], seq) for task, seq in readers],
        hops,
        known.revoked,
    )


def reader_of(task: str, memories: list[str], seq: int, count: int = 1) -> Reader:
    """A task (swarm/task) as answers name it."""
    swarm, _, name = task.partition("/")
    return Reader(swarm, name, memories, seq, count)


def meets(known: Known, wanted: RevokeRequest) -> bool:
    """Whether one version of a memory meets all conditions of a revocation but `id`."""
    if wanted.space and known.space != wanted.space:
        return False
    if _made(wanted, known.author, known.swarm, known.task, known.since_ms):
        return True
    edits = known.updates or ()
    return any(_made(wanted, edit.author, edit.swarm, edit.task, edit.at_ms) for edit in edits)


def _made(wanted: RevokeRequest, author: str, swarm: str, task: str, at_ms: int) -> bool:
    return (
        wanted.author in ("", author)
        and wanted.swarm in ("", swarm)
        and wanted.task in ("", task)
        and wanted.since_ms <= at_ms
    )


def _writers(known: Known) -> Iterator[tuple[str, int]]:
    """The tasks that wrote a memory, each once, with the sequence of its last version of it."""
    last: dict[str, int] = {}
    if known.task:
        last[f"{known.swarm}/{known.task}"] = known.first[0]
    for edit in known.updates or ():
        if edit.task:
            last[f"{edit.swarm}/{edit.task}"] = edit.seq
    yield from last.items()
