"""The fold of a memory's log: which memories there are, who read them, what is watched, and which wish is a repeat.

Texts are not kept, only what tells a repeat from another text under the same id, and where the text is in the
log. The vector store is a second projection of the same log; this fold says what belongs into it. Pure.
"""

from __future__ import annotations

import hashlib
from sys import intern
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from swarmd.core.codec import Commit, Garbage
from swarmd.core.commits import admit
from swarmd.core.errors import Conflict, Rejected
from swarmd.core.events import Event, Fact
from swarmd.core.memory import (
    SHARED,
    Forgotten,
    Matched,
    Memory,
    Read,
    Rebuilt,
    RememberedV2,
    Revoked,
    Unwatched,
    Updated,
    Version,
    Watched,
    version_of,
)
from swarmd.core.state import Counters, Place, WriterWindow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Only memory nodes write a memory's log.
MEMORY_ROLE: Final = "memory"
#: Matches that are kept for a watcher that does not fetch them; older ones are counted as missed.
MATCHES_MAX: Final = 10_000
#: A generation may be so far beyond the last one; and vectors may have so many dimensions. What says more is void.
GENERATIONS_AHEAD: Final = 1_000_000
DIMENSION_MAX: Final = 32_768


class Edit(Struct, frozen=True, gc=False):
    """A version after the first: where it is in the log, when it came, and who made it in which step."""

    seq: int
    at_ms: int = 0
    author: str = ""
    swarm: str = ""
    task: str = ""
    index: int = 0
    step: str = ""


class Known(Struct, gc=False):
    """A memory id that was used: the digest of its first text, the places of its first and its present version.

    `gone_seq` is where it was dropped (0: it was not). `readers` are tasks (swarm/task), each with the sequence where
    the log first says that it read this. Nothing in it refers back to it, so the garbage collector need not look.
    """

    digest: bytes
    first: Place
    place: Place
    since_ms: int = 0
    expires_at_ms: int = 0
    gone_seq: int = 0
    revoked: bool = False
    space: str = SHARED
    author: str = ""
    swarm: str = ""
    task: str = ""
    step: str = ""
    readers: dict[str, int] | None = None
    updates: list[Edit] | None = None  #: the versions after the first


class Watch(Struct):
    """A watch since `seq`, and its matches that were not fetched: (number, memory, version, cosine)."""

    fact: Watched
    seq: int
    matches: list[tuple[int, str, int, float]] = field(default_factory=list)
    missed: int = 0


class MemoryState(Struct):
    """Everything a memory's log says up to sequence `seq`, but for the texts.

    `matched` is the place of the last version that was matched against the watches, `numbered` the last number of a
    match. `wrote` and `read` tell what a task did, by swarm/task; a memory that it updated in turn with others may be
    there more than once.
    """

    memory: str
    seq: int = 0
    message_id: str = ""
    known: dict[str, Known] = field(default_factory=dict)
    live: int = 0
    spaces: dict[str, int] = field(default_factory=dict)
    watches: dict[str, Watch] = field(default_factory=dict)
    matched: Place = (0, 0)
    numbered: int = 0
    rebuilt: Rebuilt | None = None
    wrote: dict[str, list[str]] = field(default_factory=dict)
    read: dict[str, list[str]] = field(default_factory=dict)
    writers: dict[str, WriterWindow] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)


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
            why = _fold(state, event, (commit.seq, index), commit.at_ms)
            if why:
                _ignore(state, why)


def _fold(state: MemoryState, event: Event, place: Place, at_ms: int) -> str:
    fact = event.data
    version = version_of(fact)
    if isinstance(version, RememberedV2):
        return _remembered(state, event.subject, version, place, at_ms)
    if isinstance(version, Updated):
        return _updated(state, event.subject, version, place, at_ms)
    transition = _TRANSITIONS.get(type(fact))
    return "unknown_fact" if transition is None else transition(state, event.subject, fact, place)


def _remembered(state: MemoryState, memory: str, fact: RememberedV2, place: Place, at_ms: int) -> str:
    known = state.known.get(memory)
    text = digest(fact.text)
    if known is not None:
        return "repeated_id" if known.digest == text else "id_taken"
    space = intern(fact.space)
    state.known[memory] = Known(
        text,
        place,
        place,
        at_ms,
        fact.expires_at_ms,
        space=space,
        author=intern(fact.author),
        swarm=intern(fact.swarm),
        task=fact.task,
        step=fact.step,
    )
    state.live += 1
    state.spaces[space] = state.spaces.get(space, 0) + 1
    if fact.task:
        state.wrote.setdefault(f"{fact.swarm}/{fact.task}", []).append(memory)
    return ""


def _updated(state: MemoryState, memory: str, fact: Updated, place: Place, at_ms: int) -> str:
    known = state.known.get(memory)
    if known is None:
        return "unknown_memory"
    if known.gone_seq:
        return "already_gone"
    if known.place[0] != fact.replaces:
        return "stale_update"
    if place[0] == fact.replaces:  # one commit: the two versions would bear one sequence
        return "same_commit"
    known.place, known.expires_at_ms = place, fact.expires_at_ms
    edit = Edit(place[0], at_ms, intern(fact.author), intern(fact.swarm), fact.task, place[1], intern(fact.step))
    if known.updates is None:
        known.updates = []
    who = (fact.swarm, fact.task)
    if fact.task and who not in ((known.swarm, known.task), *((e.swarm, e.task) for e in known.updates[-1:])):
        state.wrote.setdefault(f"{fact.swarm}/{fact.task}", []).append(memory)
    known.updates.append(edit)
    return ""


