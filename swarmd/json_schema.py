"""JSON values against JSON Schemas (draft 2020-12), with errors in words that name the field: `$.age: must be integer`.

Job: one reading of schemas for model answers, human answers and tool arguments. Invariants: references are pointers
into the schema itself (no network) and never go in circles on one value; values are nested to a bounded depth,
since the library recurses; a check takes a bounded time, since a pattern of a stranger may never end. A schema that is
wrong is an error of its own, never a silent pass; the number and length of the errors are bounded. The library is
imported at first use.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from swarmd.core.errors import Rejected
from swarmd.time_limit import TimeIsUp, time_limit

if TYPE_CHECKING:
    from collections.abc import Iterable

PROBLEMS_MAX: Final = 8
WORDS_MAX: Final = 300
DEPTH_MAX: Final = 32
SCHEMA_DEPTH_MAX: Final = 128
#: How long a check, and the first reading of a schema, may compute: nobody else is answered meanwhile.
CHECK_S: Final = 0.25
READ_S: Final = 1.0
_CACHED: Final = 256
#: Keywords whose schemas apply to the same value, and not to a part of it.
_IN_PLACE: Final = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")
_KINDS: Final = {"integer": "an integer", "array": "an array", "object": "an object"}


def problems(value: Any, schema: dict[str, Any]) -> list[str]:
    """Why `value` does not fit `schema`, each as `place: words`, nearest to the root first; empty when it fits.

    Raises `Rejected("bad_schema")` for a schema that is none, or that this value keeps busy for too long.
    """
    validator = _validator(msgspec.json.encode(schema))
    if _deeper_than(value, DEPTH_MAX):
        return [f"$: must not be nested deeper than {DEPTH_MAX}"]
    try:
        with time_limit(CHECK_S):
            found = list(validator.iter_errors(value))
            found.sort(key=lambda error: (len(error.absolute_path), error.json_path))
            words = [line for error in found[:PROBLEMS_MAX] for line in _in_words(error)]
    except TimeIsUp:
        why = f"to check this value takes longer than {CHECK_S} s"
        hint = "does a pattern repeat a repetition, or is an array of unique items very long?"
        raise Rejected("bad_schema", f"{why}: {hint}") from None
    except BaseException as error:
        # Out of stack, which a schema of many layers per level of the value can still bring about. Within the library's
        # compiled part that is a panic, which is no Exception.
        if not isinstance(error, RecursionError) and type(error).__name__ != "PanicException":
            raise
        raise Rejected("bad_schema", "the schema has too many layers to check this value: make it flatter") from None
    return list(dict.fromkeys(words))[:PROBLEMS_MAX]


def check_schema(schema: Any) -> dict[str, Any]:
    """The schema, if it is one. Raises `Rejected("bad_schema")` naming what is wrong with it."""
    if not isinstance(schema, dict):
        raise Rejected("bad_schema", 'a schema is a JSON object, such as {"type": "string"}')
    _validator(msgspec.json.encode(schema))
    return schema


@lru_cache(maxsize=_CACHED)
def _validator(encoded: bytes) -> Any:
    import jsonschema

    schema = msgspec.json.decode(encoded)
    if _deeper_than(schema, SCHEMA_DEPTH_MAX):
        raise Rejected("bad_schema", f"the schema is nested deeper than {SCHEMA_DEPTH_MAX}")
    _check_references(schema)
    try:
        with time_limit(READ_S):
            jsonschema.Draft202012Validator.check_schema(schema)
    except TimeIsUp:
        raise Rejected("bad_schema", f"to read the schema takes longer than {READ_S} s: make it smaller") from None
    except jsonschema.SchemaError as error:
        place = error.json_path
        raise Rejected("bad_schema", f"the schema is wrong at {place}: {_short(error.message)}") from None
    # An empty registry of our own: the default one would fetch references from the network.
    from referencing import Registry

    return jsonschema.Draft202012Validator(schema, registry=Registry())


def _in_words(error: Any) -> Iterable[str]:
    """One error of the library as our words; of an `anyOf` that failed, the errors of its likeliest branch."""
    place, rule, wanted = error.json_path, error.validator, error.validator_value
    match rule:
        case "type":
            kinds = [wanted] if isinstance(wanted, str) else wanted
            yield f"{place}: must be {' or '.join(_KINDS.get(kind, kind) for kind in kinds)}"
        case "required":
            for name in wanted:
                if name not in error.instance:
                    yield f"{place}.{name}: is missing"
        case "enum":
            yield _short(f"{place}: must be one of {_json(wanted)}")
        case "const":
            yield _short(f"{place}: must be {_json(wanted)}")
        case "additionalProperties" if wanted is False:
            known = error.schema.get("properties", {})
            for name in error.instance:
                if name not in known:
                    yield _short(f"{place}.{name}: is not expected; there are {', '.join(known) or 'no fields'}")
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            low = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most"}
            yield f"{place}: must be {low.get(rule, 'less than')} {wanted}"
        case "minLength" | "minItems" | "maxLength" | "maxItems":
            what = "characters" if rule.endswith("Length") else "items"
            yield f"{place}: must have {'at least' if rule.startswith('min') else 'at most'} {wanted} {what}"
        case "pattern":
            yield _short(f"{place}: must match {wanted}")
        case "anyOf" | "oneOf" if error.context:
            yield from _of_branches(error)
        case _:
            yield _short(f"{place}: {error.message}")


def _of_branches(error: Any) -> Iterable[str]:
    """Every branch failed: kinds of value are named together, else the one that goes deeper speaks."""
    branches: dict[int, list[Any]] = {}
    for inner in error.context:
        branches.setdefault(inner.relative_schema_path[0], []).append(inner)
    others = [found for found in branches.values() if any(e.validator != "type" or e.relative_path for e in found)]
    if len(others) == 1:
        for inner in others[0]:
            yield from _in_words(inner)
        return
    kinds = [e.validator_value for found in branches.values() for e in found if e.validator == "type"]
    if others or not all(isinstance(kind, str) for kind in kinds):
        yield f"{error.json_path}: must fit one of the {len(branches)} forms that the schema allows"
        return
    yield f"{error.json_path}: must be {' or '.join(_KINDS.get(kind, kind) for kind in dict.fromkeys(kinds))}"


def _check_references(schema: Any) -> None:
    """Every reference is a pointer that leads somewhere, and none comes back to where it started on the same value."""
    edges: dict[int, list[Any]] = {}
    stack = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack += node
        if not isinstance(node, dict):
            continue
        stack += node.values()
        if any(isinstance(node.get(name), str) for name in ("$dynamicRef", "$recursiveRef", "$id")):
            raise Rejected("bad_schema", "the schema must not use $id, $dynamicRef or $recursiveRef: use $ref to $defs")
        nexts = [_target(schema, node["$ref"])] if isinstance(node.get("$ref"), str) else []
        for keyword in _IN_PLACE:
            inner = node.get(keyword)
            nexts += inner if isinstance(inner, list) else [inner]
        edges[id(node)] = [one for one in nexts if isinstance(one, dict)]
    state: dict[int, bool] = {}  # True: on the way, False: done
    for start in list(edges):
        _refuse_circles(start, edges, state)


def _refuse_circles(start: int, edges: dict[int, list[Any]], state: dict[int, bool]) -> None:
    walk = [(start, False)]
    while walk:
        node, leaving = walk.pop()
        if leaving:
            state[node] = False
        elif state.get(node) is None:
            state[node] = True
            walk.append((node, True))
            for following in map(id, edges.get(node, [])):
                if state.get(following):
                    raise Rejected("bad_schema", "a $ref of the schema goes in a circle")
                walk.append((following, False))


def _target(schema: Any, reference: str) -> Any:
    found = schema
    if reference != "#" and not reference.startswith("#/"):
        raise Rejected("bad_schema", f"$ref {_short(reference)!r} must be a pointer into the schema, such as #/$defs/x")
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            raise Rejected("bad_schema", f"$ref {_short(reference)!r} leads nowhere in the schema")
    return found


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _short(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= WORDS_MAX else line[: WORDS_MAX - 1] + "\u2026"
