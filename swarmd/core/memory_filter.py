"""The filter language of memories: a small typed expression, checked before any store sees it.

    author = "desk" and (labels.topic in ("a", "b") or has labels.urgent) and since >= 2026-01-01 and not source = "x"

Fields of text: id, source, author, task, swarm, space, step and labels.NAME (or labels."any name"), with =, != and in.
Fields of numbers: seq, since and expires (milliseconds since 1970, or a date or time of ISO 8601, UTC unless it says
otherwise), with = != < <= > >=. A label that is not there equals nothing: `labels.x != "a"` holds where x is missing.
Pure. Must not know stores: each translates the tree that `parse` returns, and `matches` is what they must agree with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swarmd.core.memory import Memory

Comparison = Literal["=", "!=", "<", "<=", ">", ">="]
TextField = Literal["id", "source", "author", "task", "swarm", "space", "step"]
NumberField = Literal["seq", "since", "expires"]


class TextIn(Struct, frozen=True, tag=True):
    """A field of text, or the label `label`, is one of these values."""

    values: tuple[str, ...]
    field: TextField | Literal["label"]
    label: str = ""


class Has(Struct, frozen=True, tag=True):
    """There is a label of this name, whatever it says."""

    label: str


class NumberIs(Struct, frozen=True, tag=True):
    field: NumberField
    comparison: Comparison
    value: int


class Not(Struct, frozen=True, tag=True):
    part: Filter


class And(Struct, frozen=True, tag=True):
    parts: tuple[Filter, ...]


class Or(Struct, frozen=True, tag=True):
    parts: tuple[Filter, ...]


Filter = TextIn | Has | NumberIs | Not | And | Or

_COMPARED: Final[dict[Comparison, Callable[[int, int], bool]]] = {
    "=": lambda one, other: one == other,
    "!=": lambda one, other: one != other,
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
}


def both(parts: Sequence[Filter | None]) -> Filter | None:
    """All of several filters; None is one that lets everything through."""
    given = tuple(part for part in parts if part is not None)
    return None if not given else given[0] if len(given) == 1 else And(given)


def matches(where: Filter | None, memory: Memory) -> bool:
    """Whether a filter lets a memory through: the meaning of the language."""
    if where is None:
        return True
    if isinstance(where, And):
        return all(matches(part, memory) for part in where.parts)
    if isinstance(where, Or):
        return any(matches(part, memory) for part in where.parts)
    if isinstance(where, Not):
        return not matches(where.part, memory)
    if isinstance(where, Has):
        return where.label in memory.labels
    if isinstance(where, TextIn):
        value = memory.labels.get(where.label) if where.field == "label" else getattr(memory, where.field)
        return value in where.values
    number = {"seq": memory.seq, "since": memory.since_ms, "expires": memory.expires_at_ms}[where.field]
    return _COMPARED[where.comparison](number, where.value)
