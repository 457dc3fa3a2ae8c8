"""From the JSON Schema of an answer to a form: what a terminal asks and what a page shows, made in one place.

Job: reduce a schema to fields that a person can fill in, and say what is wrong with a value before it is sent. What a
form cannot say (conditions, several shapes) becomes a field of free JSON; the swarm validates every answer in full, so
a form may be more lenient than its schema, never stricter. Invariants: pure; bounded in depth and size, whatever an
agent wrote; patterns are left to the swarm, since an expression of an agent may take for ever. Must not know terminals
or browsers.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

DEPTH_MAX: Final = 6
FIELDS_MAX: Final = 200
OPTIONS_MAX: Final = 200
#: A text that may be longer than this gets several lines.
LINE_CHARS: Final = 200

Kind = Literal["object", "list", "choice", "text", "integer", "number", "boolean", "const", "json"]
Schema = dict[str, Any]


class Field(Struct, omit_defaults=True):
    """One question of a form. `path` is where its value stands in the answer: `$.tags[].name`."""

    path: str
    kind: Kind
    label: str = ""
    help: str = ""
    required: bool = True
    nullable: bool = False
    default: Any = UNSET
    options: list[Any] = field(default_factory=list)
    fields: list[Field] = field(default_factory=list)
    item: Field | UnsetType = UNSET
    value: Any = UNSET
    minimum: float | None = None
    maximum: float | None = None
    length_min: int = 0
    length_max: int | None = None
    multiline: bool = False


class Wrong(Exception):
    """A value that its field does not take; `path` says which, in words a person can act on."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path, self.message = path, message


def form_of(schema: Any, default: Any = UNSET) -> Field:
    """The form for `schema`, with `default` in place of the schema's own where it is given."""
    return _Reader(schema)._field(schema, "$", "", default)


def arguments_form(schema: Any, arguments: Any) -> Field:
    """The form for editing the arguments of a tool call, whose schema stands in that of an approval's answer."""
    return form_of(_inner(schema, "arguments") or {}, arguments)


def _inner(schema: Any, name: str) -> Any:
    """The schema of a property, also when it stands in one of several shapes."""
    if not isinstance(schema, dict):
        return None
    properties = schema.get("properties")
    if isinstance(properties, dict) and isinstance(properties.get(name), dict):
        return properties[name]
    for key in ("oneOf", "anyOf", "allOf"):
        for shape in schema[key] if isinstance(schema.get(key), list) else ():
            found = _inner(shape, name)
            if found is not None:
                return found
    return None


class _Reader:
    """Reads one schema; counts fields, follows references within it only."""

    def __init__(self, root: Any) -> None:
        self._root = root if isinstance(root, dict) else {}
        self._fields = 0

    def _field(self, schema: Any, path: str, name: str, default: Any = UNSET, depth: int = 0) -> Field:
        self._fields += 1
        schema, nullable = self._plain(schema)
        made = Field(path, "json", label=_text(schema.get("title")) or name, help=_text(schema.get("description")))
        made.nullable = nullable
        made.default = schema.get("default", UNSET) if default is UNSET else default
        if "const" in schema:
            made.kind, made.value = "const", schema["const"]
            return made
        options = _options(schema)
        if options:
            made.kind, made.options = "choice", options[:OPTIONS_MAX]
            return made if len(options) <= OPTIONS_MAX else msgspec.structs.replace(made, kind="json", options=[])
        if depth >= DEPTH_MAX or self._fields > FIELDS_MAX or _is_conditional(schema):
            return made
        wanted = _type_of(schema)
        if wanted == "object":
            return self._object(schema, made, depth)
        if wanted == "array":
            return self._list(schema, made, depth)
        if wanted in ("integer", "number"):
            made.kind = "integer" if wanted == "integer" else "number"
            made.minimum, made.maximum = _number(schema.get("minimum")), _number(schema.get("maximum"))
        elif wanted == "boolean":
            made.kind = "boolean"
        elif wanted == "string":
            made.kind = "text"
            made.length_min, made.length_max = _count(schema.get("minLength")) or 0, _count(schema.get("maxLength"))
            long = made.length_max is not None and made.length_max > LINE_CHARS
            made.multiline = long or schema.get("format") in ("textarea", "multiline", "markdown")
        return made

    def _object(self, schema: Schema, made: Field, depth: int) -> Field:
        properties = schema.get("properties")
        if not isinstance(properties, dict) or not properties:
            return made
        made.kind = "object"
        required = schema.get("required")
        needed = set(required) if isinstance(required, list) and all(isinstance(one, str) for one in required) else ()
        given = made.default if isinstance(made.default, dict) else {}
        for name, inner in properties.items():
            child = self._field(inner, f"{made.path}.{name}", str(name), given.get(name, UNSET), depth + 1)
            child.required = name in needed
            made.fields.append(child)
        return made

    def _list(self, schema: Schema, made: Field, depth: int) -> Field:
        if not isinstance(schema.get("items"), dict) or "prefixItems" in schema:
            return made
        made.kind = "list"
        made.item = self._field(schema["items"], f"{made.path}[]", made.label, UNSET, depth + 1)
        made.length_min, made.length_max = _count(schema.get("minItems")) or 0, _count(schema.get("maxItems"))
        return made

    def _plain(self, schema: Any) -> tuple[Schema, bool]:
        """The schema without references and without its null, and whether it had one."""
        nullable = False
        for _ in range(DEPTH_MAX):
            if not isinstance(schema, dict):
                return {}, nullable
            rest = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf", "oneOf", "allOf")}
            if isinstance(schema.get("$ref"), str):
                schema = {**self._named(schema["$ref"]), **rest}
                continue
            types = schema.get("type")
            if isinstance(types, list) and "null" in types:
                nullable = True
                left = [one for one in types if one != "null"]
                schema = {**schema, "type": left[0] if len(left) == 1 else left}
            several: list[Any] = next(
                (schema[key] for key in ("anyOf", "oneOf", "allOf") if isinstance(schema.get(key), list)), []
            )
            left = [one for one in several if one != {"type": "null"}]
            if len(left) != 1 or not isinstance(left[0], dict):
                return schema, nullable
            nullable = nullable or len(left) < len(several)
            schema = {**left[0], **rest}
        return {}, nullable

    def _named(self, reference: str) -> Schema:
        """What `#/$defs/name` stands for; nothing is ever fetched."""
        found: Any = self._root
        if not reference.startswith("#/"):
            return {}
        for part in reference[2:].split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            found = found.get(part) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}


