"""Dispatch between a leader and one process of members: numbered, acknowledged, repeated.

The bus may lose, repeat and reorder. The sender keeps every batch until a heartbeat acknowledges it;
the receiver takes batches strictly in order and starts anew with each term.
"""

from __future__ import annotations

from collections import deque

import msgspec
from msgspec import Raw, Struct

from swarmd.core.wire import ChildrenDone, Dispatch, Item, Rest, Start

#: A batch ends at about so many bytes, well under what a broker carries in one message.
BATCH_BYTES_MAX = 512 * 1024


class _Sealed(Struct):
    """A dispatch whose items are not looked at yet."""

    term: int
    n: int
    seq: int
    items: list[Raw]


class _Labelled(Struct):
    op: str


_dispatches = msgspec.json.Decoder(Dispatch)
_KNOWN = frozenset(item.__struct_config__.tag for item in Item.__args__)


def read_dispatch(payload: bytes) -> tuple[Dispatch, list[str]]:
    """A dispatch, and the kinds of items in it that a leader of a later version sent and nobody here knows.

    Those are left out: a batch that was never taken would be sent again for ever, and all that follows with it.
    Raises what decoding raises for anything else that cannot be read.
    """
    try:
        return _dispatches.decode(payload), []
    except msgspec.ValidationError:
        sealed = msgspec.json.decode(payload, type=_Sealed)
        ops = [msgspec.json.decode(item, type=_Labelled).op for item in sealed.items]
        known = [
            msgspec.json.decode(item, type=Item) for item, op in zip(sealed.items, ops, strict=True) if op in _KNOWN
        ]
        return Dispatch(sealed.term, sealed.n, sealed.seq, known), [op for op in ops if op not in _KNOWN]


class Sender:
    """The leader's end, for one term; `taken` is what the receiver has already taken in it."""

    def __init__(self, term: int, taken: int) -> None:
        self._term = term
        self._n = self.acked = taken
        self._unacked: deque[tuple[Dispatch, int]] = deque()
        self.items: list[Item] = []

    def batch(self, seq: int, now_ms: int) -> Dispatch | None:
        """What is queued as one numbered batch, or None; what does not fit is left for the next call."""
        if not self.items:
            return None
        size = count = 0
        for item in self.items:
            size += _weight(item)
            if size > BATCH_BYTES_MAX and count:
                break
            count += 1
        self._n += 1
        dispatch = Dispatch(self._term, self._n, seq, self.items[:count])
        self.items = self.items[count:]
        self._unacked.append((dispatch, now_ms))
        return dispatch

    def acknowledge(self, ack: int) -> None:
        """The receiver took every batch up to `ack`; one that took more than was sent counts from there on."""
        if ack > self._n:
            self.items = self.in_flight()
            self._unacked.clear()
            self._n = ack
        self.acked = max(self.acked, ack)
        while self._unacked and self._unacked[0][0].n <= ack:
            self._unacked.popleft()

    def overdue(self, now_ms: int, after_ms: int) -> list[Dispatch]:
        """Batches to send again: all unacknowledged ones once the oldest is older than `after_ms`."""
        if not self._unacked or self._unacked[0][1] > now_ms - after_ms:
            return []
        again = [dispatch for dispatch, _ in self._unacked]
        self._unacked = deque((dispatch, now_ms) for dispatch in again)
        return again

    def in_flight(self) -> list[Item]:
        """Items that the other end may not have taken yet."""
        return [item for dispatch, _ in self._unacked for item in dispatch.items] + self.items


def _weight(item: Item) -> int:
    """About how many bytes an item takes in a batch."""
    if isinstance(item, ChildrenDone):
        return 100 + 30 * len(item.places)
    if isinstance(item, Rest):
        return 100 + 30 * (len(item.steps) + len(item.done))
    if not isinstance(item, Start):
        return 300
    return (
        600
        + len(item.input)
        + 24 * len(item.journal)
        + 60 * len(item.resolved)
        + 240 * len(item.children)
        + 80 * len(item.labels)
        + 30 * (len(item.steps) + len(item.done))
    )


class Receiver:
    """A member process's end."""

    def __init__(self) -> None:
        self.term = 0
        self.ack = 0

    def take(self, dispatch: Dispatch) -> list[Item]:
        """The items of `dispatch` if it is the next one, else nothing."""
        if dispatch.term > self.term:
            self.term, self.ack = dispatch.term, 0
        if dispatch.term != self.term or dispatch.n != self.ack + 1:
            return []
        self.ack = dispatch.n
        return dispatch.items
