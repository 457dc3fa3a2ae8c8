"""From waiting tasks to `Assigned` events: the queue, and the placements that are decided but not folded.

A placement not folded yet is an overlay: it holds a slot until its commit is folded, whatever the fold
made of it, or could not be stored. Submissions of the very commit that is being made are placed as well,
on the strength of an event that stands before theirs; if the fold refuses that, it refuses the placement too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, structs

from swarmd.core.affinity import Affinity
from swarmd.core.budgets import NO_LIMIT, names_of, offer
from swarmd.core.events import Assigned, Event, Submitted, Why
from swarmd.core.hedging import Hedging
from swarmd.core.keys import Keys
from swarmd.core.placement import Queue
from swarmd.core.policies import policy_of, process_of
from swarmd.core.sharing import free_slots, line_slots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmd.core.health import Links
    from swarmd.core.office import LeaderSettings
    from swarmd.core.placement import Place
    from swarmd.core.policies import Choice
    from swarmd.core.quarantine import Wards
    from swarmd.core.state import Attempt, Member, SwarmState, Task


class _Overlay(Struct, frozen=True):
    """A placement that is not folded: the slot that it takes, and in whose name."""

    member: str
    epoch: int
    tenant: str
    key: str
    hedge: bool = False


class Placing:
    """Decides for one leader in one office."""

    def __init__(self, state: SwarmState, settings: LeaderSettings, wards: Wards) -> None:
        self._state, self._wards = state, wards
        self._queue = Queue(state, Keys(settings.keys, state.keys), settings.tenants, settings.placement.ageing_ms)
        self._policy = policy_of(settings.placement, state)
        self.hedging = Hedging(state, settings.placement)
        self.affinity = Affinity() if settings.placement.affinity else None
        self._fresh: dict[str, Submitted] = {}
        self._placed: dict[str, _Overlay] = {}
        self._taken: dict[str, int] = {}

    def __len__(self) -> int:
        """How many tasks wait."""
        return len(self._queue)

    @property
    def overlays(self) -> dict[str, int]:
        """Slots held by placements that are not folded yet, by member."""
        return self._taken

    # --- who waits ---

    def propose(self, task_id: str, fact: Submitted) -> None:
        """A submission of the commit that is being made."""
        self._fresh[task_id] = fact
        self._queue.push_proposed(task_id, fact)

    def proposed_is_over(self, task_id: str) -> None:
        """Its own commit was folded: from here on the state speaks for the task."""
        self._fresh.pop(task_id, None)

    def withdraw(self, task_id: str) -> None:
        """A proposed submission could not be stored."""
        self._fresh.pop(task_id, None)
        self._queue.discard(task_id)

    def wait(self, task: Task) -> None:
        """A queued task waits for a slot, unless one is promised to it already."""
        if task.id not in self._placed:
            self._queue.push(task)
        self.freed(task)

    def ended(self, task: Task) -> None:
        """The task wants no slot any more."""
        self._queue.discard(task.id)
        self.hedging.over(task)
        self.freed(task)

    def freed(self, task: Task) -> None:
        """The task may have given back a slot: others with its concurrency key may want it."""
        if task.concurrency_key:
            self._queue.freed(task.concurrency_key)

    def folded(self, at_ms: int) -> None:
        """The log has come to this time."""
        self._queue.log_ms = max(self._queue.log_ms, at_ms)

    def begin(self, now_ms: int) -> None:
        """An office begins."""
        self._queue.begin(now_ms)

    def tick(self, now_ms: int) -> None:
        """Time passes."""
        self._queue.tick(now_ms)

    def settle(self, task_id: str, epoch: int) -> None:
        """A placement was folded or could not be stored: its slot is the state's business now."""
        overlay = self._placed.get(task_id)
        task = self._state.tasks.get(task_id)
        if overlay is not None and overlay.epoch == epoch:
            del self._placed[task_id]
            self._policy.lent.pop(task_id, None)
            self._taken[overlay.member] -= 1
            if not self._taken[overlay.member]:
                del self._taken[overlay.member]
            self._queue.settle(overlay.tenant, overlay.key)
            if overlay.hedge and (task is None or task.epoch < epoch):
                self.hedging.came_to_nothing(task)
        if task is not None and task.state == "queued":
            self.wait(task)

    # --- who gets what ---

    def decide(self, links: Links, limit: int) -> list[Event]:
        """Give waiting tasks to free slots of reachable members; up to `limit` events."""
        if not len(self._queue) and not self.hedging:
            return []
        events = list[Event]()
        members, free, full = self._slots(links)
        if self.hedging:
            self._hedge(members, free, events)
        self._place(members, free, limit - len(events), full, events)
        if len(self._queue) and links.has_loads():
            lines = self._lines(links)
            members = [member for member in members if member.id in lines]
            self._place(members, lines, limit - len(events), {}, events)
        return events

    def _place(
        self, members: list[Member], free: dict[str, int], limit: int, full: dict[str, list[str]], events: list[Event]
    ) -> None:
        for placed in self._queue.place(members, free, limit, self._policy, full):
            task_id, member, choice, place = placed
            fits = self._fitting(task_id, member, choice.peers, free) if self.affinity is not None else None
            member = fits or member
            fact = self._assignment(task_id, member, choice, place)
            if fact is None or task_id in self._placed:
                # Gone, or an earlier placement is still on its way: it waits again after that.
                self._queue.settle(place.tenant, place.key)
                continue
            if place.lane.suspect:
                self._policy.lent[task_id] = process_of(member)
            if fits is not None and isinstance(fact.why, Why):
                fact.why = structs.replace(fact.why, rule="fit")
            self._take(task_id, member, _Overlay(member.id, fact.epoch, place.tenant, place.key))
            events.append(Event(task_id, fact))

    def _fitting(self, task_id: str, member: Member, peers: Sequence[Member], free: dict[str, int]) -> Member | None:
        """The one of equally good members with a free slot that has done the like of this task, if any has."""
        task = self._state.tasks.get(task_id) or self._fresh.get(task_id)
        if self.affinity is None or task is None or member not in peers:
            return None
        able = [peer for peer in peers if free[peer.id] > 0 or peer.id == member.id]
        fits = self.affinity.best(able, task.agent, bytes(task.input))
        if fits is not None:
            free[member.id] += 1
            free[fits.id] -= 1
        return fits

    def _slots(self, links: Links) -> tuple[list[Member], dict[str, int], dict[str, list[str]]]:
        """The members that can be given something, how much, and the agents for which child swarms have no slot."""
        members: list[Member] = []
        taken, free, full = self._taken, dict[str, int](), dict[str, list[str]]()
        for member in self._state.members.values():
            if not member.capacity or not links.reachable(member):
                continue
            slots = member.capacity - len(member.running) - taken.get(member.id, 0)
            if member.kind == "swarm":
                load = links.load(member.id)
                slots = free_slots(member, load, taken.get(member.id, 0))
                if load is not None and load.full:
                    full[member.id] = load.full
            if member.quarantined:
                slots = min(slots, self._wards.slots(member, taken.get(member.id, 0)))
                if slots <= 0:
                    continue
            members.append(member)
            free[member.id] = slots if self._policy.late else 1
        return members, free, full

    def _lines(self, links: Links) -> dict[str, int]:
        """For what finds no free slot anywhere: how many more may wait in child swarms that have none either."""
        taken, lines = self._taken, dict[str, int]()
        for member in self._state.members.values():
            if member.kind == "swarm" and links.reachable(member) and not member.quarantined:
                slots = line_slots(member, links.load(member.id), taken.get(member.id, 0))
                if slots:
                    lines[member.id] = slots
        return lines

    def _take(self, task_id: str, member: Member, overlay: _Overlay) -> None:
        self._placed[task_id] = overlay
        self._taken[member.id] = self._taken.get(member.id, 0) + 1
        if member.quarantined:
            self._wards.probed(member)

    def _hedge(self, members: list[Member], free: dict[str, int], events: list[Event]) -> None:
        """Second attempts for those that take too long, on slots that are free now."""
        for task, attempt in self.hedging.wanted():
            if task.id in self._placed:
                continue
            member = self._other_member(task, attempt, members, free)
            if member is None or not self._queue.claim(task.tenant, task.concurrency_key):
                self.hedging.put_off(task, attempt)
                continue
            free[member.id] -= 1
            fact = Assigned(term=self._state.term, epoch=task.epoch + 1, member=member.id)
            fact.why = Why("hedge", sum(slots > 0 for slots in free.values()) + 1)
            self._grant(fact, task, member)
            self._take(task.id, member, _Overlay(member.id, fact.epoch, task.tenant, task.concurrency_key, hedge=True))
            self.hedging.spent()
            events.append(Event(task.id, fact))

    @staticmethod
    def _other_member(task: Task, attempt: Attempt, members: list[Member], free: dict[str, int]) -> Member | None:
        """The least loaded other member that could run the task as well."""

        def suits(member: Member) -> bool:
            return (
                free[member.id] > 0
                and member.id != attempt.member
                and task.agent in member.idempotent
                and task.version in member.runs(task.agent)
                and not member.quarantined
                and member.bears(task.requires.items())
            )

        def load(member: Member) -> float:
            return len(member.running) / member.capacity

        return min((member for member in members if suits(member)), key=load, default=None)

    def _assignment(self, task_id: str, member: Member, choice: Choice, place: Place) -> Assigned | None:
        """The placement, with a slice of what its budgets have left; the fold says what it may have of that."""
        state = self._state
        task = state.tasks.get(task_id)
        wanted = task or self._fresh.get(task_id)
        if wanted is None:
            return None
        rule = "probe" if member.quarantined else choice.rule
        waited_ms = max(0, self._queue.log_ms - place.queued_ms)
        fact = Assigned(
            term=state.term,
            epoch=task.epoch + 1 if task else 1,
            member=member.id,
            why=Why(rule, choice.free, waited_ms, choice.expected_ms),
        )
        self._grant(fact, wanted, member)
        return fact

    def _grant(self, fact: Assigned, wanted: Task | Submitted, member: Member) -> None:
        state = self._state
        own, draws = (wanted.budget, ()) if isinstance(wanted, Submitted) else (NO_LIMIT, wanted.draws)
        if state.accounts or own != NO_LIMIT:
            names = names_of(state.accounts, draws, wanted.tenant)
            fact.grant = offer(state.accounts, names, own, child=member.kind == "swarm")

    def waiting(self) -> dict[str, int]:
        """How many tasks wait for each agent."""
        return self._queue.waiting()

    def waiting_for(self, members: list[Member]) -> dict[str, int]:
        """How many tasks wait for a slot of these members, by agent."""
        return self._queue.waiting_for(members)

    def is_blocked(self, task_id: str) -> bool:
        """Whether a waiting task is held up by its concurrency key."""
        return self._queue.is_blocked(task_id)

    def is_at_bound(self, tenant: str) -> bool:
        """Whether a tenant has all the slots that it may have."""
        return self._queue.is_at_bound(tenant)
