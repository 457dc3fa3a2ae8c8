"""A memory on a bus, all in one dict, for those who ask one: it answers with what travels on a memory's subjects.

It keeps what is promised to a member of a swarm: spaces, filters, expiry, revocation, matches once each. Real nodes are
tested in `tests/system`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from swarmd.core.errors import Rejected, SwarmdError
from swarmd.core.events import Failure
from swarmd.core.ids import check_name
from swarmd.core.memory import Memory
from swarmd.core.memory_filter import matches, parse
from swarmd.core.memory_spaces import caller_of, space_for_writing, spaces_for_reading
from swarmd.core.memory_wire import (
    ForgetRequest,
    GetReply,
    GetRequest,
    Match,
    MatchesReply,
    MatchesRequest,
    RecalledPassage,
    RecallReply,
    RecallRequest,
    RememberReply,
    RememberRequest,
    UnwatchRequest,
    UpdateRequest,
    WatchRequest,
)
from swarmd.hash_embedder import HashEmbedder

if TYPE_CHECKING:
    from swarmd.adapters.fakes import FakeBus, FakeClock
    from swarmd.core.memory_spaces import Caller
    from swarmd.ports import Received

REQUESTS: dict[str, Any] = {
    "remember": RememberRequest,
    "update": UpdateRequest,
    "recall": RecallRequest,
    "get": GetRequest,
    "forget": ForgetRequest,
    "watch": WatchRequest,
    "unwatch": UnwatchRequest,
    "matches": MatchesRequest,
}


class ScriptedMemory:
    """Serves the memory "shared" on a bus once `serve`d. `asked` are the requests in order, `reads` who was given what.

    `broken` is what it answers instead; while `silent` it does not answer at all.
    """

    def __init__(self, bus: FakeBus, clock: FakeClock) -> None:
        self._bus, self._clock, self._embedder = bus, clock, HashEmbedder()
        self.held: dict[str, Memory] = {}
        self.gone: set[str] = set()
        self.asked: list[tuple[str, Any]] = []
        self.reads: list[tuple[str, str, str]] = []
        self.watches: dict[str, tuple[WatchRequest, list[str], int]] = {}
        self.kept: dict[str, list[Match]] = {}
        self.broken: Failure | None = None
        self.silent = False
        self.seq = self.missed = 0
        self.behind = 0  #: so many sequences are not matched yet

    async def serve(self) -> ScriptedMemory:
        await self._bus.subscribe("memory.shared.of.*.*", self._on_request)
        return self

    def _on_request(self, message: Received) -> None:
        if self.silent:
            return
        verb = message.subject.rpartition(".")[2]
        request = msgspec.json.decode(message.payload, type=REQUESTS[verb])
        self.asked.append((verb, request))
        answer: Any
        try:
            if self.broken is not None:
                raise Rejected(self.broken.code, self.broken.message)
            answer = getattr(self, f"_{verb}")(caller_of(message.subject, request.agent, request.task), request)
        except SwarmdError as error:
            answer = RememberReply(error=Failure(error.code, error.message))
        self._bus._deliver(message.reply, msgspec.json.encode(answer), "")

    # --- verbs ---

    def _remember(self, caller: Caller, wanted: RememberRequest) -> RememberReply:
        space, held = space_for_writing(caller, wanted.space), self.held.get(wanted.id)
        self.seq += 1
        if held is None:
            since = self._clock.now_ms()
            held = Memory(wanted.id, wanted.text, wanted.source, wanted.labels, wanted.author, wanted.task)
            held.seq, held.space, held.swarm, held.step = self.seq, space, caller.swarm, wanted.step
            held.since_ms = since
            held.expires_at_ms, held.payload = wanted.expires_at_ms, wanted.payload
            self.held[wanted.id] = held
            self._match(held)
        elif held.text != wanted.text:
            raise Rejected("id_taken", "it holds another text")
        return RememberReply(wanted.id, held.seq)

    def _update(self, caller: Caller, wanted: UpdateRequest) -> RememberReply:
        held = self._present(wanted.id)
        if wanted.if_seq and wanted.if_seq != held.seq:
            raise Rejected("stale_update", f"version {held.seq} is present")
        self.seq += 1
        for name in ("text", "source", "labels", "expires_at_ms", "payload"):
            if getattr(wanted, name) is not UNSET:
                setattr(held, name, getattr(wanted, name))
        held.seq = self.seq
        self._match(held)
        return RememberReply(held.id, self.seq)

    def _forget(self, caller: Caller, wanted: ForgetRequest) -> RememberReply:
        if self._present(wanted.id).author != caller.agent:
            raise Rejected("not_allowed", "another's")
        self.seq += 1
        self.gone.add(wanted.id)
        return RememberReply(wanted.id, self.seq)

    def _recall(self, caller: Caller, wanted: RecallRequest) -> RecallReply:
        spaces, where = spaces_for_reading(caller, wanted.spaces), parse(wanted.filter) if wanted.filter else None
        vector = self._vector(wanted.text, wanted.vector)
        found = [
            (self._likeness(vector, held), held)
            for held in self._live()
            if held.space in spaces and matches(where, held) and wanted.labels.items() <= held.labels.items()
        ]
        found = [(likeness, held) for likeness, held in found if likeness >= wanted.min_similarity]
        found = sorted(found, key=lambda one: -one[0])[: wanted.k]
        self.reads += [(caller.reader, wanted.how, held.id) for _, held in found]
        return RecallReply([_passage(held, likeness) for likeness, held in found], self.seq)

    def _get(self, caller: Caller, wanted: GetRequest) -> GetReply:
        found = [_passage(held) for held in self._live() if held.id in wanted.ids]
        first, rest = found[:2], [one.id for one in found[2:]]
        self.reads += [(caller.reader, "get", one.id) for one in first]
        return GetReply(first, self.seq, rest=rest)

    # --- watches ---

    def _watch(self, caller: Caller, wanted: WatchRequest) -> RememberReply:
        self.seq += 1
        check_name("watcher", wanted.watcher)
        self.watches[wanted.watcher] = (wanted, spaces_for_reading(caller, wanted.spaces), self.seq)
        self.kept[wanted.watcher] = []
        return RememberReply(wanted.watcher, self.seq)

    def _unwatch(self, caller: Caller, wanted: UnwatchRequest) -> RememberReply:
        if self.watches.pop(wanted.watcher, None) is None:
            raise Rejected("unknown_watch", "no such watch")
        self.seq += 1
        return RememberReply(wanted.watcher, self.seq)

    def _matches(self, caller: Caller, wanted: MatchesRequest) -> MatchesReply:
        if wanted.watcher not in self.watches:
            raise Rejected("unknown_watch", "no such watch")
        kept = self.kept[wanted.watcher] = [m for m in self.kept[wanted.watcher] if m.seq > wanted.after]
        found = kept[: wanted.max]
        self.reads += [(caller.reader, "watch", match.memory.id) for match in found]
        seq = kept[wanted.max].seq - 1 if len(kept) > wanted.max else self.seq - self.behind
        return MatchesReply(found, seq, self.missed)

    def _match(self, held: Memory) -> None:
        for watcher, (wanted, spaces, _) in self.watches.items():
            where = parse(wanted.filter) if wanted.filter else None
            likeness = self._likeness(self._vector(wanted.text, wanted.vector), held)
            sees = held.space in spaces and wanted.labels.items() <= held.labels.items() and matches(where, held)
            if sees and likeness >= wanted.threshold:
                self.kept[watcher].append(Match(self.seq, _passage(held, likeness)))

    # --- what it holds ---

    def revoke(self, memory: str) -> None:
        self._present(memory)
        self.gone.add(memory)

    def _present(self, memory: str) -> Memory:
        if memory not in self.held or memory in self.gone:
            raise Rejected("unknown_memory", f"no memory {memory}")
        return self.held[memory]

    def _live(self) -> list[Memory]:
        now = self._clock.now_ms()
        held = [memory for memory in self.held.values() if memory.id not in self.gone]
        return [memory for memory in held if not memory.expires_at_ms or memory.expires_at_ms > now]

    def _vector(self, text: str, vector: Any) -> list[float]:
        return vector if isinstance(vector, list) else self._embedder.embed([text])[0]

    def _likeness(self, vector: list[float], held: Memory) -> float:
        return math.fsum(a * b for a, b in zip(vector, self._embedder.embed([held.text])[0], strict=True))


def _passage(held: Memory, similarity: Any = UNSET) -> RecalledPassage:
    passage = RecalledPassage(held.id, held.text, 1.0, held.source, held.labels, held.author, held.task, held.seq)
    passage.similarity, passage.space, passage.swarm = similarity, held.space, held.swarm
    passage.since_ms = held.since_ms
    passage.expires_at_ms, passage.payload = held.expires_at_ms, held.payload
    return passage
