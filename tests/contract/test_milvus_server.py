"""The embedded Milvus as a process that is killed, restarted, filled up and robbed of its files, and stores over it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import pytest_asyncio

from swarmd.adapters.milvus_server import MilvusServer
from swarmd.adapters.milvus_store import vector_store
from swarmd.adapters.milvus_store.connection import Place
from swarmd.adapters.milvus_store.stores import MilvusVectorStores, collection_for
from swarmd.adapters.milvus_store.vector_store import UNFLUSHED_MAX, MilvusVectorStore
from swarmd.core.errors import Fault, Rejected
from swarmd.core.memory import Memory
from swarmd.core.memory_filter import parse
from swarmd.ports import Pin, Row, VectorQuery
from tests.contract.vector_stores import ALL, FOX, PIN, ids, kill, needs_milvus, over, recall, row, rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = needs_milvus


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MilvusServer]:
    running = MilvusServer(tmp_path_factory.mktemp("milvus"))
    await running.start()
    yield running
    await running.stop()


@pytest_asyncio.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[MilvusServer]:
    running = MilvusServer(tmp_path)
    await running.start()
    yield running
    await running.stop()


def store_over(server: MilvusServer, directory: Path, name: str = "m") -> MilvusVectorStore:
    return over(server, directory, name).store("g1", PIN)


@pytest_asyncio.fixture
async def store(
    server: MilvusServer, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[MilvusVectorStore]:
    opened = store_over(server, tmp_path, request.node.name)
    await opened.open()
    yield opened
    await opened.close()


async def test_concurrent_searches_share_a_request(store: MilvusVectorStore) -> None:
    await store.apply(rows(*ALL), [], 4)
    before = store.recall.requests
    answers = await asyncio.gather(*(recall(store, memory.text, k=1) for memory in ALL * 16))
    assert answers == [[memory.id] for memory in ALL * 16]
    assert store.recall.requests - before == 1
    wide = [parse(f'space in ("shared", "swarm/main", "swarm/main/task/t{n}")') for n in range(16)]
    await asyncio.gather(*(recall(store, "lease", where=where) for where in wide))
    assert store.recall.requests - before == 2  # whoever asks, all that is there is let through
    kinds = [parse(f'labels.kind = "{kind}"') for kind in ("rule", "recipe")]
    await asyncio.gather(*(recall(store, "lease", where=where) for where in kinds * 8))
    assert store.recall.requests - before <= 5


async def test_filters_that_most_rows_pass_share_a_request_and_still_hold(store: MilvusVectorStore) -> None:
    many = [Memory(f"m{n}", f"words {n}", author=f"a{n % 10}", seq=n + 1) for n in range(120)]
    await store.apply(rows(*many), [], 120, fresh=True)
    before = store.recall.requests
    wheres = [parse(f'author != "a{n}"') for n in range(10)]
    queries = [VectorQuery(vector=row(many[n]).vector, k=10, where=where) for n, where in enumerate(wheres)]
    answers = await store.search(queries)
    assert store.recall.requests - before == 1
    for n, (query, hits) in enumerate(zip(queries, answers, strict=True)):
        assert len(hits) == 10
        assert f"a{n}" not in {hit.memory.author for hit in hits}
        (alone,) = await store.search([query])
        assert ids(alone) == ids(hits)


async def test_what_a_cancelled_apply_left_is_written_before_the_next(own_server: MilvusServer, tmp_path: Path) -> None:
    store = store_over(own_server, tmp_path)
    await store.open()
    near = row(FOX).vector
    for batch in range(6):
        many = [Row(Memory(f"{batch}-{n}", f"batch {batch} row {n}", seq=batch), near) for n in range(400)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.003 * batch):  # wherever it then is
                await store.apply(many, [], batch + 1, fresh=True)
        await store.apply(many, [], batch + 1, fresh=True)
    await kill(own_server)
    await own_server.start()
    reopened = store_over(own_server, tmp_path)
    assert await reopened.open() == 6
    assert await reopened.count() == 2_400
    await reopened.close()
    await store.close()


async def test_concurrent_applies_are_all_kept(own_server: MilvusServer, tmp_path: Path) -> None:
    store = store_over(own_server, tmp_path)
    await store.open()
    async with asyncio.TaskGroup() as group:
        for batch in range(20):
            many = [Memory(f"{batch}-{n}", f"batch {batch} row {n}", seq=batch) for n in range(10)]
            group.create_task(store.apply(rows(*many), [], batch + 1, fresh=True))
    await kill(own_server)
    await own_server.start()
    reopened = store_over(own_server, tmp_path)
    assert await reopened.open() == 20
    assert await reopened.count() == 200
    await reopened.close()
    await store.close()


def ten(seq: int) -> list[Row]:
    return rows(*(Memory(f"{seq}-{n}", f"passage {seq} {n}", seq=seq) for n in range(10)))


@pytest.mark.parametrize("is_during", [False, True], ids=["between", "during"])
async def test_a_kill_loses_nothing_applied(own_server: MilvusServer, tmp_path: Path, is_during: bool) -> None:
    """Each sequence brings ten rows, so the rows held tell whether the claimed sequence is true."""
    store = store_over(own_server, tmp_path)
    sure = 0

    async def apply_or_fail(seq: int) -> None:
        with contextlib.suppress(Fault):
            await store.apply(ten(seq), [], seq, fresh=True)

    for _death in range(3):
        applied = await store.open()
        assert sure <= applied <= sure + 1  # the receipt of the last one may have been lost, its rows were not
        assert applied * 10 <= await store.count() <= applied * 10 + 10
        (hits,) = await store.search([VectorQuery(text="passage", k=100)])
        assert len(hits) >= min(100, applied * 10)
        for seq in range(applied + 1, applied + 6):
            await store.apply(ten(seq), [], seq, fresh=True)
        sure = applied + 5
        if is_during:
            await asyncio.gather(apply_or_fail(sure + 1), kill(own_server))
        else:
            await kill(own_server)
        await own_server.start()
    assert sure <= await store.open() <= sure + 1
    await store.close()


async def test_a_supervised_server_comes_back_and_the_store_with_it(own_server: MilvusServer, tmp_path: Path) -> None:
    store = store_over(own_server, tmp_path)
    await store.open()
    await store.apply(rows(*ALL), [], 4)
    restarted = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        supervisor = group.create_task(own_server.supervise(lambda pid: restarted.set()))
        before = own_server.pid
        os.kill(before, signal.SIGKILL)
        async with asyncio.timeout(60):
            await restarted.wait()
        assert own_server.pid not in (0, before)
        assert await recall(store, "lease", k=1) == ["lease"]  # it was not loaded: the store loads it
        await store.apply([], ["fox"], 5)
        supervisor.cancel()
    assert await store.count() == 3
    await store.close()


async def test_a_dead_server_is_a_fault_at_once(own_server: MilvusServer, tmp_path: Path) -> None:
    stores = over(own_server, tmp_path, "m")
    store = stores.store("g1", PIN)
    await store.open()
    await kill(own_server)
    async with asyncio.timeout(10):
        attempts = (store.count, lambda: store.apply(rows(*ALL), [], 4), lambda: recall(store, "x"), store.open)
        for attempt in (*attempts, stores.names, store.drop):
            with pytest.raises(Fault) as caught:
                await attempt()
            assert caught.value.code in ("memory_unavailable", "memory_closed")
        await store.close()


async def test_deleted_rows_mean_nothing_is_applied(own_server: MilvusServer, tmp_path: Path) -> None:
    store = store_over(own_server, tmp_path)
    await store.open()
    await store.apply(rows(*ALL), [], 4)
    await own_server.stop()
    shutil.rmtree(own_server.rows_directory)
    await own_server.start()
    moved = store_over(own_server, tmp_path)
    assert await moved.open() == 0
    assert await moved.count() == 0
    assert await recall(moved, "lease") == []  # the words of the lost rows are gone with them
    await moved.close()
    await store.close()


@pytest.mark.parametrize("harm", ["deleted while it runs", "without its log", "overwritten"])
async def test_damaged_rows_are_told_and_dropped(own_server: MilvusServer, tmp_path: Path, harm: str) -> None:
    store = store_over(own_server, own_server.directory)
    await store.open()
    await store.apply(rows(*ALL), [], 4)
    if harm == "deleted while it runs":
        shutil.rmtree(own_server.rows_directory)
        await store.apply(rows(*ALL[:1]), [], 5)
    await store.close()  # flushes
    await kill(own_server)
    for file in own_server.rows_directory.rglob("*"):
        if harm == "overwritten" and file.is_file() and file.name != "LOCK":
            file.write_bytes(b"nothing of ours")
        elif harm == "without its log" and file.suffix == ".arrow":
            file.unlink()
    if harm == "without its log":
        (own_server.rows_directory / "collections" / store.collection / "manifest.json").unlink()
        (own_server.rows_directory / "collections" / store.collection / "schema.json").unlink()
    await own_server.start()
    with pytest.raises(Fault, match="damaged") as caught:
        await store.open()
    assert caught.value.code == "memory_damaged"
    assert set(await over(own_server, own_server.directory, "m").names()) <= {"g1"}  # told, whatever it cannot read
    await store.drop()
    assert await store.open() == 0
    await store.apply(rows(*ALL), [], 4)
    assert await recall(store, "lease", k=1) == ["lease"]
    await store.close()


@pytest.mark.parametrize("harm", ["deleted", "damaged", "of another format", "cut"])
async def test_words_that_are_lost_come_back_from_the_rows(store: MilvusVectorStore, tmp_path: Path, harm: str) -> None:
    await store.apply(rows(*ALL), [], 4)
    await store.close()
    (file,) = (tmp_path / "words").glob("*.db")
    if harm == "deleted":
        file.unlink()
    elif harm == "damaged":
        file.write_bytes(b"no database" * 1000)
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        with contextlib.closing(sqlite3.connect(file)) as changed:
            changed.execute("PRAGMA user_version = 99")
    assert await store.open() == 4
    words = VectorQuery(text="leases", where=parse('labels.kind = "rule"'))
    assert ids((await store.search([words]))[0]) == ["lease"]


async def test_words_that_are_behind_are_asked_of_the_log(store: MilvusVectorStore, tmp_path: Path) -> None:
    """As after a restored backup of one file of the two."""
    await store.apply(rows(*ALL[:2]), [], 2)
    await store.close()
    (file,) = (tmp_path / "words").glob("*.db")
    older = file.read_bytes()
    await store.open()
    await store.apply(rows(*ALL[2:]), [], 4)
    await store.close()
    file.write_bytes(older)
    assert await store.open() == 2
    await store.apply(rows(*ALL[2:]), [], 4)
    assert ids((await store.search([VectorQuery(text="salt")]))[0]) == ["bread"]
    assert await store.count() == 4


async def test_a_quiet_store_is_flushed_and_a_busy_one_now_and_then(
    store: MilvusVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_store, "QUIET_S", 0.01)
    await store.apply(rows(*ALL), [], 4)
    async with asyncio.timeout(30):
        while store.unflushed:
            await asyncio.sleep(0.01)
    monkeypatch.setattr(vector_store, "QUIET_S", 60)
    near = row(FOX).vector
    many = [Row(Memory(f"m{n}", f"row {n}", seq=5), near) for n in range(UNFLUSHED_MAX + 1)]
    await store.apply(many, [], 5, fresh=True)
    assert store.unflushed >= UNFLUSHED_MAX  # nobody has asked since: a rebuild is not slowed by flushes
    await recall(store, "row")
    assert store.unflushed == 0  # the first who asks does not scan what nobody looked at
    await store.apply(many, [], 6)
    assert store.unflushed == 0


async def test_a_full_disk_is_named_and_nothing_applied_is_lost(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(  # noqa: ASYNC221
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        await fill_up(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # noqa: ASYNC221


async def fill_up(disk: Path) -> None:
    server = MilvusServer(disk)
    await server.start()
    store = store_over(server, disk)
    applied = await store.open()
    near = row(FOX).vector
    with pytest.raises(Fault) as caught:  # noqa: PT012
        for seq in range(1, 200):
            many = [Row(Memory(f"{seq}-{n}", f"{seq} " + "many words " * 200, seq=seq), near) for n in range(100)]
            await store.apply(many, [], seq, fresh=True)
            applied = seq
    assert caught.value.code == "memory_full"
    assert 0 < applied < 199
    await store.close()
    await kill(server)
    (disk / "milvus" / "milvus.log").unlink()
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)  # noqa: ASYNC221
    await server.start()
    reopened = store_over(server, disk)
    claimed = await reopened.open()
    assert claimed <= applied + 1
    held = [found.seq for page in [page async for page in reopened.held()] for found in page]
    assert all(held.count(seq) == 100 for seq in range(1, claimed + 1))
    await reopened.apply([Row(Memory("later", "room again", seq=500), near)], [], 500)
    assert ids((await reopened.search([VectorQuery(text="room")]))[0]) == ["later"]
    await reopened.close()
    await server.stop()


async def test_a_power_loss_drops_the_rows_and_an_orderly_stop_does_not(tmp_path: Path) -> None:
    server = MilvusServer(tmp_path)
    for is_orderly, applied in [(True, 4), (False, 0)]:
        await server.start()
        store = store_over(server, tmp_path)
        await store.open()
        await store.apply(rows(*ALL), [], 4)
        await store.close()
        await (server.stop() if is_orderly else kill(server))
        boot = server.directory / "boot"
        assert boot.exists() is not is_orderly
        if not is_orderly:
            boot.write_text(str(UUID(int=7)))  # as if another boot of the machine had written it
        await server.start()
        store = store_over(server, tmp_path)
        assert await store.open() == applied
        await store.close()
        await server.stop()


async def test_a_locked_directory_and_a_used_port_are_named(
    own_server: MilvusServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.adapters.milvus_server.LOCK_WAIT_S", 0.1)
    with pytest.raises(Rejected, match="another process uses") as locked:
        await MilvusServer(tmp_path).start()
    assert locked.value.code == "directory_locked"
    with pytest.raises(Rejected, match=str(own_server.port)) as used:
        await MilvusServer(tmp_path / "other", own_server.port).start()
    assert used.value.code == "port_in_use"


async def test_a_server_that_cannot_start_tells_why(tmp_path: Path) -> None:
    server = MilvusServer(tmp_path)
    server.directory.mkdir()
    server.rows_directory.write_text("not a directory")
    with pytest.raises(Fault, match=r"milvus-lite ended at its start: .*") as caught:
        await server.start()
    assert caught.value.code == "milvus_server_died"
    assert server.pid == 0
    await server.stop()


async def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, pathlib\n"
        "from swarmd.adapters.milvus_server import MilvusServer\n"
        "async def main():\n"
        "    server = MilvusServer(pathlib.Path(sys.argv[1])); await server.start()\n"
        "    print(server.pid, flush=True); await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    assert int(await parent.stdout.readline()) > 0
    with pytest.raises(Rejected, match="another process uses"):
        await MilvusServer(tmp_path).start()
    parent.kill()
    await parent.wait()
    successor = MilvusServer(tmp_path)
    await successor.start()  # the lock is free only once the orphan is gone
    await successor.stop()


NOWHERE = "http://127.0.0.1:1"


@pytest.mark.parametrize("prefix", ["", "1a", "a-b", "a b", "x" * 253, "ä"])
def test_a_collection_name_that_milvus_refuses_is_refused(prefix: str) -> None:
    stores = MilvusVectorStores(Place(NOWHERE, prefix or "1"))
    with pytest.raises(Rejected, match="collection"):
        stores.store("g1", PIN)


@pytest.mark.parametrize("name", ["", "1", "G", "g-1", "g 1", "x" * 62])
def test_a_store_name_that_another_memory_might_mean_is_refused(name: str) -> None:
    with pytest.raises(Rejected, match="lower case"):
        MilvusVectorStores(Place(NOWHERE, "m")).store(name, PIN)


def test_names_of_memories_never_share_a_collection() -> None:
    names = ["a", "a-b", "a_b", "a b", "ä", "x" * 200, "x" * 201, ""]
    collections = [collection_for(name) for name in names]
    assert len(set(collections)) == len(names)
    for collection in collections:
        MilvusVectorStores(Place(NOWHERE, collection)).store("g1", Pin("e", 3))


async def test_names_tell_this_memory_apart_from_one_that_begins_like_it(server: MilvusServer, tmp_path: Path) -> None:
    mine = MilvusVectorStores(Place(server.uri, "memory_a_20260101", directory=tmp_path))
    other = MilvusVectorStores(Place(server.uri, "memory_a_20260101_20260202", directory=tmp_path))
    for stores, name in ((mine, "g1"), (other, "g2")):
        store = stores.store(name, PIN)
        await store.open()
        await store.close()
    assert (await mine.names(), await other.names()) == (["g1"], ["g2"])
    await mine.close()
    await other.close()
