"""A queue at work: tasks wait, are placed, folded and end, with a state that knows no more than what the queue asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Raw

from swarmd.core.keys import KeyPolicy, Keys
from swarmd.core.placement import Queue, TenantPolicy
from swarmd.core.policies import Pull
from swarmd.core.state import Member, SwarmState, Task, Use

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmd.core.placement import Place


def member(name: str, agents: str = "a", capacity: int = 1, **labels: str) -> Member:
    return Member(name, "node", "worker", "w", "b", list(agents), capacity, labels=labels)


class Desk:
    """What is `placed` is decided and not folded; what is `running` has its slot in the state."""

    def __init__(
        self,
        *members: Member,
        keys: Mapping[str, KeyPolicy] | None = None,
        tenants: Mapping[str, TenantPolicy] | None = None,
        ageing_ms: int = 10_000,
    ) -> None:
        self.state = SwarmState("s")
        self.members = {one.id: one for one in members}
        self.policies, self.tenants = dict(keys or {}), dict(tenants or {})
        self.keys = Keys(self.policies, self.state.keys)
        self.queue = Queue(self.state, self.keys, self.tenants, ageing_ms)
        self.pull = Pull(self.state)
        self.tasks: dict[str, Task] = {}
        self.placed: dict[str, tuple[str, Place]] = {}
        self.running: dict[str, str] = {}
        self.now_ms = 0
        self._seq = 0

    def wait(self, name: str, agent: str = "a", tenant: str = "", key: str = "", priority: int = 0) -> None:
        """A new task, of now."""
        self._seq += 1
        place = (self._seq, 0)
        task = Task(name, agent, "d", place, Raw(b"1"), tenant=tenant, concurrency_key=key, priority=priority)
        task.since_ms = self.now_ms
        self.tasks[name] = task
        self.queue.push(task)

    def pass_time(self, delay_ms: int) -> None:
        self.now_ms += delay_ms
        self.queue.log_ms = self.now_ms
        self.queue.tick(self.now_ms)

    def free(self) -> dict[str, int]:
        used = [*self.running.values(), *(where for where, _ in self.placed.values())]
        return {name: one.capacity - used.count(name) for name, one in self.members.items()}

    def place(self, limit: int = 1_000) -> list[str]:
        """Fill the free slots; who got one, in order."""
        names = []
        for name, chosen, _, place in self.queue.place(list(self.members.values()), self.free(), limit, self.pull, {}):
            self.placed[name] = (chosen.id, place)
            names.append(name)
        return names

    def fold(self, name: str) -> None:
        """The placement is true."""
        where, place = self.placed.pop(name)
        self.running[name] = where
        use = self.state.tenants.setdefault(place.tenant, Use())
        use.slots += 1
        if place.key:
            self.state.keys[place.key] = self.state.keys.get(place.key, 0) + 1
        self.queue.settle(place.tenant, place.key)

    def drop(self, name: str) -> None:
        """The placement came to nothing: the task waits again."""
        _, place = self.placed.pop(name)
        self.queue.settle(place.tenant, place.key)
        self.queue.push(self.tasks[name])

    def end(self, name: str, *, again: bool = False) -> None:
        """A running task ends, or gives back its slot and waits `again`."""
        del self.running[name]
        task = self.tasks[name]
        self.state.tenants[task.tenant].slots -= 1
        key = task.concurrency_key
        if key:
            self.state.keys[key] -= 1
            if not self.state.keys[key]:
                del self.state.keys[key]
        if again:
            self.queue.push(task)
        if key:
            self.queue.freed(key)

    def cancel(self, name: str) -> None:
        """A waiting task waits no more."""
        self.queue.discard(name)
        if self.tasks[name].concurrency_key:
            self.queue.freed(self.tasks[name].concurrency_key)

    def waiting(self) -> list[Task]:
        return [self.tasks[name] for name in self.queue._waiting]

    def serve(self) -> list[str]:
        """Place and fold all that can be."""
        names = self.place()
        for name in names:
            self.fold(name)
        return names

    def left(self) -> list[object]:
        """What the queue still keeps of its tasks; nothing of it, when none waits and none is under way."""
        queue = self.queue
        queue.place([], {}, 1, self.pull, {})
        kept = [queue._waiting, queue._crowds, queue._backlog, queue._taken, queue._reopening, self.keys._taken]
        lanes = [lane.key for lane in queue._lanes.values() if lane.tasks or lane.crowds]
        return [one for one in (*kept, lanes) if one]
