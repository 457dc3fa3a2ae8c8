"""What a delegate asks of the leader of its child: what the child could run, and to give back what nobody has begun.

Must not know the parent swarm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.core import commands
from swarmd.core.errors import Rejected
from swarmd.core.sharing import ASKED_MAX, swarm_load
from swarmd.core.wire import LoadQuery

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.core.leader import Leader
    from swarmd.ports import Received


class HiveRequests:
    """The verbs of one leader. `reply` answers a request, `ask` makes the receipt of what becomes of an event."""

    def __init__(self, leader: Leader, reply: Callable[[str, object], None], ask: Callable[[str], object]) -> None:
        self._leader, self._reply, self._ask = leader, reply, ask

    def verbs(self) -> dict[str, Callable[[Received], None]]:
        """What `ctl` has for delegates."""
        return {"load": self._on_load, "recall": self._on_recall}

    def _on_load(self, message: Received) -> None:
        query = commands.parse_as(LoadQuery, message.payload) if message.payload.strip() else LoadQuery()
        if len(query.tasks) > ASKED_MAX:
            raise Rejected("bad_field", f"tasks: at most {ASKED_MAX} can be asked about, not {len(query.tasks)}")
        self._leader.require_office()
        self._reply(message.reply, swarm_load(self._leader, query.tasks))

    def _on_recall(self, message: Received) -> None:
        query = commands.parse_query(message.payload)
        self._leader.recall(query.task, query.reason, self._ask(message.reply))
