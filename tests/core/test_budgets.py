"""Budgets: the accounts under any log, and what one leader or two make of wishes for more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core import snapshot
from swarmd.core.budgets import NO_LIMIT, Purse, check_limits, offer
from swarmd.core.codec import Codec
from swarmd.core.errors import Rejected
from swarmd.core.events import (
    Assigned,
    Budget,
    Budgeted,
    Cancelled,
    Completed,
    Failed,
    Failure,
    Granted,
    GrantWanted,
    Limit,
    MemberLost,
    Redriven,
    Requeued,
    Returned,
    Spawned,
    Spending,
    Stepped,
    Suspended,
)
from swarmd.core.evolve import apply
from swarmd.core.state import SwarmState
from swarmd.core.wire import Grant, Start
from tests.core.history import CHILD, NODE, OTHER, History, submission
from tests.core.history import offer as offered
from tests.sim import books
from tests.sim.stage import Stage, wish

if TYPE_CHECKING:
    from swarmd.core.leader import Leader

# --- any log ---------------------------------------------------------------------------------------

amounts = st.none() | st.integers(-5, 60)
budgets_ = st.builds(Budget, tokens=amounts, cost_microusd=amounts, steps=amounts, wall_ms=amounts)
limits = st.builds(Limit, tokens=amounts, steps=amounts, period=st.sampled_from(["total", "day"]))
spendings = st.builds(Spending, tokens=st.integers(-9, 50), steps=st.integers(0, 3), wall_ms=st.integers(0, 50))
tasks = st.sampled_from(["t", "u", "t~1", "t~1~1"])
epochs = st.integers(1, 3)
numbers = st.integers(1, 3)
members = st.sampled_from([NODE, OTHER, CHILD])
why = Failure("broken", "it broke")
LEAD = ("orchestrator", "o1", "L1")


def about(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(tasks, strategy)


leaders = st.one_of(
    about(st.builds(submission, budget=budgets_, tenant=st.sampled_from(["", "acme"]))),
    *(about(st.builds(Assigned, term=st.just(1), epoch=epochs, member=members, grant=budgets_)) for _ in range(3)),
    *(about(st.builds(Granted, term=st.just(1), epoch=epochs, n=numbers, total=budgets_)) for _ in range(2)),
    about(st.builds(Granted, term=st.just(1), epoch=epochs, n=numbers, refused=st.just("steps of task t"))),
    about(
        st.builds(
            Budgeted,
            term=st.just(1),
            day=st.integers(0, 3),
            limits=st.dictionaries(st.sampled_from(["swarm", "tenant:acme", "task:t"]), limits, max_size=3),
        )
    ),
    about(st.builds(Cancelled, term=st.just(1))),
    about(st.builds(Redriven, term=st.just(1))),
    about(st.builds(Requeued, term=st.just(1), epoch=epochs, reason=st.just("undelivered"))),
    about(st.builds(MemberLost, term=st.just(1), member=members)),
)
reports = st.one_of(
    about(st.builds(Stepped, epoch=epochs, key=st.sampled_from("abcd"), kind=st.just("x"), tokens=st.integers(-9, 50))),
    *(about(st.builds(GrantWanted, epoch=epochs, n=numbers, total=budgets_)) for _ in range(2)),
    about(st.builds(Spawned, epoch=epochs, key=st.just("s"), n=st.just(1), agent=st.just("a"), budget=budgets_)),
    about(st.builds(Suspended, epoch=epochs, waits=st.just([]), spent=spendings)),
    about(st.builds(Returned, epoch=epochs, spent=spendings)),
    about(st.builds(Completed, epoch=epochs, spent=spendings)),
    about(st.builds(Failed, epoch=epochs, failure=st.just(why), retryable=st.booleans(), spent=spendings)),
    members.map(lambda member: (member, offered(member))),
)
workers = st.sampled_from([("worker", "w1", "b1"), ("worker", "w2", "b2"), ("delegate", "kid", "d1")])
logs = st.lists(st.tuples(st.just(LEAD), leaders) | st.tuples(workers, reports), max_size=40)


@given(logs, st.integers(0, 45))
@settings(deadline=None, max_examples=200)
def test_under_any_log_nothing_is_promised_twice_and_every_end_releases(log: Any, cut: int) -> None:
    history = History().joined()
    history.commit(("delegate", "kid", "d1"), (CHILD, offered(CHILD)))
    history.lead("s", Budgeted(term=1, limits={"swarm": Limit(tokens=100), "tenant:acme": Limit(steps=6)}))
    history.submitted("t", budget=Budget(tokens=40), tenant="acme")
    history.lead("t", Assigned(term=1, epoch=1, member=NODE, grant=Budget(tokens=10, steps=2)))
    for origin, event in log:
        before = books.promised(history.state)
        history.commit(origin, event)
        commit = history.codec.decode(history.records[-1])
        assert books.wrong(history.state, commit, before) == ""
    again = SwarmState("s")
    for record in history.records:
        apply(again, Codec().decode(record))
        if record.seq == cut:
            again = snapshot.decode(snapshot.encode(again))
    assert snapshot.encode(again) == snapshot.encode(history.state)


# --- the purse -------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["take", "settle", "hear"]), st.integers(0, 30)), max_size=30))
def test_a_purse_never_lets_more_begin_than_was_granted(acts: list[tuple[str, int]]) -> None:
    purse, granted, used, held = Purse(Budget(tokens=20)), 20, 0, list[int]()
    for act, amount in acts:
        if act == "take":
            could = purse.can(Spending(tokens=amount))
            assert purse.take(Spending(tokens=amount)) is could is (used + sum(held) + amount <= granted)
            held += [amount] if could else []
        elif act == "settle" and held:
            taken = held.pop()
            purse.settle(Spending(tokens=taken), Spending(tokens=taken))
            used += taken
        elif act == "hear":
            purse.hear(purse.answered, Budget(tokens=amount))
            granted = max(granted, amount)
        assert purse.left().tokens == granted - used - sum(held)


def test_a_purse_without_limits_takes_everything_and_asks_for_nothing() -> None:
    purse = Purse()
    assert purse.unlimited
    assert purse.take(Spending(tokens=10**9, steps=10**9))
    assert purse.wanted(Spending(tokens=5)) == NO_LIMIT


def test_a_wish_says_totals_and_counts_what_is_in_flight() -> None:
    purse = Purse(Budget(tokens=10, steps=2))
    assert purse.take(Spending(tokens=8, steps=1))
    assert not purse.can(Spending(tokens=8, steps=1))
    assert purse.wanted(Spending(tokens=8, steps=1)) == Budget(tokens=16, steps=2)
    assert purse.ask() == 1
    purse.hear(0, Budget(tokens=10, steps=2))
    assert purse.answered == 0
    purse.hear(1, Budget(tokens=16, steps=2))
    assert purse.take(Spending(tokens=8, steps=1))


@pytest.mark.parametrize(
    "budget", [Budget(tokens=0), Budget(steps=-1), Budget(cost_microusd=1 << 60), Budget(wall_ms=0)]
)
def test_a_budget_that_lets_nothing_be_spent_is_refused(budget: Budget) -> None:
    with pytest.raises(Rejected, match="budget"):
        check_limits("budget", budget)


# --- leaders ---------------------------------------------------------------------------------------


def begun(stage: Stage, limits: dict[str, Limit] | None = None, capacity: int = 4, **fields: Any) -> Leader:
    """A leader with these limits; one node runs task "t"."""
    stage.budgets = limits or {}
    leader = stage.leading()
    stage.member("w", ("w/b/0", offered("w/b/0", capacity=capacity)))
    submit(stage, leader, "t", **fields)
    return leader


def submit(stage: Stage, leader: Leader, task: str, **fields: Any) -> None:
    assert leader.submit(wish(**fields), task, stage.now_ms, False, None) is None
    stage.decide(leader)


def grants(stage: Stage, leader: Leader) -> list[Grant]:
    return [item for _, item in stage.dispatched(leader) if isinstance(item, Grant)]


def want(stage: Stage, leader: Leader, task: str, n: int, **total: int) -> None:
    stage.member("w", (task, GrantWanted(epoch=1, n=n, total=Budget(**total))))
    stage.decide(leader)


def test_an_attempt_gets_a_slice_and_asks_for_more() -> None:
    stage = Stage()
    leader = begun(stage, budget=Budget(tokens=100))
    (start,) = [item for _, item in stage.dispatched(leader) if isinstance(item, Start)]
    assert start.grant == Budget(tokens=25)
    want(stage, leader, "t", 1, tokens=60)
    assert grants(stage, leader) == [Grant("t", 1, 1, Budget(tokens=60))]
    want(stage, leader, "t", 2, tokens=101)
    (refused,) = grants(stage, leader)
    assert (refused.n, refused.total, refused.refused) == (2, Budget(tokens=60), "tokens of task t")


def test_attempts_side_by_side_never_overshoot_together() -> None:
    stage = Stage()
    leader = begun(stage, {"swarm": Limit(tokens=100)})
    for task in ("u", "v"):
        submit(stage, leader, task)
    for task in ("t", "u", "v"):
        want(stage, leader, task, 1, tokens=40)
    account = leader.state.accounts["swarm"]
    assert account.spent[0] + account.reserved[0] <= 100
    assert sorted(item.task for item in grants(stage, leader)) == ["t", "u"]
    assert list(leader.state.wishes.values()) == [("v", 1)]
    stage.member("w", ("t", Stepped(epoch=1, key="m", kind="model", tokens=15)), ("t", Completed(epoch=1)))
    stage.decide(leader)
    (granted,) = grants(stage, leader)
    assert (granted.task, granted.total) == ("v", Budget(tokens=40))


def test_when_all_wait_for_each_other_the_youngest_wish_is_refused() -> None:
    stage = Stage()
    leader = begun(stage, {"swarm": Limit(tokens=64)})
    submit(stage, leader, "u")
    want(stage, leader, "t", 1, tokens=30)
    want(stage, leader, "u", 1, tokens=30)
    want(stage, leader, "t", 2, tokens=50)
    assert list(leader.state.wishes.values()) == [("t", 1)]
    want(stage, leader, "u", 2, tokens=50)
    assert [item.refused for item in grants(stage, leader) if item.n == 2] == ["tokens of the swarm"]
    stage.member("w", ("u", Failed(epoch=1, failure=why, retryable=False)))
    stage.decide(leader)
    (granted,) = grants(stage, leader)
    assert (granted.task, granted.n) == ("t", 2)
    assert granted.total.tokens is not None
    assert granted.total.tokens >= 50


def test_a_lost_member_gives_back_what_it_held() -> None:
    stage = Stage()
    leader = begun(stage, budget=Budget(tokens=100))
    stage.write(leader, [_event("w/b/0", MemberLost(term=1, member="w/b/0"))])
    assert leader.state.accounts["task:t"].reserved == [0, 0, 0, 0]


def _event(subject: str, fact: Any) -> Any:
    from swarmd.core.events import Event

    return Event(subject, fact)


def test_the_next_leader_answers_what_the_last_one_left_open() -> None:
    stage = Stage()
    leader = begun(stage, {"swarm": Limit(tokens=100)})
    other = stage.orchestrator("L2")
    stage.member("w", ("t", GrantWanted(epoch=1, n=1, total=Budget(tokens=50))))
    late = leader.decide()
    stage.write(other, [other.campaign()])
    stage.decide(other)
    stage.write(leader, late)
    assert [item.total.tokens for item in grants(stage, other)] == [50]
    assert other.state.accounts["swarm"].reserved[0] == 50
    third = stage.orchestrator("L3")
    stage.write(third, [third.campaign()])
    assert [item.n for item in grants(stage, third)] == [1], "a lost answer is told again"


def test_a_day_begins_anew_and_a_changed_limit_keeps_what_was_spent() -> None:
    stage = Stage()
    stage.now_ms = 86_400_000 * 3 - 100
    leader = begun(stage, {"swarm": Limit(tokens=100, period="day")})
    stage.member("w", ("t", Stepped(epoch=1, key="m", kind="model", tokens=30)))
    assert leader.state.accounts["swarm"].spent[0] == 30
    stage.wait(99, leader)
    assert leader.state.accounts["swarm"].spent[0] == 30
    stage.wait(1, leader)
    assert (leader.state.accounts["swarm"].spent[0], leader.state.budget_day) == (0, 3)
    stage.member("w", ("t", Stepped(epoch=1, key="n", kind="model", tokens=7)))
    stage.budgets = {"swarm": Limit(tokens=50, period="day")}
    other = stage.orchestrator("L2")
    stage.write(other, [other.campaign()])
    stage.decide(other)
    account = other.state.accounts["swarm"]
    assert (account.limit.tokens, account.spent[0]) == (50, 7)


def test_a_redriven_task_gets_its_budget_again() -> None:
    stage = Stage()
    leader = begun(stage, budget=Budget(tokens=10))
    stage.member("w", ("t", Stepped(epoch=1, key="m", kind="model", tokens=10)))
    stage.member("w", ("t", Failed(epoch=1, failure=why, retryable=False)))
    assert "task:t" not in leader.state.accounts
    leader.redrive("t")
    stage.decide(leader)
    assert leader.state.accounts["task:t"].spent == [0, 0, 0, 0]
    assert leader.state.tasks["t"].spent_tokens == 10


def test_a_child_swarm_gets_half_of_what_is_left() -> None:
    accounts = SwarmState("s").accounts
    assert offer(accounts, [], Budget(tokens=9), child=True) == Budget(tokens=5)


def test_without_budgets_no_attempt_holds_anything() -> None:
    stage = Stage()
    leader = begun(stage)
    assert leader.state.accounts == {}
    assert leader.state.tasks["t"].attempts[1].held is None
