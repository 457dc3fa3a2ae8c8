"""A memory's log as its node uses it: the fold that follows it, the writer that appends to it, and what it says where.

What is handed in is answered once the fold has seen it, by a callback or a wait: stored is not accepted, so whoever
asked looks at the state then. The newest commits stay at hand, decoded, for whoever follows the same log closely.
Must not know the bus, the store, or what is asked for.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from swarmd.core import memory_fold, subjects
from swarmd.core.codec import Codec, Commit, Garbage
from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.events import Event, Fact
from swarmd.core.memory import MEMORY_FACTS, MEMORY_TYPES, How, Read, Version, version_of
from swarmd.core.memory_fold import MEMORY_ROLE, MemoryState
from swarmd.ports import Clock, Entropy, Log, Probe
from swarmd.roles.reading import Reader
from swarmd.roles.replica import Follower, Rewound, agrees
from swarmd.roles.writer import LogWriter, sign

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from swarmd.core.memory_spaces import Caller
    from swarmd.core.state import Place

#: Warned at this share of what the log may hold; beyond the other, only what ends or reads memories is still written.
WARN_SHARE: Final = 0.8
FULL_SHARE: Final = 0.9
#: Commits that are folded, or handed to a follower, before others get their turn.
SLICE: Final = 64
#: Payload of the newest commits that stay at hand while somebody follows.
RECENT_BYTES_MAX: Final = 32 * 1024 * 1024


class LogPorts(Struct, frozen=True):
    """What a memory's log needs of the world."""

    log: Log
    clock: Clock
    entropy: Entropy
    probe: Probe


class _CaughtUp(Exception):
    """The newest commits are at hand from here on."""


