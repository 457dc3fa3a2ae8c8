"""The agents that `swarmd bench scale` runs: a macro-task that is spread over swarms and gathered again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from swarmd.sdk import agent

if TYPE_CHECKING:
    from swarmd.roles.context import Context


@agent
async def leaf(ctx: Context, wanted: Any) -> Any:
    """A sub-task: its input comes back."""
    return wanted


@agent
async def section(ctx: Context, wanted: Any) -> int:
    """`count` sub-tasks from number `first` on, in the swarm that this runs in; the sum of what they return."""
    children = await _spread(ctx, range(wanted["first"], wanted["first"] + wanted["count"]))
    total: int = sum(await ctx.gather(*children))
    return total


@agent
async def macro(ctx: Context, wanted: Any) -> int:
    """`count` sub-tasks as children of one task, or in as many sections as `sections` names swarms; the sum."""
    count, sections = wanted["count"], wanted.get("sections")
    if sections is None:
        children = await _spread(ctx, range(count))
        return sum(await ctx.gather(*children))
    cuts = [count * number // len(sections) for number in range(len(sections) + 1)]
    parts = [
        await ctx.spawn("section", {"first": first, "count": end - first}, swarm=swarm)
        for swarm, first, end in zip(sections, cuts, cuts[1:], strict=False)
    ]
    return sum(await ctx.gather(*parts))


async def _spread(ctx: Context, numbers: range) -> list[Any]:
    """All at once: what queues up while a commit is in flight travels in the next one."""
    return list(await asyncio.gather(*(ctx.spawn("leaf", number) for number in numbers)))
