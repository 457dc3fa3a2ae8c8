"""The memory projection in Milvus: dense vectors in one collection, words beside them, fused by rank.

Job: hold the rows of one generation of a memory, answer recalls, and say up to which sequence the log is applied.
Invariants: all writes go through one thread, one after another, whoever was cancelled meanwhile (concurrent writers
of one collection lose acknowledged rows in Milvus Lite); the mark that claims a sequence is written after the rows it
claims were acknowledged, into the same collection, so that neither can be lost without the other; the lexical side has
a mark of its own, and the smaller one counts; scores of words never leave: their sign and scale differ between stores.
Must not know: the log itself, who remembers, how the server is run, what makes vectors.
"""

from __future__ import annotations

import asyncio
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

from swarmd.adapters.milvus_store import packing, schema
from swarmd.adapters.milvus_store.connection import TIMEOUT_S, Connection, Place
from swarmd.adapters.milvus_store.recall import Recall
from swarmd.adapters.milvus_store.words import LocalWords, ServerWords, Words
from swarmd.coalesce import Coalescer
from swarmd.core.errors import Fault, Rejected
from swarmd.passages import check_memory, check_vector_query, mismatch
from swarmd.ports import HeldRow, Hit, Pin, Row, VectorQuery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from swarmd.adapters.milvus_store.word_index import WordRow

log = logging.getLogger(__name__)

Result = TypeVar("Result")

WINDOW_MS: Final = 2.0
QUERIES_MAX: Final = 128
ROWS_PER_WRITE: Final = 1_000
KEYS_PER_DELETE: Final = 1_000
ROWS_PER_PAGE: Final = 1_000
UNFLUSHED_MAX: Final = 1_024
"""Rows that are not flushed yet are scanned one by one in Milvus Lite: some 40 to 200 µs each and search."""
UNFLUSHED_UNSEEN_MAX: Final = 65_536
"""So many while nobody searches, as in a rebuild: flushes take a third of the time of writing. The first search that
comes nevertheless flushes them before it looks."""
QUIET_S: Final = 2.0
_PLACES: Final = 0x10000

Prepared = tuple[list[dict[str, Any]], "list[WordRow | None]"]


