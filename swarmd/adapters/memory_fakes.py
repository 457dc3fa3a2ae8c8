"""The in-process twin of the vector store: same promises, no server.

Job: let roles be tested with a `MemoryStore` that is exact and quick; the contract suite holds it to the real one.
Must not know: Milvus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

from swarmd.core.errors import Fault, Rejected
from swarmd.core.memory import Memory
from swarmd.passages import candidates, check_memory, check_query, fuse
from swarmd.ports import Embedder, Passage, RecallQuery
from swarmd.ranking import bm25
from swarmd.text import stems

if TYPE_CHECKING:
    from collections.abc import Sequence


class FakeRow(Struct):
    """A memory as stored: with its vector and its stems."""

    memory: Memory
    vector: list[float]
    stems: list[str]


class FakeMemoryDisk(Struct):
    """What outlives a `FakeMemoryStore`; give the same one to the next store to reopen it."""

    rows: dict[str, FakeRow] = field(default_factory=dict)
    applied: int = 0
    embedder: str = ""


class FakeMemoryStore:
    """A `MemoryStore` over a dict: cosine and BM25 over all rows, fused by rank."""

    def __init__(self, embedder: Embedder, disk: FakeMemoryDisk | None = None) -> None:
        self.embedder = embedder
        self.disk = FakeMemoryDisk() if disk is None else disk
        self._is_open = False

    async def open(self) -> int:
        """The sequence up to which the log is applied. Raises `Rejected("embedder_mismatch")`."""
        if self.disk.embedder not in ("", self.embedder.id):
            raise Rejected(
                "embedder_mismatch",
                f"the rows were embedded by {self.disk.embedder}, not by {self.embedder.id}: configure the first "
                "again, or drop them and rebuild the memory from its log",
            )
        self.disk.embedder = self.embedder.id
        self._is_open = True
        return self.disk.applied

    async def apply(self, memories: Sequence[Memory], forgotten: Sequence[str], upto: int) -> None:
        """Upsert, then delete (an id in both is gone), then record the sequence; idempotent."""
        self._check_open()
        for memory in memories:
            check_memory(memory)
        vectors = self.embedder.embed([memory.text for memory in memories])
        for memory, vector in zip(memories, vectors, strict=True):
            self.disk.rows[memory.id] = FakeRow(memory, vector, stems(memory.text))
        for memory_id in forgotten:
            self.disk.rows.pop(memory_id, None)
        self.disk.applied = max(self.disk.applied, upto)

    async def search(self, queries: Sequence[RecallQuery]) -> list[list[Passage]]:
        """The best `k` passages for each query, best first."""
        self._check_open()
        for query in queries:
            check_query(query)
        return [self._search(query) for query in queries]

    def _search(self, query: RecallQuery) -> list[Passage]:
        wanted = query.labels.items()
        rows = {key: row for key, row in self.disk.rows.items() if wanted <= row.memory.labels.items()}
        vector = self.embedder.embed([query.text])[0]
        nearness = {key: sum(map(float.__mul__, row.vector, vector)) for key, row in rows.items()}
        keys = list(rows)
        scores = bm25(stems(query.text), [rows[key].stems for key in keys])
        overlap = {key: score for key, score in zip(keys, scores, strict=True) if score > 0}
        depth = candidates(query.k)
        rankings = [sorted(ranked, key=ranked.__getitem__, reverse=True)[:depth] for ranked in (nearness, overlap)]
        return [Passage(rows[key].memory, score) for key, score in fuse(rankings, query.k)]

    async def count(self) -> int:
        """Memories held."""
        self._check_open()
        return len(self.disk.rows)

    async def drop(self) -> None:
        """Delete everything; `open` then starts a new store to be filled from the log."""
        self.disk.rows.clear()
        self.disk.applied = 0
        self.disk.embedder = ""
        self._is_open = False

    async def close(self) -> None:
        """Idempotent."""
        self._is_open = False

    def _check_open(self) -> None:
        if not self._is_open:
            raise Fault("memory_closed", "the memory store is not open")
