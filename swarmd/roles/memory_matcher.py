"""Matches each new version of a memory against all watches, in the order of the log, and has the matches in the log.

Invariants: a version is matched once for a watcher, whoever matches, since the fold refuses what it has passed; after a
restart matching goes on at the fold's mark, without a gap. All watches are compared in one product; space, filter and
expiry are looked at for those alone that are near enough. A version that is replaced or dropped by the time that it
would be matched is passed over: nobody says that any more. Must not know who fetches matches.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from swarmd.core import memory_filter, memory_fold
from swarmd.core.codec import Commit
from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.events import Event
from swarmd.core.memory import Matched, Memory, Unwatched, Version, Watched, version_of
from swarmd.core.state import Place
from swarmd.roles.memory_vectors import own_vector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swarmd.core.codec import Garbage
    from swarmd.core.memory_filter import Filter
    from swarmd.core.memory_fold import Watch
    from swarmd.ports import Clock, Meter, Probe, WatchMatrix
    from swarmd.roles.memory_log import MemoryLog
    from swarmd.roles.memory_projection import Projection
    from swarmd.roles.memory_vectors import Vectors

#: Versions that are embedded at once; and cosines that are computed before others get their turn.
SLICE: Final = 256
COSINES: Final = 500_000
#: After so many commits, or versions, without a match the log is told how far matching is.
MARK_COMMITS: Final = 5_000
MARK_VERSIONS: Final = 1_000
RETRY_MS: Final = 500
SWEEP_MS: Final = 1_000
#: What is more is none, but for rounding: the log may hold vectors that did not come through the door.
COSINE_MAX: Final = 1.001
#: Digits of a cosine in the log.
DIGITS: Final = 6


class _New(Struct):
    """A version to be matched."""

    place: Place
    memory: Memory
    version: Version


class Matcher:
    """Construct; `run` while the lease is held. `moved` is called whenever `upto` has grown."""

    def __init__(
        self,
        log: MemoryLog,
        projection: Projection,
        matrix: Callable[[int], WatchMatrix],
        world: tuple[Clock, Probe, Meter],
    ) -> None:
        self.moved: Callable[[], None] = lambda: None
        self._log, self._projection, self._new_matrix = log, projection, matrix
        self._clock, self._probe, self._meter = world
        self._place: Place = (0, 0)
        self._upto = 0
        self._since_mark = 0
        self._marked = 0
        self._is_matching = False
        self._changed: dict[str, None] = {}
        self._filters: dict[str, tuple[Watched, Any]] = {}
        log.listeners.append(self._note)

    @property
    def upto(self) -> int:
        """The sequence up to which everything is matched."""
        return self._upto if self._log.state.watches else self._log.seq

    def _note(self, commit: Commit) -> None:
        """Which watches to look at again before the next version is matched."""
        if not self._is_matching:
            return
        for event in commit.events:
            if isinstance(event.data, Watched | Unwatched) and isinstance(event, Event):
                self._changed[event.subject] = None

    async def run(self) -> None:
        """Match until cancelled; with the embedder in service, whichever that is."""
        state = self._log.state
        self._place, self._upto, self._is_matching = (0, 0), 0, False
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweep())
            while True:
                await self._log.until(lambda: bool(state.watches) and self._projection.feed is not None)
                feed = self._projection.feed
                if feed is None:  # gone again
                    continue
                matching = group.create_task(self._match(feed.vectors))
                await self._log.until(lambda feed=feed: not state.watches or self._projection.feed is not feed)  # type: ignore[misc]
                matching.cancel()
                await asyncio.wait([matching])
                self._is_matching = False

    async def _match(self, vectors: Vectors) -> None:
        """Match with one embedder, from where matching is on; again after trouble."""
        while True:
            state = self._log.state
            if state.matched > self._place:
                self._place = state.matched
                self._upto = max(self._upto, state.matched[0] - 1)
            self._marked, self._since_mark = state.matched[0], 0
            self._is_matching, self._changed = True, dict.fromkeys(state.watches)
            matrix = self._new_matrix(vectors.pin.dimension)

            async def on_commits(commits: list[Commit | Garbage], matrix: WatchMatrix = matrix) -> None:
                await self._on_commits(commits, matrix, vectors)

            try:
                await self._log.follow(max(0, self._place[0] - 1), on_commits)
            except SwarmdError as error:
                if error.code == "gap":
                    raise
                self._probe.trouble("matching", error)
            await self._clock.sleep(RETRY_MS)

    async def _on_commits(self, commits: list[Commit | Garbage], matrix: WatchMatrix, vectors: Vectors) -> None:
        new: list[_New] = []
        for commit in commits:
            if isinstance(commit, Commit):
                new += self._versions(commit)
            while len(new) >= SLICE:
                await self._match_some(new[:SLICE], matrix, vectors)
                del new[:SLICE]
        if new:
            await self._match_some(new, matrix, vectors)
        last = commits[-1]
        if isinstance(last, Commit):
            self._place = max(self._place, (last.seq, len(last.events)))
        self._upto = max(self._upto, last.seq)
        if self._since_mark >= MARK_VERSIONS or last.seq - self._marked >= MARK_COMMITS:
            await self._commit([(self._log.memory, Matched(seq=self._place[0], index=self._place[1]))])
        self.moved()

    def _versions(self, commit: Commit) -> list[_New]:
        known = self._log.state.known
        new = []
        for index, event in enumerate(commit.events):
            version = version_of(event.data) if isinstance(event, Event) else None
            place = (commit.seq, index)
            if version is None or not isinstance(event, Event) or place <= self._place:
                continue
            held = known.get(event.subject)
            if held is not None and held.place == place and not held.gone_seq:
                new.append(_New(place, memory_fold.memory_of(event.subject, version, held), version))
        return new

    async def _match_some(self, new: Sequence[_New], matrix: WatchMatrix, vectors: Vectors) -> None:
        found = await vectors.of([(one.memory, one.version) for one in new])
        await self._refresh(matrix, vectors)
        step = max(1, COSINES // max(1, len(self._log.state.watches)))
        events: list[tuple[str, Matched]] = []
        for at in range(0, len(new), step):
            for one, near in zip(new[at : at + step], matrix.nearest(found[at : at + step]), strict=True):
                watchers = self._concerned(one.memory, near) if near else None
                if watchers:
                    events.append((one.memory.id, Matched(seq=one.place[0], index=one.place[1], watchers=watchers)))
            if at + step < len(new):
                await asyncio.sleep(0)
        self._since_mark += len(new)
        if events:
            await self._commit(events)
            self._meter.count(
                "swarmd_matches_total", self._log.memory, by=sum(len(fact.watchers) for _, fact in events)
            )
        self._place = max(self._place, new[-1].place)

    async def _commit(self, events: list[tuple[str, Matched]]) -> None:
        last = events[-1][1]
        await self._log.commit(*events)
        if self._log.state.matched < (last.seq, last.index):
            raise Fault("not_accepted", "the memory's log did not accept what was matched: it is matched again")
        self._marked, self._since_mark = self._log.seq, 0

    async def _refresh(self, matrix: WatchMatrix, vectors: Vectors) -> None:
        """Bring the matrix up to what is watched now."""
        while self._changed:
            changed, self._changed = list(self._changed), {}
            held = self._log.state.watches
            texts: list[tuple[str, str]] = []
            for watcher in changed:
                watch = held.get(watcher)
                own = None if watch is None else own_vector(watch.fact, vectors.pin)
                if watch is not None and own is not None:
                    matrix.put(watcher, own, watch.fact.threshold)
                elif watch is not None and watch.fact.text:
                    texts.append((watcher, watch.fact.text))
                else:
                    matrix.remove(watcher)
                    self._filters.pop(watcher, None)
                    if watch is not None:
                        self._probe.incident(
                            f"watch {watcher} matches nothing: its vector is made by {watch.fact.embedder}, "
                            f"memories are embedded by {vectors.pin.embedder} now"
                        )
            for (watcher, _), vector in zip(texts, await vectors.made(texts), strict=True):
                if (watch := held.get(watcher)) is not None:
                    matrix.put(watcher, vector, watch.fact.threshold)

    def _concerned(self, memory: Memory, near: Sequence[tuple[str, float]]) -> dict[str, float]:
        """Those of the near watches that may see the memory and want it."""
        now = self._clock.now_ms()
        if 0 < memory.expires_at_ms <= now:
            return {}
        held = self._log.state.watches
        return {
            watcher: round(cosine, DIGITS)
            for watcher, cosine in sorted(near)
            if abs(cosine) <= COSINE_MAX
            and (watch := held.get(watcher)) is not None
            and self._wants(watcher, watch, memory, now)
        }

    def _wants(self, watcher: str, watch: Watch, memory: Memory, now_ms: int) -> bool:
        fact = watch.fact
        if watch.seq >= memory.seq or 0 < fact.expires_at_ms <= now_ms:
            return False
        if fact.spaces and memory.space not in fact.spaces:
            return False
        if not fact.filter:
            return True
        read = self._filters.get(watcher)
        if read is None or read[0] is not fact:
            read = self._filters[watcher] = (fact, _read(fact.filter))
        return memory_filter.matches(read[1], memory)

    async def _sweep(self) -> None:
        """End watches that have expired."""
        while True:
            await self._clock.sleep(SWEEP_MS)
            now, watches = self._clock.now_ms(), self._log.state.watches
            expired = [
                (watcher, Unwatched(reason="expired", since=watch.seq))
                for watcher, watch in watches.items()
                if 0 < watch.fact.expires_at_ms <= now
            ]
            self._meter.gauge("swarmd_watches", len(watches) - len(expired), self._log.memory)
            self._meter.gauge("swarmd_unmatched_messages", self._log.seq - self.upto, self._log.memory)
            try:
                await self._log.commit(*expired)
            except SwarmdError as error:
                self._probe.trouble("expired watches", error)


def _read(text: str) -> Filter:
    """The filter of a watch. One that nobody could have asked for lets nothing through, and holds no other watch up."""
    try:
        return memory_filter.parse(text)
    except Rejected:
        return memory_filter.Or(())
