"""How a memory becomes a row of Milvus, and how rows are looked up.

Job: the definition of the collection, rows to and from memories, filters.
Invariants: no text of a user ever becomes part of a filter or a name: ids and labels are looked up by their digests.
Must not know: connections, requests, or when anything is written.
"""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from swarmd.core.memory import Memory
from swarmd.passages import FIELD_BYTES_MAX, LABELS_MAX, TEXT_BYTES_MAX
from swarmd.text import stems

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1
"""Of the rows; a collection of another format is refused, and rebuilt from the log."""
STEMS_BYTES_MAX = 65_535
TIMEOUT_S = 30.0
"""Of every request."""
MARK = "mark"
"""The key of the row that claims the applied sequence; keys of memories are 32 hex digits."""
PAYLOAD = ["id", "text", "source", "author", "task", "seq", "labels"]


def collection_for(memory: str) -> str:
    """A collection name for a memory of any name; different names never meet in one collection."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", memory)[:100]
    return f"memory_{plain}" if plain == memory else f"memory_{plain}_{digest_of(memory)[:12]}"


def create(client: Any, name: str, dimension: int) -> None:
    from pymilvus import DataType, Function, FunctionType, MilvusClient

    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=32)
    for field in ("id", "source", "author", "task"):
        schema.add_field(field, DataType.VARCHAR, max_length=FIELD_BYTES_MAX)
    schema.add_field("text", DataType.VARCHAR, max_length=TEXT_BYTES_MAX)
    schema.add_field("seq", DataType.INT64)
    schema.add_field("labels", DataType.JSON)
    # One text, not an array: Milvus Lite matches text column-wise, arrays row by row (2,000 rows: 17 ms against 300).
    schema.add_field("tags", DataType.VARCHAR, max_length=LABELS_MAX * 33)
    # The analyser does not stem, so what it is given is stemmed already; queries get the same treatment.
    schema.add_field(
        "stems",
        DataType.VARCHAR,
        max_length=STEMS_BYTES_MAX,
        enable_analyzer=True,
        analyzer_params={"tokenizer": "standard"},
    )
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=dimension)
    schema.add_field("lexical", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_function(
        Function(
            name="bm25", function_type=FunctionType.BM25, input_field_names=["stems"], output_field_names=["lexical"]
        )
    )
    client.create_collection(name, schema=schema, consistency_level="Strong", timeout=TIMEOUT_S)


def index_and_load(client: Any, name: str) -> None:
    """Also what a creation that was killed half-way has left undone; one that is complete is only loaded."""
    from pymilvus import MilvusClient

    indexed = client.list_indexes(name, timeout=TIMEOUT_S)
    missing = MilvusClient.prepare_index_params()
    # Exact: a graph index takes seconds to build at the first load and saves nothing below some 100,000 rows.
    if "dense" not in indexed:
        missing.add_index("dense", index_name="dense", index_type="FLAT", metric_type="COSINE")
    if "lexical" not in indexed:
        missing.add_index("lexical", index_name="lexical", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
    if len(missing):
        # Not waiting: pymilvus would poll every half second, and loading waits for the indexes anyway.
        client.create_index(name, missing, timeout=TIMEOUT_S, sync=False)
    client.load_collection(name, timeout=TIMEOUT_S)


def row_of(key: str, memory: Memory, vector: list[float], analysed: str) -> dict[str, Any]:
    return {
        "key": key,
        "id": memory.id,
        "text": memory.text,
        "source": memory.source,
        "author": memory.author,
        "task": memory.task,
        "seq": memory.seq,
        "labels": dict(memory.labels),
        "tags": " ".join(_tags(memory.labels)),
        "stems": analysed,
        "dense": vector,
    }


def memory_of(entity: Mapping[str, Any]) -> Memory:
    return Memory(
        id=entity["id"],
        text=entity["text"],
        source=entity["source"],
        labels=json_of(entity["labels"]),
        author=entity["author"],
        task=entity["task"],
        seq=int(entity["seq"]),
    )


def analysed(text: str) -> str:
    """Stems for the lexical index. Their number is cut at the index's limit; only compatibility ligatures get there."""
    joined = " ".join(stems(text))
    encoded = joined.encode()
    return joined if len(encoded) <= STEMS_BYTES_MAX else encoded[:STEMS_BYTES_MAX].decode(errors="ignore")


def filter_of(labels: Mapping[str, str]) -> str:
    """A filter for rows with all these labels: hex digits alone, whatever the labels are; "" without labels."""
    return " and ".join(f'tags like "%{tag}%"' for tag in _tags(labels))


def _tags(labels: Mapping[str, str]) -> list[str]:
    return sorted(digest_of(name, value) for name, value in labels.items())


def digest_of(*parts: str) -> str:
    """32 hex digits; the lengths are hashed too, so that ("a", "bc") and ("ab", "c") differ."""
    digest = blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def json_of(value: Any) -> dict[str, Any]:
    """A JSON field as pymilvus hands it back: decoded by some calls, text or bytes by others."""
    return dict(json.loads(value)) if isinstance(value, str | bytes) else dict(value)
