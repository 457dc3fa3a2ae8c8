"""A fold that follows its log: start from a snapshot, check it against the stream, then the tail.

Shared by every role that keeps a swarm's state. What the folded state is used for is its owner's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from swarmd.core import snapshot
from swarmd.core.codec import Codec, Commit, Garbage, Record, read_back
from swarmd.core.errors import Fault, Rejected
from swarmd.core.state import SwarmState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from swarmd.core.events import Event
    from swarmd.ports import Log, Probe, Snapshots


class Rewound(Exception):
    """The stream no longer says what was folded (a restored or truncated broker): fold it anew."""


async def load_state(swarm: str, log: Log, snapshots: Snapshots, probe: Probe, upto: int | None = None) -> SwarmState:
    """The newest snapshot that agrees with the stream (and is not beyond `upto`), or an empty state."""
    last = await log.last_seq()
    for payload in await snapshots.load():
        try:
            state = snapshot.decode(payload)
        except Rejected as error:
            probe.incident(f"a snapshot was not used: {error.message}; an older one or the log takes its place")
            continue
        if upto is not None and state.seq > upto:
            continue
        if state.swarm == swarm and state.seq <= last and await agrees(state, log):
            return state
        probe.incident(f"the snapshot at sequence {state.seq} does not agree with the log and was not used")
    return SwarmState(swarm)


class Folded(Protocol):
    """How far a fold is: the sequence, and the message that it found there."""

    seq: int
    message_id: str


async def agrees(state: Folded, log: Log) -> bool:
    """Whether the stream holds, at the folded sequence, the message that was folded there."""
    if state.seq == 0:
        return True
    if await log.last_seq() < state.seq:
        return False
    try:
        (record,) = await log.read([state.seq])
    except Fault as error:
        if error.code == "missing_sequence":
            return False
        raise
    return record.message_id == state.message_id


class Follower:
    """Decodes the tail of a log and hands over commits, a slice at a time.

    `probe` is told what was read; a second reader of the same log has none, or all would be told twice.
    `sent` knows the events of this process's own commits: what was encoded here need not be
    decoded again. The broker stored that very commit, since nobody else can guess its id.
    """

    def __init__(
        self,
        log: Log,
        probe: Probe | None = None,
        slice_max: int = 64,
        codec: Codec | None = None,
        sent: Callable[[Record], list[Event] | None] = lambda record: None,
    ) -> None:
        self._log, self._probe, self._slice_max = log, probe, slice_max
        self._codec, self._sent = codec or Codec(), sent
        self._bytes = 0

    async def run(self, after: int, on_commits: Callable[[list[Commit | Garbage]], Awaitable[None]]) -> None:
        """Follow from sequence `after` until cancelled."""

        async def on_records(records: list[Record]) -> None:
            for start in range(0, len(records), self._slice_max):
                commits = [self._read(record) for record in records[start : start + self._slice_max]]
                if self._probe is not None:
                    for commit in commits:
                        _note(commit, self._probe)
                await on_commits(commits)

        await self._log.follow(after, on_records)

    def take_bytes(self) -> int:
        """Bytes of payload read since this was last asked."""
        taken, self._bytes = self._bytes, 0
        return taken

    def _read(self, record: Record) -> Commit | Garbage:
        self._bytes += len(record.payload)
        events = self._sent(record)
        return self._codec.decode(record) if events is None else read_back(record, events)


def _note(commit: Commit | Garbage, probe: Probe) -> None:
    if isinstance(commit, Garbage):
        probe.incident(f"sequence {commit.seq} of the log was skipped: {commit.reason}")
        return
    probe.folded(commit.seq, len(commit.events))
    for event in commit.events:
        if isinstance(event, Garbage):
            probe.incident(f"event {event.index} at sequence {event.seq} was skipped: {event.reason}")
