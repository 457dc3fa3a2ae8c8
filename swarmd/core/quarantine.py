"""Members that fail are set apart, tried with single tasks now and then, and taken back when they do well.

A failure counts against a member only as far as others do better at the same agent: an agent that always fails is no
member's fault. At most half of those that offer an agent are set apart. Pure: time is handed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from swarmd.core.events import Event, Quarantined, Readmitted

if TYPE_CHECKING:
    from swarmd.core.state import Member, SwarmState

#: So many ended attempts, and so large a share of failures, set a member apart if others have half of that at most.
ENDED_MIN: Final = 6
FAILING_MIN: Final = 0.5
#: Probes that must have ended, and the share of them that may have failed, for a member to be taken back.
PROBES_MIN: Final = 3
PROBES_FAILING_MAX: Final = 0.34
PROBE_MS, PROBE_MS_MAX = 2_000, 120_000
LOOK_MS: Final = 500


class _Ward(Struct):
    """A quarantined member: when it is tried again, at which interval, and how its probes went when last looked at."""

    next_ms: int
    interval_ms: int = PROBE_MS
    failing: float = 0.0


class Wards:
    """The quarantine of one leader in one office."""

    def __init__(self, state: SwarmState) -> None:
        self._state = state
        self._wards: dict[str, _Ward] = {}
        self._proposed: set[str] = set()
        self._looked_ms = self._now_ms = 0

    def slots(self, member: Member, taken: int) -> int:
        """How many slots a quarantined member has to give: one for a probe, when one is due."""
        ward = self._wards.get(member.id)
        due = ward is not None and ward.next_ms <= self._now_ms
        return 1 if due and not member.running and not taken else 0

    def probed(self, member: Member) -> None:
        """A probe was decided: the next one comes an interval later."""
        ward = self._wards[member.id]
        ward.next_ms = self._now_ms + ward.interval_ms

    def judged(self, member: Member) -> None:
        """The fold has set a member apart, or taken it back."""
        self._proposed.discard(member.id)
        if member.quarantined:
            self._wards[member.id] = _Ward(self._now_ms + PROBE_MS)
        else:
            self._wards.pop(member.id, None)

    def not_stored(self, member_id: str) -> None:
        """What was decided about a member came to nothing: look at it again."""
        self._proposed.discard(member_id)

    def gone(self, member: Member) -> None:
        """A member is no more."""
        self._wards.pop(member.id, None)
        self._proposed.discard(member.id)

    def due(self, now_ms: int) -> list[Event]:
        """Who is to be set apart or taken back, looked at twice a second."""
        self._now_ms = now_ms
        if now_ms - self._looked_ms < LOOK_MS:
            return []
        self._looked_ms = now_ms
        events: list[Event] = []
        for member in self._state.members.values():
            if member.id in self._proposed:
                continue
            fact = self._about_ward(member) if member.quarantined else self._about(member)
            if fact is not None:
                self._proposed.add(member.id)
                events.append(Event(member.id.replace("/", ":"), fact))
        return events

    def _about(self, member: Member) -> Quarantined | None:
        for agent, pace in member.paces.items():
            if pace.ended < ENDED_MIN or pace.failing < FAILING_MIN:
                continue
            others = [
                other
                for other in self._state.members.values()
                if other.id != member.id and other.capacity and agent in other.agents and not self._is_apart(other)
            ]
            paces = [one.paces[agent] for one in others if agent in one.paces and one.paces[agent].ended]
            if not paces:
                continue
            usual = sum(one.failing for one in paces) / len(paces)
            if usual * 2 <= pace.failing and self._can_be_spared(member):
                reason = f"{pace.failing:.0%} of its attempts of {agent} failed, of others' {usual:.0%}"
                return Quarantined(term=self._state.term, member=member.id, reason=reason)
        return None

    def _can_be_spared(self, member: Member) -> bool:
        """Whether of all that it offers at least half of those that do would be left."""
        for agent in member.agents:
            offering = [one for one in self._state.members.values() if one.capacity and agent in one.agents]
            well = sum(one.id != member.id and not self._is_apart(one) for one in offering)
            if 2 * well < len(offering):
                return False
        return True

    def _is_apart(self, member: Member) -> bool:
        return bool(member.quarantined) or member.id in self._proposed

    def _about_ward(self, member: Member) -> Readmitted | None:
        ward = self._wards.get(member.id)
        if ward is None:  # set apart under an earlier leader
            ward = self._wards[member.id] = _Ward(self._now_ms + PROBE_MS)
        ended = sum(pace.ended for pace in member.paces.values())
        failing = sum(pace.failing * pace.ended for pace in member.paces.values()) / ended if ended else 0.0
        if failing > ward.failing:  # the last probe failed
            ward.interval_ms = min(2 * ward.interval_ms, PROBE_MS_MAX)
            ward.next_ms = max(ward.next_ms, self._now_ms + ward.interval_ms)
        elif failing < ward.failing:  # it did well: the next ones come soon
            ward.interval_ms = PROBE_MS
            ward.next_ms = min(ward.next_ms, self._now_ms + PROBE_MS)
        ward.failing = failing
        if ended >= PROBES_MIN and failing <= PROBES_FAILING_MAX:
            return Readmitted(term=self._state.term, member=member.id)
        return None
