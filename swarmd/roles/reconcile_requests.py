"""What is asked of a leader when logs and members are compared: what a process runs, and to take an attempt back.

Must not know what is compared with what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.core import commands
from swarmd.core.errors import Rejected
from swarmd.core.events import Event, Requeued
from swarmd.core.wire import AttemptQuery, Roll, RollQuery

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.core.leader import Leader
    from swarmd.ports import Clock, Received


class ReconcileRequests:
    """The verbs of one leader. `reply` answers a request, `ask` makes the receipt of what becomes of an event."""

    def __init__(
        self, leader: Leader, clock: Clock, reply: Callable[[str, object], None], ask: Callable[[str], object]
    ) -> None:
        self._leader, self._clock, self._reply, self._ask = leader, clock, reply, ask

    def verbs(self) -> dict[str, Callable[[Received], None]]:
        """What `ctl` has about attempts and members."""
        return {"requeue": self._on_requeue, "roll": self._on_roll}

    def _on_requeue(self, message: Received) -> None:
        wanted = commands.parse_as(AttemptQuery, message.payload)
        self._leader.require_live(wanted.task)
        state = self._leader.state
        task = state.tasks.get(wanted.task)
        if task is None or wanted.epoch not in task.attempts:
            raise Rejected("not_running", f"task {wanted.task} has no live attempt {wanted.epoch}: ask for its state")
        fact = Requeued(term=state.term, epoch=wanted.epoch, reason="undelivered")
        self._leader.propose(Event(wanted.task, fact), self._ask(message.reply))

    def _on_roll(self, message: Received) -> None:
        """The last list that the member's process gave, while it is asked for a new one: ask again until it is new."""
        wanted = commands.parse_as(RollQuery, message.payload).member
        self._leader.require_office()
        member, now = self._leader.state.members.get(wanted), self._clock.now_ms()
        if member is None:
            raise Rejected("unknown_member", f"swarm {self._leader.state.swarm} has no member {wanted[:200]!r}")
        link, heard = self._leader.links.call_roll(member), self._leader.links.heard_at_ms(member)
        roll = Roll([wanted], [], -1, max(0, now - heard) if heard else -1, self._leader.links.reachable(member), 0)
        if link is not None:
            roll.members = list(link.members)
            if link.roll is not None:
                roll.running, roll.age_ms = link.roll, max(0, now - link.rolled_at_ms)
        roll.seq = self._leader.state.seq
        self._reply(message.reply, roll)
