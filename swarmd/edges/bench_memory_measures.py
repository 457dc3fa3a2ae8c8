"""How each figure of `swarmd bench memory` is come by; docs/benchmarks.md says what they mean.

Ours and pymilvus take turns with equal pieces of work, and of several turns the median counts. What is compared is
what somebody waits for: a remembered memory until it can be found, a recall from its client and back.
"""

from __future__ import annotations

import asyncio
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from swarmd.core.errors import Fault
from swarmd.core.memory import SHARED
from swarmd.edges.bench import progress
from swarmd.edges.bench_load import quantile
from swarmd.edges.bench_memory_asking import Asking
from swarmd.edges.bench_memory_rig import Filled
from swarmd.edges.bench_memory_texts import DIMENSION, Texts, vectors_of

if TYPE_CHECKING:
    from array import array
    from collections.abc import Awaitable, Iterable

    from swarmd.core.memory_wire import RememberRequest
    from swarmd.edges.bench_memory_rig import Rig

#: The yardstick's collections: with what hybrid search needs, and without.
WORDS, PLAIN = "words", "plain"
MANY_BATCH: Final = 256
MANY_IN_FLIGHT: Final = 8
LONE: Final = 200
#: Rows of pymilvus that are made at a time, before they are timed.
MADE: Final = 20_000
EMBEDDED: Final = 2_500
WATCH_THRESHOLD: Final = 0.8
WATCHES_AT_ONCE: Final = 64


