"""What every memory store agrees on: the limits of a memory and of a recall, and how rankings are fused.

Job: one place to check a memory at the door, before it is logged, so that no store meets one that it cannot hold.
Must not know: any store, the bus or the log.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from swarmd.core.memory import Memory
    from swarmd.ports import Pin, VectorQuery

TEXT_BYTES_MAX = 32_768
"""Largest text of one memory in UTF-8. A vector store holds 65,535 bytes; longer texts recall badly as one passage."""
FIELD_BYTES_MAX = 1_024
"""Largest id, source, author, task, label name or label value in UTF-8."""
LABELS_MAX = 64
REST_BYTES_MAX = 65_535
"""Largest rest of a memory, all but its text as JSON: labels, payload and where it comes from."""
K_MAX = 100
"""Most passages that one recall may ask for."""

_RANK_OFFSET = 60  # the constant of the paper: how little the very first ranks stand out
_CANDIDATES_MIN = 20
_ENCODER = msgspec.json.Encoder(order="deterministic")


def check_memory(memory: Memory) -> None:
    """Raise `Rejected` with the limit in its message unless every store can hold this memory whole."""
    _check_text("memory text", memory.text)
    if not memory.id:
        raise Rejected("memory_id_missing", "a memory needs an id that is not empty")
    for name in ("id", "source", "author", "task", "space", "swarm", "step"):
        _check_size(name, getattr(memory, name), FIELD_BYTES_MAX)
    if memory.seq < 0:
        raise Rejected("bad_sequence", f"sequence {memory.seq} is negative")
    if not 0 <= memory.expires_at_ms < 2**63:
        raise Rejected(
            "bad_expiry", f"expires_at_ms is {memory.expires_at_ms}: milliseconds since 1970, or 0 for never"
        )
    _check_labels(memory.labels)
    rest = rest_of(memory)
    try:
        rest.decode()
    except UnicodeDecodeError as error:  # it is what came between two commas
        raise Rejected("not_unicode", f"the payload is not UTF-8: {error}") from None
    size = len(rest)
    if size > REST_BYTES_MAX:
        raise Rejected(
            "too_large", f"labels, payload and the like have {size} bytes as JSON; at most {REST_BYTES_MAX} are kept"
        )


def rest_of(memory: Memory) -> bytes:
    """All of a memory but its text, as JSON; always the same for equal memories."""
    return _ENCODER.encode(msgspec.structs.replace(memory, text=""))


def digest_of(memory: Memory) -> bytes:
    """16 bytes that tell a memory from any that says something else, in whatever field."""
    return digest_of_parts(memory.text, rest_of(memory))


def digest_of_parts(text: str, rest: bytes) -> bytes:
    """The digest of a memory that is held as its text and the rest of it."""
    digest = blake2b(rest, digest_size=16)
    digest.update(b"\0")  # never in JSON
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.digest()


def check_vector(vector: Sequence[float], dimension: int) -> None:
    """Raises `Rejected("wrong_dimension" | "bad_vector")` unless a cosine can be taken of it."""
    if len(vector) != dimension:
        raise Rejected("wrong_dimension", f"a vector of {len(vector)} dimensions; this memory has {dimension}")
    length = math.hypot(*vector)
    if not math.isfinite(length) or not length:
        raise Rejected("bad_vector", f"a vector of length {length}: every number must be finite, and not all 0")


def check_vector_query(query: VectorQuery, pin: Pin) -> None:
    """Raise `Rejected`, saying what to send instead, unless every store of this pin can answer."""
    if not query.text and query.vector is None:
        raise Rejected("text_empty", "the query has neither a text nor a vector")
    if query.text or query.vector is None:
        _check_text("query text", query.text)
    if query.vector is not None:
        check_vector(query.vector, pin.dimension)
    if not 1 <= query.k <= K_MAX:
        raise Rejected("bad_k", f"k is {query.k}; ask for 1 to {K_MAX} passages")
    if not -1 <= query.min_similarity <= 1:  # NaN, too
        raise Rejected("bad_min_similarity", f"min_similarity is {query.min_similarity}: a cosine is from -1 to 1")
    if query.min_similarity > -1 and query.vector is None:
        raise Rejected("bad_min_similarity", "min_similarity needs a vector: recall by meaning, not by words alone")
    if not 0 <= query.diversity <= 1:
        raise Rejected("bad_diversity", f"diversity is {query.diversity}: from 0 (the best) to 1 (what differs most)")


def mismatch(name: str, held: Pin, wanted: Pin) -> Rejected:
    """What a store says that holds vectors of another embedder."""
    return Rejected(
        "embedder_mismatch",
        f"the rows of {name} were embedded by {held.embedder} ({held.dimension} dimensions), not by {wanted.embedder} "
        f"({wanted.dimension}): configure the first again, or rebuild the memory from its log",
    )


def is_live(memory: Memory, now_ms: int) -> bool:
    """Whether it has not expired by then."""
    return not memory.expires_at_ms or memory.expires_at_ms > now_ms


def candidates(k: int) -> int:
    """How many of each ranking to fuse for the best `k`: deep enough that one ranking may correct the other."""
    return max(_CANDIDATES_MIN, 2 * k)


def fuse(rankings: Sequence[Sequence[str]], k: int) -> list[tuple[str, float]]:
    """The best `k` of several rankings by reciprocal rank fusion, with their fused scores, best first.

    Only ranks count, never the scores of a ranking: those of BM25 and of cosines have no common unit, and stores
    do not even agree on their sign. Ties go to the smaller key, so equal input gives equal output.
    Source: Cormack, Clarke, Büttcher, "Reciprocal Rank Fusion outperforms Condorcet" (SIGIR 2009).
    """
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, start=1):
            scores[key] = scores.get(key, 0.0) + 1.0 / (_RANK_OFFSET + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]


def diverse(
    scores: Sequence[float], likeness: Callable[[int], Sequence[float]], count: int, diversity: float
) -> list[int]:
    """The first `count` of some candidates by maximal marginal relevance, as indexes, in the order to show them.

    Each next one has the highest (1 - `diversity`) * relevance - `diversity` * likeness to the nearest of those taken.
    Relevance is the score, spread over 0 to 1; `likeness(i)` are the cosines of candidate i and each one. Ties go to
    the candidate that came first. Source: Carbonell & Goldstein, "The Use of MMR, Diversity-Based Reranking for
    Reordering Documents and Producing Summaries" (SIGIR 1998).
    """
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    relevance = [(score - low) / (high - low) if high > low else 1.0 for score in scores]
    nearest = [-1.0] * len(scores)
    left = list(range(len(scores)))
    taken: list[int] = []
    while left and len(taken) < count:
        best = max(left, key=lambda index: (1 - diversity) * relevance[index] - diversity * nearest[index])
        left.remove(best)
        taken.append(best)
        if diversity and len(taken) < count:
            nearest = list(map(max, nearest, likeness(best)))
    return taken


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        raise Rejected("text_empty", f"the {name} is empty")
    _check_size(name, text, TEXT_BYTES_MAX)


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > LABELS_MAX:
        raise Rejected("too_many_labels", f"{len(labels)} labels; at most {LABELS_MAX} are kept")
    for key, value in labels.items():
        _check_size("label name", key, FIELD_BYTES_MAX)
        _check_size("label value", value, FIELD_BYTES_MAX)


def _check_size(name: str, value: str, bytes_max: int) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise Rejected(
            "not_unicode", f"the {name} holds a lone surrogate at {error.start}; send valid UTF-8"
        ) from error
    if size > bytes_max:
        raise Rejected(
            "too_large", f"the {name} has {size} bytes; at most {bytes_max} are kept: split it into passages"
        )
