"""Second attempts beside late ones: of which, how many, where, and what becomes of the loser."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.errors import Rejected
from swarmd.core.events import Assigned, Completed, Event, MemberLost, Paused, Stepped, Suspended, Unpaused
from swarmd.core.keys import KeyPolicy
from swarmd.core.placement import TenantPolicy
from swarmd.core.policies import PlacementSettings
from tests.core.crew import Crew, hedges, member_of


def crew(*processes: str, share: float = 0.05, idempotent: bool = True, **settings: Any) -> Crew:
    """A leader that knows how long agent `a` usually takes."""
    made = Crew()
    for name, value in settings.items():
        setattr(made, name, value)
    made.placement = PlacementSettings(hedge_share=share)
    made.start()
    made.hire(*(processes or ("v", "w")), idempotent=idempotent)
    made.learn()
    return made


def late(made: Crew, task: str = "t", **fields: Any) -> list[Event]:
    """A task that takes five times as long as usual."""
    made.submit(task, **fields)
    return made.pass_time(500)


def other(made: Crew, task: str = "t") -> list[str]:
    return [attempt.member for attempt in made.attempts(task).values()]


def test_the_first_result_counts_and_the_loser_is_stopped() -> None:
    made = crew()
    assert hedges(late(made)) == [("t", 2, other(made)[1])]
    assert len(set(other(made))) == 2, "never on the same member"
    made.dispatched(made.leader)
    made.report("t", 2)
    assert made.leader.state.tombstones["t"].member == member_of(other_of(made, "t"))
    assert made.stops() == [("t", 1)]
    assert made.leader.state.tenants == {}
    late_report = Completed(epoch=1)
    made.member("v", ("t", late_report))
    made.member("w", ("t", late_report))
    assert made.leader.state.counters.completed == 31


def other_of(made: Crew, task: str) -> str:
    return made.leader.state.tombstones[task].member.split("/")[0]


def test_the_straggler_may_still_win() -> None:
    made = crew()
    late(made)
    made.dispatched(made.leader)
    made.report("t", 1)
    assert made.stops() == [("t", 2)]


def test_an_agent_that_is_not_declared_idempotent_is_never_hedged() -> None:
    made = crew(idempotent=False)
    assert hedges(late(made)) == []
    assert hedges(made.pass_time(5_000)) == []


def test_the_second_member_must_have_declared_it_too() -> None:
    made = Crew()
    made.start()
    made.hire("v")
    made.learn()
    made.hire("x", idempotent=False)
    made.submit("t")
    made.submit("u")
    assert {attempt.member for task in "tu" for attempt in made.attempts(task).values()} == {"v/b/0", "x/b/0"}
    assert hedges(made.pass_time(2_000)) == []


def test_a_task_is_hedged_once() -> None:
    made = crew("v", "w", "x", share=1.0)
    late(made)
    assert hedges(made.pass_time(5_000)) == []
    assert len(made.attempts("t")) == 2


def test_nothing_is_hedged_before_it_is_known_how_long_it_takes() -> None:
    made = Crew()
    made.placement = PlacementSettings(hedge_share=1.0)
    made.start()
    made.hire("v", "w")
    made.learn(runs=19)
    assert hedges(late(made)) == []


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5])
def test_hedges_are_no_more_than_their_share(share: float) -> None:
    """Even when every attempt is late, and leaders change in between."""
    made = crew("v", "w", "x", "y", share=share)
    starts = hedged = 0
    for n in range(60):
        if n % 20 == 19:
            made.start(f"L{n}")
            made.pass_time(100)
        name = f"t{n}"
        made.submit(name)
        events = made.pass_time(400)
        hedged += len(hedges(events))
        starts += 1
        made.report(name, max(made.attempts(name)))
    assert hedged <= share * (starts + 30)
    if share >= 0.1:
        assert hedged >= share * starts / 2


def test_what_was_running_at_a_change_of_leader_earns_no_second_hedge() -> None:
    made = crew(share=0.5)
    late(made)
    for n in range(5):
        made.start(f"L{n + 2}")
        assert hedges(made.pass_time(1_000)) == []
    assert len(made.attempts("t")) == 2


def test_the_successor_hedges_what_its_predecessor_could_not() -> None:
    """It has nothing saved up: what begins under it earns the hedge of what is late already."""
    made = crew("v", "w", "x", share=0.5)
    made.submit("t")
    made.start("L2")
    made.pass_time(500)
    assert len(made.attempts("t")) == 1
    for n in range(2):
        made.submit(f"u{n}")
        made.report(f"u{n}")
    made.pass_time(100)
    assert len(made.attempts("t")) == 2


def test_without_a_free_slot_it_waits_for_one() -> None:
    made = crew()
    made.submit("t")
    made.submit("u")
    assert hedges(made.pass_time(1_000)) == []
    made.report("u")
    assert list(made.attempts("t")) == [1, 2]


def test_when_the_member_of_either_attempt_is_lost_the_other_goes_on() -> None:
    for which in (0, 1):
        made = crew()
        late(made)
        lost, stays = other(made)[which], other(made)[1 - which]
        made.write(made.leader, [Event(lost, MemberLost(term=made.leader.state.term, member=lost))])
        assert other(made) == [stays]
        assert made.leader.state.tasks["t"].state == "assigned"
        made.report("t")
        assert made.leader.state.tombstones["t"].state == "completed"


def test_when_both_members_are_lost_the_task_waits_again() -> None:
    made = crew()
    late(made)
    for lost in other(made):
        made.write(made.leader, [Event(lost, MemberLost(term=made.leader.state.term, member=lost))])
    task = made.leader.state.tasks["t"]
    assert (task.state, len(task.victims)) == ("queued", 2)
    assert made.leader.state.tenants[""].slots == 0
    made.hire("z")
    made.decide(made.leader)
    assert other(made) == ["z/b/0"]


def decided(made: Crew, task: str = "t") -> list[Event]:
    """The leader's next events with a hedge among them, not stored yet."""
    made.submit(task)
    for _ in range(20):
        made.now_ms += 50
        for process in ("v", "w"):
            made.beat(made.leader, process, 0)
        made.leader.tick(made.now_ms)
        events = made.leader.decide()
        if hedges(events):
            return events
        made.write(made.leader, events)
    raise AssertionError("nothing was hedged")


