"""Schedules: which slot comes next, and what is done about those that were missed.

A slot is a point in time at which a schedule fires. The fold keeps the last one of each schedule and takes only later
ones, and a task's id is made of its schedule and slot, so that each slot fires at most once whoever leads. A leader
proposes one slot of a schedule at a time and the next when that is folded, so that none is passed over. Pure: who
computes the slots of cron expressions is handed in.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final, Protocol

from swarmd.core.commands import TIME_MS_MAX, check
from swarmd.core.errors import Rejected
from swarmd.core.events import Event, Fact, Fired, Schedule, Scheduled, Unscheduled
from swarmd.core.ids import check_name
from swarmd.core.wire import ScheduleStatus, Submission

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmd.core.state import Planned, SwarmState

EVERY_MS_MIN: Final = 100
EVERY_MS_MAX: Final = 10 * 366 * 86_400_000
GRACE_MS_MAX: Final = 86_400_000
#: Schedules of a swarm.
SCHEDULES_MAX: Final = 1_000
#: With `missed = "all"` so many of the missed slots fire, the latest ones.
CATCH_UP_MAX: Final = 1_000
#: A swarm that takes no new work is asked again after so long.
FULL_MS: Final = 1_000


class Slots(Protocol):
    """Computes the slots of cron expressions, in milliseconds since 1970."""

    def check(self, cron: str, zone: str) -> None:
        """Raise `Rejected("bad_cron" | "bad_zone")`."""

    def next(self, cron: str, zone: str, after_ms: int) -> int:
        """The first slot after `after_ms`, 0 for none."""

    def before(self, cron: str, zone: str, now_ms: int, count: int) -> int:
        """A moment after which come about `count` slots up to `now_ms`, at least as many if there are so many."""


class NoCron:
    """Refuses every cron expression, for leaders that were given nothing to compute them with."""

    def check(self, cron: str, zone: str) -> None:
        raise Rejected("bad_cron", "this orchestrator knows intervals only: give every_ms instead of cron")

    def next(self, cron: str, zone: str, after_ms: int) -> int:
        return 0

    def before(self, cron: str, zone: str, now_ms: int, count: int) -> int:
        return 0


def check_schedule(schedule: Schedule, slots: Slots, now_ms: int) -> Schedule:
    """Return a sound schedule unchanged; raise `Rejected` for the first thing that is wrong with it.

    Codes: "bad_name", "bad_schedule", "bad_cron", "bad_zone", and those of a submission.
    """
    check_name("schedule", schedule.id)
    as_task = Submission(
        schedule.agent,
        schedule.input,
        priority=schedule.priority,
        timeout_ms=schedule.timeout_ms,
        tenant=schedule.tenant,
        retry=schedule.retry,
        budget=schedule.budget,
        labels=schedule.labels,
        requires=schedule.requires,
    )
    check(as_task)
    if len(schedule.labels) > 30:
        raise Rejected("bad_schedule", "a schedule has up to 30 labels: it adds `schedule` and `slot_ms` itself")
    if bool(schedule.every_ms) == bool(schedule.cron):
        raise Rejected("bad_schedule", "give either every_ms or cron")
    if schedule.cron:
        slots.check(schedule.cron, schedule.zone)
    elif not EVERY_MS_MIN <= schedule.every_ms <= EVERY_MS_MAX:
        raise Rejected("bad_schedule", f"every_ms must be {EVERY_MS_MIN} to {EVERY_MS_MAX}, not {schedule.every_ms}")
    elif schedule.zone != "UTC":
        raise Rejected("bad_schedule", "an interval is the same in every time zone: give zone with cron only")
    for name in ("not_before_ms", "until_ms"):
        if not 0 <= getattr(schedule, name) <= TIME_MS_MAX:
            raise Rejected("bad_schedule", f"{name} must be 0 (none) to {TIME_MS_MAX}, in milliseconds since 1970")
    if not 0 <= schedule.grace_ms <= GRACE_MS_MAX:
        raise Rejected("bad_schedule", f"grace_ms must be 0 to {GRACE_MS_MAX} (a day)")
    if not slot_after(schedule, slots, anchor(schedule, now_ms), max(now_ms, schedule.not_before_ms - 1)):
        what = f"cron {schedule.cron!r}" if schedule.cron else f"every {schedule.every_ms} ms"
        until = f" until {schedule.until_ms} ms since 1970" if schedule.until_ms else ""
        raise Rejected("bad_schedule", f"{what} in {schedule.zone} never fires{until}")
    return schedule


def anchor(schedule: Schedule, from_ms: int) -> int:
    """What the slots of an interval are counted from."""
    return schedule.not_before_ms or from_ms


def slot_after(schedule: Schedule, slots: Slots, anchor_ms: int, after_ms: int) -> int:
    """The first slot after `after_ms`, 0 for none."""
    after_ms = max(after_ms, schedule.not_before_ms - 1)
    if schedule.cron:
        slot = slots.next(schedule.cron, schedule.zone, after_ms)
    elif after_ms < anchor_ms:
        slot = anchor_ms
    else:
        slot = anchor_ms + ((after_ms - anchor_ms) // schedule.every_ms + 1) * schedule.every_ms
    return 0 if schedule.until_ms and slot > schedule.until_ms else slot


def latest_slots(planned: Planned, slots: Slots, now_ms: int, count: int) -> Iterator[int]:
    """The last `count` slots up to `now_ms` that have not fired, oldest first."""
    schedule, last = planned.schedule, planned.slot_ms
    end_ms = min(now_ms, schedule.until_ms) if schedule.until_ms else now_ms
    if schedule.cron:
        start = slots.before(schedule.cron, schedule.zone, end_ms, count)
    else:
        start = end_ms - count * schedule.every_ms
    found: list[int] = []
    slot = slot_after(schedule, slots, planned.anchor_ms, max(last, start))
    while 0 < slot <= end_ms:
        found.append(slot)
        slot = slot_after(schedule, slots, planned.anchor_ms, slot)
    yield from found[-count:]


def due_slot(planned: Planned, slots: Slots, now_ms: int, from_ms: int = 0) -> int:
    """The slot to fire next, not before `from_ms`, at once or in the future; 0 for none.

    What is no older than the grace fires, each slot in its turn. Beyond that the policy for missed slots holds.
    """
    schedule = planned.schedule
    slot = slot_after(schedule, slots, planned.anchor_ms, max(planned.slot_ms, from_ms - 1))
    if not slot or slot >= now_ms - schedule.grace_ms or schedule.missed == "all":
        return slot
    latest = next(latest_slots(planned, slots, now_ms, 1), 0)
    if latest and (schedule.missed == "once" or latest >= now_ms - schedule.grace_ms):
        return latest
    return slot_after(schedule, slots, planned.anchor_ms, now_ms)


class Planner:
    """What one leader in one office proposes: the firings of all schedules, and the declared ones as they should be."""

    def __init__(self, state: SwarmState, slots: Slots) -> None:
        self._state, self._slots = state, slots
        self._heap: list[tuple[int, str]] = []
        self._next: dict[str, int] = {}
        self._under_way: dict[str, int] = {}
        self._catching_up: dict[str, int] = {}

    def take_office(self, declared: dict[str, Schedule], now_ms: int) -> list[Event]:
        """Arm every schedule; the events that bring those of the settings in force, and take back which are gone."""
        state, events = self._state, list[Event]()
        for name in state.schedules:
            self.arm(name, now_ms)
        for name, planned in state.schedules.items():
            if planned.schedule.declared and name not in declared:
                events.append(Event(name, Unscheduled(term=state.term)))
        for name, schedule in declared.items():
            known = state.schedules.get(name)
            if known is None or known.schedule != schedule:
                events.append(self.scheduled(schedule, now_ms))
        return events

    def scheduled(self, schedule: Schedule, now_ms: int) -> Event:
        """The event that brings a schedule in force from now on."""
        return Event(schedule.id, Scheduled(term=self._state.term, schedule=schedule, from_ms=now_ms))

    def check(self, schedule: Schedule, now_ms: int) -> bool:
        """Whether a schedule that somebody asks for is not in force already. Raises `Rejected`, see `check_schedule`.

        Also "declared" for one of the settings, and "too_many".
        """
        check_schedule(schedule, self._slots, now_ms)
        known = self._state.schedules.get(schedule.id)
        self._refuse_declared(schedule.id)
        if known is None and len(self._state.schedules) >= SCHEDULES_MAX:
            raise Rejected("too_many", f"a swarm has up to {SCHEDULES_MAX} schedules: remove one first")
        return known is None or known.schedule != schedule

    def require(self, name: str) -> None:
        """Raise `Rejected` ("unknown_schedule", "declared") for what nobody can remove on request."""
        if name not in self._state.schedules:
            raise Rejected("unknown_schedule", f"there is no schedule {name[:80]!r}")
        self._refuse_declared(name)

    def _refuse_declared(self, name: str) -> None:
        known = self._state.schedules.get(name)
        if known is not None and known.schedule.declared:
            raise Rejected("declared", f"schedule {name} is declared in the settings: change it there")

    def arm(self, name: str, now_ms: int) -> None:
        """The schedule is new or has moved on, or a firing could not be stored: its next slot is due in time."""
        planned = self._state.schedules.get(name)
        slot = self._due_slot(planned, now_ms) if planned else 0
        self._under_way.pop(name, None)
        if not slot:
            self._next.pop(name, None)
            return
        self._next[name] = slot
        heapq.heappush(self._heap, (slot, name))

    def _due_slot(self, planned: Planned, now_ms: int) -> int:
        """As `due_slot`, where all missed slots are wanted only the latest ones of them."""
        schedule, slots = planned.schedule, self._slots
        from_ms = self._catching_up.get(schedule.id, 0)
        slot = due_slot(planned, slots, now_ms, from_ms)
        if not 0 < slot < now_ms - schedule.grace_ms:
            self._catching_up.pop(schedule.id, None)
        elif schedule.missed == "all" and not from_ms:
            slot = self._catching_up[schedule.id] = next(latest_slots(planned, slots, now_ms, CATCH_UP_MAX))
        return slot

    def due(self, now_ms: int, full: bool) -> list[Event]:
        """A firing for each schedule whose slot has come; none while the swarm takes no work (asked again later)."""
        events: list[Event] = []
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, name = heapq.heappop(self._heap)
            planned = self._state.schedules.get(name)
            slot = self._next.get(name, 0)
            if planned is None or not 0 < slot <= at_ms:
                continue  # removed, or armed anew for another time
            del self._next[name]
            if full:
                self._next[name] = slot
                heapq.heappush(self._heap, (now_ms + FULL_MS, name))
                continue
            slot = self._due_slot(planned, now_ms)  # it may have come too late
            if slot > now_ms:
                self._next[name] = slot
                heapq.heappush(self._heap, (slot, name))
            elif slot:
                self._under_way[name] = slot
                events.append(Event(name, self._firing(planned, slot, now_ms)))
        return events

    def _firing(self, planned: Planned, slot: int, now_ms: int) -> Fact:
        timeout_ms = planned.schedule.timeout_ms
        deadline = now_ms + timeout_ms if timeout_ms else 0
        return Fired(term=self._state.term, slot_ms=slot, deadline_at_ms=deadline)

    def status(self) -> list[ScheduleStatus]:
        """Every schedule and its next slot, by id; one that is fired and not folded yet is still the next."""
        return [
            ScheduleStatus(
                name,
                planned.schedule.agent,
                planned.schedule,
                next_ms=self._next.get(name) or self._under_way.get(name, 0),
                last_ms=planned.fired_ms,
                last_task=planned.task,
                fired=planned.fired,
                skipped=planned.skipped,
            )
            for name, planned in sorted(self._state.schedules.items())
        ]
