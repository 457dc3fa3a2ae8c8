"""Vectors for an event loop, from an embedder that blocks: batched, remembered, at a bounded pace.

Job: concurrent callers share batches, which a thread embeds; what was embedded lately is not embedded again; where an
endpoint allows only so much in a minute, batches wait for their turn. Invariants: a vector is the same whether it was
remembered or made; every wait is bounded, and one that would be longer is a `Fault` that says how long; what is held
never exceeds its bound in bytes. Where vectors are computed here, large batches may be made in a process beside this
one: whoever fills a store would otherwise share one interpreter with whoever answers. Must not know: what the texts
are for, or how vectors are made.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from swarmd.aside import ProcessDied, Processes
from swarmd.coalesce import Coalescer
from swarmd.core.errors import Fault, Rejected
from swarmd.core.model_limits import Rate, Slice, full, take

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swarmd.ports import Clock, Embedder

log = logging.getLogger(__name__)

#: How long a batch may wait for the rate; a longer wait is the caller's.
RATE_WAIT_MS_MAX: Final = 30_000
#: A wait for the rate that is worth a line in the logs.
TOLD_WAIT_MS: Final = 1_000
#: What an entry of the cache takes beside its numbers: the digest, the array's head, its place in the table.
ENTRY_BYTES: Final = 240
#: Batches of so many texts are worth the way to another process, which ends when it was idle for a while.
ASIDE_TEXTS_MIN: Final = 256
ASIDE_IDLE_S: Final = 30.0
_DIGEST_BYTES: Final = 16
_CHARS_PER_TOKEN: Final = 4


class EmbedLimits(Struct, frozen=True):
    """How an embedder is used. `rate` is per minute; a token is taken to be 4 characters.

    A batch has at most `batch_texts` texts and about `batch_chars` characters. `lanes` batches may be under way at
    once: 1 for one that computes here, more for one that waits for an endpoint. A caller who waits for longer than
    `wait_ms_max` for one batch gets a `Fault`. `window_ms` is how long a batch waits for company.
    """

    cache_bytes: int = 64 * 1024 * 1024
    rate: Rate = Rate()
    batch_texts: int = 128
    batch_chars: int = 150_000
    lanes: int = 1
    window_ms: float = 0.0
    wait_ms_max: int = 180_000


class CachedEmbedder:
    """`Embeddings` over an `Embedder`. One event loop; the embedder is called from threads, `lanes` at a time."""

    def __init__(
        self,
        embedder: Embedder,
        clock: Clock,
        limits: EmbedLimits | None = None,
        aside: Callable[[int, list[str]], bytes] | None = None,
    ) -> None:
        """No I/O. Raises `Rejected("bad_limits")`.

        `aside` is a function of a module that makes the same vectors, of a dimension and of texts, as float32 one after
        another: it is called in another process for large batches.
        """
        self._limits = limits = limits or EmbedLimits()
        if min(limits.batch_texts, limits.batch_chars, limits.lanes, limits.wait_ms_max) < 1 or limits.cache_bytes < 0:
            raise Rejected("bad_limits", f"limits of an embedder must be positive, and a cache not negative: {limits}")
        self._embedder, self._clock = embedder, clock
        self._aside, self._processes = aside, Processes()
        self._ending: asyncio.TimerHandle | None = None
        self.id, self.dimension = embedder.id, embedder.dimension
        self._lanes = [
            Coalescer(self._embed, window_ms=limits.window_ms, items_max=limits.batch_texts)
            for _ in range(limits.lanes)
        ]
        self._buckets = full(limits.rate, clock.now_ms())
        self._drawing = asyncio.Lock()
        self._cache: OrderedDict[bytes, array[float]] = OrderedDict()
        self._entries_max = limits.cache_bytes // (4 * self.dimension + ENTRY_BYTES)
        self.hits = 0
        self.misses = 0

    async def vectors(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """One unit vector per text, in order; see the port. A batch that fails, fails for all who were in it.

        Raises what the embedder raises, `Fault("rate_wait" | "embedder_busy")`.
        """
        keys = [_digest(text) for text in texts]
        found: dict[bytes, array[float]] = {}
        missing: dict[bytes, str] = {}
        for key, text in zip(keys, texts, strict=True):
            held = self._remembered(key)
            if held is None:
                missing[key] = text
            else:
                found[key] = held
        self.hits += len(texts) - len(missing)
        self.misses += len(missing)
        if missing:
            made = await self._made(list(missing.values()))
            found.update(zip(missing, made, strict=True))
        return [found[key] for key in keys]

    async def close(self) -> None:
        """Forget all vectors, and close the embedder if it can be closed."""
        self._cache.clear()
        if self._ending is not None:
            self._ending.cancel()
        self._processes.close()
        closing = getattr(self._embedder, "close", None)
        if closing is not None:
            await asyncio.to_thread(closing)

    def cached_bytes(self) -> int:
        """What the cache holds at present, as it is reckoned against its bound."""
        return len(self._cache) * (4 * self.dimension + ENTRY_BYTES)

    async def _made(self, texts: list[str]) -> list[array[float]]:
        """In batches; a caller with many of them uses all lanes, short of the first where there are more."""
        chunks = self._chunks(texts)
        if len(chunks) == 1:
            return await self._asked(chunks[0], 0)
        lanes = range(1, len(self._lanes)) if len(self._lanes) > 1 else range(1)
        parts: list[list[array[float]]] = [[] for _ in chunks]

        async def through(lane: int, first: int) -> None:
            for at in range(first, len(chunks), len(lanes)):
                parts[at] = await self._asked(chunks[at], lane)

        try:
            async with asyncio.TaskGroup() as group:
                for first, lane in enumerate(lanes):
                    group.create_task(through(lane, first))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [vector for part in parts for vector in part]

    async def _asked(self, chunk: list[str], lane: int) -> list[array[float]]:
        limit_ms = self._limits.wait_ms_max
        try:
            async with asyncio.timeout(limit_ms / 1000):
                return await self._lanes[lane].ask(chunk)
        except TimeoutError:
            raise Fault("embedder_busy", f"{self.id} embedded nothing in {limit_ms} ms", retry_after_ms=1_000) from None

    def _chunks(self, texts: list[str]) -> list[list[str]]:
        chunks: list[list[str]] = []
        chars = 0
        for text in texts:
            if (
                not chunks
                or len(chunks[-1]) >= self._limits.batch_texts
                or chars + len(text) > self._limits.batch_chars
            ):
                chunks.append([])
                chars = 0
            chunks[-1].append(text)
            chars += len(text)
        return chunks

    async def _embed(self, texts: list[str]) -> list[array[float]]:
        """One batch, which several callers may have filled with the same texts."""
        wanted = {_digest(text): text for text in texts}
        keys = [_digest(text) for text in texts]
        found = {key: held for key in wanted if (held := self._remembered(key)) is not None}
        rest = {key: text for key, text in wanted.items() if key not in found}
        if rest:
            await self._draw(sum(map(len, rest.values())) // _CHARS_PER_TOKEN + len(rest))
            made = await self._computed(list(rest.values()))
            for key, vector in zip(rest, made, strict=True):
                found[key] = vector
                self._remember(key, vector)
        return [found[key] for key in keys]

    async def _computed(self, texts: list[str]) -> list[array[float]]:
        if self._aside is None or len(texts) < ASIDE_TEXTS_MIN:
            return await asyncio.to_thread(self._arrays, texts)
        if self._ending is not None:
            self._ending.cancel()
        try:
            vectors = await self._processes.call(self._aside, self.dimension, texts)
        except ProcessDied:
            log.warning("the process that embeds with %s ended: %d texts are embedded here", self.id, len(texts))
            return await asyncio.to_thread(self._arrays, texts)
        finally:
            self._ending = asyncio.get_running_loop().call_later(ASIDE_IDLE_S, self._processes.close)
        size = 4 * self.dimension
        return [array("f", vectors[at : at + size]) for at in range(0, len(vectors), size)]

    def _arrays(self, texts: list[str]) -> list[array[float]]:
        return [array("f", vector) for vector in self._embedder.embed(texts)]

    async def _draw(self, tokens: int) -> None:
        """Take one request and its tokens from the rate, waiting for it if need be."""
        rate = self._limits.rate
        if not rate.limited:
            return
        need = Slice(1, tokens if rate.tokens_per_minute else 0)
        deadline = self._clock.now_ms() + RATE_WAIT_MS_MAX
        async with self._drawing:
            while True:
                now = self._clock.now_ms()
                _, wait = take(self._buckets, rate, need, need, now)
                if not wait:
                    return
                if now + wait > deadline:
                    words = f"the rate that [memory] allows {self.id} is used up for {wait} ms"
                    raise Fault("rate_wait", words, retry_after_ms=wait)
                if wait >= TOLD_WAIT_MS:
                    log.info("embedding %d tokens waits %d ms for the rate that [memory] allows", tokens, wait)
                await self._clock.sleep(wait)

    def _remembered(self, key: bytes) -> array[float] | None:
        held = self._cache.get(key)
        if held is not None:
            self._cache.move_to_end(key)
        return held

    def _remember(self, key: bytes, vector: array[float]) -> None:
        if not self._entries_max:
            return
        self._cache[key] = vector
        while len(self._cache) > self._entries_max:
            self._cache.popitem(last=False)


def _digest(text: str) -> bytes:
    # surrogatepass: a lone surrogate is an odd character, which the embedder may judge.
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()