def test_a_hedge_that_could_not_be_stored_is_decided_again() -> None:
    made = crew()
    events = decided(made)
    made.leader.dropped(events, Rejected("store_full", "no room"))
    assert made.leader.placing.overlays == {}
    assert hedges(made.pass_time(100)) == [("t", 2, other(made)[1])]


def test_a_hedge_whose_task_ended_meanwhile_leaves_nothing() -> None:
    made = crew()
    events = decided(made)
    made.report("t", 1)
    made.write(made.leader, events)
    assert made.leader.placing.overlays == {}
    assert all(not one.running for one in made.leader.state.members.values())
    assert made.leader.state.tenants == {}


def test_a_hedge_of_a_task_that_was_paused_meanwhile_does_not_start() -> None:
    made = crew()
    events = decided(made)
    made.leader.propose(Event("t", Paused(term=made.leader.state.term)))
    paused = made.leader.decide()
    made.write(made.leader, paused)
    made.write(made.leader, events)
    assert list(made.attempts("t")) == [1]
    made.member(other(made)[0].split("/")[0], ("t", Suspended(epoch=1, waits=[])))
    made.leader.propose(Event("t", Unpaused(term=made.leader.state.term)))
    made.decide(made.leader)
    assert list(made.attempts("t")) == [2]


def test_a_cancelled_task_stops_both() -> None:
    made = crew()
    late(made)
    made.dispatched(made.leader)
    made.leader.cancel("t", "enough")
    made.decide(made.leader)
    assert made.stops() == [("t", 1), ("t", 2)]
    assert made.leader.state.tenants == {}


