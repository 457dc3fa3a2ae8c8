"""A module with tools and no agents, as somebody would give it to a worker."""

from __future__ import annotations

from swarmd.sdk_tools import tool


@tool(side_effects="none")
def shout(text: str) -> str:
    """Say it loudly."""
    return text.upper()


@tool(side_effects="at_most_once", timeout_s=5)
async def order(item: str, idempotency_key: str = "") -> str:
    """Order an item."""
    return f"{item} {idempotency_key}"
