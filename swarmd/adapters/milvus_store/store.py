"""The memory projection in Milvus: dense vectors and BM25 in one collection, fused by rank.

Job: hold the rows of one memory log, answer recalls, and say up to which sequence the log is applied.
Invariants: all writes go one after another (concurrent writers of one collection lose acknowledged rows in Milvus
Lite); the mark that claims a sequence is written after the rows it claims were acknowledged, into the same collection,
so that neither can be lost without the other; scores never leave: their sign and scale differ between Milvus and
Milvus Lite. Every request has a timeout. Works with Milvus Lite's server and with a Milvus server (strong consistency).
Must not know: the log itself, who remembers, how the server is run.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

from swarmd.adapters.milvus_store.rows import (
    FORMAT,
    MARK,
    PAYLOAD,
    TIMEOUT_S,
    analysed,
    create,
    digest_of,
    filter_of,
    index_and_load,
    json_of,
    memory_of,
    row_of,
)
from swarmd.coalesce import Coalescer
from swarmd.core.errors import Fault, Rejected
from swarmd.core.memory import Memory
from swarmd.passages import candidates, check_memory, check_query, fuse
from swarmd.ports import Embedder, Passage, RecallQuery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

log = logging.getLogger(__name__)

Result = TypeVar("Result")

WINDOW_MS = 2.0
QUERIES_MAX = 128
ROWS_PER_WRITE = 256
ROWS_UNFLUSHED_MAX = 256
"""Rows that are not flushed yet are scanned one by one in Milvus Lite: about 40 µs each and search."""
QUIET_S = 2.0
CONNECT_S = 10.0

_NOT_LOADED = 101
_NOT_FOUND = 100
# Otherwise channels to one address share their connection and its back-off: a new client of a server that has just come
# back would be refused for a second without a try.
_GRPC = {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.min_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
}


class MilvusStore:
    """A `MemoryStore` in the collection `collection` of the Milvus at `uri`.

    `tend` is to run beside it in the owner's TaskGroup: it flushes once writes pause. Requests go out in threads and
    on the loop; embedding and stemming run in threads. Raises `Fault("memory_lost")` when the collection is gone:
    `open` it again and apply the log from what it returns.
    """

    def __init__(self, uri: str, collection: str, embedder: Embedder, *, token: str = "") -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", collection):
            raise Rejected(
                "bad_collection", f"collection {collection!r}: use ASCII letters, digits and _, no digit first"
            )
        self.uri = uri
        self.collection = collection
        self.embedder = embedder
        self.requests = 0
        """Search requests sent so far: two for each group of coalesced queries with the same labels."""
        self._token = token
        self._client: Any = None
        self._writing = asyncio.Lock()
        self._loading = asyncio.Lock()
        self._applied = 0
        self.unflushed = 0
        """Rows written since the last flush."""
        self.flushed = asyncio.Event()
        self._written = asyncio.Event()
        self._searches: Coalescer[RecallQuery, list[Passage]] = Coalescer(
            self._search_batch, window_ms=WINDOW_MS, items_max=QUERIES_MAX
        )

    async def open(self) -> int:
        """Create the collection or load and warm it up; the sequence up to which the log is applied, 0 when new.

        Raises `Rejected` ("no_pymilvus", "embedder_mismatch", "format_mismatch"), `Fault("memory_unavailable")`.
        """
        await asyncio.to_thread(_require_pymilvus)  # importing it takes a second
        async with self._writing:
            await self._disconnect()
            await self._define(self._create_or_load)
            await self._connect()
            mark = await self._read_mark()
            if mark is None:  # new, or created by a process that was killed before this
                await self._write_mark(0)
            else:
                self._check_pin(mark)
                self.unflushed = 1  # or more: the last process may have been killed
                await self._flush()
            self._applied = 0 if mark is None else int(mark["seq"])
        await self._answer([RecallQuery(text="warm up", k=1)])
        return self._applied

    async def apply(self, memories: Sequence[Memory], forgotten: Sequence[str], upto: int) -> None:
        """Upsert, then delete (an id in both is gone), then record the sequence; idempotent; never claims too much.

        The last of several memories with one id wins. Raises `Rejected` before anything is written when a memory
        is over the limits of `swarmd.passages`, else `Fault`; after a `Fault`, apply the same again.
        """
        for memory in memories:
            check_memory(memory)
        gone = set(forgotten)
        latest = {memory.id: memory for memory in memories if memory.id not in gone}
        rows = await asyncio.to_thread(self._rows, list(latest.values()))
        keys = [digest_of(memory_id) for memory_id in forgotten]
        async with self._writing:
            for at in range(0, len(rows), ROWS_PER_WRITE):
                await self._write(
                    lambda part: self._client.upsert(self.collection, part, timeout=TIMEOUT_S),
                    rows[at : at + ROWS_PER_WRITE],
                )
            for at in range(0, len(keys), ROWS_PER_WRITE):
                await self._write(
                    lambda part: self._client.delete(self.collection, ids=part, timeout=TIMEOUT_S),
                    keys[at : at + ROWS_PER_WRITE],
                )
            if upto > self._applied:
                await self._write_mark(upto)
                self._applied = upto
            if self.unflushed >= ROWS_UNFLUSHED_MAX:
                await self._flush()

    async def search(self, queries: Sequence[RecallQuery]) -> list[list[Passage]]:
        """The best `k` passages for each query, best first. Concurrent calls share requests."""
        for query in queries:
            check_query(query)
        return await self._searches.ask(queries)

    async def count(self) -> int:
        """Memories held, the forgotten ones not counted."""
        rows = await self._call(
            lambda: self._client.query(self.collection, filter="", output_fields=["count(*)"], timeout=TIMEOUT_S)
        )
        return int(rows[0]["count(*)"]) - 1  # the mark

    async def tend(self) -> None:
        """Flush after `QUIET_S` without a write, until cancelled: what is flushed is indexed, and searched faster."""
        while True:
            await self._written.wait()
            self._written.clear()
            try:
                async with asyncio.timeout(QUIET_S):
                    await self._written.wait()
            except TimeoutError:
                async with self._writing:
                    try:
                        await self._flush()
                    except Fault as fault:
                        log.warning("memory not flushed, it will be with the next writes: %s", fault.message)

    async def drop(self) -> None:
        """Delete the collection, whatever it holds; `open` then makes a new one to be filled from the log."""
        await asyncio.to_thread(_require_pymilvus)
        async with self._writing:
            await self._define(lambda client: client.drop_collection(self.collection, timeout=TIMEOUT_S))
            await self._disconnect()
            self._applied = self.unflushed = 0

    async def close(self) -> None:
        """Flush and disconnect. Idempotent; what could not be flushed is in the server's own log."""
        async with self._writing:
            if self._client is None:
                return
            try:
                await self._flush()
            except Fault as fault:
                log.warning("memory closed without a flush: %s", fault.message)
            await self._disconnect()

    # -- searching

    async def _search_batch(self, queries: list[RecallQuery]) -> list[list[Passage]]:
        return await self._answer(queries)

    async def _answer(self, queries: list[RecallQuery]) -> list[list[Passage]]:
        """One dense and one BM25 request for all queries with the same labels."""
        vectors = await asyncio.to_thread(self.embedder.embed, [query.text for query in queries])
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for index, query in enumerate(queries):
            groups[filter_of(query.labels)].append(index)
        answers: list[list[Passage]] = [[] for _ in queries]
        for expression, members in groups.items():
            depth = max(candidates(queries[index].k) for index in members)
            dense = await self._ranking("dense", [vectors[index] for index in members], expression, depth + 1)
            words = [analysed(queries[index].text) for index in members]
            lexical = await self._ranking("lexical", words, expression, depth)
            for index, by_vector, by_word in zip(members, dense, lexical, strict=True):
                answers[index] = _fused(by_vector, by_word, queries[index].k)
        return answers

    async def _ranking(self, field: str, data: list[Any], expression: str, limit: int) -> list[dict[str, Memory]]:
        """For each query the best memories by one index, by key, best first; the mark is left out."""
        self.requests += 1
        hits_by_query = await self._call(
            lambda: self._client.search(
                self.collection,
                data,
                anns_field=field,
                filter=expression,
                limit=limit,
                output_fields=PAYLOAD,
                timeout=TIMEOUT_S,
            )
        )
        return [{hit["key"]: memory_of(hit["entity"]) for hit in hits if hit["key"] != MARK} for hits in hits_by_query]

    # -- writing, under the lock

    async def _write(self, send: Callable[[list[Any]], Awaitable[Any]], part: list[Any]) -> None:
        await self._call(lambda: send(part))
        self.unflushed += len(part)
        self.flushed.clear()
        self._written.set()

    async def _flush(self) -> None:
        if self.unflushed:
            await self._call(lambda: self._client.flush(self.collection, timeout=TIMEOUT_S))
            self.unflushed = 0
            self.flushed.set()

    async def _read_mark(self) -> dict[str, Any] | None:
        rows = await self._call(
            lambda: self._client.get(self.collection, ids=[MARK], output_fields=["seq", "labels"], timeout=TIMEOUT_S)
        )
        return dict(rows[0]) if rows else None

    async def _write_mark(self, seq: int) -> None:
        """The claim that everything up to `seq` is applied, with what the rows were made by."""
        pin = {"embedder": self.embedder.id, "dimension": self.embedder.dimension, "format": FORMAT}
        unit = [1.0] + [0.0] * (self.embedder.dimension - 1)
        row = row_of(MARK, Memory(id="", text="", labels={}, seq=seq), unit, "") | {"labels": pin}
        await self._call(lambda: self._client.upsert(self.collection, [row], timeout=TIMEOUT_S))

    def _check_pin(self, mark: dict[str, Any]) -> None:
        pin = json_of(mark["labels"])
        if pin.get("format") != FORMAT:
            raise Rejected(
                "format_mismatch",
                f"collection {self.collection} has row format {pin.get('format')}, this version writes {FORMAT}: "
                "drop it and rebuild the memory from its log",
            )
        if (pin.get("embedder"), pin.get("dimension")) != (self.embedder.id, self.embedder.dimension):
            raise Rejected(
                "embedder_mismatch",
                f"collection {self.collection} was embedded by {pin.get('embedder')} ({pin.get('dimension')} "
                f"dimensions), not by {self.embedder.id} ({self.embedder.dimension}): configure the first again, "
                "or drop the collection and rebuild the memory from its log",
            )

    def _rows(self, memories: list[Memory]) -> list[dict[str, Any]]:
        vectors = self.embedder.embed([memory.text for memory in memories])
        return [
            row_of(digest_of(memory.id), memory, vector, analysed(memory.text))
            for memory, vector in zip(memories, vectors, strict=True)
        ]

    # -- connection and definition

    async def _connect(self) -> None:
        from pymilvus import AsyncMilvusClient

        self._client = AsyncMilvusClient(
            uri=self.uri, token=self._token, timeout=CONNECT_S, dedicated=True, grpc_options=_GRPC
        )

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _call(self, request: Callable[[], Awaitable[Result]]) -> Result:
        """One request; a collection that a restarted server has not loaded is loaded, and the request repeated once."""
        if self._client is None:
            raise Fault("memory_closed", "the memory store is not open")
        try:
            return await _translated(request)
        except Fault as fault:
            if fault.code != "memory_not_loaded":
                raise
        async with self._loading:
            await self._define(lambda client: client.load_collection(self.collection, timeout=TIMEOUT_S))
        return await _translated(request)

    async def _define(self, change: Callable[[Any], None]) -> None:
        """Run definitions with the synchronous client in a thread: the asynchronous one cannot create indexes here."""

        def run() -> None:
            from pymilvus import MilvusClient

            client = MilvusClient(
                uri=self.uri, token=self._token, timeout=CONNECT_S, dedicated=True, grpc_options=_GRPC
            )
            try:
                change(client)
            finally:
                client.close()

        await _translated(lambda: asyncio.to_thread(run))

    def _create_or_load(self, client: Any) -> None:
        if not client.has_collection(self.collection, timeout=TIMEOUT_S):
            create(client, self.collection, self.embedder.dimension)
        index_and_load(client, self.collection)


