"""What is told and asked of a leader about placement: judgements of finished tasks, and how long agents take.

Must not know how members are chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.core import commands
from swarmd.core.wire import Durations, DurationsQuery

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.core.leader import Leader
    from swarmd.ports import Received


class PlacementRequests:
    """The verbs of one leader. `reply` answers a request, `ask` makes the receipt of what becomes of an event."""

    def __init__(self, leader: Leader, reply: Callable[[str, object], None], ask: Callable[[str], object]) -> None:
        self._leader, self._reply, self._ask = leader, reply, ask

    def verbs(self) -> dict[str, Callable[[Received], None]]:
        """What `ctl` has about placement."""
        return {"feedback": self._on_feedback, "durations": self._on_durations}

    def _on_feedback(self, message: Received) -> None:
        self._leader.rate(commands.parse_feedback(message.payload), self._ask(message.reply))

    def _on_durations(self, message: Received) -> None:
        agents = commands.parse_as(DurationsQuery, message.payload).agents
        self._leader.require_office()
        learned = self._leader.state.learned
        known = {agent: round(learned[agent].mean_ms) for agent in agents if agent in learned}
        self._reply(message.reply, Durations(known, self._leader.state.seq))
