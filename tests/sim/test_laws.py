"""The laws of the log as stories: build, break, advance, expect. `laws.py` says which test is for which law."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import Raw

from swarmd.core import commits, ids, snapshot
from swarmd.core.errors import Conflict, Rejected
from swarmd.core.events import (
    Assigned,
    Budget,
    Completed,
    Event,
    Failed,
    Failure,
    Requeued,
    RetryPolicy,
    Returned,
    Spawned,
    Stepped,
    Suspended,
)
from swarmd.core.wire import ChildDone, Outcome, Receipt, Rejoin, Report, Stop
from tests.core.history import offer
from tests.sim.laws import LAWS
from tests.sim.stage import LEASE_MS, Stage, wish

if TYPE_CHECKING:
    from swarmd.core.leader import Leader

NODE = ids.node_member("w", "b", 0)
OTHER = ids.node_member("v", "b", 0)
KID = ids.swarm_member("kid")
WHY = Failure("broken", "it broke")


def joined(stage: Stage, name: str = "w", member: str = NODE) -> None:
    stage.member(name, (member, offer(member)))


def accepted(stage: Stage, leader: Leader, task: str = "t", **fields: Any) -> None:
    """A client's submission, accepted and, if there is a slot, assigned."""
    assert leader.submit(wish(**fields), task, stage.now_ms, False, "client") is None
    stage.decide(leader)


def running(stage: Stage, **fields: Any) -> Leader:
    """A leader whose node runs task `t` at epoch 1."""
    leader = stage.leading()
    joined(stage)
    accepted(stage, leader, **fields)
    assert stage.started(leader) == [("t", 1, NODE)]
    return leader


def code(answer: Receipt | Outcome) -> str:
    """The code of an error that was answered."""
    assert isinstance(answer.error, Failure)
    return answer.error.code


# --- 1 stored is not accepted ----------------------------------------------------------------------


def test_a_client_is_told_only_what_the_fold_accepted() -> None:
    stage = Stage()
    leader = stage.leading()
    leader.submit(wish(), "t", stage.now_ms, False, "client")
    events = leader.decide()
    stage.history.commit(("orchestrator", leader.writer, "L1"), *((e.subject, e.data) for e in events))
    assert leader.answers == [], "stored, but not folded"
    stage.all_fold()
    assert leader.answers == [("client", Receipt("t"))]


def test_an_assignment_that_the_fold_refuses_starts_nothing() -> None:
    stage = Stage()
    old = stage.leading("L1")
    joined(stage)
    old.submit(wish(), "t", stage.now_ms, False, "client")
    late = old.decide()
    new = stage.orchestrator("L2")
    stage.write(new, [new.campaign()])
    stage.write(old, late)
    assert not old.leading
    assert stage.started(old) == stage.started(new) == []
    assert [code(answer) for _, answer in old.answers] == ["not_leader"]


def test_the_overlay_of_a_void_commit_is_dropped_and_decided_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "HORIZON", 50)
    stage = Stage()
    leader = stage.leading()
    joined(stage)
    accepted(stage, leader, "first")
    leader.submit(wish(), "t", stage.now_ms, False, "client")
    accepted_before = len(leader.answers)
    stage.write(leader, leader.decide(), seen=-100)
    assert code(leader.answers[accepted_before][1]) == "not_leader"
    leader.submit(wish(), "t", stage.now_ms, False, "client")
    stage.decide(leader)
    assert leader.state.tasks["t"].state == "assigned"


# --- 2 commits -------------------------------------------------------------------------------------


def test_a_commit_repeated_long_after_changes_nothing() -> None:
    stage = Stage()
    leader = running(stage)
    first = stage.history.records[-1]
    stage.member("w", ("t", Completed(epoch=1)))
    before = snapshot.encode(leader.state)
    effects = stage.history.store(first.subject, first.message_id, first.payload, first.seen)
    assert effects == []
    stage.all_fold()
    assert leader.state.counters.ignored == {"repeated": 1}
    assert len(snapshot.encode(leader.state)) >= len(before)


