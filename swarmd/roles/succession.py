"""Whether the leader is gone, as its standbys see it: they need not wait for its lease to run out.

A leader that resigns says so in its last beacon. One that was killed says nothing: then its beacons stop, and the
broker says that nobody listens where the holder of the lease does. Twice in a row, with the same lease between, is
certain enough to take that lease over by compare-and-set, in which one standby at most succeeds. A leader that stands
still listens, so its lease has to run out. Whatever is decided here, the term in the log is the fence.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from swarmd.core import subjects
from swarmd.core.errors import UNREADABLE, Fault
from swarmd.core.wire import Beat

if TYPE_CHECKING:
    from swarmd.ports import Bus, Clock, Lease, Probe, Received

#: A leader sends a beacon each 250 ms.
BEATLESS_MS: Final = 800
#: After the broker came back nobody is connected for a moment, the leader included.
TRUST_AFTER_MS: Final = 2_000
PROBE_MS: Final = 150
LOOK_MS: Final = 300
LOOK_AGAIN_MS: Final = 150

_beats: Final = msgspec.json.Decoder(Beat)


class Succession:
    """What one standby knows of the leader. Without I/O until it is asked."""

    def __init__(self, swarm: str, bus: Bus, lease: Lease, clock: Clock, probe: Probe) -> None:
        self._subject = subjects.incumbent(swarm)
        self._bus, self._lease, self._clock, self._probe = bus, lease, clock, probe
        self._heard_at_ms = clock.now_ms()
        self._trusted_from_ms = self._mark = 0
        self._vacated = asyncio.Event()

    def on_beat(self, message: Received) -> None:
        """A beacon; one without a name is the last of a leader that resigns."""
        try:
            beat = _beats.decode(message.payload)
        except UNREADABLE as error:
            self._probe.trouble("beacon", error)
            return
        self._heard_at_ms = self._clock.now_ms()
        if not beat.leader:
            self._vacated.set()

    def reconnected(self) -> None:
        """The broker came back."""
        self._trusted_from_ms = self._clock.now_ms() + TRUST_AFTER_MS
        self._mark = 0

    async def orphaned(self) -> int:
        """The mark of a lease whose holder is gone, or 0; certain at the second time of asking. Raises `Fault`."""
        now, mark = self._clock.now_ms(), self._mark
        self._mark = 0
        if now - self._heard_at_ms < BEATLESS_MS or now < self._trusted_from_ms or await self._somebody_listens():
            return 0
        if not mark:
            self._mark = await self._lease.look()
        return mark

    async def _somebody_listens(self) -> bool:
        try:
            await self._bus.request(self._subject, b"", PROBE_MS)
        except Fault as error:  # silence is what a holder of the lease answers with
            return error.code != "no_responders"
        return True

    async def wait(self) -> None:
        """Until it is time to look again, or the leader has resigned."""
        try:
            async with asyncio.timeout((LOOK_AGAIN_MS if self._mark else LOOK_MS) / 1000):
                await self._vacated.wait()
        except TimeoutError:
            return
        self._vacated.clear()
