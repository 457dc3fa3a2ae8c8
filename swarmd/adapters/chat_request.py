"""The chat-completions format: a request as its JSON body, by the profile of its provider.

Job: say what is wanted in the fields that a server takes, and do without one that it refuses. Invariants: pure; what a
profile does not name is not sent. Must not know: HTTP, keys, answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from swarmd.core.model_profile import Profile
    from swarmd.core.turns import ModelRequest, Turn

#: The tool by which a model gives its final answer where schemas are asked for as tools.
ANSWER_TOOL: Final = "final_answer"
#: The field of the object that carries an answer that is no object.
BOX: Final = "value"


def request_body(request: ModelRequest, model: str, profile: Profile, *, stream: bool = False) -> dict[str, Any]:
    """The JSON body of a request: only fields that every compatible server is known to take, or its profile names.

    Raises `Rejected("tools_unsupported")` when tools are offered to a model whose profile takes none.
    """
    if request.tools and not profile.tools:
        raise Rejected("tools_unsupported", f"model {model} takes no tools: give this agent another model, or no tools")
    body: dict[str, Any] = {"model": model, "messages": [_message(turn, profile) for turn in request.turns]}
    functions = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in request.tools]
    if request.schema is not None:
        _ask_for_shape(body, functions, request.schema, profile)
    if functions:
        body["tools"] = [{"type": "function", "function": function} for function in functions]
        if not profile.parallel_tools:
            body["parallel_tool_calls"] = False
    if request.temperature is not None and profile.temperature:
        body["temperature"] = request.temperature
    if request.max_output_tokens is not None:
        body[profile.token_parameter] = request.max_output_tokens
    if profile.cost_in_usage:
        body["usage"] = {"include": True}
    if stream:
        body["stream"] = True
        if profile.stream_usage:
            body["stream_options"] = {"include_usage": True}
    return body


def _ask_for_shape(
    body: dict[str, Any], functions: list[dict[str, Any]], schema: dict[str, Any], profile: Profile
) -> None:
    """Ask for an answer by `schema` in the way of the profile. The root of what is sent is always an object."""
    wanted = _boxed(schema)
    if profile.structured == "json_schema":
        shape = {"name": ANSWER_TOOL, "schema": wanted} | ({"strict": True} if is_strict(wanted) else {})
        body["response_format"] = {"type": "json_schema", "json_schema": shape}
    elif profile.structured == "tool" and profile.tools:
        description = "Give your final answer by calling this, once."
        functions.append({"name": ANSWER_TOOL, "description": description, "parameters": wanted})
        if len(functions) == 1:
            body["tool_choice"] = {"type": "function", "function": {"name": ANSWER_TOOL}}
    else:
        told = (
            "Give your final answer as one JSON value, and nothing else, that is valid under this JSON Schema:\n"
            + as_json(schema)
        )
        first = body["messages"][0] if body["messages"] else {}
        if first.get("role") == profile.system_role != "user":
            first["content"] = f"{first['content']}\n\n{told}"
        else:
            body["messages"].insert(0, {"role": profile.system_role, "content": told})


def _boxed(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type") == "object":
        return schema
    inner = {key: value for key, value in schema.items() if key != "$defs"}
    box = {"type": "object", "properties": {BOX: inner}, "required": [BOX], "additionalProperties": False}
    return box | ({"$defs": schema["$defs"]} if "$defs" in schema else {})


def unboxed(text: str, schema: dict[str, Any]) -> str:
    """The answer's text without the object that a schema of another kind was put into, when there is one."""
    if schema.get("type") == "object":
        return text
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return text
    return as_json(value[BOX]) if isinstance(value, dict) and list(value) == [BOX] else text


def is_strict(schema: Any) -> bool:
    """Whether every object in it is closed and requires all its fields, which is what `strict` demands of a schema."""
    if isinstance(schema, list):
        return all(map(is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        fields = schema.get("properties")
        if not isinstance(fields, dict) or schema.get("additionalProperties") is not False:
            return False
        if set(schema.get("required") or ()) != set(fields):
            return False
    return all(map(is_strict, schema.values()))


TOKEN_FIELDS: Final = frozenset({"max_tokens", "max_completion_tokens"})


def adapted(profile: Profile, sent: dict[str, Any], refusal: Any, tried: Container[str]) -> tuple[str, Profile] | None:
    """The field of `sent` that a refusal names, and the profile without it; None when it names none to do without.

    `tried` are fields that were given up before; the two token fields stand for each other, so no change is made back.
    """
    for name, change in _CHANGES:
        if name in sent and name not in tried and names_parameter(refusal, name):
            return name, msgspec.structs.replace(profile, **change(profile))
    return None


def _next_structured(profile: Profile) -> dict[str, Any]:
    return {"structured": "tool" if profile.structured == "json_schema" and profile.tools else "prompt"}


#: Fields that some servers refuse, and what to do without them. The longer of two names that share a start goes first.
_CHANGES: tuple[tuple[str, Callable[[Profile], dict[str, Any]]], ...] = (
    ("max_completion_tokens", lambda profile: {"token_parameter": "max_tokens"}),
    ("max_tokens", lambda profile: {"token_parameter": "max_completion_tokens"}),
    ("stream_options", lambda profile: {"stream_usage": False}),
    ("response_format", _next_structured),
    ("tool_choice", lambda profile: {"structured": "prompt"}),
    ("parallel_tool_calls", lambda profile: {"parallel_tools": True}),
    ("temperature", lambda profile: {"temperature": False}),
)


def _message(turn: Turn, profile: Profile) -> dict[str, Any]:
    role = profile.system_role if turn.role == "system" else turn.role
    message: dict[str, Any] = {"role": role, "content": turn.content}
    if turn.role == "tool":
        message["tool_call_id"] = turn.tool_call_id
    if turn.tool_calls:
        message["content"] = turn.content or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": as_json(call.arguments)}}
            for call in turn.tool_calls
        ]
    return message


def as_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def names_parameter(body: Any, parameter: str) -> bool:
    """Whether an error body points at this request field, in whatever shape the server reports it."""
    return body is not None and parameter in as_json(body)