def test_a_repeated_commit_of_the_leader_does_not_end_a_later_placement() -> None:
    stage = Stage()
    leader = stage.leading()
    joined(stage)
    leader.submit(wish(), "t", stage.now_ms, False, "client")
    submitted, assigned = leader.decide()
    stage.write(leader, [assigned], n=4)
    early = stage.history.records[-1]
    stage.write(leader, [submitted], n=3)
    in_flight = leader.decide()
    assert [type(event.data) for event in in_flight] == [Assigned], "the first one came before its submission"
    stage.history.store(early.subject, early.message_id, early.payload, early.seen)
    stage.all_fold()
    assert leader.decide() == []
    assert sum(leader.placing.overlays.values()) == 1
    stage.write(leader, in_flight, n=5)
    assert stage.started(leader) == [("t", 1, NODE)]
    assert leader.placing.overlays == {}


def test_a_commit_beyond_the_horizon_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "HORIZON", 3)
    stage = Stage()
    leader = running(stage)
    stage.history.commit(("worker", "w", "b"), ("t", Completed(epoch=1)), seen=0)
    stage.all_fold()
    assert leader.state.tasks["t"].state == "assigned"
    assert leader.state.counters.ignored == {"beyond_horizon": 1}


# --- 3 authority -----------------------------------------------------------------------------------


def test_a_zombie_of_an_earlier_boot_is_not_believed() -> None:
    stage = Stage()
    leader = running(stage)
    stage.member("w", ("t", Completed(epoch=1)), boot="a")
    assert leader.state.counters.ignored == {"wrong_member": 1}
    stage.member("w", ("t", Completed(epoch=1)))
    assert leader.state.counters.completed == 1


def test_one_process_cannot_report_for_anothers_node() -> None:
    stage = Stage()
    leader = running(stage)
    joined(stage, "v", OTHER)
    stage.member("v", ("t", Completed(epoch=1)))
    assert leader.state.counters.ignored == {"wrong_member": 1}


# --- 4 identity ------------------------------------------------------------------------------------


def test_a_finished_id_is_remembered_and_an_older_one_than_all_remembered_is_refused() -> None:
    stage = Stage(remembered_max=4)
    leader = stage.leading()
    joined(stage)
    names = [ids.uuid7(stage.now_ms - 100 + n, n) for n in range(5)]
    for name in names[:-1]:
        accepted(stage, leader, name)
        stage.member("w", (name, Completed(epoch=1)))
    assert leader.submit(wish(), names[3], stage.now_ms, False, "client") == Receipt(names[3], known=True)
    with pytest.raises(Conflict) as taken:
        leader.submit(wish(value=b"2"), names[3], stage.now_ms, False, "client")
    with pytest.raises(Rejected) as old:
        leader.submit(wish(), names[0], stage.now_ms, False, "client")
    assert (taken.value.code, old.value.code) == ("id_taken", "id_too_old")
    accepted(stage, leader, names[4])
    assert names[4] in leader.state.tasks


def test_an_id_from_the_future_cannot_bar_all_others() -> None:
    stage = Stage(remembered_max=2)
    leader = stage.leading()
    with pytest.raises(Rejected) as refusal:
        leader.submit(wish(), "ffffffff-ffff-7fff-bfff-ffffffffffff", stage.now_ms, False, "client")
    assert refusal.value.code == "bad_id"


def test_a_raw_submission_read_again_after_a_change_of_leaders_is_one_task() -> None:
    stage = Stage()
    first = stage.leading("L1")
    first.intake(1, ids.intake_id("i", 1), (wish(), ""), stage.now_ms)
    stage.decide(first)
    second = stage.leading("L2")
    assert second.intake_read == 0, "the first leader died before it said how far it was"
    second.intake(1, ids.intake_id("i", 1), (wish(), ""), stage.now_ms)
    second.intake(2, ids.intake_id("i", 2), (Rejected("bad_json", "not JSON"), ""), stage.now_ms)
    stage.decide(second)
    stage.wait(60, second)
    assert list(second.state.tasks) == ["raw-i-1"]
    assert (second.state.counters.submitted, second.state.counters.refused, second.state.intake_seq) == (1, 1, 2)


def test_a_raw_submission_whose_event_the_fold_refused_is_not_settled_as_done() -> None:
    stage = Stage()
    leader = stage.leading("L1")
    leader.intake(1, "raw", (wish(), ""), stage.now_ms)
    late = leader.decide()
    rival = stage.leading("L2")
    stage.write(leader, [leader.campaign()])
    stage.write(leader, late)
    stage.wait(60, leader)
    assert (leader.leading, rival.leading) == (True, False)
    assert leader.state.intake_seq == 0
    leader.intake(1, "raw", (wish(), ""), stage.now_ms)
    stage.decide(leader)
    stage.wait(60, leader)
    assert (leader.state.intake_seq, list(leader.state.tasks)) == (1, ["raw"])


