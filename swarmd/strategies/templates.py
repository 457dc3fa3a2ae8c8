"""Inputs that are made of results: JSON with places for values that are known by name only later.

    {"from": "id"}                     the value named `id`
    {"from": "id", "take": "a.0.b"}    a part of it: fields and indexes, from outside in
    {"join": [...], "with": "\\n"}      the texts of a list, and of lists in it, in one; what is no text becomes JSON
    {"literal": ...}                   as it stands, whatever it looks like

Values are put in as they are: a form inside a value is data. What is `MISSING` leaves no trace in a list or a join,
and is null elsewhere. Pure; must not know plans, agents or tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: Deeper templates come from a loop in somebody's program, not from a plan.
DEPTH_MAX: Final = 50


class _Missing:
    """The value of something optional that failed."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


def references(template: Any, depth: int = 0) -> Iterator[str]:
    """The names that a template needs, in order, with repetitions. Raises `Rejected("bad_template")`."""
    if depth > DEPTH_MAX:
        raise Rejected("bad_template", f"an input is nested deeper than {DEPTH_MAX}")
    if isinstance(template, dict):
        match _form(template):
            case "from":
                yield template["from"]
                return
            case "literal":
                return
        for inner in template.values():
            yield from references(inner, depth + 1)
    elif isinstance(template, list):
        for inner in template:
            yield from references(inner, depth + 1)


def fill(template: Any, values: Mapping[str, Any]) -> Any:
    """The template with its places filled. Raises `Rejected("bad_template")` for a name or a part there is not."""
    filled = _fill(template, values)
    return None if filled is MISSING else filled


def _fill(template: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(template, list):
        return [value for inner in template if (value := _fill(inner, values)) is not MISSING]
    if not isinstance(template, dict):
        return template
    match _form(template):
        case "from":
            name = template["from"]
            if name not in values:
                raise Rejected("bad_template", f"nothing is named {name!r}: there is {_listed(values)}")
            value = values[name]
            return value if value is MISSING else take(value, template.get("take", ""))
        case "literal":
            return template["literal"]
        case "join":
            return _join(_fill(template["join"], values), template.get("with", ""))
    return {key: fill(inner, values) for key, inner in template.items()}


def put(template: Any, name: str, names: Sequence[str]) -> Any:
    """The template with a list of references to `names` where it refers to `name`."""
    if isinstance(template, list):
        return [put(inner, name, names) for inner in template]
    if not isinstance(template, dict):
        return template
    match _form(template):
        case "from" if template["from"] == name:
            if template.get("take"):
                raise Rejected("bad_template", f"{name!r} is a list of results that is put in whole: nothing to take")
            return [{"from": each} for each in names]
        case "from" | "literal":
            return template
    return {key: put(inner, name, names) for key, inner in template.items()}


def take(value: Any, path: str) -> Any:
    """The part of `value` at `path`, such as `answers.0.text`; all of it for "". Raises `Rejected("bad_template")`."""
    for part in path.split(".") if path else ():
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            there = _listed(value) if isinstance(value, dict) else shown(value)
            raise Rejected("bad_template", f"there is no {part!r} (of {path!r}) to take: there is {there}")
    return value


def as_text(value: Any) -> str:
    """A text as it is, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def shown(value: Any, chars_max: int = 200) -> str:
    """A value for an error or a prompt: on one line, cut."""
    text = " ".join(as_text(value).split())
    return text if len(text) <= chars_max else f"{text[:chars_max]}…"


def _form(template: dict[str, Any]) -> str:
    """Which form a JSON object has: "from", "join", "literal", or "" for an ordinary one."""
    keys = template.keys()
    if "from" in keys and keys <= {"from", "take"}:
        if not isinstance(template["from"], str) or not isinstance(template.get("take", ""), str):
            raise Rejected(
                "bad_template", f'{shown(template)} is no reference: it is {{"from": "name", "take": "part"}}'
            )
        return "from"
    if "join" in keys and keys <= {"join", "with"}:
        parts = template["join"]
        if not isinstance(parts, list | dict) or not isinstance(template.get("with", ""), str):
            raise Rejected("bad_template", f'{shown(template)} joins nothing: it is {{"join": [...], "with": "text"}}')
        return "join"
    return "literal" if keys == {"literal"} else ""


def _join(parts: Any, separator: str) -> str:
    if parts is MISSING:
        return ""
    texts: list[str] = []
    for part in parts if isinstance(parts, list) else [parts]:
        texts += map(as_text, part) if isinstance(part, list) else [as_text(part)]
    return separator.join(texts)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in list(names)[:20]) or "nothing"
