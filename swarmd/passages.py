"""What every memory store agrees on: the limits of a memory and of a recall, and how rankings are fused.

Job: one place to check a memory at the door, before it is logged, so that no store meets one that it cannot hold.
Must not know: any store, the bus or the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmd.core.memory import Memory
    from swarmd.ports import RecallQuery

TEXT_BYTES_MAX = 32_768
"""Largest text of one memory in UTF-8. A vector store holds 65,535 bytes; longer texts recall badly as one passage."""
FIELD_BYTES_MAX = 1_024
"""Largest id, source, author, task, label name or label value in UTF-8."""
LABELS_MAX = 64
K_MAX = 100
"""Most passages that one recall may ask for."""

_RANK_OFFSET = 60  # the constant of the paper: how little the very first ranks stand out
_CANDIDATES_MIN = 20


def check_memory(memory: Memory) -> None:
    """Raise `Rejected` with the limit in its message unless every store can hold this memory whole."""
    _check_text("memory text", memory.text)
    if not memory.id:
        raise Rejected("memory_id_missing", "a memory needs an id that is not empty")
    for name in ("id", "source", "author", "task"):
        _check_size(name, getattr(memory, name), FIELD_BYTES_MAX)
    if memory.seq < 0:
        raise Rejected("bad_sequence", f"sequence {memory.seq} is negative")
    _check_labels(memory.labels)


def check_query(query: RecallQuery) -> None:
    """Raise `Rejected` with the limit in its message unless every store can answer this recall."""
    _check_text("query text", query.text)
    if not 1 <= query.k <= K_MAX:
        raise Rejected("bad_k", f"k is {query.k}; ask for 1 to {K_MAX} passages")
    _check_labels(query.labels)


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
