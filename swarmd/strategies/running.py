"""Runs the tasks of a plan as children: each starts when its inputs are there, the most urgent first.

Job: the thin shell around `order`. One verdict is taken at a time, in the order of the log, and what it makes possible
is started before the next one: so a resumed attempt starts the same children in the same order.
Must not know who made the plan, nor what follows a failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmd.core.errors import Rejected
from swarmd.core.wire import Outcome
from swarmd.strategies.asking import failure_of
from swarmd.strategies.order import Progress, give_up, input_of, rank_ms, settle, start_next
from swarmd.strategies.templates import take

if TYPE_CHECKING:
    from collections.abc import Iterable

    from swarmd.roles.attempt import Child
    from swarmd.roles.context import Context
    from swarmd.strategies.plan import PlanTask


class Running:
    """A plan under way: at most `parallel` children at once. `children` are all that were started, by task's id."""

    def __init__(self, progress: Progress, parallel: int) -> None:
        self.progress, self.parallel = progress, parallel
        self.children: dict[str, Child] = {}
        self.live: dict[str, Child] = {}


async def advance(ctx: Context, run: Running) -> PlanTask | None:
    """Go on until nothing is left to do, or a task fails that the plan needs: return that one.

    What runs beside it goes on running.
    """
    while True:
        failed = await _start(ctx, run)
        if failed is not None or not run.live:
            return failed
        ((child, result), *_) = await ctx.first(*run.live.values())
        name = next(name for name, one in run.live.items() if one.task == child.task)
        del run.live[name]
        task = run.progress.tasks[name]
        if not _ended(run.progress, task, result):
            return task


async def _start(ctx: Context, run: Running) -> PlanTask | None:
    """Fill the room there is; return a needed task that cannot be started."""
    while len(run.live) < run.parallel:
        task = start_next(run.progress)
        if task is None:
            return None
        try:
            given = input_of(task, run.progress)
        except Rejected as error:
            give_up(run.progress, task, f"its input cannot be made: {error.message}")
            if task.optional:
                continue
            return task
        run.live[task.id] = run.children[task.id] = await ctx.spawn(
            task.agent, given, rank_ms=rank_ms(run.progress, task)
        )
    return None


def _ended(progress: Progress, task: PlanTask, result: Any) -> bool:
    """Note a verdict; whether the plan can go on with it."""
    why = failure_of(result)
    if not isinstance(result, Outcome):
        try:
            settle(progress, task, take(result, task.take))
            return True
        except Rejected as error:
            why = error.message
    give_up(progress, task, why)
    return task.optional


async def stop(ctx: Context, run: Running, names: Iterable[str], reason: str) -> None:
    """Cancel these tasks where they still run."""
    children = [run.live.pop(name) for name in names if name in run.live]
    if children:
        await ctx.cancel(*children, reason=reason)
