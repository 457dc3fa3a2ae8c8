"""Tools for tests of durable agents, which note that they were called and wait inside when their gate is shut.

And an agent that has children.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from swarmd import agent, tool
from tests.system.fault_agents import is_open, note, pass_gate

if TYPE_CHECKING:
    from swarmd.roles.context import Context

LEDGER = "SWARMD_TEST_LEDGER"


async def _work(run: str, n: int) -> str:
    folder = os.environ[LEDGER]
    note(os.path.join(folder, "ledger"), f"{run} tool {n}")
    if is_open(os.path.join(folder, f"shut-{run}-{n}")):
        await pass_gate(os.path.join(folder, "gate-open"))
    return f"{n} done"


@agent
async def parent_of(ctx: Context, wanted: Any) -> Any:
    """The outputs of children, given as pairs of agent and input."""
    return await ctx.gather(*[await ctx.spawn(name, one) for name, one in wanted])


@agent
async def strict(ctx: Context, wanted: Any) -> Any:
    """A verifier: accepts only the sum 7."""
    found = json.loads(wanted["answer"])["sum"]
    return found == 7 or f"{found} is not 7"


@tool
async def work(run: str, n: int) -> str:
    """Do piece `n` of a run; doing it twice is as good as once."""
    return await _work(run, n)


@tool(side_effects="at_most_once")
async def pay(run: str, n: int) -> str:
    """Do piece `n` of a run, which must not be done twice."""
    return await _work(run, n)