def _dropped(state: MemoryState, memory: str, fact: Forgotten | Revoked, place: Place) -> str:
    known = state.known.get(memory)
    if known is None:
        return "unknown_memory"
    if known.gone_seq:
        return "already_gone"
    known.gone_seq, known.revoked = place[0], isinstance(fact, Revoked)
    state.live -= 1
    left = state.spaces[known.space] - 1
    if left:
        state.spaces[known.space] = left
    else:
        del state.spaces[known.space]
    return ""


def _read(state: MemoryState, task: str, fact: Read, place: Place) -> str:
    reader = f"{fact.swarm}/{task}"
    for memory in fact.memories:
        known = state.known.get(memory)
        if known is None:
            continue
        if known.readers is None:
            known.readers = {}
        if reader not in known.readers:
            known.readers[reader] = place[0]
            state.read.setdefault(reader, []).append(memory)
    return ""


def _watched(state: MemoryState, watcher: str, fact: Watched, place: Place) -> str:
    earlier = state.watches.get(watcher)
    if earlier is not None and earlier.fact == fact:
        return "repeated_watch"
    if not state.watches:  # until somebody watched, nothing had to be matched
        state.matched = max(state.matched, place)
    state.watches[watcher] = Watch(fact, place[0])
    return ""


def _unwatched(state: MemoryState, watcher: str, fact: Unwatched, place: Place) -> str:
    watch = state.watches.get(watcher)
    if watch is None or fact.since not in (0, watch.seq):  # one that expired may have been replaced meanwhile
        return "unknown_watch"
    del state.watches[watcher]
    return ""


def _matched(state: MemoryState, memory: str, fact: Matched, place: Place) -> str:
    if (fact.seq, fact.index) <= state.matched:
        return "already_matched"
    if (fact.seq, fact.index) >= place:  # it would keep all that comes until then from being matched
        return "not_there_yet"
    if fact.watchers and memory not in state.known:
        return "unknown_memory"
    # One commit may tell of many matches, and whoever has seen one of them has not seen the next.
    state.numbered = max(state.numbered + 1, place[0])
    for watcher, similarity in fact.watchers.items():
        watch = state.watches.get(watcher)
        if watch is None or watch.seq >= fact.seq:
            continue
        watch.matches.append((state.numbered, memory, fact.seq, similarity))
        if len(watch.matches) > MATCHES_MAX:
            del watch.matches[0]
            watch.missed += 1
    state.matched = (fact.seq, fact.index)
    return ""


def _rebuilt(state: MemoryState, subject: str, fact: Rebuilt, place: Place) -> str:
    last = 0 if state.rebuilt is None else state.rebuilt.generation
    if fact.generation <= last:
        return "older_generation"
    if fact.generation > last + GENERATIONS_AHEAD or not 1 <= fact.dimension <= DIMENSION_MAX:
        return "bad_generation"
    state.rebuilt = fact
    return ""


_TRANSITIONS: Final[dict[type[Fact], Callable[..., str]]] = {
    Forgotten: _dropped,
    Revoked: _dropped,
    Read: _read,
    Watched: _watched,
    Unwatched: _unwatched,
    Matched: _matched,
    Rebuilt: _rebuilt,
}


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
        raise Conflict("id_taken", f"memory {memory[:200]} holds another text: use another id, or update it")
    if known.gone_seq:
        raise Rejected("forgotten", f"memory {memory[:200]} was dropped: remember it under another id")
    return known.first[0]


def present(state: MemoryState, memory: str) -> Known:
    """A memory that is there; raises `Rejected("unknown_memory" | "forgotten")`."""
    known = state.known.get(memory)
    if known is None:
        raise Rejected("unknown_memory", f"no memory {memory[:200]} was ever remembered here")
    if known.gone_seq:
        raise Rejected("forgotten", f"memory {memory[:200]} was dropped at sequence {known.gone_seq}")
    return known


def answer_forget(state: MemoryState, memory: str) -> int:
    """The sequence at which a memory was dropped; 0 when it still is there. Raises `Rejected("unknown_memory")`."""
    known = state.known.get(memory)
    if known is None:
        raise Rejected("unknown_memory", f"no memory {memory[:200]} was ever remembered here")
    return known.gone_seq


def for_store(
    state: MemoryState, commits: Iterable[Commit | Garbage]
) -> tuple[list[tuple[Memory, Version]], list[str]]:
    """What these commits mean for the store, as `state` (at least as new as they are) knows it.

    A version that is replaced or dropped by now is not put in first; what is dropped may be dropped again.
    """
    kept: list[tuple[Memory, Version]] = []
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
            version = version_of(event.data)
            if version is not None:
                if not known.gone_seq and known.place == (commit.seq, index):
                    kept.append((memory_of(event.subject, version, known), version))
            elif known.gone_seq and isinstance(event.data, Forgotten | Revoked):
                gone.append(event.subject)
    return kept, gone


def memory_of(memory: str, version: Version, known: Known) -> Memory:
    """The present version of a memory, as stores hold it. Who remembered it first stays its author."""
    return Memory(
        memory,
        version.text,
        version.source,
        version.labels,
        known.author,
        known.task,
        known.place[0],
        known.space,
        known.swarm,
        known.step,
        known.since_ms,
        version.expires_at_ms,
        version.payload,
    )
