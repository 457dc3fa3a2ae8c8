"""The simulated log stream and its writers.

The log stores in one total order. Appends and receipts may be lost, delayed and repeated by the network;
the broker drops repeats of a message id only within a short window, so the fold's own numbering is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from swarmd.core import codec, subjects
from swarmd.core.codec import Record
from swarmd.core.errors import Rejected
from swarmd.core.events import TYPES, Event

if TYPE_CHECKING:
    from tests.sim.world import Process, World

Receipt = Callable[[int], None]
DEDUP_MS = 120


class SimLog:
    """One stream. `on_stored` hears every record at the moment it is stored."""

    def __init__(self, world: World, swarm: str, on_stored: Callable[[Record], None]) -> None:
        self._world, self.swarm = world, swarm
        self.records: list[Record] = []
        self.down = False
        self._on_stored = on_stored
        self._recent: dict[str, tuple[int, int]] = {}
        self._wakes: list[Callable[[], None]] = []

    def store(self, subject: str, payload: bytes, message_id: str, seen: int) -> int:
        """Store, or recognise a recent repeat; return the sequence."""
        now_ms = self._world.now_ms
        known = self._recent.get(message_id)
        if known is not None and known[1] > now_ms - DEDUP_MS:
            return known[0]
        record = Record(len(self.records) + 1, subject, message_id, payload, seen, now_ms)
        self.records.append(record)
        self._recent[message_id] = (record.seq, now_ms)
        self._on_stored(record)
        for wake in self._wakes:
            wake()
        return record.seq

    def transmit(self, process: Process, message: Outgoing, receipt: Receipt) -> None:
        """One transmission over the faulty network; `receipt` may never be called."""
        world, faults = self._world, self._world.faults
        if process.name in world.cut:
            return
        copies = 2 if world.maybe(faults.repeat_appends, 0.1) else 1
        for copy in range(copies):
            if world.maybe(faults.lose_appends, 0.1):
                continue
            delay_ms = world.chance.randint(1, 5)
            if copy or world.maybe(faults.slow_log, 0.08):
                delay_ms += world.chance.randint(30, 1_500)
            world.at(delay_ms, lambda: self._arrive(process, message, receipt))

    def _arrive(self, process: Process, message: Outgoing, receipt: Receipt) -> None:
        world = self._world
        if self.down:
            return
        seq = self.store(message.subject, message.payload, message.message_id, message.seen)
        if world.maybe(world.faults.lose_receipts, 0.15):
            return
        confirm = process.guard(lambda: receipt(seq))
        world.at(world.chance.randint(1, 4), lambda: None if process.name in world.cut else confirm())

    def follow(self, process: Process, wake: Callable[[], None]) -> None:
        """Wake a reader some time after each record; it then reads on from where it is."""
        guarded = process.guard(wake)

        def soon() -> None:
            delay_ms = self._world.chance.randint(1, 6)
            if self._world.maybe(self._world.faults.slow_log, 0.05):
                delay_ms += self._world.chance.randint(50, 400)
            self._world.at(delay_ms, guarded)

        self._wakes.append(soon)

    def read(self, process: Process, seqs: Sequence[int], answer: Callable[[list[Record]], None]) -> None:
        """Hand over records by sequence; asked again until the log is reachable."""

        def attempt() -> None:
            if self.down or process.name in self._world.cut:
                process.later(100, attempt)
            else:
                answer([self.records[seq - 1] for seq in seqs])

        process.later(self._world.chance.randint(1, 5), attempt)


class Outgoing(Struct):
    """One commit on its way."""

    subject: str
    payload: bytes
    message_id: str
    seen: int


class Writer:
    """Numbers the commits of one boot and repeats each under its number until a receipt comes."""

    def __init__(self, process: Process, log: SimLog, role: str, name: str, boot: str) -> None:
        self._process, self._log = process, log
        self.role, self.name, self.boot = role, name, boot
        self._subject = subjects.log(log.swarm, role, name)
        self._n = 0
        self.seen = 0
        self.last_receipt = 0
        chance = process.world.chance
        self._commit_max = chance.choice((1, 3, 20))
        self._in_flight_max = chance.choice((1, 2, 8))
        self.dropped: Callable[[list[Event], Rejected], None] | None = None
        self._waiting: list[tuple[Event, Receipt | None]] = []
        self._in_flight: dict[int, list[Receipt | None]] = {}
        self.sent: dict[str, list[Event]] = {}  #: by message id; a leader reads its own commits back undecoded

    @property
    def free(self) -> bool:
        """Whether another commit may go out."""
        return len(self._in_flight) < self._in_flight_max and not self._waiting

    @property
    def idle(self) -> bool:
        return not self._in_flight and not self._waiting

    def append(self, events: Sequence[Event], stored: Receipt | None = None) -> None:
        """Queue events; `stored` hears the sequence once the receipt for the last of them is here."""
        for event in events:
            self._waiting.append((event, stored if event is events[-1] else None))
        self._pump()

    def _pump(self) -> None:
        while self._waiting and len(self._in_flight) < self._in_flight_max:
            taken = self._waiting[: self._commit_max]
            del self._waiting[: self._commit_max]
            self._n += 1
            if self.dropped is not None and self._process.world.maybe(self._process.world.faults.full_log, 0.1):
                self._drop([event for event, _ in taken])
                continue
            packer = codec.Packer()
            for index, (event, _) in enumerate(taken):
                packer.add(self._seal(event, index))
            message = Outgoing(self._subject, packer.payload(), codec.message_id(self.boot, self._n), self.seen)
            self.sent[message.message_id] = [event for event, _ in taken]
            self._in_flight[self._n] = [stored for _, stored in taken]
            self._send(self._n, message)

    def _drop(self, events: list[Event]) -> None:
        """The log is full: these are not stored, and their owner hears of it a moment later."""
        dropped, error = self.dropped, Rejected("log_full", "the log is full")
        assert dropped is not None
        self._process.later(3, lambda: dropped(events, error))

    def _seal(self, event: Event, index: int) -> Event:
        kind = TYPES[type(event.data)]
        return Event(event.subject, event.data, kind, f"{self.boot}.{self._n}.{index}", f"/{self.role}/{self.name}")

    def _send(self, n: int, message: Outgoing) -> None:
        if n not in self._in_flight:
            return
        self._log.transmit(self._process, message, lambda seq: self._confirmed(n, seq))
        self._process.later(self._process.world.chance.randint(80, 300), lambda: self._send(n, message))

    def _confirmed(self, n: int, seq: int) -> None:
        callbacks = self._in_flight.pop(n, None)
        if callbacks is None:
            return
        self.last_receipt = max(self.last_receipt, seq)
        self.seen = max(self.seen, seq)
        for stored in callbacks:
            if stored is not None:
                stored(seq)
        self._pump()
