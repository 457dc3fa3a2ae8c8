"""A fake of a memory node for tests of those who ask one: it answers from a dictionary, and can be told to misbehave.

It recalls by common words; spaces, rights and vectors are the real node's.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from swarmd.core.events import Failure
from swarmd.core.memory_wire import (
    ExportedMemory,
    ExportReply,
    ExportRequest,
    GetReply,
    GetRequest,
    Job,
    JobReply,
    Match,
    MatchesReply,
    MatchesRequest,
    MemoryStats,
    RecalledPassage,
    RecallReply,
    RecallRequest,
    Refusal,
    RememberMany,
    RememberManyReply,
    RememberReply,
    RememberRequest,
    UpdateRequest,
    WatchRequest,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from swarmd.adapters.nats_bus import NatsBus
    from swarmd.ports import Received

PAGE = 3


def refused(code: str, message: str) -> Refusal:
    return Refusal(Failure(code, message))


class FakeMemory:
    """Holds memories in the order in which they came. `asked` is what was asked; `answers` replaces a verb's answer."""

    def __init__(self) -> None:
        self.memories: dict[str, ExportedMemory] = {}
        self.matches: list[Match] = []
        self.asked: list[tuple[str, Any]] = []
        self.sizes: list[int] = []
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self.deaf: set[str] = set()
        self._seq = 0
        self._kinds: dict[str, type[Any]] = {
            "remember": RememberRequest,
            "remember_many": RememberMany,
            "update": UpdateRequest,
            "recall": RecallRequest,
            "get": GetRequest,
            "matches": MatchesRequest,
            "export": ExportRequest,
            "watch": WatchRequest,
        }

    @asynccontextmanager
    async def serving(self, bus: NatsBus, memory: str = "shared") -> AsyncIterator[FakeMemory]:
        """Answer on `bus` within the block."""

        async with asyncio.TaskGroup() as group:

            def on_message(message: Received) -> None:
                group.create_task(self._answer(bus, message))

            subscription = await bus.subscribe(f"memory.{memory}.>", on_message)
            await bus.client.flush()  # from here on it is heard
            try:
                yield self
            finally:
                await subscription.close()

    async def _answer(self, bus: NatsBus, message: Received) -> None:
        verb = message.subject.rpartition(".")[2]
        body = msgspec.json.decode(message.payload, type=self._kinds.get(verb, dict))
        self.asked.append((message.subject.removeprefix("memory."), body))
        self.sizes.append(len(message.payload))
        if verb in self.deaf:
            return
        answer = self.answers.get(verb) or getattr(self, f"_{verb}")
        await bus.publish(message.reply, msgspec.json.encode(answer(body)))

    def _remember(self, wanted: RememberRequest) -> RememberReply:
        known = self.memories.get(wanted.id)
        if known is not None and known.text != wanted.text:
            return RememberReply(error=Failure("id_taken", f"memory {wanted.id} holds another text"))
        if wanted.source == "poison":
            return RememberReply(error=Failure("bad_label", "it cannot be remembered"))
        if known is None:
            self._seq += 1
            fields = {name: getattr(wanted, name) for name in wanted.__struct_fields__ if name != "agent"}
            known = self.memories[wanted.id] = ExportedMemory(seq=self._seq, **fields)
        return RememberReply(known.id, known.seq)

    def _remember_many(self, wanted: RememberMany) -> RememberManyReply:
        return RememberManyReply([self._remember(one) for one in wanted.memories])

    def _update(self, wanted: UpdateRequest) -> RememberReply | Refusal:
        known = self.memories.get(wanted.id)
        if known is None:
            return refused("unknown_memory", f"no memory {wanted.id} was ever remembered here")
        if wanted.if_seq and wanted.if_seq != known.seq:
            return refused("stale_update", f"memory {wanted.id} is at sequence {known.seq}")
        self._seq += 1
        known.seq = self._seq
        for name in ("text", "source", "labels", "expires_at_ms", "payload"):
            if getattr(wanted, name) is not msgspec.UNSET:
                setattr(known, name, getattr(wanted, name))
        return RememberReply(known.id, known.seq)

    def _recall(self, wanted: RecallRequest) -> RecallReply:
        words = set(wanted.text.split())
        ranked = sorted(self.memories.values(), key=lambda one: -len(words & set(one.text.split())))
        return RecallReply([_passage(one, 0.5) for one in ranked[: wanted.k]], self._seq)

    def _get(self, wanted: GetRequest) -> GetReply:
        """Two at a time, as where answers are large."""
        there = [_passage(self.memories[id]) for id in wanted.ids[:2] if id in self.memories]
        return GetReply(there, self._seq, rest=wanted.ids[2:])

    def _watch(self, wanted: WatchRequest) -> RememberReply:
        return RememberReply(wanted.watcher, self._seq)

    def _matches(self, wanted: MatchesRequest) -> MatchesReply:
        there = [match for match in self.matches if match.seq > wanted.after]
        return MatchesReply(there[:2], self._seq)

    def _export(self, wanted: ExportRequest) -> ExportReply:
        there = [one for one in self.memories.values() if one.seq > wanted.after]
        return ExportReply(there[:PAGE], there[PAGE - 1].seq if len(there) > PAGE else 0)

    def _rebuild(self, wanted: dict[str, Any]) -> JobReply:
        return JobReply(Job("j1", "rebuild", done=1, total=2))

    def _verify(self, wanted: dict[str, Any]) -> JobReply:
        return JobReply(Job("j2", "verify", done=1, total=2))

    def _job(self, wanted: dict[str, Any]) -> JobReply:
        if wanted["id"] == "j1":
            return JobReply(Job("j1", "rebuild", "done", 2, 2, rows=len(self.memories)))
        return JobReply(Job("j2", "verify", "done", 2, 2, rows=2, missing=1, examples=["a"]))

    def _stats(self, wanted: dict[str, Any]) -> MemoryStats:
        return MemoryStats("shared", self._seq, self._seq, len(self.memories), warm=True)


def _passage(memory: ExportedMemory, similarity: float = 0.0) -> RecalledPassage:
    fields = {name: getattr(memory, name) for name in RecalledPassage.__struct_fields__}
    return RecalledPassage(**{**fields, "similarity": similarity or msgspec.UNSET})