class MemoryLog:
    """Construct and `run`; `state` is what the log says up to `seq`."""

    def __init__(self, memory: str, name: str, boot: str, ports: LogPorts) -> None:
        self.memory = memory
        self.state = MemoryState(memory)
        #: Called with each commit right after it was folded; must return at once.
        self.listeners: list[Callable[[Commit], None]] = []
        self._ports, self._boot = ports, boot
        signature = sign(
            subjects.memory_log(memory, MEMORY_ROLE, name), f"/{memory}/memory/{name}", boot, ports.entropy
        )
        self._writer = LogWriter(ports.log, signature, ports.clock, ports.probe, MEMORY_TYPES)
        self._writer.keeps_sent = True
        self._writer.supply = self._take_offered
        self._writer.dropped = self._dropped
        self._codec = Codec(MEMORY_FACTS, {})
        self._follower = Follower(ports.log, ports.probe, SLICE, self._codec, self._writer.sent)
        self._reader = Reader(ports.log, codec=self._codec)
        self._offered: list[Event] = []
        self._unfolded: dict[int, tuple[Event, Callable[[SwarmdError | None], None]]] = {}
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._refusing = ""
        self._is_warned = False
        self._followers = 0
        self._recent: dict[int, tuple[Commit | Garbage, int]] = {}
        self._recent_bytes = 0

    @property
    def seq(self) -> int:
        """The sequence up to which the log is folded."""
        return self.state.seq

    @property
    def backlog(self) -> int:
        """Events that were handed in and are not folded yet."""
        return len(self._unfolded)

    async def last_seq(self) -> int:
        """Where the log ends at the broker."""
        return await self._ports.log.last_seq()

    async def run(self) -> None:
        """Fold and write until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follower.run(self.state.seq, self._on_commits))
            group.create_task(self._writer.run())

    async def reconnected(self) -> None:
        """The broker came back: the log must still be the one that was folded. Raises `Rewound`."""
        state = self.state
        if not await agrees(MemoryState(self.memory, state.seq, state.message_id), self._ports.log):
            raise Rewound(f"the log of memory {self.memory} at sequence {state.seq} is not what was folded")

    # --- writing ---

    def holds(self, size: int, size_max: int) -> None:
        """The log has this many bytes now, and may have `size_max` (0 or less: any)."""
        share = size / size_max if size_max > 0 else 0.0
        told = f"the log of memory {self.memory} holds {size} of {size_max} bytes"
        self._refusing = f"{told}: raise [memory] log_bytes_max and restart its node" if share >= FULL_SHARE else ""
        if share >= WARN_SHARE and not self._is_warned:
            self._ports.probe.incident(told)
        self._is_warned = share >= WARN_SHARE

    def check_room(self) -> None:
        """Before what makes a memory larger: the rest of a log is for revoking and reading what there is.

        Raises `Rejected("log_full")`.
        """
        if self._refusing:
            raise Rejected("log_full", self._refusing)

    def offer(self, subject: str, fact: Fact, folded: Callable[[SwarmdError | None], None]) -> None:
        """Append one event; `folded` is called once it is folded (None), or with why it cannot be stored."""
        event = Event(subject, fact)
        self._unfolded[id(event)] = (event, folded)
        self._offered.append(event)
        self._writer.wake()

    async def commit(self, *events: tuple[str, Fact]) -> int:
        """Append events (subject, fact), in this order, and wait until the fold has seen all; where it saw the last.

        Whether they counted is in the state. Raises the first `Rejected("log_full" | "too_large" | "too_deep")`.
        """
        left, why = len(events), list[SwarmdError]()
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def folded(error: SwarmdError | None) -> None:
            nonlocal left
            left -= 1
            if error is not None:
                why.append(error)
            if not left and not done.done():
                done.set_result(self.state.seq)

        for subject, fact in events:
            self.offer(subject, fact, folded)
        seq = await done if events else self.state.seq
        if why:
            raise why[0]
        return seq

    async def note_read(self, caller: Caller, how: How, memories: Mapping[str, int], step: str = "") -> None:
        """Have it in the log that the caller's task was given these versions (memory to sequence), before it is.

        What the task is known to have read needs no second event; nor does a caller that is no task. Whoever revoked
        one of them meanwhile was not told of this task: what is gone afterwards must not be shown. Raises
        `Fault("not_accepted")`, and what `commit` does.
        """
        reader = caller.reader
        if not reader:
            return
        known = self.state.known
        new = {
            memory: seq
            for memory, seq in memories.items()
            if (held := known.get(memory)) is not None and (held.readers is None or reader not in held.readers)
        }
        if new:
            fact = Read(swarm=caller.swarm, how=how, memories=new, agent=caller.agent, step=step)
            await self.commit((caller.task, fact))
            if any(reader not in (known[memory].readers or ()) for memory in new):
                raise Fault("not_accepted", "the memory's log did not accept who reads this: ask again")

    def _take_offered(self) -> list[Event]:
        offered, self._offered = self._offered, []
        return offered

    def _dropped(self, events: list[Event], error: Rejected) -> None:
        for event in events:
            waiting = self._unfolded.pop(id(event), None)
            if waiting is not None:
                waiting[1](error)

    # --- folding ---

    async def _on_commits(self, commits: list[Commit | Garbage]) -> None:
        size = self._follower.take_bytes() // len(commits)
        for commit in commits:
            memory_fold.apply(self.state, commit)
            if self._followers:
                self._recent[commit.seq] = (commit, size)
                self._recent_bytes += size
            if isinstance(commit, Commit):
                if commit.boot == self._boot:
                    self._tell(commit)
                for listener in self.listeners:
                    listener(commit)
        while self._recent_bytes > RECENT_BYTES_MAX:
            self._recent_bytes -= self._recent.pop(next(iter(self._recent)))[1]
        self._writer.seen = max(self._writer.seen, self.state.seq)
        self.moved()
        await asyncio.sleep(0)  # a long log is folded in slices, between which others go on

    def _tell(self, commit: Commit) -> None:
        """Whoever handed in an event of this commit hears that it is folded."""
        unfolded = self._unfolded
        for event in commit.events:
            waiting = unfolded.pop(id(event), None)
            if waiting is not None:
                waiting[1](None)

    def moved(self) -> None:
        """Something that `until` may wait for has changed."""
        if not self._waiting:
            return
        still = []
        for reached, future in self._waiting:
            if future.done():
                continue
            if reached():
                future.set_result(None)
            else:
                still.append((reached, future))
        self._waiting = still

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until `reached()`: it is asked after each slice that was folded, and after `moved()`."""
        if not reached():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((reached, future))
            await future

    async def folded(self, seq: int) -> None:
        """Wait until the log is folded up to `seq`."""
        await self.until(lambda: self.state.seq >= seq)

    # --- reading ---

    async def versions(self, places: Sequence[Place]) -> list[Version]:
        """What memories say at these places, in this order. Raises `Fault("log_unreadable" | "missing_sequence")`."""
        commits = {seq: self._recent[seq][0] for seq, _ in places if seq in self._recent}
        commits |= await self._reader.commits({seq for seq, _ in places} - commits.keys())
        return [_version(commits[seq], index) for seq, index in places]

    async def follow(
        self, after: int, on_commits: Callable[[list[Commit | Garbage]], Awaitable[None]], upto: int = 0
    ) -> None:
        """Hand over every commit after `after`, a slice at a time, in order, once it is folded; until cancelled.

        With `upto` it ends there. A follower that keeps up gets what the fold has decoded; one that is behind reads the
        log itself.
        """
        self._followers += 1
        try:
            while not upto or after < upto:
                await self.folded(after + 1)
                if after + 1 in self._recent:
                    at_hand = range(after + 1, min(self.state.seq, upto or self.state.seq) + 1)
                    commits = [self._recent[seq][0] for seq in islice(at_hand, SLICE)]
                    await on_commits(commits)
                    after = commits[-1].seq
                else:
                    after = await self._catch_up(after, on_commits, upto)
        finally:
            self._followers -= 1
            if not self._followers:
                self._recent, self._recent_bytes = {}, 0

    async def _catch_up(
        self, after: int, on_commits: Callable[[list[Commit | Garbage]], Awaitable[None]], end: int
    ) -> int:
        """Read the log itself until the fold has the next commit at hand, or to the end; the last one handed over."""
        follower = Follower(self._ports.log, None, SLICE, self._codec)  # no probe: the fold tells everything

        async def on_read(commits: list[Commit | Garbage]) -> None:
            nonlocal after
            if end:
                commits = [commit for commit in commits if commit.seq <= end]
            upto = commits[-1].seq
            await self.folded(upto)
            await on_commits(commits)
            after = upto
            if after == end or after + 1 in self._recent or after == self.state.seq:
                raise _CaughtUp

        try:
            await follower.run(after, on_read)
        except _CaughtUp:
            return after
        raise AssertionError("a log is followed for ever")


def _version(commit: Commit | Garbage, index: int) -> Version:
    event = commit.events[index] if isinstance(commit, Commit) and index < len(commit.events) else None
    version = version_of(event.data) if isinstance(event, Event) else None
    if version is None:
        raise Fault("log_unreadable", f"sequence {commit.seq} of the log says nothing of a memory at {index}")
    return version
