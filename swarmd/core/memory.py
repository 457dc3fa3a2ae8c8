"""The facts of a memory's log, and what a memory is. Requests and answers are in `memory_wire`.

A memory is a projection of its own log: whatever the vector store holds can be dropped and folded anew.
Must not know stores, embedders or subjects.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import UNSET, Raw, Struct, UnsetType, field

from swarmd.core.events import Fact

TEXT_BYTES_MAX: Final = 32 * 1024
RECALL_MAX: Final = 100
SHARED: Final = "shared"

How = Literal["recall", "get", "watch", "reuse"]
"""In which way a task came to read a memory."""


class Memory(Struct, omit_defaults=True):
    """One version of a memory, as stores hold it.

    `seq` is the version's place in the memory's log, `since_ms` when the memory was first remembered, by the broker's
    clock (0 before it is stored). It is not recalled from `expires_at_ms` on (0: never expires). `payload` is JSON that
    comes along and is not searched. `step` is the step of `task` that made it; both are of the swarm `swarm`.
    """

    id: str
    text: str
    source: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    author: str = ""
    task: str = ""
    seq: int = 0
    space: str = SHARED
    swarm: str = ""
    step: str = ""
    since_ms: int = 0
    expires_at_ms: int = 0
    payload: Raw | UnsetType = UNSET


class Remembered(Fact):
    """A passage was remembered; the event's subject is the memory's id, `step` the place it came from."""

    text: str
    source: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    author: str = ""
    task: str = ""


class Version(Fact):
    """What every version of a memory says. `vector` is its author's own: float32, little endian, made by `embedder`;

    without one, the text is embedded by whatever the memory embeds with.
    """

    text: str
    source: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    author: str = ""
    swarm: str = ""
    task: str = ""
    step: str = ""
    expires_at_ms: int = 0
    vector: bytes = b""
    embedder: str = ""
    payload: Raw | UnsetType = UNSET


class RememberedV2(Version):
    """A passage was remembered in a space; the event's subject is the memory's id."""

    space: str = SHARED


class Updated(Version, kw_only=True):
    """A memory says something else from now on: all of it, in its space.

    `replaces` is the sequence of the version that it was made of; another version in between makes it void.
    """

    replaces: int


class Forgotten(Fact):
    """The owner dropped a memory."""

    reason: str = ""


class Revoked(Fact):
    """An operator withdrew a memory as faulty."""

    reason: str = ""


class Read(Fact):
    """A task was given memories; the event's subject is the task's id, `memories` the versions by memory."""

    swarm: str
    how: How
    memories: dict[str, int]
    agent: str = ""
    step: str = ""


class Watched(Fact):
    """Somebody watches a meaning from here on; the event's subject is the watcher's name. It replaces an older watch.

    A later version in one of `spaces` that `filter` lets through matches when the cosine of its vector and of the
    watch's is at least `threshold`. The watch's vector is made of `text`, or is `vector`, made by `embedder`.
    """

    threshold: float
    text: str = ""
    vector: bytes = b""
    embedder: str = ""
    filter: str = ""
    spaces: list[str] = field(default_factory=list)
    swarm: str = ""
    agent: str = ""
    task: str = ""
    expires_at_ms: int = 0


class Unwatched(Fact):
    """A watch ended; its matches are no longer kept. With `since` only the one that holds since that sequence."""

    reason: str = ""
    since: int = 0


class Matched(Fact):
    """The version of a memory (the event's subject) at `seq` and `index` was matched against all watches before it.

    `watchers` are those that it concerns, with the cosine. Versions are matched in the order of the log, and those that
    concern nobody are mostly passed over in silence.
    """

    seq: int
    index: int
    watchers: dict[str, float] = field(default_factory=dict)


class Rebuilt(Fact):
    """The store was built anew as `generation`; from here on recalls are answered from it."""

    generation: int
    embedder: str
    embedder_id: str
    dimension: int


MEMORY_FACTS: Final[dict[str, type[Fact]]] = {
    "swarmd.memory.remembered.v1": Remembered,
    "swarmd.memory.remembered.v2": RememberedV2,
    "swarmd.memory.updated.v1": Updated,
    "swarmd.memory.forgotten.v1": Forgotten,
    "swarmd.memory.revoked.v1": Revoked,
    "swarmd.memory.read.v1": Read,
    "swarmd.memory.watched.v1": Watched,
    "swarmd.memory.unwatched.v1": Unwatched,
    "swarmd.memory.matched.v1": Matched,
    "swarmd.memory.rebuilt.v1": Rebuilt,
}
MEMORY_TYPES: Final[dict[type[Fact], str]] = {fact: name for name, fact in MEMORY_FACTS.items()}


def version_of(fact: Fact) -> RememberedV2 | Updated | None:
    """What a fact makes a memory say: a version, of whatever age; None for facts that are none."""
    if isinstance(fact, Remembered):
        return RememberedV2(text=fact.text, source=fact.source, labels=fact.labels, author=fact.author, task=fact.task)
    return fact if isinstance(fact, RememberedV2 | Updated) else None
