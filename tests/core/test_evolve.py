"""Given a history, when an event is folded, then the state moves so (or not, for this reason)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec import Raw

from swarmd.core import effects as fx
from swarmd.core import snapshot
from swarmd.core.events import (
    AUTHORITY,
    FACTS,
    Assigned,
    Cancelled,
    Completed,
    Configured,
    Elected,
    Expired,
    Fact,
    Failed,
    Failure,
    MemberLeft,
    MemberLost,
    Redriven,
    Refused,
    Requeued,
    RetryPolicy,
    Returned,
    Settled,
    Spawned,
    Stepped,
    Suspended,
)
from swarmd.core.evolve import TRANSITIONS
from swarmd.core.state import EMPTY
from tests.core.history import CHILD, NODE, OTHER, History, offer, submission

if TYPE_CHECKING:
    from collections.abc import Callable

WHY = Failure("broken", "it broke")
ONCE = RetryPolicy(attempts_max=1)


def step(key: str = "k", epoch: int = 1, tokens: int = 0) -> Stepped:
    return Stepped(epoch=epoch, key=key, kind="step", result=Raw(b"1"), tokens=tokens)


def spawn(n: int = 1, epoch: int = 1) -> Spawned:
    return Spawned(epoch=epoch, key=f"spawn{n}", n=n, agent="a")


def only(effects: list[fx.Effect], kind: type[fx.Effect]) -> fx.Effect:
    (effect,) = [effect for effect in effects if isinstance(effect, kind)]
    return effect


# --- accepted ---


def test_every_fact_has_one_transition_and_an_authority() -> None:
    assert set(TRANSITIONS) == set(FACTS.values()) == set(AUTHORITY)


def test_a_submission_waits_for_a_slot() -> None:
    history = History().elected()
    effects = history.lead("t", submission(priority=3, reply="box", labels={"x": "y"}))
    task = history.state.tasks["t"]
    assert only(effects, fx.Queued) == fx.Queued(task, new=True)
    assert (task.state, task.epoch, task.priority, task.reply, task.labels) == ("queued", 0, 3, "box", {"x": "y"})
    assert task.submitted == (2, 0)


def test_an_assignment_starts_an_attempt_with_the_journal_so_far() -> None:
    history = History().running()
    history.work("t", step("a"), step("b"))
    history.work("t", Returned(epoch=1))
    effects = history.lead("t", Assigned(term=1, epoch=2, member=OTHER))
    started = only(effects, fx.Started)
    assert isinstance(started, fx.Started)
    assert started.attempt.journal == {"a": (6, 0), "b": (6, 1)}
    assert history.state.members[OTHER].running == {"t": 2}
    assert history.state.members[NODE].running == {}


def test_the_first_event_of_a_step_key_counts() -> None:
    history = History().running()
    history.work("t", step("a", tokens=5))
    history.work("t", step("a", tokens=7))
    task = history.state.tasks["t"]
    assert (task.spent_tokens, task.spent_steps) == (5, 1)
    assert history.ignored() == {"repeated_step": 1}


def test_completion_is_a_verdict_and_leaves_a_tombstone() -> None:
    history = History().running(reply="box")
    ended = only(history.work("t", Completed(epoch=1, output=Raw(b"42"))), fx.Ended)
    assert isinstance(ended, fx.Ended)
    assert (ended.state, bytes(ended.output), ended.place) == ("completed", b"42", (6, 0))
    assert history.state.tasks == {}
    assert history.state.tombstones["t"].verdict == (6, 0)
    assert [untold.task for untold in history.state.untold] == ["t"]
    assert history.state.members[NODE].running == {}


def test_a_failure_backs_off_then_dies_and_can_be_redriven() -> None:
    history = History().running(retry=RetryPolicy(attempts_max=2))
    assert isinstance(only(history.work("t", Failed(epoch=1, failure=WHY, retry_after_ms=70)), fx.Delayed), fx.Delayed)
    assert (history.state.tasks["t"].state, history.state.tasks["t"].retry_after_ms) == ("backoff", 70)
    history.lead("t", Requeued(term=1, epoch=1, reason="retry"))
    assert history.state.tasks["t"].state == "queued"
    history.assigned(epoch=2)
    history.work("t", step("kept", epoch=2))
    history.work("t", Failed(epoch=2, failure=WHY))
    assert list(history.state.dead) == ["t"]
    history.lead("t", Redriven(term=1))
    task = history.state.tasks["t"]
    assert (task.state, task.failures, list(task.journal)) == ("queued", 0, ["kept"])
    assert history.state.tombstones == {}


def test_a_redriven_task_has_no_deadline_left_to_miss() -> None:
    history = History().running(retry=ONCE, deadline_at_ms=5)
    history.work("t", Failed(epoch=1, failure=WHY))
    history.lead("t", Redriven(term=1))
    assert history.state.tasks["t"].deadline_at_ms == 0


def test_an_undelivered_attempt_waits_again_and_is_stopped_where_it_may_run() -> None:
    history = History().running()
    effects = history.lead("t", Requeued(term=1, epoch=1, reason="undelivered"))
    assert only(effects, fx.Stopped) == fx.Stopped("t", 1, history.state.members[NODE])
    assert history.state.tasks["t"].state == "queued"


def test_a_lost_member_gives_its_tasks_back_until_there_were_too_many_losses() -> None:
    history = History().running()
    limits = Configured(term=1, live_tasks_max=9, remembered_max=9, dead_max=9, losses_max=1)
    history.lead("s", limits)
    history.lead(NODE, MemberLost(term=1, member=NODE))
    assert (history.state.tasks["t"].state, history.state.tasks["t"].victims) == ("queued", (NODE,))
    history.assigned(epoch=2, member=OTHER)
    history.lead(OTHER, MemberLost(term=1, member=OTHER))
    assert history.state.dead["t"].victims == (NODE, OTHER)
    assert history.state.members == {}


def test_a_suspect_clears_who_ran_before_it_came_and_nobody_else() -> None:
    history = History().running()
    history.lead(NODE, MemberLost(term=1, member=NODE))
    for task, epoch in (("before", 1), ("t", 2), ("after", 1)):
        history.at_ms += 10
        history.lead(task, submission(), Assigned(term=1, epoch=epoch, member=OTHER))
    history.lead(OTHER, MemberLost(term=1, member=OTHER))
    victims = {task.id: task.victims for task in history.state.tasks.values()}
    assert victims == {"t": (NODE, OTHER), "before": (), "after": (OTHER,)}


def test_a_poisonous_task_does_not_bury_one_that_saw_a_member_lost_before() -> None:
    history = History().running().submitted("poison")
    history.lead(NODE, MemberLost(term=1, member=NODE))
    for epoch in (1, 2):  # both begin at once, in the only process there is
        history.at_ms += 10
        history.other(OTHER, offer(OTHER))
        history.assigned(epoch=epoch + 1, member=OTHER).assigned("poison", epoch, OTHER)
        history.lead(OTHER, MemberLost(term=1, member=OTHER))
    assert len(history.state.tasks["poison"].victims) == 2, "from here on no process gets both"


def test_a_lost_member_that_ran_a_parent_and_its_child_takes_both_along_when_it_was_one_loss_too_many() -> None:
    history = History().running()
    history.work("t", spawn(1))
    history.assigned("t~1")
    history.lead("s", Configured(term=1, live_tasks_max=9, remembered_max=9, dead_max=9, losses_max=0))
    effects = history.lead(NODE, MemberLost(term=1, member=NODE))
    ended = [(effect.task.id, effect.state) for effect in effects if isinstance(effect, fx.Ended)]
    assert ended == [("t", "dead"), ("t~1", "cancelled")]
    assert history.state.tasks == {}
    assert history.state.members.keys() == {OTHER}


def test_a_child_takes_everything_but_its_input_from_the_folded_parent() -> None:
    history = History().running(tenant="acme", priority=7, deadline_at_ms=99)
    history.work("t", spawn(1))
    child = history.state.tasks["t~1"]
    assert (child.parent, child.tenant, child.priority, child.deadline_at_ms) == ("t", "acme", 7, 99)


def test_the_last_child_wakes_a_suspended_parent() -> None:
    history = History().running()
    history.work("t", spawn(1), spawn(2))
    history.work("t", Suspended(epoch=1, waits=[["t~1", "t~2"]]))
    assert history.state.members[NODE].running == {}
    for name in ("t~1", "t~2"):
        assert history.state.tasks["t"].state == "suspended"
        history.assigned(name)
        history.work(name, Completed(epoch=1))
    assert history.state.tasks["t"].state == "queued"
    assert all(history.state.tasks["t"].children.values())


def test_a_child_named_twice_is_waited_for_once() -> None:
    history = History().running()
    history.work("t", spawn(1))
    history.work("t", Suspended(epoch=1, waits=[["t~1", "t~1"]]))
    history.assigned("t~1")
    history.work("t~1", Completed(epoch=1))
    assert history.state.tasks["t"].state == "queued"


def test_a_running_parent_is_told_of_its_child() -> None:
    history = History().running()
    history.work("t", spawn(1))
    history.assigned("t~1")
    told = only(history.work("t~1", Completed(epoch=1)), fx.ChildEnded)
    assert told == fx.ChildEnded(history.state.tasks["t"], "t~1", (8, 0))


def test_descendants_end_with_their_ancestor_however_deep() -> None:
    history = History().running("r")
    name = "r"
    for _ in range(60):
        history.work(name, spawn(1))
        history.work(name, Suspended(epoch=1, waits=[[f"{name}~1"]]))
        name = f"{name}~1"
        history.assigned(name)
    effects = history.lead("r", Cancelled(term=1))
    assert len([effect for effect in effects if isinstance(effect, fx.Ended)]) == 61
    assert history.state.tasks == {}
    assert history.state.members[NODE].running == {}


def test_a_redriven_parent_does_not_wait_for_children_that_ended_with_it() -> None:
    history = History().running(retry=ONCE)
    history.work("t", spawn(1))
    history.work("t", Failed(epoch=1, failure=WHY))
    history.lead("t", Redriven(term=1))
    history.assigned(epoch=2)
    history.work("t", Suspended(epoch=2, waits=[["t~1"]]))
    assert history.state.tasks["t"].state == "queued"


def test_a_hedged_attempt_ends_with_the_first_result() -> None:
    history = History().running().assigned(epoch=2, member=OTHER)
    assert set(history.state.tasks["t"].attempts) == {1, 2}
    effects = history.other("t", Completed(epoch=2))
    assert only(effects, fx.Stopped) == fx.Stopped("t", 1, history.state.members[NODE])


def test_a_draining_member_leaves_when_it_runs_nothing() -> None:
    history = History().running()
    history.work(NODE, offer(NODE, 0))
    history.work(NODE, MemberLeft(member=NODE))
    assert history.ignored() == {"still_running": 1}
    history.work("t", Returned(epoch=1))
    history.work(NODE, MemberLeft(member=NODE))
    assert NODE not in history.state.members


def test_a_child_swarm_keeps_its_attempts_under_a_new_delegate() -> None:
    history = History().elected()
    history.commit(("delegate", "kid", "d1"), (CHILD, offer(CHILD)))
    history.submitted().assigned(member=CHILD)
    moved = only(history.commit(("delegate", "kid", "d2"), (CHILD, offer(CHILD))), fx.Offered)
    assert moved == fx.Offered(history.state.members[CHILD], True)
    history.commit(("delegate", "kid", "d1"), ("t", Completed(epoch=1)))
    assert history.ignored() == {"wrong_member": 1}
    history.commit(("delegate", "kid", "d2"), ("t", Completed(epoch=1)))
    assert history.state.counters.completed == 1


def test_settled_discharges_what_was_told_and_never_goes_back() -> None:
    history = History().running(reply="box")
    history.work("t", Completed(epoch=1))
    history.lead("s", Settled(term=1, told=5, intake=4))
    assert len(history.state.untold) == 1
    history.lead("s", Settled(term=1, told=6, intake=2))
    assert (history.state.untold, history.state.intake_seq) == ([], 4)


def test_a_hedged_attempt_that_fails_leaves_the_other_running() -> None:
    history = History().running(retry=ONCE).assigned(epoch=2, member=OTHER)
    assert history.work("t", Failed(epoch=1, failure=WHY)) == []
    history.other("t", Suspended(epoch=2, waits=[]))
    assert history.state.tasks["t"].state == "queued"


def test_a_hedged_attempt_that_is_lost_leaves_the_other_running() -> None:
    history = History().running().assigned(epoch=2, member=OTHER)
    history.lead(NODE, MemberLost(term=1, member=NODE))
    assert (history.state.tasks["t"].state, list(history.state.tasks["t"].attempts)) == ("assigned", [2])


def test_only_so_many_dead_letters_and_tombstones_are_kept() -> None:
    history = History().joined()
    history.lead("s", Configured(term=1, live_tasks_max=9, remembered_max=4, dead_max=1, losses_max=9))
    for n in range(5):
        history.submitted(f"t{n}", retry=ONCE).assigned(f"t{n}")
        history.work(f"t{n}", Failed(epoch=1, failure=WHY))
    assert list(history.state.dead) == ["t4"]
    assert [*history.state.older_tombstones, *history.state.tombstones] == ["t2", "t3", "t4"]


# --- ignored ---

LEADER_FACTS: list[Fact] = [
    Configured(term=2, live_tasks_max=1, remembered_max=1, dead_max=1, losses_max=1),
    Settled(term=2, told=1, intake=1),
    submission(term=2),
    Refused(term=2, failure=WHY),
    Assigned(term=2, epoch=2, member=OTHER),
    Requeued(term=2, epoch=1, reason="undelivered"),
    Cancelled(term=2),
    Expired(term=2),
    Redriven(term=2),
    MemberLost(term=2, member=NODE),
]
MEMBER_REPORTS: list[Fact] = [
    step(),
    spawn(),
    Suspended(epoch=1, waits=[]),
    Returned(epoch=1),
    Completed(epoch=1),
    Failed(epoch=1, failure=WHY),
]


def stale(fact: Fact) -> Fact:
    copy = type(fact)(**{name: getattr(fact, name) for name in fact.__struct_fields__})
    copy.epoch = 9  # type: ignore[attr-defined]
    return copy


def assert_nothing_changed(history: History, act: Callable[[], list[fx.Effect]], why: str) -> None:
    """`act` writes one commit that the fold must turn away for `why`."""
    before = {name: repr(getattr(history.state, name)) for name in ("tasks", "members", "dead", "tombstones", "term")}
    counted = history.ignored().get(why, 0)
    assert act() == []
    assert history.ignored() == {**history.ignored(), why: counted + 1}
    assert {name: repr(getattr(history.state, name)) for name in before} == before


@pytest.mark.parametrize("fact", LEADER_FACTS, ids=lambda fact: type(fact).__name__)
def test_a_leader_of_another_term_changes_nothing(fact: Fact) -> None:
    history = History().running()
    assert_nothing_changed(history, lambda: history.lead("t", fact), "not_leader")


@pytest.mark.parametrize("fact", LEADER_FACTS, ids=lambda fact: type(fact).__name__)
def test_another_writer_of_the_same_term_is_not_the_leader(fact: Fact) -> None:
    history = History().running()
    fact = type(fact)(**{name: getattr(fact, name) for name in fact.__struct_fields__})
    fact.term = 1  # type: ignore[attr-defined]
    usurper = ("orchestrator", "o1", "L2")
    assert_nothing_changed(history, lambda: history.commit(usurper, ("t", fact)), "not_leader")


@pytest.mark.parametrize("fact", MEMBER_REPORTS, ids=lambda fact: type(fact).__name__)
def test_a_report_counts_only_from_its_member_and_epoch_before_the_verdict(fact: Fact) -> None:
    history = History().running()
    zombie = ("worker", "w1", "b0")
    assert_nothing_changed(history, lambda: history.other("t", fact), "wrong_member")
    assert_nothing_changed(history, lambda: history.commit(zombie, ("t", fact)), "wrong_member")
    assert_nothing_changed(history, lambda: history.work("t", stale(fact)), "stale_epoch")
    assert_nothing_changed(history, lambda: history.lead("t", fact), "wrong_role")
    history.work("t", Completed(epoch=1))
    assert_nothing_changed(history, lambda: history.work("t", fact), "after_verdict")


@pytest.mark.parametrize("fact", LEADER_FACTS, ids=lambda fact: type(fact).__name__)
def test_a_member_has_no_authority_over_leader_facts(fact: Fact) -> None:
    history = History().running()
    assert_nothing_changed(history, lambda: history.work("t", fact), "wrong_role")


@pytest.mark.parametrize(
    ("subject", "fact", "why"),
    [
        ("s", Elected(term=1), "old_term"),
        ("t", submission(), "repeated_id"),
        ("none", Assigned(term=1, epoch=1, member=NODE), "unknown_task"),
        ("t", Assigned(term=1, epoch=2, member="w9/b9/0"), "unknown_member"),
        ("t", Assigned(term=1, epoch=3, member=OTHER), "stale_epoch"),
        ("t", Assigned(term=1, epoch=2, member=NODE), "same_member"),
        ("t", Requeued(term=1, epoch=2, reason="undelivered"), "stale_epoch"),
        ("t", Requeued(term=1, epoch=1, reason="retry"), "stale_epoch"),
        ("none", Requeued(term=1, epoch=1, reason="retry"), "unknown_task"),
        ("none", Cancelled(term=1), "unknown_task"),
        ("none", Expired(term=1), "unknown_task"),
        ("t", Redriven(term=1), "not_dead"),
        ("w9", MemberLost(term=1, member="w9/b9/0"), "unknown_member"),
    ],
)
def test_what_the_leader_says_is_judged_by_the_state(subject: str, fact: Fact, why: str) -> None:
    history = History().running()
    assert_nothing_changed(history, lambda: history.lead(subject, fact), why)


@pytest.mark.parametrize("member", [OTHER, "w1/b0/0", "w1", CHILD, ""])
def test_nobody_joins_in_anothers_name(member: str) -> None:
    history = History().running()
    assert_nothing_changed(history, lambda: history.work(member, offer(member)), "wrong_member")
    assert_nothing_changed(history, lambda: history.work(OTHER, MemberLeft(member=OTHER)), "wrong_member")


def test_a_wait_for_a_stranger_is_refused() -> None:
    history = History().running()
    assert_nothing_changed(history, lambda: history.work("t", Suspended(epoch=1, waits=[["x"]])), "unknown_wait")


def test_a_task_waiting_for_its_back_off_cannot_be_assigned() -> None:
    history = History().running()
    history.work("t", Failed(epoch=1, failure=WHY))
    late = Assigned(term=1, epoch=2, member=OTHER)
    assert_nothing_changed(history, lambda: history.lead("t", late), "not_queued")


def test_a_child_never_takes_over_a_task_of_its_id() -> None:
    history = History().running().submitted("t~1").assigned("t~1")
    assert_nothing_changed(history, lambda: history.work("t", spawn(1)), "repeated_id")


def test_a_redriven_task_never_takes_over_a_live_one() -> None:
    history = History().joined()
    history.lead("s", Configured(term=1, live_tasks_max=9, remembered_max=2, dead_max=9, losses_max=9))
    history.submitted("p").assigned("p")
    history.work("p", spawn(1))
    history.lead("p~1", Assigned(term=1, epoch=1, member=NODE))
    history.work("p~1", Failed(epoch=1, failure=WHY, retryable=False))
    history.work("p", Completed(epoch=1))
    for filler in ("f1", "f2"):  # so that the tombstone of p is forgotten
        history.submitted(filler).assigned(filler)
        history.work(filler, Completed(epoch=1))
    history.submitted("p").assigned("p")
    history.work("p", spawn(1))
    assert "p~1" in history.state.tasks
    assert "p~1" in history.state.dead
    assert_nothing_changed(history, lambda: history.lead("p~1", Redriven(term=1)), "not_dead")


def test_events_of_a_commit_are_folded_one_by_one() -> None:
    """A refused event does not take its neighbours with it."""
    history = History().running()
    history.work("t", step("a"), stale(step("b")), step("c"))
    assert list(history.state.tasks["t"].attempts[1].journal) == ["a", "c"]


# --- what a million tasks share --------------------------------------------------------------------


def test_what_a_task_does_not_have_is_shared_and_refuses_entries() -> None:
    history = History().joined().submitted("t").submitted("u")
    one, other = history.state.tasks["t"], history.state.tasks["u"]
    for name in ("attempts", "journal", "children", "awaited", "sent", "labels", "requires"):
        assert getattr(one, name) is getattr(other, name) is EMPTY
    writes: list[Callable[[], object]] = [
        lambda: one.sent.__setitem__("k", None),
        lambda: one.sent.setdefault("k", None),
        lambda: one.sent.update({"k": None}),
        lambda: one.sent.__ior__({"k": None}),
    ]
    for write in writes:
        with pytest.raises(TypeError, match="shared by all"):
            write()
    assert (EMPTY, one.retry, one.budget) == ({}, other.retry, other.budget)
    assert one.retry is other.retry


def test_a_task_that_has_nothing_says_nothing_in_a_snapshot_and_shares_again_after_it() -> None:
    history = History().joined().submitted("t").submitted("u").assigned("t")
    history.work("t", Stepped(epoch=1, key="k", kind="step"))
    history.lead("t", Requeued(term=1, epoch=1, reason="undelivered"))
    saved = snapshot.encode(history.state)
    again = snapshot.decode(saved)
    assert again == history.state
    assert snapshot.encode(again) == saved
    assert b'"attempts"' not in saved
    assert again.tasks["u"].attempts is again.tasks["t"].attempts is EMPTY
    assert again.tasks["u"].retry is history.state.tasks["u"].retry
    assert again.tasks["t"].journal == {"k": (7, 0)}
