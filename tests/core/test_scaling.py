"""How many workers a swarm should have: a function of what waits and runs, that rises at once and falls slowly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.scaling import CLEAR_MS, RISE_MS, UNKNOWN_MS, Backlog, Demand, Scaling, demand_of, workers_for
from tests.core.history import offer
from tests.sim.stage import Stage, wish

IDLE_MS = 60_000
backlogs = st.builds(Backlog, st.integers(0, 1_000_000), st.integers(0, 10_000_000))
demands = st.builds(
    Demand,
    st.lists(backlogs, max_size=4).map(tuple),
    st.integers(0, 100_000),
    st.integers(1, 500),
    st.integers(500, 100_000),
)


def busy(running: int, tasks: int = 0, mean_ms: int = 1_000) -> Demand:
    """Two workers of four slots."""
    return Demand((Backlog(tasks, mean_ms),), running, 2, 8)


@given(demands)
def test_what_runs_has_room_and_what_waits_is_cleared_in_time(demand: Demand) -> None:
    slots = demand.running + sum(min(one.tasks, one.tasks * one.mean_ms // CLEAR_MS) for one in demand.backlogs)
    assert workers_for(demand) * demand.slots >= slots * demand.workers


@given(demands)
def test_no_more_than_a_slot_for_each_task(demand: Demand) -> None:
    tasks = demand.running + sum(one.tasks for one in demand.backlogs)
    assert (workers_for(demand) - 1) * demand.slots < tasks * demand.workers or workers_for(demand) == 0


@given(demands, st.integers(0, 1_000), st.integers(0, 1_000_000))
def test_more_to_do_never_wants_fewer(demand: Demand, running: int, tasks: int) -> None:
    more = Demand((*demand.backlogs, Backlog(tasks)), demand.running + running, demand.workers, demand.slots)
    assert workers_for(more) >= workers_for(demand)


def test_short_tasks_are_not_worth_a_worker_and_long_ones_are() -> None:
    assert workers_for(busy(8, 1_000, mean_ms=1)) == 3
    assert workers_for(busy(8, 1_000, mean_ms=1_000)) == 27
    assert workers_for(busy(0, 3, mean_ms=3_600_000)) == 1


def test_without_workers_one_is_wanted_if_there_is_anything_to_do() -> None:
    assert workers_for(Demand((), 0, 0, 0)) == 0
    assert workers_for(Demand((Backlog(10_000),), 0, 0, 0)) == 1


@given(st.lists(st.tuples(st.integers(0, 5_000), demands), min_size=1, max_size=60))
def test_it_stays_between_what_was_wanted_lately(looks: list[tuple[int, Demand]]) -> None:
    scaling, now_ms, seen = Scaling(IDLE_MS), 0, list[tuple[int, int]]()
    for after_ms, demand in looks:
        now_ms += after_ms
        seen.append((now_ms, workers_for(demand)))
        if len(seen) == 1:
            seen.append((now_ms, max(seen[0][1], demand.workers)))
        before = scaling.desired
        desired = scaling.look(demand, now_ms)
        lately = [wanted for at_ms, wanted in seen if now_ms - at_ms <= IDLE_MS]
        assert desired <= max(lately) or desired == before
        since = max((at_ms for at_ms, _ in seen if now_ms - at_ms >= RISE_MS), default=0)
        assert desired >= min(wanted for at_ms, wanted in seen if at_ms >= since)
        if before is not None and desired < before:
            assert desired == max(lately)


@given(demands, demands)
def test_what_lasts_is_followed(first: Demand, then: Demand) -> None:
    scaling = Scaling(IDLE_MS)
    scaling.look(first, 0)
    for now_ms in range(1_000, IDLE_MS + 3_000, 1_000):
        scaling.look(then, now_ms)
    assert scaling.desired == workers_for(then)


def test_a_rise_that_lasts_is_followed_within_two_looks_and_a_fall_after_a_minute() -> None:
    scaling = Scaling(IDLE_MS)
    assert scaling.look(busy(8), 0) == 2
    assert scaling.look(busy(8, 100), 10_000) == 2  # one glimpse is none
    assert scaling.look(busy(8, 100), 11_000) == 5
    for second in range(12, 71):
        assert scaling.look(busy(2), second * 1_000) == 5
    assert scaling.look(busy(2), 72_000) == 1


def test_a_new_leader_takes_whoever_is_there_for_needed() -> None:
    scaling = Scaling(IDLE_MS)
    for second in range(60):
        assert scaling.look(busy(0), second * 1_000) == 2
    assert scaling.look(busy(0), 61_000) == 0


def test_a_clock_that_goes_back_freezes_nothing() -> None:
    scaling = Scaling(IDLE_MS)
    scaling.look(busy(8, 100), 10_000_000)
    for second in range(62):
        scaling.look(busy(2), second * 1_000)
    assert scaling.desired == 1


def test_the_demand_is_what_the_workers_of_the_swarm_could_do() -> None:
    stage = Stage()
    leader = stage.leading()
    stage.member("w", ("w/b/0", offer("w/b/0", capacity=2)), ("w/b/1", offer("w/b/1", capacity=2)))
    for number in range(7):
        assert leader.submit(wish(), f"t{number}", stage.now_ms, False, None) is None
    assert leader.submit(wish(agent="nobody"), "else", stage.now_ms, False, None) is None
    assert leader.submit(wish(requires={"gpu": "yes"}), "gpu", stage.now_ms, False, None) is None
    stage.decide(leader)
    demand = demand_of(leader)
    assert demand == Demand((Backlog(3, UNKNOWN_MS),), 4, 1, 4)
    stage.wait(2_000, leader)
    assert leader.scaling.desired == workers_for(demand) == 2
