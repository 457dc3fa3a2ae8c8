"""Recall, get and export: what is shown of a memory, to whom, and that it is known who was shown it.

On behalf of a task nothing is shown before the log says so: whoever revokes a memory learns of every task that read it.
What was dropped or has expired is not shown, however far behind the store is. Answers are cut to what the broker takes.
Must not know the bus, nor which store there is.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET, UnsetType

from swarmd.core import memory_door, memory_fold
from swarmd.core.errors import Rejected
from swarmd.core.memory_spaces import may_read, spaces_for_reading
from swarmd.core.memory_wire import (
    ANSWER_BYTES_MAX,
    MANY_MAX,
    ExportedMemory,
    ExportReply,
    GetReply,
    RecalledPassage,
    RecallReply,
)
from swarmd.ports import VectorQuery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmd.core.memory import Memory, Version
    from swarmd.core.memory_fold import Known
    from swarmd.core.memory_spaces import Caller
    from swarmd.core.memory_wire import ExportRequest, GetRequest, RecallRequest
    from swarmd.core.state import Place
    from swarmd.ports import Clock, Hit, Pin
    from swarmd.roles.memory_log import MemoryLog
    from swarmd.roles.memory_projection import Projection

#: A page of an export ends with the commit in which it has reached so many bytes, or where an answer is full.
PAGE_BYTES: Final = 256 * 1024
#: Memories looked at before others get their turn.
SLICE: Final = 5_000

_encoder: Final = msgspec.json.Encoder()


class Reads:
    """What a memory node does for those who read."""

    def __init__(self, log: MemoryLog, projection: Projection, clock: Clock) -> None:
        self._log, self._projection, self._clock = log, projection, clock
        self._order: list[tuple[Place, str]] = []
        self._ordered_from: Place = (0, 0)

    # --- recall ---

    async def recall(self, caller: Caller, wanted: RecallRequest) -> RecallReply:
        """The nearest memories that the caller may read. Raises `Rejected`, `Fault("memory_behind" | ...)`."""
        memory_door.check_recall(wanted)
        spaces = spaces_for_reading(caller, wanted.spaces)
        where = memory_door.filter_of(wanted.filter, wanted.labels, spaces)
        vector, pin = await self._vector(wanted)
        query = VectorQuery(
            text="" if wanted.mode == "dense" else wanted.text,
            vector=vector,
            k=wanted.k,
            where=where,
            now_ms=self._clock.now_ms(),
            min_similarity=wanted.min_similarity,
            diversity=wanted.diversity,
        )
        await self._check_there(wanted.at_least_seq)
        hits, seq = await self._projection.search(query, wanted.as_of, wanted.at_least_seq, pin)
        shown = [passage_of_hit(hit) for hit in hits if self._may_show(caller, hit, wanted.as_of)]
        kept = shown[: fitting(shown)]
        cut = len(shown) - len(kept)
        await self._log.note_read(caller, wanted.how, {passage.id: passage.seq for passage in kept}, wanted.step)
        return RecallReply(kept if wanted.as_of else self._still_there(kept), seq, cut=cut)

    async def _check_there(self, seq: int) -> None:
        """What the log does not hold is not waited for: a few thousand such recalls would leave no room for others.

        Raises `Rejected("bad_sequence")`, `Fault`.
        """
        if seq > self._log.seq and seq > (last := await self._log.last_seq()):
            raise Rejected("bad_sequence", f"at_least_seq is {seq}, and the log ends at {last}: ask for what it told")

    async def _vector(self, wanted: RecallRequest) -> tuple[Sequence[float] | None, Pin | None]:
        """What to compare with, and what it was made by.

        Raises `Rejected("wrong_dimension" | "bad_vector" | "embedder_mismatch")`, `Fault`.
        """
        if wanted.mode == "lexical":
            return None, None
        if isinstance(wanted.vector, UnsetType):
            (vector,) = await self._projection.vectors([wanted.text])
            return vector, self._projection.pin
        return self._projection.given(wanted.vector, wanted.embedder)

    def _may_show(self, caller: Caller, hit: Hit, as_of: int) -> bool:
        """The store may be a little behind the log, and a view of the past is so on purpose."""
        known = self._log.state.known.get(hit.memory.id)
        if known is None or not may_read(caller, known.space):
            return False
        return bool(as_of) or not (known.gone_seq or is_expired(known, self._clock.now_ms()))

    def _still_there(self, passages: list[RecalledPassage]) -> list[RecalledPassage]:
        """What nobody dropped while it was being logged who reads it."""
        known = self._log.state.known
        return [passage for passage in passages if not known[passage.id].gone_seq]

    # --- get ---

    async def get(self, caller: Caller, wanted: GetRequest) -> GetReply:
        """Memories by id. Raises `Rejected("bad_ids")`, `Fault`."""
        memory_door.check_ids(wanted.ids)
        now_ms, state = self._clock.now_ms(), self._log.state
        found = [
            (memory, known)
            for memory in dict.fromkeys(wanted.ids)
            if (known := state.known.get(memory)) is not None
            and not known.gone_seq
            and not is_expired(known, now_ms)
            and may_read(caller, known.space)
        ]
        places = [known.place for _, known in found]
        shown: list[RecalledPassage] = []
        room, at = ANSWER_BYTES_MAX, 0
        while at < len(found) and room > 0:  # a few at a time: all of them may be far more than an answer takes
            versions = await self._log.versions(places[at : at + 50])
            few = [
                passage_of(_version_of(memory, version, known, place))
                for (memory, known), place, version in zip(found[at:], places[at:], versions, strict=False)
            ]
            fit = fitting(few, room)
            shown += few[:fit]
            room = room - sum(map(_size, few)) if fit == len(few) else 0
            at += fit
        await self._log.note_read(caller, "get", {passage.id: passage.seq for passage in shown}, wanted.step)
        return GetReply(self._still_there(shown), state.seq, rest=[memory for memory, _ in found[at:]])

    # --- export ---

    async def export(self, wanted: ExportRequest) -> ExportReply:
        """A page of what is there, in the order of the log: whole commits, as far as they fit into an answer.

        Raises `Rejected("bad_sequence" | "bad_page")`, `Fault`.
        """
        if not 0 <= wanted.after < 2**63:
            raise Rejected("bad_sequence", f"after is {wanted.after}: the sequence that a page ended with, or 0")
        if not 1 <= wanted.max <= MANY_MAX:
            raise Rejected("bad_page", f"max is {wanted.max}: ask for 1 to {MANY_MAX} memories in a page")
        first = (wanted.after + 1, 0) if isinstance(wanted.index, UnsetType) else (wanted.after, wanted.index + 1)
        state, now_ms = self._log.state, self._clock.now_ms()
        memories: list[ExportedMemory] = []
        size = 0
        while len(memories) < wanted.max and size < PAGE_BYTES:
            entries = await self._next_in_order(first)
            if not entries:
                return ExportReply(memories)
            first = (entries[-1][0][0] + 1, 0)
            held = [
                (place, memory, known)
                for place, memory in entries
                if (known := state.known[memory]).place == place
                and not known.gone_seq
                and not is_expired(known, now_ms)
            ]
            if not held:
                await asyncio.sleep(0)
            versions = await self._log.versions([place for place, _, _ in held])
            more = [_exported(m, version, k, p) for (p, m, k), version in zip(held, versions, strict=True)]
            fit = fitting(more, ANSWER_BYTES_MAX - size)
            memories += more[:fit]
            size += sum(map(_size, more[:fit]))
            if fit < len(more):  # its own vectors are much longer in an answer than they are in the log
                seq, index = held[fit][0]
                return ExportReply(memories, seq, index=index - 1) if index else ExportReply(memories, seq - 1)
        return ExportReply(memories, first[0] - 1)

    async def _next_in_order(self, first: Place) -> list[tuple[Place, str]]:
        """What stood in the next commit from `first` on that says something, when the order was made; [] at the end."""
        at = bisect_left(self._order, (first, ""))
        if at == len(self._order) or first < self._ordered_from:
            await self._put_in_order(first)
            at = 0
        end = at
        while end < len(self._order) and self._order[end][0][0] == self._order[at][0][0]:
            end += 1
        return self._order[at:end]

    async def _put_in_order(self, first: Place) -> None:
        """Sort what there is from `first` on. What changes later is later in the log, and is found by the next sort."""
        everything = list(self._log.state.known.items())
        order = []
        for start in range(0, len(everything), SLICE):
            some = everything[start : start + SLICE]
            order += [(known.place, memory) for memory, known in some if not known.gone_seq and known.place >= first]
            await asyncio.sleep(0)
        order.sort()
        self._order, self._ordered_from = order, first


def is_expired(known: Known, now_ms: int) -> bool:
    """Whether it shall not be shown any more."""
    return 0 < known.expires_at_ms <= now_ms


def passage_of(memory: Memory) -> RecalledPassage:
    """A memory as answers show it."""
    return RecalledPassage(
        memory.id,
        memory.text,
        source=memory.source,
        labels=memory.labels,
        author=memory.author,
        task=memory.task,
        seq=memory.seq,
        space=memory.space,
        swarm=memory.swarm,
        since_ms=memory.since_ms,
        expires_at_ms=memory.expires_at_ms,
        payload=memory.payload,
    )


def passage_of_hit(hit: Hit) -> RecalledPassage:
    """A hit as answers show it."""
    passage = passage_of(hit.memory)
    passage.score = hit.score
    passage.similarity = UNSET if math.isnan(hit.similarity) else hit.similarity
    return passage


def fitting(passages: Sequence[RecalledPassage], room: int = ANSWER_BYTES_MAX) -> int:
    """How many of them, from the first on, fit into an answer."""
    for count, passage in enumerate(passages):
        room -= _size(passage)
        if room < 0:
            return count
    return len(passages)


def _size(passage: RecalledPassage) -> int:
    return len(_encoder.encode(passage)) + 1


def _version_of(memory: str, version: Version, known: Known, place: Place) -> Memory:
    """A version of a memory, which may have another one by now."""
    held = memory_fold.memory_of(memory, version, known)
    held.seq = place[0]
    return held


def _exported(memory: str, version: Version, known: Known, place: Place) -> ExportedMemory:
    passage = passage_of(_version_of(memory, version, known, place))
    exported = ExportedMemory(**msgspec.structs.asdict(passage), step=known.step, embedder=version.embedder)
    vector = memory_door.vector_of(version.vector)
    if vector:
        exported.vector = vector.tolist()
    return exported
