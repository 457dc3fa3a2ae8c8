"""The catalog on real files: rows and mark together, search that no input breaks, recovery from damage."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.catalog import SqliteCatalog
from swarmd.core.catalog import FindQuery, TaskRow
from swarmd.core.errors import Fault, Rejected
from swarmd.ports import Mark

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def row(task: str, seq: int, state: str = "completed", *, text: str = "", fresh: bool = True, **more: str) -> TaskRow:
    agent, tenant, parent = more.get("agent", "echo"), more.get("tenant", ""), more.get("parent", "")
    ended = "2026-11-22T00:00:01.000Z" if state == "completed" else ""
    verdict = (seq, 1) if state == "completed" else None
    at = "2026-11-22T00:00:00.000Z"
    labels = {"k": "v"}
    return TaskRow(task, fresh, state, agent, tenant, parent, labels, 1, 7, at, ended, verdict, [(seq, 0)], text)


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[SqliteCatalog]:
    opened = SqliteCatalog(tmp_path / "catalog.db", 10_000_000)
    assert await opened.open("log 1") == Mark()
    yield opened
    await opened.close()


async def found(catalog: SqliteCatalog, **wanted: object) -> list[str]:
    tasks, _ = await catalog.find(FindQuery(**wanted))  # type: ignore[arg-type]
    return [task.id for task in tasks]


async def test_a_task_comes_back_with_its_history(catalog: SqliteCatalog) -> None:
    await catalog.apply([row("t1", 3, "queued", tenant="acme", parent="p")], Mark(3, "m3"))
    await catalog.apply([row("t1", 5, "completed", fresh=False)], Mark(5, "m5"))
    task = await catalog.task("t1")
    assert task is not None
    assert (task.state, task.agent, task.tenant, task.parent) == ("completed", "echo", "acme", "p")
    assert (task.history, task.first_seq, task.last_seq, task.verdict) == ([(3, 0), (5, 0)], 3, 5, (5, 1))
    assert (task.attempts, task.tokens, task.labels) == (1, 7, {"k": "v"})
    assert task.submitted_at < task.ended_at
    assert await catalog.task("t2") is None


async def test_filters_and_pages(catalog: SqliteCatalog) -> None:
    rows = [
        row(f"t{n}", n, "queued" if n % 2 else "completed", agent=f"a{n % 3}", tenant="x" * (n % 2)) for n in range(9)
    ]
    await catalog.apply(rows, Mark(9, "m"))
    assert await found(catalog, state="live") == ["t7", "t5", "t3", "t1"]
    assert await found(catalog, state="completed", agent="a0") == ["t6", "t0"]
    assert await found(catalog, tenant="x", limit=2) == ["t7", "t5"]
    tasks, after = await catalog.find(FindQuery(limit=4))
    rest, end = await catalog.find(FindQuery(limit=5, before=after))
    assert [task.id for task in (*tasks, *rest)] == [f"t{n}" for n in range(8, -1, -1)]
    assert end == 0
    with pytest.raises(Rejected, match="limit must be from 1 to 1000"):
        await catalog.find(FindQuery(limit=0))


async def test_words_are_found_by_their_stem(catalog: SqliteCatalog) -> None:
    await catalog.apply(
        [row("t1", 1, text="Leases expire when workers crash"), row("t2", 1, text="bread")], Mark(1, "m")
    )
    assert await found(catalog, text="crashing worker") == ["t1"]
    assert await found(catalog, text="lease bread") == []


@pytest.mark.parametrize(
    "text", ["a AND", "NEAR(", "col:x*", "'; DROP TABLE tasks; --", "x OR y NOT z", "-a +b ^c", "ünïcödé 日本語"]
)
async def test_no_text_breaks_the_search(catalog: SqliteCatalog, text: str) -> None:
    await catalog.apply([row("t1", 1, text=text)], Mark(1, "m"))
    assert await found(catalog, text=text) == ["t1"]
    assert await found(catalog) == ["t1"]


@pytest.mark.parametrize("text", ['"', "(((", " * ", "\x00"])
async def test_a_text_without_words_is_refused(catalog: SqliteCatalog, text: str) -> None:
    with pytest.raises(Rejected, match="no word"):
        await found(catalog, text=text)


async def test_a_resubmitted_id_is_a_task_of_its_own(catalog: SqliteCatalog) -> None:
    await catalog.apply([row("t1", 1, text="first")], Mark(1, "m"))
    await catalog.apply([row("t1", 9, "queued", text="second")], Mark(9, "m"))
    assert await found(catalog, text="first") == []
    assert await found(catalog, text="second") == ["t1"]
    task = await catalog.task("t1")
    assert task is not None
    assert task.history == [(9, 0)]


async def test_the_mark_survives_with_its_rows(catalog: SqliteCatalog, tmp_path: Path) -> None:
    await catalog.apply([row("t1", 4)], Mark(4, "m4"))
    await catalog.close()
    again = SqliteCatalog(tmp_path / "catalog.db")
    assert await again.open("log 1") == Mark(4, "m4")
    await again.apply([row("t2", 5)], Mark(5, "m5"))
    assert await found(again) == ["t2", "t1"]
    await again.close()


async def test_another_log_starts_a_catalog_of_its_own(catalog: SqliteCatalog) -> None:
    await catalog.apply([row("t1", 4)], Mark(4, "m4"))
    assert await catalog.open("log 2") == Mark()
    assert await found(catalog) == []


@pytest.mark.parametrize("damage", ["head", "empty", "middle"])
async def test_a_damaged_file_is_built_anew(catalog: SqliteCatalog, tmp_path: Path, damage: str) -> None:
    await catalog.apply([row(f"t{n}", n, text="words to find") for n in range(2_000)], Mark(4, "m4"))
    await catalog.close()
    file = tmp_path / "catalog.db"
    content = bytearray(file.read_bytes())
    if damage == "middle":
        content[4096:] = os.urandom(len(content) - 4096)
    else:
        content = bytearray(b"no database" * 900 if damage == "head" else b"")
    file.write_bytes(content)
    assert await catalog.open("log 1") == Mark()
    await catalog.apply([row("t1", 1)], Mark(1, "m"))
    assert await found(catalog) == ["t1"]


async def test_one_file_has_one_observer(catalog: SqliteCatalog, tmp_path: Path) -> None:
    other = SqliteCatalog(tmp_path / "catalog.db")
    with pytest.raises(Rejected, match="another observer") as refused:
        await other.open("log 1")
    assert refused.value.code == "catalog_unusable"
    await catalog.close()
    await other.open("log 1")
    await other.close()


async def test_its_size_is_known_and_a_closed_one_says_so(catalog: SqliteCatalog) -> None:
    held, limit = await catalog.size()
    assert held > 0
    assert limit == 10_000_000
    await catalog.close()
    with pytest.raises(Fault, match="not open"):
        await catalog.task("t1")


WRITER = """
import asyncio, sys
from pathlib import Path
from swarmd.adapters.catalog import SqliteCatalog
from swarmd.core.catalog import TaskRow
from swarmd.ports import Mark

