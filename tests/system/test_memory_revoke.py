"""Revoking what is faulty, telling who read it, and following where a memory comes from and what came of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("numpy", reason="needs numpy (pip install 'swarmd[memory]')")

from swarmd.core.memory_wire import GetReply, MatchesReply, RecallReply, RememberManyReply
from tests.system.memory_nodes import World, a_world, code
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from swarmd.core.memory_wire import LineageReply, RevokeReply
    from swarmd.ports import Stored

MAIN: dict[str, Any] = {"swarm": "main"}
OTHER: dict[str, Any] = {"swarm": "other"}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as made:
        await made.node()
        yield made


async def read(world: World, task: str, *memories: str, who: dict[str, Any] = MAIN) -> None:
    shown = await world.get(*memories, **who, task=task)
    assert [one.id for one in shown.memories] == list(memories)


def readers(reply: RevokeReply) -> dict[str, tuple[list[str], int]]:
    return {f"{one.swarm}/{one.task}": (one.memories, one.count) for one in reply.readers}


async def test_a_revocation_is_by_every_condition_given(world: World) -> None:
    await world.kept("a", MAIN, id="a", author="evil", task="t1")
    await world.kept("b", MAIN, id="b", author="evil", task="t2", space="swarm")
    await world.kept("c", OTHER, id="c", author="evil", task="t1")
    world.clock.ahead_ms = 60_000
    since = world.clock.now_ms()
    await world.kept("d", MAIN, id="d", author="good", task="t1")

    async def meant(**conditions: Any) -> set[str]:
        reply = await world.revoke(dry=True, **conditions)
        assert reply.count == reply.left == len(reply.revoked)
        return set(reply.revoked)

    assert await meant(author="evil") == {"a", "b", "c"}
    assert await meant(author="evil", swarm="main") == {"a", "b"}
    assert await meant(task="t1") == {"a", "c", "d"}
    assert await meant(task="t1", swarm="main", author="evil") == {"a"}
    assert await meant(space="swarm/main") == {"b"}
    assert await meant(since_ms=1) == {"a", "b", "c", "d"}
    assert await meant(since_ms=since + 3_600_000) == set()
    assert await meant(author="nobody") == set()
    assert world.nodes[0].state.live == 4
    wrong = await world.refused("revoke", {"id": "a", "author": "good"}, admin=True)
    assert wrong.code == "bad_revoke"


async def test_who_read_what_was_revoked_is_told_and_told_again(world: World) -> None:
    for name in ("a", "b", "c"):
        await world.kept(f"note {name}", MAIN, id=name, author="evil")
    await world.kept("sound", MAIN, id="d", author="good")
    await read(world, "t1", "a", "b", "d")
    await read(world, "t2", "c")
    await read(world, "t3", "d")
    await world.tell("forget", {"id": "c", "agent": "evil"}, **MAIN)
    first = await world.revoke(author="evil", reason="poison")
    assert (first.count, sorted(first.revoked), first.left) == (2, ["a", "b"], 0)
    assert readers(first) == {"main/t1": (["a", "b"], 2), "main/t2": (["c"], 1)}  # though c is gone already
    seq = world.nodes[0].state.seq
    again = await world.revoke(author="evil", reason="poison")
    assert (again.count, again.revoked, readers(again)) == (2, first.revoked, readers(first))
    assert world.nodes[0].state.seq == seq
    one = await world.revoke(id="a")
    assert (one.count, readers(one)) == (1, {"main/t1": (["a"], 1)})
    assert await world.recall("note", MAIN) == ["d"]


async def test_readers_come_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.roles.memory_ends.READERS_MAX", 4)
    await world.kept("note", MAIN, id="a", author="evil")
    for n in range(10):
        await read(world, f"t{n}", "a")
    found: list[str] = []
    after = ""
    while True:
        page = await world.revoke(author="evil", after=after)
        found += list(readers(page))
        after = page.next
        if not after:
            break
    assert found == [f"main/t{n}" for n in range(10)]


async def test_many_are_revoked_in_slices_while_others_are_served(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 5_000
    for start in range(0, count, 1_000):
        memories = [{"text": f"t {n}", "id": f"m{n}", "author": "evil"} for n in range(start, start + 1_000)]
        await world.ask("remember_many", {"memories": memories}, RememberManyReply)
    monkeypatch.setattr("swarmd.roles.memory_ends.REVOKE_MS", 20)
    loop = asyncio.get_running_loop()
    longest, rounds = 0.0, 0
    done = asyncio.Event()

    async def ask_meanwhile() -> None:
        nonlocal longest
        while not done.is_set():
            asked_at = loop.time()
            assert code(await world.remember("meanwhile", id=f"x{asked_at}")) == ""
            longest = max(longest, loop.time() - asked_at)

    async with asyncio.TaskGroup() as group:
        group.create_task(ask_meanwhile())
        while True:
            reply = await world.revoke(author="evil")
            rounds += 1
            assert reply.count + reply.left == count
            if not reply.left:
                break
        done.set()
    assert rounds > 1
    assert longest < 2
    assert len(reply.revoked) == 100
    state = world.nodes[0].state
    assert sum(known.revoked for known in state.known.values()) == count


async def test_what_an_author_changed_is_revoked_with_what_it_wrote(world: World) -> None:
    await world.kept("as it was", MAIN, id="a", author="good", task="t1", space="swarm")
    await world.tell("update", {"id": "a", "text": "poisoned", "agent": "evil", "task": "t2"}, **MAIN)
    assert (await world.revoke(author="evil", dry=True)).revoked == ["a"]
    assert (await world.revoke(task="t2", dry=True)).revoked == ["a"]
    assert (await world.revoke(author="evil", task="t1", dry=True)).revoked == []


async def chain(world: World) -> None:
    """t0 writes a; t1 reads a and writes b; t2 reads b and writes c; t1 had written z before."""
    await world.kept("z", MAIN, id="z", task="t1")
    await world.kept("a", MAIN, id="a", task="t0")
    await read(world, "t1", "a")
    await world.kept("b", MAIN, id="b", task="t1")
    await read(world, "t2", "b")
    await world.kept("c", MAIN, id="c", task="t2")
    await read(world, "t3", "c")


def shape(reply: LineageReply) -> tuple[dict[str, int], dict[str, int]]:
    return {one.id: one.hops for one in reply.memories}, {one.task: one.hops for one in reply.tasks}


async def test_lineage_follows_readers_and_writers(world: World) -> None:
    await chain(world)
    assert shape(await world.lineage("b")) == ({"b": 0, "a": -1, "c": 1}, {"t1": -1, "t2": 1})
    assert shape(await world.lineage("a", depth=3)) == ({"a": 0, "b": 1, "c": 2}, {"t0": -1, "t1": 1, "t2": 2, "t3": 3})
    assert shape(await world.lineage("c", depth=5)) == (
        {"c": 0, "b": -1, "a": -2},
        {"t2": -1, "t3": 1, "t1": -2, "t0": -3},
    )
    (first, *_) = (await world.lineage("a")).memories
    assert [(one.swarm, one.task) for one in first.readers] == [("main", "t1")]
    assert (first.task, len(first.versions), first.gone_seq) == ("t0", 1, 0)
    await world.revoke(id="a")
    (first, *_) = (await world.lineage("a")).memories
    assert (first.revoked, first.gone_seq > 0) == (True, True)


async def test_lineage_of_a_task_is_what_it_read_and_wrote(world: World) -> None:
    await chain(world)
    reply = await world.lineage("t1", swarm="main")
    assert shape(reply) == ({"a": -1, "z": 1, "b": 1}, {"t1": 0})
    assert (reply.tasks[0].wrote, reply.tasks[0].read, reply.cut) == (["z", "b"], ["a"], False)
    further = await world.lineage("t1", swarm="main", depth=2)
    assert shape(further) == ({"a": -1, "z": 1, "b": 1, "c": 2}, {"t1": 0, "t0": -2, "t2": 2})


async def test_lineage_that_is_too_large_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.core.memory_lineage.NODES_MAX", 5)
    await world.kept("a", MAIN, id="a", task="t0")
    for n in range(10):
        await read(world, f"r{n}", "a")
    reply = await world.lineage("a")
    assert (reply.cut, len(reply.memories) + len(reply.tasks)) == (True, 5)


async def test_a_task_that_reads_what_it_wrote_is_followed_once(world: World) -> None:
    await world.kept("a", MAIN, id="a", task="t1")
    await read(world, "t1", "a")
    await world.kept("b", MAIN, id="b", task="t1")
    await read(world, "t1", "b")
    assert shape(await world.lineage("a", depth=9)) == ({"a": 0, "b": 1}, {"t1": -1})


@pytest.mark.parametrize("verb", ["get", "recall", "matches"])
async def test_what_is_revoked_while_it_is_logged_who_reads_it_is_not_shown(
    world: World, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    await world.tell("watch", {"watcher": "w", "text": "note", "spaces": ["shared"]}, **MAIN)
    await world.kept("note a", MAIN, id="a", author="evil")
    await world.recall("note")
    waiting: dict[str, Any] = {"watcher": "w", "wait_ms": 20_000}
    assert (await world.ask("matches", waiting, MatchesReply, **MAIN)).matches
    append, opened, held_back = world.log.append, asyncio.Event(), asyncio.Event()

    async def slow(*given: Any) -> Stored:
        held_back.set()
        await opened.wait()
        return await append(*given)

    monkeypatch.setattr(world.log, "append", slow)
    requests: dict[str, dict[str, Any]] = {
        "get": {"ids": ["a"]},
        "recall": {"text": "note"},
        "matches": {"watcher": "w"},
    }
    answer: Any = {"get": GetReply, "recall": RecallReply, "matches": MatchesReply}[verb]
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        revoking = group.create_task(world.revoke(author="evil"))
        await held_back.wait()
        log = world.nodes[0].node._log
        reading = group.create_task(world.ask(verb, {**requests[verb], "task": "t1"}, answer, **MAIN))
        await until(lambda: log.backlog > 1)  # the revocation, and who reads what it is about
        opened.set()
    assert (await revoking).count == 1
    reply = await reading
    assert code(reply) == ""
    shown = reply.matches if verb == "matches" else reply.memories if verb == "get" else reply.passages
    assert shown == []
    assert readers(await world.revoke(author="evil")) == {"main/t1": (["a"], 1)}


async def test_nothing_is_shown_whose_reader_the_log_does_not_accept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.kept("note a", MAIN, id="a")
    monkeypatch.setattr("swarmd.core.memory_fold.admit", lambda *given: "beyond_horizon")
    wrong = await world.refused("get", {"ids": ["a"], "task": "t1"}, **MAIN)
    assert wrong.code == "not_accepted"
