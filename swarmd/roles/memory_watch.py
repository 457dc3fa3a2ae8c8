"""Semantic subscriptions: watches are events of the log, what they match is fetched by long polls.

A watch belongs to whoever made it: the task, else the agent, else the swarm, or clients at large; admins may do all.
What was dropped, replaced or has expired since it matched is left out, and whether the caller may see it is looked at
again. Polls in waiting are woken by their own matches alone, so thousands of them cost nothing. Must not know the bus.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct, UnsetType

from swarmd.core import memory_door, memory_fold
from swarmd.core.errors import Conflict, Fault, Rejected
from swarmd.core.events import Event
from swarmd.core.ids import check_name
from swarmd.core.memory import SHARED, Matched, Unwatched, Watched
from swarmd.core.memory_fold import Known
from swarmd.core.memory_spaces import may_read, spaces_for_reading
from swarmd.core.memory_wire import MANY_MAX, MATCH_WAIT_MS_MAX, Match, MatchesReply
from swarmd.core.state import Place
from swarmd.ports import Clock, Meter, Probe, WatchMatrix
from swarmd.roles.memory_matcher import Matcher
from swarmd.roles.memory_reads import fitting, is_expired, passage_of

if TYPE_CHECKING:
    from swarmd.core.codec import Commit
    from swarmd.core.memory_fold import Watch
    from swarmd.core.memory_spaces import Caller
    from swarmd.core.memory_wire import MatchesRequest, UnwatchRequest, WatchRequest
    from swarmd.roles.memory_log import MemoryLog
    from swarmd.roles.memory_projection import Projection

#: A memory that concerns all of them is told of in one event, whose size is bounded: about 90 bytes for each.
WATCHES_MAX: Final = 5_000


class WatchPorts(Struct, frozen=True):
    """What watches need of the world; `matrix` makes an empty one for vectors of a dimension."""

    matrix: Callable[[int], WatchMatrix]
    clock: Clock
    probe: Probe
    meter: Meter


class _Found(Struct):
    """A match that may be shown: where it is, the memory and where that is, what is known of it, and the cosine."""

    seq: int
    memory: str
    place: Place
    known: Known
    cosine: float


class Watches:
    """Construct; `run` while the lease is held; `drain` answers whoever still waits for a match."""

    def __init__(self, log: MemoryLog, projection: Projection, ports: WatchPorts) -> None:
        self._log, self._projection, self._ports = log, projection, ports
        self._matcher = Matcher(log, projection, ports.matrix, (ports.clock, ports.probe, ports.meter))
        self._matcher.moved = self._wake_reached
        self._making: dict[str, asyncio.Future[None]] = {}
        self._polls = 0
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._reaching: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._draining = False
        log.listeners.append(self._note)

    async def run(self) -> None:
        """Match what the log tells, in its order, until cancelled."""
        self._draining = False
        try:
            await self._matcher.run()
        finally:
            self.drain()

    def drain(self) -> None:
        """Answer every poll in waiting at once, and each one that still comes."""
        self._draining = True
        for futures in list(self._waiting.values()):
            _wake(futures)

    @property
    def matched(self) -> int:
        """The sequence up to which everything is matched."""
        return self._matcher.upto

    # --- watching ---

    async def watch(self, caller: Caller, request: WatchRequest) -> int:
        """The sequence since which the watch holds.

        Raises `Rejected("bad_name" | "bad_threshold" | "bad_filter" | "bad_expiry" | "too_many_watches" | ...)`,
        `Conflict("watcher_taken")`, `Fault`.
        """
        watcher = check_name("watcher", request.watcher)
        fact = self._fact(caller, request)
        self._ports.matrix(1)  # who cannot match takes no watches
        if fact.text:
            await self._embeds(fact.text)
        while watcher in self._making:  # one at a time under each name: whose it is must not change in between
            await asyncio.wait([self._making[watcher]])
        self._making[watcher] = asyncio.get_running_loop().create_future()
        try:
            return await self._watch(caller, watcher, fact)
        finally:
            self._making.pop(watcher).set_result(None)

    async def _watch(self, caller: Caller, watcher: str, fact: Watched) -> int:
        watches = self._log.state.watches
        earlier = watches.get(watcher)
        if earlier is not None:
            if not _is_own(caller, earlier.fact):
                raise Conflict("watcher_taken", f"somebody else watches as {watcher}: take another name")
            if earlier.fact == fact:
                return earlier.seq
        elif len(watches) + len(self._making) > WATCHES_MAX:
            raise Rejected("too_many_watches", f"there are {WATCHES_MAX} watches: end some, or let them expire")
        self._log.check_room()
        await self._log.commit((watcher, fact))
        watch = watches.get(watcher)
        if watch is None or watch.fact != fact:
            raise Fault("not_accepted", "the memory's log did not accept this watch: send it again")
        return watch.seq

    def _fact(self, caller: Caller, request: WatchRequest) -> Watched:
        if not -1 <= request.threshold <= 1:  # NaN is not either
            raise Rejected("bad_threshold", f"threshold is {request.threshold}: a cosine is from -1 to 1")
        if request.text or isinstance(request.vector, UnsetType):
            memory_door.check_text(request.text, "watched text")
        memory_door.check_labels(request.labels)
        memory_door.check_field(request.embedder, "embedder")
        memory_door.check_expiry(request.expires_at_ms, self._ports.clock.now_ms())
        vector, embedder = b"", ""
        if not isinstance(request.vector, UnsetType):
            given, pin = self._projection.given(request.vector, request.embedder)
            vector, embedder = memory_door.vector_bytes(given), pin.embedder
        return Watched(
            threshold=request.threshold,
            text=request.text,
            vector=vector,
            embedder=embedder,
            filter=_filter_text(request),
            spaces=spaces_for_reading(caller, request.spaces),
            swarm=caller.swarm,
            agent=caller.agent,
            task=caller.task,
            expires_at_ms=request.expires_at_ms,
        )

    async def _embeds(self, text: str) -> None:
        """A text that is refused is refused here; an embedder that is away only delays."""
        try:
            await self._projection.vectors([text])
        except Fault as error:
            self._ports.probe.trouble("text of a watch", error)

    async def unwatch(self, caller: Caller, request: UnwatchRequest) -> int:
        """End a watch; the sequence of the log then. Raises `Rejected("unknown_watch" | "not_allowed")`."""
        self._own(caller, request.watcher)
        seq = await self._log.commit((request.watcher, Unwatched()))
        _wake(self._waiting.get(request.watcher, set()))
        return seq

    def _own(self, caller: Caller, watcher: str) -> Watch:
        watch = self._log.state.watches.get(watcher)
        if watch is None:
            raise Rejected("unknown_watch", f"nobody watches as {watcher[:100]!r}: watch first")
        if not _is_own(caller, watch.fact):
            raise Rejected("not_allowed", f"the watch {watcher[:100]!r} belongs to somebody else: ask as an admin")
        return watch

    # --- fetching ---

    async def matches(self, caller: Caller, request: MatchesRequest) -> MatchesReply:
        """Matches after `request.after`, waited for up to `wait_ms`: a wait is no load.

        Raises `Rejected("unknown_watch" | "not_allowed" | "bad_wait" | "bad_page" | "bad_sequence")`, `Fault`.
        """
        if not 0 <= request.wait_ms <= MATCH_WAIT_MS_MAX:
            raise Rejected("bad_wait", f"wait_ms is {request.wait_ms}: from 0 to {MATCH_WAIT_MS_MAX}, then ask again")
        if not 1 <= request.max <= MANY_MAX:
            raise Rejected("bad_page", f"max is {request.max}: ask for 1 to {MANY_MAX} matches")
        for name in ("after", "at_least_seq"):
            if not 0 <= getattr(request, name) < 2**63:
                raise Rejected("bad_sequence", f"{name} is {getattr(request, name)}: a sequence of the log, or 0")
        self._polls += 1
        try:
            await self._wait(caller, request)
        finally:
            self._polls -= 1
        return await self._answer(caller, request)

    async def _wait(self, caller: Caller, request: MatchesRequest) -> None:
        """Until there is what was asked for, the time is up, or the node drains."""
        try:
            async with asyncio.timeout(request.wait_ms / 1000):
                while not self._draining and not self._is_there(caller, request):
                    await self._woken(request)
        except TimeoutError:
            return

    def _is_there(self, caller: Caller, request: MatchesRequest) -> bool:
        found = self._found(caller, request, request.max)
        if request.at_least_seq:
            return len(found) == request.max or self.matched >= request.at_least_seq
        return bool(found)

    async def _woken(self, request: MatchesRequest) -> None:
        """Until something matched this watcher, or matching reached what the poll waits for."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(request.watcher, set()).add(future)
        if request.at_least_seq > self.matched:
            if len(self._reaching) > 2 * self._polls:  # most of them have given up
                self._reaching = [entry for entry in self._reaching if not entry[2].done()]
                heapq.heapify(self._reaching)
            heapq.heappush(self._reaching, (request.at_least_seq, next(self._numbers), future))
        try:
            await future
        finally:
            futures = self._waiting[request.watcher]
            futures.discard(future)
            if not futures:
                del self._waiting[request.watcher]

    def _note(self, commit: Commit) -> None:
        """Wake the polls that a commit concerns."""
        if not self._waiting:
            return
        for event in commit.events:
            if not isinstance(event, Event):
                continue
            if isinstance(event.data, Matched):
                for watcher in event.data.watchers:
                    _wake(self._waiting.get(watcher, set()))
            elif isinstance(event.data, Watched | Unwatched):
                _wake(self._waiting.get(event.subject, set()))

    def _wake_reached(self) -> None:
        reaching, matched = self._reaching, self.matched
        while reaching and reaching[0][0] <= matched:
            _wake({heapq.heappop(reaching)[2]})

    def _found(self, caller: Caller, request: MatchesRequest, most: int) -> list[_Found]:
        """The first matches after `after` that may be shown; what the watcher has seen, or nobody may, is let go."""
        watch = self._own(caller, request.watcher)
        self._let_go(watch, request.after)
        now, known = self._ports.clock.now_ms(), self._log.state.known
        found = []
        for seq, memory, version, cosine in watch.matches:
            held = known[memory]
            if held.gone_seq or held.place[0] != version or is_expired(held, now) or not may_read(caller, held.space):
                continue
            found.append(_Found(seq, memory, held.place, held, cosine))
            if len(found) == most:
                break
        return found

    @staticmethod
    def _let_go(watch: Watch, after: int) -> None:
        """What was seen need not be kept: the watcher says so itself, and would say it again to another node."""
        matches = watch.matches
        seen = 0
        while seen < len(matches) and matches[seen][0] <= after:
            seen += 1
        if seen:
            del matches[:seen]
            watch.missed = 0

    async def _answer(self, caller: Caller, request: MatchesRequest) -> MatchesReply:
        found = self._found(caller, request, request.max + 1)
        matched, missed = self.matched, self._own(caller, request.watcher).missed
        page = found[: request.max]
        versions = await self._log.versions([one.place for one in page])
        shown = []
        for one, version in zip(page, versions, strict=True):
            passage = passage_of(memory_fold.memory_of(one.memory, version, one.known))
            passage.seq, passage.score, passage.similarity = one.place[0], one.cosine, one.cosine
            shown.append(passage)
        fit = fitting(shown)
        if fit < len(found):  # there is more: what comes next is not told yet
            matched = min(matched, found[fit].place[0] - 1)
        matches = [Match(one.seq, passage) for one, passage in zip(page[:fit], shown[:fit], strict=True)]
        memories = {match.memory.id: match.memory.seq for match in matches}
        await self._log.note_read(caller, "watch", memories, request.step)
        known = self._log.state.known
        still_there = [match for match in matches if not known[match.memory.id].gone_seq]
        return MatchesReply(still_there, matched, missed)


def _is_own(caller: Caller, fact: Watched) -> bool:
    """Whether a watch is the caller's."""
    if caller.kind == "admin":
        return True
    if caller.kind == "client":
        return not fact.swarm and fact.spaces == [SHARED]
    if fact.swarm != caller.swarm:
        return False
    return fact.task == caller.task if fact.task else fact.agent in ("", caller.agent)


def _filter_text(request: WatchRequest) -> str:
    """The filter and the labels as one filter. Raises `Rejected("bad_filter")`."""
    memory_door.filter_of(request.filter, {}, [])  # alone first: what is wrong is told by its place in it
    parts = [f"({request.filter})"] if request.filter and request.labels else [request.filter] if request.filter else []
    parts += [f"labels.{_quoted(name)} = {_quoted(value)}" for name, value in request.labels.items()]
    text = " and ".join(parts)
    memory_door.filter_of(text, {}, [])
    return text


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _wake(futures: set[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
