"""Tenants, priorities and age: who is next, and that nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.keys import KeyPolicy
from swarmd.core.placement import TenantPolicy
from tests.core.desk import Desk, member


def ends_until(desk: Desk, wanted: str) -> int:
    """How many running tasks end, the eldest first, before `wanted` gets a slot."""
    ends = 0
    while wanted not in desk.running:
        desk.end(next(iter(desk.running)))
        desk.serve()
        ends += 1
    return ends


@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0])
def test_a_hundred_thousand_tasks_hold_up_anothers_single_task_for_one_slot(weight: float) -> None:
    """The big tenant may have the greater weight: whoever has nothing comes before whoever has something."""
    desk = Desk(member("m", "a", 8), tenants={"big": TenantPolicy(weight=weight)})
    for n in range(100_000):
        desk.wait(f"big{n}", tenant="big", priority=n % 3)
    desk.serve()
    for _ in range(20):  # it has been served for a while
        desk.end(next(iter(desk.running)))
        desk.serve()
    desk.wait("single", tenant="small", priority=-9)
    assert ends_until(desk, "single") == 1


@given(
    st.integers(1, 6),
    st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True),
    st.sampled_from("abc"),
    st.floats(0.1, 10),
    st.integers(0, 40),
)
@settings(max_examples=60)
def test_one_slot_at_most_with_any_lanes_and_weights(
    slots: int, lanes: list[str], agent: str, weight: float, served: int
) -> None:
    desk = Desk(member("m", "abc", slots), tenants={"big": TenantPolicy(weight), "small": TenantPolicy(1.0)})
    for n in range(120):
        desk.wait(f"big{n}", lanes[n % len(lanes)], "big", priority=n % 5 - 2)
    desk.serve()
    for _ in range(served):
        desk.end(next(iter(desk.running)))
        desk.serve()
    desk.wait("single", agent, "small")
    assert ends_until(desk, "single") == 1


@given(st.lists(st.sampled_from([1, 2, 3, 5]), min_size=2, max_size=4))
@settings(max_examples=30)
def test_slots_are_shared_by_weight(weights: list[int]) -> None:
    """While all want more than they get, each has its share of the slots but for one."""
    slots = 4 * sum(weights)
    tenants = {f"t{n}": TenantPolicy(float(weight)) for n, weight in enumerate(weights)}
    desk = Desk(member("m", "a", slots), tenants=tenants)
    for n in range(3 * slots):
        for tenant in tenants:
            desk.wait(f"{tenant}-{n}", tenant=tenant)
    desk.serve()
    for _ in range(slots):
        desk.end(next(iter(desk.running)))
        desk.serve()
        for n, weight in enumerate(weights):
            assert abs(desk.state.tenants[f"t{n}"].slots - 4 * weight) <= len(weights)


def test_with_one_slot_tenants_take_turns_by_weight() -> None:
    """Nobody ever has two of one slot, so that their shares are of time (start-time fair queueing)."""
    desk = Desk(member("m", "a", 1), tenants={"big": TenantPolicy(3.0)})
    for n in range(100):
        desk.wait(f"big{n}", tenant="big")
        desk.wait(f"small{n}", tenant="small")
    turns = []
    for _ in range(80):
        (name,) = desk.serve()
        turns.append(desk.tasks[name].tenant)
        desk.end(name)
    assert turns.count("big") == 60
    assert "".join(name[0] for name in turns).find("ss") == -1


def test_nobody_saves_up_turns_while_it_wants_none() -> None:
    desk = Desk(member("m", "a", 1))
    for n in range(50):
        desk.wait(f"busy{n}", tenant="busy")
    for _ in range(40):
        (name,) = desk.serve()
        desk.end(name)
    for n in range(20):
        desk.wait(f"late{n}", tenant="late")
    turns = []
    for _ in range(10):
        (name,) = desk.serve()
        turns.append(desk.tasks[name].tenant)
        desk.end(name)
    assert 4 <= turns.count("late") <= 6


# --- within a tenant -------------------------------------------------------------------------------

tasks = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(-3, 3), st.sampled_from(["", "", "k", "l"]), st.integers(0, 9_000)),
    min_size=1,
    max_size=40,
)


@given(tasks, st.integers(1, 3), st.sampled_from([0, 1_000, 10_000]), st.booleans())
@settings(max_examples=150)
def test_the_order_within_a_tenant_is_by_age_and_priority(
    drawn: list[Any], slots: int, ageing_ms: int, rival: bool
) -> None:
    """In all lanes and keys together, whoever else waits: nobody overtakes whoever could have run as well."""
    desk = Desk(member("m", "ab", slots), keys={"l": KeyPolicy(2)}, ageing_ms=ageing_ms)
    for n, (agent, priority, key, delay_ms) in enumerate(drawn):
        desk.pass_time(delay_ms)
        desk.wait(f"t{n}", agent, "acme", key, priority)
    if rival:
        desk.wait("rival", "a", "other")

    def age(name: str) -> tuple[int, int]:
        task = desk.tasks[name]
        return task.since_ms - task.priority * ageing_ms, task.submitted[0]

    while len(desk.queue):
        for name in desk.place():
            if name != "rival":
                behind = [one.id for one in desk.waiting() if one.tenant == "acme"]
                overtaken = [one for one in behind if age(one) < age(name)]
                assert all(not desk.keys.is_open(desk.tasks[one].concurrency_key) for one in overtaken), overtaken
            desk.fold(name)
        desk.end(next(iter(desk.running)))


def test_nothing_waits_for_ever() -> None:
    """A stream of urgent tasks that never ends overtakes an older one for as long as its priority is worth."""
    desk = Desk(member("m", "a", 1), ageing_ms=1_000)
    desk.wait("patient", priority=-2)
    desk.wait("urgent0", priority=5)
    waited_ms = 0
    for n in range(1, 200):
        (name,) = desk.serve()
        if name == "patient":
            break
        desk.pass_time(100)
        waited_ms += 100
        desk.wait(f"urgent{n}", priority=5)
        desk.end(name)
    assert waited_ms == 7_000


def test_of_siblings_the_longest_way_ahead_is_first() -> None:
    desk = Desk(member("m", "a", 1))
    for name, rank_ms in (("short", 10), ("long", 500), ("middle", 50)):
        desk.wait(name)
        desk.queue.discard(name)
        desk.tasks[name].rank_ms = rank_ms
        desk.queue.push(desk.tasks[name])
    served = []
    while len(desk.queue):
        (name,) = desk.serve()
        served.append(name)
        desk.end(name)
    assert served == ["long", "middle", "short"]


# --- bounds ----------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.lists(st.sampled_from(["place", "fold", "drop", "end"]), max_size=40))
def test_a_tenant_never_has_more_slots_than_it_may(slots_max: int, acts: list[str]) -> None:
    desk = Desk(member("m", "ab", 6), tenants={"acme": TenantPolicy(slots_max=slots_max)})
    for n in range(30):
        desk.wait(f"t{n}", "ab"[n % 2], "acme")
    for act in acts:
        pool = desk.running if act == "end" else desk.placed
        if act == "place":
            desk.place()
        elif pool:
            getattr(desk, act)(next(iter(pool)))
        assert len(desk.running) + len(desk.placed) <= slots_max
    desk.place()
    assert len(desk.running) + len(desk.placed) == min(
        slots_max, len(desk.queue) + len(desk.running) + len(desk.placed)
    )
    desk.wait("other", "a", "other")
    assert desk.place() == ["other"]


def test_turns_of_tenants_that_left_are_forgotten() -> None:
    desk = Desk(member("m", "a", 2))
    for n in range(5_000):
        desk.wait(f"t{n}", tenant=f"tenant{n}")
        if n % 2:
            for name in desk.serve():
                desk.end(name)
    assert len(desk.queue._served) <= 1_100
    assert desk.left() == []
