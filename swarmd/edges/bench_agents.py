"""The agents that benchmarks run: recorded steps with nothing in them, timed from within."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any

from swarmd.adapters.noop_model import NOOP_NAME
from swarmd.core.turns import ModelRequest, Turn
from swarmd.sdk import agent

if TYPE_CHECKING:
    from swarmd.roles.context import Context


@agent
async def asleep(ctx: Context, wanted: Any) -> Any:
    """Waits for an event."""
    return await ctx.wait_event(wanted)


@agent
async def noop_steps(ctx: Context, wanted: Any) -> Any:
    """`steps` model calls that answer `chars` characters each; the milliseconds that each took, if `timed`."""
    took: list[float] = []
    turns = [Turn("user", "on")]
    for _ in range(wanted["steps"]):
        started = perf_counter()
        reply = await ctx.model(ModelRequest(turns, max_output_tokens=wanted["chars"]), model=NOOP_NAME)
        took.append((perf_counter() - started) * 1000)
        if wanted.get("grows"):
            turns = [*turns, Turn("assistant", reply.text), Turn("user", "on")]
    return took if wanted.get("timed") else len(took)


@agent
async def ticking(ctx: Context, wanted: Any) -> Any:
    """`steps` recorded steps, `pause_ms` apart."""
    for number in range(wanted["steps"]):
        await ctx.step("tick", _same, number)
        await asyncio.sleep(wanted["pause_ms"] / 1000)
    return wanted["steps"]


async def _same(number: int) -> int:
    return number
