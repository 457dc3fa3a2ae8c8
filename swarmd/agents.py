"""The built-in agents: `echo` returns its input, `summarise` shortens a text with the default model.

They show what an agent looks like, and make a fresh `swarmd up` useful. Must not know which model answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from swarmd.core.turns import Turn
from swarmd.sdk import agent

if TYPE_CHECKING:
    from swarmd.roles.context import Context

SUMMARISE: Final = "Summarise the text in three to five sentences. Use only what it says."


@agent
async def echo(ctx: Context, wanted: Any) -> Any:
    """Any JSON in, the same JSON out."""
    return wanted


@agent
async def summarise(ctx: Context, wanted: Any) -> dict[str, Any]:
    """A text, {"text": …} or {"path": …} (under the allowed roots) in; {"summary", "model", "offline"} out.

    `offline` is true when the extractive model answered: its summary is made of the text's own sentences.
    """
    text = await _text_of(ctx, wanted)
    reply = await ctx.model([Turn("system", SUMMARISE), Turn("user", text)])
    return {"summary": reply.text, "model": reply.model, "offline": reply.model.startswith("offline:")}


async def _text_of(ctx: Context, wanted: Any) -> str:
    from swarmd.roles.attempt import AgentFailed

    asked = {"text": wanted} if isinstance(wanted, str) else wanted
    if isinstance(asked, dict) and isinstance(asked.get("text"), str) and asked["text"].strip():
        return str(asked["text"])
    if isinstance(asked, dict) and isinstance(asked.get("path"), str):
        text = await ctx.tool("read_file", {"path": asked["path"]})
        if text.startswith("error: "):
            raise AgentFailed("unreadable", text.removeprefix("error: "), retryable=False)
        return text
    what = 'summarise wants a text, {"text": "…"} or {"path": "…"}'
    raise AgentFailed("bad_input", what, retryable=False)
