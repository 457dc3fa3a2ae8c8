"""Which of the members that could take a task gets it: what placement does, and what it is compared with.

`adaptive` binds late like `pull`, and knows from experience who is slow or fails: those get work when the queue is so
long that waiting for a better member would take as long. The other four bind early, that is they give tasks to
members that have no free slot; they are here to be measured against (`swarmd simulate`).
"""

from __future__ import annotations

import heapq
from functools import lru_cache
from math import exp, log
from typing import TYPE_CHECKING, Annotated, Final, Literal
from zlib import crc32

from msgspec import Meta, Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmd.core.experience import Learned
    from swarmd.core.placement import Lane, LaneKey
    from swarmd.core.state import Member, SwarmState

Process = tuple[str, str]
PolicyName = Literal["adaptive", "pull", "random", "round-robin", "least-loaded", "power-of-two"]
Rule = Literal["load", "speed", "fit", "only", "probe", "hedge"]
#: Members whose cost is within this factor of good ones are alike, and those within so many standard errors.
ALIKE: Final = 1.3
DOUBTS: Final = 3.25
#: So many attempts of an agent must have ended before its members can be told apart.
RUNS_MIN: Final = 20
#: Good is this share of the members from the best.
GOOD_SHARE: Final = 0.25
#: A member that costs `c` times as much gets work when `PATIENCE * (c - 1)` tasks wait for each slot of better ones.
PATIENCE: Final = 0.75
#: The load of a member that is to have a probe.
_PROBE: Final = -1.0
#: How long a view of who is slow is good for, in milliseconds.
VIEW_MS: Final = 250


class PlacementSettings(Struct, frozen=True):
    """How a leader places. A level of priority is worth `ageing_ms` of waiting.

    Attempts of idempotent agents that take longer than `hedge_quantile` of them are hedged, as long as hedges are at
    most `hedge_share` of all attempts (0: never). With `affinity` a task goes to a good member that has done its like,
    if one is free. `seed` is for policies that draw lots.
    """

    policy: PolicyName = "adaptive"
    ageing_ms: Annotated[int, Meta(ge=0)] = 10_000
    hedge_share: Annotated[float, Meta(ge=0, le=1)] = 0.05
    hedge_quantile: Annotated[float, Meta(gt=0, lt=1)] = 0.95
    affinity: bool = False
    seed: int = 0


class Choice:
    """The members of one lane in one round of placements. `rule` says what spoke for the last one taken.

    `peers` are those that would do as well as the one that is taken first.
    """

    rule: Rule = "load"
    expected_ms = 0
    free = 0
    peers: Sequence[Member] = ()

    def take(self, waiting: int, waited_ms: int) -> Member | None:
        """Take one slot for the lane's next task, of which `waiting` wait; None when none shall be used now."""
        raise NotImplementedError


class Policy:
    """Makes the choices of one leader."""

    #: Whether members are given no more than they have slots.
    late = True

    def __init__(self, state: SwarmState) -> None:
        self._state = state
        self.lent: dict[str, Process] = {}  #: where suspects are sent to, as long as the fold does not know it

    def choice(self, lane: Lane, members: list[Member], free: dict[str, int], now_ms: int) -> Choice | None:
        """Who could take tasks of `lane`; None when nobody can."""
        raise NotImplementedError


def process_of(member: Member) -> Process:
    """The process that hosts a member."""
    return (member.writer, member.boot)


@lru_cache(maxsize=1 << 16)
def _tie(member_id: str) -> tuple[int, str]:
    """Where a member comes among equals."""
    return crc32(member_id.encode()), member_id


class _ByLoad:
    """Members by load, least first; loads that another lane has changed are looked at again."""

    def __init__(self, members: list[Member], free: dict[str, int]) -> None:
        self._free = free
        # Ties go by a hash: by name all work of an idle swarm would go to the nodes of one process.
        # Whoever is set apart has a slot only when a probe is due, and that comes first: else who has many idle
        # neighbours would never be tried again.
        self._heap = [(_PROBE if m.quarantined else 1 - free[m.id] / m.capacity, _tie(m.id), m) for m in members]
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    def take(self) -> Member | None:
        """Take one slot of the least loaded member."""
        able, free = self._heap, self._free
        while able:
            load, tie, member = able[0]
            slots = free[member.id]
            if slots <= 0:
                heapq.heappop(able)
                continue
            now = 1 - slots / member.capacity
            if now > load != _PROBE:
                heapq.heapreplace(able, (now, tie, member))
                continue
            free[member.id] = slots - 1
            heapq.heapreplace(able, (1 - (slots - 1) / member.capacity, tie, member))
            return member
        return None


