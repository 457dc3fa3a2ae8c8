"""From a function's signature to the JSON Schema of its arguments, and from a model's arguments to the function's.

Job: read type hints and docstring once, when the function is marked; say then, and by the parameter's name, what a tool
cannot have. Schema and conversion come from the same types (msgspec's), so they cannot disagree.
Must not know: tools, pools, limits.
"""

from __future__ import annotations

import inspect
import re
import typing
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from swarmd.core.errors import UNREADABLE, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FunctionType

#: A parameter of this name gets the step's idempotency key, and is not shown to the model.
KEY_PARAMETER: Final = "idempotency_key"
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Yields|Raises|Examples?|Notes?):\s*$")
_ENTRY = re.compile(r"^\*{0,2}(\w+)(?:\s*\([^)]*\))?\s*:\s*(.*)$")
_FIELD = re.compile(r"^:param\s+(?:[^:]*\s)?(\w+)\s*:\s*(.*)$")
_PLACE = re.compile(r"^(?P<what>.*?) - at `(?P<key>key in )?\$\.?(?P<where>.*)`$", re.DOTALL)
_DEFS: Final = "#/$defs/"
#: Keywords of JSON Schema whose values are data and hold no schemas.
_DATA: Final = frozenset({"default", "enum", "const", "examples", "required"})


