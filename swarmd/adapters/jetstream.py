"""Log on a JetStream stream: appending commits, reading them by sequence, following them.

Receipts go through a router of our own (the library's futures get lost over a reconnect). Following is a
pull consumer with prefetch and no acknowledgements, made anew from the next sequence whenever anything
is odd: silence, a reconnect, a hole. A hole that stays is a `Fault("gap")`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import msgspec

from swarmd.adapters.nats_bus import REPEATED, ApiRefused, NatsBus, parse_headers, patiently
from swarmd.adapters.streams import stream_state
from swarmd.core.codec import CONTENT_TYPE, Record
from swarmd.core.errors import Fault, Rejected
from swarmd.ports import Stored

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from nats.aio.msg import Msg

SEEN_HEADER: Final = "Swarmd-Seen"
_MSG_ID: Final = "Nats-Msg-Id"
_STREAM_HEADER: Final = "Nats-Stream"
_ACK: Final = "$JS.ACK."
#: JetStream's err_code for a stream at its size limit, a message larger than the stream takes, and one it has not.
_STORE_FAILED, _TOO_LARGE, _NO_MESSAGE = 10077, 10054, 10037
RECEIPT_TIMEOUT_MS: Final = 2_000
APPEND_TIMEOUT_MS: Final = 60_000
PREFETCH: Final = 2_000
#: A pull ends with so many bytes. Two may be under way, and a broker hangs up on who has 64 MiB yet to read.
PREFETCH_BYTES: Final = 16 * 1024 * 1024
IDLE_HEARTBEAT_S: Final = 1
#: How long a consumer may take to be made. A request that came while a cluster elected is never answered.
OPEN_TIMEOUT_MS: Final = 1_000
READ_PARALLEL: Final = 64

_PENDING: Final = "Nats-Pending-Messages"


class JetStreamLog:
    """The Log of one stream, over one connection."""

    def __init__(self, bus: NatsBus, stream: str) -> None:
        self._bus, self._stream = bus, stream
        self._receipts: dict[str, asyncio.Future[Msg]] = {}
        self._tails: set[_Tail] = set()
        self._numbers = count(1)
        self._inbox = ""

    # --- appending ---

    async def append(self, subject: str, payload: bytes, message_id: str, seen: int) -> Stored:
        """Store one commit, repeating it under the same message id until there is a receipt."""
        headers = {_MSG_ID: message_id, SEEN_HEADER: str(seen), "content-type": CONTENT_TYPE}
        pause_s = 0.05
        try:
            async with asyncio.timeout(APPEND_TIMEOUT_MS / 1000):
                while True:
                    try:
                        return await self._append_once(subject, payload, headers)
                    except Fault:
                        await asyncio.sleep(pause_s)
                        pause_s = min(pause_s * 2, 1.0)
        except TimeoutError:
            raise Fault("no_receipt", f"stream {self._stream} gave no receipt within {APPEND_TIMEOUT_MS} ms") from None

    async def _append_once(self, subject: str, payload: bytes, headers: dict[str, str]) -> Stored:
        if not self._inbox:
            self._inbox = self._bus.inbox()
            await self._bus.subscribe_raw(f"{self._inbox}.*", self._on_receipt)
        if not self._bus.connected:
            raise Fault("disconnected", "the broker cannot be reached")
        key = f"{self._inbox}.{next(self._numbers)}"
        receipt: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._receipts[key] = receipt
        try:
            await self._bus.publish_raw(subject, payload, key, headers)
            async with asyncio.timeout(RECEIPT_TIMEOUT_MS / 1000):
                message = await receipt
        except TimeoutError:
            raise Fault("no_receipt", "no receipt in time") from None
        finally:
            del self._receipts[key]
        return self._read_receipt(message, len(payload))

    def _on_receipt(self, message: Msg) -> None:
        receipt = self._receipts.get(message.subject)
        if receipt is not None and not receipt.done():
            receipt.set_result(message)

    def _read_receipt(self, message: Msg, size: int) -> Stored:
        if message.headers and message.headers.get("Status") == "503":
            raise Fault("no_responders", f"stream {self._stream} has no leader")
        answer = msgspec.json.decode(message.data)
        error = answer.get("error")
        if not error:
            return Stored(answer["seq"], answer.get("duplicate", False))
        code = error.get("err_code", 0)
        if code == _STORE_FAILED:
            raise Rejected("log_full", f"stream {self._stream} is full: {error.get('description')}")
        if code == _TOO_LARGE:
            raise Rejected("too_large", f"a commit of {size} bytes is over the limit of stream {self._stream}")
        raise Fault("broker_error", f"stream {self._stream}: {error.get('description')} ({code})")

    def disconnected(self) -> None:
        """The connection broke: receipts in flight and consumers are lost, so let both begin anew at once."""
        for tail in self._tails:
            tail.give_up()
        for receipt in self._receipts.values():
            if not receipt.done():
                receipt.set_exception(Fault("disconnected", "the connection broke"))

    # --- reading ---

    async def last_seq(self) -> int:
        return int((await stream_state(self._bus, self._stream))["last_seq"])

    async def read(self, seqs: Sequence[int]) -> list[Record]:
        """The records at `seqs`; a replica that lacks one is overruled by the stream's leader."""
        found: dict[int, Record] = {}
        wanted = sorted(set(seqs))
        for start in range(0, len(wanted), READ_PARALLEL):
            chunk = wanted[start : start + READ_PARALLEL]
            for record in await asyncio.gather(*(patiently(self._read_one, seq) for seq in chunk)):
                found[record.seq] = record
        return [found[seq] for seq in seqs]

    async def _read_one(self, seq: int) -> Record:
        body = msgspec.json.encode({"seq": seq})
        message = await self._bus.request_raw(f"$JS.API.DIRECT.GET.{self._stream}", body, 5_000)
        if _is_direct(message):
            return _direct_record(message)
        try:
            answer = await self._bus.api(f"STREAM.MSG.GET.{self._stream}", body)
        except ApiRefused as error:
            if error.code != _NO_MESSAGE:  # a broker that cannot say now has not said that it holds nothing
                raise Fault("broker_error", f"stream {self._stream}, sequence {seq}: {error}") from None
            raise Fault("missing_sequence", f"stream {self._stream} no longer holds sequence {seq}") from None
        return _stored_record(answer["message"])

    async def scan(self, after: int, upto: int) -> AsyncIterator[list[Record]]:
        """Records after `after` up to `upto`, in batches, by direct reads: needs no right to make consumers."""
        position = after
        while position < upto:
            batch = await self._scan_batch(position + 1)
            batch = [record for record in batch if record.seq <= upto]
            if not batch:  # the replica that was asked may lack it: its stream's leader knows
                batch = [await self._next_held(position + 1)]
            try:
                _check_contiguous(self._stream, position, batch)
            except _Broken:
                raise Fault("gap", f"stream {self._stream} does not hold sequence {position + 1}") from None
            position = batch[-1].seq
            yield batch

    async def _next_held(self, seq: int) -> Record:
        try:
            return await patiently(self._read_one, seq)
        except Fault as error:
            if error.code != "missing_sequence":
                raise
            raise Fault("gap", f"stream {self._stream} holds nothing at sequence {seq}") from None

    async def _scan_batch(self, first: int) -> list[Record]:
        inbox, records = self._bus.inbox(), list[Record]()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def take(message: Msg) -> None:
            if _is_direct(message):
                records.append(_direct_record(message))
            elif not done.done():
                done.set_result(None)

        subscription = await self._bus.subscribe_raw(inbox, take)
        try:
            body = msgspec.json.encode({"seq": first, "batch": 500, "max_bytes": 8 * 1024 * 1024})
            await self._bus.publish_raw(f"$JS.API.DIRECT.GET.{self._stream}", body, inbox, None)
            async with asyncio.timeout(10):
                await done
        except TimeoutError:
            raise Fault("timeout", f"stream {self._stream} did not answer a read within 10 s") from None
        finally:
            await subscription.close()
        return records

    async def purge(self, upto: int) -> None:
        """Drop every record up to sequence `upto` (the intake's leader and a log's archiver may)."""
        try:
            await self._bus.api(f"STREAM.PURGE.{self._stream}", msgspec.json.encode({"seq": upto + 1}))
        except ApiRefused as error:
            raise Fault("broker_error", f"stream {self._stream}: {error}") from None

    # --- following ---

    async def follow(self, after: int, on_records: Callable[[list[Record]], Awaitable[None]]) -> None:
        """Hand over every record after `after`, in order; runs until cancelled."""
        position = after
        while True:
            tail = _Tail(self._bus, self._stream)
            self._tails.add(tail)
            try:
                await tail.open(position)
                while True:
                    batch = await tail.next_batch()
                    _check_contiguous(self._stream, position, batch)
                    position = batch[-1].seq
                    await on_records(batch)
            except _Broken as broken:
                if broken.hole:
                    await self._check_held(position + 1)
                await asyncio.sleep(0.05)
            finally:
                self._tails.discard(tail)
                await tail.close()

    async def _check_held(self, seq: int) -> None:
        try:
            first = int((await stream_state(self._bus, self._stream))["first_seq"])
        except Fault:
            return  # the broker is away: the next consumer is asked instead
        if first > seq:
            raise Fault("gap", f"stream {self._stream} starts at {first}, sequence {seq} was purged")


