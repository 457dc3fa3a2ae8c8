"""Reads single commits of a log, each once for all who want it at about the same time.

A commit holds the events of many tasks, so that those who resume together want the same few. What stands at a
sequence never changes; only a broker that was restored has another log, and then `forget` is called.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from swarmd.core.codec import Codec, Commit
from swarmd.core.errors import Fault
from swarmd.core.events import Event

if TYPE_CHECKING:
    from collections.abc import Iterable

    from swarmd.core.codec import Garbage
    from swarmd.core.state import Place
    from swarmd.ports import Log

#: Payload of the commits that are kept; decoded they take a few times as much.
KEPT_BYTES_MAX: Final = 8 * 1024 * 1024


class Reader:
    """Decoded commits by sequence, the last ones read are kept."""

    def __init__(self, log: Log, kept_bytes_max: int = KEPT_BYTES_MAX, codec: Codec | None = None) -> None:
        self._log, self._codec, self._kept_bytes_max = log, codec or Codec(), kept_bytes_max
        self._kept: dict[int, tuple[Commit | Garbage, int]] = {}
        self._kept_bytes = 0
        self._under_way: dict[int, asyncio.Future[None]] = {}

    async def commits(self, seqs: Iterable[int]) -> dict[int, Commit | Garbage]:
        """The commits at these sequences. Raises `Fault("missing_sequence" | ...)`."""
        found: dict[int, Commit | Garbage] = {}
        missing = sorted(set(seqs))
        while missing:
            for seq in missing:
                if seq in self._kept:
                    found[seq], _ = self._kept[seq] = self._kept.pop(seq)  # the youngest now
            missing = [seq for seq in missing if seq not in found]
            mine = [seq for seq in missing if seq not in self._under_way]
            if mine:
                found |= await self._read(mine)
            elif missing:
                await asyncio.wait({self._under_way[seq] for seq in missing})
        return found

    async def event(self, place: Place) -> Event:
        """The event at a place. Raises `Fault("log_unreadable")` when there is none."""
        seq, index = place
        commit = (await self.commits([seq]))[seq]
        event = commit.events[index] if isinstance(commit, Commit) and index < len(commit.events) else None
        if not isinstance(event, Event):
            raise Fault("log_unreadable", f"sequence {seq} of the log holds no event at {index}")
        return event

    def forget(self) -> None:
        """The log may be another one now."""
        self._kept, self._kept_bytes = {}, 0

    async def _read(self, seqs: list[int]) -> dict[int, Commit | Garbage]:
        """Read for oneself and for all who want the same; when that fails, they try for themselves."""
        done = asyncio.get_running_loop().create_future()
        self._under_way |= dict.fromkeys(seqs, done)
        try:
            records = await self._log.read(seqs)
            return {r.seq: self._keep(r.seq, self._codec.decode(r), len(r.payload)) for r in records}
        finally:
            for seq in seqs:
                del self._under_way[seq]
            done.set_result(None)

    def _keep(self, seq: int, commit: Commit | Garbage, size: int) -> Commit | Garbage:
        """Keep what was read last, in place of what was not read for the longest time."""
        if seq not in self._kept:
            self._kept_bytes += size
            self._kept[seq] = (commit, size)
        while self._kept_bytes > self._kept_bytes_max:
            _, old = self._kept.pop(next(iter(self._kept)))
            self._kept_bytes -= old
        return commit
