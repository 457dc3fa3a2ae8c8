"""Virtual time, one seeded source of chance, the faults of a seed, and processes that die and freeze.

Nothing here knows the core. One seed drives everything: the same seed is the same history.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random  # noqa: TID251 - seeded, the only source of chance in a simulation

from msgspec import Struct

Action = Callable[[], None]
#: Virtual time starts here, so that ids made from it look like real ones.
EPOCH_MS = 1_760_000_000_000


class Faults(Struct):
    """What may go wrong under one seed. Each seed disables some faults outright (swarm testing)."""

    lose_receipts: bool = False
    lose_appends: bool = False
    repeat_appends: bool = False
    slow_log: bool = False
    broker_outages: bool = False
    drop_messages: bool = False
    repeat_messages: bool = False
    slow_messages: bool = False
    cut_off: bool = False
    crash_workers: bool = False
    freeze_workers: bool = False
    drain_workers: bool = False
    crash_leaders: bool = False
    freeze_leaders: bool = False
    two_leaders: bool = False
    restart_delegate: bool = False
    garbage: bool = False
    short_horizon: bool = False
    short_memory: bool = False
    full_log: bool = False
    intake: bool = False
    busy_children: bool = False
    slow_workers: bool = False
    sick_workers: bool = False

    @staticmethod
    def of(chance: Random) -> Faults:
        """Each fault is on with a probability that is itself drawn per seed."""
        share = chance.choice((0.15, 0.4, 0.6, 0.85))
        return Faults(*(chance.random() < share for _ in Faults.__struct_fields__))

    def copy(self) -> Faults:
        return Faults(*(getattr(self, name) for name in self.__struct_fields__))

    def calm(self) -> None:
        """Phase two: nothing goes wrong any more."""
        for name in self.__struct_fields__:
            if name not in ("short_horizon", "short_memory"):
                setattr(self, name, False)


class World:
    """The clock, the chance and the agenda of one simulation."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = Random(seed)
        self.faults = Faults.of(self.chance)
        self.now_ms = EPOCH_MS
        self.cut: set[str] = set()
        self.trace: list[str] = []
        self._agenda: list[tuple[int, int, Action]] = []
        self._count = 0

    def at(self, delay_ms: int, action: Action) -> None:
        """Do `action` after `delay_ms` of virtual time."""
        self._count += 1
        heapq.heappush(self._agenda, (self.now_ms + max(0, delay_ms), self._count, action))

    def run(self, until_ms: int, done: Callable[[], bool] | None = None) -> bool:
        """Advance to `until_ms`, or until `done` holds (looked at every 50 ms); return whether it did."""
        look_ms = self.now_ms
        while self._agenda and self._agenda[0][0] <= until_ms:
            at_ms, _, action = heapq.heappop(self._agenda)
            self.now_ms = at_ms
            if done is not None and at_ms >= look_ms:
                look_ms = at_ms + 50
                if done():
                    return True
            action()
        self.now_ms = max(self.now_ms, until_ms)
        return done is not None and done()

    def maybe(self, fault: bool, probability: float) -> bool:
        """Whether a fault that is enabled strikes now."""
        return fault and self.chance.random() < probability

    def bits(self, count: int) -> int:
        return self.chance.getrandbits(count)

    def say(self, what: str) -> None:
        """Keep a line for the story told on failure."""
        self.trace.append(f"{self.now_ms - EPOCH_MS:>7} {what}")


class Process:
    """Something that runs until it crashes. What it schedules dies with it, and waits while it is frozen."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.alive = False
        self.frozen = False
        self._life = 0
        self._held: list[tuple[int, Action]] = []

    def later(self, delay_ms: int, action: Action) -> None:
        life = self._life
        self.world.at(delay_ms, lambda: self._run(life, action))

    def guard(self, action: Action) -> Action:
        """`action` bound to the present life of this process."""
        life = self._life
        return lambda: self._run(life, action)

    def _run(self, life: int, action: Action) -> None:
        if life != self._life or not self.alive:
            return
        if self.frozen:
            self._held.append((life, action))
        else:
            action()

    def start(self) -> None:
        if self.alive:
            return
        self.alive, self.frozen = True, False
        self._life += 1
        self._held = []
        self.world.say(f"{self.name} starts")
        self.boot()

    def crash(self) -> None:
        if self.alive:
            self.world.say(f"{self.name} crashes")
        self.alive = False
        self._life += 1
        self._held = []

    def freeze(self, duration_ms: int) -> None:
        if not self.alive or self.frozen:
            return
        self.world.say(f"{self.name} freezes for {duration_ms} ms")
        self.frozen = True
        life = self._life
        self.world.at(duration_ms, lambda: self.thaw(life))

    def thaw(self, life: int | None = None) -> None:
        if not self.alive or (life is not None and life != self._life):
            return
        self.frozen = False
        held, self._held = self._held, []
        for which, action in held:
            self._run(which, action)

    def boot(self) -> None:
        """Begin a new life with an empty memory."""
        raise NotImplementedError
