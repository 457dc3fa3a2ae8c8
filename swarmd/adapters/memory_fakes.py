"""The in-process twin of the vector store: same promises, no server.

Job: let roles be tested with a vector store that is exact and quick; the contract suite holds it to the real one.
Must not know: Milvus.
"""

from __future__ import annotations

import math
from operator import mul
from typing import TYPE_CHECKING

from msgspec import Struct, field

from swarmd.core.errors import Fault
from swarmd.core.memory import Memory
from swarmd.core.memory_filter import matches
from swarmd.passages import (
    candidates,
    check_memory,
    check_vector,
    check_vector_query,
    digest_of,
    diverse,
    fuse,
    is_live,
    mismatch,
)
from swarmd.ports import HeldRow, Hit, Pin, Row, VectorQuery
from swarmd.ranking import bm25
from swarmd.text import stems

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

PAGE = 100


class Held(Struct):
    """A row as a fake store keeps it: with the stems of its text."""

    memory: Memory
    vector: list[float]
    stems: list[str]


class FakeCollection(Struct):
    """What one `FakeVectorStore` holds."""

    pin: Pin
    rows: dict[str, Held] = field(default_factory=dict)
    applied: int = 0


class FakeDisk(Struct):
    """What outlives `FakeVectorStores`; give the same one to the next ones to reopen it.

    Taking a collection out of it loses that store under whoever has it open (`Fault("memory_lost")`).
    """

    collections: dict[str, FakeCollection] = field(default_factory=dict)


class FakeVectorStores:
    """`VectorStores` over a `FakeDisk`.

    `before` is called with the verb ("open", "apply", "search", "held", "count", "drop", "names") and the store's name
    ahead of everything: let it raise a `Fault`, or wait.
    """

    def __init__(
        self, disk: FakeDisk | None = None, before: Callable[[str, str], Awaitable[None]] | None = None
    ) -> None:
        self.disk = FakeDisk() if disk is None else disk
        self.before = before

    def store(self, name: str, pin: Pin) -> FakeVectorStore:
        return FakeVectorStore(self, name, pin)

    async def names(self) -> list[str]:
        await self.about_to("names", "")
        return sorted(self.disk.collections)

    async def about_to(self, verb: str, name: str) -> None:
        if self.before is not None:
            await self.before(verb, name)

    async def close(self) -> None: ...


class FakeVectorStore:
    """A `VectorStore` over a dict: cosine and BM25 over all rows, fused by rank."""

    def __init__(self, stores: FakeVectorStores, name: str, pin: Pin) -> None:
        self.stores = stores
        self.name = name
        self.pin = pin
        self._opened: FakeCollection | None = None

    async def open(self) -> int:
        """The sequence up to which the log is applied. Raises `Rejected("embedder_mismatch")`."""
        await self.stores.about_to("open", self.name)
        held = self.stores.disk.collections.setdefault(self.name, FakeCollection(self.pin))
        if held.pin != self.pin:
            raise mismatch(self.name, held.pin, self.pin)
        self._opened = held
        return held.applied

    async def apply(self, rows: Sequence[Row], forgotten: Sequence[str], upto: int, *, fresh: bool = False) -> None:
        """Upsert, then delete (an id in both is gone), then record the sequence; all of it or nothing."""
        held = await self._held("apply")
        for row in rows:
            check_memory(row.memory)
            check_vector(row.vector, self.pin.dimension)
            known = held.rows.get(row.memory.id)
            assert not (fresh and known and known.memory.seq <= held.applied), f"{row.memory.id} is not fresh"
        for row in rows:
            held.rows[row.memory.id] = Held(row.memory, list(row.vector), stems(row.memory.text))
        for memory_id in forgotten:
            held.rows.pop(memory_id, None)
        held.applied = max(held.applied, upto)

    async def search(self, queries: Sequence[VectorQuery]) -> list[list[Hit]]:
        """The best hits for each query, best first."""
        for query in queries:
            check_vector_query(query, self.pin)
        held = await self._held("search")
        return [self._search(held, query) for query in queries]

    def _search(self, held: FakeCollection, query: VectorQuery) -> list[Hit]:
        rows = {
            key: row
            for key, row in held.rows.items()
            if matches(query.where, row.memory) and is_live(row.memory, query.now_ms)
        }
        keys = list(rows)
        near: dict[str, float] = {}
        if query.vector is not None:
            near = {key: _cosine(row.vector, query.vector) for key, row in rows.items()}
        found = [near]
        if query.text:
            scores = bm25(stems(query.text), [rows[key].stems for key in keys])
            found.append({key: score for key, score in zip(keys, scores, strict=True) if score > 0})
        depth = candidates(query.k)
        rankings = [sorted(ranked, key=lambda key: (-ranked[key], key))[:depth] for ranked in found]
        fused = [(key, score) for key, score in fuse(rankings, 2 * depth) if near.get(key, 1.0) >= query.min_similarity]

        def likeness(index: int) -> list[float]:
            return [_cosine(rows[fused[index][0]].vector, rows[key].vector) for key, _ in fused]

        order = diverse([score for _, score in fused], likeness, query.k, query.diversity)
        return [
            Hit(rows[key].memory, score, near.get(key, float("nan")))
            for key, score in (fused[index] for index in order)
        ]

    async def held(self) -> AsyncIterator[list[HeldRow]]:
        """Every memory, by pages of `PAGE`."""
        held = await self._held("held")
        rows = [HeldRow(row.memory.id, row.memory.seq, digest_of(row.memory)) for row in held.rows.values()]
        for at in range(0, len(rows), PAGE):
            yield rows[at : at + PAGE]

    async def count(self) -> int:
        return len((await self._held("count")).rows)

    async def drop(self) -> None:
        await self.stores.about_to("drop", self.name)
        self.stores.disk.collections.pop(self.name, None)
        self._opened = None

    async def close(self) -> None:
        """Idempotent."""
        self._opened = None

    async def _held(self, verb: str) -> FakeCollection:
        if self._opened is None:
            raise Fault("memory_closed", "the memory store is not open")
        await self.stores.about_to(verb, self.name)
        if self.stores.disk.collections.get(self.name) is not self._opened:
            raise Fault("memory_lost", f"the store {self.name} is gone; rebuild it from the log")
        return self._opened


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return float(sum(map(mul, one, other))) / (math.hypot(*one) * math.hypot(*other))
