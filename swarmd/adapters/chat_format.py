"""The chat-completions format: a request as its JSON body, and the JSON answer as a validated reply.

Job: everything about the format that needs no network, so that hostile answers can be tested by the thousand.
Invariants: whatever bytes a server sends, `parse_answer` returns a sound reply or raises `Fault` or `Rejected`.
Must not know: HTTP, keys, retries.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import msgspec
from msgspec import Struct, field

from swarmd.core.errors import Fault, Rejected
from swarmd.core.turns import Finish, ModelReply, ModelRequest, ToolCall, Turn, Usage

ERROR_CHARS_MAX = 500
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
    arguments: str | dict[str, Any] | None = None


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


def request_body(request: ModelRequest, model: str, token_parameter: str) -> dict[str, Any]:
    """The JSON body of a request: only fields that every compatible server is known to take."""
    body: dict[str, Any] = {"model": model, "messages": [_message(turn) for turn in request.turns]}
    if request.tools:
        functions = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in request.tools]
        body["tools"] = [{"type": "function", "function": function} for function in functions]
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.max_output_tokens is not None:
        body[token_parameter] = request.max_output_tokens
    return body


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.role == "tool":
        message["tool_call_id"] = turn.tool_call_id
    if turn.tool_calls:
        message["content"] = turn.content or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _json(call.arguments)}}
            for call in turn.tool_calls
        ]
    return message


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def decode_body(payload: bytes) -> Any:
    """The JSON value of an answer. Raises `Fault("bad_answer")` for HTML and whatever else is not JSON."""
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    start = error_text(payload.decode("utf-8", "replace"))[:80]
    raise Fault("bad_answer", f"the model endpoint answered with something that is not JSON: {start!r}")


def parse_answer(body: Any, request: ModelRequest, model: str) -> ModelReply:
    """Validate the decoded body of a status-200 answer without an `error` object.

    Raises `Fault("bad_answer" | "bad_tool_call")`: the next try may go better; `Rejected("output_cut")` when tool
    arguments were cut off by the token limit: the next one would be, too.
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
    if choice.message.refusal and not text and not calls:
        text, finish = choice.message.refusal, "content_filter"
    if calls and finish == "stop":
        finish = "tool_calls"
    if finish == "tool_calls" and not calls:
        raise Fault("bad_answer", "the model announced tool calls and sent none")
    if finish == "stop" and not text.strip():
        raise Fault("bad_answer", "the model's answer holds neither text nor tool calls")
    usage = _usage(answer.usage, request, text, calls)
    return ModelReply(text=text, finish=finish, model=answer.model or model, tool_calls=calls, usage=usage)


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
        calls.append(ToolCall(id=given, name=call.function.name, arguments=_arguments(call.function, finish)))
    return calls


def _arguments(function: _Function, finish: Finish) -> dict[str, Any]:
    if isinstance(function.arguments, dict):
        return function.arguments
    if not (function.arguments or "").strip():
        return {}
    try:
        arguments = msgspec.json.decode(function.arguments or "")
    except (msgspec.DecodeError, UnicodeEncodeError):
        _bad_arguments(function, finish, "not valid JSON")
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        _bad_arguments(function, finish, "no JSON object")
    return arguments


def _bad_arguments(function: _Function, finish: Finish, reason: str) -> NoReturn:
    if finish == "length":
        raise Rejected("output_cut", f"the call of {function.name} was cut off: raise max_output_tokens") from None
    raise Fault("bad_tool_call", f"the model called {function.name} with arguments that are {reason}") from None


def _usage(wire: Any, request: ModelRequest, text: str, calls: list[ToolCall]) -> Usage:
    if isinstance(wire, dict):
        billed = wire.get("prompt_tokens"), wire.get("completion_tokens")
        if all(type(tokens) is int and tokens >= 0 for tokens in billed):
            return Usage(input_tokens=billed[0] or 0, output_tokens=billed[1] or 0)
    asked = sum(len(turn.content) + _call_chars(turn.tool_calls) for turn in request.turns)
    answered = len(text) + _call_chars(calls)
    return Usage(input_tokens=math.ceil(asked / 4), output_tokens=math.ceil(answered / 4), estimated=True)


def _call_chars(calls: list[ToolCall]) -> int:
    return sum(len(call.name) + len(_json(call.arguments)) for call in calls)


def error_text(body: Any) -> str:
    """The words of an error in any of the shapes met in the wild, on one printable line of bounded length."""
    text = body
    for key in ("error", "message", "detail"):
        if isinstance(text, dict) and text.get(key):
            text = text[key]
    if isinstance(text, list | dict):
        text = _json(text)
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text or "")).split())
    return line if len(line) <= ERROR_CHARS_MAX else line[: ERROR_CHARS_MAX - 1] + "\u2026"


def error_code(body: Any) -> tuple[str, str]:
    """The `code` and `type` of an error body as text, "" for what it does not have."""
    inner = body.get("error", body) if isinstance(body, dict) else None
    if not isinstance(inner, dict):
        return "", ""
    code, kind = inner.get("code"), inner.get("type")
    return str(code if code is not None else ""), str(kind or "")


def names_parameter(body: Any, parameter: str) -> bool:
    """Whether an error body points at this request field, in whatever shape the server reports it."""
    return body is not None and parameter in _json(body)