def test_a_failure_of_one_is_no_failure_of_the_task() -> None:
    made = crew()
    late(made)
    made.report("t", 2, failed=True)
    assert list(made.attempts("t")) == [1]
    made.report("t", 1)
    assert made.leader.state.tombstones["t"].state == "completed"


def test_the_second_attempt_starts_from_what_the_first_has_recorded() -> None:
    made = crew()
    made.submit("t")
    made.member(other(made)[0].split("/")[0], ("t", Stepped(epoch=1, key="s", kind="step")))
    made.pass_time(500)
    assert list(made.attempts("t")[2].journal) == ["s"]


def test_a_key_and_a_bound_hold_for_second_attempts_too() -> None:
    made = crew(keys={"one": KeyPolicy(1)}, tenants={"acme": TenantPolicy(slots_max=1)})
    for fields in ({"concurrency_key": "one"}, {"concurrency_key": "two*"}, {"tenant": "acme"}):
        assert hedges(late(made, "t", **fields)) == []
        made.report("t")
        made.leader.state.tombstones.pop("t")
    assert made.leader.state.keys == {}
    assert not made.leader.placing.hedging._late


def test_where_the_key_has_room_both_count_and_both_slots_come_back() -> None:
    made = crew("v", "w", "x", keys={"k": KeyPolicy(2)})
    late(made, "t", concurrency_key="k")
    assert made.leader.state.keys == {"k": 2}
    made.submit("u", concurrency_key="k")
    made.pass_time(100)
    assert made.attempts("u") == {}
    made.report("t", 2, failed=True)
    assert made.leader.state.keys == {"k": 2}, "the slot of the failed one went to the next task"
    assert len(made.attempts("u")) == 1


def test_suspects_are_not_hedged() -> None:
    """What kills members shall not kill two at once."""
    made = crew("v", "w", "x", "y")
    made.submit("t")
    for _ in range(2):
        lost = other(made)[0]
        made.write(made.leader, [Event(lost, MemberLost(term=made.leader.state.term, member=lost))])
        made.decide(made.leader)
    assert len(made.leader.state.tasks["t"].victims) == 2
    assert hedges(made.pass_time(3_000)) == []


@given(st.lists(st.sampled_from(["late", "end", "lose", "drop", "leader", "quick"]), max_size=14), st.booleans())
@settings(max_examples=40)
def test_whatever_befalls_them_two_is_the_most_and_nothing_is_left(acts: list[str], first: bool) -> None:
    made = crew("v", "w", "x", share=1.0)
    names: list[str] = []
    for n, act in enumerate(acts):
        live = [name for name in names if made.attempts(name)]
        if act in ("late", "quick"):
            names.append(f"t{n}")
            made.submit(names[-1])
            made.pass_time(500 if act == "late" else 10, 250)
        elif act == "end" and live:
            made.report(live[0], min(made.attempts(live[0])) if first else 0)
        elif act == "lose" and live:
            lost = made.attempts(live[0])[max(made.attempts(live[0]))].member
            made.write(made.leader, [Event(lost, MemberLost(term=made.leader.state.term, member=lost))])
            made.hire(f"z{n}")
        elif act == "drop":
            made.leader.tick(made.now_ms)
            made.leader.dropped(made.leader.decide(), Rejected("store_full", "no room"))
        elif act == "leader":
            made.start(f"M{n}")
        for name in names:
            members = [attempt.member for attempt in made.attempts(name).values()]
            assert len(members) == len(set(members)) <= 2
    for _ in range(40):
        made.pass_time(50)
        for name in names:
            if made.attempts(name):
                made.report(name)
    state = made.leader.state
    assert not state.tasks
    assert not state.tenants
    assert not made.leader.placing.overlays
    assert not made.leader.placing.hedging._late


def test_every_hedge_says_that_it_is_one() -> None:
    made = crew()
    events = late(made)
    (fact,) = [event.data for event in events if isinstance(event.data, Assigned)]
    assert fact.epoch == 2
