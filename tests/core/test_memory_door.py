"""What a memory's door lets in: vectors of any size become directions, names hold no control characters."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core import memory_door
from swarmd.core.errors import Rejected
from swarmd.core.memory_filter import And, TextIn

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(NUMBERS, min_size=1, max_size=20).filter(any))
def test_a_vector_of_any_size_becomes_a_direction(values: list[float]) -> None:
    vector = memory_door.unit_vector(values, len(values))
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)
    stored = memory_door.vector_bytes(vector)
    assert len(stored) == 4 * len(values)
    assert memory_door.vector_of(stored) == vector


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([math.nan, 1.0], "bad_vector"),
        ([math.inf, 1.0], "bad_vector"),
        ([1.0, -math.inf], "bad_vector"),
        ([0.0, -0.0], "bad_vector"),
        ([1.0], "wrong_dimension"),
        ([1.0] * 3, "wrong_dimension"),
        ([], "wrong_dimension"),
    ],
)
def test_a_vector_without_a_direction_is_refused(values: list[float], code: str) -> None:
    with pytest.raises(Rejected) as refused:
        memory_door.unit_vector(values, 2)
    assert refused.value.code == code


def test_a_vector_has_a_length_that_can_be_kept() -> None:
    for values in ([], [1.0] * 40_000):
        with pytest.raises(Rejected, match="are possible"):
            memory_door.unit_vector(values, 0)


@given(st.text(max_size=30))
def test_a_name_holds_no_control_character_and_a_text_lines_at_most(text: str) -> None:
    controls = {letter for letter in text if ord(letter) < 32 or 127 <= ord(letter) < 160}
    for check, allowed in ((memory_door.check_field, set()), (memory_door.check_text, set("\t\r\n"))):
        try:
            check(text, "name")
        except Rejected as error:
            refused = error.code
        else:
            refused = ""
        if check is memory_door.check_text and not text.strip():
            assert refused == "text_empty"
        else:
            assert (refused == "control_characters") == bool(controls - allowed)


def test_a_lone_surrogate_is_told_by_its_place() -> None:
    with pytest.raises(Rejected, match="surrogate at 1") as refused:
        memory_door.check_text("a\ud800")
    assert refused.value.code == "not_unicode"


def test_filter_labels_and_spaces_must_all_hold() -> None:
    assert memory_door.filter_of("", {}, []) is None
    where = memory_door.filter_of('author = "desk"', {"k": "v"}, ["shared", "swarm/main"])
    assert where == And(
        (TextIn(("desk",), "author"), TextIn(("v",), "label", "k"), TextIn(("shared", "swarm/main"), "space"))
    )
