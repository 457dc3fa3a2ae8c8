"""From JSON Schemas to forms, and from what a person types to values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from swarmd.edges import forms
from swarmd.edges.cli.prompts import Prompts, as_text
from swarmd.edges.forms import Wrong, form_of, parse

ORDER: dict[str, Any] = {
    "type": "object",
    "title": "Order",
    "properties": {
        "name": {"type": "string", "minLength": 1, "description": "Who gets it?"},
        "count": {"type": "integer", "minimum": 1, "maximum": 9, "default": 2},
        "gift": {"type": "boolean"},
        "size": {"enum": ["small", "large", 7]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": ["string", "null"]}},
            "required": ["street"],
        },
    },
    "required": ["name", "count", "gift", "size"],
}


def kinds(form: forms.Field) -> dict[str, str]:
    return {field.path: field.kind for field in form.fields}


def test_each_kind_of_schema_has_its_field() -> None:
    form = form_of(ORDER)
    assert form.kind == "object"
    assert kinds(form) == {
        "$.name": "text",
        "$.count": "integer",
        "$.gift": "boolean",
        "$.size": "choice",
        "$.tags": "list",
        "$.address": "object",
    }
    name, count, *_, tags, address = form.fields
    assert (name.required, name.help, name.length_min) == (True, "Who gets it?", 1)
    assert (count.default, count.minimum, count.maximum) == (2, 1, 9)
    assert (tags.required, tags.length_max) == (False, 3)
    assert [(field.required, field.nullable) for field in address.fields] == [(True, False), (False, True)]


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({}, "json"),
        (True, "json"),
        ({"type": "object"}, "json"),
        ({"type": ["string", "integer"]}, "json"),
        ({"anyOf": [{"type": "string"}, {"type": "object"}]}, "json"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text"),
        ({"oneOf": [{"const": 1}, {"const": 2}]}, "choice"),
        ({"const": "x"}, "const"),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "number"}}}, "number"),
        ({"$ref": "https://example.org/schema"}, "json"),
        ({"$ref": "#"}, "json"),
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "string"}}, "json"),
        ({"enum": list(range(1_000))}, "json"),
        ({"type": "string", "minLength": "many", "title": 3}, "text"),
    ],
)
def test_what_a_form_cannot_say_is_free_json(schema: Any, kind: str) -> None:
    assert form_of(schema).kind == kind


def test_a_schema_that_holds_itself_ends() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#/$defs/t"}, "right": {"$ref": "#/$defs/t"}}}
    form = form_of({"$ref": "#/$defs/t", "$defs": {"t": tree}})

    def count(field: forms.Field) -> int:
        return 1 + sum(map(count, field.fields))

    assert count(form) <= forms.FIELDS_MAX * 2
    wide = {"type": "object", "properties": {f"f{n}": tree for n in range(500)}}
    assert count(form_of(wide)) <= 2 + 500 * 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "properties", "items", "enum", "anyOf", "$ref", "required", "default", "x"]), inner
    ),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_no_schema_breaks_the_form(schema: Any) -> None:
    assert form_of(schema).path == "$"
    assert forms.arguments_form({"properties": {"arguments": schema}}, schema).path == "$"


@pytest.mark.parametrize(
    ("path", "typed", "value"),
    [
        ("$.name", "Ann", "Ann"),
        ("$.name", "12", "12"),
        ("$.count", "3", 3),
        ("$.gift", "yes", True),
        ("$.gift", "N", False),
        ("$.size", "large", "large"),
        ("$.size", "3", 7),
        ("$.size", "7", 7),
    ],
)
def test_what_is_typed_becomes_a_value(path: str, typed: str, value: Any) -> None:
    field = next(field for field in form_of(ORDER).fields if field.path == path)
    assert parse(field, typed) == value


@pytest.mark.parametrize(
    ("path", "typed", "message"),
    [
        ("$.name", "", "must have at least 1 characters"),
        ("$.count", "three", "must be a whole number"),
        ("$.count", "2.5", "must be a whole number"),
        ("$.count", "true", "must be a whole number"),
        ("$.count", "10", "must be at most 9"),
        ("$.gift", "perhaps", "say yes or no"),
        ("$.size", "9", "choose one of small, large, 7"),
    ],
)
def test_what_does_not_fit_is_named(path: str, typed: str, message: str) -> None:
    field = next(field for field in form_of(ORDER).fields if field.path == path)
    with pytest.raises(Wrong) as caught:
        parse(field, typed)
    assert (caught.value.path, caught.value.message) == (path, message)


def test_the_place_in_a_refusal_is_found() -> None:
    assert forms.place_of("$.age: must be an integer") == "$.age"
    assert forms.place_of("$: must be a text; $.b: is missing") == "$"
    assert forms.place_of("$5 is: too much") == ""
    assert forms.place_of("no place at all") == ""


# --- prompts ---------------------------------------------------------------------------------------


class Terminal:
    """Answers from a list; keeps what was said."""

    def __init__(self, *lines: str) -> None:
        self._lines = iter(lines)
        self.said: list[str] = []
        self.prompts = Prompts(lambda: next(self._lines), self.said.append)


def test_a_form_is_asked_field_by_field() -> None:
    terminal = Terminal("Ann", "", "yes", "large", "red", "blue", "", "yes", "Main St", "")
    value = terminal.prompts.ask(form_of(ORDER))
    assert value == {
        "name": "Ann",
        "count": 2,
        "gift": True,
        "size": "large",
        "tags": ["red", "blue"],
        "address": {"street": "Main St"},
    }
    assert any("[2]" in line for line in terminal.said)


def test_a_wrong_field_is_asked_again_at_once() -> None:
    terminal = Terminal("Ann", "99", "", "maybe", "no", "1", "", "no")
    assert terminal.prompts.ask(form_of(ORDER)) == {"name": "Ann", "count": 2, "gift": False, "size": "small"}
    assert "  must be at most 9" in terminal.said
    assert "  say yes or no" in terminal.said


def test_after_a_refusal_only_the_field_in_question_is_asked_again() -> None:
    value = {"name": "Ann", "count": 2, "gift": True, "size": 7, "address": {"street": "x"}}
    terminal = Terminal("High Street")
    again = terminal.prompts.correct(form_of(ORDER), value, "$.address.street", "$.address.street: must match ^[A-Z]")
    assert again == {**value, "address": {"street": "High Street"}}
    assert terminal.said[0] == "not taken: $.address.street: must match ^[A-Z]"


def test_a_refusal_of_the_whole_asks_for_all_with_the_values_as_defaults() -> None:
    value = {"name": "Ann", "count": 3, "gift": True, "size": "small", "tags": ["a"]}
    terminal = Terminal("", "", "", "", "", "no")
    assert terminal.prompts.correct(form_of(ORDER), value, "", "it does not add up") == value


def test_a_default_of_the_whole_is_the_default_of_its_fields() -> None:
    form = form_of(ORDER, {"name": "Zoe", "tags": ["x"]})
    assert [field.default for field in form.fields] == ["Zoe", 2, UNSET, UNSET, ["x"], UNSET]


def test_lists_of_objects_and_free_json() -> None:
    schema = {
        "type": "array",
        "items": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
        "minItems": 1,
    }
    assert Terminal("no", "yes", "4", "no").prompts.ask(form_of(schema)) == [{"n": 4}]
    assert Terminal("{broken", '{"a": [1]}').prompts.ask(form_of({})) == {"a": [1]}


def test_what_cannot_be_seen_is_written_out() -> None:
    hidden = "a\u202eb\u009b\x1b[31m\u200b"
    shown = as_text({"x": hidden})
    assert not set(shown) & set("\u202e\u009b\x1b\u200b")
    assert "\\u202e" in shown
    assert "\\u001b" in shown
