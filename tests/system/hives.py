"""Swarms for tests: a broker with per-role users, orchestrators and workers in this process, delegates as processes.

Agents run here, so that a test holds them by events instead of sleeping.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmd.adapters.broker_users import Credentials, keep_credentials, users_config
from swarmd.adapters.nats_connect import NatsSettings
from swarmd.adapters.nats_server import NatsServer
from swarmd.adapters.streams import StreamLimits
from swarmd.adapters.telemetry import Telemetry
from swarmd.core.errors import Rejected
from swarmd.edges.client import Client
from swarmd.edges.wiring import OrchestratorOptions, WorkerOptions, run_orchestrator, run_worker
from swarmd.sdk import Agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from swarmd.core.wire import SwarmStatus

ROOT = Path(__file__).parents[2]
WAIT_S = 30
#: Of each store: many swarms must fit onto one disk.
STORE_BYTES = 256 * 1024**2
STORES = {f"SWARMD_LIMITS_{store}_BYTES_MAX": str(STORE_BYTES) for store in ("LOG", "INTAKE", "BLOB")}


def refuse(name: Any, arguments: Any = None) -> Any:
    """Models and tools for workers that have none."""
    raise Rejected("unknown", f"there is no {name!r} here")


class Hive:
    """A running broker and the roles on it; `url` is for clients, `settings(role)` for roles."""

    def __init__(
        self, server: NatsServer, credentials: Mapping[str, Credentials], group: asyncio.TaskGroup, users: Path
    ) -> None:
        self.server, self._credentials, self._group, self.users = server, credentials, group, users
        self._stops: list[asyncio.Event] = []
        self._processes: list[asyncio.subprocess.Process] = []

    def settings(self, role: str) -> NatsSettings:
        own = self._credentials[role]
        return NatsSettings(url=self.server.url, user=own.user, password=own.password, inbox_prefix=own.inbox_prefix)

    async def orchestrator(self, swarm: str) -> None:
        """Start the orchestrator of a swarm and wait until it follows its log."""
        await self._role(
            lambda stop, ready: run_orchestrator(
                self.settings("orchestrator"),
                OrchestratorOptions(swarm, f"{swarm}-1", limits=StreamLimits(STORE_BYTES, STORE_BYTES, STORE_BYTES)),
                Telemetry("orchestrator", swarm),
                stop,
                ready,
            )
        )

    async def worker(self, swarm: str, agents: Mapping[str, Any], capacity: int = 8, nodes: int = 1) -> None:
        """Start a worker process' role with these functions as agents."""
        options = WorkerOptions(
            swarm,
            f"{swarm}-w",
            {name: Agent(name, function) for name, function in agents.items()},
            refuse,
            refuse,
            refuse,
            capacity=capacity,
            nodes=nodes,
        )
        await self._role(
            lambda stop, ready: run_worker(self.settings("worker"), options, Telemetry("worker", swarm), stop, ready)
        )

    async def _role(self, start: Callable[[asyncio.Event, Callable[[], None]], Any]) -> None:
        stop, ready = asyncio.Event(), asyncio.Event()
        self._stops.append(stop)
        self._group.create_task(start(stop, ready.set))
        async with asyncio.timeout(WAIT_S):
            await ready.wait()

    async def delegate(self, parent: str, child: str) -> asyncio.subprocess.Process:
        """Start a delegate as a process of its own."""
        own = self._credentials["delegate"]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.system.delegate_process", self.server.url, parent, child),
            cwd=ROOT,
            env={**os.environ, "DELEGATE_PASSWORD": own.password},
        )
        self._processes.append(process)
        return process

    async def command(self, role: str, *flags: str) -> asyncio.subprocess.Process:
        """Start `swarmd run ROLE` with these flags, as a user would; what it says is for the caller to read."""
        file = self.users / f"{role}.json"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "swarmd", "run", role, *flags),
            *("--nats", self.server.url, "--user-file", str(file)),
            cwd=self.users.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT), **STORES},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._processes.append(process)
        return process

    async def orchestrator_process(self, swarm: str, name: str) -> asyncio.subprocess.Process:
        """Start an orchestrator as a process of its own, and wait until it says that it is ready."""
        process = await self.command("orchestrator", "--swarm", swarm, "--name", name)
        assert process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            assert b"ready" in await process.stdout.readline()
        return process

    @staticmethod
    async def kill(process: asyncio.subprocess.Process) -> None:
        """SIGKILL, and wait until it is gone."""
        process.send_signal(signal.SIGKILL)
        await process.wait()

    @asynccontextmanager
    async def client(self, swarm: str) -> AsyncIterator[Client]:
        async with Client.connect(self.server.url, swarm=swarm) as client:
            yield client

    async def close(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.terminate()
                async with asyncio.timeout(WAIT_S):
                    await process.wait()
        for stop in reversed(self._stops):
            stop.set()


@asynccontextmanager
async def hive(tmp_path: Path, *swarms: str, also: tuple[str, ...] = ()) -> AsyncIterator[Hive]:
    """A broker with an orchestrator for each of these swarms; `also` are swarms that a test starts itself."""
    credentials = keep_credentials(tmp_path / "users")
    passwords = {role: own.password for role, own in credentials.items()}
    server = NatsServer(tmp_path, sync_always=False, users=users_config(passwords, (*swarms, *also), ["shared"]))
    await server.start()
    try:
        async with asyncio.TaskGroup() as group:
            running = Hive(server, credentials, group, tmp_path / "users")
            try:
                for swarm in swarms:
                    await running.orchestrator(swarm)
                yield running
            finally:
                await running.close()
    finally:
        await server.stop()


async def until(what: str, look: Callable[[], Any]) -> Any:
    """Look again and again until it is true; fails by name after a bounded wait."""
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                found = await look()
                if found:
                    return found
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never came about: {what}") from None


async def swarm_status(client: Client) -> SwarmStatus | None:
    """The status as the leader answers it, None while nobody does."""
    import msgspec

    from swarmd.core import subjects
    from swarmd.core.errors import Fault
    from swarmd.core.wire import SwarmStatus

    try:
        answer = await client._bus.request(subjects.ctl(client._swarm, "status"), b"", 2_000)
        return msgspec.json.decode(answer, type=SwarmStatus)
    except (Fault, msgspec.ValidationError):
        return None
