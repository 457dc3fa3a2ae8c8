"""Embeddings for an event loop: shared batches, a bounded cache, a pace, failures for whom they concern."""

from __future__ import annotations

import asyncio
import threading
from array import array
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.fakes import FakeClock
from swarmd.cached_embedder import ENTRY_BYTES, RATE_WAIT_MS_MAX, CachedEmbedder, EmbedLimits
from swarmd.core.errors import Fault, Rejected
from swarmd.core.model_limits import Rate
from swarmd.hash_embedder import HashEmbedder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Counted:
    """Lengths as vectors; notes each batch, and waits in its thread while `gate` is shut."""

    id = "counted"
    dimension = 2

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.batches.append(list(texts))
        assert self.gate.wait(20)
        if "bad" in texts:
            raise Fault("model_unavailable", "down", retry_after_ms=7)
        return [[float(len(text)), 1.0] for text in texts]

    def close(self) -> None:
        self.closed = True


async def until(done: Callable[[], object]) -> None:
    """A few turns of the loop and of the threads, until something has happened."""
    async with asyncio.timeout(20):
        while not done():
            await asyncio.sleep(0.001)


async def test_vectors_come_in_order_as_float32() -> None:
    made = CachedEmbedder(HashEmbedder(64), FakeClock())
    texts = ["a lease", "a broker", "a lease", ""]
    found = await made.vectors(texts)
    plain = HashEmbedder(64).embed(texts)
    assert [list(vector) for vector in found] == [list(array("f", vector)) for vector in plain]
    assert (made.id, made.dimension) == ("hash-v2-64", 64)
    assert await made.vectors([]) == []


async def test_concurrent_callers_share_a_batch_and_each_text_is_embedded_once() -> None:
    inner = Counted()
    made = CachedEmbedder(inner, FakeClock())
    answers = await asyncio.gather(*(made.vectors([f"text {n % 3}", "same"]) for n in range(40)))
    assert all(answer[1] == array("f", [4.0, 1.0]) for answer in answers)
    assert sorted(text for batch in inner.batches for text in batch) == ["same", "text 0", "text 1", "text 2"]
    await made.vectors(["same"])
    assert sum(map(len, inner.batches)) == 4
    assert made.hits > 0


async def test_the_cache_keeps_its_bound_and_what_was_used_last() -> None:
    inner = Counted()
    made = CachedEmbedder(inner, FakeClock(), EmbedLimits(cache_bytes=3 * (4 * 2 + ENTRY_BYTES)))
    await made.vectors(["a", "bb", "ccc"])
    await made.vectors(["a"])
    await made.vectors(["dddd"])  # drops "bb", which nobody has asked for since
    assert made.cached_bytes() == 3 * (4 * 2 + ENTRY_BYTES)
    await made.vectors(["a", "ccc", "dddd"])
    assert len(inner.batches) == 2
    await made.vectors(["bb"])
    assert inner.batches[-1] == ["bb"]
    none = CachedEmbedder(inner, FakeClock(), EmbedLimits(cache_bytes=0))
    await none.vectors(["a"])
    await none.vectors(["a"])
    assert [inner.batches[-2], none.cached_bytes()] == [["a"], 0]


async def test_many_texts_go_in_batches_over_several_lanes() -> None:
    inner = Counted()
    inner.gate.clear()
    made = CachedEmbedder(inner, FakeClock(), EmbedLimits(batch_texts=10, lanes=3))
    async with asyncio.TaskGroup() as group:
        bulk = group.create_task(made.vectors([f"{n:03}" for n in range(95)]))
        await until(lambda: len(inner.batches) == 2)
        short = group.create_task(made.vectors(["a query"]))  # the first lane is free for it
        await until(lambda: ["a query"] in inner.batches)
        inner.gate.set()
    assert len(bulk.result()) == 95
    assert list(short.result()[0]) == [7.0, 1.0]
    assert max(map(len, inner.batches)) == 10
    await CachedEmbedder(inner, FakeClock(), EmbedLimits(batch_chars=100)).vectors(["x" * 60, "y" * 60, "z" * 500])
    assert [len(batch) for batch in inner.batches[-3:]] == [1, 1, 1]


async def test_a_batch_that_fails_is_not_remembered() -> None:
    inner = Counted()
    made = CachedEmbedder(inner, FakeClock(), EmbedLimits(batch_texts=2, lanes=2))
    with pytest.raises(Fault) as caught:
        await made.vectors(["a", "bad", "c", "d"])
    assert (caught.value.code, caught.value.retry_after_ms) == ("model_unavailable", 7)
    assert list((await made.vectors(["a"]))[0]) == [1.0, 1.0]


async def test_batches_wait_for_the_rate_and_a_long_wait_is_the_callers() -> None:
    inner, clock = Counted(), FakeClock()
    limits = EmbedLimits(rate=Rate(requests_per_minute=60), cache_bytes=0)
    made = CachedEmbedder(inner, clock, limits)
    for n in range(6):  # a tenth of a minute's is there at once
        await made.vectors([str(n)])
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(made.vectors(["late"]))
        await until(lambda: clock._sleepers)
        assert len(inner.batches) == 6
        await clock.advance(2_000)
    assert list(waiting.result()[0]) == [4.0, 1.0]
    slow = CachedEmbedder(inner, clock, EmbedLimits(rate=Rate(requests_per_minute=1)))
    await slow.vectors(["first"])
    with pytest.raises(Fault) as caught:
        await slow.vectors(["second"])
    assert caught.value.code == "rate_wait"
    assert (caught.value.retry_after_ms or 0) > RATE_WAIT_MS_MAX


async def test_tokens_are_counted_by_characters() -> None:
    inner, clock = Counted(), FakeClock()
    made = CachedEmbedder(inner, clock, EmbedLimits(rate=Rate(tokens_per_minute=1_000)))
    await made.vectors(["x" * 380])
    async with asyncio.TaskGroup() as group:
        large = group.create_task(made.vectors(["y" * 4_000]))  # more than is ever there at once: it leaves a debt
        await until(lambda: clock._sleepers)
        await clock.advance(10_000)
    assert list(large.result()[0]) == [4_000.0, 1.0]
    with pytest.raises(Fault, match="used up"):
        await made.vectors(["z"])


async def test_a_wait_for_an_embedder_that_hangs_is_bounded() -> None:
    inner = Counted()
    inner.gate.clear()
    made = CachedEmbedder(inner, FakeClock(), EmbedLimits(wait_ms_max=50))
    with pytest.raises(Fault) as caught:
        await made.vectors(["a"])
    assert caught.value.code == "embedder_busy"
    inner.gate.set()
    await made.close()
    assert inner.closed


@pytest.mark.parametrize("limits", [EmbedLimits(lanes=0), EmbedLimits(batch_texts=0), EmbedLimits(cache_bytes=-1)])
def test_limits_that_make_no_sense_are_refused(limits: EmbedLimits) -> None:
    with pytest.raises(Rejected, match="positive"):
        CachedEmbedder(HashEmbedder(64), FakeClock(), limits)
