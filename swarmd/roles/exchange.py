"""Artefacts between swarms: by reference, copied once, checked by their hash on both sides.

A broker that cannot be reached is waited for. What is missing, or is not what its hash says, will not get better: it is
refused, and whoever wanted it is told which swarm's copy is bad. Must not know what an artefact holds.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from swarmd.core.errors import Fault, Rejected

if TYPE_CHECKING:
    from swarmd.ports import Blobs, Clock

log = logging.getLogger(__name__)

PAUSE_MS: Final = 500
#: What a broker answers that is there and cannot serve, so often in a row, is its last word.
REFUSALS_MAX: Final = 20
_AWAY: Final = ("disconnected", "timeout", "no_responders")
Store = tuple[str, "Blobs"]  #: (its swarm's name, the blobs)


async def carry(digest: str, source: Store, target: Store, clock: Clock) -> None:
    """Bring the blob `digest` from one swarm to another; waits while a broker is away.

    Raises `Rejected`: `blob_missing`, `blob_corrupt`, `blobs_full`, `exchange_failed`.
    """
    refusals = 0
    while True:
        place = source[0]
        try:
            payload = await source[1].get(digest)
            place = target[0]
            if await target[1].put(payload) != digest:
                raise Rejected("blob_corrupt", f"blob {digest} arrived with another content than its hash says")
            return
        except Rejected as error:
            raise Rejected(error.code, _said(place, source[0], target[0], error.message)) from None
        except Fault as error:
            refusals = 0 if error.code in _AWAY else refusals + 1
            if refusals == REFUSALS_MAX:
                raise Rejected("exchange_failed", _said(place, source[0], target[0], error.message)) from None
            log.info("blob %s is not copied from %s to %s yet: %s", digest, source[0], target[0], error.message)
            await clock.sleep(PAUSE_MS)


def _said(place: str, source: str, target: str, why: str) -> str:
    return f"an artefact did not get from swarm {source} to {target}; in swarm {place}: {why}"
