"""Templates: places are filled, values stay data."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.errors import Rejected
from swarmd.strategies.templates import MISSING, fill, put, references, shown, take

VALUES = {"a": {"text": "A", "list": [1, {"x": None}]}, "b": "B", "gone": MISSING}
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "take", "join", "with", "literal", "k"]), inner, max_size=3)
    ),
    max_leaves=15,
)


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ({"from": "b"}, "B"),
        ({"from": "a", "take": "list.1.x"}, None),
        ({"k": [{"from": "b"}, 2]}, {"k": ["B", 2]}),
        ({"join": ["x: ", {"from": "b"}, {"from": "a", "take": "list"}], "with": "|"}, 'x: |B|1|{"x":null}'),
        ({"join": {"from": "b"}}, "B"),
        ({"literal": {"from": "nowhere"}}, {"from": "nowhere"}),
        ({"from": "b", "more": 1}, {"from": "b", "more": 1}),
        ([{"from": "gone"}, {"from": "b"}], ["B"]),
        ({"k": {"from": "gone"}}, {"k": None}),
        ({"join": [{"from": "gone"}, {"from": "b"}], "with": "+"}, "B"),
        ({"from": "gone"}, None),
    ],
)
def test_filling(template: Any, filled: Any) -> None:
    assert fill(template, VALUES) == filled


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"from": "z"}, "nothing is named 'z': there is 'a', 'b', 'gone'"),
        ({"from": "a", "take": "nope"}, "no 'nope' .* there is 'text', 'list'"),
        ({"from": "a", "take": "list.7"}, "no '7'"),
        ({"from": ["a"]}, "is no reference"),
        ({"join": "text"}, "joins nothing"),
    ],
)
def test_what_cannot_be_filled_says_what_there_is(template: Any, words: str) -> None:
    with pytest.raises(Rejected, match=words) as caught:
        fill(template, VALUES)
    assert caught.value.code == "bad_template"


@given(JSON)
def test_a_value_is_put_in_as_it_is(value: Any) -> None:
    assert fill({"k": {"from": "v"}}, {"v": value}) == {"k": value}
    assert fill({"literal": value}, {}) == value
    assert take({"v": [value]}, "v.0") == value
    assert len(shown(value, 20)) <= 21


@given(JSON)
def test_what_is_referred_to_is_what_is_needed(template: Any) -> None:
    try:
        names = set(references(template))
    except Rejected:
        with pytest.raises(Rejected):
            fill(template, {})
        return
    with suppress(Rejected) if "take" in str(template) else nullcontext():
        fill(template, dict.fromkeys(names, "v"))
    for name in names:
        with pytest.raises(Rejected):
            fill(template, dict.fromkeys(names - {name}, "v"))


def test_a_place_for_many_becomes_their_list() -> None:
    template = {"join": {"from": "parts"}, "with": "\n"}
    assert fill(put(template, "parts", ["a", "b"]), {"a": "1", "b": "2"}) == "1\n2"
    assert put([{"from": "x"}, {"literal": {"from": "parts"}}], "parts", []) == [
        {"from": "x"},
        {"literal": {"from": "parts"}},
    ]
    with pytest.raises(Rejected, match="put in whole"):
        put({"from": "parts", "take": "0"}, "parts", ["a"])


def test_a_template_without_end_is_refused() -> None:
    deep: Any = "x"
    for _ in range(60):
        deep = [deep]
    with pytest.raises(Rejected, match="nested deeper"):
        list(references(deep))
