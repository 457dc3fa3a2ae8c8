"""Two memory nodes that both believe to serve: the log arbitrates, and whoever was told anything was told the truth."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("numpy", reason="needs numpy (pip install 'swarmd[memory]')")

from swarmd.adapters.memory_fakes import FakeVectorStores
from swarmd.core import memory_fold
from swarmd.core.codec import Codec
from swarmd.core.errors import Fault, SwarmdError
from swarmd.core.events import Failure
from swarmd.core.memory import MEMORY_FACTS
from swarmd.core.memory_fold import MemoryState
from swarmd.core.memory_spaces import ADMIN
from swarmd.core.memory_wire import ForgetRequest, RememberReply, RememberRequest, UpdateRequest
from tests.system.memory_nodes import MEMORY, Running, World, a_world, code
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as made:
        await made.node()
        yield made


async def deluded(world: World) -> tuple[Running, Running]:
    """The first node goes on after it lost the lease, the second one has it, and a store of its own."""
    first = world.nodes[0]
    first.lease.deluded = True
    world.board.clear()
    return first, await world.node(stores=FakeVectorStores())


def remember(running: Running, memory: str, text: str) -> asyncio.Future[RememberReply]:
    """Ask one of them alone."""
    told: asyncio.Future[RememberReply] = asyncio.get_running_loop().create_future()
    wanted = RememberRequest(text, memory, author="desk")
    running.node._writes.remember(ADMIN, wanted, told.set_result)
    return told


async def fold(world: World) -> MemoryState:
    """The log, folded from its beginning by somebody else."""
    state, codec = MemoryState(MEMORY), Codec(MEMORY_FACTS, {})
    async for records in world.log.scan(0, await world.log.last_seq()):
        for record in records:
            memory_fold.apply(state, codec.decode(record))
    return state


async def agreed(world: World, *nodes: Running) -> MemoryState:
    """What all of them have folded, the same."""
    last = await world.log.last_seq()
    await until(lambda: all(running.state.seq == last for running in nodes))
    state = await fold(world)
    for running in nodes:
        assert running.state == state
    return state


async def test_one_text_holds_under_an_id_and_its_author_alone_is_told_so(world: World) -> None:
    one, two = await deluded(world)
    nodes = ((one, "ay"), (two, "bee"))
    told = [(f"m{n}", text, remember(node, f"m{n}", text)) for n in range(50) for node, text in nodes]
    for memory, text, future in told:
        reply = await future
        held = (await world.get(memory)).memories[0].text
        assert code(reply) == ("" if held == text else "id_taken"), memory
    state = await agreed(world, one, two)
    assert state.live == 50
    assert state.counters.ignored == {"id_taken": 50}


async def test_the_same_text_from_both_is_remembered_once(world: World) -> None:
    one, two = await deluded(world)
    replies = await asyncio.gather(*(remember(node, "m", "the same") for node in (one, two, one, two)))
    assert len({(reply.id, reply.seq) for reply in replies}) == 1
    state = await agreed(world, one, two)
    assert (state.live, state.counters.ignored) == (1, {"repeated_id": 1})


async def test_of_two_updates_one_wins_and_the_other_is_told_or_made_anew(world: World) -> None:
    one, two = await deluded(world)
    seq = (await remember(one, "m", "old")).seq
    await agreed(world, one, two)

    async def update(node: Running, text: str, if_seq: int) -> RememberReply:
        return await update_at(node, UpdateRequest("m", text, if_seq=if_seq))

    replies = await asyncio.gather(update(one, "ay", seq), update(two, "bee", seq))
    assert sorted(map(code, replies)) == ["", "stale_update"]
    (won,) = [reply.seq for reply in replies if not code(reply)]
    assert (await agreed(world, one, two)).known["m"].place[0] == won
    both = await asyncio.gather(update(one, "cee", 0), update(two, "dee", 0))
    assert [code(reply) for reply in both] == ["", ""]
    state = await agreed(world, one, two)
    assert state.known["m"].place[0] == max(reply.seq for reply in both)
    assert state.counters.ignored["stale_update"] >= 1


async def update_at(node: Running, wanted: UpdateRequest) -> RememberReply:
    """An update through one node alone, its error as an answer."""
    try:
        return await node.node._writes.update(ADMIN, wanted)
    except SwarmdError as error:
        return RememberReply(error=Failure(error.code, error.message))


async def test_both_drop_the_same(world: World) -> None:
    one, two = await deluded(world)
    await remember(one, "m", "old")
    await agreed(world, one, two)
    wanted = ForgetRequest("m")
    replies = await asyncio.gather(*(node.node._writes.forget(ADMIN, wanted) for node in (one, two)))
    assert replies[0] == replies[1]
    assert (await agreed(world, one, two)).counters.ignored == {"already_gone": 1}


async def test_one_of_two_nodes_serves_and_the_other_takes_over(world: World) -> None:
    first = world.nodes[0]
    await world.kept("from the first", id="a")
    second = await world.node(is_leading=False)
    assert await until(lambda: second.node.ready.is_set())
    assert not second.node.leading.is_set()
    await first.stop()
    await until(lambda: second.node.leading.is_set())
    await world.kept("from the second", id="b")
    assert set(await world.recall("from")) == {"a", "b"}
    third = await world.node(is_leading=False)
    await second.kill()
    world.board.clear()  # as if the lease had lapsed
    await until(lambda: third.node.leading.is_set())
    assert set(await world.recall("from")) == {"a", "b"}


async def test_a_drained_node_has_answered_everybody(world: World) -> None:
    replies: list[RememberReply | str] = []

    async def ask(n: int) -> None:
        try:
            replies.append(await world.remember(f"text {n}", id=f"m{n}"))
        except Fault as error:
            replies.append(error.code)

    await world.tell("watch", {"watcher": "w", "text": "something else"})
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(world.tell("matches", {"watcher": "w", "wait_ms": 30_000}))  # answered at once
        for n in range(200):
            group.create_task(ask(n))
        await until(lambda: replies)  # some are answered, the rest are on their way
        await world.nodes[0].stop()
    told = [reply for reply in replies if isinstance(reply, RememberReply) and not code(reply)]
    assert told
    assert {reply for reply in replies if isinstance(reply, str)} <= {"no_responders"}
    held = (await fold(world)).known
    assert all(held[reply.id].first[0] == reply.seq for reply in told)
