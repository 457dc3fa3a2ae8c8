"""Late binding: tasks wait here, in the orchestrator, until a member has a free slot for them.

Tasks that any of the same members could run share a lane. Among tenants the one with the fewest slots for its weight
comes first; within a tenant the order is by age, to which each level of priority adds some time (so that nothing
waits for ever), then by the way that a macro-task still has ahead. Which member takes a task is the policy's choice
(policies.py). (Central queueing has a p99 of 6.5 service times where least-in-flight has 8.5 and round-robin 25;
`docs/adr/0005`.)
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from swarmd.core.events import Submitted
    from swarmd.core.keys import Keys
    from swarmd.core.policies import Choice, Policy
    from swarmd.core.state import Member, SwarmState, Task

    #: A task, the member that is to run it, what spoke for that, and where it stood.
    Placed = tuple[str, Member, Choice, "Place"]

LaneKey = tuple[str, tuple[tuple[str, str], ...], str, bool]
_AFTER_ALL: Final = 1 << 62  #: later than any sequence


class TenantPolicy(Struct, frozen=True):
    """A tenant's share of the slots against others', and its bounds (0: none but the swarm's)."""

    weight: float = 1.0
    slots_max: int = 0
    live_max: int = 0


class Lane:
    """The waiting tasks of one agent, one set of required labels and one version ("": not begun, any).

    Suspects have lanes of their own. The tasks stand in `heaps`, by tenant; of those with a concurrency key the first
    of each of its `crowds`, unless the key holds it up. `tasks` counts those without a key, and none that has left.
    """

    def __init__(self, key: LaneKey) -> None:
        self.key = key
        self.agent, self.requires, self.version, self.suspect = key
        self.heaps: dict[str, list[Entry]] = {}
        self.tasks = self.waiting = 0
        self.crowds: dict[tuple[str, str], Crowd] = {}

    def suits(self, member: Member) -> bool:
        """Whether `member` offers this lane's agent in its version and carries its labels."""
        if self.agent not in member.agents or (self.version and self.version not in member.runs(self.agent)):
            return False
        return not self.requires or member.bears(self.requires)


class Place(Struct, frozen=True):
    """Where a waiting task stands; `queued_ms` is since when, by the log's clock."""

    lane: Lane
    tenant: str
    key: str
    queued_ms: int


#: Age, the way ahead (negative), sequence, index, a count (so that comparison never goes further), the task, its place.
Entry = tuple[int, int, int, int, int, str, Place]
_Share = tuple[float, float]
#: Turns of tenants that want nothing now are looked through when there are so many.
_SERVED_MIN: Final = 1_000


class Crowd:
    """The waiting tasks of one concurrency key in one lane, of one tenant; the first stands in the lane if `open`."""

    def __init__(self, lane: Lane, key: str, tenant: str) -> None:
        self.lane, self.key, self.tenant = lane, key, tenant
        self.heap: list[Entry] = []
        self.tasks = 0
        self.open = True
        self.standing: set[int] = set()  #: counts of the entries that the lane's heap has


class Queue:
    """All waiting tasks. The state says which tasks are queued; this index only orders them."""

    def __init__(
        self, state: SwarmState, keys: Keys, tenants: Mapping[str, TenantPolicy], ageing_ms: int = 10_000
    ) -> None:
        self._state, self._keys, self._tenants, self._ageing_ms = state, keys, tenants, ageing_ms
        self._lanes: dict[LaneKey, Lane] = {}
        self._waiting: dict[str, Entry] = {}
        self._crowds: dict[str, dict[Crowd, None]] = {}
        self._reopening: dict[str, int] = {}
        self._served: dict[str, float] = {}
        self._backlog: dict[str, int] = {}
        self._reached = 0.0
        self._taken: dict[str, int] = {}
        self._contended = False
        self._last: Place | None = None
        self._count = 0
        self.log_ms = 0  #: the time of the newest folded commit

    def __len__(self) -> int:
        return len(self._waiting)

    # --- who waits ---

    def push(self, task: Task) -> None:
        """A queued task waits for a slot."""
        if self._waits_already(task.id):
            return
        age = task.since_ms - task.priority * self._ageing_ms
        lane = self._lane(task.agent, task.requires, task.version, task.is_suspect)
        place = self._place_of(lane, task.tenant, task.concurrency_key)
        self._count += 1
        self._push((age, -task.rank_ms, *task.submitted, self._count, task.id, place))

    def push_proposed(self, task_id: str, fact: Submitted) -> None:
        """A submission that is not folded yet waits too, behind all folded ones of its age."""
        if self._waits_already(task_id):
            return
        self._count += 1
        age = self.log_ms - fact.priority * self._ageing_ms
        lane = self._lane(fact.agent, fact.requires)
        place = self._place_of(lane, fact.tenant, fact.concurrency_key)
        self._push((age, 0, _AFTER_ALL, 0, self._count, task_id, place))

    def _lane(self, agent: str, requires: Mapping[str, str], version: str = "", suspect: bool = False) -> Lane:
        key = (agent, tuple(sorted(requires.items())) if requires else (), version, suspect)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        return lane

    def _place_of(self, lane: Lane, tenant: str, key: str) -> Place:
        """Tasks that come together and alike share a place: there may be a million of them."""
        last = self._last
        if (
            last is None
            or last.lane is not lane
            or (last.tenant, last.key, last.queued_ms) != (tenant, key, self.log_ms)
        ):
            last = self._last = Place(lane, tenant, key, self.log_ms)
        return last

    def _waits_already(self, task_id: str) -> bool:
        """Whether the state has spoken for this task; what was only proposed gives way."""
        known = self._waiting.get(task_id)
        if known is not None and known[2] == _AFTER_ALL:
            self.discard(task_id)
            known = None
        return known is not None

    def _push(self, entry: Entry) -> None:
        place = entry[6]
        self._waiting[entry[5]] = entry
        tenant = place.tenant
        backlog = self._backlog.get(tenant, 0)
        if not backlog:  # nobody saves up turns while it wants none
            self._served[tenant] = max(self._served.get(tenant, 0.0), self._reached)
        self._backlog[tenant] = backlog + 1
        if place.key:
            self._join(entry)
        else:
            place.lane.tasks += 1
            self._enter(entry)

    def _enter(self, entry: Entry) -> None:
        place = entry[6]
        lane = place.lane
        heap = lane.heaps.get(place.tenant)
        if heap is None:
            heap = lane.heaps[place.tenant] = []
        heapq.heappush(heap, entry)
        lane.waiting += 1

    def discard(self, task_id: str) -> None:
        """The task no longer waits; its heap entry is skipped when it surfaces."""
        entry = self._waiting.pop(task_id, None)
        if entry is None:
            return
        self._forget(entry)
        if entry[6].key:
            crowd = entry[6].lane.crowds[entry[6].key, entry[6].tenant]
            if crowd.heap[0] is entry:
                self._advance(crowd)
        if not self._waiting:
            self._lanes.clear()

    def _forget(self, entry: Entry) -> None:
        place = entry[6]
        tenant = place.tenant
        if place.key:
            place.lane.crowds[place.key, tenant].tasks -= 1
        else:
            place.lane.tasks -= 1
        left = self._backlog[tenant] - 1
        if left:
            self._backlog[tenant] = left
        else:
            del self._backlog[tenant]

    def waiting(self) -> dict[str, int]:
        """How many tasks wait for each agent."""
        counts: dict[str, int] = {}
        for entry in self._waiting.values():
            agent = entry[6].lane.agent
            counts[agent] = counts.get(agent, 0) + 1
        return counts

    def waiting_for(self, members: list[Member]) -> dict[str, int]:
        """How many tasks wait for a slot of these members, by agent; without any, for whomever.

        Counted by lane, however long it is. What a concurrency key holds up waits for no slot.
        """
        agents = {agent for member in members for agent in member.agents}
        counts: dict[str, int] = {}
        for lane in self._lanes.values():
            suited = not members or (lane.agent in agents and (not lane.requires or any(map(lane.suits, members))))
            tasks = lane.tasks + sum(
                min(one.tasks, self._keys.room(one.key)) for one in lane.crowds.values() if one.open
            )
            if suited and tasks > 0:
                counts[lane.agent] = counts.get(lane.agent, 0) + tasks
        return counts

    def is_blocked(self, task_id: str) -> bool:
        """Whether a waiting task is held up by its concurrency key."""
        entry = self._waiting.get(task_id)
        return entry is not None and bool(entry[6].key) and not self._keys.is_open(entry[6].key)

    # --- concurrency keys ---

    def _join(self, entry: Entry) -> None:
        """One of each crowd stands in its lane, so that no crowd is sifted through when its key holds it up."""
        place = entry[6]
        lane, key, tenant = place.lane, place.key, place.tenant
        crowd = lane.crowds.get((key, tenant))
        if crowd is None:
            crowd = lane.crowds[key, tenant] = Crowd(lane, key, tenant)
            self._crowds.setdefault(key, {})[crowd] = None
        crowd.tasks += 1
        heapq.heappush(crowd.heap, entry)
        if crowd.open and crowd.heap[0] is entry:
            self._stand(crowd)

    def _stand(self, crowd: Crowd) -> None:
        first = crowd.heap[0]
        if first[4] not in crowd.standing:
            crowd.standing.add(first[4])
            self._enter(first)

    def _advance(self, crowd: Crowd) -> None:
        """The first of a crowd is gone, or may stand in the lane again."""
        heap = crowd.heap
        while heap and self._waiting.get(heap[0][5]) is not heap[0]:
            heapq.heappop(heap)
        if heap:
            if crowd.open:
                self._stand(crowd)
            return
        del crowd.lane.crowds[crowd.key, crowd.tenant]
        crowds = self._crowds[crowd.key]
        del crowds[crowd]
        if not crowds:
            del self._crowds[crowd.key]
            self._reopening.pop(crowd.key, None)

    def _shut(self, place: Place) -> None:
        """A key holds up this crowd until it is freed, or its rate allows more."""
        place.lane.crowds[place.key, place.tenant].open = False
        opens_at_ms = self._keys.opens_at_ms(place.key)
        if opens_at_ms:
            self._reopening[place.key] = opens_at_ms

    def freed(self, key: str) -> None:
        """A slot of this key may be free again: the first of those that it held up may stand in their lanes."""
        if key not in self._crowds or not self._keys.has_room(key):
            return
        for crowd in list(self._crowds[key]):
            if not crowd.open:
                crowd.open = True
                self._advance(crowd)

    def begin(self, now_ms: int) -> None:
        """An office begins: rates count from here on."""
        self._keys.begin(now_ms)

    def tick(self, now_ms: int) -> None:
        """Time passes: rates allow more."""
        if self._keys.tick(now_ms):  # the clock went back
            self._reopening = dict.fromkeys(self._reopening, now_ms)
        for key, at_ms in list(self._reopening.items()):
            if at_ms <= now_ms:
                del self._reopening[key]
                self.freed(key)

    # --- who is next ---

    def place(
        self,
        members: list[Member],
        free: dict[str, int],
        limit: int,
        policy: Policy,
        full: Mapping[str, Collection[str]],
    ) -> Iterator[Placed]:
        """Up to `limit` placements, best first; `free` (member → slots) is used up on the way.

        `full` are agents for which a member has none of its free slots, by member.
        """
        rounds: list[tuple[_Share, Entry, Choice]] = []
        self._contended = len(self._backlog) > 1
        for key, lane in list(self._lanes.items()):
            choice: Choice | None = None
            for tenant in list(lane.heaps):
                head = self._head(lane, tenant)
                if head is None:
                    continue
                if choice is None:
                    fit = [m for m in members if lane.agent not in full.get(m.id, ())] if full else members
                    choice = policy.choice(lane, fit, free, self.log_ms)
                    if choice is None:
                        break
                rounds.append((self._share(tenant), head, choice))
            if not lane.heaps and not lane.crowds:
                del self._lanes[key]
        heapq.heapify(rounds)
        yield from self._rounds(rounds, limit)

    def _rounds(self, rounds: list[tuple[_Share, Entry, Choice]], limit: int) -> Iterator[Placed]:
        while rounds and limit > 0:
            share, entry, choice = rounds[0]
            place = entry[6]
            tenant, lane = place.tenant, place.lane
            now = self._share(tenant)
            if now != share or (place.key and not self._stands(entry)):  # it has got a slot elsewhere, or gives way
                self._next(rounds, lane, tenant, choice)
                continue
            member = None
            if not self.is_at_bound(tenant):
                if place.key and not self._keys.is_open(place.key):
                    self._shut(place)
                    self._next(rounds, lane, tenant, choice)
                    continue
                waiting = self._in_line(place) if place.key else lane.waiting
                member = choice.take(waiting, self.log_ms - place.queued_ms)
            if member is None:
                heapq.heappop(rounds)
                continue
            del self._waiting[entry[5]]
            self._forget(entry)
            if place.key:
                self._keys.take(place.key)
                self._advance(lane.crowds[place.key, tenant])
            self._serve(tenant, choice.expected_ms)
            limit -= 1
            yield entry[5], member, choice, place
            self._next(rounds, lane, tenant, choice)

    def _next(self, rounds: list[tuple[_Share, Entry, Choice]], lane: Lane, tenant: str, choice: Choice) -> None:
        head = self._head(lane, tenant)
        if head is None:
            heapq.heappop(rounds)
        else:
            heapq.heapreplace(rounds, (self._share(tenant), head, choice))

    def _head(self, lane: Lane, tenant: str) -> Entry | None:
        heap, waiting = lane.heaps.get(tenant), self._waiting
        while heap:
            entry = heap[0]
            key = entry[6].key
            if waiting.get(entry[5]) is entry and (not key or self._stands(entry)):
                return entry
            heapq.heappop(heap)
            lane.waiting -= 1
            if key and (key, tenant) in lane.crowds:
                lane.crowds[key, tenant].standing.discard(entry[4])
        lane.heaps.pop(tenant, None)
        return None

    def _stands(self, entry: Entry) -> bool:
        """Whether an entry of a lane is a task with a key that waits, and that stands there for its crowd."""
        place = entry[6]
        if self._waiting.get(entry[5]) is not entry:
            return False
        crowd = place.lane.crowds[place.key, place.tenant]
        return crowd.open and crowd.heap[0] is entry

    def _in_line(self, place: Place) -> int:
        """How many tasks wait for the slots of this lane, where one of a crowd stands for all."""
        crowd = place.lane.crowds[place.key, place.tenant]
        return max(place.lane.waiting, min(crowd.tasks, self._keys.room(place.key)))

    # --- fairness ---

    def _share(self, tenant: str) -> _Share:
        """What a tenant has got of the slots for its weight, now and in the long run (start-time fair queueing)."""
        if not self._contended:
            return (0.0, 0.0)
        use = self._state.tenants.get(tenant)
        slots = (use.slots if use is not None else 0) + self._taken.get(tenant, 0)
        return (slots / self._weight(tenant), self._served.get(tenant, 0.0))

    def _weight(self, tenant: str) -> float:
        policy = self._tenants.get(tenant)
        return policy.weight if policy is not None else 1.0

    def _serve(self, tenant: str, cost: float) -> None:
        self._reached = max(self._reached, self._served.get(tenant, 0.0))
        self._served[tenant] = self._served.get(tenant, 0.0) + max(1.0, cost) / self._weight(tenant)
        if len(self._served) > max(_SERVED_MIN, 2 * len(self._backlog)):
            self._served = {name: turn for name, turn in self._served.items() if name in self._backlog}
        self._taken[tenant] = self._taken.get(tenant, 0) + 1

    def claim(self, tenant: str, key: str) -> bool:
        """Give another slot to a task of this tenant and key that runs already, if they may have one."""
        if self.is_at_bound(tenant) or (key and not self._keys.is_open(key)):
            return False
        self._taken[tenant] = self._taken.get(tenant, 0) + 1
        if key:
            self._keys.take(key)
        return True

    def settle(self, tenant: str, key: str) -> None:
        """The fold has the slot that was given to a task of this tenant and key, or it came to nothing."""
        left = self._taken[tenant] - 1
        if left:
            self._taken[tenant] = left
        else:
            del self._taken[tenant]
        if key:
            self._keys.settle(key)
            self.freed(key)

    def is_at_bound(self, tenant: str) -> bool:
        """Whether a tenant has all the slots that it may have."""
        policy = self._tenants.get(tenant)
        if policy is None or not policy.slots_max:
            return False
        use = self._state.tenants.get(tenant)
        return (use.slots if use is not None else 0) + self._taken.get(tenant, 0) >= policy.slots_max
