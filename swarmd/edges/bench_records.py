"""Logs made for measuring the core: the same bytes that writers store, for tasks that nobody runs.

A task is submitted, assigned with its reason, does some steps, and completes. Whatever is ready at one moment goes into
one commit, of 1 to 1,024 events, packed and signed as `roles/writer.py` does it. No clock and no chance: the same
arguments make the same log. Must not know what is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Raw

from swarmd.core import ids, subjects
from swarmd.core.codec import Packer, Record, message_id, rfc3339
from swarmd.core.commands import digest
from swarmd.core.events import (
    TYPES,
    Assigned,
    Completed,
    Elected,
    Event,
    Fact,
    MemberJoined,
    Settled,
    Stepped,
    Submitted,
    Why,
)
from swarmd.core.wire import Submission

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SWARM: Final = "bench"
AGENT: Final = "summarise"
#: Worker processes, nodes in each, and slots of a node.
PROCESSES, NODES, CAPACITY = 4, 2, 1_024
EPOCH_MS: Final = 1_790_000_000_000
_TEXT: Final = (
    "The harvest of the northern valleys was late this year, and the price of barley rose with each week of rain. "
)


class Writer:
    """One process that writes: its subject, its boot, and how many commits it has stored."""

    def __init__(self, role: str, name: str) -> None:
        self.role, self.name, self.boot = role, name, f"{name}boot0000"
        self.subject, self.source = subjects.log(SWARM, role, name), f"/{SWARM}/{role}/{name}"
        self._n = 0

    def nodes(self) -> list[str]:
        """The members that it speaks for."""
        return [ids.node_member(self.name, self.boot, n) for n in range(NODES)]

    def pack(self, events: Iterable[Event], now_ms: int) -> bytes:
        """The next commit: every event signed and encoded, as a log writer does it."""
        self._n += 1
        packer, time, prefix, source = Packer(), rfc3339(now_ms), f"{self.boot}.{self._n}.", self.source
        for index, event in enumerate(events):
            event.type, event.source, event.time = TYPES[type(event.data)], source, time
            event.id = prefix + str(index)
            packer.add(event)
        return packer.payload()

    def record(self, seq: int, payload: bytes, now_ms: int) -> Record:
        """The message that the broker has stored of it."""
        key = message_id(self.boot, self._n, "00112233aabbccdd")
        return Record(seq, self.subject, key, payload, seq - 1, now_ms)

    def store(self, seq: int, events: Iterable[tuple[str, Fact]], now_ms: int) -> Record:
        """A record with these facts."""
        payload = self.pack((Event(subject, fact) for subject, fact in events), now_ms)
        return self.record(seq, payload, now_ms)


def leader() -> Writer:
    """The writer of what a leader decides."""
    return Writer("orchestrator", "o1")


def workers() -> list[Writer]:
    """The writers of what members report."""
    return [Writer("worker", f"w{n}") for n in range(PROCESSES)]


def rounds(events: int, steps: int) -> list[int]:
    """How many tasks are submitted at one moment, each time, so that all make about so many events.

    From 1 to 511, as many small ones as large ones: a swarm is idle at times and in a rush at others. Submissions share
    a commit with their assignments, and that is full at 1,024 events.
    """
    sizes: list[int] = []
    left, number = events // (3 + steps), 7
    while left > 0:
        number = (number * 6364136223846793005 + 1442695040888963407) % (1 << 64)  # Knuth's MMIX generator
        half = 1 << (number >> 33) % 9
        sizes.append(min(left, half + (number >> 45) % half))
        left -= sizes[-1]
    return sizes


def commits_of(sizes: list[int], steps: int) -> int:
    """How many commits `records` makes of these rounds."""
    return 1 + PROCESSES + sum(2 + min(PROCESSES, size) * (steps + 1) for size in sizes)


def records(sizes: list[int], steps: int) -> Iterator[Record]:
    """The log, one record after the other: an election, members, and all rounds."""
    seq, now, number = 0, EPOCH_MS, 0
    lead, crew = leader(), workers()

    def stored(writer: Writer, events: Iterable[tuple[str, Fact]]) -> Record:
        nonlocal seq, now
        seq, now = seq + 1, now + 3
        return writer.store(seq, events, now)

    yield stored(lead, [(SWARM, Elected(term=1))])
    for worker in crew:
        yield stored(worker, [(member, joined(member)) for member in worker.nodes()])
    homes = [(worker, member) for worker in crew for member in worker.nodes()]
    for size in sizes:
        tasks = [
            (task_id(now, number + n), *homes[n % PROCESSES * NODES + n // PROCESSES % NODES]) for n in range(size)
        ]
        submitted = [(task, submission(number + n)) for n, (task, _, _) in enumerate(tasks)]
        number += size
        yield stored(lead, [*submitted, *((task, _assigned(member, size)) for task, _, member in tasks)])
        for step in range(steps):
            for worker in crew[:size]:
                yield stored(worker, [(task, _stepped(step)) for task, home, _ in tasks if home is worker])
        for worker in crew[:size]:
            yield stored(worker, [(task, completed()) for task, home, _ in tasks if home is worker])
        yield stored(lead, [(SWARM, Settled(term=1, told=seq, intake=0))])


def task_id(now_ms: int, number: int) -> str:
    """An id as the SDK makes them."""
    return ids.uuid7(now_ms, number * 0x9E3779B97F4A7C15 % (1 << 74))


def wanted(number: int) -> Submission:
    """A submission with an input of 120 bytes."""
    value = Raw(b'{"document":"%s","n":%7d}' % (_TEXT[:93].encode(), number))
    return Submission(agent=AGENT, input=value, reply="_INBOX.4hV2mK8sQ0pXz7.results")


def submission(number: int) -> Submitted:
    """The fact that accepts it."""
    said = wanted(number)
    return Submitted(term=1, agent=said.agent, digest=digest(said), input=said.input, reply=said.reply, packed=True)


def joined(member: str) -> MemberJoined:
    """A node offers itself."""
    return MemberJoined(member=member, kind="node", agents=[AGENT], capacity=CAPACITY)


def _assigned(member: str, size: int) -> Assigned:
    return Assigned(term=1, epoch=1, member=member, why=Why("load", PROCESSES * NODES, size % 90, 40))


def _stepped(step: int) -> Stepped:
    result = Raw(b'{"text":"%s","stop":"end"}' % _TEXT[:80].encode())
    return Stepped(epoch=1, key=f"model#{step + 1}", kind="model", result=result, tokens=120, duration_ms=31, ran_ms=33)


def completed() -> Completed:
    """A task has its result."""
    return Completed(epoch=1, output=Raw(b'{"summary":"%s"}' % _TEXT[:60].encode()))
