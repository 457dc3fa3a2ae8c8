"""Keeps one store up with a memory's log: read, embed, write, each a bounded number of rows ahead of the next.

Invariants: one writer, which moves the store's mark after its rows; batches are whatever is ready, up to a bound, so a
lone memory is searchable at once and a long log goes in large batches. The store is written only while the lease is
fresh. After trouble it is opened again and fed from its own mark. Must not know who asks, or which store it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from swarmd.core import memory_fold
from swarmd.core.errors import Fault, Rejected
from swarmd.core.memory import Memory, Version
from swarmd.ports import Clock, Meter, Probe, Row

if TYPE_CHECKING:
    from swarmd.core.codec import Commit, Garbage
    from swarmd.core.memory_fold import MemoryState
    from swarmd.ports import VectorStore
    from swarmd.roles.memory_log import MemoryLog
    from swarmd.roles.memory_vectors import Vectors

RETRY_MS: Final = 500
RETRY_MS_MAX: Final = 5_000
#: A batch takes parts until it has as many rows, or as much text: several of a store's own requests, since it makes one
#: ready while the other is on its way.
BATCH_ROWS: Final = 4_000
BATCH_CHARS: Final = 4_000_000
#: Rows that are read ahead of the embedder, and embedded ahead of the store.
AHEAD_ROWS: Final = 8_000
#: Commits that concern no store are marked in it now and then only.
MARK_COMMITS: Final = 5_000
PROGRESS_MS: Final = 5_000
#: What a store says that was filled by something else, or in another form: it is filled anew.
FOREIGN: Final = ("embedder_mismatch", "format_mismatch")
#: So often in a row a store must be called damaged before it is filled anew: it may only be slow to load.
DAMAGED_TRIES: Final = 3


class _Part(Struct):
    """What commits up to `upto` mean for the store; `fresh` says that no row's id can be in it yet."""

    versions: list[tuple[Memory, Version]]
    gone: list[str]
    upto: int
    fresh: bool
    vectors: list[Sequence[float]] = field(default_factory=list)

    @property
    def weight(self) -> int:
        return max(1, len(self.versions) + len(self.gone))


class _Parts:
    """Parts on their way from one stage to the next: bounded, and merged when they are taken."""

    def __init__(self) -> None:
        self._parts: deque[_Part] = deque()
        self._weight = 0
        self._some, self._room = asyncio.Event(), asyncio.Event()

    async def put(self, part: _Part) -> None:
        """Wait for room, then add a part."""
        while self._weight >= AHEAD_ROWS:
            self._room.clear()
            await self._room.wait()
        self._parts.append(part)
        self._weight += part.weight
        self._some.set()

    async def take(self) -> _Part:
        """Wait for a part; it, and all that fit into one batch with it."""
        while not self._parts:
            self._some.clear()
            await self._some.wait()
        batch = self._next()
        chars = sum(len(memory.text) for memory, _ in batch.versions)
        while self._parts and batch.weight < BATCH_ROWS and chars < BATCH_CHARS:
            part = self._next()
            chars += sum(len(memory.text) for memory, _ in part.versions)
            batch.versions += part.versions
            batch.vectors += part.vectors
            batch.gone += part.gone
            batch.upto, batch.fresh = part.upto, batch.fresh and part.fresh
        self._room.set()
        return batch

    def _next(self) -> _Part:
        part = self._parts.popleft()
        self._weight -= part.weight
        return part


class FeedWorld(Struct, frozen=True):
    """What a feed needs of the world; `may_write` says that the lease is fresh."""

    may_write: Callable[[], bool]
    clock: Clock
    probe: Probe
    meter: Meter


