"""orchestrator_workers: a planner splits a goal into a plan of tasks, agents do them, a verifier looks at the result.

A plan that is unsound goes back to the planner with what is wrong; a task that fails or a result that is refused
makes it plan what is left anew, a bounded number of times. What was done is not done again.
Must not know what the agents do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct, field

from swarmd.core.errors import Rejected
from swarmd.core.ids import check_name
from swarmd.sdk import agent
from swarmd.strategies.asking import AnyCall, Call, Prompt, ask_for, call_of, quoted, read
from swarmd.strategies.order import begun, estimated, output_of, revised
from swarmd.strategies.plan import GIVEN, Plan, PlanLimits, check_plan, read_plan
from swarmd.strategies.running import Running, advance, stop
from swarmd.strategies.templates import as_text, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.roles.context import Context
    from swarmd.strategies.order import Progress

EXAMPLE: Final = '{"goal": "compare a and b", "agents": {"summarise": "shortens a text"}}'
SHOWN_CHARS: Final = 1_000
PLANNING: Final = """\
You split a goal into tasks for agents. Answer with one JSON object and nothing else:
{"tasks": [{"id": "a", "agent": "NAME", "input": ...}, ...], "output": ...}
Each id is unique. "agent" is one of those listed. "input" is any JSON; inside it {"from": "a"} stands for the whole \
result of task a, {"from": "a", "take": "field"} for a field of it, {"join": [...], "with": "\\n"} for texts in one, \
and {"from": "goal"} for the goal. A task starts as soon as the results that it uses are there, so use only those that \
it needs. "after": ["a"] makes a task wait without using the result. "seconds" is how long a task will take, if you \
know. "output" is made like an input; without it the results that no task uses are the result."""
REPLANNING: Final = (
    "\nYou planned this before. Results in `values` can be used by their ids and are not made again. Plan only what is "
    "left to do, and give new work a new id; a task that failed may be tried again under its id."
)
VERIFYING: Final = """\
You check whether a result reaches a goal. Look for what is wrong, missing or not supported. Answer with one \
JSON object and nothing else: {"ok": true} or {"ok": false, "problems": "what is wrong, in a few sentences"}."""


class Job(Struct, frozen=True, forbid_unknown_fields=True):
    """What `orchestrator_workers` takes.

    `agents` are those that a plan may use, with a word on each. The plan is `plan`, or the planner's: an agent, a
    model, or the default model. `verifier` checks the result; without one nobody does. `replans` bounds new plans
    after failed tasks, `rounds` those after refused results; `parallel` how many tasks run at once.
    """

    goal: Any
    agents: dict[str, str] | list[str]
    plan: Any = None
    planner: AnyCall | None = None
    verifier: AnyCall | None = None
    limits: PlanLimits = field(default_factory=PlanLimits)
    parallel: Annotated[int, Meta(ge=1, le=1_000)] = 16
    replans: Annotated[int, Meta(ge=0, le=20)] = 2
    rounds: Annotated[int, Meta(ge=0, le=20)] = 2


class Check(Struct, frozen=True):
    """A verifier's answer."""

    ok: bool
    problems: str = ""


@agent
async def orchestrator_workers(ctx: Context, wanted: Any) -> dict[str, Any]:
    """A `Job` in; {"result", "verified", "replans", "rounds", "tasks", "failed"} out.

    `verified` is null without a verifier, `tasks` are the ids of the children, `failed` tells why tasks failed that
    the result could do without. Raises `Rejected`: `bad_input`, `bad_plan`, `bad_answer`, `task_failed`,
    `bad_output`, `not_verified`.
    """
    job = read(Job, wanted, EXAMPLE)
    if not job.agents:
        raise Rejected("bad_input", f"agents is empty: name those that a plan may use; an example: {EXAMPLE}")
    for name in job.agents:
        check_name("agent", name)
    run = Running(begun(await _first_plan(ctx, job), {GIVEN: job.goal}), job.parallel)
    failures: dict[str, str] = {}
    replans = rounds = 0
    while True:
        failed = await advance(ctx, run)
        failures |= run.progress.failed
        if failed is None:
            code, trouble, result = "not_verified", "", None
            try:
                result = output_of(run.progress)
            except Rejected as error:
                code, trouble = "bad_output", f"the plan's output cannot be made: {error.message}"
            trouble = trouble or await _refused(ctx, job, result)
            if not trouble:
                tasks = {name: child.task for name, child in run.children.items()}
                verified = None if job.verifier is None else True
                return {
                    "result": result,
                    "verified": verified,
                    "replans": replans,
                    "rounds": rounds,
                    "tasks": tasks,
                    "failed": failures,
                }
            left, rounds = job.rounds - rounds, rounds + 1
        else:
            code = "task_failed"
            trouble = f"task {failed.id!r} of agent {failed.agent!r} failed: {run.progress.failed[failed.id]}"
            left, replans = job.replans - replans, replans + 1
        if left <= 0 or _is_fixed(job):
            await stop(ctx, run, list(run.live), trouble[:200])
            why = "there is a plan and no planner" if _is_fixed(job) else "no new plan is left"
            raise Rejected(code, f"{trouble} ({why})")
        await _replan(ctx, job, run, trouble)


