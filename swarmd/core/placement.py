"""Late binding: tasks wait here, in the orchestrator, until a member has a free slot for them.

Tasks that any of the same members could run share a lane, ordered by priority and then by age. A
choice is made only when it can be carried out: the highest waiting task of all lanes goes to the least
loaded member that offers its agent and carries the labels it requires. (Central queueing has a p99 of
6.5 service times where least-in-flight has 8.5 and round-robin 25; `docs/adr/0005`.)
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from swarmd.core.events import Submitted
    from swarmd.core.state import Member, Task

LaneKey = tuple[str, tuple[tuple[str, str], ...], str]
_Entry = tuple[int, int, int, str]
_AFTER_ALL: Final = 1 << 62  #: later than any sequence


class Lane:
    """The waiting tasks of one agent, one set of required labels and one version ("": not begun, any)."""

    def __init__(self, key: LaneKey) -> None:
        self.agent, self.requires, self.version = key
        self.heap: list[_Entry] = []

    def suits(self, member: Member) -> bool:
        """Whether `member` offers this lane's agent in its version and carries its labels."""
        if self.agent not in member.agents or (self.version and self.version not in member.runs(self.agent)):
            return False
        return all(member.labels.get(name) == value for name, value in self.requires)


def _lane_key(agent: str, requires: Mapping[str, str], version: str = "") -> LaneKey:
    return (agent, tuple(sorted(requires.items())) if requires else (), version)


class Queue:
    """All waiting tasks. The state says which tasks are queued; this index only orders them."""

    def __init__(self) -> None:
        self._lanes: dict[LaneKey, Lane] = {}
        self._waiting: dict[str, tuple[LaneKey, _Entry]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, task: Task) -> None:
        """A queued task waits for a slot."""
        key = _lane_key(task.agent, task.requires, task.version)
        self._push(task.id, key, (-task.priority, *task.submitted, task.id))

    def push_proposed(self, task_id: str, fact: Submitted) -> None:
        """A submission that is not folded yet waits too, behind all folded ones of its priority."""
        self._count += 1
        key = _lane_key(fact.agent, fact.requires)
        self._push(task_id, key, (-fact.priority, _AFTER_ALL, self._count, task_id))

    def _push(self, task_id: str, key: LaneKey, entry: _Entry) -> None:
        known = self._waiting.get(task_id)
        if known is not None and known[1][1] != _AFTER_ALL:
            return
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        self._waiting[task_id] = (key, entry)
        heapq.heappush(lane.heap, entry)

    def discard(self, task_id: str) -> None:
        """The task no longer waits; its heap entry is skipped when it surfaces."""
        self._waiting.pop(task_id, None)

    def waiting(self) -> dict[str, int]:
        """How many tasks wait for each agent."""
        counts: dict[str, int] = {}
        for (agent, _, _), _entry in self._waiting.values():
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
            entry = lane.heap[0]
            known = self._waiting.get(entry[3])
            if known is not None and known[1] is entry:
                return entry
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
