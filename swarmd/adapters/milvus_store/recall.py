"""Answers to many queries at once: one dense request, words beside it, one request for what is shown.

Job: group queries by what they let through, fuse, fetch, cut by similarity, spread by diversity.
Invariants: what is fetched is checked by `matches` once more, so that neither digests that meet by chance nor a row
that changed in between can show what a filter forbids; similarities are cosines of vectors as they are stored.
Must not know: writes, the mark (but for its key).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from swarmd.adapters.milvus_store import schema
from swarmd.adapters.milvus_store.connection import TIMEOUT_S
from swarmd.adapters.milvus_store.word_index import Permit, WordQuery
from swarmd.core.memory_filter import matches
from swarmd.passages import candidates, diverse, fuse, is_live
from swarmd.ports import Hit, VectorQuery
from swarmd.text import stems

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from swarmd.adapters.milvus_store.connection import Connection
    from swarmd.adapters.milvus_store.words import Words

ROWS_PER_GET: Final = 500

WIDE_MAX: Final = 100
"""Queries of different filters share a request while that need not ask for more hits than this of each."""
WIDE_MARGIN: Final = 1.5

Found = dict[str, float]
"""Keys with their cosines, nearest first."""


class Group(Struct):
    """Queries (by index) with one filter; `limit` is how many unfiltered hits hold enough that pass."""

    expression: str
    members: list[int]
    permit: Permit | None
    limit: int = WIDE_MAX + 1


class Recall:
    """Answers from one collection; `expiring_ms` is when its first row may have expired (0: never)."""

    def __init__(self, connection: Connection, words: Words) -> None:
        self.requests = 0
        """Dense search requests sent so far: one for all coalesced queries that a request can serve."""
        self.expiring_ms = 0
        self.was_asked = False
        """Since this was last set to False by its owner."""
        self._connection = connection
        self._words = words

    async def answer(self, queries: list[VectorQuery]) -> list[list[Hit]]:
        """The hits of each query, best first."""
        self.was_asked = True
        near, by_words = await asyncio.gather(
            asyncio.to_thread(self._near, queries), asyncio.to_thread(self._by_words, queries)
        )
        return await asyncio.to_thread(self._show, queries, near, by_words)

    def warm_up(self, dimension: int) -> None:
        """What the first search would have to wait for."""
        query = VectorQuery(text="warm up", vector=[1.0] + [0.0] * (dimension - 1))
        self._show([query], self._near([query]), self._by_words([query]))

    def by_words(self, texts: list[str], expression: str, depth: int) -> list[list[str]]:
        """For each text the best keys by Milvus's own index of words."""
        return [list(found) for found in self._search("lexical", texts, expression, depth)]

    def _near(self, queries: Sequence[VectorQuery]) -> list[Found]:
        answers: list[Found] = [{} for _ in queries]
        groups = self._grouped(queries)
        wide = [group for group in groups if group.limit <= WIDE_MAX]
        if len(wide) > 1:
            groups = [group for group in groups if group.limit > WIDE_MAX] + self._near_wide(queries, wide, answers)
        for group in groups:
            found = self._dense(queries, group.members, group.expression, _depth(queries, group.members))
            for index, hits in zip(group.members, found, strict=True):
                answers[index] = _first(hits, candidates(queries[index].k))
        return answers

    def _grouped(self, queries: Sequence[VectorQuery]) -> list[Group]:
        """Queries by what they let through. Filters that pass all rows are none."""
        found: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        for index, query in enumerate(queries):
            if query.vector is not None:
                # Clocks of coalesced queries differ by little: they share a request, and `is_live` tells them apart.
                second = query.now_ms // 1000 if self._may_have_expired(query) else -1
                found[schema.expression_of(query.where), second].append(index)
        groups: list[Group] = []
        for (expression, second), members in found.items():
            now_ms = min(queries[index].now_ms for index in members) if second >= 0 else 0
            permit = self._words.permit(queries[members[0]].where, now_ms) if expression or now_ms else None
            if permit is not None and permit.passing == permit.living:
                expression, now_ms = "", 0
            living = schema.alive(now_ms) if now_ms else ""
            group = Group(schema.all_of([expression, living]), members, permit)
            same = next((other for other in groups if other.expression == group.expression), None)
            if same is not None:
                same.members += members
                continue
            if permit is not None or not group.expression:
                share = 1.0 if permit is None else permit.passing / max(1, permit.living)
                group.limit = int(WIDE_MARGIN * _depth(queries, members) / max(share, 1e-9)) + 1
            groups.append(group)
        return groups

    def _near_wide(self, queries: Sequence[VectorQuery], wide: list[Group], answers: list[Found]) -> list[Group]:
        """One request for all whose filters pass most rows: it asks for more, and what does not pass is left out here.

        Returns those that it gave too little.
        """
        members = [index for group in wide for index in group.members]
        found = iter(self._dense(queries, members, "", max(group.limit for group in wide)))
        left: list[Group] = []
        for group in wide:
            permit = group.permit if group.expression else None
            short = []
            for index in group.members:
                hits = next(found)
                passing = hits if permit is None else {key: near for key, near in hits.items() if permit.lets(key)}
                depth = candidates(queries[index].k)
                answers[index] = _first(passing, depth)
                if permit is not None and len(passing) < min(depth, permit.passing):
                    short.append(index)
            if short:
                left.append(Group(group.expression, short, permit))
        return left

    def _dense(self, queries: Sequence[VectorQuery], members: list[int], expression: str, limit: int) -> list[Found]:
        self.requests += 1
        return self._search("dense", [_array(queries[index].vector) for index in members], expression, limit)

    def _by_words(self, queries: Sequence[VectorQuery]) -> list[list[str]]:
        return self._words.rank(
            [
                WordQuery(
                    stems(query.text),
                    query.where,
                    query.now_ms if self._may_have_expired(query) else 0,
                    candidates(query.k),
                )
                for query in queries
            ]
        )

    def _may_have_expired(self, query: VectorQuery) -> bool:
        """Whether any row has by then: without that, searching need not look."""
        return 0 < self.expiring_ms <= query.now_ms

    def _show(
        self,
        queries: Sequence[VectorQuery],
        near: Sequence[Found],
        by_words: Sequence[list[str]],
        *,
        all_found: bool = False,
    ) -> list[list[Hit]]:
        pools: list[dict[str, float]] = []
        bare: set[str] = set()
        with_vectors: set[str] = set()
        short = []
        for query, cosines, words in zip(queries, near, by_words, strict=True):
            fused = fuse([list(cosines), words], len(cosines) + len(words))
            pool = {key: score for key, score in fused if cosines.get(key, 1.0) >= query.min_similarity}
            is_cut = not (all_found or query.diversity or query.min_similarity > -1) and len(pool) > query.k
            pool = _first(pool, query.k) if is_cut else pool
            short.append(is_cut)
            pools.append(pool)
            bare.update(pool)
            if query.diversity:
                with_vectors.update(pool)
            elif query.vector is not None:
                with_vectors.update(key for key in pool if key not in cosines)
        rows = self._get(with_vectors, [*schema.WORDS, "dense"]) | self._get(bare - with_vectors, schema.WORDS)
        hits = [_chosen(query, pool, cosines, rows) for query, pool, cosines in zip(queries, pools, near, strict=True)]
        # Rows may have changed since they were found: the next best take the place of those that no longer pass.
        again = [index for index, is_cut in enumerate(short) if is_cut and len(hits[index]) < queries[index].k]
        if again:
            parts = ([queries[index] for index in again], [near[index] for index in again])
            shown = self._show(*parts, [by_words[index] for index in again], all_found=True)
            for index, better in zip(again, shown, strict=True):
                hits[index] = better
        return hits

    def _get(self, keys: Iterable[str], fields: list[str]) -> dict[str, dict[str, Any]]:
        wanted = sorted(keys)
        rows: dict[str, dict[str, Any]] = {}
        for at in range(0, len(wanted), ROWS_PER_GET):
            part = wanted[at : at + ROWS_PER_GET]
            found = self._connection.call(
                lambda client: client.get(
                    self._connection.collection,
                    ids=part,  # noqa: B023
                    output_fields=["key", *fields],
                    timeout=TIMEOUT_S,
                )
            )
            rows.update((row["key"], dict(row)) for row in found)
        return rows

    def _search(self, field: str, data: list[Any], expression: str, limit: int) -> list[Found]:
        """For each query the best keys by one index, best first; the mark is left out."""
        answers = self._connection.call(
            lambda client: client.search(
                self._connection.collection,
                data,
                anns_field=field,
                filter=expression,
                limit=limit + 1,
                output_fields=["key"],
                timeout=TIMEOUT_S,
            )
        )
        return [
            dict(
                list({hit["key"]: float(hit["distance"]) for hit in hits if hit["key"] != schema.MARK}.items())[:limit]
            )
            for hits in answers
        ]


