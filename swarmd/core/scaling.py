"""How many worker processes a swarm should have: what waits and runs, over what one process takes.

A leader looks once a second. It follows a rise that lasts and a fall that has lasted long, as the Kubernetes horizontal
autoscaler does with its stabilization windows. It proposes only; whoever starts and drains processes (`up`, an external
autoscaler) keeps to bounds of its own. Must not know how many processes there may be.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from swarmd.core.policies import process_of

if TYPE_CHECKING:
    from swarmd.core.leader import Leader

LOOK_MS: Final = 1_000
#: More workers are wanted if that many were at each look for so long: one glimpse of a queue is none.
RISE_MS: Final = 1_000
#: What waits shall be done within so long; more slots than that takes are not worth a process.
CLEAR_MS: Final = 10_000
#: Taken for the duration of an agent that nobody has seen run.
UNKNOWN_MS: Final = 1_000


class Backlog(Struct, frozen=True):
    """Tasks of one agent that wait for a slot, and how long an attempt of it takes."""

    tasks: int
    mean_ms: int = UNKNOWN_MS


class Demand(Struct, frozen=True):
    """What there is to do at one moment, and who is there: `workers` processes that take work, with `slots` in all."""

    backlogs: tuple[Backlog, ...]
    running: int
    workers: int
    slots: int


def workers_for(demand: Demand) -> int:
    """The fewest worker processes that run what runs and clear what waits within `CLEAR_MS`.

    While there is no worker nobody knows what one takes: then it is one, if there is anything to do.
    """
    wanted = demand.running
    for backlog in demand.backlogs:
        wanted += min(backlog.tasks, _ceil(backlog.tasks * max(1, backlog.mean_ms), CLEAR_MS))
    if not demand.workers or not demand.slots:
        return 1 if wanted else 0
    return _ceil(wanted * demand.workers, demand.slots)


def _ceil(amount: int, unit: int) -> int:
    return -(-amount // unit)


class Scaling:
    """One leader's view in one office. `desired` is what it proposes; None until it has looked."""

    def __init__(self, idle_ms: int) -> None:
        self._idle_ms = max(idle_ms, RISE_MS)
        self._looks: deque[tuple[int, int]] = deque()
        self.desired: int | None = None
        self.workers = 0

    def tick(self, leader: Leader, now_ms: int) -> None:
        """Look, once a second."""
        if self._looks and 0 <= now_ms - self._looks[-1][0] < LOOK_MS:
            return
        self.look(demand_of(leader), now_ms)

    def look(self, demand: Demand, now_ms: int) -> int:
        """What is desired from now on: never more than was wanted at some look within the idle time.

        A new leader knows no past: whoever is there may have been needed a moment ago, and counts as wanted.
        """
        self.workers = demand.workers
        while self._looks and self._looks[-1][0] > now_ms:  # the clock went back
            self._looks.pop()
        wanted = workers_for(demand)
        if self.desired is None:
            self.desired = demand.workers
            self._looks.append((now_ms, max(wanted, demand.workers)))
        self._looks.append((now_ms, wanted))
        while now_ms - self._looks[0][0] > self._idle_ms:
            self._looks.popleft()
        rise = wanted
        for at_ms, count in reversed(self._looks):  # to the one that was in force when the time began
            rise = min(rise, count)
            if now_ms - at_ms >= RISE_MS:
                break
        fall = max(count for _, count in self._looks)
        self.desired = max(rise, min(self.desired, fall))
        return self.desired


def demand_of(leader: Leader) -> Demand:
    """What the leader's swarm has to do that worker processes could do."""
    state, links = leader.state, leader.links
    nodes = [member for member in state.members.values() if member.kind == "node"]
    ready = [node for node in nodes if node.capacity and links.reachable(node)]
    placed = leader.placing.overlays
    running = sum(len(node.running) + placed.get(node.id, 0) for node in nodes)
    backlogs = []
    for agent, tasks in leader.placing.waiting_for(ready).items():
        learned = state.learned.get(agent)
        backlogs.append(Backlog(tasks, round(learned.mean_ms) if learned is not None and learned.runs else UNKNOWN_MS))
    return Demand(
        tuple(backlogs), running, len({process_of(node) for node in ready}), sum(node.capacity for node in ready)
    )
