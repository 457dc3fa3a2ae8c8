"""From flags and settings to one role, ready to run: what `swarmd run` starts.

Everything that can be wrong with what a role is given is found here, before it connects. Must not know processes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from swarmd.config import HiveTable
from swarmd.core.errors import Rejected
from swarmd.core.ids import check_name
from swarmd.edges import wiring
from swarmd.edges.cli.flags import labels_of
from swarmd.edges.embeddings import embedder_of
from swarmd.edges.loading import OpenTools, load_agents
from swarmd.edges.open_models import OpenModels
from swarmd.edges.settings import (
    data_dir,
    leader_settings,
    mcp_settings,
    model_settings,
    replies_prefixed,
    stream_limits,
    tool_settings,
)
from swarmd.roles.tool_calls import ToolCalls

if TYPE_CHECKING:
    import argparse
    import asyncio
    from collections.abc import Callable

    from swarmd.adapters.nats_connect import NatsSettings
    from swarmd.adapters.telemetry import Telemetry
    from swarmd.config import Settings
    from swarmd.edges.role_process import Ready, Role
    from swarmd.ports import Embeddings


def swarm_for(args: argparse.Namespace, settings: Settings) -> str:
    """The swarm that a role belongs to: named, the hive for a hivemind or delegate, the memory for a memory node."""
    if args.role == "memory":
        return settings.memory.name
    named = getattr(args, "swarm", "")
    if args.role == "web" and not named:
        return ""  # one page for all swarms of the settings
    if not named and args.role in ("hivemind", "delegate"):
        named = (settings.hive or HiveTable()).name
    return check_name("swarm", named or "main")


def build(args: argparse.Namespace, settings: Settings, swarm: str, name: str) -> Role:
    """The role that `args.role` names. Raises `Rejected` for whatever it cannot work with."""
    builders: dict[str, Callable[[], Role]] = {
        "orchestrator": lambda: _orchestrator(settings, swarm, name),
        "hivemind": lambda: _orchestrator(settings, swarm, name),
        "worker": lambda: _worker(args, settings, swarm, name),
        "delegate": lambda: _delegate(args, settings, swarm),
        "observer": lambda: _observer(settings, swarm, name),
        "memory": lambda: _memory(args, settings, name),
        "web": lambda: _web(args, settings, swarm),
    }
    return builders[args.role]()


def _orchestrator(settings: Settings, swarm: str, name: str) -> Role:
    options = wiring.OrchestratorOptions(
        swarm, name, leader_settings(settings, swarm), stream_limits(settings), replies_prefixed(settings)
    )

    async def run(nats: NatsSettings, telemetry: Telemetry, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        await wiring.run_orchestrator(nats, options, telemetry, stop, ready)

    return run


def _worker(args: argparse.Namespace, settings: Settings, swarm: str, name: str) -> Role:
    crew = settings.crew(swarm)
    models = OpenModels(model_settings(settings))
    tools = OpenTools(tool_settings(settings), settings.tool, mcp=mcp_settings(settings))
    for model in (settings.model.name, *settings.model.fallbacks):
        models(model)
    modules, programs = args.agents or crew.agents, settings.programs(swarm)
    agents = load_agents(modules, settings.declared(swarm), models, tools, programs)
    if not agents:
        hint = "name modules with --agents, or declare [[agent]]s or [program.NAME]s"
        raise Rejected("no_agents", f"this worker has no agents: {hint}")
    options = wiring.WorkerOptions(
        swarm=swarm,
        name=name,
        agents=agents,
        models=models,
        tools=tools,
        run_tool=ToolCalls(wiring.CLOCK, wiring.ENTROPY),
        nodes=_at_least_one("--nodes", args.nodes, crew.nodes),
        capacity=_at_least_one("--capacity", args.capacity, crew.capacity),
        labels=crew.labels if args.label is None else labels_of(args.label),
        default_model=settings.model.name,
        fallbacks=settings.model.fallbacks,
        retries=settings.model.retries,
        prices=settings.price,
        share_rates=models.share,
        memory=settings.memory.name,
        drain_ms=crew.drain_ms,
    )

    async def run(nats: NatsSettings, telemetry: Telemetry, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        try:
            async with tools.mcp.running():
                await wiring.run_worker(nats, options, telemetry, stop, ready)
        finally:
            tools.close()
            await models.close()

    return run


def _at_least_one(flag: str, given: int | None, default: int) -> int:
    if given is not None and given < 1:
        raise Rejected("bad_usage", f"{flag} must be at least 1, not {given}")
    return default if given is None else given


def _delegate(args: argparse.Namespace, settings: Settings, swarm: str) -> Role:
    if not args.child:
        raise Rejected("bad_usage", "a delegate speaks for a child swarm: name it with --child SWARM")
    if args.child == swarm:
        raise Rejected("hive_ring", f"a hive cannot be its own child: {swarm}")
    hive = settings.hive
    options = wiring.DelegateOptions(
        parent=swarm,
        child=check_name("swarm", args.child),
        labels=settings.crew(args.child).labels if args.label is None else labels_of(args.label),
        capacity_max=_at_least_one("--capacity", args.capacity, hive.child_capacity if hive else 256),
    )

    async def run(nats: NatsSettings, telemetry: Telemetry, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        await wiring.run_delegate(nats, options, telemetry, stop, ready)

    return run


def _observer(settings: Settings, swarm: str, name: str) -> Role:
    from swarmd.edges.projections import ObserverOptions, run_observer

    folder = data_dir(settings) / "catalog"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    options = ObserverOptions(
        swarm=swarm,
        name=name,
        catalog_path=folder / f"{swarm}.{name}.sqlite",
        catalog_bytes_max=settings.limits.catalog_bytes_max,
        feed=settings.observer.feed,
        snapshot_commits=settings.observer.snapshot_commits,
        snapshot_ms=settings.observer.snapshot_ms,
    )

    async def run(nats: NatsSettings, telemetry: Telemetry, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        await run_observer(nats, options, telemetry, stop, ready)

    return run


def _memory(args: argparse.Namespace, settings: Settings, name: str) -> Role:
    from swarmd.edges.projections import MemoryOptions, run_memory

    table = settings.memory
    first = [embedder_of("", settings, wiring.CLOCK)]  # one that cannot work is refused before anything runs

    def embeddings(spec: str, dimension: int) -> Embeddings:
        if first and spec == table.embedder and dimension in (0, first[0].dimension):
            return first.pop()
        return embedder_of(spec, settings, wiring.CLOCK, dimension)

    options = MemoryOptions(
        memory=table.name,
        name=name,
        data_dir=data_dir(settings),
        milvus_uri=table.uri,
        milvus_token=os.environ.get(table.token_env, "") if table.token_env else "",
        log_bytes_max=table.log_bytes_max,
        replicas=settings.limits.replicas,
        embedder=table.embedder,
        embeddings=embeddings,
    )

    async def run(nats: NatsSettings, telemetry: Telemetry, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        await run_memory(nats, options, telemetry, stop, ready)

    return run


def _web(args: argparse.Namespace, settings: Settings, swarm: str) -> Role:
    try:
        from swarmd.edges.web.run import WebOptions, run_web
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise Rejected("missing_extra", "the page needs the package aiohttp: pip install 'swarmd[web]'") from None
    from swarmd.edges.web.token import keep_token

    table = settings.web
    every = (*settings.swarms, *([settings.hive.name] if settings.hive else []))
    options = WebOptions(
        swarms=(swarm,) if swarm else every,
        token=keep_token(data_dir(settings)),
        host=table.host,
        port=table.port,
        hosts=table.hosts,
    )

    async def run(nats: NatsSettings, telemetry: Telemetry, stop: asyncio.Event, ready: Ready) -> None:
        await run_web(nats, options, telemetry, stop, ready)

    return run
