"""Placement: late binding over lanes, never beyond capacity, in the order of priority and age."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from swarmd.core.keys import KeyPolicy, Keys
from swarmd.core.placement import Queue
from swarmd.core.policies import Pull
from swarmd.core.state import Member, SwarmState, Task


def task(name: str, seq: int, agent: str = "a", priority: int = 0, **requires: str) -> Task:
    return Task(name, agent, "d", (seq, 0), Raw(b"1"), priority=priority, requires=requires)


def member(name: str, agents: str = "a", capacity: int = 1, **labels: str) -> Member:
    return Member(name, "node", "worker", "w", "b", list(agents), capacity, labels=labels)


def empty(**keys: KeyPolicy) -> Queue:
    state = SwarmState("s")
    return Queue(state, Keys(keys, state.keys), {})


def placed(tasks: list[Task], members: list[Member], limit: int = 1_000) -> list[tuple[str, str]]:
    queue = empty()
    for one in tasks:
        queue.push(one)
    free = {one.id: one.capacity - len(one.running) for one in members}
    return [(name, chosen.id) for name, chosen, *_ in queue.place(members, free, limit, Pull(SwarmState("s")), {})]


any_tasks = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(-2, 2), st.sampled_from([{}, {"zone": "x"}, {"zone": "y"}])),
    max_size=25,
)
any_members = st.lists(
    st.tuples(st.sets(st.sampled_from("abc")), st.integers(1, 4), st.sampled_from([{}, {"zone": "x"}])), max_size=6
)


@given(any_tasks, any_members, st.integers(0, 30))
@settings(deadline=None)
def test_properties(drawn: list[Any], offers: list[Any], limit: int) -> None:
    tasks = {
        f"t{n}": task(f"t{n}", n, agent, priority, **requires) for n, (agent, priority, requires) in enumerate(drawn)
    }
    members = {
        f"m{n}": member(f"m{n}", "".join(sorted(agents)), capacity, **labels)
        for n, (agents, capacity, labels) in enumerate(offers)
    }
    pairs = placed(list(tasks.values()), list(members.values()), limit)
    assert len(pairs) <= limit
    assert len({name for name, _ in pairs}) == len(pairs)
    used = dict.fromkeys(members, 0)
    for name, chosen in pairs:
        used[chosen] += 1
        assert suits(tasks[name], members[chosen])
    assert all(used[name] <= members[name].capacity for name in members)
    left = [one for name, one in tasks.items() if name not in dict(pairs)]
    lanes: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for name, _ in pairs:
        lanes.setdefault(lane(tasks[name]), []).append((-tasks[name].priority, tasks[name].submitted[0]))
    for key, order in lanes.items():
        assert order == sorted(order), "within a lane: by priority, then by age"
        assert all(order[-1] < (-one.priority, one.submitted[0]) for one in left if lane(one) == key)
    if len(pairs) < limit:  # nobody waits in front of a free slot that suits, whatever blocks other lanes
        free = [one for name, one in members.items() if used[name] < one.capacity]
        assert not [(one.id, other.id) for one in left for other in free if suits(one, other)]


def suits(one: Task, other: Member) -> bool:
    return one.agent in other.agents and all(other.labels.get(k) == v for k, v in one.requires.items())


def lane(one: Task) -> tuple[str, str]:
    return one.agent, one.requires.get("zone", "")


def test_a_blocked_lane_blocks_no_other() -> None:
    tasks = [task("stuck", 1, "z", priority=9), task("labelled", 2, "a", zone="nowhere"), task("runs", 3)]
    assert placed(tasks, [member("m")]) == [("runs", "m")]


def test_the_highest_of_all_lanes_gets_the_shared_slot() -> None:
    tasks = [task("early", 1, "a"), task("urgent", 2, "b", priority=1)]
    assert placed(tasks, [member("m", "ab")]) == [("urgent", "m")]


def test_work_goes_to_the_least_loaded_member() -> None:
    busy, idle = member("busy", capacity=4), member("idle", capacity=2)
    busy.running = {"x": 1, "y": 1, "z": 1}
    chosen = [where for _, where in placed([task(f"t{n}", n) for n in range(3)], [busy, idle])]
    assert chosen == ["idle", "idle", "busy"]


def test_a_task_that_waits_no_more_is_skipped_and_may_wait_again() -> None:
    queue = empty()
    first, second = task("t", 1), task("t", 5, "b")
    queue.push(first)
    queue.push(first)
    assert (len(queue), queue.waiting()) == (1, {"a": 1})
    queue.discard("t")
    queue.push(second)
    pull = Pull(SwarmState("s"))
    assert [name for name, *_ in queue.place([member("m", "ab", 5)], {"m": 5}, 9, pull, {})] == ["t"]
    assert (len(queue), queue.waiting()) == (0, {})
