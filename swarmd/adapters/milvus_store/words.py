"""The lexical side of a store: in files of this node beside an embedded Milvus, or in a Milvus server itself.

Job: take the words of rows, say up to where that is done, rank keys by words.
Invariants: rows and the mark that claims them are written in one transaction; a file that is damaged or of another
format is begun anew, and its mark says so.
Must not know: vectors, requests to Milvus, the log.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from swarmd.adapters.milvus_store.schema import TEXT_BYTES_MAX, alive, all_of, expression_of
from swarmd.adapters.milvus_store.word_index import COLUMNS, Permit, WordIndex, WordQuery, WordRow
from swarmd.core.errors import Fault
from swarmd.text import stems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from swarmd.core.memory_filter import Filter

FORMAT: Final = 1
_DEAD_MIN: Final = 2_000
_PAGE: Final = 2_000
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Words(Protocol):
    """All methods block, and are called from threads: `rank` from any, the others from one at a time."""

    def open(self) -> int | None:
        """Up to which sequence the log is applied, None where that is what Milvus says. Raises `Fault`."""
        ...

    def prepare(self, row: dict[str, Any]) -> WordRow | None:
        """What to `put` for a row of Milvus; may add columns to the row."""
        ...

    def put(self, rows: Sequence[WordRow | None], gone: Sequence[str], upto: int | None) -> None:
        """Take rows, drop keys, and claim `upto` where one is given. Raises `Fault`."""
        ...

    def rank(self, queries: Sequence[WordQuery]) -> list[list[str]]: ...

    def permit(self, where: Filter | None, now_ms: int) -> Permit | None:
        """Which rows a filter lets through; None where only Milvus can tell."""
        ...

    def clear(self) -> None:
        """Forget everything; `open` again."""
        ...

    def close(self) -> None: ...


class LocalWords:
    """`Words` in memory, and in the SQLite file `path` to begin from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index = WordIndex()
        self._file: sqlite3.Connection | None = None

    def open(self) -> int:
        self.close()
        try:
            return self._load()
        except _Damaged:
            self.clear()
            return self._load()

    def _load(self) -> int:
        with self._translated():
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Used by one thread at a time, though not always by the same.
            file = self._file = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            file.execute("PRAGMA journal_mode = TRUNCATE")
            file.execute("PRAGMA synchronous = OFF")  # a projection: after a power loss it is made anew
            (found,) = file.execute("PRAGMA user_version").fetchone()
            if found not in (0, FORMAT):
                raise _Damaged(f"format {found}")
            file.execute("CREATE TABLE IF NOT EXISTS row (key TEXT PRIMARY KEY, said BLOB NOT NULL) WITHOUT ROWID")
            file.execute("CREATE TABLE IF NOT EXISTS mark (one INTEGER PRIMARY KEY, seq INTEGER NOT NULL)")
            file.execute(f"PRAGMA user_version = {FORMAT}")
            self._index = self._read(file)
            mark = file.execute("SELECT seq FROM mark WHERE one = 1").fetchone()
            return int(mark[0]) if mark else 0

    def _read(self, file: sqlite3.Connection) -> WordIndex:
        index = WordIndex()
        decode = msgspec.msgpack.Decoder(WordRow).decode
        cursor = file.execute("SELECT said FROM row")
        try:
            while page := cursor.fetchmany(_PAGE):
                index.put([decode(said) for (said,) in page])
        except msgspec.MsgspecError as error:
            raise _Damaged(str(error)) from error
        return index

    def prepare(self, row: dict[str, Any]) -> WordRow:
        tags = row["tags"].split(" ") if row["tags"] else []
        return WordRow(row["key"], [row[name] for name in COLUMNS], tags, stems(row["text"]))

    def put(self, rows: Sequence[WordRow | None], gone: Sequence[str], upto: int | None) -> None:
        encode = msgspec.msgpack.Encoder().encode
        given = [row for row in rows if row is not None]
        with self._translated():
            file = self._opened()
            file.execute("BEGIN IMMEDIATE")
            try:
                file.executemany("INSERT OR REPLACE INTO row VALUES (?, ?)", [(row.key, encode(row)) for row in given])
                file.executemany("DELETE FROM row WHERE key = ?", [(key,) for key in gone])
                if upto is not None:
                    file.execute("INSERT OR REPLACE INTO mark VALUES (1, ?)", (upto,))
                file.execute("COMMIT")
            finally:
                if file.in_transaction:
                    file.execute("ROLLBACK")
        self._index.put(given)
        self._index.drop(gone)
        if self._index.dead > max(_DEAD_MIN, len(self._index)):
            with self._translated():
                self._index = self._read(file)

    def rank(self, queries: Sequence[WordQuery]) -> list[list[str]]:
        index = self._index
        return [index.rank(query) if query.stems else [] for query in queries]

    def permit(self, where: Filter | None, now_ms: int) -> Permit:
        return self._index.permit(where, now_ms)

    def _opened(self) -> sqlite3.Connection:
        if self._file is None:
            raise Fault("memory_closed", "the memory store is not open")
        return self._file

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0)
            if code & 0xFF == sqlite3.SQLITE_FULL:
                raise full(self.path, error) from error
            if code & 0xFF in _DAMAGED or code == sqlite3.SQLITE_READONLY_DBMOVED:
                raise _Damaged(f"{self.path} is damaged or gone: open the store again, which makes it anew") from error
            raise Fault("memory_unavailable", f"{self.path}: {error}", retry_after_ms=500) from error
        except OSError as error:
            raise Fault("memory_unavailable", f"{self.path}: {error}", retry_after_ms=500) from error

    def clear(self) -> None:
        self.close()
        for suffix in ("", "-journal"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        file, self._file = self._file, None
        self._index = WordIndex()
        if file is not None:
            file.close()


class ServerWords:
    """`Words` that a Milvus server indexes itself; `search` asks it: texts, expression, depth to keys."""

    def __init__(self, search: Callable[[list[str], str, int], list[list[str]]]) -> None:
        self._search = search

    def open(self) -> None: ...

    def prepare(self, row: dict[str, Any]) -> None:
        row["stems"] = _analysed(stems(row["text"]))

    def put(self, rows: Sequence[WordRow | None], gone: Sequence[str], upto: int | None) -> None: ...

    def rank(self, queries: Sequence[WordQuery]) -> list[list[str]]:
        answers: list[list[str]] = [[] for _ in queries]
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for index, query in enumerate(queries):
            if query.stems:
                living = alive(query.now_ms) if query.now_ms else ""
                groups[all_of([expression_of(query.where), living])].append(index)
        for expression, members in groups.items():
            texts = [_analysed(queries[index].stems) for index in members]
            depth = max(queries[index].depth for index in members)
            for index, keys in zip(members, self._search(texts, expression, depth), strict=True):
                answers[index] = keys[: queries[index].depth]
        return answers

    def permit(self, where: Filter | None, now_ms: int) -> None: ...

    def clear(self) -> None: ...

    def close(self) -> None: ...


class _Damaged(Fault):
    """A file that cannot be read: `open` makes it anew."""

    def __init__(self, message: str) -> None:
        super().__init__("memory_lost", message)


def full(path: Path, error: Exception) -> Fault:
    return Fault("memory_full", f"no space left for {path}: make room, nothing that was acknowledged is lost: {error}")


def _analysed(words: list[str]) -> str:
    """Stems for the index of a Milvus server, cut at its limit; only compatibility ligatures get there."""
    encoded = " ".join(words).encode()
    return encoded[:TEXT_BYTES_MAX].decode(errors="ignore")
