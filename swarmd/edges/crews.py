"""The worker processes of one swarm under `up`, as many as its leader desires within bounds.

Job: hear the leader's beacon, start workers beyond the fewest, drain the last ones. Invariants: the fewest are not
touched; a worker is ended by draining it, so its attempts are finished or handed back; while nobody leads, nothing
changes. Must not know how the leader makes up its mind.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from swarmd.core import subjects
from swarmd.core.errors import UNREADABLE, Fault, SwarmdError
from swarmd.core.wire import Beat
from swarmd.edges.wiring import connected

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.adapters.nats_connect import NatsSettings
    from swarmd.edges.child import Child
    from swarmd.edges.plan import Part
    from swarmd.ports import Received

log = logging.getLogger(__name__)

#: After so long without a beacon the connection is made anew, and an older term may speak again: its log was restored.
SILENCE_S: Final = 15.0
#: A worker that cannot even start is tried again after so long.
SETBACK_S: Final = 10.0


class Crew:
    """Workers beyond the fewest, the youngest last. `run` until cancelled; whoever owns the processes ends them."""

    def __init__(
        self,
        swarm: str,
        bounds: tuple[int, int],
        plan: Callable[[int], Part],
        hire: Callable[[Part], Child],
        changed: Callable[[], None],
        grace_s: float,
    ) -> None:
        self.swarm, self._bounds = swarm, bounds
        self._plan, self._hire, self._changed, self._grace_s = plan, hire, changed, grace_s
        self._extras: dict[Part, Child] = {}
        self._leaving: dict[Part, Child] = {}
        self._desired, self._term = bounds[0], 0
        self._heard = asyncio.Event()

    async def run(self, nats: NatsSettings, lives: asyncio.TaskGroup) -> None:
        """Follow the leader; the processes live in `lives`, since they must outlast this task to be drained."""
        while True:
            try:
                async with connected(nats, f"swarmd-crew-{self.swarm}") as wire:
                    await wire.bus.subscribe(subjects.beat(self.swarm), self._on_beat)
                    await self._follow(lives)
            except Fault as error:
                log.warning("crew of %s: %s", self.swarm, error.message)
                await asyncio.sleep(SETBACK_S)

    async def _follow(self, lives: asyncio.TaskGroup) -> None:
        """Adjust at each beacon, until they fail to come."""
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    await self._heard.wait()
            except TimeoutError:
                self._term = 0
                return
            self._heard.clear()
            await self._adjust(lives)

    def _on_beat(self, message: Received) -> None:
        try:
            beat = msgspec.json.decode(message.payload, type=Beat)
        except UNREADABLE:
            return  # whoever may write there; the next one is the leader's again
        if beat.leader and beat.workers >= 0 and beat.term >= self._term:  # not of a leader that was deposed
            self._term = beat.term
            self._desired = beat.workers
            self._heard.set()

    @property
    def everyone(self) -> dict[Part, Child]:
        """The workers beyond the fewest, and those that drain."""
        return self._extras | self._leaving

    @property
    def target(self) -> int:
        """How many workers there shall be: what the leader desires, within the bounds."""
        fewest, most = self._bounds
        return min(most, max(fewest, self._desired))

    async def _adjust(self, lives: asyncio.TaskGroup) -> None:
        """Start what is missing, all at once; drain what is too many, the youngest first, without waiting for it."""
        while self._extras and self._surplus() > 0:
            part, child = self._extras.popitem()
            log.info("swarm %s: %d workers are enough, draining %s", self.swarm, self.target, part.name)
            self._leaving[part] = child
            lives.create_task(self._leave(part, child))
        started = {part: self._hire(part) for part in self._next(-self._surplus())}
        if not started:
            return
        log.info("swarm %s: %d workers are wanted, starting %d", self.swarm, self.target, len(started))
        self._extras |= started
        for child in started.values():
            lives.create_task(child.run())
        for part, child in started.items():
            await self._wait_ready(part, child)

    def _surplus(self) -> int:
        return self._bounds[0] + len(self._extras) - self.target

    def _next(self, count: int) -> list[Part]:
        """So many more workers; a name belongs to one process, even while that drains."""
        parts = map(self._plan, itertools.count(self._bounds[0] + 1))
        free = (part for part in parts if part not in self.everyone)
        return list(itertools.islice(free, max(0, count)))

    async def _wait_ready(self, part: Part, child: Child) -> None:
        try:
            await child.wait_ready()
        except SwarmdError as error:
            log.warning("%s could not be started: %s; next try in %.0f s", part.name, error.message, SETBACK_S)
            del self._extras[part]
            await child.stop(self._grace_s)
            await asyncio.sleep(SETBACK_S)

    async def _leave(self, part: Part, child: Child) -> None:
        await child.stop(part.drain_s + self._grace_s)
        del self._leaving[part]
        self._changed()
