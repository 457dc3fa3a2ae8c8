"""Bytes of the log to commits and back.

One stored message is one commit: a CloudEvents JSON batch, its key in the message id `<boot>.<n>`, its
writer in the subject `….log.<role>.<writer>`. What cannot be read is never an exception here: it becomes
`Garbage`, which readers count, name by sequence and skip. Old event types are lifted by `UPCASTS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar, Final, cast

import msgspec
from msgspec import Raw, Struct

from swarmd.core.events import FACTS, Event, Fact

CONTENT_TYPE: Final = "application/cloudevents-batch+json"
Upcast = Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]
#: Retired event type → a function from its data to the (type, data) that succeeded it.
UPCASTS: Final[dict[str, Upcast]] = {}

#: How deep the JSON of a commit may be nested.
DEPTH_MAX: Final = 128
_DATA_DEPTH_MAX: Final = DEPTH_MAX - 2  #: data lies within an event within a batch
TOO_DEEP: Final = f"no commit: its JSON is nested deeper than {DEPTH_MAX}"

_encoder: Final = msgspec.json.Encoder()
_NUMBER: Final = re.compile("[0-9]{1,15}")
_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ROUND: Final = bytes.maketrans(b"[]{}", b"()()")
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")


class Record(Struct, gc=False):
    """One stored message of a log stream: a commit, or whatever somebody else managed to store there.

    `at_ms` is when the broker stored it (milliseconds since 1970), the same for every reader.
    """

    seq: int
    subject: str
    message_id: str
    payload: bytes
    seen: int = 0
    at_ms: int = 0


class Garbage(Struct, gc=False):
    """Something in the log that is no event; `seq` and `index` say where."""

    seq: int
    index: int
    reason: str
    message_id: str = ""
    data: ClassVar[None] = None  #: in place of an event's fact


class Commit(Struct, gc=False):
    """One decoded record. `events` keeps the places of unreadable ones, so that indexes stay true."""

    seq: int
    role: str
    writer: str
    boot: str
    n: int
    seen: int
    message_id: str
    events: list[Event | Garbage]
    at_ms: int = 0


class _AnyEnvelope(Struct, gc=False):
    """What a reader needs of an envelope; the rest of it is information."""

    type: str
    subject: str
    data: Raw
    id: str = ""
    source: str = ""
    time: str = ""
    traceparent: str = ""


class _Read(Event, forbid_unknown_fields=True, kw_only=True):
    """An event as it comes out of the bytes, its fact still to be read: what our own writers make.

    Nothing in it can be nested but `data`. The fact takes the place of its bytes, so that there is one object an event.
    """

    subject: str
    data: Raw  # type: ignore[assignment]
    type: str
    id: str = ""
    source: str = ""
    time: str = ""
    traceparent: str = ""


def encode_event(event: Event) -> bytes:
    """One event as JSON."""
    return _encoder.encode(event)


def pack(parts: list[bytes]) -> bytes:
    """Encoded events as one CloudEvents JSON batch."""
    return b"[" + b",".join(parts) + b"]"


class Packer:
    """Packs events into one CloudEvents JSON batch; each is measured as it is added."""

    def __init__(self) -> None:
        self._buffer = bytearray(b"[")

    def __len__(self) -> int:
        return len(self._buffer)

    def add(self, event: Event) -> int:
        """Append one event; return its size in bytes. Raises `UnicodeEncodeError` for half a surrogate pair."""
        start = len(self._buffer)
        try:
            _encoder.encode_into(event, self._buffer, start)
        except UnicodeEncodeError:
            del self._buffer[start:]
            raise
        size = len(self._buffer) - start
        self._buffer += b","
        return size

    def is_too_deep(self, size: int) -> bool:
        """Whether the event added last, of this size, is nested so deep that a commit with it would be garbage."""
        return size > 2 * DEPTH_MAX and too_deep(bytes(self._buffer[-size - 1 : -1]), DEPTH_MAX - 1)

    def drop(self, size: int) -> None:
        """Take back the event added last, of this size."""
        del self._buffer[-size - 1 :]

    def payload(self) -> bytes:
        """The batch."""
        if len(self._buffer) > 1:
            self._buffer[-1:] = b"]"
            return bytes(self._buffer)
        return b"[]"


def message_id(boot: str, n: int, nonce: str = "") -> str:
    """A commit's id: its number in this life of its writer, and a `nonce` that nobody can know in advance.

    Whoever could guess the next id could store something else under it first, and the broker would
    take the writer's own commit for a repetition of that.
    """
    return f"{boot}.{n}.{nonce}" if nonce else f"{boot}.{n}"


def commit_key(text: str) -> tuple[str, int] | None:
    """(boot, n) of a message id, or None when it has another form."""
    boot, _, rest = text.partition(".")
    number = rest.partition(".")[0]
    return (boot, int(number)) if boot and _NUMBER.fullmatch(number) else None


def rfc3339(now_ms: int) -> str:
    """Milliseconds since the epoch as CloudEvents wants its `time`."""
    return datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Codec:
    """Reads the records of one family of facts (a swarm's, or a memory's)."""

    def __init__(self, facts: Mapping[str, type[Fact]] = FACTS, upcasts: Mapping[str, Upcast] = UPCASTS) -> None:
        self._envelopes = msgspec.json.Decoder(list[_Read])
        self._decoders = {name: msgspec.json.Decoder(fact).decode for name, fact in facts.items()}
        self._upcasts = upcasts

    def decode(self, record: Record) -> Commit | Garbage:
        """The commit in `record`, or `Garbage` when the message as a whole cannot be one."""
        origin = parse_origin(record.subject)
        key = commit_key(record.message_id)
        if origin is None or key is None:
            return self._garbage(record, "no commit: its subject or message id has another form")
        try:
            events = self._all_at_once(record)
            if events is None:
                return self._garbage(record, TOO_DEEP)
        except RecursionError:
            return self._garbage(record, TOO_DEEP)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            if too_deep(record.payload):
                return self._garbage(record, TOO_DEEP)
            events = self._one_by_one(record)
            if not events:
                return self._garbage(record, "no commit: the payload is not a CloudEvents JSON batch")
        return Commit(record.seq, *origin, *key, record.seen, record.message_id, events, record.at_ms)

    def _all_at_once(self, record: Record) -> list[Event | Garbage] | None:
        """The fast way; None when an event is nested too deep. Raises what decoding raises: `_one_by_one` then sorts.

        Both ways come to the same for the same bytes, whoever wrote them.
        """
        found = self._envelopes.decode(record.payload)
        events = cast("list[Event | Garbage]", found)
        decoders = self._decoders
        for index, event in enumerate(found):
            data = event.data
            if len(data) > 2 * _DATA_DEPTH_MAX and too_deep(bytes(data), _DATA_DEPTH_MAX):
                return None
            decode = decoders.get(event.type)
            if decode is None:
                events[index] = self._lift(record.seq, index, event)
            else:
                event.data = decode(data)  # type: ignore[assignment]
        return events

    @staticmethod
    def _garbage(record: Record, reason: str) -> Garbage:
        return Garbage(record.seq, -1, reason, record.message_id)

    def _one_by_one(self, record: Record) -> list[Event | Garbage]:
        """The slow way through a batch of which some part cannot be read."""
        try:
            parts = msgspec.json.decode(record.payload, type=list[Raw])
        except (msgspec.MsgspecError, RecursionError):
            return []
        events: list[Event | Garbage] = []
        for index, part in enumerate(parts):
            try:
                envelope = msgspec.json.decode(part, type=_AnyEnvelope)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                events.append(Garbage(record.seq, index, f"no CloudEvent: {error}"))
                continue
            events.append(self._lift(record.seq, index, envelope))
        return events

    def _lift(self, seq: int, index: int, envelope: _AnyEnvelope | _Read) -> Event | Garbage:
        """Decode one event of any version."""
        name, data = envelope.type, bytes(envelope.data)
        try:
            for _ in range(len(self._upcasts) + 1):
                if name in self._decoders:
                    fact = self._decoders[name](data)
                    kept = (envelope.id, envelope.source, envelope.time, envelope.traceparent)
                    return Event(envelope.subject, fact, name, *kept)
                if name not in self._upcasts:
                    return Garbage(seq, index, f"unknown event type {name[:80]!r}")
                name, lifted = self._upcasts[name](msgspec.json.decode(data))
                data = _encoder.encode(lifted)
        except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            return Garbage(seq, index, f"{name}: {error}")
        return Garbage(seq, index, f"upcasts of {envelope.type!r} never end")


def read_back(record: Record, events: Sequence[Event]) -> Commit:
    """The commit in `record`, whose events its own writer still has."""
    origin, key = parse_origin(record.subject), commit_key(record.message_id)
    assert origin is not None
    assert key is not None
    return Commit(record.seq, *origin, *key, record.seen, record.message_id, list(events), record.at_ms)


def too_deep(payload: bytes, limit: int = DEPTH_MAX) -> bool:
    """Whether JSON is nested deeper than `limit`.

    A reader that ran out of stack would read the log otherwise than its peers, so the limit is a fixed one.
    """
    if payload.count(b"[") + payload.count(b"{") <= limit:
        return False
    brackets = _STRINGS.sub(b"", payload).translate(_ROUND, _NO_BRACKETS)
    for _ in range(limit):
        shorter = brackets.replace(b"()", b"")
        if len(shorter) == len(brackets):
            break
        brackets = shorter
    return brackets.count(b"(") > 0


@lru_cache(maxsize=4096)
def parse_origin(subject: str) -> tuple[str, str] | None:
    """(role, writer) of a log subject, which the broker's permissions vouch for."""
    tokens = subject.split(".")
    if len(tokens) == 5 and tokens[2] == "log" and tokens[0] in ("swarm", "memory"):
        return tokens[3], tokens[4]
    return None
