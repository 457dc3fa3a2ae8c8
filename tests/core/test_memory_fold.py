"""The fold of a memory's log: one text per id, repeats recognised, what was dropped stays dropped."""

from __future__ import annotations

import pytest

from swarmd.core import memory_fold
from swarmd.core.codec import Commit, Garbage
from swarmd.core.errors import Conflict, Rejected
from swarmd.core.events import Event, Fact
from swarmd.core.memory import Forgotten, Remembered, Revoked
from swarmd.core.memory_fold import MemoryState


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