class _Pull(Choice):
    """The least loaded of the members with a free slot."""

    def __init__(self, able: list[Member], free: dict[str, int], expected_ms: int) -> None:
        self._able = _ByLoad(able, free)
        self.peers = able
        self.free = len(able)
        self.expected_ms = expected_ms
        self.rule = "load" if len(able) > 1 else "only"

    def take(self, waiting: int, waited_ms: int) -> Member | None:
        return self._able.take()


class _Careful(Choice):
    """For suspects: members of processes that host none."""

    def __init__(self, policy: Policy, state: SwarmState, able: list[Member], free: dict[str, int]) -> None:
        tasks = state.tasks

        def hosts_one(member: Member) -> bool:
            return any(tasks[name].is_suspect for name in member.running if name in tasks)

        self._hosts = {process_of(member) for member in state.members.values() if hosts_one(member)}
        self._policy, self._free = policy, free
        self._able = sorted(able, key=lambda member: (-free[member.id] / member.capacity, member.id))
        self.free = len(able)
        self.rule = "load" if len(able) > 1 else "only"

    def take(self, waiting: int, waited_ms: int) -> Member | None:
        hosts = self._hosts.union(self._policy.lent.values())
        for member in self._able:
            if self._free[member.id] > 0 and process_of(member) not in hosts:
                self._free[member.id] -= 1
                return member
        return None


class Pull(Policy):
    """Plain late binding, which treats all members alike."""

    def choice(self, lane: Lane, members: list[Member], free: dict[str, int], now_ms: int) -> Choice | None:
        able = [member for member in members if free[member.id] > 0 and lane.suits(member)]
        if not able:
            return None
        if lane.suspect:
            return _Careful(self, self._state, able, free)
        return self._among(able, lane, members, free, now_ms)

    def _among(
        self, able: list[Member], lane: Lane, members: list[Member], free: dict[str, int], now_ms: int
    ) -> Choice:
        return _Pull(able, free, self._expected_ms(lane))

    def _expected_ms(self, lane: Lane) -> int:
        learned = self._state.learned.get(lane.agent)
        return round(learned.mean_ms) if learned is not None else 0


class _View(Struct):
    """Who of those that suit a lane costs more than the best, by which factor; and how many slots the others have."""

    made_ms: int
    members: int
    dear: dict[str, float]
    good_slots: int


class _Adaptive(Choice):
    """Good members first. Dear ones when waiting for a good one would cost as much, the least dear first."""

    def __init__(self, able: list[Member], free: dict[str, int], view: _View, expected_ms: int) -> None:
        good = [member for member in able if member.id not in view.dear or member.quarantined]
        dear = [(view.dear[m.id], m.id, m) for m in able if m.id in view.dear and not m.quarantined]
        self._free, self._good_slots = free, view.good_slots
        self._good = _ByLoad(good, free)
        self.peers = good
        self._dear = sorted(dear, key=lambda one: one[:2])
        self.free = len(able)
        self.expected_ms = expected_ms

    def take(self, waiting: int, waited_ms: int) -> Member | None:
        member = self._good.take()
        if member is not None:
            self.rule = "speed" if self._dear else "load" if self.free > 1 else "only"
            return member
        for cost, name, dear in self._dear:
            if self._free[name] <= 0:
                continue
            few = waiting < PATIENCE * (cost - 1) * self._good_slots
            if few and waited_ms < (cost - 1) * self.expected_ms:
                return None  # the others cost as much or more
            self._free[name] -= 1
            self.rule = "load" if self.free > 1 else "only"
            return dear
        return None


