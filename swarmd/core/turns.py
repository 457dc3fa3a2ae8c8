"""What a model is asked and what it answers, in terms that no provider owns.

A conversation is a list of turns. Nothing here knows HTTP, a vendor or a price.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

Role = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "tool_calls", "content_filter"]


class ToolSpec(Struct, frozen=True, omit_defaults=True):
    """A tool as a model sees it; `parameters` is a JSON Schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


class ToolCall(Struct, omit_defaults=True):
    """A model's wish to call a tool; `id` pairs it with its result turn.

    `problem` says why the arguments that came could not be read. Such a call must not be performed: its problem is its
    result, for the model to see and mend.
    """

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


class Turn(Struct, omit_defaults=True):
    """One entry of a conversation; `tool_call_id` is set on role `tool` only."""

    role: Role
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_call_id: str = ""


class Usage(Struct, omit_defaults=True):
    """Tokens billed by a provider, or counted by us as characters / 4 when `estimated`.

    `cost_microusd` is in millionths of a US dollar: as the provider says, else from the price table; None is unknown.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False
    cost_microusd: int | None = None


class ModelRequest(Struct, omit_defaults=True):
    """One call of a model. `temperature` and `max_output_tokens` of None leave the provider's default.

    `schema` is a JSON Schema that the answer's text, read as JSON, is wanted to fit. A provider may ignore it, so
    whoever asks checks the answer (`swarmd.structured`).
    """

    turns: list[Turn]
    tools: list[ToolSpec] = field(default_factory=list)
    temperature: float | None = None
    max_output_tokens: int | None = None
    schema: dict[str, Any] | None = None


class ModelReply(Struct, omit_defaults=True):
    """A validated answer: text, tool calls or both; `model` names what really answered.

    `took_ms` is the time of the call, `first_token_ms` until the first piece of a streamed answer (None: not streamed).
    """

    text: str
    finish: Finish
    model: str
    tool_calls: list[ToolCall] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    took_ms: int = 0
    first_token_ms: int | None = None
