"""The schema of a tool comes from its type hints, agrees with what the tool takes, and what cannot be is told."""

from __future__ import annotations

import dataclasses
import enum
from typing import Annotated, Any, Literal, Optional

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from swarmd.core.errors import Rejected
from swarmd.sdk_tools import tool, tool_of
from swarmd.tool_schema import Parameters, documented

jsonschema = pytest.importorskip("jsonschema")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(msgspec.Struct):
    x: float
    title: str = ""


@dataclasses.dataclass
class Order:
    item: str
    count: int = 1
    at: list[Point] = dataclasses.field(default_factory=list)


class Arguments(msgspec.Struct):
    """Called as the struct is that is made of a signature."""

    a: int


class Tree(msgspec.Struct):
    value: int
    children: list[Tree] = []


async def search(
    text: str,
    k: Annotated[int, Meta(ge=1, le=20)] = 5,
    kind: Literal["any", "all"] = "any",
    since: Optional[float] = None,  # noqa: UP045 - the old spelling is supported too
    labels: dict[str, str] | None = None,
    idempotency_key: str = "",
) -> list[str]:
    """Search the notes.

    It finds words, not meanings.

    Args:
        text: what to look for,
            in any language
        k (int): how many
        labels: only notes with these

    Returns:
        The best first.
    """
    return [text]


def test_a_signature_becomes_a_schema() -> None:
    assert Parameters(search).schema == {  # type: ignore[arg-type]
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "what to look for, in any language"},
            "k": {"type": "integer", "minimum": 1, "maximum": 20, "default": 5, "description": "how many"},
            "kind": {"enum": ["all", "any"], "default": "any"},
            "since": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "labels": {
                "anyOf": [{"type": "object", "additionalProperties": {"type": "string"}}, {"type": "null"}],
                "description": "only notes with these",
            },
        },
        "required": ["text"],
        "additionalProperties": False,
    }


def test_the_docstring_without_its_arguments_is_the_description() -> None:
    assert documented(search)[0] == (
        "Search the notes.\n\nIt finds words, not meanings.\n\nReturns:\n    The best first."
    )


def test_sphinx_fields_describe_too() -> None:
    def add(a: int, b: int) -> int:
        """Add.

        :param a: the first
        :param int b: the second
        """
        return a + b

    assert documented(add) == ("Add.", {"a": "the first", "b": "the second"})


