"""From waiting tasks to `Assigned` events: the queue, and the placements that are decided but not folded.

A placement not folded yet is an overlay: it holds a slot until its commit is folded, whatever the fold
made of it, or could not be stored. Submissions of the very commit that is being made are placed as well,
on the strength of an event that stands before theirs; if the fold refuses that, it refuses the placement too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.core.budgets import NO_LIMIT, names_of, offer
from swarmd.core.events import Assigned, Event, Submitted
from swarmd.core.placement import Queue

if TYPE_CHECKING:
    from swarmd.core.health import Links
    from swarmd.core.state import Member, SwarmState, Task


class Placing:
    """Decides for one leader in one office."""

    def __init__(self, state: SwarmState) -> None:
        self._state = state
        self._queue = Queue()
        self._fresh: dict[str, Submitted] = {}
        self._placed: dict[str, tuple[str, int]] = {}
        self._taken: dict[str, int] = {}

    def __len__(self) -> int:
        """How many tasks wait."""
        return len(self._queue)

    @property
    def overlays(self) -> dict[str, int]:
        """Slots held by placements that are not folded yet, by member."""
        return self._taken

    def propose(self, task_id: str, fact: Submitted) -> None:
        """A submission of the commit that is being made."""
        self._fresh[task_id] = fact
        self._queue.push_proposed(task_id, fact)

    def proposed_is_over(self, task_id: str) -> None:
        """Its own commit was folded: from here on the state speaks for the task."""
        self._fresh.pop(task_id, None)

    def withdraw(self, task_id: str) -> None:
        """A proposed submission could not be stored."""
        self._fresh.pop(task_id, None)
        self._queue.discard(task_id)

    def wait(self, task: Task) -> None:
        """A queued task waits for a slot, unless one is promised to it already."""
        if task.id not in self._placed:
            self._queue.push(task)

    def ended(self, task_id: str) -> None:
        self._queue.discard(task_id)

    def settle(self, task_id: str, epoch: int) -> None:
        """A placement was folded or could not be stored: its slot is the state's business now."""
        member, placed = self._placed.get(task_id, ("", 0))
        if placed == epoch:
            del self._placed[task_id]
            self._taken[member] -= 1
            if not self._taken[member]:
                del self._taken[member]
        task = self._state.tasks.get(task_id)
        if task is not None and task.state == "queued":
            self.wait(task)

    def decide(self, links: Links, limit: int) -> list[Event]:
        """Give waiting tasks to free slots of reachable members; up to `limit` events."""
        if not len(self._queue):
            return []
        state, taken, events = self._state, self._taken, list[Event]()
        members = [m for m in state.members.values() if m.capacity and links.reachable(m)]
        free = {m.id: m.capacity - len(m.running) - taken.get(m.id, 0) for m in members}
        for task_id, member in self._queue.place(members, free, limit):
            fact = self._assignment(task_id, member)
            if fact is None or task_id in self._placed:
                continue  # gone, or an earlier placement is still on its way: it waits again after that
            self._placed[task_id] = (member.id, fact.epoch)
            taken[member.id] = taken.get(member.id, 0) + 1
            events.append(Event(task_id, fact))
        return events

    def _assignment(self, task_id: str, member: Member) -> Assigned | None:
        """The placement, with a slice of what its budgets have left; the fold says what it may have of that."""
        state = self._state
        task = state.tasks.get(task_id)
        wanted = task or self._fresh.get(task_id)
        if wanted is None:
            return None
        fact = Assigned(term=state.term, epoch=task.epoch + 1 if task else 1, member=member.id)
        own = NO_LIMIT if task else wanted.budget
        if state.accounts or own != NO_LIMIT:
            names = names_of(state.accounts, task.draws if task else (), wanted.tenant)
            fact.grant = offer(state.accounts, names, own, child=member.kind == "swarm")
        return fact

    def waiting(self) -> dict[str, int]:
        """How many tasks wait for each agent."""
        return self._queue.waiting()