class Parameters:
    """The arguments of one function: `schema` for a model, `convert` for what it sends."""

    def __init__(self, function: FunctionType) -> None:
        """Raises `Rejected("bad_tool")` naming the parameter that a model could not fill in, and why."""
        self._of = function.__name__
        described = documented(function)[1]
        fields: list[tuple[str, Any, Any]] = []
        defaults: dict[str, Any] = {}
        self.takes_key = False
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name == KEY_PARAMETER:
                self.takes_key = True
                continue
            hint = self._hint(function, parameter)
            self._check(parameter.name, hint)
            if parameter.default is inspect.Parameter.empty:
                fields.append((parameter.name, hint, msgspec.NODEFAULT))
            else:  # left out is left to the function, whose default may be no JSON
                fields.append((parameter.name, typing.Union[hint, UnsetType], UNSET))  # noqa: UP007 - made at run time
                self._note_default(defaults, parameter)
        self._type = msgspec.defstruct(
            "Arguments",
            [(name, hint) if default is msgspec.NODEFAULT else (name, hint, default) for name, hint, default in fields],
            forbid_unknown_fields=True,
            kw_only=True,
        )
        self.schema = self._schema(described, defaults)

    def convert(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the hinted types. Raises `Rejected("bad_arguments")` naming the field."""
        try:
            filled = msgspec.json.decode(msgspec.json.encode(_whole(arguments)), type=self._type)
        except msgspec.ValidationError as error:
            raise Rejected("bad_arguments", _in_words(str(error))) from None
        except (*UNREADABLE, TypeError, ValueError) as error:
            raise Rejected("bad_arguments", f"the arguments are no JSON object: {error}") from None
        values = {name: getattr(filled, name) for name in self._type.__struct_fields__}
        return {name: value for name, value in values.items() if value is not UNSET}

    def _refuse(self, parameter: str, why: str) -> Rejected:
        return Rejected("bad_tool", f"tool {self._of!r}: parameter {parameter!r} {why}")

    def _hint(self, function: FunctionType, parameter: inspect.Parameter) -> Any:
        name, kind = parameter.name, parameter.kind
        if kind in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD):
            raise self._refuse(name, "takes any number of values: name each one, or take a list or a dict")
        if kind is kind.POSITIONAL_ONLY:
            raise self._refuse(name, "is positional only: a model names its arguments, so remove the '/'")
        if name.startswith("_"):
            raise self._refuse(name, "begins with '_': give it a name that a model may read")
        if parameter.annotation is inspect.Parameter.empty:
            raise self._refuse(name, "has no type hint: a model is told by it what to send")
        holder = type("Holder", (), {"__annotations__": {name: parameter.annotation}})
        try:
            return typing.get_type_hints(holder, function.__globals__, None, True)[name]
        except (NameError, AttributeError) as error:
            why = f"has the hint {parameter.annotation!r}, which cannot be looked up ({error})"
            raise self._refuse(name, f"{why}: import it outside `if TYPE_CHECKING`, define it in the module") from None
        except (TypeError, SyntaxError) as error:
            raise self._refuse(name, f"has the hint {parameter.annotation!r}, which is no type: {error}") from None

    def _check(self, name: str, hint: Any) -> None:
        try:
            msgspec.json.schema_components([hint])
            msgspec.json.Decoder(hint)
        except (TypeError, ValueError, NameError, AttributeError) as error:
            why = str(error).strip().splitlines()[-1]
            known = "str, int, float, bool, Literal, Enum, Optional, list, dict, dataclasses and msgspec.Struct"
            raise self._refuse(name, f"cannot be of type {_shown(hint)}: {why}. Use {known}") from None

    def _note_default(self, defaults: dict[str, Any], parameter: inspect.Parameter) -> None:
        try:
            defaults[parameter.name] = msgspec.json.decode(msgspec.json.encode(parameter.default))
        except (TypeError, ValueError):
            return  # such as a sentinel: the model learns that it may leave it out

    def _schema(self, described: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any]:
        (top,), components = msgspec.json.schema_components([self._type])
        own = components.pop(top["$ref"].removeprefix(_DEFS))
        rings = {name for name in components if name in _reachable(name, components)}
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {key: _inlined(node, components, rings) for key, node in own["properties"].items()},
            "required": own["required"],
            "additionalProperties": False,
        }
        for name, node in schema["properties"].items():
            if described.get(name) and "description" not in node:
                node["description"] = described[name]
            if defaults.get(name) is not None:
                node["default"] = defaults[name]
        if rings:
            schema["$defs"] = {name: _inlined(components[name], components, rings) for name in sorted(rings)}
        return schema


def _whole(value: Any) -> Any:
    """Numbers such as 2.0 as integers: they are, in JSON Schema, and some models write them so."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    return [_whole(inner) for inner in value] if isinstance(value, list) else value


def documented(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """A docstring as the description of the tool, and those of its parameters ("Args:" or ":param x:")."""
    kept: list[str] = []
    described: dict[str, str] = {}
    section, current, depth = "", "", 0
    for line in (inspect.getdoc(function) or "").splitlines():
        bare, indent = line.strip(), len(line) - len(line.lstrip())
        if head := _SECTION.match(line):
            section, current = head[1], ""
            if section in ("Args", "Arguments", "Parameters"):
                continue
        elif section and bare and not indent:
            section = ""
        if section in ("Args", "Arguments", "Parameters"):
            entry = _ENTRY.match(bare)
            if entry and (not current or indent <= depth):
                current, depth, described[entry[1]] = entry[1], indent, entry[2]
            elif current and bare:
                described[current] = f"{described[current]} {bare}".strip()
        elif field := _FIELD.match(bare):
            described[field[1]] = field[2]
        else:
            kept.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip(), described


def _reachable(name: str, components: Mapping[str, Any]) -> set[str]:
    """The components that one refers to, directly or through others."""
    found: set[str] = set()
    waiting = list(_refs(components[name]))
    while waiting:
        other = waiting.pop()
        if other not in found:
            found.add(other)
            waiting += _refs(components[other])
    return found


def _refs(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*(_refs(item) for item in node)) if node else set()
    if not isinstance(node, dict):
        return set()
    own = {node["$ref"].removeprefix(_DEFS)} if isinstance(node.get("$ref"), str) else set()
    return own.union(*(_refs(value) for key, value in node.items() if key not in _DATA))


def _inlined(node: Any, components: Mapping[str, Any], rings: set[str]) -> Any:
    """A schema without references, where that is possible: many models follow none. Types that hold themselves stay."""
    if isinstance(node, list):
        return [_inlined(item, components, rings) for item in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str):
        name = node["$ref"].removeprefix(_DEFS)
        if name in rings:
            return dict(node)
        merged = {**components[name], **{key: value for key, value in node.items() if key != "$ref"}}
        return _inlined(merged, components, rings)
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            out[key] = {name: _inlined(inner, components, rings) for name, inner in value.items()}
        elif key != "title":
            out[key] = value if key in _DATA else _inlined(value, components, rings)
    return out


def _shown(hint: Any) -> str:
    return hint.__qualname__ if isinstance(hint, type) else str(hint)


def _in_words(problem: str) -> str:
    """A validation error with the field first."""
    found = _PLACE.match(problem)
    if not found or not found["where"]:
        return problem.replace("`", "")
    key = "a key of " if found["key"] else ""
    return f"{key}{found['where']}: {found['what']}".replace("`", "")