class Plan(Struct, frozen=True):
    """What is run."""

    rows: int
    recalls: int
    callers: int
    watches: int
    in_flight: int
    rounds: int
    repeat: int

    @property
    def many(self) -> int:
        """Memories of each turn of `remember_many`."""
        return max(MANY_BATCH, self.rows // 20)

    @property
    def watched(self) -> int:
        """Memories that are remembered in each turn with and without watches."""
        return max(200, min(4_000, self.rows // 10))

    @property
    def total(self) -> int:
        return self.rows + LONE + self.repeat * (self.many + 2 * self.watched)


class Measured:
    """All measurements, in an order in which each finds what it needs."""

    def __init__(self, rig: Rig, plan: Plan) -> None:
        self._rig, self._plan = rig, plan
        self._texts = Texts()
        self._memories: list[RememberRequest] = []
        self._vectors: list[array[float]] = []
        self._next = plan.rows

    async def all(self) -> dict[str, Any]:
        """Every figure."""
        rig, plan = self._rig, self._plan
        self._memories = [self._texts.request(number) for number in range(plan.total)]
        for memory in self._memories[plan.rows :]:
            memory.space = SHARED
        progress(f"{plan.total:,} memories made; embedding {plan.rows:,} of them for pymilvus")
        self._vectors = await _embedded([memory.text for memory in self._memories[: plan.rows]])
        found: dict[str, Any] = {"rows": plan.rows, "dimension": DIMENSION}
        found["start_empty_s"] = round(await rig.start_node(), 2)
        empty = rig.mib()
        await rig.prepare(self._memories)
        found |= await self._filling()
        found |= await Asking(rig, plan, self._texts).all(PLAIN, WORDS)
        found |= await self._rebuilding()
        found |= await self._watching()
        found |= await self._resident(empty)
        return found

    # --- remembering ---

    async def _filling(self) -> dict[str, Any]:
        """The same memories into ours and into pymilvus, a piece at a time, in turn."""
        rig, plan = self._rig, self._plan
        await asyncio.to_thread(rig.raw.create, WORDS, DIMENSION, words=True)
        await asyncio.to_thread(rig.raw.create, PLAIN, DIMENSION, words=False)
        ours, raw = list[Filled](), {WORDS: list[float](), PLAIN: list[float]()}
        before = rig.cpu_s()
        used = dict.fromkeys(before, 0.0)
        for turn in range(plan.rounds):
            span = (plan.rows * turn // plan.rounds, plan.rows * (turn + 1) // plan.rounds)
            for kind in (WORDS, PLAIN) if turn % 2 else ():
                raw[kind].append(await self._insert(kind, span))
            before = rig.cpu_s()
            ours.append(await rig.fill(span, plan.in_flight))
            used = {name: used[name] + spent - before[name] for name, spent in rig.cpu_s().items()}
            for kind in () if turn % 2 else (WORDS, PLAIN):
                raw[kind].append(await self._insert(kind, span))
            progress(
                f"  {span[1]:,} rows: {_rate(ours[-1].count, ours[-1].acknowledged_s):,.0f}/s acknowledged, "
                f"{_rate(ours[-1].count, ours[-1].searchable_s):,.0f}/s searchable; {_said(raw)}"
            )
        flushed = {kind: await _timed(asyncio.to_thread(rig.raw.flush, kind)) for kind in (WORDS, PLAIN)}
        await self._check_count(plan.rows)
        searchable = [_rate(one.count, one.searchable_s) for one in ours]
        latencies = sorted(latency for one in ours for latency in one.latencies_ms)
        return {
            "remember_per_s": _median(_rate(one.count, one.acknowledged_s) for one in ours),
            "remember_rates": [round(_rate(one.count, one.acknowledged_s)) for one in ours],
            "remember_p50_ms": round(quantile(latencies, 0.5), 2),
            "remember_p99_ms": round(quantile(latencies, 0.99), 2),
            "remember_in_flight": plan.in_flight,
            "cpu_us_per_memory": {name: round(spent / plan.rows * 1e6, 1) for name, spent in used.items()},
            "searchable_ratio": _ratio(searchable, raw[WORDS]),
            "searchable_ratio_plain": _ratio(searchable, raw[PLAIN]),
            "searchable_rows_per_s": _median(searchable),
            "searchable_rates": [round(rate) for rate in searchable],
            "raw_insert_rows_per_s": _median(raw[WORDS]),
            "raw_insert_rows_per_s_plain": _median(raw[PLAIN]),
            "raw_flush_s": round(flushed[WORDS], 2),
            "raw_flush_s_plain": round(flushed[PLAIN], 2),
        } | await self._other_ways()

    async def _other_ways(self) -> dict[str, Any]:
        """One memory at a time, each after the answer to the last; and many in a request."""
        lone = list[float]()
        for memory in self._memories[self._take(LONE)[0] : self._next]:
            lone.append(await _timed(self._rig.member.remember(**_fields(memory))) * 1000)
        many = list[float]()
        for _ in range(self._plan.repeat):
            filled = await self._rig.fill(self._take(self._plan.many), MANY_IN_FLIGHT, MANY_BATCH)
            many.append(_rate(filled.count, filled.acknowledged_s))
        progress(f"  alone {statistics.median(lone):.2f} ms; {statistics.median(many):,.0f}/s in remember_many")
        return {
            "remember_alone_p50_ms": round(quantile(sorted(lone), 0.5), 2),
            "remember_alone_p99_ms": round(quantile(sorted(lone), 0.99), 2),
            "remember_many_per_s": _median(many),
        }

    async def _insert(self, collection: str, span: tuple[int, int]) -> float:
        """Rows per second of pymilvus: vectors given, rows made beforehand, the final flush not counted."""
        took_s = 0.0
        for first in range(*span, MADE):
            piece = slice(first, min(first + MADE, span[1]))
            rows = await asyncio.to_thread(self._rig.raw.rows, self._memories[piece], self._vectors[piece], first + 1)
            took_s += await _timed(asyncio.to_thread(self._rig.raw.insert, collection, rows))
        return _rate(span[1] - span[0], took_s)

    def _take(self, count: int) -> tuple[int, int]:
        """The next memories that nobody has remembered yet."""
        self._next += count
        return self._next - count, self._next

    async def _check_count(self, count: int) -> None:
        stats = await self._rig.client.stats()
        raw = [await asyncio.to_thread(self._rig.raw.count, kind) for kind in (WORDS, PLAIN)]
        if stats.memories != count or raw != [count, count]:
            raise Fault("bench", f"{count} memories were remembered: there are {stats.memories}, and {raw} in pymilvus")

    # --- rebuilding ---

    async def _rebuilding(self) -> dict[str, Any]:
        """The whole store anew, beside all rows into a new collection of pymilvus."""
        plan, rig = self._plan, self._rig
        ours, raw = list[float](), {WORDS: list[float](), PLAIN: list[float]()}
        for _ in range(plan.repeat):
            for kind, rates in raw.items():
                name = f"again_{kind}"
                await asyncio.to_thread(rig.raw.create, name, DIMENSION, words=kind == WORDS)
                rates.append(await self._insert(name, (0, plan.rows)))
                await asyncio.to_thread(rig.raw.drop, name)
            started = perf_counter()
            job = await rig.admin.rebuild()
            ours.append(_rate(job.rows, perf_counter() - started))
            if job.rows < plan.rows:
                raise Fault("bench", f"a rebuild made {job.rows} rows of {plan.rows} memories and more")
            progress(f"  rebuilt {ours[-1]:,.0f} rows/s; {_said(raw)}")
        return {
            "rebuild_ratio": _ratio(ours, raw[WORDS]),
            "rebuild_ratio_plain": _ratio(ours, raw[PLAIN]),
            "rebuild_rows_per_s": _median(ours),
            "rebuild_rates": [round(rate) for rate in ours],
            "rebuild_raw_rows_per_s": _median(raw[WORDS]),
            "rebuild_raw_rows_per_s_plain": _median(raw[PLAIN]),
        }

    # --- watching ---

    async def _watching(self) -> dict[str, Any]:
        """The same number of memories without watches and with them, in turn, until all is matched."""
        plan, rig = self._plan, self._rig
        without, beside, found = list[float](), list[float](), 0
        for _ in range(plan.repeat):
            filled = await rig.fill(self._take(plan.watched), plan.in_flight)
            without.append(filled.matched_s / filled.count * 1000)
            span = self._take(plan.watched)
            numbers = [span[0] + at % plan.watched for at in range(plan.watches)]
            await self._each_watch(
                rig.client.watch(f"w{at}", self._memories[number].text, threshold=WATCH_THRESHOLD)
                for at, number in enumerate(numbers)
            )
            filled = await rig.fill(span, plan.in_flight)
            beside.append(filled.matched_s / filled.count * 1000)
            async for match in rig.client.matches("w0"):
                found += match.memory.id == self._memories[numbers[0]].id
                break
            await self._each_watch(rig.client.unwatch(f"w{at}") for at in range(plan.watches))
        more = statistics.median(ms - without[at] for at, ms in enumerate(beside))
        progress(f"  {plan.watches} watches: {more:.3f} ms more for each memory")
        if found != plan.repeat:
            raise Fault("bench", "a watch was not told of a memory that says just what it watches")
        return {
            "watch_ms_per_memory": round(more, 3),
            "memory_ms_without_watches": round(statistics.median(without), 3),
            "memory_ms_with_watches": round(statistics.median(beside), 3),
            "watches": plan.watches,
            "watched_memories": plan.watched,
        }

    async def _each_watch(self, asked: Iterable[Awaitable[Any]]) -> None:
        seats = asyncio.Semaphore(WATCHES_AT_ONCE)

        async def ask(one: Awaitable[Any]) -> None:
            async with seats:
                await one

        async with asyncio.TaskGroup() as group:
            for one in asked:
                group.create_task(ask(one))

    # --- what it takes ---

    async def _resident(self, empty: dict[str, float]) -> dict[str, Any]:
        """Memory of the processes at the end, and after another start, which is timed."""
        rig, stats = self._rig, await self._rig.client.stats()
        full = rig.mib()
        await rig.stop_node()
        started_s = await rig.start_node()
        fresh = rig.mib()
        progress(f"  {full['node']:,.0f} and {full['milvus']:,.0f} MiB; started again in {started_s:.1f} s")
        return {
            "memories": stats.memories,
            "mib_empty": empty,
            "mib": full,
            "mib_restarted": fresh,
            "node_bytes_per_memory": round((fresh["node"] - empty["node"]) * 1024**2 / stats.memories),
            "milvus_bytes_per_memory": round((fresh["milvus"] - empty["milvus"]) * 1024**2 / stats.memories),
            "start_s": round(started_s, 2),
        }


async def _embedded(texts: list[str]) -> list[array[float]]:
    """By as many processes as there are processors, where there are enough to keep them busy."""
    if len(texts) <= 2 * EMBEDDED:
        return await asyncio.to_thread(vectors_of, texts)
    loop, found = asyncio.get_running_loop(), list["array[float]"]()
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        pieces = [texts[at : at + EMBEDDED] for at in range(0, len(texts), EMBEDDED)]
        for piece in await asyncio.gather(*(loop.run_in_executor(pool, vectors_of, piece) for piece in pieces)):
            found += piece
    return found


def _said(raw: dict[str, list[float]]) -> str:
    return f"pymilvus {raw[WORDS][-1]:,.0f}/s with BM25, {raw[PLAIN][-1]:,.0f} without"


def _fields(memory: RememberRequest) -> dict[str, Any]:
    return {name: getattr(memory, name) for name in ("text", "id", "source", "labels", "task", "space", "agent")}


async def _timed(asked: Awaitable[Any]) -> float:
    """Seconds."""
    started = perf_counter()
    await asked
    return perf_counter() - started


def _rate(count: int, seconds: float) -> float:
    return count / max(seconds, 1e-9)


def _median(values: Iterable[float]) -> int:
    return round(statistics.median(values))


def _ratio(ours: list[float], raw: list[float]) -> float:
    """The median of the ratios of turns that were next to each other."""
    return round(statistics.median(mine / theirs for mine, theirs in zip(ours, raw, strict=True)), 3)
