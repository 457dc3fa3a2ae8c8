"""Plans: everything that is wrong is named, and what is sound is ordered soundly."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.errors import Rejected
from swarmd.strategies.plan import (
    Plan,
    PlanLimits,
    PlanTask,
    check_plan,
    cycle,
    longest_path,
    needs,
    read_plan,
    sinks,
    topological,
)

AGENTS = ("echo", "summarise")


def task(name: str, *uses: str, agent: str = "echo", **more: Any) -> PlanTask:
    return PlanTask(name, agent, [{"from": use} for use in uses], **more)


def wrong(*tasks: PlanTask, limits: PlanLimits | None = None, output: Any = None) -> str:
    with pytest.raises(Rejected) as caught:
        check_plan(Plan(list(tasks), output), AGENTS, limits)
    assert caught.value.code == "bad_plan"
    return caught.value.message


def test_a_sound_plan_passes() -> None:
    check_plan(Plan([task("b", "a", "goal"), task("a", after=["goal"])], {"from": "b"}), AGENTS)


def test_a_cycle_is_shown() -> None:
    assert "a → b → c → a" in wrong(task("a", "b"), task("b", "c"), task("c", after=["a"]))
    assert "a → a" in wrong(task("a", "a"))


def test_all_that_is_wrong_is_named_at_once() -> None:
    message = wrong(
        task("a", "nowhere", agent="nobody"),
        task("b", after=["c"]),
        task("a b"),
        task("goal"),
        task("d"),
        task("d", agent=""),
        task("e", seconds=-1),
        output={"from": "z"},
    )
    for part in (
        "9 problems",
        "unknown agent 'nobody': the agents are echo, summarise",
        "uses the result of 'nowhere'",
        "'b' comes after 'c'",
        "'a b' must be",
        "'goal' is the name",
        "'d' is used 2 times",
        "'d' has no agent",
        "-1 seconds",
        "the output uses the result of 'z'",
    ):
        assert part in message


def test_bounds() -> None:
    assert "it has no tasks" in wrong()
    assert "it has 3 tasks, at most 2" in wrong(task("a"), task("b"), task("c"), limits=PlanLimits(tasks=2))
    chain = [task("a"), task("b", "a"), task("c", "b")]
    assert "c → b → a is 3 tasks deep, at most 2" in wrong(*chain, limits=PlanLimits(depth=2))
    fan = [task("a"), *(task(f"b{n}", "a") for n in range(3))]
    assert "3 tasks wait for 'a' directly, at most 2" in wrong(*fan, limits=PlanLimits(fan_out=2))


def test_references_are_found_wherever_they_are() -> None:
    deep = PlanTask("x", "echo", {"k": [{"join": [{"from": "a"}, {"from": "b", "take": "c"}]}]}, after=["a", "d"])
    assert needs(deep) == ["a", "b", "d"]
    assert needs(PlanTask("x", "echo", {"literal": {"from": "a"}})) == []
    assert "is no reference" in wrong(PlanTask("x", "echo", {"from": 3}))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("text", "Expected `object`"),
        ({}, "missing required field `tasks`"),
        ({"tasks": [{"id": "a"}]}, r"missing required field `agent` - at `\$.tasks\[0\]`"),
        ({"tasks": [{"id": "a", "agent": "b", "depends": []}]}, "unknown field `depends`"),
        ({"tasks": [{"id": 1, "agent": "b"}]}, r"Expected `str`, got `int` - at `\$.tasks\[0\].id`"),
    ],
)
def test_what_is_no_plan_names_the_field(value: Any, words: str) -> None:
    with pytest.raises(Rejected, match=words) as caught:
        read_plan(value)
    assert caught.value.code == "bad_plan"


NODES = [f"n{n}" for n in range(8)]
GRAPHS = st.dictionaries(st.sampled_from(NODES), st.lists(st.sampled_from(NODES), max_size=4), max_size=8).map(
    lambda edges: {node: [name for name in names if name in edges] for node, names in edges.items()}
)


@given(GRAPHS)
def test_a_cycle_is_one_and_without_one_there_is_an_order(edges: dict[str, list[str]]) -> None:
    loop = cycle(edges)
    if loop:
        assert len(set(loop)) == len(loop)
        assert all(after in edges[node] for node, after in zip(loop, [*loop[1:], loop[0]], strict=True))
        assert len(topological(edges)) < len(edges)
        return
    order = topological(edges)
    assert sorted(order) == sorted(edges)
    assert all(order.index(name) < order.index(node) for node, names in edges.items() for name in names)
    path = longest_path(edges)
    assert all(after in edges[node] for node, after in pairwise(path))
    depth = {node: 0 for node in edges}
    for node in order:
        depth[node] = 1 + max((depth[name] for name in edges[node]), default=0)
    assert len(path) == max(depth.values(), default=0)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda i: (
            st.lists(i, max_size=3)
            | st.dictionaries(
                st.sampled_from(["tasks", "id", "agent", "input", "after", "from", "take", "join", "literal"]),
                i,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_any_json_is_a_sound_plan_or_a_named_error(value: Any) -> None:
    for wanted in (value, {"tasks": [{"id": "a", "agent": "echo", "input": value}]}):
        try:
            plan = read_plan(wanted)
            check_plan(plan, AGENTS)
        except Rejected as error:
            code = error.code
        else:
            code = "bad_plan"
            assert sinks(plan)
        assert code == "bad_plan"
