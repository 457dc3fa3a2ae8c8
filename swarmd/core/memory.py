"""The memory log's facts, and what travels on a memory's subjects.

The memory is a projection of its own log: whatever the vector store holds can be dropped and folded anew.
"""

from __future__ import annotations

from typing import Final

from msgspec import UNSET, Struct, UnsetType, field

from swarmd.core.events import Fact, Failure

TEXT_BYTES_MAX: Final = 32 * 1024
RECALL_MAX: Final = 100


class Remembered(Fact):
    """A passage was remembered; the event's subject is the memory's id, `step` the place it came from."""

    text: str
    source: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    author: str = ""
    task: str = ""


class Forgotten(Fact):
    """The owner dropped a memory."""

    reason: str = ""


class Revoked(Fact):
    """An operator withdrew a memory as faulty."""

    reason: str = ""


MEMORY_FACTS: Final[dict[str, type[Fact]]] = {
    "swarmd.memory.remembered.v1": Remembered,
    "swarmd.memory.forgotten.v1": Forgotten,
    "swarmd.memory.revoked.v1": Revoked,
}
MEMORY_TYPES: Final[dict[type[Fact], str]] = {fact: name for name, fact in MEMORY_FACTS.items()}


class RememberRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What to remember. The same `id` with the same text again is answered like the first time."""

    text: str
    id: str = ""
    source: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    author: str = ""
    task: str = ""


class RecallRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What to recall; `at_least_seq` waits until the store is as new as that (read your own writes)."""

    text: str
    k: int = 5
    labels: dict[str, str] = field(default_factory=dict)
    at_least_seq: int = 0


class ForgetRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    id: str
    reason: str = ""


class RememberReply(Struct, omit_defaults=True):
    """`id` and log sequence of a remembered passage, or `error`."""

    id: str = ""
    seq: int = 0
    error: Failure | UnsetType = UNSET


class RecalledPassage(Struct, omit_defaults=True):
    """One recalled passage; `score` orders, it does not measure."""

    id: str
    text: str
    score: float
    source: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    author: str = ""
    task: str = ""
    seq: int = 0


class RecallReply(Struct, omit_defaults=True):
    """Passages, best first, and the sequence up to which the store had been folded."""

    passages: list[RecalledPassage] = field(default_factory=list)
    seq: int = 0
    error: Failure | UnsetType = UNSET


class MemoryStats(Struct, omit_defaults=True):
    """A memory at log sequence `seq`, its store at `applied`; `trouble` says why there is no store to ask."""

    memory: str
    seq: int
    applied: int
    memories: int
    dropped: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    garbage: int = 0
    trouble: str = ""
