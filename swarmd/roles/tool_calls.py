"""Carry out one tool call under its limits and say what came of it.

Job: check the arguments, enforce the tool's timeout and output cap, clean the text, record a failure as text.
Invariants: a failure that the tool declares (`Rejected`, `Fault`) or a timeout becomes `ToolOutcome.error`, which the
model may read and react to; anything else is a bug of the tool and is raised. Output is valid UTF-8 without control
characters and never longer than the tool's cap.
Must not know: which tools there are, agents, journals.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from swarmd.core.errors import Fault, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from swarmd.ports import Tool

ERROR_BYTES_MAX = 2_000
# Room for the line that says how much was cut.
_NOTICE_BYTES = 48
# Controls other than tab and newline; marks that reverse or hide text: what is shown must be what is there.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")


class ToolOutcome(Struct, omit_defaults=True):
    """What a model is told: `text`, or `error` as "code: message"; `cut_bytes` were taken out of the middle."""

    text: str
    error: str = ""
    cut_bytes: int = 0


async def run_tool(tool: Tool, arguments: dict[str, Any]) -> ToolOutcome:
    """Call a tool once, within `tool.timeout_ms` and `tool.output_bytes_max`."""
    problems = argument_problems(tool.spec.parameters, arguments)
    if problems:
        return _failed("bad_arguments", "; ".join(problems))
    limit = asyncio.timeout(tool.timeout_ms / 1000)
    try:
        async with limit:
            text = await tool.call(arguments)
    except (Rejected, Fault) as error:
        return _failed(error.code, error.message)
    except TimeoutError:
        if not limit.expired():  # the tool's own, undeclared: a bug
            raise
        return _failed("tool_timeout", f"{tool.spec.name} did not finish within {tool.timeout_ms} ms")
    text, cut_bytes = capped(clean(text), tool.output_bytes_max)
    return ToolOutcome(text, cut_bytes=cut_bytes)


def _failed(code: str, message: str) -> ToolOutcome:
    return ToolOutcome("", error=capped(clean(f"{code}: {message}"), ERROR_BYTES_MAX)[0])


def clean(text: str) -> str:
    """Text as a model and a terminal may see it: lines end in a newline, nothing in it is invisible."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNSEEN.sub("", text).encode("utf-8", "replace").decode("utf-8")


def capped(text: str, bytes_max: int) -> tuple[str, int]:
    """Keep head and tail within `bytes_max` bytes of UTF-8; also return how many bytes were taken out between."""
    encoded = text.encode()
    if len(encoded) <= bytes_max:
        return text, 0
    room = bytes_max - _NOTICE_BYTES
    if room < _NOTICE_BYTES:  # too little for two ends and a notice
        head, tail = encoded[:bytes_max].decode(errors="ignore"), ""
        return head, len(encoded) - len(head.encode())
    head = encoded[: room - room // 3].decode(errors="ignore")
    tail = encoded[len(encoded) - room // 3 :].decode(errors="ignore")
    cut = len(encoded) - len(head.encode()) - len(tail.encode())
    return f"{head}\n[... {cut} bytes cut ...]\n{tail}", cut


def argument_problems(schema: Mapping[str, Any], arguments: Any) -> list[str]:
    """What is wrong with the arguments, in words for the model; empty if nothing is.

    Checked, at every depth: `type`, `enum`, `const`, `properties`, `required`, `additionalProperties: false`,
    `items`, and the bounds of numbers, texts and lists. Other keywords of JSON Schema are left to the tool.
    """
    return list(_problems(schema, arguments, ""))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: _is_number(value) and value == value // 1,
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}
_BOUNDS: tuple[tuple[str, str, Callable[[Any, Any], bool]], ...] = (
    ("minimum", "number", lambda value, bound: value >= bound),
    ("maximum", "number", lambda value, bound: value <= bound),
    ("minLength", "string", lambda value, bound: len(value) >= bound),
    ("maxLength", "string", lambda value, bound: len(value) <= bound),
    ("minItems", "array", lambda value, bound: len(value) >= bound),
    ("maxItems", "array", lambda value, bound: len(value) <= bound),
)


def _problems(schema: Mapping[str, Any], value: Any, path: str) -> Iterator[str]:
    where = path or "the arguments"
    wanted = schema.get("type")
    kinds = [wanted] if isinstance(wanted, str) else list(wanted or [])
    if kinds and not any(_TYPES[kind](value) for kind in kinds if kind in _TYPES):
        yield f"{where} must be of type {' or '.join(kinds)}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} must be one of {schema['enum']!r}"
    if "const" in schema and value != schema["const"]:
        yield f"{where} must be {schema['const']!r}"
    for keyword, kind, holds in _BOUNDS:
        if keyword in schema and _TYPES[kind](value) and not holds(value, schema[keyword]):
            yield f"{where} must keep to {keyword} {schema[keyword]}"
    if isinstance(value, dict):
        yield from _object_problems(schema, value, path)
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            yield from _problems(schema["items"], item, f"{where}[{index}]")


def _object_problems(schema: Mapping[str, Any], value: dict[str, Any], path: str) -> Iterator[str]:
    known = schema.get("properties", {})
    for key in schema.get("required", []):
        if key not in value:
            yield f"{f'{path}.' if path else ''}{key} is missing"
    for key, item in value.items():
        inner = f"{path}.{key}" if path else key
        if isinstance(known.get(key), dict):
            yield from _problems(known[key], item, inner)
        elif schema.get("additionalProperties") is False and key not in known:
            yield f"{inner} is unknown; known: {', '.join(known) or 'none'}"
