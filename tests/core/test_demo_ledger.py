"""The demo's proof that nothing recorded was done again, on logs written by hand."""

from __future__ import annotations

from swarmd.core.codec import Packer, Record
from swarmd.core.events import (
    TYPES,
    Assigned,
    Completed,
    Elected,
    Event,
    Fact,
    MemberJoined,
    MemberLost,
    Stepped,
    Submitted,
)
from swarmd.edges.demo.crash import Strike, aftermath
from swarmd.edges.demo.ledger import Ledger

LEADER, ONE, TWO = ("orchestrator", "o1", "boot0"), ("worker", "w1", "boot1"), ("worker", "w2", "boot2")
FIRST, SECOND = "w1/boot1/0", "w2/boot2/0"


class Scribe:
    """Writes commits into a ledger, numbered per writer."""

    def __init__(self) -> None:
        self.ledger = Ledger("library")
        self.seq = 0
        self._numbers: dict[str, int] = {}
        self.write(LEADER, ("library", Elected(term=1)))
        for writer, member in ((ONE, FIRST), (TWO, SECOND)):
            self.write(writer, (member, MemberJoined(member=member, kind="node", agents=["digest"], capacity=4)))
        self.write(LEADER, ("t", Submitted(term=1, agent="digest", digest="d")))
        self.write(LEADER, ("t", Assigned(term=1, epoch=1, member=FIRST)))

    def write(self, who: tuple[str, str, str], *events: tuple[str, Fact], again: bool = False) -> None:
        role, writer, boot = who
        self.seq += 1
        self._numbers[boot] = n = self._numbers.get(boot, 0) + (not again)
        packer = Packer()
        for subject, fact in events:
            packer.add(Event(subject, fact, TYPES[type(fact)], f"{boot}.{n}", "/x", "2026-01-01T00:00:00Z"))
        subject = f"swarm.library.log.{role}.{writer}"
        self.ledger.take(Record(self.seq, subject, f"{boot}.{n}", packer.payload(), self.seq - 1))

    def step(self, who: tuple[str, str, str], epoch: int, key: str, kind: str = "model", again: bool = False) -> None:
        self.write(who, ("t", Stepped(epoch=epoch, key=key, kind=kind)), again=again)

    def lose_the_first(self) -> None:
        self.write(LEADER, (FIRST, MemberLost(term=1, member=FIRST)))
        self.write(LEADER, ("t", Assigned(term=1, epoch=2, member=SECOND)))


def test_what_a_lost_member_had_recorded_is_counted_once() -> None:
    scribe = Scribe()
    scribe.step(ONE, 1, "tool:read_file#1", "tool")
    scribe.step(ONE, 1, "model#1")
    scribe.lose_the_first()
    scribe.step(TWO, 2, "model#2")
    scribe.write(TWO, ("t", Completed(epoch=2)))
    after = aftermath(Strike("worker-library-1", 7, (FIRST,)), scribe.ledger)
    assert (after.attempts_lost, after.tasks_resumed, after.tasks_finished) == (1, 1, 1)
    assert (after.steps_kept, after.model_calls_kept, after.steps_repeated) == (2, 1, 0)
    assert scribe.ledger.totals.model_calls == 2


def test_a_step_that_a_later_attempt_does_again_is_found() -> None:
    scribe = Scribe()
    scribe.step(ONE, 1, "model#1")
    scribe.lose_the_first()
    scribe.step(TWO, 2, "model#1")
    assert scribe.ledger.repeated == [("t", "model#1")]
    after = aftermath(Strike("worker-library-1", 7, (FIRST,)), scribe.ledger)
    assert (after.model_calls_kept, after.steps_repeated) == (0, 1)


def test_a_late_step_of_a_slow_member_and_a_commit_stored_twice_are_no_repeats() -> None:
    scribe = Scribe()
    scribe.lose_the_first()
    scribe.step(TWO, 2, "model#1")
    scribe.step(TWO, 2, "model#1", again=True)
    scribe.step(ONE, 1, "model#1")
    assert scribe.ledger.repeated == []
    assert scribe.ledger.totals.model_calls == 1
