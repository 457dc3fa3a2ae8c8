"""Concurrency keys: never more of a key than may run, nobody stuck whose key is free, rates that hold in any minute."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.keys import BUCKETS_MIN, MINUTE_MS, KeyPolicy, Keys
from tests.core.desk import Desk, member

POLICIES = {"two": KeyPolicy(2), "slow": KeyPolicy(3, per_minute=30), "fast-*": KeyPolicy(5, per_minute=1_200)}
KEYS = ("one", "two", "slow", "fast-x", "")

acts = st.one_of(
    *(
        st.tuples(
            st.just("wait"),
            st.sampled_from("ab"),
            st.sampled_from(KEYS),
            st.sampled_from(["", "acme"]),
            st.integers(-2, 2),
        )
        for _ in range(3)
    ),
    st.tuples(st.just("place"), st.integers(1, 4)),
    st.tuples(st.sampled_from(["fold", "fold", "drop", "end", "end", "again", "cancel"]), st.integers(0, 30)),
    st.tuples(st.just("time"), st.sampled_from([1, 50, 900, 3_000])),
)


def check(desk: Desk) -> None:
    """Of no key more than may run are running or placed."""
    held = [desk.tasks[name].concurrency_key for name in (*desk.running, *desk.placed)]
    for key in set(held) - {""}:
        assert held.count(key) <= desk.keys.policy(key).concurrency


def check_nobody_is_stuck(desk: Desk) -> None:
    """Where placing has just ended, whoever waits has no slot, or a key that is not open."""
    free = desk.free()
    for task in desk.waiting():
        if any(free[name] > 0 and task.agent in one.agents for name, one in desk.members.items()):
            assert task.concurrency_key, f"{task.id} waits beside a free slot"
            assert not desk.keys.is_open(task.concurrency_key), f"{task.id} waits, its key is free"


def act(desk: Desk, wanted: tuple[Any, ...], n: int) -> None:
    match wanted:
        case ("wait", agent, key, tenant, priority):
            desk.wait(f"t{n}", agent, tenant, key, priority)
        case ("place", limit):
            desk.place(limit)
        case ("time", delay_ms):
            desk.pass_time(delay_ms)
        case (verb, which):
            pools: dict[str, list[str]] = {"cancel": list(desk.queue._waiting)}
            pools["fold"] = pools["drop"] = list(desk.placed)
            pool = pools.get(verb, list(desk.running))
            if not pool:
                return
            name = pool[which % len(pool)]
            if verb == "again":
                desk.end(name, again=True)
            else:
                getattr(desk, verb)(name)


@given(st.lists(acts, max_size=80))
@settings(max_examples=300)
def test_keys_hold_and_nobody_is_stuck(drawn: list[Any]) -> None:
    """Whatever is placed, stored, lost, taken back and cancelled in between, and in whichever order."""
    desk = Desk(member("m", "a", 2), member("n", "ab", 2), member("o", "b", 1), keys=POLICIES)
    for n, wanted in enumerate(drawn):
        act(desk, wanted, n)
        check(desk)
        if n % 5 == 0:
            desk.place()
            check_nobody_is_stuck(desk)
    rounds = 0
    while len(desk.queue) or desk.placed or desk.running:
        rounds += 1
        assert rounds < 300, f"stuck: {desk.waiting()}"
        desk.place()
        check(desk)
        check_nobody_is_stuck(desk)
        for name in list(desk.placed):
            desk.fold(name)
        for name in list(desk.running):
            desk.end(name)
        desk.pass_time(700)
    desk.queue.discard("nobody")
    assert desk.left() == []


def test_a_key_that_waits_in_one_lane_blocks_no_other_lane() -> None:
    """Nobody offers agent z; tasks of the same key that wait for it must not hold up those of agent a."""
    desk = Desk(member("m", "a", 4))
    for n in range(3):
        desk.wait(f"z{n}", "z", key="k")
    for n in range(3):
        desk.wait(f"a{n}", "a", key="k")
    served = []
    for _ in range(3):
        (name,) = desk.serve()
        served.append(name)
        desk.end(name)
    assert served == ["a0", "a1", "a2"]


def test_a_key_at_the_end_of_a_long_queue_holds_up_nobody_elses_task_of_that_key() -> None:
    desk = Desk(member("m", "a", 1))
    desk.wait("begun", tenant="big")
    assert desk.serve() == ["begun"]
    for n in range(5_000):
        desk.wait(f"big{n}", tenant="big")
    desk.wait("theirs", tenant="big", key="k")
    desk.wait("mine", tenant="small", key="k")
    desk.end("begun")
    assert desk.serve() == ["mine"]


def test_the_more_urgent_of_one_key_goes_first() -> None:
    desk = Desk(member("m", "a", 1), keys={"k": KeyPolicy(1)})
    desk.wait("early", key="k")
    desk.wait("urgent", key="k", priority=1)
    served = []
    while len(desk.queue):
        (name,) = desk.serve()
        served.append(name)
        desk.end(name)
    assert served == ["urgent", "early"]


def test_a_crowd_of_one_key_is_not_sifted_through_at_each_placement() -> None:
    """Twenty thousand tasks wait for one key; whatever ends or begins touches one of them."""
    desk = Desk(member("m", "a", 8))
    for n in range(20_000):
        desk.wait(f"k{n}", key="k")
    lane = next(iter(desk.queue._lanes.values()))
    for n in range(50):
        assert desk.serve() == [f"k{n}"]
        desk.wait(f"plain{n}")
        assert desk.serve() == [f"plain{n}"]
        desk.end(f"plain{n}")
        desk.end(f"k{n}")
        assert sum(map(len, lane.heaps.values())) <= 2


def test_the_longest_declared_beginning_counts() -> None:
    policies = {"a*": KeyPolicy(2), "a-b*": KeyPolicy(3), "a-b-c": KeyPolicy(4)}
    keys = Keys(policies, {})
    wanted = {"a": 2, "a-x": 2, "a-b": 3, "a-b-d": 3, "a-b-c": 4, "b": 1}
    assert {key: keys.policy(key).concurrency for key in wanted} == wanted


# --- rates -----------------------------------------------------------------------------------------


def begun(keys: Keys, key: str, moments: list[int]) -> list[int]:
    """When a task of `key` could begin, if somebody wants one at each of these moments, and all that may."""
    taken = []
    for now_ms in moments:
        keys.tick(now_ms)
        while keys.is_open(key):
            keys.take(key)
            keys.settle(key)
            taken.append(now_ms)
    return taken


def most_in_a_minute(taken: list[int]) -> int:
    first, most = 0, 0
    for last, at_ms in enumerate(taken):
        while taken[first] <= at_ms - MINUTE_MS:
            first += 1
        most = max(most, last - first + 1)
    return most


@given(
    st.sampled_from([1, 6, 59, 60, 61, 600, 6_000]),
    st.lists(st.sampled_from([1, 30, 40, 500, 5_000, 61_000]), min_size=1, max_size=8),
    st.integers(0, 90_000),
)
@settings(max_examples=60)
def test_a_rate_holds_over_any_minute_and_over_a_change_of_leader(rate: int, steps: list[int], change_ms: int) -> None:
    moments = [0]
    while moments[-1] < 150_000:
        moments += [moments[-1] + step for step in [steps[len(moments) % len(steps)]]]
    policies = {"k": KeyPolicy(10_000, per_minute=rate)}
    first, second = Keys(policies, {}), Keys(policies, {})
    first.begin(0)
    taken = begun(first, "k", [at_ms for at_ms in moments if at_ms < change_ms])
    second.begin(change_ms)
    taken += begun(second, "k", [at_ms for at_ms in moments if at_ms >= change_ms])
    assert most_in_a_minute(taken) <= rate


def test_a_rate_is_made_use_of() -> None:
    keys = Keys({"k": KeyPolicy(10_000, per_minute=600)}, {})
    keys.begin(0)
    assert len(begun(keys, "k", list(range(0, 600_000, 40)))) > 0.97 * 6_000


def test_a_key_that_nobody_has_asked_for_yet_has_saved_one() -> None:
    keys = Keys({"k": KeyPolicy(per_minute=1)}, {})
    keys.begin(1_000)
    keys.tick(1_000 + MINUTE_MS - 10)
    assert not keys.is_open("k")
    assert keys.opens_at_ms("k") == 1_000 + MINUTE_MS
    keys.tick(1_000 + MINUTE_MS)
    assert keys.is_open("k")


def test_a_clock_that_goes_back_stops_no_key() -> None:
    desk = Desk(member("m", "a", 4), keys={"k": KeyPolicy(4, per_minute=60)})
    desk.pass_time(3_600_000)
    desk.wait("t0", key="k")
    desk.wait("t1", key="k")
    assert desk.serve() == ["t0"]
    desk.pass_time(-3_000_000)
    assert desk.serve() == []
    desk.pass_time(1_001)
    assert desk.serve() == ["t1"]


def test_what_is_remembered_of_unused_keys_is_bounded() -> None:
    keys = Keys({"k*": KeyPolicy(per_minute=60)}, {})
    keys.begin(0)
    for n in range(4 * BUCKETS_MIN):
        keys.tick(5_000 + n)
        keys.take(f"k{n}")
        keys.settle(f"k{n}")
    assert len(keys._buckets) <= 2 * BUCKETS_MIN
    assert keys._taken == {}
