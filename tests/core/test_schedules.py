"""Schedules: which slot fires when, in the policy, in the fold and by a leader; each slot at most once, none lost."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Raw, structs

from swarmd.core import effects as fx
from swarmd.core.errors import Rejected
from swarmd.core.events import Completed, Event, Fired, Schedule, Scheduled, Unscheduled
from swarmd.core.leader import Leader
from swarmd.core.office import LeaderSettings
from swarmd.core.schedules import CATCH_UP_MAX, NoCron, check_schedule, due_slot
from swarmd.core.state import Planned, SwarmState
from swarmd.cron import Cron
from tests.core.history import NODE, History, offer
from tests.sim.stage import LEASE_MS, Stage

CRON = Cron()
HOUR = 3_600_000
NOW = 1_800_000_000_000  #: 2027-01-15 08:00 UTC


def schedule(**fields: Any) -> Schedule:
    given: dict[str, Any] = {"id": "s", "agent": "a", "every_ms": HOUR, "grace_ms": 0}
    return Schedule(**(given | fields))


def planned(last_ms: int = NOW, **fields: Any) -> Planned:
    wanted = schedule(**fields)
    return Planned(wanted, wanted.not_before_ms or NOW, last_ms)


# --- at the door -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"id": "a b"}, "bad_name"),
        ({"agent": "a b"}, "bad_name"),
        ({"every_ms": 0}, "bad_schedule"),
        ({"every_ms": 99}, "bad_schedule"),
        ({"every_ms": 10**15}, "bad_schedule"),
        ({"cron": "* * * * *"}, "bad_schedule"),
        ({"zone": "Europe/Berlin"}, "bad_schedule"),
        ({"every_ms": 0, "cron": "0 0 31 2 *"}, "bad_cron"),
        ({"every_ms": 0, "cron": "* * * * *", "zone": "Mars"}, "bad_zone"),
        ({"until_ms": NOW}, "bad_schedule"),
        ({"not_before_ms": NOW + 2, "until_ms": NOW + 1}, "bad_schedule"),
        ({"not_before_ms": -1}, "bad_schedule"),
        ({"grace_ms": -1}, "bad_schedule"),
        ({"priority": 1001}, "bad_field"),
        ({"timeout_ms": -1}, "bad_field"),
        ({"labels": {f"l{n}": "" for n in range(31)}}, "bad_schedule"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused(fields: dict[str, Any], code: str) -> None:
    with pytest.raises(Rejected) as caught:
        check_schedule(schedule(**fields), CRON, NOW)
    assert caught.value.code == code


def test_without_cron_only_intervals_are_taken() -> None:
    check_schedule(schedule(), NoCron(), NOW)
    with pytest.raises(Rejected, match="every_ms"):
        check_schedule(schedule(every_ms=0, cron="* * * * *"), NoCron(), NOW)


# --- which slot is next ----------------------------------------------------------------------------


def test_slots_of_an_interval_are_counted_from_its_beginning() -> None:
    assert due_slot(planned(), CRON, NOW) == NOW + HOUR
    later = planned(not_before_ms=NOW + 5, grace_ms=HOUR)
    assert due_slot(later, CRON, NOW) == NOW + 5
    assert due_slot(structs.replace(later, slot_ms=NOW + 5), CRON, NOW + 6) == NOW + 5 + HOUR
    past = planned(not_before_ms=NOW - HOUR // 4, grace_ms=HOUR)
    assert due_slot(past, CRON, NOW) == NOW + HOUR * 3 // 4
    assert due_slot(planned(until_ms=NOW + HOUR - 1), CRON, NOW) == 0


@pytest.mark.parametrize("how", [{}, {"every_ms": 0, "cron": "0 * * * *"}])
def test_what_is_missed_is_left_out_or_fires_once_or_fires_all(how: dict[str, Any]) -> None:
    """Ten and a half hours after the last slot, with a grace of a minute."""
    now, grace = NOW + 10 * HOUR + HOUR // 2, 60_000
    assert due_slot(planned(missed="skip", grace_ms=grace, **how), CRON, now) == NOW + 11 * HOUR
    assert due_slot(planned(missed="once", grace_ms=grace, **how), CRON, now) == NOW + 10 * HOUR
    assert due_slot(planned(missed="all", grace_ms=grace, **how), CRON, now) == NOW + HOUR
    # A slot within the grace is not missed, whoever led when it came.
    for missed in ("skip", "once", "all"):
        last = planned(NOW + 9 * HOUR, missed=missed, grace_ms=HOUR, **how)
        assert due_slot(last, CRON, NOW + 10 * HOUR + 5) == NOW + 10 * HOUR
    assert due_slot(planned(missed="skip", grace_ms=HOUR, **how), CRON, now) == NOW + 10 * HOUR
    assert due_slot(planned(missed="once", until_ms=NOW + 5 * HOUR, **how), CRON, now) == NOW + 5 * HOUR


# --- the fold --------------------------------------------------------------------------------------


def fired(slot_ms: int, term: int = 1) -> Fired:
    return Fired(term=term, slot_ms=slot_ms)


def set_up(**fields: Any) -> History:
    history = History().joined()
    history.lead("s", Scheduled(term=1, schedule=schedule(**fields), from_ms=100))
    return history


def test_a_firing_makes_the_task_of_its_slot() -> None:
    history = set_up(input=Raw(b'{"x":1}'), priority=3, tenant="t", labels={"k": "v"})
    effects = history.lead("s", Fired(term=1, slot_ms=200, deadline_at_ms=900))
    task = history.state.tasks["s:200"]
    assert effects == [fx.Rescheduled("s"), fx.Queued(task, new=True)]
    assert (task.agent, bytes(task.input), task.priority, task.tenant, task.deadline_at_ms) == (
        "a",
        b'{"x":1}',
        3,
        "t",
        900,
    )
    assert task.labels == {"k": "v", "schedule": "s", "slot_ms": "200"}
    entry = history.state.schedules["s"]
    assert (entry.slot_ms, entry.fired_ms, entry.task, entry.fired) == (200, 200, "s:200", 1)


def test_a_slot_fires_once_and_none_before_the_last() -> None:
    history = set_up()
    history.lead("s", fired(200), fired(200), fired(150), fired(100), fired(300, term=2))
    history.work("s", fired(300))
    history.lead("none", fired(300))
    assert list(history.state.tasks) == ["s:200"]
    assert history.ignored() == {"repeated_slot": 3, "not_leader": 1, "wrong_role": 1, "unknown_schedule": 1}


def test_a_schedule_made_anew_does_not_fire_a_slot_again() -> None:
    history = set_up()
    history.lead("s", fired(200), Unscheduled(term=1), Unscheduled(term=1))
    assert history.state.schedules == {}
    history.lead("s", Scheduled(term=1, schedule=schedule(), from_ms=100), fired(200))
    assert (list(history.state.tasks), history.state.schedules["s"].skipped) == (["s:200"], 1)
    assert history.ignored() == {"unknown_schedule": 1}


def test_a_changed_schedule_goes_on_after_its_last_slot() -> None:
    history = set_up()
    history.lead("s", fired(200), Scheduled(term=1, schedule=schedule(every_ms=500), from_ms=150))
    entry = history.state.schedules["s"]
    assert (entry.slot_ms, entry.anchor_ms, entry.schedule.every_ms, entry.fired) == (200, 150, 500, 1)
    history.lead("other", Scheduled(term=1, schedule=schedule(), from_ms=150))
    assert history.ignored() == {"other_schedule": 1}


def test_an_overlapping_slot_is_left_out_if_that_is_wanted() -> None:
    for overlap, made in (("allow", ["s:200", "s:300"]), ("skip", ["s:200"])):
        history = set_up(overlap=overlap)
        history.lead("s", fired(200), fired(300))
        assert list(history.state.tasks) == made
    assert history.state.schedules["s"].skipped == 1
    history.assigned("s:200").work("s:200", Completed(epoch=1))
    history.lead("s", fired(400))
    assert list(history.state.tasks) == ["s:400"]


# --- the leader ------------------------------------------------------------------------------------


class Clockwork(Stage):
    """A stage whose leaders have declared schedules and know cron."""

    def __init__(self, *declared: Schedule, **limits: int) -> None:
        super().__init__(**limits)
        self.now_ms = NOW
        self.declared = {one.id: one for one in declared}

    def orchestrator(self, boot: str) -> Leader:
        settings = LeaderSettings(
            self.limits, lease_ms=LEASE_MS, resend_ms=100, settle_ms=50, stall_ms=10**9, schedules=self.declared
        )
        leader = Leader(SwarmState("s"), f"o-{boot}", boot, settings, CRON)
        self.leaders.append(leader)
        self.fold(leader)
        return leader


def slots(events: list[Event]) -> list[int]:
    return [event.data.slot_ms - NOW for event in events if isinstance(event.data, Fired)]


def ask(leader: Leader, wanted: Schedule, now_ms: int) -> None:
    assert leader.planner.check(wanted, now_ms)
    leader.propose(leader.planner.scheduled(wanted, now_ms), "asker")


def test_a_leader_fires_each_slot_once_in_time() -> None:
    stage = Clockwork()
    leader = stage.leading()
    ask(leader, schedule(every_ms=1_000, grace_ms=60_000), NOW)
    stage.decide(leader)
    assert [receipt.task for _, receipt in leader.answers] == ["s"]
    assert slots(stage.wait(999, leader)) == []
    assert slots(stage.wait(1, leader)) == [1_000]
    assert slots(stage.wait(10, leader)) == []
    assert slots(stage.wait(3_000, leader)) == [2_000, 3_000, 4_000]
    (status,) = leader.planner.status()
    assert (status.next_ms - NOW, status.last_ms - NOW, status.fired) == (5_000, 4_000, 4)
    assert set(leader.state.tasks) == {f"s:{NOW + n * 1_000}" for n in range(1, 5)}


def test_a_new_leader_fires_what_the_old_one_had_not_and_nothing_twice() -> None:
    stage = Clockwork()
    first = stage.leading()
    ask(first, schedule(every_ms=1_000, grace_ms=60_000), NOW)
    stage.decide(first)
    assert slots(stage.wait(1_000, first)) == [1_000]
    stage.now_ms += 1_000
    first.tick(stage.now_ms)
    late = first.decide()  # proposed, and stored only after another leader was elected
    second = stage.orchestrator("L2")
    stage.write(second, [second.campaign()])
    stage.write(first, late)
    assert slots(stage.wait(500, second)) == [2_000]
    assert first.leading is False
    assert [task for task in second.state.tasks if task.startswith("s:")] == [f"s:{NOW + n}" for n in (1_000, 2_000)]


def test_a_firing_that_could_not_be_stored_comes_again() -> None:
    stage = Clockwork()
    leader = stage.leading()
    ask(leader, schedule(every_ms=1_000, grace_ms=60_000), NOW)
    stage.decide(leader)
    stage.now_ms += 1_000
    leader.tick(stage.now_ms)
    leader.dropped(leader.decide(), Rejected("log_full", "the log is full"))
    assert slots(stage.wait(10, leader)) == [1_000]


def test_a_full_swarm_makes_no_tasks_until_there_is_room() -> None:
    stage = Clockwork(live_tasks_max=1)
    leader = stage.leading()
    ask(leader, schedule(every_ms=1_000, grace_ms=60_000), NOW)
    stage.decide(leader)
    assert slots(stage.wait(2_000, leader)) == [1_000]
    (task,) = leader.state.tasks.values()
    leader.cancel(task.id, "to make room")
    stage.decide(leader)
    assert slots(stage.wait(1_000, leader)) == [2_000]


@pytest.mark.parametrize(("missed", "count"), [("skip", 0), ("once", 1), ("all", CATCH_UP_MAX)])
def test_what_was_missed_while_nobody_led_is_made_up_for_by_policy(missed: str, count: int) -> None:
    """After two days without a leader there are 2,880 missed minutes; of all of them only so many are made up for."""
    stage = Clockwork()
    leader = stage.leading()
    ask(leader, schedule(every_ms=0, cron="* * * * *", missed=missed, grace_ms=0), NOW)
    stage.decide(leader)
    stage.now_ms += 48 * HOUR + 1_000
    second = stage.orchestrator("L2")
    stage.write(second, [second.campaign()])
    events: list[Event] = []
    for _ in range(CATCH_UP_MAX // 15):
        events += stage.wait(0, second)
    found = slots(events)
    assert len(found) == count
    assert found == sorted(set(found))
    assert found[-1:] == [48 * HOUR][: len(found)]
    assert slots(stage.wait(59_000, second)) == [48 * HOUR + 60_000]


def test_declared_schedules_are_those_of_the_settings() -> None:
    kept, gone = schedule(id="kept", declared=True), schedule(id="gone", declared=True)
    stage = Clockwork(kept, gone)
    first = stage.leading()
    ask(first, schedule(id="asked"), NOW)
    stage.decide(first)
    assert set(first.state.schedules) == {"kept", "gone", "asked"}
    changed = structs.replace(kept, every_ms=2 * HOUR)
    stage.declared = {"kept": changed}
    second = stage.leading("L2")
    assert set(second.state.schedules) == {"kept", "asked"}
    assert second.state.schedules["kept"].schedule == changed
    third = stage.orchestrator("L3")
    stage.write(third, [third.campaign()])
    assert not [event for event in stage.decide(third) if isinstance(event.data, Scheduled | Unscheduled)]
    for attempt in (lambda: third.planner.check(schedule(id="kept"), NOW), lambda: third.planner.require("kept")):
        with pytest.raises(Rejected) as caught:
            attempt()
        assert caught.value.code == "declared"
    with pytest.raises(Rejected, match="no schedule"):
        third.planner.require("gone")
    assert third.planner.check(schedule(id="asked"), NOW) is False


def test_a_removed_schedule_fires_no_more() -> None:
    stage = Clockwork()
    leader = stage.leading()
    ask(leader, schedule(every_ms=1_000, grace_ms=60_000), NOW)
    stage.decide(leader)
    leader.propose(Event("s", Unscheduled(term=1)), "asker")
    assert slots(stage.decide(leader) + stage.wait(5_000, leader)) == []
    assert [receipt.task for _, receipt in leader.answers] == ["s", "s"]
    assert leader.planner.status() == []


def test_a_member_runs_what_a_schedule_makes() -> None:
    stage = Clockwork()
    leader = stage.leading()
    stage.member("w1", (NODE, offer(NODE)), boot="b1")
    ask(leader, schedule(every_ms=1_000, grace_ms=60_000), NOW)
    stage.decide(leader)
    stage.wait(1_000, leader)
    assert leader.state.members[NODE].running == {f"s:{NOW + 1_000}": 1}


def test_a_slot_that_is_fired_and_not_folded_yet_is_still_the_next() -> None:
    """Or somebody who looks in that moment takes the schedule for one that has ended."""
    stage = Stage()
    leader = stage.leading()
    ask(leader, schedule(every_ms=1_000), stage.now_ms)
    stage.decide(leader)
    (armed,) = leader.planner.status()
    stage.now_ms = armed.next_ms
    leader.tick(stage.now_ms)
    (proposed,) = leader.planner.status()
    assert proposed.next_ms == armed.next_ms > 0
    stage.decide(leader)
    (folded,) = leader.planner.status()
    assert (folded.fired, folded.next_ms) == (1, armed.next_ms + 1_000)
