"""The fold of a memory's log: one text per id, repeats recognised, what was dropped stays dropped."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core import memory_fold
from swarmd.core.codec import Codec, Commit, Garbage, Packer, Record
from swarmd.core.errors import Conflict, Rejected
from swarmd.core.events import Event, Fact
from swarmd.core.memory import (
    MEMORY_FACTS,
    MEMORY_TYPES,
    Forgotten,
    Matched,
    Read,
    Rebuilt,
    Remembered,
    RememberedV2,
    Revoked,
    Unwatched,
    Updated,
    Watched,
)
from swarmd.core.memory_fold import MemoryState

if TYPE_CHECKING:
    from collections.abc import Sequence


class Log:
    """Commits of one writer, folded as they are made."""

    def __init__(self) -> None:
        self.state = MemoryState("shared")
        self.commits: list[Commit | Garbage] = []

    def add(self, *events: tuple[str, Fact], role: str = "memory", n: int = 0) -> Commit:
        seq = len(self.commits) + 1
        facts: list[Event | Garbage] = [Event(subject, fact) for subject, fact in events]
        commit = Commit(seq, role, "w", "boot", n or seq, seq - 1, f"boot.{n or seq}", facts)
        self.commits.append(commit)
        memory_fold.apply(self.state, commit)
        return commit


def kept(log: Log) -> list[tuple[str, str]]:
    return [(memory.id, memory.text) for memory, _ in memory_fold.for_store(log.state, log.commits)[0]]


def test_the_first_text_of_an_id_holds() -> None:
    log = Log()
    log.add(("a", Remembered(text="one")), ("a", Remembered(text="two")), ("b", Remembered(text="three")))
    log.add(("a", Remembered(text="one")))
    assert kept(log) == [("a", "one"), ("b", "three")]
    assert log.state.counters.ignored == {"id_taken": 1, "repeated_id": 1}
    assert memory_fold.answer_remember(log.state, "a", memory_fold.digest("one")) == 1
    assert memory_fold.answer_remember(log.state, "c", memory_fold.digest("one")) == 0
    with pytest.raises(Conflict, match="another text"):
        memory_fold.answer_remember(log.state, "a", memory_fold.digest("two"))


@pytest.mark.parametrize("fact", [Forgotten(), Revoked(reason="poison")])
def test_what_was_dropped_is_gone_and_its_id_used_up(fact: Fact) -> None:
    log = Log()
    log.add(("a", Forgotten()))  # not there yet: changes nothing
    log.add(("a", Remembered(text="one")), ("b", Remembered(text="two")))
    assert memory_fold.answer_forget(log.state, "a") == 0
    log.add(("a", fact))
    log.add(("a", fact))
    assert memory_fold.for_store(log.state, log.commits)[1] == ["a", "a", "a"]
    assert kept(log) == [("b", "two")]
    assert memory_fold.answer_forget(log.state, "a") == 3
    assert log.state.live == 1
    with pytest.raises(Rejected, match="dropped"):
        memory_fold.answer_remember(log.state, "a", memory_fold.digest("one"))
    with pytest.raises(Rejected, match="ever remembered"):
        memory_fold.answer_forget(log.state, "c")


def test_repeats_of_a_commit_other_roles_and_garbage_change_nothing() -> None:
    log = Log()
    log.add(("a", Remembered(text="one")), n=1)
    log.add(("a", Forgotten()), n=2)
    log.add(("a", Forgotten()), n=2)
    log.add(("b", Remembered(text="two")), role="worker", n=3)
    log.commits.append(Garbage(5, -1, "no commit", "id"))
    memory_fold.apply(log.state, log.commits[-1])
    assert kept(log) == []
    assert log.state.counters.ignored == {"repeated": 1, "wrong_role": 1}
    assert (log.state.counters.garbage, log.state.seq, log.state.message_id) == (1, 5, "id")


def test_a_version_is_made_of_the_present_one_or_void() -> None:
    log = Log()
    log.add(("a", RememberedV2(text="one", author="desk", swarm="main", task="t1", space="swarm/main")))
    log.add(("a", Updated(text="two", replaces=1, swarm="main", task="t2")))
    log.add(("a", Updated(text="three", replaces=1)), ("b", Updated(text="x", replaces=1)))
    log.add(("c", RememberedV2(text="new")), ("c", Updated(text="newer", replaces=4)))
    known = log.state.known["a"]
    assert (known.first, known.place, [edit.seq for edit in known.updates or ()]) == ((1, 0), (2, 0), [2])
    assert (known.author, known.task, known.space) == ("desk", "t1", "swarm/main")
    assert log.state.counters.ignored == {"stale_update": 1, "unknown_memory": 1, "same_commit": 1}
    assert kept(log) == [("a", "two"), ("c", "new")]
    assert log.state.wrote == {"main/t1": ["a"], "main/t2": ["a"]}
    assert memory_fold.answer_remember(log.state, "a", memory_fold.digest("one")) == 1  # as it was first remembered
    log.add(("a", Revoked()))
    log.add(("a", Updated(text="four", replaces=2)))
    assert (log.state.live, log.state.spaces) == (1, {"shared": 1})
    assert log.state.counters.ignored["already_gone"] == 1


def test_a_reader_is_known_by_where_the_log_says_so() -> None:
    log = Log()
    log.add(("a", RememberedV2(text="one")), ("b", RememberedV2(text="two")))
    log.add(("t1", Read(swarm="main", how="recall", memories={"a": 1, "q": 1})))
    log.add(("t1", Read(swarm="main", how="get", memories={"a": 1, "b": 1})))
    log.add(("t1", Read(swarm="other", how="watch", memories={"a": 1})))
    assert log.state.known["a"].readers == {"main/t1": 2, "other/t1": 4}
    assert log.state.known["b"].readers == {"main/t1": 3}
    assert log.state.read == {"main/t1": ["a", "b"], "other/t1": ["a"]}


def test_watches_are_served_from_when_they_are_made_and_in_order() -> None:
    log = Log()
    log.add(("a", RememberedV2(text="one")))
    log.add(("w", Watched(threshold=0.5, text="x")))
    log.add(("w", Watched(threshold=0.5, text="x")), ("b", RememberedV2(text="two")))
    log.add(("a", Matched(seq=1, index=0, watchers={"w": 0.9})), ("b", Matched(seq=3, index=1, watchers={"w": 0.8})))
    log.add(("b", Matched(seq=3, index=1, watchers={"w": 0.8})))
    assert [match[1:] for match in log.state.watches["w"].matches] == [("b", 3, 0.8)]
    assert log.state.counters.ignored == {"repeated_watch": 1, "already_matched": 2}
    log.add(("w", Unwatched(since=9)))  # of another one under that name
    assert log.state.watches["w"].seq == 2
    log.add(("w", Unwatched(since=2)), ("w", Unwatched()))
    assert (log.state.watches, log.state.counters.ignored["unknown_watch"]) == ({}, 2)


def test_matches_of_one_commit_have_numbers_of_their_own() -> None:
    """Whoever has seen one of them resumes with the next one."""
    log = Log()
    log.add(("w", Watched(threshold=0.5, text="x")))
    log.add(*((name, RememberedV2(text=name)) for name in "abcd"))
    log.add(*((name, Matched(seq=2, index=at, watchers={"w": 0.9})) for at, name in enumerate("abc")))
    log.add(("d", Matched(seq=2, index=3, watchers={"w": 0.9})))
    assert [match[:2] for match in log.state.watches["w"].matches] == [(3, "a"), (4, "b"), (5, "c"), (6, "d")]


def test_a_later_generation_is_in_service() -> None:
    log = Log()
    for generation in (2, 1, 3):
        log.add(("shared", Rebuilt(generation=generation, embedder="hash", embedder_id="h", dimension=4)))
    assert log.state.rebuilt is not None
    assert (log.state.rebuilt.generation, log.state.counters.ignored) == (3, {"older_generation": 1})


IDS = st.sampled_from(["a", "b", "c", "w", ""])
TEXTS = st.sampled_from(["one", "two", "", "\x00", "é"])
SEQS = st.integers(0, 14)
TASKS = st.sampled_from(["", "t1", "t1~2"])
SWARMS = st.sampled_from(["", "main"])
READS = st.dictionaries(IDS, SEQS, max_size=3)
SIMILAR = st.dictionaries(IDS, st.floats(-1, 1), max_size=3)
SPACES = st.sampled_from(["shared", "swarm/main"])
SAID: Sequence[st.SearchStrategy[Fact]] = (
    st.builds(Remembered, text=TEXTS, task=TASKS),
    st.builds(RememberedV2, text=TEXTS, task=TASKS, swarm=SWARMS, space=SPACES, expires_at_ms=SEQS),
    st.builds(Updated, text=TEXTS, task=TASKS, swarm=SWARMS, replaces=SEQS),
    st.just(Forgotten()),
    st.just(Revoked()),
    st.builds(Read, swarm=SWARMS, how=st.just("recall"), memories=READS),
    st.builds(Watched, threshold=st.floats(-1, 1), text=TEXTS),
    st.builds(Unwatched, since=SEQS),
    st.builds(Matched, seq=SEQS, index=st.integers(0, 3), watchers=SIMILAR),
    st.builds(Rebuilt, generation=SEQS, embedder=TEXTS, embedder_id=TEXTS, dimension=SEQS),
)
EVENTS = st.lists(st.tuples(IDS, st.one_of(*SAID)), max_size=4)
ROLES = st.sampled_from(["memory", "memory", "memory", "worker"])
COMMITS = st.lists(st.tuples(EVENTS, ROLES, st.integers(1, 16), st.sampled_from(["x", "y"])), max_size=14)


def drawn(commits: list[tuple[list[tuple[str, Fact]], str, int, str]]) -> list[Commit | Garbage]:
    """Commits as they would come out of a log: packed, stored and read, whatever they say."""
    codec, made = Codec(MEMORY_FACTS, {}), []
    for seq, (events, role, n, boot) in enumerate(commits, 1):
        packer = Packer()
        for subject, fact in events:
            packer.add(Event(subject, fact, MEMORY_TYPES[type(fact)]))
        record = Record(seq, f"memory.m.log.{role}.w", f"{boot}.{n}", packer.payload(), seq - 1, seq * 10)
        made.append(codec.decode(record))
    return made


def folded(commits: list[Commit | Garbage], state: MemoryState | None = None) -> MemoryState:
    state = state or MemoryState("m")
    for commit in commits:
        memory_fold.apply(state, commit)
    return state


@given(COMMITS, st.integers(0, 14))
def test_any_log_is_folded_the_same_whole_or_in_parts(
    commits: list[tuple[list[tuple[str, Fact]], str, int, str]], cut: int
) -> None:
    read = drawn(commits)
    whole = folded(deepcopy(read))
    assert folded(deepcopy(read)) == whole
    assert folded(read[cut:], folded(read[:cut])) == whole
    assert whole.live == sum(not known.gone_seq for known in whole.known.values()) == sum(whole.spaces.values())
    assert whole.seq == len(commits)
    assert all(whole.known[memory].readers for memories in whole.read.values() for memory in memories)
    assert all(memory in whole.known for memories in whole.wrote.values() for memory in memories)
    rows, _ = memory_fold.for_store(whole, read)
    stored = {memory.id: memory.seq for memory, _ in rows}
    assert stored == {memory: known.place[0] for memory, known in whole.known.items() if not known.gone_seq}
    msgspec.json.encode(whole)  # nothing in it that could not be written down


def test_what_was_not_matched_yet_cannot_be_said_to_be() -> None:
    log = Log()
    log.add(("w", Watched(threshold=-1.0, text="x")))
    log.add(("a", Remembered(text="one")))
    log.add(("a", Matched(seq=2**62, index=0, watchers={"w": 0.9})), ("a", Matched(seq=3, index=10**30)))
    log.add(("nobody", Matched(seq=2, index=0, watchers={"w": 0.9})))
    assert (log.state.matched, log.state.watches["w"].matches) == ((1, 0), [])
    log.add(("a", Matched(seq=2, index=0, watchers={"w": 0.9})))
    assert log.state.watches["w"].matches == [(5, "a", 2, 0.9)]
    assert log.state.counters.ignored == {"not_there_yet": 2, "unknown_memory": 1}


def test_a_generation_that_nobody_could_have_built_is_void() -> None:
    log = Log()
    for generation, dimension in ((2**63, 64), (10**4_000, 64), (0, 64), (-7, 64), (2, 0), (2, 10**12)):
        log.add(("m", Rebuilt(generation=generation, embedder="hash", embedder_id="x", dimension=dimension)))
    assert log.state.rebuilt is None
    assert log.state.counters.ignored == {"bad_generation": 4, "older_generation": 2}
