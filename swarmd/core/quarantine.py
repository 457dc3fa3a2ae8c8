"""Members that fail are set apart, tried with single tasks now and then, and taken back when they do well.

A failure counts against a member only as far as others do better at the same agent: an agent that always fails is no
member's fault. At most half of those that offer an agent are set apart. Pure: time is handed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from swarmd.core.events import Event, Quarantined, Readmitted
from swarmd.core.ids import member_subject

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
#: What sums of shares may be off by.
ROUNDING: Final = 1e-9


class _Ward(Struct):
    """A quarantined member: when it is tried again, at which interval, and how its probes went when last looked at."""

    next_ms: int
    interval_ms: int = PROBE_MS
    ended: int = 0
    failing: float = 0.0


class _Peers(Struct):
    """Who offers an agent: all, those that are well, and of these how many have ended attempts and how they failed."""

    offering: int = 0
    well: int = 0
    paced: int = 0
    failing: float = 0.0


class Wards:
    """The quarantine of one leader in one office."""

    def __init__(self, state: SwarmState) -> None:
        self._state = state
        self._wards: dict[str, _Ward] = {}
        self._proposed: set[str] = set()
        self._peers_of: dict[str, _Peers] = {}
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
        self._peers_of = {}
        events: list[Event] = []
        for member in self._state.members.values():
            if member.id in self._proposed:
                continue
            fact = self._about_ward(member) if member.quarantined else self._about(member)
            if fact is not None:
                self._turns(member, 1 if member.quarantined else -1)
                self._proposed.add(member.id)
                events.append(Event(member_subject(member.id), fact))
        return events

    def _about(self, member: Member) -> Quarantined | None:
        for agent, pace in member.paces.items():
            if pace.ended < ENDED_MIN or pace.failing < FAILING_MIN:
                continue
            peers = self._peers(agent)
            own = bool(member.capacity) and agent in member.agents
            paced = peers.paced - own
            if not paced:
                continue
            usual = max(0.0, peers.failing - pace.failing * own) / paced
            if usual * 2 <= pace.failing + ROUNDING and self._can_be_spared(member):
                reason = f"{pace.failing:.0%} of its attempts of {agent} failed, of others' {usual:.0%}"
                return Quarantined(term=self._state.term, member=member.id, reason=reason)
        return None

    def _can_be_spared(self, member: Member) -> bool:
        """Whether of all that it offers at least half of those that do would be left."""
        own = bool(member.capacity)
        all_peers = (self._peers(agent) for agent in member.agents)
        return all(2 * (peers.well - own) >= peers.offering for peers in all_peers)

    def _peers(self, agent: str) -> _Peers:
        """All that offer the agent, counted once a look: when an agent fails everywhere, all of them are looked at."""
        peers = self._peers_of.get(agent)
        if peers is not None:
            return peers
        peers = self._peers_of[agent] = _Peers()
        for member in self._state.members.values():
            if member.capacity and agent in member.agents:
                peers.offering += 1
                if not self._is_apart(member):
                    _count(peers, member, agent, 1)
        return peers

    def _is_needed(self, member: Member) -> bool:
        """Whether too few are left of those that do what it offers: others have gone since it was set apart."""
        return bool(member.capacity) and any(
            2 * peers.well < peers.offering for peers in map(self._peers, member.agents)
        )

    def _is_apart(self, member: Member) -> bool:
        """Also when that is only decided; not when it is to be taken back."""
        return bool(member.quarantined) != (member.id in self._proposed)

    def _turns(self, member: Member, by: int) -> None:
        """A member is one more, or one less, of those that are well."""
        for agent, peers in self._peers_of.items():
            if member.capacity and agent in member.agents:
                _count(peers, member, agent, by)

    def _about_ward(self, member: Member) -> Readmitted | None:
        ended = sum(pace.ended for pace in member.paces.values())
        failing = sum(pace.failing * pace.ended for pace in member.paces.values()) / ended if ended else 0.0
        ward = self._wards.get(member.id)
        if ward is None:  # set apart under an earlier leader
            ward = self._wards[member.id] = _Ward(self._now_ms + PROBE_MS, PROBE_MS, ended, failing)
        if ended > ward.ended and failing and failing >= ward.failing:  # the last probe failed
            ward.interval_ms = min(2 * ward.interval_ms, PROBE_MS_MAX)
            ward.next_ms = max(ward.next_ms, self._now_ms + ward.interval_ms)
        elif failing < ward.failing:  # it did well: the next ones come soon
            ward.interval_ms = PROBE_MS
            ward.next_ms = min(ward.next_ms, self._now_ms + PROBE_MS)
        ward.ended, ward.failing = ended, failing
        if (ended >= PROBES_MIN and failing <= PROBES_FAILING_MAX) or self._is_needed(member):
            return Readmitted(term=self._state.term, member=member.id)
        return None


def _count(peers: _Peers, member: Member, agent: str, by: int) -> None:
    pace = member.paces.get(agent)
    peers.well += by
    if pace is not None and pace.ended:
        peers.paced += by
        peers.failing += by * pace.failing
