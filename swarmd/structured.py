"""Answers in a wanted shape: read a model's text as JSON, check it against the schema, tell the model what is wrong.

Job: the part of structured output that no provider does reliably. Each repair is a model call of its own, made and
recorded by the caller: `check_answer` and `repair_turns` are pure, `complete_structured` is the loop for who has a
coroutine that makes one call. Must not know providers, or how a schema was asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from swarmd.core.errors import Rejected
from swarmd.core.turns import ModelReply, ModelRequest, Turn
from swarmd.json_schema import check_schema, problems

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

REPAIRS: Final = 2
_FENCE: Final = "```"
#: Of an answer that is shown to the model again; a runaway answer must not fill its context.
_SHOWN_CHARS_MAX: Final = 8_000


class Checked(Struct):
    """A read answer: `value` when `problems` is empty, else why it is none, in words for the model."""

    value: Any = None
    problems: list[str] = []


class Structured(Struct):
    """The value, the reply that held it, and how many calls it took; `replies` are all of them, for their usage."""

    value: Any
    reply: ModelReply
    replies: list[ModelReply]


def read_json(text: str) -> Any:
    """The JSON value in a model's text: the whole, or a fenced block, or the first object or array within prose.

    Raises `ValueError` with words for the model.
    """
    stripped = text.strip()
    candidates = [stripped]
    if _FENCE in stripped:
        inner = stripped.split(_FENCE)[1]
        head, _, rest = inner.partition("\n")
        candidates.append(rest if head.strip().isalnum() else inner)
    first = min((at for at in (stripped.find("{"), stripped.find("[")) if at >= 0), default=-1)
    if first > 0:
        last = max(stripped.rfind("}"), stripped.rfind("]"))
        candidates.append(stripped[first : last + 1])
    for candidate in candidates:
        try:
            return msgspec.json.decode(candidate)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            continue
    try:
        msgspec.json.decode(stripped)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise ValueError(f"$: the answer is not valid JSON: {error}") from None
    return None


def check_answer(reply: ModelReply, schema: dict[str, Any]) -> Checked:
    """Read and check one reply. Raises `Rejected("bad_schema")` for a schema that is none."""
    if reply.finish == "length":
        return Checked(problems=["$: the answer was cut off by the limit of output tokens: answer more briefly"])
    try:
        value = read_json(reply.text)
    except ValueError as error:
        return Checked(problems=[str(error)])
    return Checked(value, problems(value, schema))


def repair_turns(reply: ModelReply, found: list[str], schema: dict[str, Any]) -> list[Turn]:
    """The turns to add after a reply that did not fit: what was said, what is wrong with it, what is wanted."""
    said = reply.text if len(reply.text) <= _SHOWN_CHARS_MAX else reply.text[:_SHOWN_CHARS_MAX] + "\u2026"
    listed = "\n".join(f"- {line}" for line in found)
    wanted = msgspec.json.encode(schema).decode()
    told = (
        f"That answer does not fit:\n{listed}\n\nAnswer again with one JSON value, and nothing else, that is valid "
        f"under this JSON Schema:\n{wanted}"
    )
    return [Turn("assistant", said or "(nothing)"), Turn("user", told)]


async def complete_structured(
    request: ModelRequest, call: Callable[[ModelRequest], Awaitable[ModelReply]], repairs: int = REPAIRS
) -> Structured | ModelReply:
    """Ask until the answer fits `request.schema`, at most `1 + repairs` times; `call` makes one recorded call.

    A reply with tool calls is returned as it is: the answer is still to come. Each repair repeats the original turns
    with the last wrong answer only, so the conversation does not grow with the number of repairs. Raises
    `Rejected("bad_schema")` before the first call, `Rejected("schema_mismatch")` after the last.
    """
    schema = check_schema(request.schema)
    asked, replies = request, list[ModelReply]()
    found: list[str] = []
    for _ in range(1 + repairs):
        reply = await call(asked)
        replies.append(reply)
        if reply.tool_calls:
            return reply
        checked = check_answer(reply, schema)
        if not checked.problems:
            return Structured(checked.value, reply, replies)
        found = checked.problems
        asked = msgspec.structs.replace(request, turns=[*request.turns, *repair_turns(reply, found, schema)])
    raise Rejected("schema_mismatch", f"after {len(replies)} answers the model's does not fit: {'; '.join(found)}")
