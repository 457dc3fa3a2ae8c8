"""An agent for tests of MCP tools: it makes the calls that it is given, and keeps on when a server is not there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from swarmd import agent

if TYPE_CHECKING:
    from swarmd.roles.context import Context


@agent
async def caller(ctx: Context, wanted: Any) -> Any:
    """What each call is answered with, in order; a call that found no connection is made again."""
    said = []
    for tool, arguments in wanted:
        while "mcp_unavailable" in (text := await ctx.tool(f"bad__{tool}", arguments)):
            await asyncio.sleep(0.2)
        said.append(text)
    return said
