"""Agents for tests of budgets: their model answers at once, bills what it says, and counts its calls in a file."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from swarmd import agent
from tests.system.fault_agents import note

if TYPE_CHECKING:
    from swarmd.roles.context import Context


@agent
async def spender(ctx: Context, wanted: Any) -> Any:
    """`steps` steps, `width` of them side by side, each noted before its record."""

    async def act(number: int) -> int:
        note(wanted["ledger"], f"{ctx.task} {number}")
        await asyncio.sleep(0.002)
        return number

    done = 0
    while done < wanted["steps"]:
        row = range(done, min(done + wanted.get("width", 1), wanted["steps"]))
        done += len(await asyncio.gather(*(ctx.step(f"s{number}", act, number) for number in row)))
    return done


@agent
async def household(ctx: Context, wanted: Any) -> Any:
    """`children` spenders, whose failures count as nothing."""
    children = [await ctx.spawn("spender", wanted) for _ in range(wanted["children"])]
    results = await ctx.gather(*children, return_failures=True)
    return sum(result for result in results if isinstance(result, int))
