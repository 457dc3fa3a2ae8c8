"""In-process twins of the broker's ports and of the clock: the same promises, no broker, no waiting.

The contract suites hold each twin to the real one, so a role that works over these works over the other. What
a broker does by accident (losing ids, being made anew, breaking) is a method here. Must not know NATS.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
from itertools import count
from typing import TYPE_CHECKING, Final

from swarmd.core.codec import Record
from swarmd.core.errors import Fault, Rejected
from swarmd.ports import Received, Stored

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

MESSAGE_BYTES_MAX: Final = 1024 * 1024
BLOB_BYTES_MAX: Final = 256 * 1024 * 1024
LEASE_TTL_MS: Final = 2_000


class FakeClock:
    """Time that moves only by `advance`; sleepers wake in the order of their times."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = count()

    def now_ms(self) -> int:
        return self._now_ms

    async def sleep(self, delay_ms: int) -> None:
        if delay_ms <= 0:
            await asyncio.sleep(0)
            return
        waking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_ms + delay_ms, next(self._numbers), waking))
        await waking

    async def advance(self, by_ms: int) -> None:
        """Let time pass; whoever wakes runs until it waits again before the next one wakes."""
        until_ms = self._now_ms + by_ms
        while self._sleepers and self._sleepers[0][0] <= until_ms:
            self._now_ms, _, waking = heapq.heappop(self._sleepers)
            if not waking.done():
                waking.set_result(None)
            for _ in range(10):
                await asyncio.sleep(0)
        self._now_ms = until_ms


class FakeLog:
    """One log stream in memory. `bytes_max` 0 is no limit; other readers and writers may share it."""

    def __init__(self, bytes_max: int = 0) -> None:
        self.bytes_max = bytes_max
        self._records: list[Record] = []
        self._first = 1
        self._ids: dict[str, int] = {}
        self._stored = asyncio.Event()

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(len(record.payload) + len(record.subject) + len(record.message_id) for record in self._records)

    async def append(self, subject: str, payload: bytes, message_id: str, seen: int) -> Stored:
        await asyncio.sleep(0)
        if message_id in self._ids:
            return Stored(self._ids[message_id], True)
        if len(payload) > MESSAGE_BYTES_MAX:
            raise Rejected("too_large", f"a message of {len(payload)} bytes is over the broker's limit")
        if self.bytes_max and self.size + len(payload) > self.bytes_max:
            raise Rejected("log_full", f"the log holds {self.size} of {self.bytes_max} bytes")
        seq = self._next()
        self._records.append(Record(seq, subject, message_id, payload, seen))
        self._ids[message_id] = seq
        stored, self._stored = self._stored, asyncio.Event()
        stored.set()
        return Stored(seq)

    def _next(self) -> int:
        return self._first + len(self._records)

    async def read(self, seqs: Sequence[int]) -> list[Record]:
        await asyncio.sleep(0)
        for seq in seqs:
            if not self._first <= seq < self._next():
                raise Fault("missing_sequence", f"the log does not hold sequence {seq}")
        return [self._records[seq - self._first] for seq in seqs]

    async def last_seq(self) -> int:
        await asyncio.sleep(0)
        return self._next() - 1

    async def scan(self, after: int, upto: int) -> AsyncIterator[list[Record]]:
        """Records after `after` up to `upto`, in batches."""
        while after < upto:
            self._check_held(after + 1)
            batch = self._records[after + 1 - self._first : min(upto, after + 500) + 1 - self._first]
            if not batch:
                raise Fault("gap", f"the log holds nothing at sequence {after + 1}")
            after = batch[-1].seq
            yield batch
            await asyncio.sleep(0)

    async def follow(self, after: int, on_records: Callable[[list[Record]], Awaitable[None]]) -> None:
        while True:
            self._check_held(after + 1)
            batch = self._records[after + 1 - self._first :]
            if not batch:
                await self._stored.wait()
                continue
            after = batch[-1].seq
            await on_records(batch)

    def _check_held(self, seq: int) -> None:
        if seq < self._first:
            raise Fault("gap", f"the log starts at {self._first}, sequence {seq} was purged")

    async def purge(self, upto: int) -> None:
        """Drop every record up to sequence `upto`."""
        gone = max(0, min(upto + 1, self._next()) - self._first)
        del self._records[:gone]
        self._first += gone

    def forget_ids(self) -> None:
        """As if the broker's window for recognising repeats had passed."""
        self._ids.clear()

    def truncate(self, upto: int) -> None:
        """As if the broker had been restored from a copy that ends at `upto`."""
        del self._records[upto + 1 - self._first :]
        self._ids = {message_id: seq for message_id, seq in self._ids.items() if seq <= upto}


