"""The leader machine where no law is at stake: what it decides in which order."""

from __future__ import annotations

from swarmd.core.events import Budget, Spawned, Stepped
from swarmd.core.ids import child_id
from swarmd.core.outcomes import outcome_at
from swarmd.core.wire import Outcome, Receipt, Report
from tests.core.history import offer
from tests.sim.stage import LEASE_MS, Stage, wish


def test_a_cancellation_does_not_overtake_the_submission_it_is_of() -> None:
    """Both wait for the writer at once; the fold would not know the task if the cancellation stood first."""
    stage = Stage()
    leader = stage.leading()
    stage.member("w", ("w/b/0", offer("w/b/0")))
    assert leader.submit(wish(), "t", stage.now_ms, False, "client") is None
    leader.cancel("t", "changed my mind")
    stage.decide(leader)
    assert leader.state.tasks == {}
    assert leader.state.tombstones["t"].state == "cancelled"
    assert stage.started(leader) == []


def test_a_verdict_read_back_is_the_one_that_was_told() -> None:
    """A lost member ends its task; the task's child ends with it, at the same place in the log."""
    stage = Stage(losses_max=0)
    leader = stage.leading()
    stage.member("w", ("w/b/0", offer("w/b/0")))
    assert leader.submit(wish(reply="told"), "t", stage.now_ms, False, "client") is None
    stage.decide(leader)
    stage.member("w", ("t", Spawned(epoch=1, key="spawn#1", n=1, agent="nobody")))
    child = child_id("t", 1)
    assert leader.await_outcome(child, "asker") is None
    stage.wait(10 * LEASE_MS, leader)
    told = [outcome for _, outcome in leader.answers if isinstance(outcome, Outcome)]
    told += leader.outcomes["told", False]
    for outcome in told:
        stone = leader.state.tombstones[outcome.task]
        commit = stage.history.codec.decode(stage.history.records[stone.verdict[0] - 1])
        dead = leader.state.dead.get(outcome.task)
        read = outcome_at(commit, outcome.task, stone.verdict, stone.state, dead.victims if dead else ())
        assert (read.task, read.state, read.error) == (outcome.task, outcome.state, outcome.error)
    assert {outcome.task: outcome.state for outcome in told} == {"t": "dead", child: "cancelled"}


def test_cancel_and_redrive_are_answered_by_the_fold() -> None:
    """Stored is not accepted: who asked hears of it when it is done, or that it came too late."""
    stage = Stage()
    leader = stage.leading()
    stage.member("w", ("w/b/0", offer("w/b/0")))
    assert leader.submit(wish(), "t", stage.now_ms, False, None) is None
    stage.decide(leader)
    leader.cancel("t", "enough", "asker")
    assert leader.answers == []
    stage.decide(leader)
    assert leader.answers == [("asker", Receipt("t"))]


def test_a_family_has_one_budget() -> None:
    """What a child spends is spent by its parent, and both reserve from what the parent has left."""
    stage = Stage()
    leader = stage.leading()
    stage.member("w", ("w/b/0", offer("w/b/0", capacity=4)))
    assert leader.submit(wish(budget=Budget(tokens=100, steps=9)), "t", stage.now_ms, False, None) is None
    stage.decide(leader)
    stage.member("w", ("t", Stepped(epoch=1, key="m#1", kind="model", tokens=60)))
    stage.member("w", ("t", Spawned(epoch=1, key="spawn#1", n=1, agent="a")))
    stage.decide(leader)
    child = leader.state.tasks[child_id("t", 1)]
    account = leader.state.accounts["task:t"]
    assert account.spent == [60, 0, 2, 0]
    held = child.attempts[1].held
    assert held is not None
    assert held.granted == [10, None, 2, None]
    assert account.reserved == [10, 0, 3, 0]
    stage.member("w", (child.id, Stepped(epoch=1, key="m#1", kind="model", tokens=50)))
    parent = leader.state.tasks["t"]
    assert (parent.spent_tokens, parent.spent_steps) == (110, 3)
    assert (account.spent, account.reserved) == ([110, 0, 3, 0], [0, 0, 2, 0])


def test_a_list_of_a_log_that_is_gone_is_asked_for_again() -> None:
    """A restored broker: the process still counts receipts of a future that never came, then knows better."""
    stage = Stage()
    leader = stage.leading()
    stage.member("w", ("w/b/0", offer("w/b/0")))
    assert leader.submit(wish(), "t", stage.now_ms, False, None) is None
    stage.decide(leader)
    stage.dispatched(leader)
    stage.beat(leader, "w", 1, [], seq=leader.state.seq + 900)
    stage.wait(1, leader)
    assert leader.state.tasks["t"].attempts.keys() == {1}
    stage.beat(leader, "w", 1, seq=leader.state.seq)
    assert any(isinstance(item, Report) for _, item in stage.dispatched(leader))
    stage.beat(leader, "w", 2, [], seq=leader.state.seq)
    stage.wait(1, leader)
    assert leader.state.tasks["t"].attempts.keys() == {2}
