"""A swarm of real processes on a real broker, to be killed, frozen and started again: `a_rig`.

Every role runs as `swarmd run ROLE` on free ports. A test waits for what the log or the status says, never for time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from swarmd.adapters.jetstream import JetStreamLog
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import ConnectionEvents, NatsSettings, connect, disconnect
from swarmd.adapters.nats_server import NatsServer
from swarmd.core import subjects
from swarmd.core.codec import Codec, Commit
from swarmd.core.errors import Fault
from swarmd.core.events import Event, Fact
from swarmd.core.evolve import apply
from swarmd.core.state import SwarmState
from swarmd.core.wire import Submission, SwarmStatus
from swarmd.edges.client import Client, Handle
from tests.system.swarms import until
from tests.system.ups import PLAIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SWARM = "main"
ROOT = Path(__file__).parents[2]
AGENTS = "tests.system.fault_agents"
READY_S = 30.0
VERDICT_MS = 30_000


class RoleProcess:
    """One `swarmd run`, ended by its pid."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, errors: Path) -> None:
        self.name, self.process, self._errors = name, process, errors
        self.metrics = self.web = ""

    async def ready(self) -> RoleProcess:
        assert self.process.stdout is not None
        async with asyncio.timeout(READY_S):
            line = await self.process.stdout.readline()
        assert line, f"{self.name} ended before it was ready: {self.errors()}"
        said = msgspec.json.decode(line)
        self.metrics, self.web = said["metrics"], said.get("web", "")
        return self

    def errors(self) -> str:
        """What it has logged."""
        return self._errors.read_text()

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    def signal(self, number: int) -> None:
        if self.alive:
            self.process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        await self.process.wait()

    async def ended(self, wait_s: float = 15.0) -> int:
        """Wait until it has ended by itself; the exit code."""
        async with asyncio.timeout(wait_s):
            return await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended()


class Rig:
    """What a test holds: the broker, a client, a reader of the log, and the processes it started."""

    def __init__(self, url: str, directory: Path) -> None:
        self.directory = directory
        self.nats = NatsSettings(url=url)
        self.environ: dict[str, str] = {}
        self.server: NatsServer
        self.processes: list[RoleProcess] = []
        self.client: Client
        self.bus: NatsBus
        self.log: JetStreamLog
        self.since = 0

    async def for_this_test(self, directory: Path) -> Rig:
        """Several tests share this swarm: another's events are not this one's, nor its files."""
        self.directory, self.since = directory, await self.log.last_seq()
        return self

    # --- processes ---

    async def start(self, role: str, name: str, *flags: str, **environ: str) -> RoleProcess:
        """Start one role and wait until it says that it is ready."""
        errors = self.directory / f"{len(self.processes)}-{name}.log"
        command = [sys.executable, "-m", "swarmd", "--nats", self.nats.url, "run", role]
        command += ["--swarm", SWARM, "--name", name, "--no-replies-prefixed", *flags]
        with errors.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=sink,
                cwd=ROOT,
                env={**PLAIN, "SWARMD_DATA_DIR": str(self.directory / "data"), **self.environ, **environ},
            )
        started = RoleProcess(name, process, errors)
        self.processes.append(started)
        return await started.ready()

    async def orchestrator(self, name: str = "o1", **environ: str) -> RoleProcess:
        return await self.start("orchestrator", name, **environ)

    async def worker(self, name: str = "w1", *flags: str, **environ: str) -> RoleProcess:
        """One node with 16 slots, unless `flags` say otherwise."""
        shape = ("--agents", AGENTS, "--nodes", "1", "--capacity", "16")
        return await self.start("worker", name, *shape, *flags, **environ)

    async def kill_all(self) -> None:
        """Every process at once, the broker included."""
        broker = self.server.pid
        for process in self.processes:
            process.signal(signal.SIGKILL)
        if broker:
            os.kill(broker, signal.SIGKILL)
        for process in self.processes:
            await process.process.wait()
        await until(lambda: not self.server.pid)

    async def kill_broker(self) -> None:
        os.kill(self.server.pid, signal.SIGKILL)
        await until(lambda: not self.server.pid)

    # --- what is true ---

    async def commits(self) -> list[Commit]:
        """Every readable commit of the log, from its beginning or from where this test began."""
        codec, found = Codec(), list[Commit]()
        async for records in self.log.scan(self.since, await self.log.last_seq()):
            found += [commit for commit in map(codec.decode, records) if isinstance(commit, Commit)]
        return found

    async def events(self, kind: type[Fact], task: str = "") -> list[Event]:
        """Every stored event of a kind, accepted or not."""
        events = [event for commit in await self.commits() for event in commit.events]
        return [
            event
            for event in events
            if isinstance(event, Event) and isinstance(event.data, kind) and task in ("", event.subject)
        ]

    async def wait_events(self, kind: type[Fact], count: int = 1, task: str = "") -> list[Event]:
        """Wait until so many such events are stored."""

        async def look() -> list[Event]:
            found = await self.events(kind, task)
            return found if len(found) >= count else []

        found: list[Event] = await until(look)
        return found

    async def fold(self) -> SwarmState:
        """The state that the log gives, folded from its beginning."""
        codec, state = Codec(), SwarmState(SWARM)
        async for records in self.log.scan(0, await self.log.last_seq()):
            for record in records:
                apply(state, codec.decode(record))
        return state

    async def ask(self, verb: str, body: Any = None, timeout_ms: int = 5_000) -> Any:
        """One ctl request; the decoded answer."""
        payload = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        return msgspec.json.decode(await self.bus.request(subjects.ctl(SWARM, verb), payload, timeout_ms))

    async def status(self) -> SwarmStatus | None:
        """The swarm as its leader sees it; None while nobody answers."""
        try:
            answer = await self.ask("status", timeout_ms=500)
        except Fault:
            return None
        return msgspec.convert(answer, SwarmStatus) if "members" in answer else None

    async def wait_status(self, holds: Any) -> SwarmStatus:
        """Wait until the leader's status satisfies `holds`."""

        async def look() -> SwarmStatus | None:
            status = await self.status()
            return status if status is not None and holds(status) else None

        found: SwarmStatus = await until(look)
        return found

    async def wait_leader(self, other_than: int = 0) -> tuple[SwarmStatus, float]:
        """Wait for a leader of a later term than `other_than`; its status, and how long that took in seconds."""
        started = time.monotonic()
        status = await self.wait_status(lambda s: s.term > other_than)
        return status, time.monotonic() - started

    async def wait_members(self, count: int) -> SwarmStatus:
        return await self.wait_status(lambda s: sum(m.reachable for m in s.members) == count)

    # --- the agents' files ---

    def gate(self, name: str) -> str:
        """Where an agent waits until `open_gate`."""
        return str(self.directory / f"gate-{name}")

    def open_gate(self, name: str) -> None:
        Path(self.gate(name)).touch()

    @property
    def ledger(self) -> str:
        """The file in which agents note what they really do."""
        return str(self.directory / "ledger")

    def noted(self) -> list[str]:
        """What agents have done, a line each."""
        try:
            return Path(self.ledger).read_text().splitlines()
        except FileNotFoundError:
            return []