def test_progress_in_the_intake_survives_a_settled_event_that_was_not_stored() -> None:
    stage = Stage()
    leader = stage.leading()
    leader.intake(1, "raw", (wish(), ""), stage.now_ms)
    stage.decide(leader)
    stage.now_ms += 60
    leader.tick(stage.now_ms)
    leader.dropped(leader.decide(), Rejected("log_full", "the log is full"))
    stage.wait(60, leader)
    assert leader.state.intake_seq == 1


# --- 5 obligations ---------------------------------------------------------------------------------


def test_a_new_leader_owes_every_outcome_that_was_not_told() -> None:
    stage = Stage()
    first = running(stage, reply="box")
    stage.member("w", ("t", Completed(epoch=1)))
    assert list(first.outcomes) == [("box", False)]
    second = stage.leading("L2")
    assert [(owed.task, owed.reply) for owed in second.owed] == [("t", "box")]
    second.owed.clear()  # the shell has told it
    stage.wait(60, second)
    assert second.state.untold == []
    assert stage.leading("L3").owed == []


def test_a_new_leader_tells_running_parents_of_their_children() -> None:
    stage = Stage()
    first = running(stage)
    stage.member("w", ("t", Spawned(epoch=1, key="s", n=1, agent="a")))
    stage.decide(first)
    stage.member("w", ("t~1", Completed(epoch=1)))
    second = stage.leading("L2")
    told = [item for _, item in stage.dispatched(second) if isinstance(item, ChildDone)]
    assert told == [ChildDone("t", "t~1", second.state.tasks["t"].children["t~1"])]  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["lost", "retry", "deadline"])
def test_what_time_made_necessary_comes_again_when_it_could_not_be_stored(what: str) -> None:
    stage = Stage()
    leader = running(stage, timeout_ms=500 if what == "deadline" else 0, retry=RetryPolicy(backoff_ms=10))
    if what == "retry":
        stage.member("w", ("t", Failed(epoch=1, failure=WHY)))
    stage.now_ms += LEASE_MS + 1 if what == "lost" else 501
    leader.tick(stage.now_ms)
    unstored = leader.decide()
    assert unstored
    leader.dropped(unstored, Rejected("log_full", "the log is full"))
    stage.wait(1, leader)
    expected = {"lost": "queued", "retry": "assigned", "deadline": None}[what]
    task = leader.state.tasks.get("t")
    assert (task.state if task else None) == expected


# --- 6 dispatch ------------------------------------------------------------------------------------


def test_an_undelivered_attempt_is_never_sent_again_under_its_epoch() -> None:
    stage = Stage()
    leader = running(stage)
    stage.beat(leader, "w", ack=1, listed=[])
    (requeued, assigned) = stage.wait(1, leader)
    assert requeued.data == Requeued(term=1, epoch=1, reason="undelivered")
    assert isinstance(assigned.data, Assigned)
    assert assigned.data.epoch == 2


def test_what_is_on_its_way_is_not_missing() -> None:
    stage = Stage()
    leader = running(stage)
    stage.beat(leader, "w", ack=0, listed=[])
    assert stage.wait(1, leader) == []


def test_a_list_that_is_older_than_what_is_known_is_not_believed() -> None:
    stage = Stage()
    leader = running(stage)
    stage.beat(leader, "w", ack=1, listed=[("t", 1)])
    stage.wait(1, leader)
    stage.beat(leader, "w", ack=0, listed=[])
    assert stage.wait(1, leader) == []


def test_a_list_lost_on_its_way_is_asked_for_again() -> None:
    stage = Stage()
    leader = running(stage)
    stage.beat(leader, "w", ack=1, running={NODE: 1})
    assert [item for _, item in stage.dispatched(leader)] == [Report()]
    stage.beat(leader, "w", ack=2, listed=[("t", 1), ("ghost", 4)])
    stage.wait(1, leader)
    assert [item for _, item in stage.dispatched(leader)] == [Stop("ghost", 4)]


def test_a_process_that_counts_otherwise_for_long_is_asked_for_a_list() -> None:
    stage = Stage()
    leader = running(stage)
    stage.beat(leader, "w", ack=1, listed=[("t", 1)])
    stage.wait(1, leader)
    for _ in range(40):
        stage.beat(leader, "w", ack=1, running={NODE: 2})
    assert Report() in [item for _, item in stage.dispatched(leader)]


# --- 7 epochs --------------------------------------------------------------------------------------


