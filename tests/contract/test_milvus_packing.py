"""Rows that are packed column by column make the request that pymilvus makes of them row by row."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.memory import Memory
from swarmd.ports import Row

pytest.importorskip("pymilvus", reason="needs pymilvus (pip install 'swarmd[memory]')")
from pymilvus import DataType
from pymilvus.client.prepare import Prepare

from swarmd.adapters.milvus_store import packing, schema

DIMENSION = 40
TYPES = {str: DataType.VARCHAR, int: DataType.INT64}


def rows_of(memories: list[Memory]) -> list[dict[str, object]]:
    vectors = [[(at * 7 + place) % 11 - 5.25 for place in range(DIMENSION)] for at in range(len(memories))]
    return [
        schema.row_of(Row(memory, vector), schema.key_of(memory.id))
        for memory, vector in zip(memories, vectors, strict=True)
    ]


def pymilvus_request(rows: list[dict[str, object]]) -> object:
    fields = [
        {
            "name": name,
            "type": TYPES.get(type(value), DataType.FLOAT_VECTOR),
            "params": {"dim": DIMENSION, "max_length": 65_535},
            "is_primary": name == "key",
        }
        for name, value in rows[0].items()
    ]
    return Prepare.row_insert_param("c", rows, "", fields_info=fields, enable_dynamic=False)


def assert_same(memories: list[Memory]) -> None:
    rows = rows_of(memories)
    ours, theirs = packing.request_of("c", rows), pymilvus_request(rows)
    assert (ours.collection_name, ours.num_rows) == (theirs.collection_name, theirs.num_rows)  # type: ignore[attr-defined]
    fields = {field.field_name: field for field in ours.fields_data}
    assert fields == {field.field_name: field for field in theirs.fields_data}  # type: ignore[attr-defined]


def test_many_rows_are_packed_as_pymilvus_does() -> None:
    assert_same(
        [
            Memory(id=f"m{at}", text=f"text {at} 日本語", labels={"topic": f"t{at % 3}"}, seq=at, since_ms=10**12 + at)
            for at in range(300)
        ]
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.integers(0, 2**63 - 1)), min_size=1, max_size=5))
def test_any_row_is_packed_as_pymilvus_does(said: list[tuple[str, int]]) -> None:
    assert_same([Memory(id=f"m{at}", text=text, labels={}, seq=seq) for at, (text, seq) in enumerate(said)])
