"""One suite for every vector store: the fake, Milvus Lite in this process, and Milvus's gRPC surface over TCP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmd.adapters.memory_fakes import FakeDisk, FakeVectorStores
from swarmd.adapters.milvus_server import MilvusServer
from swarmd.adapters.milvus_store.connection import Place
from swarmd.adapters.milvus_store.stores import MilvusVectorStores
from swarmd.core.errors import Fault, Rejected
from swarmd.core.memory import Memory
from swarmd.core.memory_filter import And, Filter, Has, Not, NumberIs, Or, TextIn, matches, parse
from swarmd.passages import K_MAX, LABELS_MAX, TEXT_BYTES_MAX, digest_of
from swarmd.ports import Hit, Pin, Row, VectorQuery
from tests.contract.vector_stores import (
    ALL,
    BREAD,
    BROKER,
    FOX,
    LEASE,
    PIN,
    Store,
    Stores,
    asked,
    cosine,
    ids,
    needs_milvus,
    over,
    prefix_for,
    recall,
    row,
    rows,
    vector,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MilvusServer]:
    running = MilvusServer(tmp_path_factory.mktemp("milvus"))
    await running.start()
    yield running
    await running.stop()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("lite") / "memory.db")


@pytest.fixture(
    params=["fake", *(pytest.param(kind, marks=needs_milvus) for kind in ("in_process", "child", "server"))]
)
def reopen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Stores]:
    """Stores over what earlier ones of the same test have left. A `server` indexes words itself."""
    if request.param == "fake":
        disk = FakeDisk()
        return lambda: FakeVectorStores(disk)
    beside = tmp_path_factory.mktemp("beside")
    if request.param == "in_process":
        uri = request.getfixturevalue("database")
        return lambda: MilvusVectorStores(Place(uri, prefix_for(request.node.name), directory=beside))
    running: MilvusServer = request.getfixturevalue("server")
    return lambda: over(running, beside if request.param == "child" else None, request.node.name)


@pytest_asyncio.fixture
async def stores(reopen: Callable[[], Stores]) -> AsyncIterator[Stores]:
    opened = reopen()
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def store(stores: Stores) -> AsyncIterator[Store]:
    opened = stores.store("g1", PIN)
    assert await opened.open() == 0
    yield opened
    await opened.close()


async def test_a_new_store_is_empty(store: Store) -> None:
    assert await store.count() == 0
    assert await recall(store, "anything") == []
    assert [page async for page in store.held()] == []


async def test_what_was_remembered_comes_back_whole(store: Store) -> None:
    whole = msgspec.structs.replace(LEASE, payload=msgspec.Raw(b'{"a": [1, null]}'), expires_at_ms=10**13)
    await store.apply(rows(FOX, whole, BREAD, BROKER), [], 4)
    assert await store.count() == 4
    (hits,) = await store.search([asked("when does a lease expire", k=1, now_ms=1)])
    assert [hit.memory for hit in hits] == [whole]


async def test_recall_finds_words_other_forms_and_spellings(store: Store) -> None:
    await store.apply(rows(*ALL), [], 4)
    assert (await recall(store, "salt"))[0] == "bread"
    assert (await recall(store, "expiring leases"))[0] == "lease"
    assert (await recall(store, "restarted brokers crashing"))[0] == "broker"


async def test_by_words_by_vector_or_by_both(store: Store) -> None:
    await store.apply(rows(*ALL), [], 4)
    words = VectorQuery(text="leases", k=4)
    near = VectorQuery(vector=vector(BREAD.text), k=4)
    by_words, by_vector, both = await store.search([words, near, asked(BREAD.text, k=4)])
    assert ids(by_words) == ["lease"]
    assert by_words[0].similarity != by_words[0].similarity  # NaN: there was no vector to compare
    assert ids(by_vector)[0] == ids(both)[0] == "bread"
    assert len(by_vector) == len(both) == 4


async def test_similarity_is_the_cosine_also_of_what_only_words_found(store: Store) -> None:
    rare = Memory(id="rare", text="zyzzyva", seq=99)
    crowd = [Memory(id=f"m{n}", text=f"some words about number {n}", seq=n + 1) for n in range(60)]
    opposite = [-number for number in vector("some words about number 7")]
    await store.apply([*rows(*crowd), Row(rare, opposite)], [], 99, fresh=True)
    query = VectorQuery(text="zyzzyva", vector=vector("some words about number 7"), k=5)
    (hits,) = await store.search([query])
    assert "rare" in ids(hits)
    assert query.vector is not None
    for hit in hits:
        stored = opposite if hit.memory.id == "rare" else vector(hit.memory.text)
        assert hit.similarity == pytest.approx(cosine(stored, query.vector), abs=1e-5)


async def test_hits_are_ordered_best_first_without_repeats(store: Store) -> None:
    await store.apply(rows(*ALL), [], 4)
    answers = await store.search([asked("the worker of a lease"), asked("salt and flour", k=3)])
    assert [answer[0].memory.id for answer in answers] == ["lease", "bread"]
    assert [len(answer) for answer in answers] == [4, 3]
    for answer in answers:
        scores = [hit.score for hit in answer]
        assert scores == sorted(scores, reverse=True)
        assert len(set(ids(answer))) == len(answer)


async def test_a_smallest_similarity_leaves_out_what_is_further(store: Store) -> None:
    await store.apply(rows(*ALL), [], 4)
    (near,) = await store.search([asked(LEASE.text, k=4, min_similarity=0.99)])
    assert ids(near) == ["lease"]
    (some,) = await store.search([asked("lease bread", k=4, min_similarity=0.2)])
    assert some
    assert all(hit.similarity >= 0.2 for hit in some)
    (none,) = await store.search([VectorQuery("salt", vector(FOX.text), k=4, min_similarity=0.999999)])
    assert "bread" not in ids(none)


async def test_diversity_spreads_what_is_alike(store: Store) -> None:
    alike = [Memory(id=f"lease{n}", text=f"{LEASE.text} {'x' * n}", seq=n + 5) for n in range(4)]
    await store.apply(rows(*ALL, *alike), [], 9)
    plain, spread = await store.search([asked("lease worker", k=3), asked("lease worker", k=3, diversity=0.9)])
    assert all(one.startswith("lease") for one in ids(plain))
    assert ids(spread)[0] == ids(plain)[0]
    assert sum(one.startswith("lease") for one in ids(spread)) < 3


async def test_a_repeated_apply_changes_nothing_and_a_newer_text_replaces(store: Store) -> None:
    for _ in range(3):
        await store.apply(rows(*ALL), [], 4)
    assert await store.count() == 4
    await store.apply(rows(Memory(id="fox", text="A vixen raises her cubs.", seq=5)), [], 5)
    assert await store.count() == 4
    assert (await recall(store, "vixen cubs"))[0] == "fox"
    (hits,) = await store.search([VectorQuery(text="quick brown lazy dog")])
    assert hits == []


async def test_within_one_apply_the_last_text_wins_and_forgetting_wins_over_both(store: Store) -> None:
    older, newer = Memory(id="x", text="old words", seq=1), Memory(id="x", text="new words", seq=2)
    await store.apply(rows(older, newer, BREAD), ["bread", "never known"], 3)
    assert await store.count() == 1
    (hits,) = await store.search([asked("words")])
    assert [hit.memory for hit in hits] == [newer]


async def test_the_forgotten_is_gone(store: Store) -> None:
    await store.apply(rows(*ALL), [], 4)
    await store.apply([], ["lease"], 5)
    await store.apply([], ["lease"], 5)
    assert await store.count() == 3
    assert "lease" not in await recall(store, "lease expires worker renewing", k=10)
    await store.apply(rows(LEASE), [], 6)
    assert (await recall(store, "lease"))[0] == "lease"


async def test_the_expired_is_left_out_from_its_time_on(store: Store) -> None:
    brief = msgspec.structs.replace(LEASE, expires_at_ms=5_000)
    await store.apply(rows(FOX, brief), [], 4)
    queries = [asked("lease", now_ms=now) for now in (0, 4_999, 5_000, 10**13)]
    assert ["lease" in ids(hits) for hits in await store.search(queries)] == [True, True, False, False]
    assert await store.count() == 2  # dropping it is the log's business
    await store.apply(rows(LEASE), [], 5)
    assert "lease" in await recall(store, "lease", now_ms=10**13)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('labels.kind = "rule"', {"lease", "broker"}),
        ('labels.kind = "rule" and labels.lang = "en"', {"lease"}),
        ('labels.kind = "rul"', set()),
        ('labels.lang != "en"', {"fox", "bread", "broker"}),
        ("has labels.kind and not has labels.lang", {"bread", "broker"}),
        ('author in ("ada", "bob")', {"lease", "broker"}),
        ('author = ""', {"fox", "bread"}),
        ('space = "swarm/main" or seq <= 1', {"lease", "fox"}),
        ("seq > 1 and seq != 3", {"lease", "broker"}),
        ("since >= 300", {"bread", "broker"}),
        ("since < 1970-01-01T00:00:00.300Z", {"fox", "lease"}),
        ("seq >= -9223372036854775807", {"fox", "lease", "bread", "broker"}),
        ("expires = 0 and not expires > 0", {"fox", "lease", "bread", "broker"}),
        ('id in ("fox", "bread", "none")', {"fox", "bread"}),
        ('source = "fable.md" or task = "t-1" or step = "x"', {"fox", "lease"}),
        ('swarm = "main"', {"lease"}),
    ],
)
async def test_filters_let_through_what_they_say(store: Store, text: str, found: set[str]) -> None:
    await store.apply(rows(*ALL), [], 4)
    query = "lease broker bread fox"
    where = parse(text)
    by_both, by_words, by_vector = await store.search(
        [
            asked(query, k=10, where=where),
            VectorQuery(text=query, k=10, where=where),
            VectorQuery(vector=vector(query), k=10, where=where),
        ]
    )
    assert set(ids(by_both)) == set(ids(by_words)) == set(ids(by_vector)) == found


async def test_few_rows_that_a_filter_lets_through_are_found_among_many(store: Store) -> None:
    crowd = [
        Memory(id=f"m{n}", text=f"the same words {n}", seq=n + 1, author="few" if n % 50 == 49 else "many")
        for n in range(200)
    ]
    await store.apply(rows(*crowd), [], 200, fresh=True)
    where = parse('author = "few"')
    queries = [asked("the same words 1", where=where), VectorQuery(text="the same words", where=where)]
    for hits in await store.search(queries):
        assert sorted(ids(hits)) == ["m149", "m199", "m49", "m99"]


HOSTILE = [
    'a"b', "a'b", "back\\slash", '\\"', "line\nbreak\r\t", "%like_", '" or key != "', "'] or true or ['", "{braces}",
    "$meta", "東京", "\u202eright-to-left", "emoji 🦊", "\x00nul", "", " ", "x" * 1024, "mark", "key", "null",
]  # fmt: skip


async def test_hostile_labels_match_themselves_alone(store: Store) -> None:
    memories = [
        Memory(id=f"m-{index}", text="the same text", labels={"k": value, f"n{value}"[:200]: "v"}, seq=index + 1)
        for index, value in enumerate(HOSTILE)
    ]
    await store.apply(rows(*memories), [], len(memories))
    by_value = [asked("the same text", k=50, where=TextIn((value,), "label", "k")) for value in HOSTILE]
    by_name = [asked("the same text", k=50, where=Has(f"n{value}"[:200])) for value in HOSTILE]
    for answers in (await store.search(by_value), await store.search(by_name)):
        assert [[hit.memory for hit in answer] for answer in answers] == [[memory] for memory in memories]


async def test_hostile_ids_and_fields_are_kept_found_and_forgotten(store: Store) -> None:
    memories = [
        Memory(id=value, text=f"text {index} {value}", source=value, author=value, task=value, seq=index)
        for index, value in enumerate(HOSTILE)
        if value
    ]
    await store.apply(rows(*memories), [], 1)
    wheres: list[Filter] = [
        where
        for memory in memories
        for where in (TextIn((memory.id,), "id"), TextIn((memory.source,), "source"), TextIn((memory.id,), "task"))
    ]
    answers = await store.search([asked("text", k=50, where=where) for where in wheres])
    assert [[hit.memory for hit in answer] for answer in answers] == [[memory] for memory in memories for _ in range(3)]
    for memory in memories[:3]:
        await store.apply([], [memory.id], 2)
    await store.apply([], [memory.id for memory in memories[4:]], 3)
    assert await store.count() == 1


SMALL = st.sampled_from(["", "a", "b", 'a"b', "東"])
NUMBERS = st.sampled_from([-(2**63) + 1, -1, 0, 1, 2, 3, 2**62, 2**63 - 1])
MEMORIES = st.builds(
    Memory,
    id=st.just("replaced"),
    text=st.just("the same text"),
    source=SMALL,
    author=SMALL,
    task=SMALL,
    swarm=SMALL,
    step=SMALL,
    space=st.sampled_from(["shared", "swarm/a", "swarm/a/task/b"]),
    labels=st.dictionaries(SMALL, SMALL, max_size=3),
    seq=st.sampled_from([0, 1, 2, 3, 2**62, 2**63 - 1]),
    since_ms=st.sampled_from([0, 1, 2, 3]),
    expires_at_ms=st.sampled_from([0, 1, 2, 2**62]),
)
TERMS: st.SearchStrategy[Filter] = st.one_of(
    st.builds(
        lambda values, field: TextIn(tuple(values), field),
        st.lists(SMALL, max_size=3),
        st.sampled_from(["id", "source", "author", "task", "swarm", "space", "step"]),
    ),
    st.builds(lambda values, label: TextIn(tuple(values), "label", label), st.lists(SMALL, max_size=2), SMALL),
    st.builds(Has, SMALL),
    st.builds(
        NumberIs,
        st.sampled_from(["seq", "since", "expires"]),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
        NUMBERS,
    ),
)
FILTERS = st.recursive(
    TERMS,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(lambda parts: And(tuple(parts)), st.lists(inner, max_size=3)),
        st.builds(lambda parts: Or(tuple(parts)), st.lists(inner, max_size=3)),
    ),
    max_leaves=6,
)


def test_stores_agree_with_matches(reopen: Callable[[], Stores]) -> None:
    """Whatever the memories and the filters: by words, by vector, and in the fake."""

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(MEMORIES, min_size=1, max_size=12), st.lists(FILTERS, min_size=6, max_size=6))
    def check(found: list[Memory], wheres: list[Filter]) -> None:
        memories = [msgspec.structs.replace(memory, id=f"m{index}") for index, memory in enumerate(found)]
        asyncio.run(agree(memories, wheres))

    async def agree(memories: list[Memory], wheres: list[Filter]) -> None:
        stores = reopen()
        store = stores.store("g1", PIN)
        await store.open()
        try:
            held = [row.id async for page in store.held() for row in page]
            await store.apply(rows(*memories), [one for one in held if int(one[1:]) >= len(memories)], 2**63 - 1)
            for now in (0, 2):
                expected = [
                    {m.id for m in memories if matches(where, m) and not 0 < m.expires_at_ms <= now} for where in wheres
                ]
                by_words = [VectorQuery("same text", k=50, where=where, now_ms=now) for where in wheres]
                near = [VectorQuery(vector=vector("same"), k=50, where=where, now_ms=now) for where in wheres]
                for queries in (by_words, near):
                    assert [set(ids(hits)) for hits in await store.search(queries)] == expected
        finally:
            await store.close()
            await stores.close()

    check()


@pytest.mark.parametrize("text", ["?!", "the of and", '") or ("', "\\", "東京", "* AND NOT", "x" * TEXT_BYTES_MAX])
async def test_odd_queries_are_answered(store: Store, text: str) -> None:
    await store.apply(rows(*ALL), [], 4)
    (hits,) = await store.search([VectorQuery(text, vector("lease"), k=2)])
    assert len(hits) == 2


async def test_the_applied_sequence_survives_reopening(reopen: Callable[[], Stores]) -> None:
    for upto, memories, forgotten in [(4, ALL, []), (9, [], ["fox"]), (12, [], []), (11, [BREAD], [])]:
        store = reopen().store("g1", PIN)
        before = await store.open()
        await store.apply(rows(*memories), forgotten, upto)
        await store.close()
        reopened = reopen().store("g1", PIN)
        assert await reopened.open() == max(before, upto)
        assert await reopened.open() == max(before, upto)  # opening again is harmless
        await reopened.close()
    store = reopen().store("g1", PIN)
    await store.open()
    assert await store.count() == 3
    assert "lease" in await recall(store, "lease")
    assert ids((await store.search([VectorQuery(text="fox bread")]))[0]) == ["bread"]
    await store.close()


async def test_fresh_rows_may_be_applied_again_after_a_crash(reopen: Callable[[], Stores]) -> None:
    """The rows arrived, their claim did not: as if the process had been killed in between."""
    store = reopen().store("g1", PIN)
    await store.open()
    await store.apply(rows(*ALL), [], 0, fresh=True)
    await store.close()
    reopened = reopen().store("g1", PIN)
    assert await reopened.open() == 0
    await reopened.apply(rows(*ALL), [], 4, fresh=True)
    assert await reopened.count() == 4
    assert sorted(await recall(reopened, "lease", k=10)) == sorted(memory.id for memory in ALL)
    await reopened.close()


async def test_many_rows_in_one_apply(store: Store) -> None:
    many = [Memory(id=f"m{n}", text=f"entry number {n}", seq=n + 1) for n in range(2_300)]
    near = vector("entry")
    await store.apply([Row(memory, near) for memory in many], [], 2_300, fresh=True)
    assert await store.count() == 2_300
    assert ids((await store.search([VectorQuery(text="2299", k=1)]))[0]) == ["m2299"]
    held = [row for page in [page async for page in store.held()] for row in page]
    assert len(held) == 2_300
    assert {row.id: (row.seq, row.digest) for row in held} == {
        memory.id: (memory.seq, digest_of(memory)) for memory in many
    }
    await store.apply([], [memory.id for memory in many[:2_200]], 2_400)
    assert await store.count() == 100


async def test_what_is_held_tells_what_differs(store: Store) -> None:
    await store.apply(rows(*ALL), [], 4)
    changed = msgspec.structs.replace(LEASE, labels={"kind": "other"})
    await store.apply(rows(changed), [], 4)
    held = {row.id: row.digest for page in [page async for page in store.held()] for row in page}
    assert {memory.id for memory in ALL if held[memory.id] != digest_of(memory)} == {"lease"}
    assert held["lease"] == digest_of(changed)


async def test_a_dropped_store_starts_anew(stores: Stores, store: Store) -> None:
    await store.apply(rows(*ALL), [], 4)
    assert await stores.names() == ["g1"]
    await store.drop()
    assert await stores.names() == []
    with pytest.raises(Fault, match="not open"):
        await store.count()
    assert await store.open() == 0
    assert await store.count() == 0
    assert await recall(store, "lease") == []


async def test_one_store_is_filled_beside_another(stores: Stores, store: Store) -> None:
    await store.apply(rows(*ALL), [], 4)
    other = stores.store("g2", Pin("other", 3))
    assert await other.open() == 0
    vectors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    for n in range(3):
        found, _ = await asyncio.gather(
            recall(store, "lease", k=1),
            other.apply([Row(Memory(f"{n}{m}", "salt", seq=n), vectors[m]) for m in range(2)], [], n, fresh=True),
        )
        assert found == ["lease"]
    assert await stores.names() == ["g1", "g2"]
    assert await other.count() == 6
    (hits,) = await other.search([VectorQuery("salt", vectors[0], k=10, min_similarity=0.5)])
    assert sorted(ids(hits)) == ["00", "10", "20"]
    await store.drop()
    assert await stores.names() == ["g2"]
    assert await other.count() == 6
    await other.drop()
    await other.close()


@pytest.mark.parametrize("pin", [Pin("other-1", PIN.dimension), Pin(PIN.embedder, 32)])
async def test_another_pin_is_refused(stores: Stores, store: Store, pin: Pin) -> None:
    await store.apply(rows(*ALL), [], 4)
    stranger = stores.store("g1", pin)
    with pytest.raises(Rejected, match=rf"{PIN.embedder}.*rebuild") as caught:
        await stranger.open()
    assert caught.value.code == "embedder_mismatch"
    await stranger.close()
    assert await recall(store, "lease", k=1) == ["lease"]  # nothing was harmed


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (VectorQuery(text="x", k=0), "bad_k"),
        (VectorQuery(text="x", k=K_MAX + 1), "bad_k"),
        (VectorQuery(), "text_empty"),
        (VectorQuery(text=" \n"), "text_empty"),
        (VectorQuery(text="x" * (TEXT_BYTES_MAX + 1)), "too_large"),
        (VectorQuery(text="\ud800"), "not_unicode"),
        (VectorQuery(vector=[1.0]), "wrong_dimension"),
        (VectorQuery(vector=[float("nan")] * PIN.dimension), "bad_vector"),
        (VectorQuery(vector=[float("inf")] * PIN.dimension), "bad_vector"),
        (VectorQuery(vector=[0.0] * PIN.dimension), "bad_vector"),
        (VectorQuery(text="x", min_similarity=0.5), "bad_min_similarity"),
        (VectorQuery(vector=[1.0] * PIN.dimension, min_similarity=1.5), "bad_min_similarity"),
        (VectorQuery(vector=[1.0] * PIN.dimension, min_similarity=float("nan")), "bad_min_similarity"),
        (VectorQuery(text="x", diversity=-0.1), "bad_diversity"),
        (VectorQuery(text="x", diversity=float("nan")), "bad_diversity"),
    ],
)
async def test_a_query_that_cannot_be_answered_is_refused(stores: Stores, query: VectorQuery, code: str) -> None:
    with pytest.raises(Rejected) as caught:
        await stores.store("g1", PIN).search([query])
    assert caught.value.code == code


UNIT = [1.0] * PIN.dimension


@pytest.mark.parametrize(
    ("bad", "code", "says"),
    [
        (Row(Memory(id="m", text="x" * (TEXT_BYTES_MAX + 1)), UNIT), "too_large", str(TEXT_BYTES_MAX)),
        (Row(Memory(id="m", text=" \n"), UNIT), "text_empty", "empty"),
        (Row(Memory(id="m", text="\ud800"), UNIT), "not_unicode", "surrogate"),
        (Row(Memory(id="", text="x"), UNIT), "memory_id_missing", "id"),
        (Row(Memory(id="m", text="x", source="s" * 1025), UNIT), "too_large", "source"),
        (Row(Memory(id="m", text="x", labels={"k": "v" * 1025}), UNIT), "too_large", "label value"),
        (Row(Memory(id="m", text="x", labels={str(n): "" for n in range(65)}), UNIT), "too_many_labels", "64"),
        (Row(Memory(id="m", text="x", payload=msgspec.Raw(b'"' + b"x" * 65_536 + b'"')), UNIT), "too_large", "65535"),
        (Row(Memory(id="m", text="x", expires_at_ms=-1), UNIT), "bad_expiry", "1970"),
        (Row(Memory(id="m", text="x"), [1.0, 2.0]), "wrong_dimension", "2 dimensions"),
        (Row(Memory(id="m", text="x"), [float("nan"), *UNIT[1:]]), "bad_vector", "finite"),
        (Row(Memory(id="m", text="x"), [0.0] * PIN.dimension), "bad_vector", "not all 0"),
    ],
)
async def test_a_row_over_the_limits_is_refused_and_all_with_it(store: Store, bad: Row, code: str, says: str) -> None:
    with pytest.raises(Rejected, match=says) as caught:
        await store.apply([row(FOX), bad], [], 5)
    assert caught.value.code == code
    assert await store.count() == 0


async def test_the_largest_memory_is_kept_whole(store: Store) -> None:
    full = [
        Memory(
            id="words",
            text=("w1 " * TEXT_BYTES_MAX)[:TEXT_BYTES_MAX],
            labels={str(n): "v" * 900 for n in range(LABELS_MAX)},
            seq=2**63 - 1,
        ),
        Memory(id="cjk", text="東" * (TEXT_BYTES_MAX // 3)),
        Memory(id="ligatures", text="\ufdfa" * (TEXT_BYTES_MAX // 3)),
    ]
    await store.apply([Row(memory, UNIT) for memory in full], [], 1)
    (hits,) = await store.search([VectorQuery("w1 東", UNIT, k=3)])
    assert {hit.memory.id: hit.memory for hit in hits} == {memory.id: memory for memory in full}


async def test_a_closed_store_says_so(stores: Stores) -> None:
    store = stores.store("g1", PIN)
    for _ in range(2):
        for attempt in (store.count, lambda: store.apply([], [], 1), lambda: store.search([asked("x")])):
            with pytest.raises(Fault, match="not open"):
                await attempt()
        with pytest.raises(Fault, match="not open"):
            async for _page in store.held():
                pass
        await store.close()


async def test_a_lost_store_is_named_and_can_be_filled_again(stores: Stores, store: Store) -> None:
    await store.apply(rows(*ALL), [], 4)
    other = stores.store("g1", PIN)
    await other.drop()
    await other.close()
    for attempt in (lambda: store.apply(rows(FOX), [], 5), store.count, lambda: store.search([asked("lease")])):
        with pytest.raises(Fault) as caught:
            await attempt()
        assert caught.value.code == "memory_lost"
    assert await store.open() == 0
    await store.apply(rows(*ALL), [], 4, fresh=True)
    assert await recall(store, "lease", k=1) == ["lease"]


async def test_concurrent_searches_and_applies(store: Store) -> None:
    await store.apply(rows(*ALL), [], 4)

    async def write(batch: int) -> list[Hit]:
        await store.apply(
            rows(*(Memory(f"{batch}-{n}", f"batch {batch} row {n}", seq=batch) for n in range(10))), [], batch
        )
        return (
            await store.search([VectorQuery(text=f"batch {batch} row 3", k=1, where=TextIn((f"{batch}-3",), "id"))])
        )[0]

    answers = await asyncio.gather(*(write(batch) for batch in range(5, 25)))
    assert [ids(hits) for hits in answers] == [[f"{batch}-3"] for batch in range(5, 25)]
    assert await store.count() == 204


async def test_closing_amid_searches_answers_or_says_so(stores: Stores, store: Store) -> None:
    await store.apply(rows(*ALL), [], 4)
    for _ in range(3):
        searches = [recall(store, memory.text, k=1) for memory in ALL * 2]
        *answers, _ = await asyncio.gather(*searches, store.count(), store.close(), return_exceptions=True)
        for answer in answers:
            assert isinstance(answer, list | int) or (isinstance(answer, Fault) and answer.code.startswith("memory_"))
        await store.open()
    assert await recall(store, "lease", k=1) == ["lease"]
