"""A small swarm on a real broker for system tests: orchestrator, worker and client in one event loop."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from swarmd.adapters.broker_users import keep_credentials, users_config
from swarmd.adapters.nats_connect import NatsSettings
from swarmd.adapters.nats_server import NatsServer
from swarmd.adapters.telemetry import Telemetry
from swarmd.core.errors import Rejected
from swarmd.edges import wiring
from swarmd.edges.client import Client
from swarmd.roles.attempt import AgentFailed
from swarmd.sdk import Agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from swarmd.adapters.broker_users import Credentials
    from swarmd.ports import Model, Tool

SWARM = "main"
WAIT_S = 30.0


def refuse(name: str) -> Any:
    """No models and no tools here."""
    raise Rejected("unknown", name)


async def run_tool(tool: Tool, arguments: dict[str, Any]) -> tuple[str, str]:
    raise Rejected("unknown", tool.spec.name)


def no_model(name: str) -> Model:
    raise Rejected("unknown_model", name)


async def until(reached: Callable[[], Any] | Callable[[], Awaitable[Any]], wait_s: float = WAIT_S) -> Any:
    """Look again and again until `reached` says something true; return it."""
    async with asyncio.timeout(wait_s):
        while True:
            found = reached()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.02)


class Role:
    """A role that runs beside the test until it is stopped."""

    def __init__(self, group: asyncio.TaskGroup, run: Callable[[asyncio.Event, Callable[[], None]], Any]) -> None:
        self.stop_wanted, self.is_ready = asyncio.Event(), asyncio.Event()
        self.task = group.create_task(run(self.stop_wanted, self.is_ready.set))

    async def ready(self) -> Role:
        await until(lambda: self.is_ready.is_set() or self.task.done())
        if self.task.done():
            self.task.result()
        return self

    async def stop(self) -> None:
        self.stop_wanted.set()
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait([self.task])
        self.task.result()


class Swarm:
    """What a test holds: the broker, a client, and a place to run more roles."""

    def __init__(
        self, server: NatsServer, group: asyncio.TaskGroup, directory: Path, users: Mapping[str, Credentials]
    ) -> None:
        self.server, self.group, self.directory = server, group, directory
        self.nats = NatsSettings(url=server.url)
        self._users = users
        self.client: Client
        self.orchestrator: Role
        self.worker: Role

    def nats_as(self, role: str) -> NatsSettings:
        """How `role` connects: with its own credentials where there are users."""
        if role not in self._users:
            return self.nats
        own = self._users[role]
        return NatsSettings(url=self.server.url, user=own.user, password=own.password, inbox_prefix=own.inbox_prefix)

    async def role(self, run: Callable[[asyncio.Event, Callable[[], None]], Any]) -> Role:
        return await Role(self.group, run).ready()

    async def start_orchestrator(self) -> Role:
        options = wiring.OrchestratorOptions(SWARM, "orch", replies_prefixed=bool(self._users))
        telemetry, nats = Telemetry("orchestrator", SWARM), self.nats_as("orchestrator")
        return await self.role(lambda stop, ready: wiring.run_orchestrator(nats, options, telemetry, stop, ready))

    async def start_worker(self, agents: Mapping[str, Agent]) -> Role:
        options = wiring.WorkerOptions(SWARM, "work", agents, no_model, refuse, run_tool, drain_ms=1_000)
        telemetry, nats = Telemetry("worker", SWARM), self.nats_as("worker")
        return await self.role(lambda stop, ready: wiring.run_worker(nats, options, telemetry, stop, ready))


async def echo(ctx: Any, wanted: Any) -> Any:
    return await ctx.step("echo", lambda: wanted)


async def fail(ctx: Any, wanted: Any) -> Any:
    raise AgentFailed("no", "it always fails")


async def family(ctx: Any, wanted: Any) -> Any:
    children = [await ctx.spawn("echo", number) for number in range(wanted)]
    return await ctx.gather(*children)


AGENTS = {"echo": Agent("echo", echo), "fail": Agent("fail", fail), "family": Agent("family", family)}


@asynccontextmanager
async def a_swarm(directory: Path, with_users: bool = False) -> AsyncIterator[Swarm]:
    """Broker, orchestrator, worker and client; everything is stopped at the end."""
    users = keep_credentials(directory / "credentials") if with_users else {}
    passwords = {role: own.password for role, own in users.items()}
    server = NatsServer(directory, users=users_config(passwords, [SWARM], ["shared"]) if users else "")
    await server.start()
    try:
        async with AsyncExitStack() as stack:
            group = await stack.enter_async_context(asyncio.TaskGroup())
            swarm = Swarm(server, group, directory, users)
            try:
                swarm.orchestrator = await swarm.start_orchestrator()
                swarm.worker = await swarm.start_worker(AGENTS)
                async with Client.connect(swarm.nats, swarm=SWARM) as swarm.client:
                    yield swarm
            finally:
                for role in (getattr(swarm, "worker", None), getattr(swarm, "orchestrator", None)):
                    if role is not None and not role.task.done():
                        await role.stop()
    finally:
        await server.stop()