def test_nested_types_are_inlined_and_rings_are_kept() -> None:
    def buy(order: Order, colour: Colour, tree: Tree, arguments: Arguments) -> None:
        """Buy."""

    schema = Parameters(buy).schema  # type: ignore[arg-type]
    order = schema["properties"]["order"]
    assert order["properties"]["at"]["items"]["properties"] == {
        "x": {"type": "number"},
        "title": {"type": "string", "default": ""},
    }
    assert schema["properties"]["colour"] == {"enum": ["blue", "red"]}
    assert schema["properties"]["arguments"]["properties"] == {"a": {"type": "integer"}}
    assert list(schema["$defs"]) == ["Tree"]
    jsonschema.Draft202012Validator.check_schema(schema)
    taken = Parameters(buy).convert(  # type: ignore[arg-type]
        {
            "order": {"item": "a"},
            "colour": "red",
            "tree": {"value": 1, "children": [{"value": 2}]},
            "arguments": {"a": 1},
        }
    )
    assert taken == {
        "order": Order("a"),
        "colour": Colour.RED,
        "tree": Tree(1, [Tree(2)]),
        "arguments": Arguments(1),
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": 3}, "text: Expected str, got int"),
        ({"text": "a", "k": 0}, "k: Expected int >= 1"),
        ({"text": "a", "k": 2.5}, "k: Expected int"),
        ({"text": "a", "kind": "some"}, "kind: Invalid enum value 'some'"),
        ({"text": "a", "labels": {"x": 1}}, r"labels\[...\]: Expected str, got int"),
        ({}, "missing required field text"),
        ({"text": "a", "idempotency_key": "mine"}, "unknown field idempotency_key"),
        ({"text": float("nan"), "k": object()}, "no JSON"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(Rejected, match=words) as caught:
        Parameters(search).convert(arguments)  # type: ignore[arg-type]
    assert caught.value.code == "bad_arguments"


def test_what_is_left_out_is_left_to_the_function() -> None:
    assert Parameters(search).convert({"text": "a", "k": 2.0}) == {"text": "a", "k": 2}  # type: ignore[arg-type]


def _bad(name: str) -> Any:
    def unhinted(text, k: int = 1) -> None:  # type: ignore[no-untyped-def]
        """Doc."""

    def unknown(text: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Doc."""

    def custom(text: str, where: object) -> None:
        """Doc."""

    def number(z: complex) -> None:
        """Doc."""

    def two_lists(items: list[int] | set[int]) -> None:
        """Doc."""

    def several(*items: int) -> None:
        """Doc."""

    def named(**items: int) -> None:
        """Doc."""

    def positional(item: int, /) -> None:
        """Doc."""

    def hidden(_item: int) -> None:
        """Doc."""

    def no_type(item: 3) -> None:  # type: ignore[valid-type]
        """Doc."""

    return locals()[name]


@pytest.mark.parametrize(
    ("name", "parameter", "words"),
    [
        ("unhinted", "text", "has no type hint"),
        ("unknown", "text", "cannot be looked up"),
        ("custom", "where", "cannot be of type object"),
        ("number", "z", "cannot be of type complex"),
        ("two_lists", "items", "cannot be of type"),
        ("several", "items", "any number of values"),
        ("named", "items", "any number of values"),
        ("positional", "item", "positional only"),
        ("hidden", "_item", "begins with '_'"),
        ("no_type", "item", "3"),
    ],
)
def test_what_a_model_cannot_fill_in_is_refused_at_once(name: str, parameter: str, words: str) -> None:
    with pytest.raises(Rejected) as caught:
        tool(_bad(name))
    assert caught.value.code == "bad_tool"
    assert f"tool {name!r}: parameter {parameter!r}" in caught.value.message
    assert words in caught.value.message


LEAVES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, st.text(max_size=5)),
    (int, st.integers(-(2**53), 2**53)),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (bool, st.booleans()),
    (Literal["a", "b"], st.sampled_from(["a", "b"])),
    (Annotated[int, Meta(ge=0, le=9)], st.integers(0, 9)),
    (Point, st.fixed_dictionaries({"x": st.integers(0, 5)}, optional={"title": st.text(max_size=3)})),
    (Tree, st.fixed_dictionaries({"value": st.integers(0, 5)})),
]


@st.composite
def hinted(draw: st.DrawFn) -> tuple[Any, st.SearchStrategy[Any]]:
    """A type that a tool may take, and values of it as a model would send them."""
    hint, values = draw(st.sampled_from(LEAVES))
    for wrap in draw(st.lists(st.sampled_from(["list", "dict", "optional"]), max_size=2)):
        if wrap == "list":
            hint, values = list.__class_getitem__(hint), st.lists(values, max_size=3)
        elif wrap == "dict":
            hint, values = dict.__class_getitem__((str, hint)), st.dictionaries(st.text(max_size=3), values, max_size=3)
        else:
            hint, values = hint | None, st.none() | values
    return hint, values


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["x", "value", "a"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=80)
@given(st.data(), hinted())
def test_schema_and_conversion_agree(data: st.DataObject, typed: tuple[Any, st.SearchStrategy[Any]]) -> None:
    """A value of the type is taken by both; any other value is taken by both or by none."""
    hint, values = typed

    def take(value: Any) -> None:
        """Doc."""

    take.__annotations__ = {"value": hint, "return": None}
    parameters = Parameters(take)  # type: ignore[arg-type]
    jsonschema.Draft202012Validator.check_schema(parameters.schema)
    validator = jsonschema.Draft202012Validator(parameters.schema)
    good = {"value": data.draw(values)}
    assert validator.is_valid(good)
    parameters.convert(good)
    other = {"value": data.draw(ANYTHING)}
    try:
        parameters.convert(other)
    except Rejected:
        taken = False
    else:
        taken = True
    assert taken == validator.is_valid(other)


def test_an_ordinary_function_stays_one() -> None:
    @tool(name="adds", side_effects="none")
    def add(a: int, b: int = 2) -> int:
        """Add two numbers."""
        return a + b

    assert add(1) == 3
    assert tool_of(add).spec.name == "adds"
    assert tool_of(add).side_effects == "none"
    with pytest.raises(Rejected, match="not marked with @tool"):
        tool_of(len)
