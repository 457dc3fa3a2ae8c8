"""Which memories hold the words of a query: BM25 over an inverted index in memory, with filters.

Job: rank keys by words; tell which keys a filter lets through. One writer and many readers, from any threads.
Why not within Milvus Lite, nor SQLite's FTS5: a query over 100,000 rows takes the first 225 ms and no less in batches,
the second 140 ms; here it takes 2 ms, because postings are arrays that numpy adds up.
Invariants: a key has one living row; a row that was replaced or dropped never comes back; what is ranked agrees with
`memory_filter.matches` but for chance meetings of 63-bit digests.
Must not know: files, Milvus, texts (only their stems).
"""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from swarmd.adapters.milvus_store.schema import NUMBERS, TEXTS, key_of, name_tag, number_of, pair_tag
from swarmd.core.memory_filter import And, Filter, Has, Not, NumberIs, Or

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

K1: Final = 1.2
B: Final = 0.75
COLUMNS: Final = (*TEXTS, *NUMBERS)
_INT64: Final = 2**63 - 1


class WordRow(Struct, array_like=True):
    """What is kept of a memory: its key, the columns in the order of `COLUMNS`, the tags of its labels, its stems."""

    key: str
    columns: list[int]
    tags: list[str]
    stems: list[str]


class WordQuery(Struct):
    """The best `depth` keys by these stems, that `where` lets through and that have not expired at `now_ms`."""

    stems: list[str]
    where: Filter | None
    now_ms: int
    depth: int


class Permit(Struct):
    """How many of the `living` rows pass a filter; `lets` tells which, as of when it was made."""

    passing: int
    living: int
    mask: Any
    rows: dict[str, int]

    def lets(self, key: str) -> bool:
        number = self.rows.get(key, len(self.mask))
        return number < len(self.mask) and bool(self.mask[number])


class WordIndex:
    """BM25 (Robertson & Zaragoza 2009, FnTIR 3:4) over array postings."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # arrays must not grow while numpy looks at them
        self._rows: dict[str, int] = {}
        self._keys: list[str] = []
        self._live = bytearray()
        self._lengths = array("f")
        self._columns = {name: array("q") for name in COLUMNS}
        self._postings: dict[str, tuple[array[int], array[float]]] = {}
        self._tags: dict[str, array[int]] = {}
        self._words = 0.0

    @property
    def dead(self) -> int:
        """Rows that were replaced or dropped: they cost memory and time until the index is built anew."""
        return len(self._keys) - len(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, rows: Iterable[WordRow]) -> None:
        """Add or replace."""
        with self._lock:
            for row in rows:
                self._drop(row.key)
                self._add(row)

    def drop(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                self._drop(key)

    def rank(self, query: WordQuery) -> list[str]:
        """Keys that hold any of the stems, best first; those equally good in the order in which they came."""
        import numpy

        with self._lock:
            count = len(self._keys)
            scores = numpy.zeros(count, numpy.float32)
            lengths = numpy.frombuffer(self._lengths, numpy.float32)
            living = len(self._rows)
            mean = max(1.0, self._words / max(1, living))
            for stem, times in Counter(query.stems).items():
                postings = self._postings.get(stem)
                if postings is None:
                    continue
                rows = numpy.frombuffer(postings[0], numpy.int32)
                found = numpy.frombuffer(postings[1], numpy.float32)
                holders = min(len(rows), living)  # dead ones are among them
                weight = times * numpy.log1p((living - holders + 0.5) / (holders + 0.5))
                norm = K1 * (1 - B + B / mean * lengths[rows])
                scores[rows] += (weight * (K1 + 1) * found / (found + norm)).astype(numpy.float32)
            scores[~self._allowed(query.where, query.now_ms)] = 0.0
            depth = min(query.depth, count)
            if not depth:
                return []
            best = numpy.argpartition(-scores, depth - 1)[:depth]
            best = best[numpy.lexsort((best, -scores[best]))]
            return [self._keys[row] for row in best.tolist() if scores[row] > 0]

    def permit(self, where: Filter | None, now_ms: int) -> Permit:
        """Which rows a filter lets through."""
        with self._lock:
            mask = self._allowed(where, now_ms)
            return Permit(int(mask.sum()), len(self._rows), mask, self._rows)

    # -- under the lock

    def _add(self, row: WordRow) -> None:
        number = len(self._keys)
        self._rows[row.key] = number
        self._keys.append(row.key)
        self._live.append(1)
        self._lengths.append(len(row.stems))
        self._words += len(row.stems)
        for name, value in zip(COLUMNS, row.columns, strict=True):
            self._columns[name].append(value)
        for stem, times in Counter(row.stems).items():
            postings = self._postings.get(stem)
            if postings is None:
                postings = self._postings[stem] = (array("i"), array("f"))
            postings[0].append(number)
            postings[1].append(times)
        for tag in row.tags:
            tagged = self._tags.get(tag)
            if tagged is None:
                tagged = self._tags[tag] = array("i")
            tagged.append(number)

    def _drop(self, key: str) -> None:
        number = self._rows.pop(key, None)
        if number is not None:
            self._live[number] = 0
            self._words -= self._lengths[number]

    def _allowed(self, where: Filter | None, now_ms: int) -> Any:
        import numpy

        living = numpy.frombuffer(self._live, numpy.uint8).astype(bool)
        expires = numpy.frombuffer(self._columns["expires"], numpy.int64)
        living &= (expires == 0) | (expires > now_ms)
        return living if where is None else living & self._mask(where)

    def _mask(self, where: Filter) -> Any:
        import numpy

        if isinstance(where, And | Or):
            mask = numpy.full(len(self._keys), isinstance(where, And))
            for part in where.parts:
                mask = mask & self._mask(part) if isinstance(where, And) else mask | self._mask(part)
            return mask
        if isinstance(where, Not):
            return ~self._mask(where.part)
        if isinstance(where, Has):
            return self._tagged([name_tag(where.label)])
        if isinstance(where, NumberIs):
            column = numpy.frombuffer(self._columns[where.field], numpy.int64)
            return _compared(column, where.comparison, max(-_INT64, min(_INT64, where.value)))
        if where.field == "label":
            return self._tagged([pair_tag(where.label, value) for value in where.values])
        if where.field == "id":
            mask = numpy.zeros(len(self._keys), bool)
            mask[[self._rows[key] for key in map(key_of, where.values) if key in self._rows]] = True
            return mask
        column = numpy.frombuffer(self._columns[where.field], numpy.int64)
        return numpy.isin(column, [number_of(where.field, value) for value in where.values])

    def _tagged(self, tags: Sequence[str]) -> Any:
        import numpy

        mask = numpy.zeros(len(self._keys), bool)
        for tag in tags:
            if tag in self._tags:
                mask[numpy.frombuffer(self._tags[tag], numpy.int32)] = True
        return mask


def _compared(column: Any, comparison: str, value: int) -> Any:
    if comparison == "=":
        return column == value
    if comparison == "!=":
        return column != value
    if comparison == "<":
        return column < value
    if comparison == "<=":
        return column <= value
    return column > value if comparison == ">" else column >= value
