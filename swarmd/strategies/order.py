"""Which task of a plan starts next: as soon as its inputs are there, and the longest remaining path first.

Job: the pure state of a running plan. Its shell starts what `startable` names and tells it each end; there are no
rounds and no barriers. Every decision follows from the plan and the order of the ends, so a resumed shell that reads
the same ends in the same order decides the same.
Critical path first is list scheduling by level: Hu, "Parallel sequencing and assembly line problems" (1961); any list
schedule is at most 2 - 1/m times as long as the best on m machines: Graham, "Bounds on multiprocessing timing
anomalies" (1969).
Must not know contexts, clocks or what a task does.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field, structs

from swarmd.strategies.plan import Plan, PlanLimits, PlanTask, check_plan, needs, sinks, topological
from swarmd.strategies.templates import MISSING, fill, references

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

#: What a task without an estimate is taken to last: tasks of a plan then count alike.
SECONDS: Final = 1.0


class Progress(Struct):
    """How far a plan is. `values` are results by id, with what was given; `failed` says why, by id.

    `left` is the remaining path of each task in seconds, `users` who waits for a value, `open_needs` how many values
    a task still waits for, `ready` a heap of the tasks that can start.
    """

    plan: Plan
    values: dict[str, Any]
    started: set[str]
    failed: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, PlanTask] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)
    users: dict[str, list[str]] = field(default_factory=dict)
    open_needs: dict[str, int] = field(default_factory=dict)
    ready: list[tuple[float, int, str]] = field(default_factory=list)


def begun(plan: Plan, values: Mapping[str, Any], started: Collection[str] = ()) -> Progress:
    """A sound plan of which `values` are known and `started` need not be started."""
    progress = Progress(plan, dict(values), set(started), left=remaining(plan))
    for place, task in enumerate(plan.tasks):
        progress.tasks[task.id], progress.places[task.id] = task, place
        missing = [name for name in needs(task) if name not in values]
        for name in missing:
            progress.users.setdefault(name, []).append(task.id)
        progress.open_needs[task.id] = len(missing)
        if not missing and task.id not in progress.started and task.id not in values:
            progress.ready.append((-progress.left[task.id], place, task.id))
    heapify(progress.ready)
    return progress


def remaining(plan: Plan) -> dict[str, float]:
    """Seconds from the start of each task to the end of the longest path that begins with it."""
    tasks = {task.id: task for task in plan.tasks}
    edges = {task.id: [name for name in needs(task) if name in tasks] for task in plan.tasks}
    left = {task.id: 0.0 for task in plan.tasks}
    for name in reversed(topological(edges)):
        left[name] += tasks[name].seconds or SECONDS  # until here it held the longest path of those that wait for it
        for needed in edges[name]:
            left[needed] = max(left[needed], left[name])
    return left


def estimated(plan: Plan, durations: Mapping[str, int]) -> Plan:
    """The plan with estimates: a task that has none takes what its agent does (milliseconds), or the mean of these."""
    typical = sum(durations.values()) / len(durations) / 1000 if durations else 0.0
    tasks = [
        task if task.seconds else structs.replace(task, seconds=durations.get(task.agent, 0) / 1000 or typical)
        for task in plan.tasks
    ]
    return Plan(tasks, plan.output)


def rank_ms(progress: Progress, task: PlanTask) -> int:
    """Milliseconds that the plan will take from the start of this task on: its remaining path."""
    return round(1000 * progress.left[task.id])


def start_next(progress: Progress) -> PlanTask | None:
    """Take the most urgent task that can start; a task all of whose inputs are missing is missing without a start."""
    while progress.ready:
        task = progress.tasks[heappop(progress.ready)[2]]
        progress.started.add(task.id)
        inputs = [progress.values[name] for name in references(task.input) if name in progress.tasks]
        if not inputs or any(value is not MISSING for value in inputs):
            return task
        progress.failed[task.id] = "all of its inputs are missing"
        settle(progress, task, MISSING)
    return None


def input_of(task: PlanTask, progress: Progress) -> Any:
    """What the task is given, once its inputs are there."""
    return fill(task.input, progress.values)


def is_done(progress: Progress) -> bool:
    """Whether every task has a value, or the lack of one that the plan allows."""
    return all(task.id in progress.values for task in progress.plan.tasks)


def output_of(progress: Progress) -> Any:
    """The result of a plan that is done: its `output`, else what no other task used (one value, or values by id)."""
    plan = progress.plan
    if plan.output is not None:
        return fill(plan.output, progress.values)
    last = sinks(plan)
    if len(last) == 1:
        return fill({"from": last[0]}, progress.values)
    return {name: fill({"from": name}, progress.values) for name in last}


def settle(progress: Progress, task: PlanTask, value: Any) -> None:
    """The task has a value: who waits for nothing else can start."""
    progress.values[task.id] = value
    for user in progress.users.pop(task.id, ()):
        progress.open_needs[user] -= 1
        if not progress.open_needs[user]:
            heappush(progress.ready, (-progress.left[user], progress.places[user], user))


def give_up(progress: Progress, task: PlanTask, why: str) -> None:
    """The task failed; an optional one is missing from now on."""
    progress.failed[task.id] = why
    if task.optional:
        settle(progress, task, MISSING)


def revised(progress: Progress, plan: Plan, agents: Collection[str], limits: PlanLimits) -> tuple[Progress, list[str]]:
    """The progress with another plan for what is left, and the ids of running tasks that nobody needs any more.

    Results stay under their ids. A task of the new plan that is done or running already, with the same id, agent and
    input, means that one. What failed may be tried again under its id. Raises `Rejected("bad_plan")`.
    """
    old = {task.id: task for task in progress.plan.tasks}
    running = [name for name in old if name in progress.started and name not in {*progress.values, *progress.failed}]
    known = {*progress.values, *running}
    fresh = [task for task in plan.tasks if task.id not in known or not _same(task, old.get(task.id))]
    output = _default_output(plan) if plan.output is None and plan.tasks else plan.output
    check_plan(Plan(fresh, output), agents, limits, known)
    wanted = {name for task in plan.tasks for name in (task.id, *needs(task))} | set(references(output))
    unneeded = [name for name in running if name not in wanted]
    stays = {name for name in known if name not in unneeded}
    merged = Plan([*(task for name, task in old.items() if name in stays), *fresh], output)
    return begun(merged, progress.values, stays), unneeded


def _same(one: PlanTask, other: PlanTask | None) -> bool:
    return other is not None and (one.agent, one.input) == (other.agent, other.input)


def _default_output(plan: Plan) -> Any:
    last = sinks(plan)
    return {"from": last[0]} if len(last) == 1 else {name: {"from": name} for name in last}