class Feed:
    """One store and its way up the log; `run` until cancelled, or until `end` (a view of the past) is in it."""

    def __init__(self, name: str, log: MemoryLog, store: VectorStore, vectors: Vectors, world: FeedWorld) -> None:
        self.name, self.store, self.vectors = name, store, vectors
        #: The sequence up to which the log is in the store, and where the log ended when the store was opened.
        self.applied = self.target = 0
        self.is_open = False
        self.rows = 0
        self.searching = 0
        self.told: Callable[[], None] = lambda: None
        self._log, self._world = log, world
        self._state: MemoryState = log.state
        self._end = 0
        self._why = "it is being opened"
        self._writing = asyncio.Lock()
        self._interrupt: asyncio.Timeout | None = None
        self._foreign = self._marked = 0
        self._was_open = False
        self._told_ms = self._damaged = 0

    def of_the_past(self, state: MemoryState) -> Feed:
        """Feed what `state` knows, and end there."""
        self._state, self._end = state, state.seq
        return self

    @property
    def trouble(self) -> str:
        """Why the store cannot be asked, or falls behind."""
        return f"the vector store cannot be used: {self._why}" if self._why else self.vectors.trouble

    @property
    def serves(self) -> bool:
        """Whether the store is open and holds what the log held then: one that is being filled has too little."""
        return self.is_open and self.applied >= self.target

    def lost(self) -> None:
        """Somebody found the store gone: open it again, and fill it."""
        if self.is_open and self._interrupt is not None:
            self._down("it was lost and is being filled again")
            self._interrupt.reschedule(0)

    async def run(self) -> None:
        """Feed until cancelled, or until the end. Raises `Fault("gap")` when the log is not whole."""
        pause_ms, is_done = RETRY_MS, False
        try:
            while not is_done:
                try:
                    await self._open()
                    pause_ms = RETRY_MS
                    async with asyncio.timeout(None) as self._interrupt:
                        await self._pump()
                    is_done = True
                    continue
                except TimeoutError:
                    self._down("it was lost and is being filled again")
                    self._world.probe.incident(f"store {self.name} was lost: filling it again")
                except (Fault, Rejected) as error:
                    if error.code == "gap":
                        raise
                    self._down(error.message)
                    self._world.probe.trouble(f"memory store {self.name}", error)
                await self._world.clock.sleep(pause_ms)
                pause_ms = min(2 * pause_ms, RETRY_MS_MAX)
        finally:
            if not is_done:
                self._down("another node serves it")

    def _down(self, why: str) -> None:
        self.is_open, self._why = False, why

    async def _open(self) -> None:
        world = self._world
        try:
            applied = await self.store.open()
        except (Fault, Rejected) as error:
            self._damaged = self._damaged + 1 if error.code == "memory_damaged" else 0
            if error.code not in FOREIGN and self._damaged < DAMAGED_TRIES:
                raise
            world.probe.incident(f"store {self.name} is filled anew: {error.message}")
            applied = await self._anew()
        self._damaged = 0
        last = self._end or await self._log.last_seq()
        if applied > last:
            world.probe.incident(
                f"store {self.name} claims sequence {applied}, its log ends at {last}: it is filled anew"
            )
            applied = await self._anew()
        # A predecessor may have written rows beyond its mark, but of nothing that came into the log after this. In an
        # empty store there are none, unless a write of ours timed out and is still under way.
        is_new = not self._was_open and not applied and not await self.store.count()
        self._foreign, self._was_open = 0 if is_new else await self._log.last_seq(), True
        self.applied = self._marked = applied
        self.target = last
        self.is_open, self._why = True, ""
        self._told_ms = world.clock.now_ms()
        if applied < last:
            world.probe.notice(f"filling store {self.name}: {applied} of {last} commits")
        self._moved()

    async def _anew(self) -> int:
        self._check_lease()
        await self.store.drop()
        return await self.store.open()

    def _check_lease(self) -> None:
        if not self._world.may_write():
            raise Fault("lease_unsure", "the lease could not be renewed: another node may write the store")

    async def _pump(self) -> None:
        """Read, embed and write at once, until the end is in the store, or something fails."""
        read, ready = _Parts(), _Parts()
        if self._end and self.applied >= self._end:
            return
        try:
            async with asyncio.TaskGroup() as group:
                stages = [group.create_task(self._read(read)), group.create_task(self._embed(read, ready))]
                await self._write(ready)
                for stage in stages:
                    stage.cancel()
        except BaseExceptionGroup as failed:
            raise _first(failed) from None

    async def _read(self, read: _Parts) -> None:
        state = self._state

        async def on_commits(commits: list[Commit | Garbage]) -> None:
            for commit in commits:
                kept, gone = memory_fold.for_store(state, [commit])
                fresh = all(self._is_fresh(memory.id) for memory, _ in kept)
                await read.put(_Part(kept, gone, commit.seq, fresh))
                if len(kept) > 64:
                    await asyncio.sleep(0)  # a large commit takes milliseconds: others get their turn

        await self._log.follow(self.applied, on_commits, self._end)

    def _is_fresh(self, memory: str) -> bool:
        known = self._state.known[memory]
        return known.first == known.place and known.first[0] > self._foreign

    async def _embed(self, read: _Parts, ready: _Parts) -> None:
        while True:
            part = await read.take()
            part.vectors = await self.vectors.of(part.versions)
            await ready.put(part)

    async def _write(self, ready: _Parts) -> None:
        while True:
            part = await ready.take()
            # Of two versions of one memory the later one holds.
            rows = {
                memory.id: Row(memory, vector) for (memory, _), vector in zip(part.versions, part.vectors, strict=True)
            }
            async with self._writing:
                if rows or part.gone or part.upto - self._marked >= MARK_COMMITS or part.upto == self._end:
                    await self._apply(list(rows.values()), part.gone, part.upto, part.fresh)
                    self._marked = part.upto
                self.applied = part.upto
            self.rows += len(rows)
            self._progress(len(rows))
            if self._end and self.applied >= self._end:
                return

    async def _apply(self, rows: list[Row], gone: list[str], upto: int, fresh: bool) -> int:
        """Write; a row that the store refuses does not keep the others out. How many it took."""
        self._check_lease()
        try:
            await self.store.apply(rows, gone, upto, fresh=fresh)
            return len(rows)
        except Rejected as error:
            refused = error
        if not rows:
            raise Fault("store_refuses", refused.message)
        if len(rows) == 1:
            await self._apply([], gone, upto, False)
            self._world.meter.count("swarmd_memory_refused_total", self._log.memory)
            self._world.probe.incident(f"memory {rows[0].memory.id} cannot be searched: {refused.message}")
            return 0
        half = len(rows) // 2
        taken = await self._apply(rows[:half], [], self._marked, False)
        return taken + await self._apply(rows[half:], gone, upto, False)

    async def mend(self, versions: Sequence[tuple[Memory, Version]], gone: Sequence[str]) -> int:
        """Put present versions in place of whatever the store says of them, and take out what is gone; how many.

        What has changed by now is left alone: it is on its way through the feed. Raises `Fault`.
        """
        vectors = await self.vectors.of(versions)
        async with self._writing:
            if not self.is_open:
                raise Fault("memory_behind", self.trouble)
            rows = [
                Row(memory, vector)
                for (memory, _), vector in zip(versions, vectors, strict=True)
                if self._is_present(memory)
            ]
            left = [memory for memory in gone if self._is_gone(memory)]
            taken = await self._apply(rows, left, self._marked, False)
        return taken + len(left)

    def _is_present(self, memory: Memory) -> bool:
        known = self._state.known.get(memory.id)
        return known is not None and not known.gone_seq and known.place[0] == memory.seq <= self.applied

    def _is_gone(self, memory: str) -> bool:
        known = self._state.known.get(memory)
        return known is None or known.gone_seq > 0

    def _progress(self, rows: int) -> None:
        world = self._world
        world.meter.count("swarmd_remembered_total", self._log.memory, by=rows)
        now = world.clock.now_ms()
        if self.applied < self.target and now - self._told_ms >= PROGRESS_MS:
            self._told_ms = now
            world.probe.notice(f"filling store {self.name}: {self.applied} of {self.target} commits")
        self._moved()

    def _moved(self) -> None:
        self.told()
        self._log.moved()


def _first(error: BaseException) -> BaseException:
    """What a group of failures began with."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
