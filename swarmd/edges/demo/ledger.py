"""What the logs of the swarms say about a run: counts for the display, and the proof that nothing was done twice.

A `Ledger` folds one swarm's log as every replica does, and keeps besides in which attempt a step was recorded and what
the attempts of lost members had recorded. Must not know who reads it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from swarmd.core.codec import Codec, Commit, Garbage, Record
from swarmd.core.errors import Fault
from swarmd.core.events import Event, MemberLost, Stepped
from swarmd.core.evolve import apply
from swarmd.core.state import SwarmState

if TYPE_CHECKING:
    from swarmd.ports import Log

MODEL: Final = "model"
REACH_S: Final = 60


class LostAttempt(Struct, frozen=True):
    """An attempt whose member died: `steps` were recorded before, `model_steps` of them are model calls."""

    task: str
    epoch: int
    member: str
    steps: frozenset[str]
    model_steps: frozenset[str]


class Totals(Struct):
    """Counts of one swarm so far."""

    submitted: int = 0
    completed: int = 0
    failed: int = 0
    running: int = 0
    steps: int = 0
    model_calls: int = 0
    members: int = 0
    slots: int = 0
    lost: list[LostAttempt] = field(default_factory=list)


class Ledger:
    """The fold of one swarm's log, and what it does not keep."""

    def __init__(self, swarm: str) -> None:
        self.state = SwarmState(swarm)
        self.lost: list[LostAttempt] = []
        self._codec = Codec()
        self._folded: set[str] = set()
        self._recorded: dict[tuple[str, str], int] = {}
        self._again: set[tuple[str, str]] = set()
        self._kinds: dict[tuple[str, str], str] = {}
        self._model_calls = 0
        self._moved = asyncio.Event()

    def take(self, record: Record) -> None:
        """Fold one record of the log."""
        commit = self._codec.decode(record)
        losses = self._losses(commit)
        refused: list[int] = []
        apply(self.state, commit, refused)
        if isinstance(commit, Commit) and commit.message_id not in self._folded:
            self._folded.add(commit.message_id)
            for index, event in enumerate(commit.events):
                if isinstance(event, Event) and isinstance(event.data, Stepped):
                    self._step(event.subject, event.data, index not in refused)
        self.lost += [loss for loss in losses if loss.member not in self.state.members]

    def _step(self, task: str, fact: Stepped, accepted: bool) -> None:
        """Whoever writes a step that was recorded in its own or an earlier attempt has done it again.

        A step of an attempt that was declared lost meanwhile, as of a member that was only slow, is no such thing.
        """
        place = (task, fact.key)
        known = self._recorded.get(place)
        if known is not None and fact.epoch >= known:
            self._again.add(place)
        elif accepted:
            self._recorded[place] = fact.epoch
            self._kinds[place] = fact.kind
            self._model_calls += fact.kind == MODEL

    def _losses(self, commit: Commit | Garbage) -> list[LostAttempt]:
        """What the members that this commit declares lost had under way, if the fold accepts it."""
        found: list[LostAttempt] = []
        for event in commit.events if isinstance(commit, Commit) else ():
            if isinstance(event, Event) and isinstance(event.data, MemberLost):
                found += self.under_way(event.data.member)
        return found

    def under_way(self, member_id: str) -> list[LostAttempt]:
        """The live attempts of a member, as they would be lost now."""
        member = self.state.members.get(member_id)
        found = []
        for task_id, epoch in member.running.items() if member is not None else ():
            steps = frozenset(self.state.tasks[task_id].attempts[epoch].journal)
            calls = frozenset(key for key in steps if self._kinds.get((task_id, key)) == MODEL)
            found.append(LostAttempt(task_id, epoch, member_id, steps, calls))
        return found

    def members_of(self, writer: str) -> list[str]:
        """The members that one process speaks for."""
        return [
            member.id for member in self.state.members.values() if member.writer == writer and member.kind == "node"
        ]

    def tell(self) -> None:
        """Wake whoever waits for news."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def news(self) -> None:
        """Wait until more of the log is folded."""
        await self._moved.wait()

    async def reach(self, seq: int) -> None:
        """Wait until the log is folded up to `seq`; raises `Fault("log_behind")` when that takes too long."""
        try:
            async with asyncio.timeout(REACH_S):
                while self.state.seq < seq:
                    await self.news()
        except TimeoutError:
            raise Fault("log_behind", f"the log of {self.state.swarm} is not read up to {seq} in {REACH_S} s") from None

    @property
    def repeated(self) -> list[tuple[str, str]]:
        """(task, step) of every step that was done again although its record was there."""
        return sorted(self._again)

    @property
    def totals(self) -> Totals:
        state, counters = self.state, self.state.counters
        return Totals(
            submitted=counters.submitted,
            completed=counters.completed,
            failed=counters.dead + counters.cancelled + counters.expired,
            running=sum(len(member.running) for member in state.members.values()),
            steps=counters.steps,
            model_calls=self._model_calls,
            members=len(state.members),
            slots=sum(member.capacity for member in state.members.values()),
            lost=self.lost,
        )


async def follow(ledger: Ledger, log: Log) -> None:
    """Keep `ledger` at the end of its log until cancelled."""

    async def on_records(records: list[Record]) -> None:
        for record in records:
            ledger.take(record)
        ledger.tell()

    await log.follow(0, on_records)
