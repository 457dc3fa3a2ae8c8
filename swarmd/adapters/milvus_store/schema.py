"""How a memory becomes a row of Milvus, and how rows are looked up.

Job: the definition of a collection, rows to and from memories, filters as expressions of Milvus.
Invariants: no text of a user ever becomes part of an expression or a name: ids, fields and labels are looked up by
digests, which are hex digits or integers. Digests of 63 bits may meet by chance: whoever reads rows asks `matches`
once more. Columns that are filtered by are numbers and short texts: JSON and arrays are scanned row by row (Milvus
Lite, 100,000 rows: 4 s against 70 ms).
Must not know: connections, requests, or when anything is written.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import msgspec

from swarmd.core.memory import Memory
from swarmd.core.memory_filter import And, Filter, Has, Not, NumberIs, Or
from swarmd.passages import LABELS_MAX, REST_BYTES_MAX, check_vector, digest_of_parts, rest_of
from swarmd.ports import HeldRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from swarmd.ports import Row

FORMAT: Final = 2
"""Of the rows; a collection of another format is refused, and rebuilt from the log."""
TEXT_BYTES_MAX: Final = 65_535
MARK: Final = "mark"
"""The key of the row that claims the applied sequence; keys of memories are 32 hex digits."""
TEXTS: Final = ("source", "author", "task", "swarm", "space", "step")
NUMBERS: Final = {"seq": "seq", "since": "since_ms", "expires": "expires_at_ms"}
WORDS: Final = ["text", "rest"]
_TAG_DIGITS: Final = 16
_INT64_MAX: Final = 2**63 - 1


class Claim(msgspec.Struct):
    """What the mark row says: how far the log is applied, and what the rows were made by.

    `expiring` is the first time at which a row of this collection may have expired, 0 for never.
    """

    seq: int
    embedder: str
    dimension: int
    format: int = FORMAT
    expiring: int = 0


def create(client: Any, name: str, dimension: int, *, words: bool, timeout: float) -> None:
    """Define the collection; with `words`, Milvus indexes the stems for BM25."""
    from pymilvus import DataType, Function, FunctionType, MilvusClient

    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=32)
    schema.add_field("text", DataType.VARCHAR, max_length=TEXT_BYTES_MAX)
    schema.add_field("rest", DataType.VARCHAR, max_length=REST_BYTES_MAX)
    for field in (*TEXTS, *NUMBERS):
        schema.add_field(field, DataType.INT64)
    schema.add_field("tags", DataType.VARCHAR, max_length=2 * LABELS_MAX * (_TAG_DIGITS + 1))
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=dimension)
    if words:
        # The analyser does not stem, so what it is given is stemmed already; queries get the same treatment.
        schema.add_field(
            "stems",
            DataType.VARCHAR,
            max_length=TEXT_BYTES_MAX,
            enable_analyzer=True,
            analyzer_params={"tokenizer": "standard"},
        )
        schema.add_field("lexical", DataType.SPARSE_FLOAT_VECTOR)
        schema.add_function(
            Function(
                name="bm25",
                function_type=FunctionType.BM25,
                input_field_names=["stems"],
                output_field_names=["lexical"],
            )
        )
    client.create_collection(name, schema=schema, consistency_level="Strong", timeout=timeout)


def index_and_load(client: Any, name: str, *, words: bool, timeout: float) -> None:
    """Also what a creation that was killed half-way has left undone; one that is complete is only loaded."""
    from pymilvus import MilvusClient

    indexed = client.list_indexes(name, timeout=timeout)
    missing = MilvusClient.prepare_index_params()
    # Exact: a graph over 100,000 rows takes over a minute to build in Milvus Lite, and finds less.
    if "dense" not in indexed:
        missing.add_index("dense", index_name="dense", index_type="FLAT", metric_type="COSINE")
    if words and "lexical" not in indexed:
        missing.add_index("lexical", index_name="lexical", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
    if len(missing):
        # Not waiting: pymilvus would poll every half second, and loading waits for the indexes anyway.
        client.create_index(name, missing, timeout=timeout, sync=False)
    client.load_collection(name, timeout=timeout)


def key_of(memory_id: str) -> str:
    return digest("id", memory_id)


def row_of(row: Row, key: str) -> dict[str, Any]:
    """A memory and its vector as columns; `stems` are added where Milvus indexes words."""
    memory = row.memory
    columns: dict[str, Any] = {
        "key": key,
        "text": memory.text,
        "rest": rest_of(memory).decode(),
        "tags": " ".join(tags_of(memory.labels)),
        "dense": _packed(row.vector),
    }
    for field in TEXTS:
        columns[field] = number_of(field, getattr(memory, field))
    for field, attribute in NUMBERS.items():
        columns[field] = getattr(memory, attribute)
    return columns


def check_vectors(rows: Sequence[Row], dimension: int) -> None:
    """`check_vector` for each, all at once. Raises `Rejected("wrong_dimension" | "bad_vector")`."""
    import numpy

    if rows and all(len(row.vector) == dimension for row in rows):
        lengths = numpy.linalg.norm(numpy.stack([_packed(row.vector) for row in rows]), axis=1)
        if numpy.isfinite(lengths).all() and lengths.all():
            return
    for row in rows:
        check_vector(row.vector, dimension)


def mark_row(claim: Claim, *, words: bool) -> dict[str, Any]:
    """The claim, in a row that no memory can have."""
    columns: dict[str, Any] = dict.fromkeys((*TEXTS, *NUMBERS), 0)
    columns |= {"key": MARK, "text": "", "rest": msgspec.json.encode(claim).decode(), "tags": "", "seq": claim.seq}
    columns["dense"] = [1.0] + [0.0] * (claim.dimension - 1)
    return columns | ({"stems": ""} if words else {})


def memory_of(entity: Mapping[str, Any]) -> Memory:
    memory = msgspec.json.decode(entity["rest"], type=Memory)
    memory.text = entity["text"]
    return memory


def held_of(entity: Mapping[str, Any]) -> HeldRow:
    rest = str(entity["rest"]).encode()
    memory = msgspec.json.decode(rest, type=Memory)
    return HeldRow(memory.id, memory.seq, digest_of_parts(entity["text"], rest))


def claim_of(entity: Mapping[str, Any]) -> Claim:
    return msgspec.json.decode(entity["rest"], type=Claim)


def expression_of(where: Filter | None) -> str:
    """A filter as an expression of Milvus; "" lets everything through."""
    if where is None:
        return ""
    if isinstance(where, And | Or):
        if not where.parts:
            return 'key != ""' if isinstance(where, And) else 'key == ""'
        return (" and " if isinstance(where, And) else " or ").join(f"({expression_of(part)})" for part in where.parts)
    if isinstance(where, Not):
        return f"not ({expression_of(where.part)})"
    if isinstance(where, Has):
        return _tagged(name_tag(where.label))
    if isinstance(where, NumberIs):
        comparison = "==" if where.comparison == "=" else where.comparison
        return f"{where.field} {comparison} {max(-_INT64_MAX, min(_INT64_MAX, where.value))}"
    if not where.values:
        return 'key == ""'
    if where.field == "label":
        return " or ".join(_tagged(pair_tag(where.label, value)) for value in where.values)
    if where.field == "id":
        return "key in [" + ", ".join(f'"{key_of(value)}"' for value in where.values) + "]"
    return f"{where.field} in [" + ", ".join(str(number_of(where.field, value)) for value in where.values) + "]"


def alive(now_ms: int) -> str:
    return f"expires == 0 or expires > {now_ms}"


def all_of(expressions: Iterable[str]) -> str:
    given = [expression for expression in expressions if expression]
    return given[0] if len(given) == 1 else " and ".join(f"({expression})" for expression in given)


def tags_of(labels: Mapping[str, str]) -> list[str]:
    """Two tags for each label: one of its name, one of its name and value."""
    return sorted({tag for name, value in labels.items() for tag in (name_tag(name), pair_tag(name, value))})


def name_tag(name: str) -> str:
    return digest("has", name)[:_TAG_DIGITS]


def pair_tag(name: str, value: str) -> str:
    return digest("label", name, value)[:_TAG_DIGITS]


def number_of(field: str, value: str) -> int:
    """63 bits for a text of a field; 0 for the empty one."""
    return int(digest(field, value)[:16], 16) >> 1 if value else 0


def _tagged(tag: str) -> str:
    return f'tags like "%{tag}%"'


def digest(*parts: str) -> str:
    """32 hex digits; the lengths are hashed too, so that ("a", "bc") and ("ab", "c") differ."""
    hashed = blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        hashed.update(len(encoded).to_bytes(8, "little") + encoded)
    return hashed.hexdigest()


def _packed(vector: Sequence[float]) -> Any:
    """As an array of numpy, which pymilvus packs faster than a list."""
    import numpy

    return numpy.asarray(vector, "float32")