def _chosen(
    query: VectorQuery, pool: Mapping[str, float], cosines: Found, rows: Mapping[str, dict[str, Any]]
) -> list[Hit]:
    hits: list[Hit] = []
    vectors: list[Any] = []
    for key, score in pool.items():
        row = rows.get(key)
        if row is None:  # dropped since it was found
            continue
        memory = schema.memory_of(row)
        if not matches(query.where, memory) or not is_live(memory, query.now_ms):
            continue
        similarity = float("nan")
        if query.vector is not None:
            similarity = cosines[key] if key in cosines else _cosine(row["dense"], query.vector)
            if similarity < query.min_similarity:
                continue
        hits.append(Hit(memory, score, similarity))
        vectors.append(row.get("dense"))
    if not query.diversity or not hits:
        return hits[: query.k]
    likeness = _likeness(vectors)
    order = diverse([hit.score for hit in hits], lambda index: likeness[index].tolist(), query.k, query.diversity)
    return [hits[index] for index in order]


def _depth(queries: Sequence[VectorQuery], members: Sequence[int]) -> int:
    return max(candidates(queries[index].k) for index in members)


def _first(found: dict[str, float], count: int) -> dict[str, float]:
    return found if len(found) <= count else dict(islice(found.items(), count))


def _array(vector: Any) -> Any:
    import numpy

    return numpy.asarray(vector, "float32")


def _cosine(one: Any, other: Any) -> float:
    import numpy

    first, second = _array(one), _array(other)
    return float(first @ second / (numpy.linalg.norm(first) * numpy.linalg.norm(second)))


def _likeness(vectors: list[Any]) -> Any:
    import numpy

    matrix = numpy.asarray(vectors, "float32")
    matrix /= numpy.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix @ matrix.T