def _options(schema: Schema) -> list[Any]:
    """The values of an enumeration, also of one written as a choice of constants."""
    if isinstance(schema.get("enum"), list):
        return list(schema["enum"])
    for key in ("anyOf", "oneOf"):
        several = schema.get(key)
        if isinstance(several, list) and several and all(isinstance(one, dict) and "const" in one for one in several):
            return [one["const"] for one in several]
    return []


def _is_conditional(schema: Schema) -> bool:
    return any(key in schema for key in ("anyOf", "oneOf", "$ref", "$dynamicRef"))


def _type_of(schema: Schema) -> str:
    wanted = schema.get("type")
    if isinstance(wanted, str):
        return wanted
    return "object" if wanted is None and isinstance(schema.get("properties"), dict) else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


# --- values ----------------------------------------------------------------------------------------


def parse(asked: Field, text: str) -> Any:
    """What a person typed as the value of a field without parts. Raises `Wrong`."""
    if asked.kind == "text":
        return checked(asked, text)
    if asked.kind == "boolean":
        if text.strip().lower() in ("y", "yes", "true", "1"):
            return True
        if text.strip().lower() in ("n", "no", "false", "0"):
            return False
        raise Wrong(asked.path, "say yes or no")
    if asked.kind == "choice":
        return _chosen(asked, text.strip())
    try:
        value = json.loads(text)
    except ValueError:
        raise Wrong(asked.path, f"must be {_WANTED[asked.kind]}") from None
    return checked(asked, value)


_WANTED: Final = {
    "object": "an object",
    "list": "a list",
    "integer": "a whole number",
    "number": "a number",
    "text": "a text",
    "boolean": "true or false",
    "json": "JSON: a text needs quotation marks",
}


def _chosen(asked: Field, text: str) -> Any:
    """An option by its number in the list, its text, or its JSON."""
    for option in asked.options:
        if text == option or text == json.dumps(option):
            return option
    if text.isdecimal() and 1 <= int(text[:6]) <= len(asked.options):
        return asked.options[int(text[:6]) - 1]
    raise Wrong(asked.path, f"choose one of {', '.join(shown(option) for option in asked.options)}")


def checked(asked: Field, value: Any) -> Any:
    """The value itself if its field takes it. Raises `Wrong` for what is surely refused; the swarm checks the rest."""
    if value is None and asked.nullable:
        return value
    kind = asked.kind
    if kind == "json":
        return value
    if kind in ("choice", "const"):
        allowed = asked.options if kind == "choice" else [asked.value]
        if not any(json.dumps(value) == json.dumps(option) for option in allowed):
            raise Wrong(asked.path, f"must be {' or '.join(shown(option) for option in allowed)}")
        return value
    if not _is_a(kind, value):
        raise Wrong(asked.path, f"must be {_WANTED[kind]}")
    if kind in ("integer", "number"):
        if asked.minimum is not None and value < asked.minimum:
            raise Wrong(asked.path, f"must be at least {asked.minimum}")
        if asked.maximum is not None and value > asked.maximum:
            raise Wrong(asked.path, f"must be at most {asked.maximum}")
    if kind in ("text", "list"):
        what = "characters" if kind == "text" else "entries"
        if len(value) < asked.length_min:
            raise Wrong(asked.path, f"must have at least {asked.length_min} {what}")
        if asked.length_max is not None and len(value) > asked.length_max:
            raise Wrong(asked.path, f"must have at most {asked.length_max} {what}")
    return value


def _is_a(kind: Kind, value: Any) -> bool:
    if kind == "object":
        return isinstance(value, dict)
    if kind == "list":
        return isinstance(value, list)
    if kind == "text":
        return isinstance(value, str)
    if kind == "boolean":
        return isinstance(value, bool)
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, int | float) and not isinstance(value, bool) and (kind == "number" or is_whole)


def shown(value: Any) -> str:
    """A value in a line of text: a text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def place_of(message: str) -> str:
    """The place that a refusal names, `$.age` of `$.age: must be integer`; "" when it names none."""
    head, separator, _ = message.partition(": ")
    return head if separator and head.startswith("$") and (head == "$" or head[1] in ".[") else ""
