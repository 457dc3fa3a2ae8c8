"""Links to the processes that host members: who is alive, what was dispatched, what they list.

A link is one process (role, writer, boot). Heartbeats renew it, never log events. It is given up in two ways: when
the broker says that nobody listens where its work is sent and it is silent as well, or when its silence is longer than
the lease and too odd for a process with its history (`core/detector`). Worker nodes are then declared lost; a child
swarm is only unreachable, since its work goes on in its own log.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from swarmd.core.detector import Detector, DetectorSettings
from swarmd.core.ids import swarm_member
from swarmd.core.link import Sender
from swarmd.core.offers import nonsense_in
from swarmd.core.wire import Dispatch, Heartbeat, Item, Load, Rejoin, Replaced, Report, Start, Stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmd.core.state import Member, Pair, SwarmState

LinkKey = tuple[str, str, str]
#: So many heartbeats in a row that count other attempts than the fold make the leader ask for a list.
MISCOUNTS_MAX: Final = 16
#: A process without members is forgotten after so many leases of silence.
FORGET_AFTER_LEASES: Final = 30
#: However unsteady its heartbeats were, no process is waited for longer than so many leases.
LEASES_MAX: Final = 3
#: The broker must say so often in a row that nobody listens: a process that connects anew is gone for a moment.
REFUSALS: Final = 2
PROBES_MAX: Final = 16


class HealthSettings(Struct, frozen=True):
    """When a process is given up: after `lease_ms` of silence with a phi of `phi_lost`, or after `gone_ms` if the
    broker says that nobody listens to it. Batches that nobody has acknowledged are repeated after `resend_ms`.
    """

    lease_ms: int = 2_000
    resend_ms: int = 600
    gone_ms: int = 700
    phi_lost: float = 8.0

    def detector(self) -> DetectorSettings:
        """Eight heartbeats fit into a lease; half of it is forgiven as a pause."""
        lease = self.lease_ms
        return DetectorSettings(lease // 8, lease // 2, max(1, lease // 20), lease * LEASES_MAX)


class Link:
    """One process of members, as the leader of a term sees it. `roll` is its last list, of `rolled_at_ms`."""

    roll: list[Pair] | None = None
    rolled_at_ms = 0

    def __init__(self, key: LinkKey, sender: Sender, detector: Detector) -> None:
        self.key = key
        self.sender, self.detector = sender, detector
        self.members: dict[str, Member] = {}
        self.refusals = self.probed_at_ms = 0
        self.listed: Heartbeat | None = None
        self.list_owed = False
        self.miscounts = 0
        self.lost = False

    def running(self) -> dict[Pair, Member]:
        """Every live attempt of this process's members."""
        return {(task, epoch): m for m in self.members.values() for task, epoch in m.running.items()}

    def under_way(self) -> set[Pair]:
        """Attempts that were dispatched and not acknowledged."""
        return {(item.task, item.epoch) for item in self.sender.in_flight() if isinstance(item, Start)}

    def asked(self, kind: type[Item]) -> bool:
        """Whether such an item is on its way."""
        return any(isinstance(item, kind) for item in self.sender.in_flight())


