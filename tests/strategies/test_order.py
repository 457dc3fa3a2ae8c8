"""A running plan: no barriers, the critical path first, and the same decisions again from the same ends."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.errors import Rejected
from swarmd.strategies.order import (
    Progress,
    begun,
    estimated,
    give_up,
    input_of,
    is_done,
    output_of,
    rank_ms,
    remaining,
    revised,
    settle,
    start_next,
)
from swarmd.strategies.plan import Plan, PlanLimits, PlanTask, check_plan, needs

if TYPE_CHECKING:
    from collections.abc import Callable

LIMITS = PlanLimits()


def task(name: str, *uses: str, **more: Any) -> PlanTask:
    return PlanTask(name, "echo", [{"from": use} for use in uses], **more)


def begin(*tasks: PlanTask, output: Any = None) -> Progress:
    plan = Plan(list(tasks), output)
    check_plan(plan, ())
    return begun(plan, {"goal": "g"})


def started(progress: Progress) -> list[str]:
    names = []
    while (one := start_next(progress)) is not None:
        names.append(one.id)
    return names


def finish(progress: Progress, name: str, value: Any = 1) -> list[str]:
    settle(progress, progress.tasks[name], value)
    return started(progress)


def test_a_task_starts_the_moment_its_inputs_are_there() -> None:
    progress = begin(task("a"), task("b"), task("a2", "a"), task("b2", "b"), task("end", "a2", "b2"))
    assert started(progress) == ["a", "b"]
    assert finish(progress, "a") == ["a2"]  # b still runs
    assert finish(progress, "a2") == []
    assert finish(progress, "b") == ["b2"]
    assert finish(progress, "b2") == ["end"]
    assert not is_done(progress)
    assert finish(progress, "end", {"x": 1}) == []
    assert is_done(progress)
    assert output_of(progress) == {"x": 1}


def test_the_longest_remaining_path_goes_first() -> None:
    tasks = (task("leaf"), task("slow", seconds=5), task("long"), task("l2", "long"), task("l3", "l2"))
    progress = begin(*tasks)
    assert remaining(progress.plan) == {"leaf": 1, "slow": 5, "long": 3, "l2": 2, "l3": 1}
    assert [rank_ms(progress, one) for one in tasks] == [1_000, 5_000, 3_000, 2_000, 1_000]
    assert started(progress) == ["slow", "long", "leaf"]


def test_tasks_without_an_estimate_take_what_their_agent_takes() -> None:
    plan = Plan([task("a"), task("b", "a", seconds=9), PlanTask("c", "new"), PlanTask("d", "slow")])
    known = estimated(plan, {"echo": 4_000, "slow": 8_000})
    assert [one.seconds for one in known.tasks] == [4, 9, 6, 8]
    assert estimated(plan, {}) == plan


def test_results_are_what_nobody_used_or_what_was_asked_for() -> None:
    progress = begin(task("a"), task("b"))
    started(progress)
    finish(progress, "a", 1)
    finish(progress, "b", 2)
    assert output_of(progress) == {"a": 1, "b": 2}
    progress = begin(task("a"), output={"was": {"from": "goal"}})
    finish(progress, "a")
    assert output_of(progress) == {"was": "g"}


def test_an_optional_failure_is_missing_and_what_lives_of_it_alone_too() -> None:
    progress = begin(
        task("a", optional=True),
        task("b"),
        task("c", "a", "b"),
        task("d", "a", "goal"),
        output=[{"from": "c"}, {"from": "d"}],
    )
    assert started(progress) == ["a", "b"]
    give_up(progress, progress.tasks["a"], "broken")
    assert started(progress) == []
    assert progress.failed == {"a": "broken", "d": "all of its inputs are missing"}
    assert finish(progress, "b", "B") == ["c"]
    assert input_of(progress.tasks["c"], progress) == ["B"]
    finish(progress, "c", "C")
    assert is_done(progress)
    assert output_of(progress) == ["C"]


# --- planning anew ---------------------------------------------------------------------------------


def halfway() -> Progress:
    """a is done, b failed, r runs, e waits."""
    progress = begin(task("a"), task("b"), task("r"), task("e", "a", "b", "r"))
    started(progress)
    finish(progress, "a", "A")
    give_up(progress, progress.tasks["b"], "broken")
    return progress


def test_a_new_plan_uses_what_is_done_and_what_runs() -> None:
    progress, unneeded = revised(halfway(), Plan([task("c"), task("e", "a", "c", "r")]), {"echo"}, LIMITS)
    assert unneeded == []
    assert started(progress) == ["c"]
    assert finish(progress, "r") == []
    assert finish(progress, "c", "C") == ["e"]
    assert input_of(progress.tasks["e"], progress) == ["A", "C", 1]
    finish(progress, "e", "E")
    assert output_of(progress) == "E"


def test_what_runs_and_nobody_needs_is_named() -> None:
    progress, unneeded = revised(halfway(), Plan([task("c", "a")]), {"echo"}, LIMITS)
    assert unneeded == ["r"]
    assert started(progress) == ["c"]
    finish(progress, "c", "C")
    assert is_done(progress)
    assert output_of(progress) == "C"


def test_what_failed_may_be_tried_again_and_what_is_repeated_is_not() -> None:
    again = Plan([task("a"), task("b"), task("r"), task("e", "a", "b", "r")])
    progress, unneeded = revised(halfway(), again, {"echo"}, LIMITS)
    assert unneeded == []
    assert started(progress) == ["b"]


def test_a_new_plan_may_make_do_with_what_there_is() -> None:
    progress, unneeded = revised(halfway(), Plan([], {"from": "a"}), {"echo"}, LIMITS)
    assert (is_done(progress), unneeded, output_of(progress)) == (True, ["r"], "A")


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan([task("a", "goal")]), "'a' is the name of something that is known already"),
        (Plan([task("r", "goal")]), "'r' is the name of something that is known already"),
        (Plan([task("x", "b")]), "uses the result of 'b'"),
        (Plan([]), "it has no tasks"),
        (Plan([PlanTask("x", "nobody")]), "unknown agent"),
        (Plan([task("x", "y"), task("y", "x")]), "x → y → x"),
    ],
)
def test_an_unsound_new_plan_is_refused(plan: Plan, words: str) -> None:
    with pytest.raises(Rejected, match=words):
        revised(halfway(), plan, {"echo"}, LIMITS)


# --- properties ------------------------------------------------------------------------------------


@st.composite
def plans(draw: Any) -> Plan:
    size = draw(st.integers(1, 14))
    tasks = []
    for n in range(size):
        uses = draw(st.lists(st.integers(0, n - 1), max_size=3, unique=True)) if n else []
        tasks.append(task(f"t{n}", *(f"t{use}" for use in uses), seconds=draw(st.integers(1, 9))))
    return Plan(draw(st.permutations(tasks)))


def makespan(plan: Plan, machines: int, end: Callable[[str], None] = lambda name: None) -> float:
    """How long the plan takes on so many machines; `end` is told each end, in order."""
    progress, ties = begun(plan, {}), count()
    running: list[tuple[float, int, str]] = []
    now, seen = 0.0, set[str]()
    while True:
        while len(running) < machines and (one := start_next(progress)) is not None:
            assert one.id not in seen
            assert all(name in progress.values for name in needs(one))
            seen.add(one.id)
            heappush(running, (now + one.seconds, next(ties), one.id))
        if not running:
            assert is_done(progress)
            return now
        now, _, name = heappop(running)
        end(name)
        settle(progress, progress.tasks[name], name)


@given(plans(), st.integers(1, 5))
def test_every_schedule_is_sound_and_within_the_bound_of_list_scheduling(plan: Plan, machines: int) -> None:
    lower = max(max(remaining(plan).values()), sum(one.seconds for one in plan.tasks) / machines)
    took = makespan(plan, machines)
    assert lower <= took <= (2 - 1 / machines) * lower + 1e-9
    assert makespan(plan, len(plan.tasks)) == max(remaining(plan).values())


@given(plans(), st.integers(1, 5))
def test_the_same_ends_lead_to_the_same_starts(plan: Plan, machines: int) -> None:
    """A resumed attempt knows all ends at once and must start the same tasks in the same order."""
    ends: list[str] = []
    makespan(plan, machines, ends.append)

    def starts(known: list[str]) -> list[str]:
        progress, live, order = begun(plan, {}), set[str](), list[str]()
        for end in known:
            while len(live) < machines and (one := start_next(progress)) is not None:
                live.add(one.id)
                order.append(one.id)
            live.remove(end)
            settle(progress, progress.tasks[end], end)
        return order

    whole = starts(ends)
    assert sorted(whole) == sorted(one.id for one in plan.tasks)
    for cut in range(len(ends)):
        assert starts(ends[:cut]) == whole[: len(starts(ends[:cut]))]
