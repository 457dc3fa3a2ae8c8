"""The simulated bus: subjects that may delay, drop, repeat and reorder, and that forget the unreachable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.world import Process, World

Receive = Callable[[bytes, str], None]


class Bus:
    """Messages are bytes; a subscriber gets the payload and the reply subject."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._subscribers: dict[str, list[tuple[Process, int, Receive]]] = {}

    def subscribe(self, process: Process, subject: str, receive: Receive) -> None:
        """In force until the process's present life ends."""
        entries = [e for e in self._subscribers.get(subject, ()) if e[0] is not process or e[1] == process._life]
        self._subscribers[subject] = [*entries, (process, process._life, receive)]

    def publish(self, sender: Process, subject: str, payload: bytes, reply: str = "") -> None:
        world = self._world
        if sender.name in world.cut:
            return
        for process, life, receive in self._subscribers.get(subject, ()):
            if not process.alive or process._life != life or world.maybe(world.faults.drop_messages, 0.1):
                continue
            copies = 2 if world.maybe(world.faults.repeat_messages, 0.1) else 1
            for _ in range(copies):
                self._deliver(process, receive, payload, reply)

    def listens(self, sender: Process, subject: str) -> bool:
        """Whether anybody who is connected has subscribed, as the broker knows it; who is cut off is not told."""
        if sender.name in self._world.cut:
            return True
        entries = self._subscribers.get(subject, ())
        return any(p.alive and p._life == life and p.name not in self._world.cut for p, life, _ in entries)

    def _deliver(self, process: Process, receive: Receive, payload: bytes, reply: str) -> None:
        world = self._world
        delay_ms = world.chance.randint(1, 4)
        if world.maybe(world.faults.slow_messages, 0.1):
            delay_ms += world.chance.randint(20, 900)
        arrive = process.guard(lambda: receive(payload, reply))
        world.at(delay_ms, lambda: None if process.name in world.cut else arrive())
