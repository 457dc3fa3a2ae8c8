"""A swarm and all swarms below it, as the broker shows them: to say the same to each.

Must not know what is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from swarmd.core import subjects
from swarmd.core.errors import UNREADABLE, SwarmdError
from swarmd.core.wire import SwarmStatus
from swarmd.edges.people import People

if TYPE_CHECKING:
    from typing import Any

    from swarmd.ports import Bus

ASK_MS: Final = 5_000


async def signal_below(bus: Bus, swarm: str, name: str, value: Any = None, *, by: str = "") -> dict[str, str]:
    """Signal `name` in `swarm` and in each swarm below it, at any depth; by swarm "" or why it could not be told.

    In each it is an event of that swarm's log. Of a swarm that cannot be told, those below it are not known.
    """
    told: dict[str, str] = {}
    waiting = [swarm]
    for one in waiting:  # grows while it is walked
        if one in told:
            continue
        try:
            await People(bus, one).signal(name, value, by=by)
            answer = await bus.request(subjects.ctl(one, "status"), b"", ASK_MS)
            status = msgspec.json.decode(answer, type=SwarmStatus)
        except SwarmdError as error:
            told[one] = error.message
            continue
        except UNREADABLE as error:
            told[one] = f"its status cannot be read: {error}"
            continue
        told[one] = ""
        waiting += [member.member.partition("/")[2] for member in status.members if member.kind == "swarm"]
    return told
