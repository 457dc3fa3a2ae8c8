"""pymilvus by itself: what a memory node's store is compared with, on the same rows.

Job: a plain collection, as a user of pymilvus would define it, filled and searched by its blocking client, one call at
a time. Invariants: nothing of swarmd's own stores is used, so that their faults are not in the yardstick too; rows are
built before they are timed. Must not know who measures what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmd.core.memory_wire import RememberRequest

#: Rows in an insert: larger ones and smaller ones are slower in Milvus Lite.
BATCH_ROWS: Final = 2_000
TIMEOUT_S: Final = 120.0
TEXT_BYTES_MAX: Final = 65_535
#: As much as a recalled memory says.
OUTPUT: Final = ("id", "text", "source", "author", "task", "space", "labels", "seq")
#: An idle connection is pinged each 10 s otherwise, which servers of grpc call too much: they hang up.
_QUIET: Final = {"grpc.keepalive_time_ms": 300_000}
_TEXTS: Final = ("source", "author", "task", "space")


class RawMilvus:
    """One client. All methods block. `words` collections have a BM25 field, which hybrid search needs."""

    def __init__(self, uri: str) -> None:
        from pymilvus import MilvusClient

        self._client: Any = MilvusClient(uri=uri, timeout=TIMEOUT_S, grpc_options=_QUIET)

    def create(self, name: str, dimension: int, *, words: bool) -> None:
        """A new, loaded collection; one of that name is dropped."""
        from pymilvus import DataType, Function, FunctionType, MilvusClient

        if self._client.has_collection(name):
            self._client.drop_collection(name)
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=256)
        analysed = {"enable_analyzer": True, "analyzer_params": {"tokenizer": "standard"}} if words else {}
        schema.add_field("text", DataType.VARCHAR, max_length=TEXT_BYTES_MAX, **analysed)
        for field in _TEXTS:
            schema.add_field(field, DataType.VARCHAR, max_length=256)
        schema.add_field("labels", DataType.VARCHAR, max_length=2_000)
        schema.add_field("seq", DataType.INT64)
        schema.add_field("dense", DataType.FLOAT_VECTOR, dim=dimension)
        indexes = MilvusClient.prepare_index_params()
        indexes.add_index("dense", index_name="dense", index_type="FLAT", metric_type="COSINE")
        if words:
            schema.add_field("lexical", DataType.SPARSE_FLOAT_VECTOR)
            bm25 = Function(
                name="bm25", function_type=FunctionType.BM25, input_field_names=["text"], output_field_names=["lexical"]
            )
            schema.add_function(bm25)
            indexes.add_index("lexical", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
        self._client.create_collection(name, schema=schema, consistency_level="Strong")
        self._client.create_index(name, indexes, sync=False)
        self._client.load_collection(name)

    def rows(self, memories: Sequence[RememberRequest], vectors: Sequence[Any], first: int) -> list[dict[str, Any]]:
        """What `insert` takes; `first` is the sequence of the first one. Vectors are arrays of floats."""
        import numpy

        return [
            {
                "id": memory.id,
                "text": memory.text,
                "source": memory.source,
                "author": memory.agent,
                "task": memory.task,
                "space": memory.space,
                "labels": label_text(memory.labels),
                "seq": seq,
                "dense": numpy.frombuffer(vector, "float32"),
            }
            for seq, (memory, vector) in enumerate(zip(memories, vectors, strict=True), first)
        ]

    def insert(self, name: str, rows: list[dict[str, Any]]) -> None:
        """In batches, one after the other."""
        for at in range(0, len(rows), BATCH_ROWS):
            self._client.insert(name, rows[at : at + BATCH_ROWS])

    def flush(self, name: str) -> None:
        self._client.flush(name)

    def drop(self, name: str) -> None:
        self._client.drop_collection(name)

    def dense(self, name: str, vector: Any, k: int, labels: dict[str, str] | None = None) -> list[str]:
        """The ids of the `k` nearest."""
        found = self._client.search(
            name, [vector], anns_field="dense", limit=k, filter=_expression(labels), output_fields=list(OUTPUT)
        )
        return _ids(found)

    def hybrid(self, name: str, vector: Any, text: str, k: int) -> list[str]:
        """The ids of the best by vector and by words, fused by Milvus."""
        from pymilvus import AnnSearchRequest, RRFRanker

        asked = [
            AnnSearchRequest([vector], "dense", {}, 4 * k),
            AnnSearchRequest([text], "lexical", {}, 4 * k),
        ]
        return _ids(self._client.hybrid_search(name, asked, RRFRanker(), limit=k, output_fields=list(OUTPUT)))

    def count(self, name: str) -> int:
        return int(self._client.query(name, output_fields=["count(*)"])[0]["count(*)"])

    def close(self) -> None:
        self._client.close()


def label_text(labels: dict[str, str]) -> str:
    """Labels in a column that can be searched by a pattern: JSON is scanned row by row, for seconds."""
    return "".join(f"|{name}={value}|" for name, value in sorted(labels.items()))


def _expression(labels: dict[str, str] | None) -> str:
    return f'labels like "%{label_text(labels)}%"' if labels else ""


def _ids(found: Any) -> list[str]:
    return [str(hit["id"]) for hit in found[0]]