def _is_fixed(job: Job) -> bool:
    """Whether nobody is there to plan again."""
    return job.plan is not None and job.planner is None


async def _first_plan(ctx: Context, job: Job) -> Plan:
    def sound(value: Any) -> Plan:
        plan = read_plan(value)
        check_plan(plan, job.agents, job.limits)
        return plan

    plan = sound(job.plan) if job.plan is not None else await _planned(ctx, job, sound)
    return estimated(plan, await ctx.durations(*sorted({task.agent for task in plan.tasks})))


async def _planned(ctx: Context, job: Job, sound: Callable[[Any], Plan]) -> Plan:
    return await ask_for(ctx, _planner(job), _planning(job), "planner", sound)


async def _replan(ctx: Context, job: Job, run: Running, trouble: str) -> None:
    """Plan what is left anew, and cancel what nobody needs any more."""
    progress = run.progress

    def sound(value: Any) -> tuple[Progress, list[str]]:
        return revised(progress, read_plan(value), job.agents, job.limits)

    run.progress, unneeded = await ask_for(ctx, _planner(job), _planning(job, progress, trouble), "planner", sound)
    await stop(ctx, run, unneeded, "the new plan does not need it")


def _planner(job: Job) -> Call:
    return Call() if job.planner is None else call_of(job.planner)


def _planning(job: Job, progress: Progress | None = None, trouble: str = "") -> Prompt:
    """What a planner is told; the second time with what came of its plan."""
    agents = job.agents if isinstance(job.agents, dict) else dict.fromkeys(job.agents, "")
    limits = job.limits
    values: dict[str, Any] = {"goal": job.goal, "agents": agents, "limits": msgspec.to_builtins(limits)}
    text = [f"Goal: {as_text(job.goal)}", "Agents:", *(f"- {name}: {what}" for name, what in agents.items())]
    text.append(
        f"At most {limits.tasks} tasks, {limits.depth} in a row, {limits.fan_out} that use the result of the same one."
    )
    if progress is None:
        return Prompt({"instructions": PLANNING, **values}, PLANNING, "\n".join(text))
    done = {name: shown(value, SHOWN_CHARS) for name, value in progress.values.items() if name in progress.tasks}
    over = {*progress.values, *progress.failed}
    running = [name for name in progress.tasks if name in progress.started and name not in over]
    values |= {"trouble": trouble, "plan": msgspec.to_builtins(progress.plan), "values": done, "running": running}
    results = "\n".join(f"- {name}: {value}" for name, value in done.items())
    text += ["", "What went wrong:", quoted("trouble", trouble), "The plan so far:", as_text(values["plan"])]
    text += ["Results so far (`values`):", quoted("results", results or "none")]
    text.append(f"Still running: {', '.join(running) or 'nothing'}")
    return Prompt({"instructions": PLANNING + REPLANNING, **values}, PLANNING + REPLANNING, "\n".join(text))


async def _refused(ctx: Context, job: Job, result: Any) -> str:
    """What the verifier has against the result; "" when it has nothing, or there is no verifier."""
    if job.verifier is None:
        return ""

    def checked(value: Any) -> Check:
        try:
            return msgspec.convert(value, Check)
        except msgspec.ValidationError as error:
            raise Rejected("bad_check", f'{error}; the answer is {{"ok": true or false, "problems": "…"}}') from None

    values = {"instructions": VERIFYING, "goal": job.goal, "result": result}
    text = f"Goal: {as_text(job.goal)}\n\nResult:\n{quoted('result', as_text(result))}"
    found = await ask_for(ctx, call_of(job.verifier), Prompt(values, VERIFYING, text), "verifier", checked)
    return "" if found.ok else f"the verifier refuses the result: {found.problems or 'it does not say why'}"
