"""What an MCP server says, made fit for us: its tools' schemas judged, its results turned into text.

Job: decide whether a tool can be offered, check arguments against its schema, read a result as text for a model.
Invariants: everything from the server is a stranger's; a schema is never fetched from elsewhere, its patterns are never
run (one can be built to run for ever) and its references are followed a bounded number of times; images, sounds and
files are described, never inlined.
Must not know: connections, processes, agents.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from swarmd.core.errors import Rejected
from swarmd.core.tool_text import clean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mcp_types import CallToolResult, InputRequiredResult, Tool

NAME_CHARS_MAX: Final = 64
DESCRIPTION_CHARS_MAX: Final = 4_000
SCHEMA_BYTES_MAX: Final = 64 * 1024
#: References followed for one set of arguments; schemas can be built to double the work with each.
REFERENCES_MAX: Final = 10_000
PROBLEMS_MAX: Final = 8
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_REFUSED_CHARACTER: Final = re.compile("[^a-zA-Z0-9_-]")


def offered_name(server: str, tool: str) -> str:
    """`SERVER__TOOL` as every provider takes a function's name: 1 to 64 of a-z A-Z 0-9 _ -.

    What had to be changed is marked by a digest of the true name, so that two tools never share one.
    """
    name = f"{server}__{_REFUSED_CHARACTER.sub('_', tool)}"
    if len(name) <= NAME_CHARS_MAX and name == f"{server}__{tool}":
        return name
    digest = hashlib.sha256(tool.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{name[: NAME_CHARS_MAX - 9]}-{digest}"


def plain(text: str, chars_max: int) -> str:
    """Text without what cannot be seen, and not longer than `chars_max`."""
    text = clean(text[: 2 * chars_max])
    return text if len(text) <= chars_max else f"{text[: chars_max - 2]} …"


# --- schemas ---------------------------------------------------------------------------------------


class Arguments:
    """The schema of one tool's arguments, judged. Raises `Rejected("bad_schema")` for one that cannot be offered."""

    def __init__(self, schema: Any) -> None:
        if not isinstance(schema, dict):
            raise Rejected("bad_schema", f"its schema must be of type object, not {type(schema).__name__}")
        self.schema: dict[str, Any] = schema
        dialect = _judged(self.schema)
        self._budget = _Budget()
        self._validator = _validator(dialect, self.schema, self._budget)

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raises `Rejected("bad_arguments")` that names each field."""
        from referencing.exceptions import Unresolvable

        self._budget.left = REFERENCES_MAX
        try:
            found = list(_first(self._validator.iter_errors(dict(arguments))))
        except (Unresolvable, RecursionError, _Exhausted):
            raise Rejected("bad_schema", "the server's schema for these arguments cannot be applied") from None
        if found:
            raise Rejected("bad_arguments", "; ".join(found))


def _first(errors: Iterator[Any]) -> Iterator[str]:
    for count, error in enumerate(errors):
        if count == PROBLEMS_MAX:
            yield "and more"
            return
        where = error.json_path.removeprefix("$").lstrip(".") or "the arguments"
        yield f"{plain(where, 100)}: {plain(error.message, 300)}"


def _judged(schema: dict[str, Any]) -> Any:
    """The validator class for the dialect that the schema names, 2020-12 without one."""
    from jsonschema import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    try:
        size = len(msgspec.json.encode(schema))
        if size > SCHEMA_BYTES_MAX:
            raise Rejected("bad_schema", f"its schema has {size} bytes, more than {SCHEMA_BYTES_MAX}")
        if schema.get("type") != "object":
            raise Rejected("bad_schema", f"its schema must be of type object, not {schema.get('type')!r:.40}")
        for reference in _references(schema):
            if not reference.startswith("#"):
                raise Rejected("bad_schema", f"its schema points elsewhere: {plain(reference, 80)}")
        dialect = validator_for(schema, default=Draft202012Validator)
        dialect.check_schema(schema)
    except SchemaError as error:
        raise Rejected("bad_schema", f"its schema is none: {plain(error.message, 200)}") from None
    except RecursionError:
        raise Rejected("bad_schema", "its schema is nested too deep") from None
    return dialect


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _REFERENCES and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


class _Exhausted(Exception):
    """A schema asked for too much work."""


class _Budget:
    left = REFERENCES_MAX

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _Exhausted


def _validator(dialect: Any, schema: dict[str, Any], budget: _Budget) -> Any:
    """A validator that runs no pattern, fetches nothing and follows `budget` references."""
    from jsonschema.validators import extend
    from referencing import Registry

    def counted(follow: Any) -> Any:
        def step(*args: Any) -> Any:
            budget.spend()
            return follow(*args)

        return step

    def ignored(*_: Any) -> None:
        """The server checks its own patterns."""

    known = dialect.VALIDATORS
    changed = {keyword: counted(known[keyword]) for keyword in _REFERENCES if keyword in known}
    changed |= dict.fromkeys(("pattern", "patternProperties"), ignored)
    return extend(dialect, changed)(schema, registry=Registry())


def described(tool: Tool) -> str:
    """A tool's description for the model; what the server says of its own safety is left out."""
    return plain(tool.description or tool.title or tool.name, DESCRIPTION_CHARS_MAX)


# --- results ---------------------------------------------------------------------------------------


def text_of(result: CallToolResult) -> str:
    """A result as text: texts as they are, structured content as JSON, anything else described."""
    parts = [_text_of_block(block) for block in result.content]
    value = result.structured_content
    if value is not None and not any(_says(part, value) for part in parts):
        parts.append(json.dumps(value, ensure_ascii=False))
    return "\n".join(part for part in parts if part)


def _says(part: str, value: Any) -> bool:
    """Whether a text already holds the structured content, whole or its only field."""
    said: list[Any] = [part]
    try:
        said.append(msgspec.json.decode(part))
    except msgspec.DecodeError:
        pass  # it is just text
    only = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value
    return value in said or only in said


def _text_of_block(block: Any) -> str:
    match block.type:
        case "text":
            return str(block.text)
        case "image" | "audio":
            return f"[{block.type} {plain(block.mime_type, 80)}, about {len(block.data) * 3 // 4} bytes, not shown]"
        case "resource_link":
            return f"[resource {plain(block.name, 200)}: {plain(block.uri, 500)}]"
        case "resource":
            resource = block.resource
            text = getattr(resource, "text", None)
            if isinstance(text, str):
                return f"[resource {plain(str(resource.uri), 500)}]\n{text}"
            return f"[resource {plain(str(resource.uri), 500)}, about {len(resource.blob) * 3 // 4} bytes, not shown]"
    return f"[{plain(str(block.type), 40)}, not shown]"


def wanted_input(result: InputRequiredResult) -> str:
    """What a tool asks for before it goes on, in words."""
    asked = []
    for request in (result.input_requests or {}).values():
        params = request.params
        message = getattr(params, "message", "") or request.method
        fields = getattr(params, "requested_schema", None)
        names = list((fields or {}).get("properties", {})) if isinstance(fields, dict) else []
        asked.append(plain(str(message), 500) + (f" (fields: {plain(', '.join(names), 300)})" if names else ""))
    return "; ".join(asked) or "it does not say what"