class Adaptive(Pull):
    """Late binding that learns; where all members are alike it is plain late binding."""

    def __init__(self, state: SwarmState) -> None:
        super().__init__(state)
        self._views: dict[LaneKey, _View] = {}

    def _among(
        self, able: list[Member], lane: Lane, members: list[Member], free: dict[str, int], now_ms: int
    ) -> Choice:
        expected_ms = self._expected_ms(lane)
        learned = self._state.learned.get(lane.agent)
        view = self._view(lane, members, now_ms) if learned is not None and learned.runs >= RUNS_MIN else None
        if view is None or not view.dear:
            return _Pull(able, free, expected_ms)
        return _Adaptive(able, free, view, expected_ms)

    def _view(self, lane: Lane, members: list[Member], now_ms: int) -> _View:
        view = self._views.get(lane.key)
        if view is not None and view.members == len(members) and now_ms - view.made_ms < VIEW_MS:
            return view
        if len(self._views) > 10_000:
            self._views.clear()
        view = self._views[lane.key] = _seen(self._state.learned[lane.agent], lane, members, now_ms)
        return view


def _seen(learned: Learned, lane: Lane, members: list[Member], now_ms: int) -> _View:
    suited = [member for member in members if lane.suits(member)]
    paces = {member.id: member.paces[lane.agent] for member in suited if lane.agent in member.paces}
    costs = {name: pace.log_cost(learned, now_ms) for name, pace in paces.items()}
    good = sorted(costs.values())[int(GOOD_SHARE * len(costs))] if costs else 0.0
    alike = log(ALIKE)
    dear = {
        name: exp(cost - good)
        for name, cost in costs.items()
        if cost - good > max(alike, DOUBTS * learned.doubt(paces[name].runs))
    }
    slots = sum(member.capacity for member in suited if member.id not in dear)
    return _View(now_ms, len(members), dear, slots)


# --- what late binding is compared with ------------------------------------------------------------


class _Early(Choice):
    def __init__(self, policy: _EarlyPolicy, able: list[Member]) -> None:
        self._policy, self._able = policy, able
        self.free = len(able)

    def take(self, waiting: int, waited_ms: int) -> Member | None:
        member = self._policy.pick(self._able)
        self._policy.given[member.id] = self._policy.given.get(member.id, 0) + 1
        return member


class _EarlyPolicy(Policy):
    """Gives each task away at once. Lots are drawn by a linear congruential generator (Knuth's MMIX constants)."""

    late = False

    def __init__(self, state: SwarmState, seed: int = 0) -> None:
        super().__init__(state)
        self._drawn = seed * 2 + 1
        self.given: dict[str, int] = {}

    def choice(self, lane: Lane, members: list[Member], free: dict[str, int], now_ms: int) -> Choice | None:
        self.given = {}
        able = [member for member in members if lane.suits(member)]
        return _Early(self, able) if able else None

    def pick(self, able: list[Member]) -> Member:
        """Whoever gets the next task."""
        raise NotImplementedError

    def draw(self, bound: int) -> int:
        """A number from 0 to `bound` - 1."""
        self._drawn = (self._drawn * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        return (self._drawn >> 33) % bound

    def load(self, member: Member) -> float:
        """What a member has to do, by its slots."""
        return (len(member.running) + self.given.get(member.id, 0)) / member.capacity


class Random(_EarlyPolicy):
    def pick(self, able: list[Member]) -> Member:
        return able[self.draw(len(able))]


class RoundRobin(_EarlyPolicy):
    def __init__(self, state: SwarmState, seed: int = 0) -> None:
        super().__init__(state, seed)
        self._turn = seed

    def pick(self, able: list[Member]) -> Member:
        self._turn += 1
        return able[self._turn % len(able)]


class LeastLoaded(_EarlyPolicy):
    def pick(self, able: list[Member]) -> Member:
        return min(able, key=self.load)


class PowerOfTwo(_EarlyPolicy):
    """The less loaded of two drawn ones (Mitzenmacher 2001)."""

    def pick(self, able: list[Member]) -> Member:
        first, second = able[self.draw(len(able))], able[self.draw(len(able))]
        return min(first, second, key=self.load)


_EARLY: Final[dict[str, type[_EarlyPolicy]]] = {
    "random": Random,
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "power-of-two": PowerOfTwo,
}


def policy_of(settings: PlacementSettings, state: SwarmState) -> Policy:
    """The policy that the settings name."""
    if settings.policy == "adaptive":
        return Adaptive(state)
    if settings.policy == "pull":
        return Pull(state)
    return _EARLY[settings.policy](state, settings.seed)
