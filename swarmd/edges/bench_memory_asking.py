"""How long a recall takes, alone and beside others, and how long a search of pymilvus does.

Each question is asked once, so that no cache answers it, and has words of a memory that should be among the answers.
Must not know how the memories came there.
"""

from __future__ import annotations

import asyncio
import statistics
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from swarmd.edges.bench import progress
from swarmd.edges.bench_load import quantile
from swarmd.edges.bench_memory_texts import Query, Texts, is_shared, labels_of, name_of, vectors_of
from swarmd.edges.simulate.chance import Chance

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from swarmd.edges.bench_memory_measures import Plan
    from swarmd.edges.bench_memory_rig import Rig

K: Final = 5
WARM_UP: Final = 3
#: One in so many recalls is asked in the other ways, too.
OTHERS_EVERY: Final = 4
RECALLS_PER_CALLER: Final = 4
RAW_ONE_BY_ONE: Final = 16


class Asking:
    """Recalls of what is in both."""

    def __init__(self, rig: Rig, plan: Plan, texts: Texts) -> None:
        self._rig, self._plan, self._texts = rig, plan, texts
        self._chance, self._numbers = Chance("asking"), count()
        self._took: dict[str, list[float]] = {}
        self._found: dict[str, list[bool]] = {}

    async def all(self, plain: str, words: str) -> dict[str, Any]:
        """Figures of single and of concurrent recalls; `plain` and `words` are the collections of pymilvus."""
        found = await self._one_by_one(plain, words)
        return found | await self._at_once(plain)

    async def _one_by_one(self, plain: str, words: str) -> dict[str, Any]:
        await self._warm_up(plain, words)
        for number in range(self._plan.recalls):
            turns = [self._raw_dense(plain), self._ours("ours")]
            if number % OTHERS_EVERY == 0:
                turns += [self._raw_hybrid(words), self._ours("task", caller=number), self._ours("dense", mode="dense")]
                turns += [self._raw_dense(plain, filtered=True), self._ours("filtered", filtered=True)]
            for turn in turns if number % 2 else reversed(turns):
                await turn
        p50 = {kind: statistics.median(took) for kind, took in self._took.items()}
        p99 = {kind: quantile(sorted(took), 0.99) for kind, took in self._took.items()}
        progress(f"  recall {p50['ours']:.1f} ms, pymilvus {p50['raw']:.1f} dense and {p50['raw_hybrid']:.1f} hybrid")
        return {
            "recall_ratio": round(p50["ours"] / p50["raw"], 3),
            "recall_ratio_hybrid": round(p50["ours"] / p50["raw_hybrid"], 3),
            "recall_ratio_filtered": round(p50["filtered"] / p50["raw_filtered"], 3),
            "recall_p50_ms": round(p50["ours"], 2),
            "recall_p99_ms": round(p99["ours"], 2),
            "recall_of_task_p50_ms": round(p50["task"], 2),
            "recall_dense_p50_ms": round(p50["dense"], 2),
            "recall_filtered_p50_ms": round(p50["filtered"], 2),
            "raw_search_p50_ms": round(p50["raw"], 2),
            "raw_search_p99_ms": round(p99["raw"], 2),
            "raw_hybrid_p50_ms": round(p50["raw_hybrid"], 2),
            "raw_filtered_p50_ms": round(p50["raw_filtered"], 2),
            "recalls": self._plan.recalls,
            "found": {kind: round(sum(hits) / len(hits), 3) for kind, hits in self._found.items()},
        }

    async def _warm_up(self, plain: str, words: str) -> None:
        for _ in range(WARM_UP):
            for turn in (self._raw_dense(plain), self._raw_hybrid(words), self._ours("ours")):
                await turn
        self._took, self._found = {}, {}

    async def _at_once(self, plain: str) -> dict[str, Any]:
        """All callers ask, each again when it is answered; and pymilvus is asked one by one."""
        raw, others, same = list[float](), list[float](), list[float]()
        self._took = {}
        for _ in range(self._plan.repeat):
            for rates, is_same in ((others, False), (same, True)):
                raw.append(await self._raw_rate(plain))
                rates.append(await self._rate(is_same=is_same))
        latencies = sorted(self._took["at_once"])
        one_by_one = statistics.median(raw)
        progress(
            f"  {statistics.median(others):.1f} recalls/s of different callers, {one_by_one:.1f} searches/s one by one"
        )
        return {
            "callers_ratio": round(statistics.median(others) / one_by_one, 2),
            "callers_ratio_same": round(statistics.median(same) / one_by_one, 2),
            "callers_recalls_per_s": round(statistics.median(others), 1),
            "callers_recalls_per_s_same": round(statistics.median(same), 1),
            "callers_p50_ms": round(quantile(latencies, 0.5), 1),
            "callers_p99_ms": round(quantile(latencies, 0.99), 1),
            "raw_searches_per_s": round(one_by_one, 2),
            "callers": self._plan.callers,
        }

    async def _raw_rate(self, plain: str) -> float:
        vectors = vectors_of([self._query().text for _ in range(RAW_ONE_BY_ONE)])
        started = perf_counter()
        for vector in vectors:
            await asyncio.to_thread(self._rig.raw.dense, plain, vector.tolist(), K)
        return RAW_ONE_BY_ONE / (perf_counter() - started)

    async def _rate(self, *, is_same: bool) -> float:
        """Recalls per second of all callers, on behalf of a task each, or all the same client."""

        async def ask(caller: int) -> None:
            for _ in range(RECALLS_PER_CALLER):
                await self._ours("same_client" if is_same else "at_once", caller=None if is_same else caller)

        started = perf_counter()
        async with asyncio.TaskGroup() as group:
            for caller in range(self._plan.callers):
                group.create_task(ask(caller))
        return self._plan.callers * RECALLS_PER_CALLER / (perf_counter() - started)

    # --- one question ---

    def _query(self) -> Query:
        """The next question, about a memory that everybody may read."""
        while True:
            source = self._chance.below(self._plan.rows)
            if is_shared(source):
                return self._texts.query(source, next(self._numbers))

    async def _ours(self, kind: str, caller: int | None = None, *, filtered: bool = False, **fields: Any) -> None:
        query = self._query()
        if filtered:
            fields["labels"] = labels_of(query.source)

        async def ask() -> list[str]:
            reply = await self._rig.recall(query.text, caller, k=K, **fields)
            return [passage.id for passage in reply.passages]

        await self._ask(kind, query, ask)

    async def _raw_dense(self, collection: str, *, filtered: bool = False) -> None:
        query = self._query()
        vector, labels = vectors_of([query.text])[0].tolist(), labels_of(query.source) if filtered else None

        async def ask() -> list[str]:
            return await asyncio.to_thread(self._rig.raw.dense, collection, vector, K, labels)

        await self._ask("raw_filtered" if labels else "raw", query, ask)

    async def _raw_hybrid(self, collection: str) -> None:
        query = self._query()
        vector = vectors_of([query.text])[0].tolist()

        async def ask() -> list[str]:
            return await asyncio.to_thread(self._rig.raw.hybrid, collection, vector, query.text, K)

        await self._ask("raw_hybrid", query, ask)

    async def _ask(self, kind: str, query: Query, ask: Callable[[], Awaitable[list[str]]]) -> None:
        started = perf_counter()
        ids = await ask()
        self._took.setdefault(kind, []).append((perf_counter() - started) * 1000)
        self._found.setdefault(kind, []).append(name_of(query.source) in ids)
