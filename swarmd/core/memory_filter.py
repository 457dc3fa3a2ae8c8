"""The filter language of memories: a small typed expression, checked before any store sees it.

    author = "desk" and (labels.topic in ("a", "b") or has labels.urgent) and since >= 2026-01-01 and not source = "x"

Fields of text: id, source, author, task, swarm, space, step and labels.NAME (or labels."any name"), with =, != and in.
Fields of numbers: seq, since and expires (milliseconds since 1970, or a date or time of ISO 8601, UTC unless it says
otherwise), with = != < <= > >=. A label that is not there equals nothing: `labels.x != "a"` holds where x is missing.
Pure. Must not know stores: each translates the tree that `parse` returns, and `matches` is what they must agree with.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec
from msgspec import Struct

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from swarmd.core.memory import Memory

TEXT_BYTES_MAX: Final = 4_096
DEPTH_MAX: Final = 32
TERMS_MAX: Final = 200
NUMBER_MAX: Final = 2**63 - 1

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

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


def parse(text: str) -> Filter:
    """The filter that a text means. Raises `Rejected("bad_filter")`, which says where it is wrong and what goes there.

    `and` binds more than `or`, `not` more than both. Texts are in double quotes and escaped as in JSON. Bounded: at
    most `TEXT_BYTES_MAX` long, `DEPTH_MAX` parentheses and `not`s deep, `TERMS_MAX` values in all.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise _bad(text, error.start, "a lone surrogate: send valid UTF-8") from error
    if size > TEXT_BYTES_MAX:
        raise Rejected("bad_filter", f"the filter has {size} bytes; at most {TEXT_BYTES_MAX} are read")
    reading = _Reading(text)
    tree = reading.any_of(0)
    if reading.kind != "end":
        raise reading.wrong("and, or, or the end")
    return tree


_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*")
    |(?P<time>\d{4}-\d\d-\d\d(?:T[\d:.]+(?:Z|[+-][\d:]+)?)?)
    |(?P<number>-?\d+)
    |(?P<word>[^\W\d][\w-]*)
    |(?P<sign>!=|<=|>=|[=<>(),.])
    |(?P<end>$))""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS: Final = ("and", "or", "not", "in", "has")
_TEXT_FIELDS: Final = get_args(TextField)
_NUMBER_FIELDS: Final = get_args(NumberField)
_FIELDS: Final = ", ".join((*_TEXT_FIELDS, "labels.NAME", *_NUMBER_FIELDS))