async def main() -> None:
    catalog = SqliteCatalog(Path(sys.argv[1]))
    seq = (await catalog.open("log 1")).seq
    while True:
        seq += 1
        rows = [
            TaskRow(f"t{seq}", True, "queued", "a", "", "", {}, 0, 0, "", "", None, [(seq, 0)], "some words"),
            TaskRow("t0", seq == 1, "queued", "a", "", "", {}, 0, 0, "", "", None, [(seq, 1)]),
        ]
        await catalog.apply(rows, Mark(seq, f"m{seq}"))
        if seq % 50 == 0:
            print(seq, flush=True)

asyncio.run(main())
"""


async def test_a_killed_writer_leaves_rows_and_mark_that_agree(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    for _ in range(3):
        writer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, str(path), stdout=asyncio.subprocess.PIPE
        )
        assert writer.stdout is not None
        async with asyncio.timeout(20):
            assert await writer.stdout.readline()
            writer.kill()
            await writer.communicate()
    catalog = SqliteCatalog(path)
    mark = await catalog.open("log 1")
    assert mark.seq >= 50
    assert mark.message_id == f"m{mark.seq}"
    task = await catalog.task("t0")
    assert task is not None
    assert task.history == [(seq, 1) for seq in range(1, mark.seq + 1)]
    assert len(await found(catalog, limit=1000, before=501)) == min(500, mark.seq + 1)
    await catalog.close()
