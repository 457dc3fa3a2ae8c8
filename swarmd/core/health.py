"""Links to the processes that host members: who is alive, what was dispatched, what they list.

A link is one process (role, writer, boot). Its lease is renewed by heartbeats, never by log events. When it
lapses, worker nodes are declared lost; a child swarm is only unreachable, since its work goes on in its own log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from swarmd.core.ids import swarm_member
from swarmd.core.link import Sender
from swarmd.core.wire import Dispatch, Heartbeat, Item, Rejoin, Report, Start, Stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmd.core.state import Member, SwarmState

LinkKey = tuple[str, str, str]
Pair = tuple[str, int]  #: (task, epoch)
#: So many heartbeats in a row that count other attempts than the fold make the leader ask for a list.
MISCOUNTS_MAX: Final = 16
#: A process without members is forgotten after so many leases of silence.
FORGET_AFTER_LEASES: Final = 30


class Link:
    """One process of members, as the leader of a term sees it. `roll` is the last list that it gave, `rolled_at_ms` when.
    """

    roll: list[Pair] | None = None
    rolled_at_ms = 0

    def __init__(self, key: LinkKey, term: int, taken: int, now_ms: int) -> None:
        self.key = key
        self.sender = Sender(term, taken)
        self.members: dict[str, Member] = {}
        self.heard_at_ms = now_ms
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
    """All links of a leader. Time is handed in; nothing is sent from here."""

    def __init__(self, lease_ms: int, resend_ms: int) -> None:
        self._lease_ms, self._resend_ms = lease_ms, resend_ms
        self._term = 0
        self._links: dict[LinkKey, Link] = {}
        self._of_member: dict[str, Link] = {}
        self._dirty: dict[LinkKey, Link] = {}

    def take_office(self, state: SwarmState, now_ms: int) -> None:
        """A new term: forget the old numbering, ask every process what it runs, and give it a full lease."""
        self._term = state.term
        self._links, self._of_member, self._dirty = {}, {}, {}
        for member in state.members.values():
            self.offered(member, now_ms)

    def _open(self, key: LinkKey, taken: int, now_ms: int, item: Item) -> Link:
        link = self._links[key] = Link(key, self._term, taken, now_ms)
        self._queue(link, item)
        return link

    def _queue(self, link: Link, item: Item) -> None:
        link.list_owed = link.list_owed or isinstance(item, Report)
        link.sender.items.append(item)
        self._dirty[link.key] = link

    def offered(self, member: Member, now_ms: int) -> None:
        """A member joined, or another process speaks for it now: it has a lease from here on."""
        key = (member.role, member.writer, member.boot)
        former = self._of_member.get(member.id)
        self.gone(member)
        link = self._links.get(key) or self._open(key, 0, now_ms, Report())
        if not link.members and not link.list_owed:
            # It may still run what it was given before it was declared lost.
            self._queue(link, Report())
        if former is not None and former is not link and member.kind == "swarm":
            # What the former delegate was told to stop and may not have heard of still runs in the child.
            for item in former.sender.in_flight():
                if isinstance(item, Stop):
                    self._queue(link, item)
        link.members[member.id] = member
        link.lost = False
        self._of_member[member.id] = link

    def gone(self, member: Member) -> None:
        """A member left, was lost, or moved to another process."""
        link = self._of_member.pop(member.id, None)
        if link is not None:
            link.members.pop(member.id, None)

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
        link.heard_at_ms = now_ms
        link.lost = False
        if beat.seq <= state.seq and self._homeless(link, beat, state) and not link.asked(Rejoin):
            self._queue(link, Rejoin())
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

    def forgive(self, stall_ms: int) -> None:
        """The leader itself stood still for so long: nobody's lease shall suffer for it."""
        for link in self._links.values():
            link.heard_at_ms += stall_ms

    def renew_all(self, now_ms: int) -> None:
        """After the broker came back: everyone was unheard, so everyone gets a full lease."""
        for link in self._links.values():
            link.heard_at_ms = now_ms

    def call_roll(self, member: Member) -> Link | None:
        """Ask the member's process to list what it runs; the link, which has the last list that it gave."""
        link = self._of_member.get(member.id)
        if link is not None and not link.list_owed:
            self._queue(link, Report())
        return link

    def reachable(self, member: Member) -> bool:
        """Whether new work may be placed on the member."""
        link = self._of_member.get(member.id)
        return link is not None and not link.lost

    def heard_at_ms(self, member: Member) -> int:
        """When the member's process was last heard; 0 for never."""
        link = self._of_member.get(member.id)
        return 0 if link is None else link.heard_at_ms

    def lapsed(self, now_ms: int) -> list[str]:
        """Worker nodes whose process was silent for longer than its lease, once per silence."""
        lost: list[str] = []
        for key, link in list(self._links.items()):
            silence_ms = now_ms - link.heard_at_ms
            if not link.members and silence_ms > FORGET_AFTER_LEASES * self._lease_ms:
                del self._links[key]
            elif silence_ms > self._lease_ms and not link.lost:
                link.lost = True
                lost.extend(m.id for m in link.members.values() if m.kind == "node")
        return lost

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
        return [(key, batch) for key, link in links for batch in link.sender.overdue(now_ms, self._resend_ms)]