def _require_pymilvus() -> None:
    try:
        import pymilvus  # noqa: F401
    except ImportError as error:
        raise Rejected("no_pymilvus", "pymilvus is not installed: run `pip install 'swarmd[memory]'`") from error
    # It prints a traceback for every failed request; ours are raised as faults and logged by their receivers.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)


async def _translated(request: Callable[[], Awaitable[Result]]) -> Result:
    import grpc  # type: ignore[import-untyped,unused-ignore]
    from pymilvus import MilvusException

    try:
        return await request()
    except MilvusException as error:
        if error.code == _NOT_LOADED:
            raise Fault("memory_not_loaded", error.message) from error
        if error.code == _NOT_FOUND:
            raise Fault("memory_lost", f"the collection is gone; rebuild it from the log: {error.message}") from error
        raise Fault("memory_unavailable", f"Milvus failed: {error.message}", retry_after_ms=500) from error
    except grpc.RpcError as error:
        raise Fault("memory_unavailable", f"Milvus failed: {error}", retry_after_ms=500) from error


def _fused(by_vector: Mapping[str, Memory], by_word: Mapping[str, Memory], k: int) -> list[Passage]:
    found = {**by_vector, **by_word}
    return [Passage(found[key], score) for key, score in fuse([list(by_vector), list(by_word)], k)]
