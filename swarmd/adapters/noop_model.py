"""A model that says nothing, at once: it measures the runtime around it (`swarmd bench agent`).

It calls the first tool that is offered until the last user turn's number of calls is reached, then answers. Must not
know the network, a clock or randomness.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from swarmd.core.turns import ModelReply, ModelRequest, ToolCall, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

NOOP_NAME: Final = "offline:noop"
_TEXT: Final = "."


class NoopModel:
    """Answers with as many characters as `max_output_tokens` asks for; no tokens are counted."""

    name = NOOP_NAME

    async def complete(self, request: ModelRequest, on_delta: Callable[[str], None] | None = None) -> ModelReply:
        """One call of the first tool as long as the conversation ends with less than its first user turn's number."""
        text = _TEXT * (request.max_output_tokens or 1)
        if on_delta is not None:
            on_delta(text)
        calls = sum(turn.role == "assistant" for turn in request.turns)
        wanted = next((turn.content for turn in request.turns if turn.role == "user"), "")
        if request.tools and wanted.isdecimal() and calls < int(wanted):
            call = ToolCall(f"call{calls}", request.tools[0].name, {"n": calls})
            return ModelReply("", "tool_calls", NOOP_NAME, [call], Usage())
        return ModelReply(text, "stop", NOOP_NAME, [], Usage())

    async def close(self) -> None:
        return None
