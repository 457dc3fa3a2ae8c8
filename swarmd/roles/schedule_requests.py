"""What is asked of a leader about schedules: one brought in force, one removed, all of them. Checked before decided.

Must not know how slots are computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from swarmd.core import commands
from swarmd.core.errors import Rejected
from swarmd.core.events import Event, Schedule, Unscheduled
from swarmd.core.wire import Receipt, ScheduleQuery, Schedules

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.core.leader import Leader
    from swarmd.ports import Clock, Received


class ScheduleRequests:
    """The verbs of one leader. `reply` answers a request, `ask` makes the receipt of what becomes of an event."""

    def __init__(
        self, leader: Leader, clock: Clock, reply: Callable[[str, object], None], ask: Callable[[str], object]
    ) -> None:
        self._leader, self._clock, self._reply, self._ask = leader, clock, reply, ask

    def verbs(self) -> dict[str, Callable[[Received], None]]:
        """What `ctl` has about schedules."""
        return {"schedule": self._on_schedule, "unschedule": self._on_unschedule, "schedules": self._on_schedules}

    def _on_schedule(self, message: Received) -> None:
        wanted = structs.replace(commands.parse_as(Schedule, message.payload), declared=False)
        self._leader.require_office()
        if self._leader.refusing:
            raise Rejected("store_full", self._leader.refusing)
        now, planner = self._clock.now_ms(), self._leader.planner
        if planner.check(wanted, now):
            self._leader.propose(planner.scheduled(wanted, now), self._ask(message.reply))
        else:
            self._reply(message.reply, Receipt(wanted.id, known=True))

    def _on_unschedule(self, message: Received) -> None:
        name = commands.parse_as(ScheduleQuery, message.payload).schedule
        self._leader.require_office()
        self._leader.planner.require(name)
        self._leader.propose(Event(name, Unscheduled(term=self._leader.state.term)), self._ask(message.reply))

    def _on_schedules(self, message: Received) -> None:
        self._leader.require_office()
        self._reply(message.reply, Schedules(self._leader.planner.status(), self._leader.state.seq))
