"""One suite for every memory store: the fake and Milvus on a real Milvus Lite server, killed and restarted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import pytest_asyncio

from swarmd.adapters.memory_fakes import FakeMemoryDisk, FakeMemoryStore
from swarmd.adapters.milvus_server import MilvusServer
from swarmd.adapters.milvus_store import MilvusStore, collection_for
from swarmd.adapters.milvus_store.store import ROWS_UNFLUSHED_MAX
from swarmd.core.errors import Fault, Rejected
from swarmd.core.memory import Memory
from swarmd.hash_embedder import HashEmbedder
from swarmd.passages import K_MAX, LABELS_MAX, TEXT_BYTES_MAX
from swarmd.ports import Embedder, RecallQuery

if TYPE_CHECKING:
    from pathlib import Path

HAS_MILVUS = find_spec("milvus_lite") is not None and find_spec("pymilvus") is not None
needs_milvus = pytest.mark.skipif(not HAS_MILVUS, reason="the extra [memory] is not installed")

Store = FakeMemoryStore | MilvusStore
Reopen = Callable[..., Store]

EMBEDDER = HashEmbedder(256)
FOX = Memory(id="fox", text="The quick brown fox jumps over the lazy dog.", source="fable.md", seq=1)
LEASE = Memory(
    id="lease",
    text="A lease expires when the worker stops renewing it.",
    author="ada",
    task="t-1",
    seq=2,
    labels={"kind": "rule", "lang": "en"},
)
BREAD = Memory(id="bread", text="Bread is baked from flour, water and salt.", seq=3, labels={"kind": "recipe"})
BROKER = Memory(id="broker", text="The broker restarts on the same port after a crash.", seq=4, labels={"kind": "rule"})
ALL = [FOX, LEASE, BREAD, BROKER]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MilvusServer]:
    running = MilvusServer(tmp_path_factory.mktemp("milvus"))
    await running.start()
    yield running
    await running.stop()


@pytest.fixture(params=["fake", pytest.param("milvus", marks=needs_milvus)])
def make(request: pytest.FixtureRequest) -> Reopen:
    """Build a store over what earlier ones of the same test have left."""
    if request.param == "fake":
        disk = FakeMemoryDisk()
        return lambda embedder=EMBEDDER: FakeMemoryStore(embedder, disk)
    running: MilvusServer = request.getfixturevalue("server")
    name = collection_for(request.node.name)
    return lambda embedder=EMBEDDER: MilvusStore(running.uri, name, embedder)


@pytest_asyncio.fixture
async def store(make: Reopen) -> AsyncIterator[Store]:
    opened = make()
    assert await opened.open() == 0
    yield opened
    await opened.close()


async def recall(store: Store, text: str, k: int = 5, **labels: str) -> list[str]:
    (passages,) = await store.search([RecallQuery(text=text, k=k, labels=labels)])
    return [passage.memory.id for passage in passages]


async def test_a_new_store_is_empty(store: Store) -> None:
    assert await store.count() == 0
    assert await recall(store, "anything") == []


async def test_what_was_remembered_comes_back_whole(store: Store) -> None:
    await store.apply(ALL, [], 4)
    assert await store.count() == 4
    (passages,) = await store.search([RecallQuery(text="when does a lease expire", k=1)])
    assert [passage.memory for passage in passages] == [LEASE]


async def test_recall_finds_words_other_forms_and_spellings(store: Store) -> None:
    await store.apply(ALL, [], 4)
    assert (await recall(store, "salt"))[0] == "bread"
    assert (await recall(store, "expiring leases"))[0] == "lease"
    assert (await recall(store, "restarted brokers crashing"))[0] == "broker"
    assert (await recall(store, "foxhound jumping"))[0] == "fox"  # by trigrams and stems alone


async def test_passages_are_ordered_best_first(store: Store) -> None:
    await store.apply(ALL, [], 4)
    queries = [RecallQuery(text="the worker of a lease"), RecallQuery(text="salt and flour", k=3)]
    answers = await store.search(queries)
    assert [answer[0].memory.id for answer in answers] == ["lease", "bread"]
    assert [len(answer) for answer in answers] == [4, 3]
    for answer in answers:
        scores = [passage.score for passage in answer]
        assert scores == sorted(scores, reverse=True)
        assert len({passage.memory.id for passage in answer}) == len(answer)


async def test_a_repeated_apply_changes_nothing_and_a_newer_text_replaces(store: Store) -> None:
    for _ in range(3):
        await store.apply(ALL, [], 4)
    assert await store.count() == 4
    await store.apply([Memory(id="fox", text="A vixen raises her cubs.", seq=5)], [], 5)
    assert await store.count() == 4
    assert (await recall(store, "vixen cubs"))[0] == "fox"
    (passages,) = await store.search([RecallQuery(text="quick brown lazy dog")])
    assert all("quick brown" not in passage.memory.text for passage in passages)


async def test_within_one_apply_the_last_text_wins_and_forgetting_wins_over_both(store: Store) -> None:
    older, newer = Memory(id="x", text="old words", seq=1), Memory(id="x", text="new words", seq=2)
    await store.apply([older, newer, BREAD], ["bread", "never known"], 3)
    assert await store.count() == 1
    (passages,) = await store.search([RecallQuery(text="words")])
    assert [passage.memory for passage in passages] == [newer]


async def test_the_forgotten_is_gone(store: Store) -> None:
    await store.apply(ALL, [], 4)
    await store.apply([], ["lease"], 5)
    await store.apply([], ["lease"], 5)
    assert await store.count() == 3
    assert "lease" not in await recall(store, "lease expires worker renewing", k=10)
    await store.apply([LEASE], [], 6)
    assert (await recall(store, "lease"))[0] == "lease"


async def test_labels_filter_by_equality_of_all(store: Store) -> None:
    await store.apply(ALL, [], 4)
    assert sorted(await recall(store, "lease broker bread fox", kind="rule")) == ["broker", "lease"]
    assert await recall(store, "lease broker bread fox", kind="rule", lang="en") == ["lease"]
    assert await recall(store, "lease broker bread fox", kind="rul") == []
    assert await recall(store, "lease broker bread fox", kind="rule", lang="de") == []


HOSTILE = [
    'a"b', "a'b", "back\\slash", '\\"', "line\nbreak\r\t", "%like_", '" or key != "', "'] or true or ['", "{braces}",
    "$meta", "東京", "\u202eright-to-left", "emoji 🦊", "\x00nul", "", " ", "x" * 1024,
]  # fmt: skip


async def test_hostile_labels_match_themselves_alone(store: Store) -> None:
    memories = [
        Memory(id=f"m-{index}", text="the same text", labels={"k": value, value[:200]: "v"}, seq=index + 1)
        for index, value in enumerate(HOSTILE)
    ]
    await store.apply(memories, [], len(memories))
    by_value = [RecallQuery(text="the same text", k=50, labels={"k": value}) for value in HOSTILE]
    by_name = [RecallQuery(text="the same text", k=50, labels={value[:200]: "v"}) for value in HOSTILE]
    for answers in (await store.search(by_value), await store.search(by_name)):
        assert [[passage.memory for passage in answer] for answer in answers] == [[memory] for memory in memories]


async def test_hostile_ids_and_texts_are_kept_and_forgotten(store: Store) -> None:
    memories = [
        Memory(id=value, text=f"text {index} {value}", source=value, author=value, task=value)
        for index, value in enumerate(HOSTILE)
        if value
    ]
    await store.apply(memories, [], 1)
    answers = await store.search([RecallQuery(text=memory.text, k=50) for memory in memories])
    for memory, passages in zip(memories, answers, strict=True):
        assert memory in [passage.memory for passage in passages]
    for memory in memories[:3]:
        await store.apply([], [memory.id], 2)
    await store.apply([], [memory.id for memory in memories[4:]], 3)
    assert await store.count() == 1


@pytest.mark.parametrize("text", ["?!", "the of and", '") or ("', "\\", "東京", "* AND NOT", "x" * TEXT_BYTES_MAX])
async def test_odd_queries_are_answered(store: Store, text: str) -> None:
    await store.apply(ALL, [], 4)
    assert len(await recall(store, text, k=2)) == 2


async def test_the_applied_sequence_survives_reopening(make: Reopen) -> None:
    for upto, memories, forgotten in [(4, ALL, []), (9, [], ["fox"]), (12, [], []), (11, [BREAD], [])]:
        store = make()
        before = await store.open()
        await store.apply(memories, forgotten, upto)
        await store.close()
        reopened = make()
        assert await reopened.open() == max(before, upto)
        assert await reopened.open() == max(before, upto)  # opening again is harmless
        await reopened.close()
    store = make()
    await store.open()
    assert await store.count() == 3
    assert "lease" in await recall(store, "lease")
    await store.close()


async def test_a_dropped_store_starts_anew(make: Reopen, store: Store) -> None:
    await store.apply(ALL, [], 4)
    await store.drop()
    assert await store.open() == 0
    assert await store.count() == 0


class OtherEmbedder(HashEmbedder):
    def __init__(self, dimension: int) -> None:
        super().__init__(dimension)
        self.id = "other-1"


@pytest.mark.parametrize("other", [OtherEmbedder(256), HashEmbedder(128)])
async def test_another_embedder_is_refused(make: Reopen, store: Store, other: Embedder) -> None:
    await store.apply(ALL, [], 4)
    stranger = make(other)
    with pytest.raises(Rejected, match=r"hash-v2-256.*rebuild") as caught:
        await stranger.open()
    assert caught.value.code == "embedder_mismatch"
    await stranger.close()
    assert await make().open() == 4  # nothing was harmed


@pytest.mark.parametrize("k", [0, -1, K_MAX + 1])
async def test_k_out_of_bounds_is_refused(store: Store, k: int) -> None:
    with pytest.raises(Rejected, match=f"1 to {K_MAX}"):
        await store.search([RecallQuery(text="x", k=k)])


@pytest.mark.parametrize(
    ("memory", "code", "says"),
    [
        (Memory(id="m", text="x" * (TEXT_BYTES_MAX + 1)), "too_large", str(TEXT_BYTES_MAX)),
        (Memory(id="m", text="é" * (TEXT_BYTES_MAX // 2 + 1)), "too_large", str(TEXT_BYTES_MAX)),
        (Memory(id="m", text=" \n"), "text_empty", "empty"),
        (Memory(id="m", text="\ud800"), "not_unicode", "surrogate"),
        (Memory(id="", text="x"), "memory_id_missing", "id"),
        (Memory(id="m", text="x", source="s" * 1025), "too_large", "source"),
        (Memory(id="m", text="x", labels={"k": "v" * 1025}), "too_large", "label value"),
        (Memory(id="m", text="x", labels={str(n): "" for n in range(LABELS_MAX + 1)}), "too_many_labels", "64"),
    ],
)
async def test_a_memory_over_the_limits_is_refused_whole(store: Store, memory: Memory, code: str, says: str) -> None:
    with pytest.raises(Rejected, match=says) as caught:
        await store.apply([FOX, memory], [], 5)
    assert caught.value.code == code
    assert await store.count() == 0


async def test_the_largest_memory_is_kept_whole(store: Store) -> None:
    full = [
        Memory(
            id="words",
            text=("w1 " * TEXT_BYTES_MAX)[:TEXT_BYTES_MAX],
            labels={str(n): "v" * 99 for n in range(LABELS_MAX)},
        ),
        Memory(id="cjk", text="東" * (TEXT_BYTES_MAX // 3)),
        Memory(id="ligatures", text="\ufdfa" * (TEXT_BYTES_MAX // 3)),
    ]
    await store.apply(full, [], 1)
    (passages,) = await store.search([RecallQuery(text="w1 東", k=3)])
    assert {passage.memory.id: passage.memory for passage in passages} == {memory.id: memory for memory in full}


async def test_a_closed_store_says_so(make: Reopen) -> None:
    store = make()
    with pytest.raises(Fault, match="not open"):
        await store.count()


# -- Milvus alone: processes, files, requests


@pytest_asyncio.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[MilvusServer]:
    running = MilvusServer(tmp_path)
    await running.start()
    yield running
    await running.stop()


@needs_milvus
async def test_concurrent_searches_share_requests(server: MilvusServer) -> None:
    store = MilvusStore(server.uri, "coalesced", EMBEDDER)
    await store.open()
    await store.apply(ALL, [], 4)
    before = store.requests
    answers = await asyncio.gather(*(recall(store, memory.text, k=1) for memory in ALL * 8))
    assert answers == [[memory.id] for memory in ALL * 8]
    assert store.requests - before == 2
    await asyncio.gather(*(recall(store, "lease", kind=kind) for kind in ("rule", "recipe") * 8))
    assert store.requests - before == 6
    await store.close()


@needs_milvus
async def test_concurrent_applies_are_all_kept(own_server: MilvusServer) -> None:
    store = MilvusStore(own_server.uri, "crowd", EMBEDDER)
    await store.open()
    async with asyncio.TaskGroup() as group:
        for batch in range(20):
            rows = [Memory(id=f"{batch}-{n}", text=f"batch {batch} row {n}") for n in range(10)]
            group.create_task(store.apply(rows, [], batch + 1))
    await kill(own_server)
    await own_server.start()
    reopened = MilvusStore(own_server.uri, "crowd", EMBEDDER)
    assert await reopened.open() == 20
    assert await reopened.count() == 200
    await reopened.close()
    await store.close()


@needs_milvus
@pytest.mark.parametrize("is_during", [False, True], ids=["between", "during"])
async def test_a_kill_loses_nothing_applied(own_server: MilvusServer, is_during: bool) -> None:
    """Each sequence brings ten rows, so the rows held tell whether the claimed sequence is true."""
    store = MilvusStore(own_server.uri, "killed", EMBEDDER)
    sure = 0
    for _death in range(3):
        applied = await store.open()
        assert sure <= applied <= sure + 1  # the receipt of the last one may have been lost, its rows were not
        assert applied * 10 <= await store.count() <= applied * 10 + 10
        for seq in range(applied + 1, applied + 6):
            await store.apply(rows_of(seq), [], seq)
        sure = applied + 5
        if is_during:
            async with asyncio.TaskGroup() as group:
                group.create_task(apply_or_fail(store, sure + 1))
                group.create_task(kill(own_server))
        else:
            await kill(own_server)
        await own_server.start()
    assert sure <= await store.open() <= sure + 1
    await store.close()


def rows_of(seq: int) -> list[Memory]:
    return [Memory(id=f"{seq}-{n}", text=f"passage {seq} {n}", seq=seq) for n in range(10)]


async def apply_or_fail(store: MilvusStore, seq: int) -> None:
    with contextlib.suppress(Fault):
        await store.apply(rows_of(seq), [], seq)


@needs_milvus
async def test_a_supervised_server_comes_back_and_the_store_with_it(own_server: MilvusServer) -> None:
    store = MilvusStore(own_server.uri, "supervised", EMBEDDER)
    await store.open()
    await store.apply(ALL, [], 4)
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


@needs_milvus
async def test_a_dead_server_is_a_fault_at_once(own_server: MilvusServer) -> None:
    store = MilvusStore(own_server.uri, "dead", EMBEDDER)
    await store.open()
    await kill(own_server)
    async with asyncio.timeout(10):
        for attempt in (store.count(), store.apply(ALL, [], 4), recall(store, "x"), store.open()):
            with pytest.raises(Fault) as caught:
                await attempt
            assert caught.value.code in ("memory_unavailable", "memory_closed")
    await store.close()


@needs_milvus
async def test_deleted_files_mean_nothing_is_applied(own_server: MilvusServer) -> None:
    store = MilvusStore(own_server.uri, "deleted", EMBEDDER)
    await store.open()
    await store.apply(ALL, [], 4)
    await own_server.stop()
    shutil.rmtree(own_server.rows_directory)
    await own_server.start()
    moved = MilvusStore(own_server.uri, "deleted", EMBEDDER)
    assert await moved.open() == 0
    assert await moved.count() == 0
    await moved.close()
    await store.close()


@needs_milvus
async def test_a_lost_collection_is_named(server: MilvusServer) -> None:
    one = MilvusStore(server.uri, "lost", EMBEDDER)
    other = MilvusStore(server.uri, "lost", EMBEDDER)
    await one.open()
    await other.drop()
    with pytest.raises(Fault) as caught:
        await one.apply(ALL, [], 4)
    assert caught.value.code == "memory_lost"
    assert await one.open() == 0
    await one.close()


@needs_milvus
async def test_a_quiet_store_is_flushed_by_its_owner(server: MilvusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.adapters.milvus_store.store.QUIET_S", 0.01)
    store = MilvusStore(server.uri, "quiet", EMBEDDER)
    await store.open()
    await store.apply(ALL, [], 4)
    assert store.unflushed == len(ALL)
    async with asyncio.TaskGroup() as group, asyncio.timeout(30):
        tending = group.create_task(store.tend())
        await store.flushed.wait()
        tending.cancel()
    assert store.unflushed == 0
    many = [Memory(id=f"m{n}", text=f"row {n}") for n in range(ROWS_UNFLUSHED_MAX)]
    await store.apply(many, [], 5)
    assert store.unflushed == 0
    await store.close()


@needs_milvus
async def test_a_power_loss_drops_the_rows_and_an_orderly_stop_does_not(tmp_path: Path) -> None:
    server = MilvusServer(tmp_path)
    for is_orderly, applied in [(True, 4), (False, 0)]:
        await server.start()
        store = MilvusStore(server.uri, "power", EMBEDDER)
        await store.open()
        await store.apply(ALL, [], 4)
        await store.close()
        await (server.stop() if is_orderly else kill(server))
        boot = server.directory / "boot"
        assert boot.exists() is not is_orderly
        if not is_orderly:
            boot.write_text(str(UUID(int=7)))  # as if another boot of the machine had written it
        await server.start()
        store = MilvusStore(server.uri, "power", EMBEDDER)
        assert await store.open() == applied
        await store.close()
        await server.stop()


@needs_milvus
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


@needs_milvus
async def test_a_server_that_cannot_start_tells_why(tmp_path: Path) -> None:
    server = MilvusServer(tmp_path)
    server.directory.mkdir()
    server.rows_directory.write_text("not a directory")
    with pytest.raises(Fault, match=r"milvus-lite ended at its start: .*") as caught:
        await server.start()
    assert caught.value.code == "milvus_server_died"
    assert server.pid == 0
    await server.stop()


@needs_milvus
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


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "x" * 256, "ä"])
def test_a_collection_name_that_milvus_refuses_is_refused(name: str) -> None:
    with pytest.raises(Rejected, match="collection"):
        MilvusStore("http://127.0.0.1:1", name, EMBEDDER)


def test_names_of_memories_never_share_a_collection() -> None:
    names = ["a", "a-b", "a_b", "a b", "ä", "x" * 200, "x" * 201, ""]
    collections = [collection_for(name) for name in names]
    assert len(set(collections)) == len(names)
    for collection in collections:
        MilvusStore("http://127.0.0.1:1", collection, EMBEDDER)


async def kill(server: MilvusServer) -> None:
    """End the server as a crash would, and free its port for the next start."""
    pid = server.pid
    if pid:
        os.kill(pid, signal.SIGKILL)
    await server.stop()
