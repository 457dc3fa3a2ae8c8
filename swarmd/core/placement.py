"""Late binding: tasks wait here, in the orchestrator, until a member has a free slot for them.

Tasks that any of the same members could run share a lane, ordered by priority and then by age. A
choice is made only when it can be carried out: the highest waiting task of all lanes goes to the least
loaded member that offers its agent and carries the labels it requires. (Central queueing has a p99 of
6.5 service times where least-in-flight has 8.5 and round-robin 25; `docs/adr/0005`.)
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmd.core.state import Member, Task

LaneKey = tuple[str, tuple[tuple[str, str], ...]]
_Entry = tuple[int, int, int, str]


class Lane:
    """The waiting tasks of one agent and one set of required labels."""

    def __init__(self, key: LaneKey) -> None:
        self.agent, self.requires = key
        self.heap: list[_Entry] = []

    def suits(self, member: Member) -> bool:
        """Whether `member` offers this lane's agent and carries its labels."""
        if self.agent not in member.agents:
            return False
        return all(member.labels.get(name) == value for name, value in self.requires)


class Queue:
    """All waiting tasks. The state says which tasks are queued; this index only orders them."""

    def __init__(self) -> None:
        self._lanes: dict[LaneKey, Lane] = {}
        self._waiting: dict[str, LaneKey] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, task: Task) -> None:
        if task.id in self._waiting:
            return
        key = (task.agent, tuple(sorted(task.requires.items())) if task.requires else ())
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        self._waiting[task.id] = key
        seq, index = task.submitted
        heapq.heappush(lane.heap, (-task.priority, seq, index, task.id))

    def discard(self, task_id: str) -> None:
        """The task no longer waits; its heap entry is skipped when it surfaces."""
        self._waiting.pop(task_id, None)

    def waiting(self) -> dict[str, int]:
        """How many tasks wait for each agent."""
        counts: dict[str, int] = {}
        for agent, _ in self._waiting.values():
            counts[agent] = counts.get(agent, 0) + 1
        return counts

    def place(self, members: list[Member], free: dict[str, int], limit: int) -> Iterator[tuple[str, Member]]:
        """Up to `limit` pairs of task and member, best first; `free` (member → slots) is used up on the way."""
        rounds: list[tuple[_Entry, LaneKey, list[tuple[float, str, Member]]]] = []
        for key, lane in list(self._lanes.items()):
            head = self._head(lane)
            if head is None:
                del self._lanes[key]
                continue
            able = [
                (1 - free[member.id] / member.capacity, member.id, member)
                for member in members
                if free[member.id] > 0 and lane.suits(member)
            ]
            if able:
                heapq.heapify(able)
                rounds.append((head, key, able))
        heapq.heapify(rounds)
        while rounds and limit > 0:
            _, key, able = rounds[0]
            lane = self._lanes[key]
            member = self._least_loaded(able, free)
            if member is None:
                heapq.heappop(rounds)
                continue
            task_id = heapq.heappop(lane.heap)[3]
            del self._waiting[task_id]
            limit -= 1
            yield task_id, member
            head = self._head(lane)
            if head is None:
                heapq.heappop(rounds)
            else:
                heapq.heapreplace(rounds, (head, key, able))

    def _head(self, lane: Lane) -> _Entry | None:
        while lane.heap:
            if self._waiting.get(lane.heap[0][3]) == (lane.agent, lane.requires):
                return lane.heap[0]
            heapq.heappop(lane.heap)
        return None

    @staticmethod
    def _least_loaded(able: list[tuple[float, str, Member]], free: dict[str, int]) -> Member | None:
        """Take one slot of the least loaded member; loads that another lane has changed are looked at again."""
        while able:
            load, name, member = able[0]
            slots = free[name]
            if slots <= 0:
                heapq.heappop(able)
                continue
            now = 1 - slots / member.capacity
            if now > load:
                heapq.heapreplace(able, (now, name, member))
                continue
            free[name] = slots - 1
            heapq.heapreplace(able, (1 - (slots - 1) / member.capacity, name, member))
            return member
        return None
