"""The filter language: what is written means what `matches` says, and what is wrong is told with its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.errors import Rejected
from swarmd.core.memory import Memory
from swarmd.core.memory_filter import (
    DEPTH_MAX,
    NUMBER_MAX,
    TERMS_MAX,
    TEXT_BYTES_MAX,
    And,
    Filter,
    Has,
    Not,
    NumberIs,
    Or,
    TextIn,
    both,
    matches,
    parse,
)

DESK = Memory(
    id="m1", text="t", author="desk", labels={"topic": "a", "odd name": ""}, seq=7, since_ms=1_767_225_600_000
)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('author = "desk"', True),
        ('author != "desk"', False),
        ('AUTHOR = "desk"'.lower(), True),
        ('author in ("x", "desk")', True),
        ('labels.topic = "a" and has labels.topic', True),
        ("has labels.missing", False),
        ('labels.missing != "a"', True),
        ('labels.missing = ""', False),
        ('labels."odd name" = ""', True),
        ('not (author = "x" or seq > 6)', False),
        ('author = "x" and seq = 1 or seq >= 7', True),
        ('not author = "x" and seq < 7', False),
        ("not not seq = 7", True),
        ("since >= 2026-01-01", True),
        ("since > 2026-01-01T00:00:00Z", False),
        ("since = 2026-01-01T01:00:00+01:00", True),
        ("since < 2026-01-01T00:00:00.001Z", True),
        ("expires = 0", True),
        ("seq != -1", True),
        ('space = "shared"', True),
        ('\tlabels.topic="a"\nAND NOT labels.topic in("b")', True),
        ('source = ""', True),
        ('id = "\\u006d1"', True),
        ("has labels.in or has labels.not or has labels.And or seq = 7", True),
    ],
)
def test_what_is_written_is_what_is_meant(text: str, holds: bool) -> None:
    assert matches(parse(text), DESK) is holds


def test_no_filter_lets_everything_through() -> None:
    assert matches(None, DESK)
    assert both([None, None]) is None
    term = NumberIs("seq", "=", 7)
    assert both([None, term]) == term
    assert both([term, Has("x")]) == And((term, Has("x")))


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("", 1, "a field"),
        ("  ", 3, "a field"),
        ("author", 7, "=, != or in"),
        ("author == 3", 9, "double quotes"),
        ('author < "a"', 8, "=, != or in"),
        ("author = 'desk'", 10, "means nothing"),
        ("author = desk", 10, "double quotes"),
        ('author = "desk', 10, "closing"),
        ('author = "a" author = "b"', 14, "and, or, or the end"),
        ('(author = "a"', 14, r"or \)"),
        ('author in ("a" "b")', 16, r", or \)"),
        ("author in ()", 12, "double quotes"),
        ('colour = "red"', 1, "labels.NAME"),
        ('labels = "x"', 8, "the name of a label"),
        ('labels.7 = "x"', 8, "quotes"),
        ('has author = "x"', 5, "labels.NAME"),
        ("seq = 2026-01-01", 7, "a number"),
        ('seq = "7"', 7, "a number"),
        ("seq in (1)", 5, "one of ="),
        ("seq = 1.5", 8, "the end"),
        (f"seq = {NUMBER_MAX + 1}", 7, "beyond"),
        ("since > 2026-13-01", 9, "ISO 8601"),
        ("since > 2026-01-01T25:00", 9, "ISO 8601"),
        ("since > yesterday", 9, "milliseconds"),
        ('author = "a\x00"', 12, "control character"),
        ('author = "a\x85"', 12, "control character"),
        ('author = "\ud800"', 11, "surrogate"),
        ('author = "\\ud800"', 10, "JSON"),
        ('author = "\\x"', 10, "JSON"),
        ('author = "a\nb"', 10, "JSON"),
        ('text = "x" or 1 = 1', 1, "a field"),
        ('author = "a"; drop', 13, "means nothing"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, at: int, says: str) -> None:
    with pytest.raises(Rejected, match=says) as caught:
        parse(text)
    assert caught.value.code == "bad_filter"
    assert f"at character {at}, " in caught.value.message


def test_length_depth_and_number_of_values_are_bounded() -> None:
    value = "x" * (TEXT_BYTES_MAX - len('id = ""'))
    assert parse(f'id = "{value}"') == TextIn((value,), "id")
    with pytest.raises(Rejected, match=f"at most {TEXT_BYTES_MAX}"):
        parse(f'id = "{value}x"')
    parse("(" * DEPTH_MAX + "seq = 1" + ")" * DEPTH_MAX)
    for opening in ("(", "not "):
        with pytest.raises(Rejected, match=f"more than {DEPTH_MAX}"):
            parse(opening * (DEPTH_MAX + 1) + "seq = 1")
    parse(" or ".join(["seq = 1"] * TERMS_MAX))
    with pytest.raises(Rejected, match=f"more than {TERMS_MAX}"):
        parse(" or ".join(["seq = 1"] * (TERMS_MAX + 1)))
    with pytest.raises(Rejected, match=f"more than {TERMS_MAX}"):
        parse("id in (" + ",".join(['"x"'] * (TERMS_MAX + 1)) + ")")


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
TERMS: st.SearchStrategy[Filter] = st.one_of(
    st.builds(
        lambda values, field: TextIn(tuple(dict.fromkeys(values)), field),
        st.lists(WORDS, min_size=1, max_size=3),
        st.sampled_from(["id", "source", "author", "task", "swarm", "space", "step"]),
    ),
    st.builds(lambda value, label: TextIn((value,), "label", label), WORDS, WORDS),
    st.builds(Has, WORDS),
    st.builds(
        NumberIs,
        st.sampled_from(["seq", "since", "expires"]),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
        st.integers(-NUMBER_MAX, NUMBER_MAX),
    ),
)
FILTERS = st.recursive(
    TERMS,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(lambda parts: And(tuple(parts)), st.lists(inner, min_size=2, max_size=3)),
        st.builds(lambda parts: Or(tuple(parts)), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=8,
)


def quoted(text: str) -> str:
    """As JSON, with those control characters escaped that JSON lets through."""
    return "".join(
        f"\\u{ord(sign):04x}" if 0x7F <= ord(sign) < 0xA0 else sign for sign in json.dumps(text, ensure_ascii=False)
    )


def written(where: Filter) -> str:
    if isinstance(where, TextIn):
        name = f"labels.{quoted(where.label)}" if where.field == "label" else where.field
        return f"{name} in ({', '.join(map(quoted, where.values))})"
    if isinstance(where, Has):
        return f"has labels.{quoted(where.label)}"
    if isinstance(where, NumberIs):
        return f"{where.field} {where.comparison} {where.value}"
    if isinstance(where, Not):
        return f"not ({written(where.part)})"
    return (" and " if isinstance(where, And) else " or ").join(f"({written(part)})" for part in where.parts)


@settings(max_examples=150, deadline=None)
@given(FILTERS)
def test_a_filter_that_is_written_down_is_read_as_itself(where: Filter) -> None:
    text = written(where)
    if len(text.encode()) <= TEXT_BYTES_MAX:
        assert parse(text) == where


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(
                [
                    "author",
                    "labels",
                    ".",
                    "x",
                    "=",
                    "!=",
                    '"a"',
                    "(",
                    ")",
                    "in",
                    "and",
                    "or",
                    "not",
                    "has",
                    "seq",
                    "<",
                    "7",
                    ",",
                ]
            ),
            max_size=14,
        ).map(" ".join),
    )
)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        tree = parse(text)
    except Rejected:
        return
    assert isinstance(matches(tree, DESK), bool)