class Load:
    """Tasks submitted in batches as fast as they are accepted (`paced`: completed), until told to stop."""

    def __init__(self, rig: Rig, batch: int = 20, *, paced: bool = False) -> None:
        self._rig, self._batch, self._paced = rig, batch, paced
        self.accepted: list[str] = []
        self.enough = False

    async def run(self) -> None:
        while not self.enough:
            wanted = [Submission(agent="echo", input=msgspec.Raw(b"%d" % n)) for n in range(self._batch)]
            for receipt in await self._rig.client.submit_many(wanted):
                assert isinstance(receipt, Handle), receipt
                self.accepted.append(receipt.task)
            if self._paced:
                await asyncio.gather(
                    *(self._rig.client.outcome(task, VERDICT_MS) for task in self.accepted[-self._batch :])
                )

    async def more(self, count: int = 100) -> None:
        """Wait until so many more tasks are accepted."""
        goal = len(self.accepted) + count
        await until(lambda: len(self.accepted) >= goal)

    async def check(self) -> None:
        """Every accepted task is completed, told to its client, and has one accepted verdict."""
        outcomes = await asyncio.gather(*(self._rig.client.outcome(task, VERDICT_MS) for task in self.accepted))
        assert {outcome.state for outcome in outcomes} == {"completed"}
        state = await self._rig.fold()
        stones = {**state.older_tombstones, **state.tombstones}
        assert [task for task in self.accepted if stones[task].state != "completed"] == []
        assert state.counters.completed == state.counters.submitted == len(stones)


@asynccontextmanager
async def a_rig(directory: Path, *roles: str) -> AsyncIterator[Rig]:
    """A broker, a client and the `roles` asked for ("orchestrator", "worker"); all is ended by pid."""
    server = NatsServer(directory / "broker")
    await server.start()
    rig = Rig(server.url, directory)
    rig.server = server
    try:
        async with running(rig, *roles):
            yield rig
    finally:
        await server.stop()


@asynccontextmanager
async def running(rig: Rig, *roles: str) -> AsyncIterator[Rig]:
    """A client and the `roles` asked for, on a broker that runs already; its processes are ended by pid."""
    try:
        async with AsyncExitStack() as stack:

            async def on_disconnect() -> None:
                rig.log.disconnected()

            async def on_error(error: Exception) -> None:
                """Losing the broker is part of what is tested."""

            events = ConnectionEvents(on_disconnect=on_disconnect, on_error=on_error)
            connection = await connect(rig.nats, "rig", events)
            stack.push_async_callback(disconnect, connection)
            rig.bus = NatsBus(connection)
            rig.log = JetStreamLog(rig.bus, subjects.log_stream(SWARM))
            if "orchestrator" in roles:
                await rig.orchestrator()
            if "worker" in roles:
                await rig.worker()
                await rig.wait_members(1)
            rig.client = await stack.enter_async_context(Client.connect(rig.nats, swarm=SWARM))
            yield rig
    finally:
        for process in rig.processes:
            process.signal(signal.SIGCONT)
            await process.kill()
