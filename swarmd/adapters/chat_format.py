"""The chat-completions format: the JSON answer as a validated reply.

Job: everything about the format that needs no network, so that hostile answers can be tested by the thousand.
Invariants: whatever bytes a server sends, `parse_answer` returns a sound reply or raises `Fault` or `Rejected`.
Must not know: HTTP, keys, retries.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import Struct, field

from swarmd.adapters.chat_request import ANSWER_TOOL, as_json, unboxed
from swarmd.core.errors import UNREADABLE, Fault, Rejected
from swarmd.core.turns import Finish, ModelReply, ModelRequest, ToolCall, Usage

ERROR_CHARS_MAX = 500
PROBLEM_CHARS_MAX = 200
#: A single call that is said to cost more is an error of its gateway.
COST_USD_MAX = 100_000
# Servers differ in how they name the usual endings; a name that is not here is no ending we can trust.
_FINISHES: dict[str, Finish] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class _Function(Struct):
    name: str
    arguments: Any = None


class _Call(Struct):
    function: _Function
    id: str | None = None


class _Message(Struct):
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[_Call] | None = None
    refusal: str | None = None


class _Choice(Struct):
    message: _Message
    finish_reason: str | None = None


class _Answer(Struct):
    choices: list[_Choice] = field(default_factory=list)
    model: str | None = None
    usage: Any = None


def decode_body(payload: bytes) -> Any:
    """The JSON value of an answer. Raises `Fault("bad_answer")` for HTML and whatever else is not JSON."""
    try:
        return msgspec.json.decode(payload)
    except UNREADABLE:  # also what is nested too deep
        pass
    start = error_text(payload.decode("utf-8", "replace"))[:80]
    raise Fault("bad_answer", f"the model endpoint answered with something that is not JSON: {start!r}")


def parse_answer(body: Any, request: ModelRequest, model: str) -> ModelReply:
    """Validate the decoded body of a status-200 answer without an `error` object.

    Tool arguments that cannot be read leave their call with a `problem`. Raises `Fault("bad_answer" |
    "bad_tool_call")`: the next try may go better; `Rejected("output_cut" | "content_filtered")` when tool arguments
    were cut off by the token limit, or the answer by a filter: the next one would be, too.
    """
    try:
        answer = msgspec.convert(body, _Answer)
    except msgspec.ValidationError as error:
        raise Fault("bad_answer", f"the model's answer is malformed: {error}") from None
    if not answer.choices:
        raise Fault("bad_answer", "the model's answer holds no choice")
    choice = answer.choices[0]
    finish = _FINISHES.get(choice.finish_reason or "")
    if finish is None:
        raise Fault("bad_answer", f"the model's answer ends with finish_reason {choice.finish_reason!r}")
    calls = _tool_calls(choice.message.tool_calls or [], len(request.turns), finish)
    text = _text(choice.message.content)
    usage = _usage(answer.usage, request, text, calls)
    if choice.message.refusal and not text and not calls:
        text, finish = choice.message.refusal, "content_filter"
    elif finish == "content_filter":
        raise Rejected("content_filtered", "the provider's content filter stopped the model's answer")
    if request.schema is not None and finish != "content_filter":
        text, calls = _shaped(text, calls, request.schema)
        finish = "stop" if finish == "tool_calls" and not calls and text else finish
    if calls and finish == "stop":
        finish = "tool_calls"
    if finish == "tool_calls" and not calls:
        raise Fault("bad_answer", "the model announced tool calls and sent none")
    if finish == "stop" and not text.strip():
        raise Fault("bad_answer", "the model's answer holds neither text nor tool calls")
    return ModelReply(text=text, finish=finish, model=answer.model or model, tool_calls=calls, usage=usage)


def _shaped(text: str, calls: list[ToolCall], schema: dict[str, Any]) -> tuple[str, list[ToolCall]]:
    """The answer as text, whichever way it came. With other tool calls beside it, it came too early and is dropped."""
    others = [call for call in calls if call.name != ANSWER_TOOL]
    final = next((call for call in calls if call.name == ANSWER_TOOL), None)
    if final is not None and not others:
        text = final.problem or as_json(final.arguments)  # words that are no JSON: the check will say so
    return (text if others else unboxed(text, schema)), others


def _text(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        parts = (part.get("text") for part in content if part.get("type") == "text")
        return "".join(part for part in parts if isinstance(part, str))
    return content or ""


def _tool_calls(wire: list[_Call], turns: int, finish: Finish) -> list[ToolCall]:
    """Tool calls with parsed arguments; an absent or repeated id is replaced by one unique in the conversation."""
    calls: list[ToolCall] = []
    for index, call in enumerate(wire):
        given = call.id or ""
        if not given or any(given == other.id for other in calls):
            given = f"call_{turns}_{index}"
        if not call.function.name:
            raise Fault("bad_tool_call", "the model called a tool without a name")
        arguments, problem = _arguments(call.function)
        if problem and finish == "length":
            raise Rejected("output_cut", f"the call of {call.function.name} was cut off: raise max_output_tokens")
        calls.append(ToolCall(given, call.function.name, arguments, problem))
    return calls


def _arguments(function: _Function) -> tuple[dict[str, Any], str]:
    """The arguments of a call, or in words for the model why they cannot be read."""
    given = function.arguments
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given) if given.strip() else {}
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            return {}, _bounded(f"the arguments of {function.name} are not valid JSON: {error}", PROBLEM_CHARS_MAX)
    if given is None:
        return {}, ""
    if not isinstance(given, dict):
        return {}, f"the arguments of {function.name} must be a JSON object"
    return given, ""


def _usage(wire: Any, request: ModelRequest, text: str, calls: list[ToolCall]) -> Usage:
    if isinstance(wire, dict):
        billed = wire.get("prompt_tokens"), wire.get("completion_tokens")
        if all(type(tokens) is int and tokens >= 0 for tokens in billed):
            return Usage(input_tokens=billed[0] or 0, output_tokens=billed[1] or 0, cost_microusd=_bill(wire))
    asked = sum(len(turn.content) + _call_chars(turn.tool_calls) for turn in request.turns)
    answered = len(text) + _call_chars(calls)
    return Usage(input_tokens=math.ceil(asked / 4), output_tokens=math.ceil(answered / 4), estimated=True)


def _bill(usage: dict[str, Any]) -> int | None:
    """What a gateway says that the call cost, given in dollars; rounded up to micro-USD."""
    cost = usage.get("cost")
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < COST_USD_MAX:
        return None
    return math.ceil(round(cost * 1_000_000, 3))


def _call_chars(calls: list[ToolCall]) -> int:
    return sum(len(call.name) + len(as_json(call.arguments)) for call in calls)


def error_text(body: Any) -> str:
    """The words of an error in any of the shapes met in the wild, on one printable line of bounded length."""
    text = body
    for key in ("error", "message", "detail"):
        if isinstance(text, dict) and text.get(key):
            text = text[key]
    if isinstance(text, list | dict):
        text = as_json(text)
    return _bounded(str(text or ""), ERROR_CHARS_MAX)


def _bounded(text: str, chars_max: int) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= chars_max else line[: chars_max - 1] + "\u2026"


def error_code(body: Any) -> tuple[str, str]:
    """The `code` and `type` of an error body as text, "" for what it does not have."""
    inner = body.get("error", body) if isinstance(body, dict) else None
    if not isinstance(inner, dict):
        return "", ""
    code, kind = inner.get("code"), inner.get("type")
    return str(code if code is not None else ""), str(kind or "")