class Links:
    """All links of a leader, the one longest unheard first. Time is handed in; nothing is sent from here.

    `recallable` are the attempts that nobody has begun in a child swarm, by member, as far as there are any; `refused`
    says of members that advertise nonsense what is wrong.
    """

    def __init__(self, settings: HealthSettings) -> None:
        self._settings, self._detector = settings, settings.detector()
        self._term = 0
        self._trusted_from_ms = 0
        self._links: OrderedDict[LinkKey, Link] = OrderedDict()
        self._of_member: dict[str, Link] = {}
        self._dirty: dict[LinkKey, Link] = {}
        self._loads: dict[str, Load] = {}
        self.recallable: dict[str, list[Pair]] = {}
        self.refused: dict[str, str] = {}

    def take_office(self, state: SwarmState, now_ms: int) -> None:
        """A new term: forget the old numbering, ask every process what it runs, and give it a full lease."""
        self._term = state.term
        self._links, self._of_member, self._dirty = OrderedDict(), {}, {}
        self._loads, self.recallable, self.refused = {}, {}, {}
        self._distrust(now_ms)
        for member in state.members.values():
            self.offered(member, now_ms)

    def _open(self, key: LinkKey, taken: int, now_ms: int, item: Item) -> Link:
        link = self._links[key] = Link(key, Sender(self._term, taken), Detector(self._detector, now_ms))
        self._queue(link, item)
        return link

    def _queue(self, link: Link, item: Item) -> None:
        link.list_owed = link.list_owed or isinstance(item, Report)
        link.sender.items.append(item)
        self._dirty[link.key] = link

    def offered(self, member: Member, now_ms: int) -> None:
        """A member joined, or another process speaks for it now: it has a lease from here on."""
        key = (member.role, member.writer, member.boot)
        former = self._detach(member)
        link = self._links.get(key) or self._open(key, 0, now_ms, Report())
        link.detector.excuse(now_ms)
        link.refusals = 0
        self._links.move_to_end(key)
        if not link.members and not link.list_owed:
            # It may still run what it was given before it was declared lost.
            self._queue(link, Report())
        if former is not None and former is not link and member.kind == "swarm":
            # What the former delegate was told to stop and may not have heard of still runs in the child.
            for item in former.sender.in_flight():
                if isinstance(item, Stop):
                    self._queue(link, item)
            self._forget_load(member)
        link.members[member.id] = member
        link.lost = False
        self._of_member[member.id] = link
        wrong = nonsense_in(member)
        if wrong:
            self.refused[member.id] = wrong
        else:
            self.refused.pop(member.id, None)

    def gone(self, member: Member) -> None:
        """A member left, was lost, or moved to another process."""
        self._detach(member)
        self._forget_load(member)
        self.refused.pop(member.id, None)

    def _detach(self, member: Member) -> Link | None:
        link = self._of_member.pop(member.id, None)
        if link is not None:
            link.members.pop(member.id, None)
        return link

    def _forget_load(self, member: Member) -> None:
        self._loads.pop(member.id, None)
        self.recallable.pop(member.id, None)

    def load(self, member_id: str) -> Load | None:
        """What a child swarm said last of its load; None for a worker node, and for a child that has not said yet."""
        return self._loads.get(member_id)

    def has_loads(self) -> bool:
        """Whether any child swarm has said what it has to do."""
        return bool(self._loads)

    def send(self, member: Member, item: Item) -> None:
        """Queue an item for the member's process; `flush` makes batches of them."""
        link = self._of_member.get(member.id)
        if link is not None:
            self._queue(link, item)

    def send_to(self, link: Link, item: Item) -> None:
        """Queue an item for a process."""
        self._queue(link, item)

    def heard(self, beat: Heartbeat, state: SwarmState, now_ms: int) -> None:
        """A heartbeat renews the lease and acknowledges batches; a process nobody knows is asked to join.

        One that was declared lost comes back this way; a list that got lost on its way is asked for again.
        """
        key = (beat.role, beat.writer, beat.boot)
        link = self._links.get(key)
        if link is None:
            self._open(key, beat.ack if beat.term == self._term else 0, now_ms, Rejoin())
            return
        self._alive(link, now_ms)
        if beat.seq <= state.seq and self._homeless(link, beat, state) and not link.asked(Rejoin):
            self._queue(link, Rejoin())
        if beat.role == "delegate" and beat.seq <= state.seq:
            self._heard_of_child(link, beat)
        if beat.term != self._term or beat.ack < link.sender.acked:
            return
        if link.listed is not None and beat.seq < link.listed.seq:
            # Its receipts were of a log that was rewound since: the fold would never catch up with that list.
            link.listed = None
            link.list_owed = True
        if beat.listed is not None:
            link.listed = beat
            link.list_owed = False
            link.roll, link.rolled_at_ms = beat.listed, now_ms
        if link.listed is None:
            self._acknowledge(link, beat.ack)
            if link.list_owed and not link.asked(Report):
                self._queue(link, Report())
            if beat.seq <= state.seq:
                self._count(link, sum(beat.running.values()))

    def _heard_of_child(self, link: Link, beat: Heartbeat) -> None:
        """A delegate's heartbeat: of its child's load, unless another one speaks for that child by now."""
        child = swarm_member(beat.writer)
        speaker = self._of_member.get(child)
        if speaker is link and child in beat.load:
            self._loads[child] = beat.load[child]
            self.recallable.pop(child, None)
            if beat.recallable:
                self.recallable[child] = beat.recallable
        elif speaker is not None and speaker is not link and not speaker.lost and not link.asked(Replaced):
            self._queue(link, Replaced(child))

    def _acknowledge(self, link: Link, ack: int) -> None:
        link.sender.acknowledge(ack)
        if link.sender.items:
            self._dirty[link.key] = link

    def _homeless(self, link: Link, beat: Heartbeat, state: SwarmState) -> bool:
        """Whether the log lacks members of a living process. A child swarm has one speaker as long as that lives."""
        if beat.role != "delegate":
            return not link.members or any(member not in state.members for member in beat.running)
        member = state.members.get(swarm_member(beat.writer))
        if member is None:
            return True
        speaker = self._of_member[member.id]
        return speaker is not link and speaker.lost

    def _count(self, link: Link, counted: int) -> None:
        """Other attempts than the fold has, again and again, is no longer a matter of timing."""
        expected = sum(len(m.running) for m in link.members.values()) - len(link.under_way())
        link.miscounts = link.miscounts + 1 if counted != expected else 0
        if link.miscounts >= MISCOUNTS_MAX:
            link.miscounts = 0
            self._queue(link, Report())

    def not_lost(self, member: str) -> None:
        """The event that declared this member lost did not come about: if it stays silent, say so again."""
        link = self._of_member.get(member)
        if link is not None:
            link.lost = False

    def _alive(self, link: Link, now_ms: int) -> None:
        if link.lost:
            link.detector.excuse(now_ms)  # it was no pause between heartbeats that anything can be learnt from
        link.detector.heard(now_ms)
        link.lost = False
        link.refusals = 0
        self._links.move_to_end(link.key)

    def forgive(self, stall_ms: int, now_ms: int) -> None:
        """The leader itself stood still for so long: nobody's lease shall suffer for it."""
        for link in self._links.values():
            link.detector.excuse(min(link.detector.heard_at_ms + stall_ms, now_ms))
        self._distrust(now_ms)

    def renew_all(self, now_ms: int) -> None:
        """After the broker came back: everyone was unheard, so everyone gets a full lease."""
        for link in self._links.values():
            link.detector.excuse(now_ms)
        self._distrust(now_ms)

    def _distrust(self, now_ms: int) -> None:
        """For one lease it means nothing that nobody listens: after a broker's return that is true of everybody."""
        self._trusted_from_ms = now_ms + self._settings.lease_ms
        for link in self._links.values():
            link.refusals = 0

    def to_probe(self, now_ms: int) -> list[LinkKey]:
        """Processes that are silent for more than two heartbeats, the longest first: does anybody listen there?

        Each is asked anew after a while, and only a few at a time.
        """
        after_ms, again_ms = self._settings.lease_ms // 4, self._settings.lease_ms // 12
        if now_ms + after_ms < self._trusted_from_ms:
            return []
        wanted: list[LinkKey] = []
        for key, link in self._links.items():
            if link.detector.silence_ms(now_ms) <= after_ms or len(wanted) == PROBES_MAX:
                break
            if link.members and not link.lost and now_ms - link.probed_at_ms >= again_ms:
                link.probed_at_ms = now_ms
                wanted.append(key)
        return wanted

    def unheard(self, key: LinkKey, now_ms: int) -> None:
        """The broker says that nobody listens where this process' work is sent."""
        link = self._links.get(key)
        if link is not None and now_ms >= self._trusted_from_ms:
            link.refusals += 1

    def call_roll(self, member: Member) -> Link | None:
        """Ask the member's process to list what it runs; the link, which has the last list that it gave."""
        link = self._of_member.get(member.id)
        if link is not None and not link.list_owed:
            self._queue(link, Report())
        return link

    def reachable(self, member: Member) -> bool:
        """Whether new work may be placed on the member."""
        link = self._of_member.get(member.id)
        return link is not None and not link.lost and member.id not in self.refused

    def heard_at_ms(self, member: Member) -> int:
        """When the member's process was last heard; 0 for never."""
        link = self._of_member.get(member.id)
        return 0 if link is None else link.detector.heard_at_ms

    def phi(self, member: Member, now_ms: int) -> float:
        """How odd the silence of the member's process is."""
        link = self._of_member.get(member.id)
        return 0.0 if link is None else link.detector.phi(now_ms)

    def phi_max(self, now_ms: int) -> float:
        """The highest phi of all processes that are not given up."""
        silent = self._settings.lease_ms // 4
        highest = 0.0
        for link in self._links.values():
            if link.detector.silence_ms(now_ms) <= silent:
                break
            if link.members and not link.lost:
                highest = max(highest, link.detector.phi(now_ms))
        return highest

    def lapsed(self, now_ms: int) -> list[str]:
        """Worker nodes whose process is given up, once per silence."""
        settings, lost = self._settings, list[str]()
        soonest_ms, forget_ms = min(settings.gone_ms, settings.lease_ms), FORGET_AFTER_LEASES * settings.lease_ms
        silent: list[Link] = []
        for link in self._links.values():
            if link.detector.silence_ms(now_ms) <= soonest_ms:
                break
            silent.append(link)
        for link in silent:
            if not link.members and link.detector.silence_ms(now_ms) > forget_ms:
                del self._links[link.key]
            elif not link.lost and self._is_gone(link, now_ms):
                link.lost = True
                lost.extend(m.id for m in link.members.values() if m.kind == "node")
        return lost

    def _is_gone(self, link: Link, now_ms: int) -> bool:
        """Whether the silence of this process has lasted long enough; it is longer than `gone_ms`."""
        if link.refusals >= REFUSALS and now_ms >= self._trusted_from_ms:
            return True
        lease_ms, silence_ms = self._settings.lease_ms, link.detector.silence_ms(now_ms)
        if silence_ms <= lease_ms:
            return False
        return silence_ms > LEASES_MAX * lease_ms or link.detector.phi(now_ms) >= self._settings.phi_lost

    def compare(self, state: SwarmState) -> Iterator[tuple[Link, list[tuple[Member, Pair]], list[Pair]]]:
        """For each list that the fold has caught up with: attempts that it lacks, and those it should not have."""
        for link in self._links.values():
            beat = link.listed
            if beat is None or beat.listed is None or beat.seq > state.seq:
                continue
            link.listed = None
            self._acknowledge(link, beat.ack)
            running, under_way, listed = link.running(), link.under_way(), set(beat.listed)
            missing = [(m, pair) for pair, m in running.items() if pair not in listed and pair not in under_way]
            extra = [pair for pair in beat.listed if pair not in running and not self._elsewhere(link, pair, state)]
            yield link, missing, extra

    @staticmethod
    def _elsewhere(link: Link, pair: Pair, state: SwarmState) -> bool:
        """Whether a child swarm's attempt is live, only with another delegate: the work is one and the same."""
        task = state.tasks.get(pair[0])
        attempt = task.attempts.get(pair[1]) if task else None
        return attempt is not None and attempt.member == swarm_member(link.key[1])

    def flush(self, seq: int, now_ms: int) -> list[tuple[LinkKey, Dispatch]]:
        """Everything queued, in numbered batches per process."""
        dirty, self._dirty = self._dirty, {}
        batches: list[tuple[LinkKey, Dispatch]] = []
        for key, link in dirty.items():
            while (batch := link.sender.batch(seq, now_ms)) is not None:
                batches.append((key, batch))
        return batches

    def overdue(self, now_ms: int) -> list[tuple[LinkKey, Dispatch]]:
        """Batches that were not acknowledged in time, to be sent again."""
        links = self._links.items()
        return [(key, batch) for key, link in links for batch in link.sender.overdue(now_ms, self._settings.resend_ms)]
