"""Many children in few bytes: what is packed is what was meant, and nobody can make a range too large."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core import kin
from swarmd.core.commands import MESSAGE_BYTES_MAX
from swarmd.core.events import Completed, Dropped, Spawned, Suspended
from swarmd.core.ids import child_id, node_member
from swarmd.core.link import BATCH_BYTES_MAX, Sender
from swarmd.core.office import ended_of, rest_of, start_of
from swarmd.core.state import Attempt
from swarmd.core.wire import ChildrenDone
from tests.core.history import offer
from tests.sim.stage import Stage, wish

NODE = node_member("w", "b", 0)
MANY = 20_000

names = st.lists(
    st.one_of(
        st.integers(1, 30).map(lambda n: child_id("t", n)),
        st.sampled_from(["sleep#1", "t~01", "t~0", "t~x", "u~3", "t~2~1", "t~", "~"]),
    )
)


@given(names)
def test_packing_loses_nothing_and_keeps_the_order(wanted: list[str]) -> None:
    assert kin.unpacked("t", kin.packed("t", wanted), len(wanted)) == wanted


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6))))
def test_runs_of_places_are_the_places(wanted: list[tuple[int, int]]) -> None:
    assert list(kin.places(kin.runs(wanted))) == wanted


def test_runs_are_short() -> None:
    children = [child_id("t", n) for n in range(1, MANY + 1)]
    assert kin.packed("t", children) == [f"~1..{MANY}"]
    assert kin.packed("t", ["a#1", *children[4:7], "b#1"]) == ["a#1", "~5..7", "b#1"]
    assert kin.runs((7, n) for n in range(256)) == [(7, 0, 256)]


def test_a_range_of_more_than_there_are_is_none() -> None:
    for told in (["~1..999999999"], ["~1..3", "~1..3"], ["~5..4"]):
        assert kin.unpacked("t", told, 5) is None
    assert kin.unpacked("t", ["~1..5"], 5) == [child_id("t", n) for n in range(1, 6)]


def a_parent(children: int) -> Stage:
    """A leader with a running task `t` that has so many children."""
    stage = Stage()
    leader = stage.leading()
    stage.member("w", (NODE, offer(NODE, 1)))
    leader.submit(wish(), "t", stage.now_ms, False, "client")
    stage.decide(leader)
    spawned = [("t", Spawned(epoch=1, key=f"spawn#{n}", n=n, agent="elsewhere")) for n in range(1, children + 1)]
    for first in range(0, children, 1_000):
        stage.member("w", *spawned[first : first + 1_000])
    return stage


def test_a_parent_of_twenty_thousand_sleeps_and_is_started_again_within_a_message() -> None:
    stage = a_parent(MANY)
    leader = stage.leaders[0]
    task = leader.state.tasks["t"]
    asleep = Suspended(epoch=1, waits=[kin.packed("t", list(task.children))])
    assert len(msgspec.json.encode(asleep)) < 100
    stage.member("w", ("t", asleep))
    assert (task.state, len(task.waits[0])) == ("suspended", MANY)
    for n, child in enumerate(task.children):
        task.children[child] = (9_000_000 + n, n % 500)
    attempt = Attempt(2, NODE, dict(task.journal))
    start, rest = start_of(task, attempt), list(rest_of(task, attempt))
    assert (start.journal, start.children, start.steps, start.done, start.more) == ((), {}, (), (), True)
    assert sum(len(part.steps) for part in rest) == MANY // 1_000
    assert [part.n for part in rest if part.last] == [len(rest) - 1]
    told = {n: (seq, index) for part in rest for n, seq, index in part.done}
    assert told == {n: task.children[child_id("t", n)] for n in range(1, MANY + 1)}
    sender = Sender(1, 0)
    sender.items = [start, *rest]
    batches = []
    while (batch := sender.batch(1, 0)) is not None:
        batches.append(len(msgspec.json.encode(batch)))
    assert max(batches) < MESSAGE_BYTES_MAX
    assert len(batches) > 1 or batches[0] < BATCH_BYTES_MAX
    again = list(ended_of(task))
    assert sum(len(item.places) for item in again if isinstance(item, ChildrenDone)) == MANY


def test_a_range_beyond_the_children_is_refused_and_a_range_of_them_is_dropped() -> None:
    stage = a_parent(5)
    leader = stage.leaders[0]
    stage.member("w", ("t", Suspended(epoch=1, waits=[["~1..6"]])))
    assert (leader.state.tasks["t"].state, leader.state.counters.ignored["unknown_wait"]) == ("assigned", 1)
    stage.member("w", ("t", Dropped(epoch=1, key="cancel#1", children=["~2..4"])))
    assert sorted(leader.state.tasks) == ["t", "t~1", "t~5"]
    stage.member("w", ("t", Completed(epoch=1)))
    assert not leader.state.tasks
