"""An agent's watches: a meaning is named, and what is remembered from then on and comes near it is fetched. Steps.

A watch bears the name of its task, and ends with it at the latest by its expiry. What was fetched is dropped by the
memory with the call after, when it is recorded here: each match is seen once, also when a step is done again.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack

import msgspec
from msgspec import Struct

from swarmd.core.errors import Fault, Rejected
from swarmd.core.memory_wire import (
    MATCH_WAIT_MS_MAX,
    MatchesReply,
    MatchesRequest,
    RememberReply,
    UnwatchRequest,
    WatchRequest,
)
from swarmd.roles.memory_steps import MEMORY_TIMEOUT_MS, PAUSE_MS, MemorySteps, Recalled, check_words, vector_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: One request for matches waits so long; a longer wait is made of several.
MATCH_WAIT_MS: Final = min(20_000, MATCH_WAIT_MS_MAX)
#: So much of a watch's name can be read in the memory's log; the rest of what tells it apart is a digest.
NAME_CHARS: Final = 24
_UNPLAIN: Final = re.compile("[^A-Za-z0-9_-]")


class Matches(Struct):
    """What a watch has matched since the last call: everything up to sequence `seq` of the memory's log is in.

    `missed` matches are no longer kept, since nobody fetched them in time.
    """

    memories: list[Recalled]
    seq: int = 0
    missed: int = 0


class Watching(TypedDict, total=False):
    """Which memories match, beyond their meaning, and how long the watch lasts (0: until the task ends it)."""

    vector: Sequence[float] | None
    filter: str
    spaces: Sequence[str]
    expires_in_ms: int


class WatchSteps(MemorySteps):
    """The context's side of watches."""

    #: The last match of each watch that is recorded.
    _matched: Mapping[str, int] = {}

    async def watch(
        self,
        name: str,
        text: str = "",
        *,
        threshold: float = 0.3,
        labels: Mapping[str, str] | None = None,
        **what: Unpack[Watching],
    ) -> int:
        """Watch a meaning from now on, as a step; the sequence of the memory's log at which that begins.

        The name is this task's own. `matches` fetches what is remembered later, with a cosine of at least
        `threshold`.
        """
        check_words("watch", what, Watching)
        key = self._key("watch")
        request = WatchRequest(self._watcher(name), text, vector_of(what.get("vector")), threshold=threshold)
        request.filter, request.labels = what.get("filter", ""), dict(labels or {})
        request.spaces, request.agent, request.task = list(what.get("spaces", ())), self.agent, self.task

        async def act() -> Any:
            request.expires_at_ms = self._expiry(what.get("expires_in_ms", 0))
            return (await self._asked("watch", request, RememberReply)).seq

        return msgspec.convert(await self._journaled(key, "watch", act), int)

    async def matches(self, name: str, *, wait_s: float = 0.0, at_least_seq: int = 0, max: int = 100) -> Matches:
        """What a watch of this task has matched since the last call, each match once, in order; as a step.

        Waits up to `wait_s` for the first one, and keeps its slot meanwhile; with `at_least_seq` until what was
        remembered up to that sequence is matched, or there are `max`. Call again while `seq` is less.
        """
        key, watcher = self._key("matches"), self._watcher(name)
        request = self._signed(MatchesRequest(watcher, self._matched.get(watcher, 0), 0, at_least_seq, max), key)
        wait_ms = round(wait_s * 1000)

        async def act() -> Any:
            return await self._awaited_matches(request, wait_ms or (MEMORY_TIMEOUT_MS if at_least_seq else 0))

        reply = await self._journaled(key, "matches", act)
        found = reply.get("matches", [])
        if found:  # fetched with the next call, which drops what is recorded now
            self._matched = {**self._matched, watcher: found[-1]["seq"]}
        memories = msgspec.convert([match["memory"] for match in found], list[Recalled])
        return Matches(memories, reply.get("seq", 0), reply.get("missed", 0))

    async def unwatch(self, name: str) -> None:
        """End a watch of this task, as a step; one that is not there has ended."""
        key = self._key("unwatch")
        request = UnwatchRequest(self._watcher(name), self.agent, self.task)

        async def act() -> Any:
            try:
                await self._asked("unwatch", request, RememberReply)
            except Rejected as rejected:
                if rejected.code != "unknown_watch":
                    raise

        await self._journaled(key, "unwatch", act)

    async def _awaited_matches(self, request: MatchesRequest, wait_ms: int) -> MatchesReply:
        clock = self._ports.clock
        until_ms = clock.now_ms() + wait_ms
        while True:
            left_ms = max(0, until_ms - clock.now_ms())
            request.wait_ms = min(left_ms, MATCH_WAIT_MS)
            asked_ms = clock.now_ms()
            reply = await self._asked("matches", request, MatchesReply, MATCH_WAIT_MS + MEMORY_TIMEOUT_MS)
            if reply.matches or reply.missed or 0 < request.at_least_seq <= reply.seq:
                return reply
            if left_ms <= MATCH_WAIT_MS:
                if reply.seq < request.at_least_seq:
                    why = f"the memory has matched up to sequence {reply.seq}, {request.at_least_seq} is wanted"
                    raise Fault("memory_behind", f"{why}: ask again")
                return reply
            if clock.now_ms() - asked_ms < PAUSE_MS:  # a node that drains answers at once
                await clock.sleep(PAUSE_MS)

    def _watcher(self, name: str) -> str:
        """The name for the memory, where all watches have one of their own: another task's are none of its business."""
        if not name or len(name) > 200:
            raise Rejected("bad_name", "a watch's name has 1 to 200 characters")
        whole = f"{self._ports.swarm}/{self.task}/{name}".encode("utf-8", "surrogatepass")
        return f"{_UNPLAIN.sub('_', name)[:NAME_CHARS]}-{blake2b(whole, digest_size=16).hexdigest()}"