class FakeSubscription:
    """Ends with `close`; closing twice is harmless."""

    def __init__(self, bus: FakeBus, subject: str, on_message: Callable[[Received], None], queue: str) -> None:
        self._bus, self.subject, self.on_message, self.queue = bus, subject, on_message, queue
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False
        if self in self._bus.subscriptions:
            self._bus.subscriptions.remove(self)


class FakeBus:
    """Subjects in one process. Messages arrive soon, in order; of a queue group one member gets each, in turn."""

    def __init__(self) -> None:
        self.subscriptions: list[FakeSubscription] = []
        self._numbers = count(1)
        self._turn = count()

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        self._deliver(subject, payload, reply)

    def _deliver(self, subject: str, payload: bytes, reply: str) -> int:
        if len(payload) > MESSAGE_BYTES_MAX:
            raise Rejected("too_large", f"a message of {len(payload)} bytes is over the broker's limit")
        groups: dict[str, list[FakeSubscription]] = {}
        for number, subscription in enumerate(self.subscriptions):
            if matches(subscription.subject, subject):
                groups.setdefault(subscription.queue or f" {number}", []).append(subscription)
        loop = asyncio.get_running_loop()
        for members in groups.values():
            chosen = members[next(self._turn) % len(members)]
            loop.call_soon(self._hand_over, chosen, Received(subject, payload, reply))
        return len(groups)

    @staticmethod
    def _hand_over(subscription: FakeSubscription, message: Received) -> None:
        if subscription.is_open:
            subscription.on_message(message)

    async def request(self, subject: str, payload: bytes, timeout_ms: int) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        inbox = f"_INBOX.{next(self._numbers)}"

        def take(message: Received) -> None:
            if not answer.done():
                answer.set_result(message.payload)

        subscription = await self.subscribe(inbox, take)
        try:
            if not self._deliver(subject, payload, inbox):
                raise Fault("no_responders", f"nobody serves {subject}: is the swarm running?")
            async with asyncio.timeout(timeout_ms / 1000):
                return await answer
        except TimeoutError:
            raise Fault("timeout", f"no answer on {subject} within {timeout_ms} ms") from None
        finally:
            await subscription.close()

    async def subscribe(
        self, subject: str, on_message: Callable[[Received], None], queue: str = ""
    ) -> FakeSubscription:
        subscription = FakeSubscription(self, subject, on_message, queue)
        self.subscriptions.append(subscription)
        return subscription


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject falls under a pattern with the wildcards `*` (one token) and `>` (the rest)."""
    wanted, tokens = pattern.split("."), subject.split(".")
    for place, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > place
        if place >= len(tokens) or token not in ("*", tokens[place]):
            return False
    return len(wanted) == len(tokens)


class FakeBlobs:
    """Content-addressed payloads in a dict."""

    def __init__(self, bytes_max: int = 0) -> None:
        self.bytes_max = bytes_max
        self.held: dict[str, bytes] = {}

    async def put(self, payload: bytes) -> str:
        if len(payload) > BLOB_BYTES_MAX:
            raise Rejected("too_large", f"a blob of {len(payload)} bytes is over {BLOB_BYTES_MAX}")
        digest = hashlib.sha256(payload).hexdigest()
        held = sum(map(len, self.held.values()))
        if self.bytes_max and digest not in self.held and held + len(payload) > self.bytes_max:
            raise Rejected("blobs_full", f"the blobs take {held} of {self.bytes_max} bytes")
        self.held[digest] = payload
        return digest

    async def get(self, digest: str) -> bytes:
        if digest not in self.held:
            raise Rejected("blob_missing", f"blob {digest[:80]} is not stored")
        payload = self.held[digest]
        if hashlib.sha256(payload).hexdigest() != digest:
            raise Rejected("blob_corrupt", f"blob {digest} has another content than its hash says")
        return payload

    async def remove(self, digest: str) -> None:
        self.held.pop(digest, None)


class FakeLease:
    """One wish for the lease that all of `board` share; it lapses when `clock` passes its time to live."""

    def __init__(self, clock: FakeClock, board: dict[str, int], holder: str) -> None:
        self._clock, self._board, self._holder = clock, board, holder

    def _held_by(self) -> str:
        for holder, until_ms in self._board.items():
            if until_ms > self._clock.now_ms():
                return holder
        return ""

    async def look(self) -> int:
        return self._board.get(self._held_by(), 0)

    async def acquire(self, mark: int = 0) -> bool:
        if await self.look() != mark:
            return False
        return self._take()

    async def renew(self) -> bool:
        return self._take() if self._held_by() == self._holder else False

    def _take(self) -> bool:
        former = max(self._board.values(), default=0)
        self._board.clear()
        self._board[self._holder] = max(self._clock.now_ms() + LEASE_TTL_MS, former + 1)  # it is the mark as well
        return True

    async def release(self) -> None:
        self._board.clear()
