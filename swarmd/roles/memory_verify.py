"""Compares a store with the log that it is made of, row by row, while both go on; and puts right what differs.

The comparison is with the log at a mark: what has changed since is on its way through the feed and is left alone. A
difference counts only when it is still there in a second look, after the feed has caught up again. Texts are compared
by their digests, in slices, so that recalls go on. Must not know who asks, or which store it is.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal

from swarmd.core import memory_fold
from swarmd.core.errors import Fault
from swarmd.passages import digest_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmd.core.codec import Commit, Garbage
    from swarmd.core.memory_wire import Job
    from swarmd.ports import HeldRow
    from swarmd.roles.memory_feed import Feed
    from swarmd.roles.memory_log import MemoryLog

Kind = Literal["missing", "extra", "differing"]

EXAMPLES_MAX: Final = 20
#: Rows that are mended at once.
MEND_ROWS: Final = 256
CATCH_UP_MS: Final = 60_000


class Verification:
    """One comparison of `feed`'s store with its log; what it finds goes into `job`."""

    def __init__(self, log: MemoryLog, feed: Feed, job: Job) -> None:
        self._log, self._feed, self._job = log, feed, job
        #: Sequence and digest of what should be in the store, as of the mark.
        self._expected: dict[str, tuple[int, bytes]] = {}

    async def run(self, repair: bool) -> None:
        """Compare, and mend what differs where `repair` says so. Raises `Fault`."""
        mark = await self._catch_up()
        self._job.total = 2 * self._log.state.live
        await self._read_log(mark)
        self._job.total = self._job.done + len(self._expected)
        suspects = await self._look(None)
        if suspects:
            await self._catch_up()
            suspects = await self._look(suspects)
        job = self._job
        kinds = list(suspects.values())
        job.missing, job.extra, job.differing = (kinds.count(kind) for kind in ("missing", "extra", "differing"))
        job.examples = [
            f"{kind} {memory[:200]} (sequence {self._expected.get(memory, (0, b''))[0]})"
            for memory, kind in list(suspects.items())[:EXAMPLES_MAX]
        ]
        job.done = job.total
        if repair:
            await self._repair(suspects)

    async def _catch_up(self) -> int:
        """Wait until the store has what the log holds now; that sequence."""
        feed, mark = self._feed, self._log.seq
        try:
            async with asyncio.timeout(CATCH_UP_MS / 1000):
                await self._log.until(lambda: feed.serves and feed.applied >= mark)
        except TimeoutError:
            why = feed.trouble or f"it has the log up to sequence {feed.applied}, {mark} is wanted"
            raise Fault("memory_behind", f"the store cannot be compared with the log: {why}") from None
        return mark

    async def _read_log(self, mark: int) -> None:
        state, expected, job = self._log.state, self._expected, self._job

        async def on_commits(commits: list[Commit | Garbage]) -> None:
            for commit in commits:
                kept, _ = memory_fold.for_store(state, [commit])
                for memory, _ in kept:
                    expected[memory.id] = (memory.seq, digest_of(memory))
                job.done += len(kept)
                await asyncio.sleep(0)

        if mark:
            await self._log.follow(0, on_commits, mark)

    async def _look(self, suspects: dict[str, Kind] | None) -> dict[str, Kind]:
        """What differs, of all memories or of the `suspects`; in the order of the log, what is left over last."""
        found: dict[str, Kind] = {}
        unseen = dict.fromkeys(self._expected if suspects is None else suspects)
        rows = 0
        async for page in self._feed.store.held():
            for row in page:
                if suspects is not None and row.id not in suspects:
                    continue
                unseen.pop(row.id, None)
                kind = self._kind(row)
                if kind is not None:
                    found[row.id] = kind
            rows += len(page)
            if suspects is None:
                self._job.rows = rows
                self._job.done = min(self._job.done + len(page), self._job.total)
            await asyncio.sleep(0)
        for memory in unseen:
            if self._is_current(memory):
                found[memory] = "missing"
        # What changed while the store was read is no difference.
        return {memory: kind for memory, kind in found.items() if kind == "extra" or self._is_current(memory)}

    def _kind(self, row: HeldRow) -> Kind | None:
        known = self._log.state.known.get(row.id)
        if known is None or known.gone_seq:
            return "extra"
        if self._is_current(row.id) and (row.seq, row.digest) != self._expected[row.id]:
            return "differing"
        return None

    def _is_current(self, memory: str) -> bool:
        """Whether the log still says of a memory what it said at the mark."""
        known, expected = self._log.state.known.get(memory), self._expected.get(memory)
        return known is not None and expected is not None and not known.gone_seq and known.place[0] == expected[0]

    async def _repair(self, suspects: dict[str, Kind]) -> None:
        wrong = [memory for memory, kind in suspects.items() if kind != "extra"]
        for at in range(0, len(wrong), MEND_ROWS):
            await self._mend(wrong[at : at + MEND_ROWS])
        extra = [memory for memory, kind in suspects.items() if kind == "extra"]
        for at in range(0, len(extra), MEND_ROWS):
            self._job.repaired += await self._feed.mend([], extra[at : at + MEND_ROWS])

    async def _mend(self, memories: Sequence[str]) -> None:
        known = self._log.state.known
        places = [known[memory].place for memory in memories]
        versions = await self._log.versions(places)
        present = [
            (memory_fold.memory_of(memory, version, known[memory]), version)
            for memory, place, version in zip(memories, places, versions, strict=True)
            if known[memory].place == place
        ]
        self._job.repaired += await self._feed.mend(present, [])
