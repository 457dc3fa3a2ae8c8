"""What is checked at a memory's door, before anything is logged or looked for: refusals have a code and say what to do.

Pure. Must not know the log, the store, or who asks.
"""

from __future__ import annotations

import math
import re
import sys
from array import array
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET, Raw

from swarmd.core import memory_filter
from swarmd.core.errors import UNREADABLE, Rejected
from swarmd.core.memory import RECALL_MAX, TEXT_BYTES_MAX
from swarmd.core.memory_filter import Filter, TextIn, both
from swarmd.core.memory_wire import MANY_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from swarmd.core.memory_wire import RecallRequest

#: Id, source, author, task, step, each name and value of a label, reasons; in UTF-8.
FIELD_BYTES_MAX: Final = 1_024
LABELS_MAX: Final = 64
PAYLOAD_BYTES_MAX: Final = 32 * 1024
DIMENSION_MAX: Final = 32_768
#: The end of the year 9999.
EXPIRES_MS_MAX: Final = 253_402_300_799_999

# A text may have lines and tabs; names have no control character at all.
_NOT_TEXT: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_NOT_NAME: Final = re.compile("[\x00-\x1f\x7f-\x9f]")


def check_text(text: str, what: str = "memory text") -> None:
    """Raises `Rejected("text_empty" | "too_large" | "control_characters" | "not_unicode")`."""
    if not text or text.isspace():
        raise Rejected("text_empty", f"the {what} is empty")
    _check(text, what, TEXT_BYTES_MAX, _NOT_TEXT)


def check_field(text: str, what: str) -> None:
    """Raises `Rejected("too_large" | "control_characters" | "not_unicode")`."""
    _check(text, what, FIELD_BYTES_MAX, _NOT_NAME)


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises as `check_field` does, or `Rejected("too_many_labels" | "bad_label")`."""
    if len(labels) > LABELS_MAX:
        raise Rejected("too_many_labels", f"{len(labels)} labels; at most {LABELS_MAX} are kept")
    for name, value in labels.items():
        if not name:
            raise Rejected("bad_label", "a label has an empty name")
        check_field(name, "label name")
        check_field(value, "label value")


def check_expiry(expires_at_ms: int, now_ms: int) -> None:
    """Raises `Rejected("bad_expiry")` for what is no time, or past."""
    if expires_at_ms and not now_ms < expires_at_ms <= EXPIRES_MS_MAX:
        why = "is past" if 0 < expires_at_ms <= now_ms else "is no time"
        raise Rejected("bad_expiry", f"expires_at_ms {expires_at_ms} {why}: milliseconds since 1970, 0 for never")


def check_payload(payload: Raw) -> None:
    """Raises `Rejected("too_large" | "bad_payload")`: not all that is between two commas can be read back."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise Rejected("too_large", f"the payload has {len(payload)} bytes; at most {PAYLOAD_BYTES_MAX} are kept")
    try:
        msgspec.json.decode(payload)
    except UNREADABLE as error:
        raise Rejected("bad_payload", f"the payload is not JSON that can be read back: {error}") from None


def check_ids(ids: Sequence[str]) -> None:
    """Raises `Rejected("bad_ids")` unless there are 1 to `MANY_MAX`."""
    if not 1 <= len(ids) <= MANY_MAX:
        raise Rejected("bad_ids", f"{len(ids)} ids: ask for 1 to {MANY_MAX} at once")


def unit_vector(values: Sequence[float], dimension: int) -> array[float]:
    """The same direction with length 1, as float32. `dimension` 0: any.

    Raises `Rejected("wrong_dimension" | "bad_vector")`.
    """
    if dimension and len(values) != dimension:
        raise Rejected("wrong_dimension", f"a vector of {len(values)} dimensions; this memory has {dimension}")
    if not 1 <= len(values) <= DIMENSION_MAX:
        raise Rejected("wrong_dimension", f"a vector of {len(values)} dimensions: 1 to {DIMENSION_MAX} are possible")
    largest = max(map(abs, values))
    if not all(map(math.isfinite, values)):
        raise Rejected("bad_vector", "a vector holds NaN or an infinite number")
    if not largest:
        raise Rejected("bad_vector", "a vector of zeros has no direction")
    scaled = [value / largest for value in values]  # so that no square is too large or too small
    length = math.hypot(*scaled)
    return array("f", [value / length for value in scaled])


def vector_bytes(vector: array[float]) -> bytes:
    """float32, little endian, as events hold it."""
    if sys.byteorder == "big":
        vector = array("f", vector)
        vector.byteswap()
    return vector.tobytes()


def vector_of(stored: bytes) -> array[float]:
    """What `vector_bytes` made; empty where it cannot have made this."""
    vector = array("f", stored[: len(stored) // 4 * 4])
    if sys.byteorder == "big":
        vector.byteswap()
    return vector if len(stored) % 4 == 0 and math.isfinite(sum(vector)) else array("f")


def check_recall(wanted: RecallRequest) -> None:
    """Raises `Rejected`; the vector, the filter and the spaces are looked at by whoever reads them."""
    has_vector = wanted.vector is not UNSET
    if wanted.mode == "lexical" and has_vector:
        raise Rejected("bad_mode", "a recall by words takes no vector: leave it out, or say mode dense or hybrid")
    if wanted.text or not has_vector:
        check_text(wanted.text, "query text")
    if not 1 <= wanted.k <= RECALL_MAX:
        raise Rejected("bad_k", f"k is {wanted.k}; ask for 1 to {RECALL_MAX} passages")
    check_labels(wanted.labels)
    if not -1 <= wanted.min_similarity <= 1:  # NaN is not either
        raise Rejected("bad_min_similarity", f"min_similarity is {wanted.min_similarity}: a cosine is from -1 to 1")
    if wanted.mode == "lexical" and wanted.min_similarity > -1:
        raise Rejected("bad_min_similarity", "a recall by words knows no similarity: say mode dense or hybrid")
    if not 0 <= wanted.diversity <= 1:
        raise Rejected("bad_diversity", f"diversity is {wanted.diversity}: from 0 (the best) to 1 (what differs most)")
    for name in ("at_least_seq", "as_of"):
        if not 0 <= getattr(wanted, name) < 2**63:
            raise Rejected("bad_sequence", f"{name} is {getattr(wanted, name)}: a sequence of the log, or 0")
    check_field(wanted.embedder, "embedder")


def filter_of(text: str, labels: Mapping[str, str], spaces: Iterable[str]) -> Filter | None:
    """What a request lets through: its filter, its labels, and the spaces (none: all).

    Raises `Rejected("bad_filter")`.
    """
    parts: list[Filter | None] = [memory_filter.parse(text)] if text else []
    parts += [TextIn((value,), "label", name) for name, value in labels.items()]
    within = tuple(spaces)
    if within:
        parts.append(TextIn(within, "space"))
    return both(parts)


def _check(text: str, what: str, bytes_max: int, refused: re.Pattern[str]) -> None:
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise Rejected("not_unicode", f"the {what} holds a lone surrogate at {error.start}: send valid UTF-8") from None
    if size > bytes_max:
        hint = ": split it into passages" if bytes_max == TEXT_BYTES_MAX else ""
        raise Rejected("too_large", f"the {what} has {size} bytes; at most {bytes_max} are kept{hint}")
    if not text.isprintable() and (found := refused.search(text)):
        allowed = "no other than tab and line breaks" if refused is _NOT_TEXT else "none"
        raise Rejected(
            "control_characters",
            f"the {what} holds the control character U+{ord(found[0]):04X} at {found.start()}: {allowed} may be there",
        )