class MilvusVectorStore:
    """A `VectorStore` in the collection PREFIX_NAME of a Milvus. Everything that blocks runs in threads.

    Raises `Fault("memory_lost")` when the collection is gone: `open` it again and apply the log from what that returns.
    """

    def __init__(self, place: Place, name: str, pin: Pin) -> None:
        self.collection = f"{place.prefix}_{name}"
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", self.collection):
            raise Rejected(
                "bad_collection", f"collection {self.collection!r}: use ASCII letters, digits and _, no digit first"
            )
        self.pin = pin
        self._connection = Connection(place, self.collection)
        self._words: Words
        if place.directory is None:
            self._words = ServerWords(lambda texts, where, depth: self.recall.by_words(texts, where, depth))
        else:
            self._words = LocalWords(place.directory / "words" / f"{self.collection}.db")
        self.recall = Recall(self._connection, self._words)
        self._is_embedded = place.directory is not None
        self._claim = schema.Claim(0, pin.embedder, pin.dimension)
        self._is_open = False
        self._is_unsure = True
        """Rows beyond the mark may be there: what is called fresh is upserted all the same."""
        self.unflushed = 0
        """Rows written since the last flush."""
        self._applying = asyncio.Lock()
        self._writer: ThreadPoolExecutor | None = None
        self._beside: ThreadPoolExecutor | None = None
        self._quiet: asyncio.TimerHandle | None = None
        self._searches: Coalescer[VectorQuery, list[Hit]] = Coalescer(
            self.recall.answer, window_ms=WINDOW_MS, items_max=QUERIES_MAX
        )

    async def open(self) -> int:
        """Create the collection or load and warm it up; the sequence up to which the log is applied, 0 when new.

        Raises `Rejected` ("no_pymilvus", "embedder_mismatch", "format_mismatch"), `Fault`; of these "memory_damaged"
        says that an embedded Milvus finds its files wrong, so that only a `drop` helps.
        """
        return await self._write(self._open)

    async def apply(self, rows: Sequence[Row], forgotten: Sequence[str], upto: int, *, fresh: bool = False) -> None:
        """Upsert, then delete (an id in both is gone), then record the sequence; idempotent; never claims too much.

        The last of several rows with one id wins. `fresh` rows are inserted into an embedded Milvus, unless an earlier
        apply failed half-way. Raises `Rejected` before anything is written when a row is over the limits of
        `swarmd.passages`, else `Fault`; after a `Fault`, apply the same again.
        """
        self._check_open()
        gone = set(forgotten)
        latest = [row for row in {row.memory.id: row for row in rows}.values() if row.memory.id not in gone]
        parts = [latest[at : at + ROWS_PER_WRITE] for at in range(0, len(latest), ROWS_PER_WRITE)]
        # The next part is made ready while Milvus takes this one, also that of a next call; the order stays.
        preparing = asyncio.get_running_loop().run_in_executor(None, self._prepare_first, latest, parts)
        preparing.add_done_callback(lambda done: done.cancelled() or done.exception())  # waited for below, mostly
        async with self._applying:
            ready = await preparing
            # A request may be repeated unasked. Lite keeps one row of a key all the same, a server would keep two.
            is_fresh = fresh and self._is_embedded and not self._is_unsure
            self._is_unsure, was_unsure = True, self._is_unsure
            for part in [*parts[1:], []]:
                if ready is not None:
                    writing = self._write(self._put, ready, is_fresh)
                    ready, _ = await asyncio.gather(asyncio.to_thread(self._prepare, part), writing)
            expiring = min((row.memory.expires_at_ms for row in latest if row.memory.expires_at_ms), default=0)
            await self._write(self._conclude, [schema.key_of(memory_id) for memory_id in forgotten], upto, expiring)
            self._is_unsure = was_unsure
        self._flush_when_quiet()

    async def search(self, queries: Sequence[VectorQuery]) -> list[list[Hit]]:
        """The best hits for each query, best first. Concurrent calls share requests."""
        for query in queries:
            check_vector_query(query, self.pin)
        self._check_open()
        if self._is_embedded and self.unflushed > UNFLUSHED_MAX and not self.recall.was_asked:
            await self._write(self._flush)  # or this search and the next ones scan, row by row, what nobody looked at
        loads = self._connection.loads
        hits = await self._searches.ask(queries)
        if self._connection.loads > loads:  # a restarted server reads what was not flushed from its log, row by row
            self.unflushed += 1
            self._flush_when_quiet()
        return hits

    async def held(self) -> AsyncIterator[list[HeldRow]]:
        """Every memory in pages of about `ROWS_PER_PAGE`, in no order."""
        pages = min(_PLACES, 1 + await self.count() // ROWS_PER_PAGE)
        for page in range(pages):
            entities = await asyncio.to_thread(self._page, page, pages)
            if entities:
                yield await asyncio.to_thread(lambda found: [schema.held_of(entity) for entity in found], entities)

    async def count(self) -> int:
        """Memories held, the forgotten ones not counted."""
        self._check_open()
        rows = await asyncio.to_thread(
            self._connection.call,
            lambda client: client.query(self.collection, filter="", output_fields=["count(*)"], timeout=TIMEOUT_S),
        )
        return int(rows[0]["count(*)"]) - 1  # the mark

    async def drop(self) -> None:
        """Delete the collection, whatever it holds; `open` then makes a new one to be filled from the log."""
        self._is_open = False
        await self._write(self._drop)

    async def close(self) -> None:
        """Flush and disconnect. Idempotent; what could not be flushed is in the server's own log."""
        if self._writer is None:
            return
        try:
            if self._is_open:
                await self._write(self._flush)
        except Fault as fault:
            log.warning("memory closed without a flush: %s", fault.message)
        finally:
            self._is_open = False
            self._calm()
            await self._write(self._disconnect)
            self._writer.shutdown(wait=False)
            if self._beside is not None:
                self._beside.shutdown(wait=False)
            self._writer = self._beside = None

    # -- in the writer's thread

    async def _write(self, step: Callable[..., Result], *given: Any) -> Result:
        """Run a step in the writer's thread; whoever stops waiting for it does not stop it."""
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, f"{self.collection} writer")
            self._beside = ThreadPoolExecutor(1, f"{self.collection} words")
        return await asyncio.get_running_loop().run_in_executor(self._writer, step, *given)

    def _open(self) -> int:
        self._disconnect()
        self._is_open = False
        assert self._beside is not None
        reading = self._beside.submit(self._words.open)  # while Milvus loads its part
        try:
            claim = self._load()
        finally:
            reading.exception()
        with_words = reading.result()
        if claim is None:  # new, or created by a process that was killed before this
            self._words.clear()
            with_words = self._words.open()
            self._claim = schema.Claim(0, self.pin.embedder, self.pin.dimension)
            self._write_claim()
        else:
            self._claim = claim
        if with_words == 0 and self._claim.seq:  # their file was lost: the rows are here, and need no vectors
            self._gather_words()
            with_words = self._claim.seq
        applied = self._claim.seq if with_words is None else min(self._claim.seq, with_words)
        self._claim.seq = applied
        beyond = self._query(f"seq > {applied}", ["seq"], limit=1)
        self._is_unsure = bool(beyond)
        self.recall.warm_up(self.pin.dimension)
        self._is_open = True
        return applied

    def _load(self) -> schema.Claim | None:
        """Have Milvus ready; what its rows claim, None where nothing does."""
        self._connection.open()
        try:
            self._connection.call(self._create_or_load)
            claim = self._read_claim()
            self.unflushed = 1  # or more: the last process may have been killed
            self._flush()
        except Fault as fault:
            self._tell_damage(fault)
            raise
        if claim is not None:
            self._check(claim)
        return claim

    def _tell_damage(self, fault: Fault) -> None:
        """Raises `Fault("memory_damaged")` where an embedded Milvus is well, and only this collection is not."""
        if self._is_embedded and fault.code == "memory_unavailable":
            self._connection.check_alive()
            raise Fault("memory_damaged", f"the files of {self.collection} are damaged: {fault.message}") from fault

    def _put(self, ready: Prepared, is_fresh: bool) -> None:
        """Rows into Milvus, their words beside it at the same time."""
        columns, word_rows = ready
        assert self._beside is not None
        words = self._beside.submit(self._words.put, word_rows, [], None)
        try:
            self.unflushed += len(columns)
            if is_fresh:
                self._connection.call(lambda client: packing.insert(client, self.collection, columns, TIMEOUT_S))
            else:
                self._connection.call(lambda client: client.upsert(self.collection, columns, timeout=TIMEOUT_S))
        except Fault:
            words.exception()  # is waited for, and says less than what Milvus said
            raise
        words.result()

    def _conclude(self, gone: list[str], upto: int, expiring: int) -> None:
        """Delete, then claim, then flush where many rows wait for it."""
        for at in range(0, len(gone), KEYS_PER_DELETE):
            part = gone[at : at + KEYS_PER_DELETE]
            self._connection.call(lambda client: client.delete(self.collection, ids=part, timeout=TIMEOUT_S))  # noqa: B023
            self.unflushed += len(part)
        claim = self._claim
        first = min(filter(None, (claim.expiring, expiring)), default=0)
        if upto > claim.seq or first != claim.expiring:
            self._words.put([], gone, max(upto, claim.seq))
            before = claim.seq, claim.expiring
            claim.seq, claim.expiring = max(upto, claim.seq), first
            try:
                self._write_claim()
            except Fault:
                claim.seq, claim.expiring = before
                raise
            self.recall.expiring_ms = first
        elif gone:
            self._words.put([], gone, None)
        if self.unflushed >= (UNFLUSHED_MAX if self.recall.was_asked else UNFLUSHED_UNSEEN_MAX):
            self._flush()

    def _flush(self) -> None:
        if self.unflushed:
            self._connection.call(lambda client: client.flush(self.collection, timeout=TIMEOUT_S))
            self.unflushed = 0
            self.recall.was_asked = False

    def _drop(self) -> None:
        self._connection.open()
        try:
            self._connection.call(lambda client: client.drop_collection(self.collection, timeout=TIMEOUT_S))
        except Fault as fault:
            if not self._is_embedded or fault.code != "memory_unavailable":
                raise
            self._connection.check_alive()  # it may be unable to drop what it cannot read
        self._connection.remove_files()
        self._words.clear()
        self._disconnect()
        self._claim = schema.Claim(0, self.pin.embedder, self.pin.dimension)
        self.unflushed = 0

    def _disconnect(self) -> None:
        self._connection.close()
        self._words.close()

    def _create_or_load(self, client: Any) -> None:
        words = not self._is_embedded
        if not client.has_collection(self.collection, timeout=TIMEOUT_S):
            schema.create(client, self.collection, self.pin.dimension, words=words, timeout=TIMEOUT_S)
        schema.index_and_load(client, self.collection, words=words, timeout=TIMEOUT_S)

    def _read_claim(self) -> schema.Claim | None:
        rows = self._connection.call(
            lambda client: client.get(self.collection, ids=[schema.MARK], output_fields=["rest"], timeout=TIMEOUT_S)
        )
        claim = schema.claim_of(rows[0]) if rows else None
        self.recall.expiring_ms = claim.expiring if claim else 0
        return claim

    def _write_claim(self) -> None:
        row = schema.mark_row(self._claim, words=not self._is_embedded)
        self._connection.call(lambda client: client.upsert(self.collection, [row], timeout=TIMEOUT_S))
        self.unflushed += 1

    def _check(self, claim: schema.Claim) -> None:
        if claim.format != schema.FORMAT:
            raise Rejected(
                "format_mismatch",
                f"collection {self.collection} has row format {claim.format}, this version writes {schema.FORMAT}: "
                "drop it and rebuild the memory from its log",
            )
        held = Pin(claim.embedder, claim.dimension)
        if held != self.pin:
            raise mismatch(f"collection {self.collection}", held, self.pin)

    def _gather_words(self) -> None:
        count = self._connection.call(
            lambda client: client.query(self.collection, filter="", output_fields=["count(*)"], timeout=TIMEOUT_S)
        )
        pages = min(_PLACES, 1 + int(count[0]["count(*)"]) // ROWS_PER_PAGE)
        for page in range(pages):
            memories = [schema.memory_of(entity) for entity in self._page(page, pages)]
            if (ready := self._prepare([Row(memory, ()) for memory in memories])) is not None:
                self._words.put(ready[1], [], None)
        self._words.put([], [], self._claim.seq)

    # -- in any thread

    def _prepare_first(self, rows: Sequence[Row], parts: Sequence[Sequence[Row]]) -> Prepared | None:
        """Check all rows, then make the first part ready."""
        for row in rows:
            check_memory(row.memory)
        schema.check_vectors(rows, self.pin.dimension)
        return self._prepare(parts[0]) if parts else None

    def _prepare(self, part: Sequence[Row]) -> Prepared | None:
        """Rows of Milvus, and what is kept of their words."""
        if not part:
            return None
        columns = [schema.row_of(row, schema.key_of(row.memory.id)) for row in part]
        return columns, [self._words.prepare(row) for row in columns]

    def _page(self, page: int, pages: int) -> list[dict[str, Any]]:
        """The rows of one of so many ranges of keys, which are spread evenly."""
        low, high = (f"{_PLACES * edge // pages:04x}" if edge < pages else "g" for edge in (page, page + 1))
        return self._query(f'key >= "{low}" and key < "{high}"', schema.WORDS)

    def _query(self, expression: str, fields: list[str], limit: int | None = None) -> list[dict[str, Any]]:
        rows = self._connection.call(
            lambda client: client.query(
                self.collection,
                filter=f'({expression}) and key != "{schema.MARK}"',
                output_fields=fields,
                timeout=TIMEOUT_S,
                **({} if limit is None else {"limit": limit}),
            )
        )
        return [dict(row) for row in rows]

    # -- on the loop

    def _check_open(self) -> None:
        if not self._is_open:
            raise Fault("memory_closed", "the memory store is not open")

    def _flush_when_quiet(self) -> None:
        """What is flushed is indexed, and searched faster; while much is written, many rows share a flush."""
        self._calm()
        self._quiet = asyncio.get_running_loop().call_later(QUIET_S, self._flush_soon)

    def _flush_soon(self) -> None:
        if self._is_open and self._writer is not None:
            self._writer.submit(self._flush_or_say_why)

    def _flush_or_say_why(self) -> None:
        try:
            if self._is_open:
                self._flush()
        except Fault as fault:
            log.warning("memory not flushed, it will be with the next writes: %s", fault.message)

    def _calm(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
