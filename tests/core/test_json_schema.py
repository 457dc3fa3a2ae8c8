"""Values against schemas: errors name the field, hostile schemas are refused, nothing is fetched and nothing aborts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.errors import Rejected
from swarmd.json_schema import DEPTH_MAX, PROBLEMS_MAX, check_schema, problems

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 3},
        "mail": {"anyOf": [{"type": "string", "pattern": "@"}, {"type": "null"}]},
        "id": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "decision": {"enum": ["approve", "reject"]},
        "digest": {"const": "ab"},
        "tags": {"type": "array", "maxItems": 1, "items": {"type": "string", "minLength": 2}},
    },
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"age": 3}, []),
        ({"age": "x"}, ["$.age: must be an integer"]),
        ({"age": 2}, ["$.age: must be at least 3"]),
        ({}, ["$.age: is missing"]),
        (7, ["$: must be an object"]),
        ({"age": 3, "id": []}, ["$.id: must be string or an integer"]),
        ({"age": 3, "mail": "nobody"}, ["$.mail: must match @"]),
        ({"age": 3, "decision": "maybe"}, ['$.decision: must be one of ["approve","reject"]']),
        ({"age": 3, "digest": "ac"}, ['$.digest: must be "ab"']),
        ({"age": 3, "tags": ["x"]}, ["$.tags[0]: must have at least 2 characters"]),
        ({"age": 3, "tags": ["xx", "yy"]}, ["$.tags: must have at most 1 items"]),
        (
            {"age": 3, "nam": 1},
            ["$.nam: is not expected; there are age, mail, id, decision, digest, tags"],
        ),
    ],
)
def test_problems_name_the_field(value: Any, expected: list[str]) -> None:
    assert problems(value, PERSON) == expected


def test_problems_are_few_and_short() -> None:
    found = problems([["x" * 9_999]] * 500, {"items": {"items": {"enum": ["y" * 9_999]}}})
    assert len(found) == PROBLEMS_MAX
    assert max(map(len, found)) <= 300


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "number!"}, "wrong at"),
        ({"$ref": "http://127.0.0.1:9/x"}, "must be a pointer"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$ref": "#"}, "in a circle"),
        ({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}}}, "in a circle"),
        ({"$id": "http://x/", "type": "string"}, "must not use"),
        (["type"], "JSON object"),
    ],
)
def test_a_bad_schema_is_an_error_of_its_own(schema: Any, words: str) -> None:
    with pytest.raises(Rejected, match=words) as caught:
        check_schema(schema)
    assert caught.value.code == "bad_schema"


def test_a_schema_may_describe_a_tree() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    assert problems({"next": {"next": {}}}, tree) == []
    assert problems({"next": {"nxt": {}}}, tree) == ["$.next.nxt: is not expected; there are next"]
    deep: Any = {}
    for _ in range(5_000):
        deep = {"next": deep}
    assert problems(deep, tree) == [f"$: must not be nested deeper than {DEPTH_MAX}"]


def test_a_schema_that_runs_out_of_stack_is_refused_and_nothing_dies() -> None:
    layered: dict[str, Any] = {"properties": {"next": {"$ref": "#"}}}
    for _ in range(40):
        layered = {"allOf": [layered]}
    deep: Any = {}
    for _ in range(DEPTH_MAX - 1):
        deep = {"next": deep}
    with pytest.raises(Rejected, match="too many layers"):
        problems(deep, layered)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "^(a+)+$"}, "a" * 60 + "b"),
        ({"uniqueItems": True}, [{"n": n} for n in range(20_000)]),
    ],
)
def test_a_check_that_would_not_end_is_given_up(schema: dict[str, Any], value: Any) -> None:
    with pytest.raises(Rejected, match=r"takes longer than") as refused:
        problems(value, schema)
    assert refused.value.code == "bad_schema"
    assert problems("b", {"pattern": "^(a+)+$"}) == ["$: must match ^(a+)+$"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "$ref", "anyOf", "not", "properties", "items", "#", "$defs"]), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(VALUES, VALUES)
def test_any_schema_and_value_end_in_words_or_a_refusal(value: Any, schema: Any) -> None:
    try:
        check_schema(schema)
    except Rejected:
        return
    assert all(isinstance(line, str) for line in problems(value, schema))
