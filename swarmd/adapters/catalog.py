"""The catalog of tasks in one SQLite file: a read model that any observer can build again from the log.

Rows and the mark of how far they reach are written in one transaction, so a crash leaves both or neither.
A file that is damaged, of another format, or gathered from another log is dropped and started anew.
Every statement runs in a thread, writes and reads on connections of their own. A user's words never become
part of a statement or of the search language: they are bound, each one quoted.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from swarmd.core.catalog import FIND_MAX, FindQuery, FoundTask, TaskRow
from swarmd.core.errors import Fault, Rejected
from swarmd.core.state import TERMINAL, Place
from swarmd.ports import Mark

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

T = TypeVar("T")
FORMAT: Final = 1
BUSY_S: Final = 10.0
WORDS_MAX: Final = 32
_WORD: Final = re.compile(r"\w+")
_LABELS: Final = msgspec.json.Decoder(dict[str, str])
_LIVE: Final = tuple(sorted({"queued", "assigned", "suspended", "backoff"} - TERMINAL))

_SCHEMA: Final = """
CREATE TABLE mark (source TEXT NOT NULL, seq INTEGER NOT NULL, message_id TEXT NOT NULL, n INTEGER NOT NULL);
CREATE TABLE tasks (
  n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, agent TEXT NOT NULL, tenant TEXT NOT NULL,
  parent TEXT NOT NULL, labels TEXT NOT NULL, attempts INTEGER NOT NULL, tokens INTEGER NOT NULL,
  submitted_at TEXT NOT NULL, ended_at TEXT NOT NULL, first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL,
  verdict_seq INTEGER, verdict_index INTEGER, history TEXT NOT NULL
);
CREATE INDEX tasks_by_state ON tasks (state, n);
CREATE INDEX tasks_by_agent ON tasks (agent, n);
CREATE INDEX tasks_by_tenant ON tasks (tenant, n) WHERE tenant <> '';
CREATE VIRTUAL TABLE words USING fts5 (text, content='', detail=full, tokenize='porter unicode61');
"""
_FRESH: Final = f"INSERT OR REPLACE INTO tasks VALUES ({', '.join('?' * 16)})"
_WORDS: Final = "INSERT INTO words (rowid, text) VALUES (?, ?)"
_CHANGED: Final = """UPDATE tasks SET state = ?, attempts = ?, tokens = ?, ended_at = ?, last_seq = max(last_seq, ?),
  verdict_seq = ?, verdict_index = ?, history = history || ? WHERE id = ?"""
_MARK: Final = "UPDATE mark SET seq = ?, message_id = ?, n = ?"
_COLUMNS: Final = """n, id, state, agent, tenant, parent, labels, attempts, tokens, submitted_at, ended_at,
  first_seq, last_seq, verdict_seq, verdict_index"""


class SqliteCatalog:
    """A `Catalog` at `path`. `bytes_max` is where it counts as full (0: never); it goes on indexing all the same."""

    def __init__(self, path: Path, bytes_max: int = 0) -> None:
        self.path, self.bytes_max = path, bytes_max
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._writing, self._reading = asyncio.Lock(), asyncio.Lock()
        self._n = 0
        self._held = -1

    # --- life ---

    async def open(self, source: str) -> Mark:
        """Open or create. Raises `Rejected("catalog_unusable")` when the file cannot be written at all."""
        async with self._writing, self._reading:
            return await asyncio.to_thread(self._open, source)

    def _open(self, source: str) -> Mark:
        self._disconnect()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock()
            try:
                found = self._open_file(source)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                    raise
                log.warning("the catalog %s is damaged (%s): building it anew from the log", self.path, error)
                found = None
            if found is None:
                self._disconnect()
                self._remove()
                self._create(source)
                found = Mark()
        except (OSError, sqlite3.OperationalError) as error:
            self._close()
            raise Rejected(
                "catalog_unusable", f"the catalog {self.path} cannot be used ({error}): is another observer using it?"
            ) from error
        self._reader = self._connect()
        self._reader.execute("PRAGMA query_only = ON")
        return found

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -16384")
        return connection

    def _open_file(self, source: str) -> Mark | None:
        """The mark of a sound file for this log; None when there is none."""
        if not self.path.exists():
            return None
        self._writer = self._connect()
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        if version != FORMAT:
            return None
        row = self._writer.execute("SELECT source, seq, message_id, n FROM mark").fetchone()
        if row is None or row[0] != source:
            log.warning("the catalog %s was gathered from another log: building it anew", self.path)
            return None
        self._writer.execute("SELECT id FROM tasks ORDER BY n DESC LIMIT 1").fetchone()
        self._n = row[3]
        return Mark(row[1], row[2])

    def _create(self, source: str) -> None:
        self._writer = self._connect()
        self._writer.executescript("BEGIN;" + _SCHEMA)
        self._writer.execute("INSERT INTO mark VALUES (?, 0, '', 0)", (source,))
        self._writer.execute(f"PRAGMA user_version = {FORMAT}")
        self._writer.execute("COMMIT")
        self._n = 0

    async def drop(self) -> None:
        """Delete the file; `open` then makes a new one."""
        async with self._writing, self._reading:
            await asyncio.to_thread(self._drop)

    def _drop(self) -> None:
        self._disconnect()
        self._remove()

    def _remove(self) -> None:
        """Out of the way, and kept until the next time: somebody may want to know what happened to it."""
        if self.path.exists():
            self.path.replace(f"{self.path}.dropped")
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    def _lock(self) -> None:
        """One observer per file; the kernel drops the lock when its holder dies."""
        if self._held < 0:
            self._held = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)

    async def close(self) -> None:
        """Idempotent."""
        async with self._writing, self._reading:
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._disconnect()
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _disconnect(self) -> None:
        for connection in (self._writer, self._reader):
            if connection is not None:
                connection.close()
        self._writer = self._reader = None

    # --- writing ---

    async def apply(self, rows: Sequence[TaskRow], mark: Mark) -> None:
        """One transaction. Raises `Fault("catalog_damaged")`: drop it and build it anew; `Fault("catalog_failed")`."""
        async with self._writing:
            await self._in_thread(lambda: self._apply(rows, mark))

    def _apply(self, rows: Sequence[TaskRow], mark: Mark) -> None:
        connection = self._opened(self._writer)
        n = self._n
        fresh: list[tuple[Any, ...]] = []
        words: list[tuple[int, str]] = []
        changed: list[tuple[Any, ...]] = []
        for row in rows:
            history = "".join(f"{seq}.{index}," for seq, index in row.history)
            seqs = [seq for seq, _ in row.history] or [0]
            verdict = row.verdict or (None, None)
            if not row.fresh:
                changed.append((row.state, row.attempts, row.tokens, row.ended_at, seqs[-1], *verdict, history, row.id))
                continue
            n += 1
            labels = msgspec.json.encode(row.labels).decode()
            named = (n, row.id, row.state, row.agent, row.tenant, row.parent, labels, row.attempts, row.tokens)
            fresh.append((*named, row.submitted_at, row.ended_at, seqs[0], seqs[-1], *verdict, history))
            if row.text:
                words.append((n, row.text))
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(_FRESH, fresh)
            connection.executemany(_WORDS, words)
            connection.executemany(_CHANGED, changed)
            connection.execute(_MARK, (mark.seq, mark.message_id, n))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._n = n

    # --- reading ---

    async def find(self, query: FindQuery) -> tuple[list[FoundTask], int]:
        """Tasks, newest first. Raises `Rejected("bad_query")`."""
        if not 1 <= query.limit <= FIND_MAX:
            raise Rejected("bad_query", f"limit must be from 1 to {FIND_MAX}, not {query.limit}")
        sql, values = _select(query)
        async with self._reading:
            rows = await self._in_thread(lambda: self._opened(self._reader).execute(sql, values).fetchall())
        more = len(rows) > query.limit
        rows = rows[: query.limit]
        return [_found(row) for row in rows], rows[-1][0] if more else 0

    async def task(self, task: str) -> FoundTask | None:
        """One task with its history; None when it is not known."""
        sql = f"SELECT {_COLUMNS}, history FROM tasks WHERE id = ?"
        async with self._reading:
            row = await self._in_thread(lambda: self._opened(self._reader).execute(sql, (task,)).fetchone())
        if row is None:
            return None
        found = _found(row[:-1])
        found.history = _places(row[-1])
        return found

    async def size(self) -> tuple[int, int]:
        """Bytes of the file and its write-ahead log."""

        def look() -> int:
            files = (self.path, Path(f"{self.path}-wal"))
            return sum(file.stat().st_size for file in files if file.exists())

        return await asyncio.to_thread(look), self.bytes_max

    # --- shared ---

    @staticmethod
    def _opened(connection: sqlite3.Connection | None) -> sqlite3.Connection:
        if connection is None:
            raise Fault("catalog_closed", "the catalog is not open")
        return connection

    async def _in_thread(self, act: Callable[[], T]) -> T:
        """Run `act` on a thread; whoever is cancelled meanwhile waits for it, so that the connection is free again."""
        running = asyncio.get_running_loop().run_in_executor(None, act)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise
        except sqlite3.OperationalError as error:
            raise Fault("catalog_failed", f"the catalog {self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise Fault("catalog_damaged", f"the catalog {self.path} is damaged: {error}") from error


def _select(query: FindQuery) -> tuple[str, list[Any]]:
    where: list[str] = []
    values: list[Any] = []
    if query.state == "live":
        where.append(f"state IN ({', '.join('?' * len(_LIVE))})")
        values += _LIVE
    elif query.state:
        where.append("state = ?")
        values.append(query.state)
    for name in ("agent", "tenant"):
        if getattr(query, name):
            where.append(f"{name} = ?")
            values.append(getattr(query, name))
    if query.text:
        words = _WORD.findall(query.text)[:WORDS_MAX]
        if not words:
            raise Rejected("bad_query", f"text {query.text[:80]!r} holds no word to look for")
        where.append("n IN (SELECT rowid FROM words WHERE words MATCH ?)")
        values.append(" ".join(f'"{word}"' for word in words))
    if query.before:
        where.append("n < ?")
        values.append(query.before)
    condition = f" WHERE {' AND '.join(where)}" if where else ""
    return f"SELECT {_COLUMNS} FROM tasks{condition} ORDER BY n DESC LIMIT ?", [*values, query.limit + 1]


def _found(row: tuple[Any, ...]) -> FoundTask:
    _, task, state, agent, tenant, parent, labels, attempts, tokens, submitted, ended, first, last, seq, index = row
    found = FoundTask(task, state, agent, tenant, parent, _LABELS.decode(labels), attempts, tokens, submitted, ended)
    found.first_seq, found.last_seq = first, last
    found.verdict = None if seq is None else (seq, index)
    return found


def _places(history: str) -> list[Place]:
    places: list[Place] = []
    for part in history.split(",")[:-1]:
        seq, _, index = part.partition(".")
        places.append((int(seq), int(index)))
    return places
