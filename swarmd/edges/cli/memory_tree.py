"""A lineage as a tree: back to what a memory was made of, on to what was made of it.

A lineage is a graph; each memory is followed where it comes first, and only named where it comes again. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct, field

from swarmd.core.memory import SHARED
from swarmd.core.memory_wire import Trace
from swarmd.edges.cli.memory_shown import fitted, width

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from swarmd.core.memory_wire import Ancestry, LineageReply

Way = Literal["back", "on"]


class Branch(Struct):
    """A line of the tree, and what hangs below it."""

    text: str
    below: list[Branch] = field(default_factory=list)


def tree_text(id: str, swarm: str, reply: LineageReply, texts: Mapping[str, str]) -> str:
    """The lineage of the memory `id`, or with `swarm` that of its task; `texts` are those that are known, by id."""
    graph = _Graph(reply, texts)
    root = graph.of_task(f"{swarm}/{id}") if swarm else graph.of_memory(id)
    columns = width()
    return "\n".join([fitted(root.text, columns), *_lines(root.below, "", columns)])


def _lines(branches: Sequence[Branch], indent: str, columns: int) -> Iterator[str]:
    for number, branch in enumerate(branches, 1):
        last = number == len(branches)
        yield indent + ("└─ " if last else "├─ ") + fitted(branch.text, max(20, columns - len(indent) - 3))
        yield from _lines(branch.below, indent + ("   " if last else "│  "), columns)


class _Graph:
    def __init__(self, reply: LineageReply, texts: Mapping[str, str]) -> None:
        self._memories = {one.id: one for one in reply.memories}
        self._tasks = {f"{one.swarm}/{one.task}": one for one in reply.tasks}
        self._texts = texts
        self._followed: set[tuple[Way, str]] = set()

    def of_memory(self, id: str) -> Branch:
        self._followed |= {("back", id), ("on", id)}
        return Branch(self._said(id), [*self._writer(id), *self._readers(id)])

    def of_task(self, task: str) -> Branch:
        trace = self._tasks.get(task)
        if trace is None:
            return Branch(f"task {task} has neither read nor written a memory")
        below = [self._memory(id, "back", "read ") for id in trace.read]
        return Branch(f"task {task}", below + [self._memory(id, "on", "wrote ") for id in trace.wrote])

    def _memory(self, id: str, way: Way, head: str) -> Branch:
        if (way, id) in self._followed:
            return Branch(f"{head}{id} (see above)")
        self._followed.add((way, id))
        return Branch(head + self._said(id), self._writer(id) if way == "back" else self._readers(id))

    def _writer(self, id: str) -> list[Branch]:
        memory = self._memories.get(id)
        if memory is None or not memory.task:
            return []
        task = f"{memory.swarm}/{memory.task}"
        step = f", step {memory.step}" if memory.step else ""
        read = self._trace(task).read
        return [Branch(f"written by task {task}{step}", [self._memory(one, "back", "which had read ") for one in read])]

    def _readers(self, id: str) -> list[Branch]:
        memory = self._memories.get(id)
        found = []
        for reader in memory.readers if memory is not None else ():
            task = f"{reader.swarm}/{reader.task}"
            if ("on", task) in self._followed:
                found.append(Branch(f"read by task {task} (see above)"))
                continue
            self._followed.add(("on", task))
            wrote = [self._memory(one, "on", "which then wrote ") for one in self._trace(task).wrote if one != id]
            found.append(Branch(f"read by task {task}, at sequence {reader.seq}", wrote))
        return found

    def _trace(self, task: str) -> Trace:
        return self._tasks.get(task) or Trace("", "")

    def _said(self, id: str) -> str:
        memory = self._memories.get(id)
        parts = [id, f'"{fitted(self._texts[id], 60)}"' if id in self._texts else "", *_about(memory)]
        return "  ".join(part for part in parts if part)


def _about(memory: Ancestry | None) -> list[str]:
    if memory is None:
        return []
    versions = ", ".join(map(str, memory.versions))
    end = f"{'withdrawn' if memory.revoked else 'dropped'} at {memory.gone_seq}" if memory.gone_seq else ""
    space = "" if memory.space == SHARED else memory.space
    said = f"version{'s' if len(memory.versions) > 1 else ''} at {versions}" if versions else ""
    return [f"({' · '.join(part for part in (memory.author, space, said, end) if part)})"]
