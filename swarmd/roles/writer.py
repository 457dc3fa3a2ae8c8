"""The one log writer of a process: packs whatever is ready into numbered commits.

A lone event goes out at once; what queues up while a commit is in flight goes out together, bounded in
events and bytes. One commit is in flight at a time, so a writer's events are stored in the order in which
they were handed in. An event too large for any commit fails alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from swarmd.core.codec import DEPTH_MAX, Packer, message_id, rfc3339
from swarmd.core.commands import MESSAGE_BYTES_MAX
from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import TYPES, Event, Fact
from swarmd.ports import Clock, Entropy, Log, Probe, Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from swarmd.core.codec import Record

EVENTS_MAX: Final = 1_024
BYTES_MAX: Final = 512 * 1024
FULL_RETRY_MS: Final = 500

_Receipt = asyncio.Future[Stored]
_Entry = tuple[Event, "_Receipt | None"]


class Signature(Struct, frozen=True):
    """Who writes: the log subject, the CloudEvents source, this life's `boot`, and a secret that ids are made with."""

    subject: str
    source: str
    boot: str
    secret: bytes


def sign(subject: str, source: str, boot: str, entropy: Entropy) -> Signature:
    """A signature with a fresh secret."""
    return Signature(subject, source, boot, entropy.bits(128).to_bytes(16))


class LogWriter:
    """Appends events under one subject. `seen` must be kept near the log's end by its owner."""

    def __init__(
        self,
        log: Log,
        signature: Signature,
        clock: Clock,
        probe: Probe,
        types: Mapping[type[Fact], str] = TYPES,
    ) -> None:
        self._log, self._signature = log, signature
        self._clock, self._probe = clock, probe
        self._types = types
        self.seen = 0
        self.acked = 0
        self._n = 0
        self._queue: deque[_Entry] = deque()
        self._wake = asyncio.Event()
        self._sent: dict[str, list[Event]] = {}
        self.keeps_sent = False
        self.supply: Callable[[], list[Event]] = list
        self.dropped: Callable[[list[Event], Rejected], None] = lambda events, error: None

    def append(self, event: Event) -> asyncio.Future[Stored]:
        """Queue one event; the future resolves with its receipt or raises `Rejected`. Stored is not accepted."""
        receipt: _Receipt = asyncio.get_running_loop().create_future()
        self._queue.append((event, receipt))
        self._wake.set()
        return receipt

    async def store(self, event: Event) -> Stored:
        """Append and wait for the receipt; a full log is waited out, since running work shall finish.

        Raises `Rejected` only for what can never be stored.
        """
        while True:
            try:
                return await self.append(event)
            except Rejected as error:
                if error.code != "log_full":
                    raise
                self._probe.trouble("append", error)
                await self._clock.sleep(FULL_RETRY_MS)

    def reconnected(self, last_seq: int) -> None:
        """The broker came back and its log ends at `last_seq`: receipts and sights beyond are of a log that is gone."""
        self.seen = min(self.seen, last_seq)
        self.acked = min(self.acked, last_seq)

    def wake(self) -> None:
        """`supply` may have something now."""
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while True:
                self._queue.extend((event, None) for event in self.supply())
                if not self._queue:
                    break
                await self._write_one()

    async def _write_one(self) -> None:
        """Pack what is ready into the next commit and wait for its receipt."""
        entries, payload = self._pack()
        if not entries:
            return
        started_ms = self._clock.now_ms()
        key = self._message_id()
        if self.keeps_sent:
            self._sent[key] = [event for event, _ in entries]
        try:
            stored, seen = await self._append(payload, key)
        except Rejected as error:
            # The number stays used: an earlier try of this commit may have been stored after all.
            self._sent.pop(key, None)
            self._reject(entries, error)
            return
        self.acked = stored.seq
        if stored.seq <= seen and not stored.duplicate:
            # The log was rewound (a restored broker): who has seen more than there is writes what is void. Once more.
            self.seen = stored.seq
            self._queue.extendleft(reversed(entries))
            return
        self.seen = max(self.seen, stored.seq)
        self._probe.committed(len(entries), len(payload), self._clock.now_ms() - started_ms)
        for _, receipt in entries:
            if receipt is not None and not receipt.done():
                receipt.set_result(stored)

    def sent(self, record: Record) -> list[Event] | None:
        """The events of a commit of ours, once: reading them back from the log need not decode them again."""
        return self._sent.pop(record.message_id, None) if record.subject == self._signature.subject else None

    def _message_id(self) -> str:
        nonce = hashlib.blake2b(str(self._n).encode(), key=self._signature.secret, digest_size=8).hexdigest()
        return message_id(self._signature.boot, self._n, nonce)

    async def _append(self, payload: bytes, key: str) -> tuple[Stored, int]:
        """The receipt, and what the commit says that its writer has seen.

        Repeats until there is a receipt or a refusal: an unknown fate must not be given another number.
        """
        while True:
            seen = self.seen
            try:
                return await self._log.append(self._signature.subject, payload, key, seen), seen
            except Fault as error:
                self._probe.trouble("append", error)

    def _pack(self) -> tuple[list[_Entry], bytes]:
        """The next commit's entries and payload; its number is taken only when there is something to store."""
        entries: list[_Entry] = []
        packer = Packer()
        time = rfc3339(self._clock.now_ms())
        prefix = f"{self._signature.boot}.{self._n + 1}."
        queue = self._queue
        while queue and len(entries) < EVENTS_MAX:
            entry = queue[0]
            event = entry[0]
            event.type, event.source, event.time = self._types[type(event.data)], self._signature.source, time
            event.id = prefix + str(len(entries))
            try:
                size = packer.add(event)
            except UnicodeEncodeError as error:  # what agents name and say need not be text
                queue.popleft()
                self._reject([entry], Rejected("not_text", f"an event cannot be written as UTF-8: {error}"))
                continue
            if size > MESSAGE_BYTES_MAX:
                packer.drop(size)
                queue.popleft()
                self._reject([entry], Rejected("too_large", f"an event of {size} bytes is over {MESSAGE_BYTES_MAX}"))
                continue
            if packer.is_too_deep(size):
                packer.drop(size)
                queue.popleft()
                self._reject([entry], Rejected("too_deep", f"an event is nested deeper than {DEPTH_MAX}"))
                continue
            if entries and len(packer) > BYTES_MAX:
                packer.drop(size)
                break
            queue.popleft()
            entries.append(entry)
        if entries:
            self._n += 1
        return entries, packer.payload()

    def _reject(self, entries: list[_Entry], error: Rejected) -> None:
        unheard = [event for event, receipt in entries if receipt is None]
        if unheard:
            self.dropped(unheard, error)
        for _, receipt in entries:
            if receipt is not None and not receipt.done():
                receipt.set_exception(error)
