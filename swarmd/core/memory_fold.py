"""The fold of a memory's log: which memories there are, and which wish to remember is a repeat.

Texts are not kept, only what tells a repeat from another text under the same id, and where the text is in the
log. The vector store is a second projection of the same log; this fold says what belongs into it. Pure.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from swarmd.core.codec import Commit, Garbage
from swarmd.core.commits import admit
from swarmd.core.errors import Conflict, Rejected
from swarmd.core.events import Event, Fact
from swarmd.core.memory import Forgotten, Remembered, Revoked
from swarmd.core.state import Counters, Place, WriterWindow

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Only memory nodes write a memory's log.
MEMORY_ROLE: Final = "memory"


class Known(Struct):
    """A memory id that was used: the digest and place of its text, and where it was dropped (0: it was not)."""

    digest: bytes
    place: Place
    gone_seq: int = 0


class MemoryState(Struct):
    """Everything a memory's log says up to sequence `seq`, but for the texts."""

    memory: str
    seq: int = 0
    message_id: str = ""
    known: dict[str, Known] = field(default_factory=dict)
    live: int = 0
    writers: dict[str, WriterWindow] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)


class Kept(Struct):
    """A memory that belongs into the store."""

    id: str
    fact: Remembered
    seq: int


def digest(text: str) -> bytes:
    """What makes two texts under one id the same."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def apply(state: MemoryState, commit: Commit | Garbage) -> None:
    """Fold one commit. Like a swarm's fold it never fails; what changes nothing is counted by reason."""
    state.seq, state.message_id = commit.seq, commit.message_id
    if isinstance(commit, Garbage):
        state.counters.garbage += 1
        return
    why = admit(state, f"{commit.role}/{commit.writer}/{commit.boot}", commit.n, commit.seen, commit.seq)
    if why:
        _ignore(state, why)
        return
    for index, event in enumerate(commit.events):
        if isinstance(event, Garbage):
            state.counters.garbage += 1
        elif commit.role != MEMORY_ROLE:
            _ignore(state, "wrong_role")
        else:
            why = _fold(state, event.subject, event.data, (commit.seq, index))
            if why:
                _ignore(state, why)


def _fold(state: MemoryState, memory: str, fact: Fact, place: Place) -> str:
    known = state.known.get(memory)
    if isinstance(fact, Remembered):
        if known is not None:
            return "repeated_id" if known.digest == digest(fact.text) else "id_taken"
        state.known[memory] = Known(digest(fact.text), place)
        state.live += 1
        return ""
    if known is None:
        return "unknown_memory"
    if known.gone_seq:
        return "already_gone"
    known.gone_seq = place[0]
    state.live -= 1
    return ""


def _ignore(state: MemoryState, why: str) -> None:
    ignored = state.counters.ignored
    ignored[why] = ignored.get(why, 0) + 1


def answer_remember(state: MemoryState, memory: str, text_digest: bytes) -> int:
    """The sequence at which this very text is remembered under this id; 0 when the id is free.

    Raises `Conflict("id_taken")` or `Rejected("forgotten")`.
    """
    known = state.known.get(memory)
    if known is None:
        return 0
    if known.digest != text_digest:
        raise Conflict("id_taken", f"memory {memory[:200]} holds another text: use another id")
    if known.gone_seq:
        raise Rejected("forgotten", f"memory {memory[:200]} was dropped: remember it under another id")
    return known.place[0]


def answer_forget(state: MemoryState, memory: str) -> int:
    """The sequence at which a memory was dropped; 0 when it still is there. Raises `Rejected("unknown_memory")`."""
    known = state.known.get(memory)
    if known is None:
        raise Rejected("unknown_memory", f"no memory {memory[:200]} was ever remembered here")
    return known.gone_seq


def for_store(state: MemoryState, commits: Iterable[Commit | Garbage]) -> tuple[list[Kept], list[str]]:
    """What these commits mean for the store, as `state` (at least as new as they are) knows it.

    A memory that is dropped by now is not put in first; what is dropped may be dropped again.
    """
    kept: list[Kept] = []
    gone: list[str] = []
    for commit in commits:
        if isinstance(commit, Garbage):
            continue
        for index, event in enumerate(commit.events):
            if not isinstance(event, Event):
                continue
            known = state.known.get(event.subject)
            if known is None:
                continue
            if known.gone_seq and isinstance(event.data, Forgotten | Revoked):
                gone.append(event.subject)
            elif not known.gone_seq and isinstance(event.data, Remembered) and known.place == (commit.seq, index):
                kept.append(Kept(event.subject, event.data, commit.seq))
    return kept, gone