def test_a_new_attempt_starts_from_what_was_accepted_of_its_predecessor() -> None:
    stage = Stage()
    leader = running(stage)
    stage.member("w", ("t", Stepped(epoch=1, key="a", kind="step")))
    joined(stage, "v", OTHER)
    stage.wait(LEASE_MS // 2, leader)
    stage.beat(leader, "v", ack=0)
    stage.wait(LEASE_MS // 2 + 1, leader)
    stage.member("w", ("t", Stepped(epoch=1, key="b", kind="step")))
    (attempt,) = leader.state.tasks["t"].attempts.values()
    assert (attempt.epoch, attempt.member, list(attempt.journal)) == (2, OTHER, ["a"])


# --- 8 waits ---------------------------------------------------------------------------------------


def test_suspended_with_an_already_resolved_wait_goes_straight_to_the_queue() -> None:
    stage = Stage()
    leader = running(stage)
    stage.member("w", ("t", Spawned(epoch=1, key="s", n=1, agent="a")))
    stage.decide(leader)
    stage.member("w", ("t~1", Completed(epoch=1)))
    stage.member("w", ("t", Suspended(epoch=1, waits=[["t~1"]])))
    assert leader.state.tasks["t"].state == "queued"
    stage.decide(leader)
    assert leader.state.tasks["t"].epoch == 2


def test_cancelling_a_parent_reaches_its_running_children() -> None:
    stage = Stage()
    leader = running(stage)
    stage.member("w", ("t", Spawned(epoch=1, key="s", n=1, agent="a")))
    stage.decide(leader)
    stage.dispatched(leader)
    leader.cancel("t", "no longer wanted")
    stage.decide(leader)
    assert leader.state.tasks == {}
    assert [item for _, item in stage.dispatched(leader)] == [Stop("t", 1), Stop("t~1", 1)]


# --- 9 time ----------------------------------------------------------------------------------------


def test_a_deadline_passes_when_the_leader_says_so_and_not_by_anyones_clock() -> None:
    stage = Stage()
    leader = running(stage, timeout_ms=300)
    standby = stage.orchestrator("L2")
    stage.now_ms += 10_000
    standby.tick(stage.now_ms)
    assert standby.state.tasks["t"].state == "assigned"
    leader.tick(stage.now_ms)
    stage.decide(leader)
    assert standby.state.tasks == {}
    assert standby.state.counters.expired == 1


def test_a_redriven_task_is_not_expired_by_its_old_timer() -> None:
    stage = Stage()
    leader = running(stage, timeout_ms=300, retry=RetryPolicy(attempts_max=1))
    stage.member("w", ("t", Failed(epoch=1, failure=WHY)))
    leader.redrive("t")
    stage.decide(leader)
    stage.beat(leader, "w", ack=1)
    stage.wait(400, leader)
    assert leader.state.tasks["t"].state == "assigned"


# --- 10 leadership ---------------------------------------------------------------------------------


def test_of_two_candidates_the_first_stored_wins_the_term() -> None:
    stage = Stage()
    one, two = stage.orchestrator("L1"), stage.orchestrator("L2")
    first, second = one.campaign(), two.campaign()
    stage.write(one, [first])
    stage.write(two, [second])
    assert (one.leading, two.leading, one.state.term) == (True, False, 1)
    assert two.decide() == []


def test_a_new_leader_waits_a_full_lease_before_it_declares_anyone_lost() -> None:
    stage = Stage()
    running(stage)
    stage.now_ms += 100 * LEASE_MS
    second = stage.leading("L2")
    assert stage.wait(LEASE_MS, second) == []
    assert [type(event.data).__name__ for event in stage.wait(1, second)] == ["MemberLost"]


def test_after_the_broker_came_back_everyone_has_a_full_lease() -> None:
    stage = Stage()
    leader = running(stage)
    stage.now_ms += 100 * LEASE_MS
    leader.links.renew_all(stage.now_ms)
    assert stage.wait(LEASE_MS, leader) == []


def test_a_process_that_was_declared_lost_is_asked_to_join_again_and_what_it_lists_is_stopped() -> None:
    stage = Stage()
    leader = running(stage)
    stage.wait(LEASE_MS + 1, leader)
    assert leader.state.members == {}
    stage.beat(leader, "w", ack=1, running={NODE: 1})
    assert Rejoin() in [item for _, item in stage.dispatched(leader)]
    joined(stage)
    stage.decide(leader)
    stage.dispatched(leader)
    stage.beat(leader, "w", ack=9, listed=[("t", 1)])
    stage.wait(1, leader)
    assert Stop("t", 1) in [item for _, item in stage.dispatched(leader)]


def test_an_overlay_of_an_earlier_office_does_not_end_a_later_one() -> None:
    stage = Stage()
    leader = stage.leading("L1")
    leader.submit(wish(), "t", stage.now_ms, False, "client")
    stage.decide(leader)
    joined(stage)
    late = leader.decide()
    rival = stage.orchestrator("L2")
    stage.write(rival, [rival.campaign()])
    stage.write(leader, [leader.campaign()])
    in_flight = leader.decide()
    assert Assigned in [type(event.data) for event in in_flight]
    stage.write(leader, late)
    assert leader.decide() == [], "the placement of this office is still on its way"
    stage.write(leader, in_flight)
    assert stage.started(leader) == [("t", 1, NODE)]


# --- 12 rewind -------------------------------------------------------------------------------------


def test_the_fold_remembers_what_is_stored_at_its_sequence_even_if_that_is_garbage() -> None:
    stage = Stage()
    leader = stage.leading()
    stage.history.store("swarm.s.log.worker.w", "scribble", b"\xff")
    stage.all_fold()
    assert (leader.state.seq, leader.state.message_id) == (len(stage.history.records), "scribble")
    assert leader.state.counters.garbage == 1


# --- 13 hive ---------------------------------------------------------------------------------------


def hive(stage: Stage) -> Leader:
    """A leader whose child swarm runs task `t` at epoch 1 through delegate `d1`."""
    leader = stage.leading()
    stage.member("kid", (KID, offer(KID)), role="delegate", boot="d1")
    accepted(stage, leader)
    assert stage.started(leader) == [("t", 1, KID)]
    return leader


def test_a_restarted_delegate_is_handed_the_same_epochs() -> None:
    stage = Stage()
    leader = hive(stage)
    stage.member("kid", (KID, offer(KID)), role="delegate", boot="d2")
    assert stage.started(leader) == [("t", 1, KID)]
    stage.member("kid", ("t", Completed(epoch=1)), role="delegate", boot="d2")
    assert leader.state.counters.completed == 1


def test_a_child_that_is_cut_off_keeps_its_work() -> None:
    stage = Stage()
    leader = hive(stage)
    assert stage.wait(50 * LEASE_MS, leader) == []
    assert leader.state.tasks["t"].state == "assigned"
    assert not leader.links.reachable(leader.state.members[KID])


def test_an_old_delegate_neither_takes_the_child_back_nor_stops_its_work() -> None:
    stage = Stage()
    leader = hive(stage)
    stage.member("kid", (KID, offer(KID)), role="delegate", boot="d2")
    stage.dispatched(leader)
    stage.beat(leader, "kid", ack=2, listed=[("t", 1)], role="delegate", boot="d1")
    stage.beat(leader, "kid", ack=0, role="delegate", boot="d2")
    stage.wait(1, leader)
    to_old = [item for where, item in stage.dispatched(leader) if where == "kid/d1"]
    assert not [item for item in to_old if isinstance(item, Stop | Rejoin)]
    stage.now_ms += LEASE_MS + 1
    leader.tick(stage.now_ms)
    stage.beat(leader, "kid", ack=2, role="delegate", boot="d1")
    assert ("kid/d1", Rejoin()) in stage.dispatched(leader), "the new one is gone: the old one may speak again"


def test_a_delegated_task_is_returned_by_its_epoch() -> None:
    stage = Stage()
    leader = hive(stage)
    assert ids.delegated_id("s", "t", 1) == "s:t:1"
    stage.member("kid", ("t", Returned(epoch=1)), role="delegate", boot="d1")
    stage.member("kid", ("t", Returned(epoch=1)), role="delegate", boot="d1")
    assert leader.state.counters.ignored == {"stale_epoch": 1}
    stage.decide(leader)
    assert stage.started(leader) == [("t", 2, KID)]


# --- 14 clients ------------------------------------------------------------------------------------


def test_the_same_id_asked_twice_is_one_task_and_both_are_answered() -> None:
    stage = Stage()
    leader = stage.leading()
    assert leader.submit(wish(), "t", stage.now_ms, False, "first") is None
    assert leader.submit(wish(), "t", stage.now_ms, False, "second") is None
    stage.decide(leader)
    assert leader.answers == [("first", Receipt("t")), ("second", Receipt("t"))]
    assert leader.submit(wish(), "t", stage.now_ms, False, "third") == Receipt("t", known=True)
    assert leader.state.counters.submitted == 1


def test_a_leader_that_resigns_tells_everyone_to_ask_again() -> None:
    stage = Stage()
    leader = running(stage)
    leader.answers.clear()
    assert leader.await_outcome("t", "waiting") is None
    leader.submit(wish(), "u", stage.now_ms, False, "submitting")
    stage.leading("L2")
    told = dict(leader.answers)
    assert isinstance(told["waiting"], Outcome)
    assert not told["waiting"].final
    assert code(told["submitting"]) == "not_leader"


def test_a_result_is_answered_while_it_runs_when_it_ends_and_after() -> None:
    stage = Stage()
    leader = running(stage)
    leader.answers.clear()
    assert leader.await_outcome("t", "early") is None
    assert leader.await_outcome("t", "hurried") is None
    assert leader.give_up("t", "hurried") == Outcome("t", "assigned", seq=leader.state.seq, final=False)
    stage.member("w", ("t", Completed(epoch=1, output=Raw(b"7"))))
    ((ask, outcome),) = leader.answers
    assert ask == "early"
    assert isinstance(outcome, Outcome)
    assert isinstance(outcome.output, Raw)
    assert bytes(outcome.output) == b"7"
    buried = leader.await_outcome("t", "late")
    assert buried is not None
    assert buried.verdict == (outcome.seq, 0)


def test_a_full_swarm_says_so_and_running_work_goes_on() -> None:
    stage = Stage(live_tasks_max=1)
    leader = running(stage)
    with pytest.raises(Rejected, match="limit is 1"):
        leader.submit(wish(), "u", stage.now_ms, False, "client")
    leader.refusing = "the log is full"
    with pytest.raises(Rejected, match="log is full"):
        leader.submit(wish(), "u", stage.now_ms, False, "client")
    stage.member("w", ("t", Completed(epoch=1)))
    assert leader.state.counters.completed == 1


# --- 15 budgets ------------------------------------------------------------------------------------


def test_each_attempt_is_granted_what_is_left() -> None:
    stage = Stage()
    leader = running(stage, budget=Budget(tokens=100, steps=2))
    granted = [event for event in events_of(stage) if isinstance(event.data, Assigned)]
    stage.member("w", ("t", Stepped(epoch=1, key="a", kind="model", tokens=130)))
    stage.member("w", ("t", Returned(epoch=1)))
    granted += [event for event in stage.decide(leader) if isinstance(event.data, Assigned)]
    assert [e.data.grant for e in granted if isinstance(e.data, Assigned)] == [
        Budget(tokens=25, steps=1),
        Budget(tokens=0, steps=1),
    ]


def events_of(stage: Stage) -> list[Event]:
    decoded = [stage.history.codec.decode(record) for record in stage.history.records]
    return [event for commit in decoded for event in getattr(commit, "events", ()) if isinstance(event, Event)]


def test_a_negative_bill_gives_nothing_back() -> None:
    stage = Stage()
    leader = running(stage, budget=Budget(tokens=10))
    stage.member("w", ("t", Stepped(epoch=1, key="a", kind="model", tokens=-1_000)))
    assert leader.state.tasks["t"].spent_tokens == 0


# --- the table -------------------------------------------------------------------------------------


ANY_LOG = "tests.core.test_fold_properties::test_what_holds_of_any_log"


def test_every_law_is_in_the_table_and_every_test_it_names_exists() -> None:
    assert sorted(LAWS) == list(range(1, 16))
    named = [name for law in LAWS.values() for name in law.tests]
    single = [name for name in named if name != ANY_LOG]
    assert len(single) == len(set(single)), "a test stands for one law, unless it draws a log and asks all of it"
    for name in named:
        module, _, function = name.partition("::")
        assert callable(getattr(importlib.import_module(module), function, None)), f"no such test: {name}"


def test_every_scenario_here_stands_for_a_law() -> None:
    named = {name.partition("::")[2] for law in LAWS.values() for name in law.tests}
    here = {name for name in globals() if name.startswith("test_") and not name.startswith("test_every_")}
    assert here <= named


def test_every_fault_that_a_law_names_is_simulated() -> None:
    from tests.sim.world import Faults

    faults = {name for law in LAWS.values() for name in law.faults}
    assert faults <= set(Faults.__struct_fields__)