class _Reading:
    """A text, and the one token of it that is looked at: its kind, what it says, and where it starts."""

    def __init__(self, text: str) -> None:
        for at, character in enumerate(text):
            if unicodedata.category(character) == "Cc" and character not in "\t\n\r":
                raise _bad(text, at, f"the control character {character!r}: write it as an escape within a text")
        self.text = text
        self.end = self.at = self.terms = 0
        self.kind = self.said = ""
        self.go_on()

    def go_on(self) -> None:
        match = _TOKEN.match(self.text, self.end)
        if match is None:
            at = self.end + len(self.text[self.end :]) - len(self.text[self.end :].lstrip())
            unclosed = self.text[at] == '"'
            raise _bad(
                self.text,
                at,
                'a text without its closing "' if unclosed else f"{self.text[at]!r}, which means nothing here",
            )
        self.kind = str(match.lastgroup)
        self.said = match[self.kind]
        self.at, self.end = match.start(self.kind), match.end()
        if self.kind == "word" and self.said.lower() in _KEYWORDS:
            self.kind, self.said = "keyword", self.said.lower()

    def is_next(self, said: str) -> bool:
        """Whether this keyword or sign comes next; it is passed over then."""
        if self.said != said or self.kind not in ("keyword", "sign"):
            return False
        self.go_on()
        return True

    def wrong(self, expected: str) -> Rejected:
        found = "the end" if self.kind == "end" else self.said[:50]
        return _bad(self.text, self.at, f"{found}, where {expected} is expected")

    def any_of(self, depth: int) -> Filter:
        parts = [self.all_of(depth)]
        while self.is_next("or"):
            parts.append(self.all_of(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def all_of(self, depth: int) -> Filter:
        parts = [self.one(depth)]
        while self.is_next("and"):
            parts.append(self.one(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def one(self, depth: int) -> Filter:
        if depth > DEPTH_MAX:
            raise _bad(self.text, self.at, f"more than {DEPTH_MAX} parentheses and nots within one another")
        if self.is_next("not"):
            return Not(self.one(depth + 1))
        if self.is_next("("):
            inner = self.any_of(depth + 1)
            if not self.is_next(")"):
                raise self.wrong("and, or, or )")
            return inner
        if self.is_next("has"):
            if self.kind != "word" or self.said != "labels":
                raise self.wrong("labels.NAME")
            self.count()
            return Has(self.label())
        if self.kind != "word":
            raise self.wrong(f"not, has, ( or a field ({_FIELDS})")
        if self.said == "labels":
            return self.text_term("label", self.label())
        if self.said in _TEXT_FIELDS:
            return self.text_term(self.name(), "")
        if self.said in _NUMBER_FIELDS:
            return self.number_term(self.name())
        raise self.wrong(f"a field ({_FIELDS})")

    def name(self) -> Any:
        said = self.said
        self.go_on()
        return said

    def label(self) -> str:
        """The name after `labels.`, with or without quotes."""
        self.go_on()
        if not self.is_next("."):
            raise self.wrong(". and the name of a label")
        if self.kind == "text":
            return self.string()
        if self.kind not in ("word", "keyword"):
            raise self.wrong('the name of a label, in "quotes" unless it is a plain word')
        name = self.text[self.at : self.end]
        self.go_on()
        return name

    def text_term(self, field: Any, label: str) -> Filter:
        if self.is_next("in"):
            return TextIn(tuple(dict.fromkeys(self.strings())), field, label)
        is_not = self.said == "!="
        if not (self.is_next("=") or self.is_next("!=")):
            raise self.wrong("=, != or in")
        self.count()
        term = TextIn((self.string(),), field, label)
        return Not(term) if is_not else term

    def strings(self) -> Iterator[str]:
        if not self.is_next("("):
            raise self.wrong("( and texts")
        while True:
            self.count()
            yield self.string()
            if self.is_next(")"):
                return
            if not self.is_next(","):
                raise self.wrong(", or )")

    def string(self) -> str:
        if self.kind != "text":
            raise self.wrong('a text in "double quotes"')
        try:
            value = msgspec.json.decode(self.said, type=str)
        except msgspec.DecodeError as error:
            raise _bad(
                self.text, self.at, "a text that is not written as in JSON (escape \\ and control characters)"
            ) from error
        self.go_on()
        return value

    def number_term(self, field: NumberField) -> Filter:
        comparison = self.said
        if comparison not in _COMPARED or self.kind != "sign":
            raise self.wrong("one of " + " ".join(_COMPARED))
        self.go_on()
        self.count()
        return NumberIs(field, comparison, self.number(field))

    def number(self, field: NumberField) -> int:
        is_time = field != "seq"
        if self.kind == "number":
            if not -NUMBER_MAX <= (value := int(self.said) if len(self.said) < 30 else NUMBER_MAX + 1) <= NUMBER_MAX:
                raise _bad(self.text, self.at, f"a number beyond {NUMBER_MAX}")
        elif is_time and self.kind == "time":
            value = self.moment()
        else:
            raise self.wrong(
                "milliseconds since 1970, or a time such as 2026-01-31T08:00:00Z" if is_time else "a number"
            )
        self.go_on()
        return value

    def moment(self) -> int:
        try:
            moment = datetime.fromisoformat(self.said)
        except ValueError as error:
            raise _bad(self.text, self.at, f"{self.said}, which is no date or time of ISO 8601: {error}") from error
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return (moment - _EPOCH) // timedelta(milliseconds=1)

    def count(self) -> None:
        self.terms += 1
        if self.terms > TERMS_MAX:
            raise _bad(self.text, self.at, f"more than {TERMS_MAX} values")


def _bad(text: str, at: int, found: str) -> Rejected:
    return Rejected("bad_filter", f"the filter has, at character {at + 1}, {found}")
