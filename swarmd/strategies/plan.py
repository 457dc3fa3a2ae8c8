"""A plan: tasks that use each other's results, and what must hold before it is run.

Job: decode and check a plan, whoever wrote it (a person, a program, a model), and tell all that is wrong with it at
once, so that its author can mend it. A plan is a directed acyclic graph; its edges are the references in the tasks'
inputs (`{"from": "id"}`, see `templates`) and what they are to come `after`.
Pure. Must not know who runs a plan, nor what its agents do.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct, field

from swarmd.core.errors import Rejected
from swarmd.strategies.templates import references, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

#: The names of what a plan is given; a task cannot have them.
GIVEN: Final = "goal"
_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
SECONDS_MAX: Final = 365 * 24 * 3600


class PlanTask(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One task: `agent` gets `input` with its references filled; `take` is the part of its output that counts.

    `seconds` is how long it is expected to take. An `optional` task may fail: its value is then missing.
    """

    id: str
    agent: str
    input: Any = None
    after: list[str] = field(default_factory=list)
    take: str = ""
    seconds: float = 0.0
    optional: bool = False


class Plan(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Tasks in any order. `output` is a template; without it the result is what no other task uses."""

    tasks: list[PlanTask]
    output: Any = None


class PlanLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """How large a plan may be: its tasks, the tasks of its longest path, the direct dependents of one task."""

    tasks: int = 50
    depth: int = 10
    fan_out: int = 20


def read_plan(value: Any) -> Plan:
    """A plan from JSON that was decoded. Raises `Rejected("bad_plan")` naming the field that is wrong."""
    try:
        return msgspec.convert(value, Plan)
    except msgspec.ValidationError as error:
        raise Rejected("bad_plan", f"{error}; got {shown(value)}") from None


def needs(task: PlanTask) -> list[str]:
    """What a task waits for, each once, in the order in which it is named."""
    return list(dict.fromkeys([*references(task.input), *task.after]))


def check_plan(
    plan: Plan, agents: Collection[str], limits: PlanLimits | None = None, given: Collection[str] = (GIVEN,)
) -> None:
    """Raise `Rejected("bad_plan")` with everything that is wrong. `given` are the names of known values.

    `agents` are those that a plan may use; an empty collection stands for any.
    """
    found = list(problems(plan, agents, limits or PlanLimits(), given))
    if found:
        count = "a problem" if len(found) == 1 else f"{len(found)} problems"
        raise Rejected("bad_plan", f"the plan has {count}: {'; '.join(found)}")


def problems(plan: Plan, agents: Collection[str], limits: PlanLimits, given: Collection[str]) -> Iterator[str]:
    """What is wrong with a plan, in words. The graph is looked at once each task is sound by itself."""
    if not plan.tasks and (plan.output is None or set(given) <= {GIVEN}):  # else it makes do with what is known
        yield "it has no tasks"
        return
    if len(plan.tasks) > limits.tasks:
        yield f"it has {len(plan.tasks)} tasks, at most {limits.tasks} are allowed"
        return
    ids = [task.id for task in plan.tasks]
    wrong = list(_ids(ids, given))
    for task in plan.tasks:
        wrong += _task(task, agents, {*ids, *given})
    wrong += _references("the output", plan.output, {*ids, *given})
    if wrong:
        yield from wrong
        return
    edges = {task.id: [name for name in needs(task) if name not in given] for task in plan.tasks}
    loop = cycle(edges)
    if loop:
        yield f"tasks wait for each other: {' → '.join([*loop, loop[0]])} (→: waits for)"
        return
    deepest = longest_path(edges)
    if len(deepest) > limits.depth:
        yield f"{' → '.join(deepest)} is {len(deepest)} tasks deep, at most {limits.depth} are allowed"
    for name, count in Counter(name for names in edges.values() for name in names).items():
        if count > limits.fan_out:
            yield f"{count} tasks wait for {name!r} directly, at most {limits.fan_out} are allowed"


def _ids(ids: Sequence[str], given: Collection[str]) -> Iterator[str]:
    for name, count in Counter(ids).items():
        if not _ID.fullmatch(name):
            yield f"id {shown(name, 80)!r} must be 1 to 64 of A-Z a-z 0-9 _ - ."
        elif name in given:
            yield f"id {name!r} is the name of something that is known already: choose another"
        elif count > 1:
            yield f"id {name!r} is used {count} times: ids are unique"


def _task(task: PlanTask, agents: Collection[str], known: Collection[str]) -> Iterator[str]:
    where = f"task {shown(task.id, 80)!r}"
    if not task.agent:
        yield f"{where} has no agent"
    elif agents and task.agent not in agents:
        yield f"{where} wants the unknown agent {task.agent!r}: the agents are {', '.join(sorted(agents))}"
    if not 0 <= task.seconds <= SECONDS_MAX:
        yield f"{where} is expected to take {task.seconds} seconds: that must be from 0 to {SECONDS_MAX}"
    yield from _references(where, task.input, known)
    for name in task.after:
        if name not in known:
            yield f"{where} comes after {shown(name, 80)!r}, which is no task"


def _references(where: str, template: Any, known: Collection[str]) -> Iterator[str]:
    try:
        for name in dict.fromkeys(references(template)):
            if name not in known:
                listed = ", ".join(sorted(known)[:20])
                yield f"{where} uses the result of {shown(name, 80)!r}, which is not one of {listed}"
    except Rejected as error:
        yield f"{where}: {error.message}"


def cycle(edges: Mapping[str, Sequence[str]]) -> list[str]:
    """A cycle of a graph given as successors, without its first node repeated; empty if there is none.

    Depth-first search with three colours (Cormen et al., "Introduction to Algorithms", section on depth-first
    search), without recursion.
    """
    done: set[str] = set()
    for root in edges:
        path: list[str] = []
        on_path: set[str] = set()
        waiting: list[tuple[str, bool]] = [(root, False)]
        while waiting:
            node, left = waiting.pop()
            if left:
                path.pop()
                on_path.discard(node)
                done.add(node)
            elif node in on_path:
                return path[path.index(node) :]
            elif node not in done:
                path.append(node)
                on_path.add(node)
                waiting.append((node, True))
                waiting += [(name, False) for name in reversed(edges.get(node, ()))]
    return []


def longest_path(edges: Mapping[str, Sequence[str]]) -> list[str]:
    """The longest path of an acyclic graph given as successors, from the node that comes last to the first."""
    best: dict[str, str] = {}
    lengths: dict[str, int] = {}
    for node in topological(edges):
        following = max(edges[node], key=lambda name: lengths[name], default="")
        lengths[node] = 1 + lengths.get(following, 0)
        best[node] = following
    path: list[str] = []
    node = max(lengths, key=lambda name: lengths[name], default="")
    while node:
        path.append(node)
        node = best[node]
    return path


def topological(edges: Mapping[str, Sequence[str]]) -> list[str]:
    """The nodes of an acyclic graph, each after all that it waits for, else in the order given."""
    waiters: dict[str, list[str]] = {node: [] for node in edges}
    open_needs = {node: len(set(names)) for node, names in edges.items()}
    for node, names in edges.items():
        for name in dict.fromkeys(names):
            waiters[name].append(node)
    order = [node for node, count in open_needs.items() if not count]
    for node in order:  # grows while it is walked
        for waiter in waiters[node]:
            open_needs[waiter] -= 1
            if not open_needs[waiter]:
                order.append(waiter)
    return order


def sinks(plan: Plan) -> list[str]:
    """The ids of the tasks that no other task uses, in the plan's order."""
    used = {name for task in plan.tasks for name in needs(task)}
    return [task.id for task in plan.tasks if task.id not in used]
