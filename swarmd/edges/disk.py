"""The disk under `up`: leaders refuse work while there is room to finish what runs; a broker that ran dry is renewed.

A broker whose write failed keeps a broken stream even when there is space again; only a restart mends that.
Must not know what is stored.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from typing import TYPE_CHECKING, Final

import msgspec

from swarmd.core import subjects
from swarmd.core.errors import Fault
from swarmd.core.wire import StoreHealth
from swarmd.edges.wiring import connected

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from swarmd.adapters.nats_connect import NatsSettings

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
#: The last so many bytes of the disk are watched: with 20 % of them left a leader warns, with 10 % it refuses work.
HEADROOM: Final = 1024**3
#: Below the first the broker may have failed to write; above the second it can write again.
DRY, WET = 16 * 1024**2, 64 * 1024**2


async def watch_disk(folder: Path, swarms: Sequence[str], nats: NatsSettings, renew_broker: Callable[[], None]) -> None:
    """Tell each swarm's leader how much of the headroom is used; runs until cancelled."""
    ran_dry = False
    async with connected(nats, "swarmd-up-disk") as wire:
        while True:
            free = shutil.disk_usage(folder).free
            used = max(0, HEADROOM - free)
            store = StoreHealth("the disk's last GiB", used, HEADROOM, "free some space on it")
            for swarm in swarms:
                try:
                    await wire.bus.publish(subjects.health(swarm, "up", "store"), msgspec.json.encode(store))
                except Fault as error:
                    log.debug("nobody was told of the disk: %s", error.message)
            if free < DRY and not ran_dry:
                ran_dry = True
                log.error("the disk of %s is full: %d bytes are left", folder, free)
            elif free > WET and ran_dry:
                ran_dry = False
                log.warning("the disk has room again: restarting the broker, whose streams may have stopped writing")
                renew_broker()
            await asyncio.sleep(LOOK_S)
