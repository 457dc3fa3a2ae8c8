"""What a memory node does for those who write and read, over a log, a bus and a store in this process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

pytest.importorskip("numpy", reason="needs numpy (pip install 'swarmd[memory]')")

from swarmd.core import memory_door
from swarmd.core.errors import Fault
from swarmd.core.events import Failure
from swarmd.core.memory import RememberedV2
from swarmd.core.memory_wire import ExportReply, ExportRequest, GetReply, RecallReply, RememberManyReply, RememberReply
from tests.system.memory_nodes import World, a_world, code
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MAIN: dict[str, Any] = {"swarm": "main"}
OTHER: dict[str, Any] = {"swarm": "other"}
ADMIN: dict[str, Any] = {"admin": True}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as made:
        await made.node()
        yield made


async def test_what_is_remembered_is_recalled(world: World) -> None:
    one = await world.remember("A lease expires when nobody renews it", id="lease", labels={"kind": "rule"})
    assert one.id == "lease"
    two = await world.remember("Bread is baked from flour", source="bread.md", author="ada", task="t1")
    asked = {"text": "expiring leases", "at_least_seq": two.seq}
    reply = await world.ask("recall", asked, RecallReply)
    assert reply.passages[0].id == "lease"
    assert reply.seq >= two.seq
    assert await world.recall("bread", labels={"kind": "rule"}) == ["lease"]
    assert await world.recall("bread", filter='author = "ada"') == [two.id]
    assert await world.recall("flour", mode="lexical") == [two.id]
    (bread,) = (await world.get(two.id)).memories
    assert (bread.source, bread.author, bread.task, bread.seq) == ("bread.md", "ada", "t1", two.seq)
    assert (bread.space, bread.swarm) == ("shared", "")


async def test_the_same_again_is_answered_like_the_first_time(world: World) -> None:
    first = await world.remember("one text", id="x")
    assert await world.remember("one text", id="x") == first
    assert code(await world.remember("another text", id="x")) == "id_taken"
    assert code(await world.remember("one text", MAIN, id="x", space="swarm")) == "id_taken"
    at_once = await asyncio.gather(*(world.remember("the same text", id="y") for _ in range(20)))
    assert len({(reply.id, reply.seq) for reply in at_once}) == 1
    mixed = await asyncio.gather(*(world.remember(f"text {n % 2}", id="z") for n in range(20)))
    assert {code(reply) for reply in mixed} == {"", "id_taken"}
    await world.nodes[0].stop()
    await world.node()
    assert await world.remember("one text", id="x") == first
    assert (await world.stats()).memories == 3


async def test_many_are_each_accepted_or_refused(world: World) -> None:
    memories = [{"text": f"text {n}", "id": f"m{n}"} for n in range(300)]
    memories[7]["text"], memories[9]["id"] = " ", "m8"
    many = await world.ask("remember_many", {"memories": memories}, RememberManyReply)
    assert [reply.id for reply in many.replies[:3]] == ["m0", "m1", "m2"]
    assert {place: code(reply) for place, reply in enumerate(many.replies) if code(reply)} == {
        7: "text_empty",
        9: "id_taken",
    }
    assert (await world.stats()).memories == 298
    again = await world.ask("remember_many", {"memories": memories}, RememberManyReply)
    assert [(reply.seq, code(reply)) for reply in again.replies] == [(one.seq, code(one)) for one in many.replies]
    assert (await world.ask("remember_many", {"memories": []}, RememberManyReply)).replies == []
    too_many = {"memories": [{"text": "x"}] * 1_001}
    assert (await world.refused("remember_many", too_many)).code == "too_many"


async def test_each_of_many_is_for_the_agent_and_task_that_it_names(world: World) -> None:
    wanted = [{"text": "a", "id": "a", "space": "agent", "agent": "desk"}, {"text": "b", "id": "b", "space": "task"}]
    wanted += [{"text": "c", "id": "c", "space": "task", "task": "t1"}, {"text": "d", "agent": "not a name"}]
    many = await world.ask("remember_many", {"memories": wanted}, RememberManyReply, swarm="main")
    assert [code(reply) for reply in many.replies] == ["", "unknown_space", "", "bad_name"]
    spaces = (await world.stats(admin=True)).spaces
    assert spaces == {"swarm/main/agent/desk": 1, "swarm/main/task/t1": 1}


async def test_an_update_is_a_whole_new_version_made_of_the_present_one(world: World) -> None:
    seq = await world.kept("old", MAIN, id="a", author="desk", labels={"k": "v"}, payload={"n": 1}, source="s")
    asked: dict[str, Any] = {"id": "a", "text": "new words", "agent": "desk"}
    updated = await world.tell("update", asked, **MAIN)
    assert updated.seq > seq
    (held,) = (await world.get("a")).memories
    assert (held.text, held.labels, held.source, held.seq) == ("new words", {"k": "v"}, "s", updated.seq)
    assert bytes(held.payload) == b'{"n":1}'  # type: ignore[arg-type]
    assert held.author == "desk"
    assert await world.tell("update", asked, **MAIN) == updated  # once more, after a crash
    assert await world.recall("new words") == ["a"]
    stale = await world.refused("update", {**asked, "text": "newer", "if_seq": seq}, **MAIN)
    assert (stale.code, str(updated.seq) in stale.message) == ("stale_update", True)
    last = await world.tell("update", {**asked, "labels": {}, "if_seq": updated.seq}, **MAIN)
    (held,) = (await world.get("a")).memories
    assert (held.labels, held.seq, held.text) == ({}, last.seq, "new words")
    assert (await world.refused("update", {"id": "nothing", "agent": "desk"}, **MAIN)).code == "unknown_memory"
    await world.tell("forget", {"id": "a"}, **ADMIN)
    assert (await world.refused("update", asked, **MAIN)).code == "forgotten"


async def test_an_update_whose_answer_got_lost_is_answered_like_the_first_time_though_others_came_after_it(
    world: World,
) -> None:
    seq = await world.kept("old", MAIN, id="a", author="desk", space="swarm")
    step: dict[str, Any] = {"id": "a", "text": "by a step", "agent": "desk", "task": "t1", "step": "update_memory#1"}
    first = await world.tell("update", {**step, "expires_at_ms": world.clock.now_ms() + 60_000}, **MAIN)
    named = {"id": "a", "labels": {"k": "v"}, "agent": "desk", "if_seq": first.seq}
    second = await world.tell("update", named, **MAIN)
    third = await world.tell("update", {"id": "a", "text": "by somebody else", "agent": "lab"}, **MAIN)
    assert seq < first.seq < second.seq < third.seq
    # Begun anew after a crash, a step may count its time from another moment.
    assert await world.tell("update", {**step, "expires_at_ms": world.clock.now_ms() + 61_000}, **MAIN) == first
    assert await world.tell("update", {**step, "if_seq": seq}, **MAIN) == first
    assert await world.tell("update", named, **MAIN) == second
    assert (await world.refused("update", {**named, "labels": {"k": "w"}}, **MAIN)).code == "stale_update"
    (held,) = (await world.get("a", **MAIN)).memories
    assert (held.text, held.labels, held.seq) == ("by somebody else", {"k": "v"}, third.seq)
    later = await world.tell("update", {**step, "step": "update_memory#2"}, **MAIN)
    assert later.seq > third.seq


async def test_of_updates_at_once_that_name_a_version_one_wins(world: World) -> None:
    seq = await world.kept("old", MAIN, id="a", author="desk")
    asked = [{"id": "a", "text": f"new {n}", "agent": "desk", "if_seq": seq} for n in range(10)]
    replies = await asyncio.gather(*(world.tell("update", body, **MAIN) for body in asked))
    assert sorted(code(reply) for reply in replies) == [""] + ["stale_update"] * 9
    for body in asked:
        body["if_seq"] = 0
    replies = await asyncio.gather(*(world.tell("update", body, **MAIN) for body in asked))
    assert {code(reply) for reply in replies} == {""}
    assert len(world.nodes[0].state.known["a"].updates or ()) >= 10


async def test_what_is_dropped_is_not_recalled(world: World) -> None:
    for name in ("a", "b", "c"):
        await world.kept(f"a fact about {name}", id=name)
    gone = await world.tell("forget", {"id": "a"}, **ADMIN)
    assert gone.seq > 0
    assert await world.tell("forget", {"id": "a"}, **ADMIN) == gone
    assert (await world.revoke(id="b", reason="poison")).count == 1
    assert await world.recall("a fact") == ["c"]
    assert code(await world.remember("a fact about a", id="a")) == "forgotten"
    assert (await world.refused("forget", {"id": "q"}, **ADMIN)).code == "unknown_memory"
    stats = await world.stats()
    assert (stats.memories, stats.dropped, stats.trouble) == (1, 2, "")


async def test_what_was_dropped_is_not_shown_though_the_store_has_it(world: World) -> None:
    await world.kept("a poisoned fact", id="a")
    await world.recall("fact")
    stuck = asyncio.Event()

    async def before(verb: str, name: str) -> None:
        if verb == "apply":
            await stuck.wait()

    world.stores.before = before
    await world.revoke(id="a")
    assert await world.recall("fact", at_least_seq=0) == []
    assert (await world.get("a")).memories == []
    stuck.set()


async def test_spaces_are_seen_by_those_whom_they_belong_to(world: World) -> None:
    desk = {"author": "desk", "agent": "desk", "task": "t1"}
    for space in ("shared", "swarm", "agent", "task"):
        await world.kept(f"a note in {space}", MAIN, id=space, space=space, **desk)

    async def seen(who: dict[str, Any], **by: str) -> set[str]:
        return set(await world.recall("a note", who, **by))

    assert await seen({}) == {"shared"}
    assert await seen(OTHER) == {"shared"}
    assert await seen(MAIN) == {"shared", "swarm"}
    assert await seen(MAIN, agent="desk", task="t1") == {"shared", "swarm", "agent", "task"}
    assert await seen(MAIN, agent="lamp", task="t1~3") == {"shared", "swarm", "task"}  # its child
    assert await seen(MAIN, agent="desk", task="t2") == {"shared", "swarm", "agent"}
    assert await seen(ADMIN) == {"shared", "swarm", "agent", "task"}
    every = ("shared", "swarm", "agent", "task")
    assert [one.id for one in (await world.get(*every, **OTHER)).memories] == ["shared"]
    assert [one.id for one in (await world.get(*every, **MAIN, agent="desk")).memories] == ["shared", "swarm", "agent"]
    assert (await world.refused("recall", {"text": "x", "spaces": ["swarm/main"]}, **OTHER)).code == "not_allowed"
    assert (await world.refused("recall", {"text": "x", "spaces": ["swarm/main"]})).code == "not_allowed"
    assert (await world.refused("remember", {"text": "x", "space": "swarm/main"}, **OTHER)).code == "not_allowed"
    assert (await world.refused("remember", {"text": "x", "space": "swarm"})).code == "unknown_space"
    assert (await world.refused("remember", {"text": "x", "space": "nowhere"}, **MAIN)).code == "unknown_space"
    assert (await world.stats()).spaces == {"shared": 1}
    assert (await world.stats(**MAIN)).spaces == {"shared": 1, "swarm/main": 1}
    assert len((await world.stats(**ADMIN)).spaces) == 4


async def test_a_memory_is_dropped_and_changed_by_its_author(world: World) -> None:
    for name in ("a", "b", "c"):
        await world.kept(f"note {name}", MAIN, id=name, author="desk", task="t1")
    await world.kept("of the swarm", MAIN, id="s", author="desk", space="swarm")
    for who, by in (({}, {}), (OTHER, {"agent": "desk"}), (OTHER, {"task": "t1"}), (MAIN, {"agent": "lamp"})):
        assert (await world.refused("forget", {"id": "a", **by}, **who)).code == "not_allowed"
        assert (await world.refused("update", {"id": "a", "text": "mine", **by}, **who)).code == "not_allowed"
    hidden = await world.refused("forget", {"id": "s", "agent": "desk"}, **OTHER)
    assert hidden.code == "unknown_memory"  # not even that it is there
    assert code(await world.tell("forget", {"id": "a", "agent": "desk"}, **MAIN)) == ""
    assert code(await world.tell("forget", {"id": "b", "task": "t1"}, **MAIN)) == ""
    assert code(await world.tell("forget", {"id": "c"}, **ADMIN)) == ""
    assert code(await world.tell("update", {"id": "s", "text": "by all of it", "agent": "lamp"}, **MAIN)) == ""


async def test_only_admins_say_of_which_swarm_a_memory_is(world: World) -> None:
    assert (await world.refused("remember", {"text": "x", "swarm": "main"})).code == "not_allowed"
    assert (await world.refused("remember", {"text": "x", "swarm": "main"}, **OTHER)).code == "not_allowed"
    await world.kept("brought back", ADMIN, id="a", swarm="main", author="desk", space="swarm/main")
    assert [one.swarm for one in (await world.get("a", **MAIN)).memories] == ["main"]


async def test_an_answer_has_no_more_than_the_broker_takes(world: World) -> None:
    text = "bread " * 5_000
    for n in range(60):
        await world.kept(f"{text} {n}", id=f"m{n}")
    ids = [f"m{n}" for n in range(60)]
    first = await world.get(*ids)
    assert 20 < len(first.memories) < 40
    assert [one.id for one in first.memories] + first.rest == ids
    second = await world.get(*first.rest)
    assert [one.id for one in second.memories] + second.rest == first.rest
    asked = {"text": "bread", "k": 60, "at_least_seq": world.nodes[0].state.seq}
    recalled = await world.ask("recall", asked, RecallReply)
    assert recalled.cut == 60 - len(recalled.passages) > 0
    pages, after = [], 0
    while True:
        page = await world.ask("export", {"after": after}, ExportReply, **ADMIN)
        pages += [one.id for one in page.memories]
        if not page.next:
            break
        after = page.next
    assert pages == ids


async def test_a_memory_whose_log_is_almost_full_can_still_be_read_and_revoked(world: World) -> None:
    seq = await world.kept("bread", MAIN, id="a", author="desk")
    await world.kept("salt", MAIN, id="b", author="desk")
    await world.tell("watch", {"watcher": "w", "text": "bread"})
    world.log_bytes_max = int(world.log.size / 0.95)
    probe = world.nodes[0].probe
    await until(lambda: probe.heard("the log of memory shared holds"))
    for verb, body in (
        ("remember", {"text": "more"}),
        ("update", {"id": "a", "text": "more", "agent": "desk"}),
        ("watch", {"watcher": "v", "text": "more"}),
    ):
        wrong = await world.refused(verb, body, **MAIN)
        assert (wrong.code, "raise [memory] log_bytes_max" in wrong.message) == ("log_full", True), verb
    assert (await world.remember("bread", MAIN, id="a")).seq == seq  # a repeat needs no room
    assert [one.id for one in (await world.get("a", task="t1", **MAIN)).memories] == ["a"]
    assert await world.recall("salt", MAIN, task="t2", k=1) == ["b"]
    assert code(await world.tell("unwatch", {"watcher": "w"})) == ""
    assert [one.task for one in (await world.revoke(id="a")).readers] == ["t1"]
    assert code(await world.tell("forget", {"id": "b", "agent": "desk"}, **MAIN)) == ""
    world.log_bytes_max *= 10
    await until(lambda: not world.nodes[0].node._log._refusing)
    assert code(await world.remember("more", MAIN)) == ""


async def test_an_export_is_all_that_is_there_and_enough_to_remember_it_again(world: World) -> None:
    vector = [1.0] + [0.0] * 63
    made = {"author": "desk", "task": "t1", "step": "s1", "space": "swarm"}
    await world.kept("one", MAIN, id="a", labels={"k": "v"}, payload=[1], **made)
    await world.kept("two", id="b", vector=vector)
    await world.kept("three", id="c")
    await world.kept("four", id="d")
    await world.tell("forget", {"id": "c"}, **ADMIN)
    await world.tell("update", {"id": "a", "text": "one more"}, **ADMIN)
    page = await world.ask("export", {"max": 2}, ExportReply, **ADMIN)
    rest = await world.ask("export", {"max": 2, "after": page.next}, ExportReply, **ADMIN)
    found = {one.id: one for one in [*page.memories, *rest.memories]}
    assert list(found) == ["b", "d", "a"]
    one = found["a"]
    assert (one.text, one.author, one.task, one.step, one.swarm) == ("one more", "desk", "t1", "s1", "main")
    assert (one.space, one.labels, bytes(one.payload)) == ("swarm/main", {"k": "v"}, b"[1]")  # type: ignore[arg-type]
    assert found["b"].vector == vector
    assert (await world.refused("export", {"max": 0}, **ADMIN)).code == "bad_page"
    assert (await world.refused("export", {"after": -1}, **ADMIN)).code == "bad_sequence"


async def test_a_commit_that_no_answer_has_room_for_is_exported_in_parts(world: World) -> None:
    vector = memory_door.vector_bytes(memory_door.unit_vector([1 / (n + 3) for n in range(512)], 512))
    facts = [(f"m{n}", RememberedV2(text=f"text {n}", vector=vector, embedder="mine")) for n in range(160)]
    log = world.nodes[0].node._log
    await log.commit(*facts)
    assert len({log.state.known[memory].place[0] for memory, _ in facts}) == 1
    found: list[str] = []
    asked = ExportRequest()
    while True:
        page = await world.ask("export", asked, ExportReply, **ADMIN)
        assert len(msgspec.json.encode(page)) < 1_000_000
        found += [one.id for one in page.memories]
        if not page.next:
            break
        asked.after, asked.index = page.next, page.index
    assert found == [memory for memory, _ in facts]


async def test_without_its_store_a_memory_remembers_and_shows_by_id(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.roles.memory_projection.RECALL_WAIT_MS", 300)
    await world.kept("before", id="a")
    await world.recall("before")

    async def broken(verb: str, name: str) -> None:
        raise Fault("memory_unavailable", "the store is down")

    world.stores.before = broken
    later = await world.kept("while it is down", id="b")
    assert [one.text for one in (await world.get("b", "a")).memories] == ["while it is down", "before"]
    refused = await world.refused("recall", {"text": "down", "at_least_seq": later})
    assert (refused.code, "down" in refused.message) == ("memory_behind", True)
    assert "down" in (await world.stats()).trouble
    world.stores.before = None
    monkeypatch.setattr("swarmd.roles.memory_projection.RECALL_WAIT_MS", 20_000)
    assert set(await world.recall("down")) == {"a", "b"}


async def test_a_vector_of_ones_own_is_kept_and_compared(world: World) -> None:
    east, north = [3.0] + [0.0] * 63, [0.0, 0.5] + [0.0] * 62
    await world.node(is_leading=False)
    await world.recall("nothing")  # by now the memory knows its embedder
    await world.kept("east", id="east", vector=east)
    await world.kept("north", id="north", vector=north)
    await world.kept("elsewhere", id="elsewhere", vector=[1.0, 2.0], embedder="some-other-model")
    asked = {"vector": north, "mode": "dense", "k": 2, "at_least_seq": world.nodes[0].state.seq}
    reply = await world.ask("recall", asked, RecallReply)
    assert reply.passages[0].id == "north"
    assert reply.passages[0].similarity == pytest.approx(1.0)
    assert [one.id for one in (await world.ask("recall", {**asked, "min_similarity": 0.9}, RecallReply)).passages] == [
        "north"
    ]
    wrong = await world.refused("recall", {**asked, "embedder": "some-other-model"})
    assert wrong.code == "embedder_mismatch"


async def test_who_was_shown_what_is_in_the_log(world: World) -> None:
    await world.kept("bread is baked", MAIN, id="a")
    task: dict[str, Any] = {"agent": "desk", "task": "t9", "step": "recall:1"}
    assert await world.recall("bread", MAIN, **task) == ["a"]
    state = world.nodes[0].state
    assert list(state.known["a"].readers or ()) == ["main/t9"]
    seq = state.seq
    assert await world.recall("bread", MAIN, **task) == ["a"]
    await world.get("a", **MAIN, **task)
    assert state.seq == seq  # that it read this is known
    await world.recall("bread", **task)  # a client's word is not taken for a task's
    await world.recall("bread", MAIN, agent="desk")
    await world.recall("bread", MAIN, **{**task, "task": "t10"}, how="reuse")
    assert list(state.known["a"].readers or ()) == ["main/t9", "main/t10"]
    reply = await world.ask("get", {"ids": ["a"], "task": "t11"}, GetReply, **MAIN)
    assert [one.id for one in reply.memories] == ["a"]
    assert "main/t11" in (state.known["a"].readers or ())


async def test_a_member_is_named_as_one(world: World) -> None:
    assert (await world.refused("recall", {"text": "x", "agent": "no such/name"}, **MAIN)).code == "bad_name"
    assert (await world.refused("recall", {"text": "x", "task": "no such/id"}, **MAIN)).code == "bad_id"
    assert (await world.refused("recall", {"text": "x"}, swarm="$bad")).code == "bad_name"


async def test_expired_memories_are_not_shown_and_soon_dropped(world: World) -> None:
    now = world.clock.now_ms()
    await world.kept("brief", id="a", expires_at_ms=now + 60_000)
    await world.kept("longer", MAIN, id="b", author="desk", expires_at_ms=now + 60_000)
    await world.kept("for ever", id="c")
    await world.tell("update", {"id": "b", "expires_at_ms": now + 9_000_000, "agent": "desk"}, **MAIN)
    assert set(await world.recall("brief")) == {"a", "b", "c"}
    world.clock.ahead_ms = 61_000
    assert set(await world.recall("brief", at_least_seq=0)) == {"b", "c"}
    assert [one.id for one in (await world.get("a", "b", "c")).memories] == ["b", "c"]
    state = world.nodes[0].state
    async with asyncio.timeout(10):
        while not state.known["a"].gone_seq:
            await asyncio.sleep(0.02)
    assert (state.live, state.known["a"].revoked) == (2, False)
    assert code(await world.remember("brief", id="a", expires_at_ms=now + 60_000)) == "forgotten"


async def test_what_ended_before_it_expired_holds_no_expiry_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.roles.memory_ends.SLICE", 1)
    now = world.clock.now_ms()
    for n in range(40):
        await world.kept("brief", id=f"m{n}", author="desk", expires_at_ms=now + 60_000 + n)
        if n < 39:
            await world.tell("forget", {"id": f"m{n}"}, **ADMIN)
    world.clock.ahead_ms = 61_000
    state = world.nodes[0].state
    await until(lambda: state.known["m39"].gone_seq > 0)


async def test_an_expiry_that_the_log_does_not_accept_is_written_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.kept("brief", id="a", expires_at_ms=world.clock.now_ms() + 60_000)
    state = world.nodes[0].state
    with monkeypatch.context() as patch:
        patch.setattr("swarmd.core.memory_fold.admit", lambda *given: "beyond_horizon")
        world.clock.ahead_ms = 61_000
        await until(lambda: state.counters.ignored.get("beyond_horizon", 0) > 0)
    assert not state.known["a"].gone_seq
    await until(lambda: state.known["a"].gone_seq > 0)


async def test_a_repeat_after_its_expiry_is_answered_and_a_late_wish_refused(world: World) -> None:
    now = world.clock.now_ms()
    seq = await world.kept("brief", id="a", expires_at_ms=now + 60_000)
    assert (await world.remember("brief", id="a", expires_at_ms=now - 5)).seq == seq
    late = await world.refused("remember", {"text": "late", "expires_at_ms": now - 5})
    assert (late.code, "past" in late.message) == ("bad_expiry", True)


async def test_too_many_are_told_to_come_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.roles.memory_desk.HELD_BYTES_MAX", 300)
    replies = await asyncio.gather(*(world.remember("x" * 50 + str(n), id=f"m{n}") for n in range(20)))
    assert {code(reply) for reply in replies} == {"", "busy"}
    assert isinstance(replies[-1].error, Failure)
    monkeypatch.setattr("swarmd.roles.memory_desk.HELD_BYTES_MAX", 1_000_000)
    again = await asyncio.gather(*(world.remember("x" * 50 + str(n), id=f"m{n}") for n in range(20)))
    assert {code(reply) for reply in again} == {""}
    monkeypatch.setattr("swarmd.roles.memory_desk.ASKED_MAX", 2)
    answers = await asyncio.gather(*(world.ask("get", {"ids": ["m1"]}, RememberReply) for _ in range(9)))
    assert "busy" in {code(answer) for answer in answers}
    monkeypatch.setattr("swarmd.roles.memory_desk.POLLS_MAX", 1)
    await world.tell("watch", {"watcher": "w", "text": "x"})
    polls = [world.ask("matches", {"watcher": "w", "wait_ms": 300}, RememberReply) for _ in range(2)]
    assert sorted(code(answer) for answer in await asyncio.gather(*polls)) == ["", "busy"]