class _Broken(Exception):
    """This consumer is of no more use; `hole` when a sequence was skipped."""

    def __init__(self, hole: bool = False) -> None:
        super().__init__()
        self.hole = hole


def _check_contiguous(stream: str, position: int, batch: list[Record]) -> None:
    if batch[0].seq != position + 1 or batch[-1].seq - batch[0].seq != len(batch) - 1:
        raise _Broken(hole=True)


class _Tail:
    """One pull consumer and its prefetch."""

    def __init__(self, bus: NatsBus, stream: str) -> None:
        self._bus, self._stream = bus, stream
        self._inbox = bus.inbox()
        self._name = self._inbox.rsplit(".", 1)[-1]
        self._records: deque[Record] = deque()
        self._arrived = asyncio.Event()
        self._broken = False
        self._wanted = 0
        self._subscription: Any = None

    async def open(self, after: int) -> None:
        config = {
            "name": self._name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after + 1,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 30_000_000_000,
            "max_waiting": 16,
        }
        body = msgspec.json.encode({"stream_name": self._stream, "config": config, "action": "create"})
        self._subscription = await self._bus.subscribe_raw(self._inbox, self._take)
        try:
            await self._bus.api(f"CONSUMER.CREATE.{self._stream}.{self._name}", body, OPEN_TIMEOUT_MS)
        except Fault:
            await asyncio.sleep(0.2)
            raise _Broken from None
        except ApiRefused:
            await asyncio.sleep(0.2)
            raise _Broken(hole=True) from None
        await self._pull(PREFETCH)

    async def _pull(self, batch: int) -> None:
        self._wanted += batch
        wanted = {"batch": batch, "max_bytes": PREFETCH_BYTES, "expires": 60_000_000_000}
        body = msgspec.json.encode({**wanted, "idle_heartbeat": IDLE_HEARTBEAT_S * 1_000_000_000})
        try:
            await self._bus.publish_raw(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}", body, self._inbox, None
            )
        except Fault:
            raise _Broken from None

    def _take(self, message: Msg) -> None:
        headers = message.headers
        if not message.reply.startswith(_ACK):  # a stored message may have any header, but never this reply subject
            status = headers.get("Status") if headers else None
            # A pull request ran out of time, or had its bytes, with so much of it unserved.
            if headers and (status == "408" or (status == "409" and _PENDING in headers)):
                self._wanted -= int(headers.get(_PENDING, "0"))
            elif status != "100":
                self._broken = True
            self._arrived.set()
            return
        fields = message.reply.split(".", 8)  # …, stream sequence, consumer sequence, nanoseconds since 1970, pending
        is_copy = headers is not None and _STREAM_HEADER in headers
        place = (int(fields[5]), int(fields[7]) // 1_000_000)
        self._records.append(_record(place, message.subject, headers, message.data, is_copy))
        self._arrived.set()

    def give_up(self) -> None:
        """The broker forgets a consumer when it restarts; nothing more is to be expected from this one."""
        self._broken = True
        self._arrived.set()

    async def next_batch(self) -> list[Record]:
        """Everything that has arrived, at least one record. Raises `_Broken` after too long a silence."""
        while not self._records:
            if self._broken:
                raise _Broken
            await self._refill()
            self._arrived.clear()
            try:
                async with asyncio.timeout(IDLE_HEARTBEAT_S * 2.5):
                    await self._arrived.wait()
            except TimeoutError:
                raise _Broken from None
        batch = list(self._records)
        self._records.clear()
        self._wanted -= len(batch)
        await self._refill()
        return batch

    async def _refill(self) -> None:
        if self._wanted < PREFETCH // 2 and not self._broken:
            await self._pull(PREFETCH)

    async def close(self) -> None:
        if self._subscription is not None:
            await self._subscription.close()
            self._subscription = None


def _record(
    place: tuple[int, int], subject: str, headers: dict[str, str] | None, payload: bytes, is_copy: bool
) -> Record:
    """`place` is sequence and time. `is_copy`: the broker made it of another stored message, so it is nobody's."""
    seq, at_ms = place
    if not headers or is_copy:
        return Record(seq, subject, "", payload, 0, at_ms)
    seen = headers.get(SEEN_HEADER, "")
    sound = len(seen) < 16 and seen.isascii() and seen.isdecimal()
    return Record(seq, subject, headers.get(_MSG_ID, ""), payload, int(seen) if sound else 0, at_ms)


def _stored_at_ms(text: str) -> int:
    """A time as the broker states it (RFC 3339 with up to nine decimals), in whole milliseconds like everywhere."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 1000 + int(fraction[:3].ljust(3, "0"))


def _is_direct(message: Msg) -> bool:
    """Whether this is a stored message, read directly: the broker has added where it is stored."""
    headers = message.headers
    return headers is not None and "Nats-Sequence" in headers and "Nats-Subject" in headers


def _direct_record(message: Msg) -> Record:
    headers = message.headers or {}
    is_copy = REPEATED.format(_STREAM_HEADER) in headers
    place = (int(headers["Nats-Sequence"]), _stored_at_ms(headers["Nats-Time-Stamp"]))
    return _record(place, headers["Nats-Subject"], headers, message.data, is_copy)


def _stored_record(message: dict[str, Any]) -> Record:
    import base64

    headers = parse_headers(base64.b64decode(message.get("hdrs", "")))
    payload = base64.b64decode(message.get("data", ""))
    place = (message["seq"], _stored_at_ms(message["time"]))
    return _record(place, message["subject"], headers, payload, _STREAM_HEADER in headers)
