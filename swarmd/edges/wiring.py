"""The only place that builds adapters and hands them to roles."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from msgspec import Struct

from swarmd.adapters.jetstream import JetStreamLog
from swarmd.adapters.nats_blobs import NatsBlobs
from swarmd.adapters.nats_bus import NatsBus, patiently
from swarmd.adapters.nats_connect import ConnectionEvents, NatsSettings, connect, disconnect
from swarmd.adapters.nats_lease import NatsLease
from swarmd.adapters.nats_rates import NatsRates
from swarmd.adapters.probe import TelemetryProbe
from swarmd.adapters.snapshots import NatsSnapshots
from swarmd.adapters.streams import StreamLimits, ensure_stream, stream_state, swarm_streams
from swarmd.adapters.system import SystemClock, SystemEntropy
from swarmd.core import subjects
from swarmd.core.errors import Fault
from swarmd.core.ids import uuid7
from swarmd.core.model_retry import RetryLimits
from swarmd.core.office import LeaderSettings
from swarmd.core.prices import Price
from swarmd.core.wire import StoreHealth
from swarmd.ports import Meter, Model, RateLedger, Tool
from swarmd.roles.attempt import AttemptPorts
from swarmd.roles.child import ChildSwarm
from swarmd.roles.delegate import Delegate, DelegatePorts, DelegateSettings
from swarmd.roles.member import MemberPorts, MemberProcess, MemberSettings
from swarmd.roles.orchestrator import Orchestrator, OrchestratorPorts
from swarmd.roles.reading import Reader
from swarmd.roles.replica import load_state
from swarmd.roles.reunion import CUT_MS
from swarmd.roles.worker import NodeOffer, Worker
from swarmd.roles.writer import LogWriter, sign
from swarmd.sdk import Agent

if TYPE_CHECKING:
    from swarmd.adapters.telemetry import Telemetry

log = logging.getLogger(__name__)

CLOCK: Final = SystemClock()
ENTROPY: Final = SystemEntropy()
#: A drain that takes longer than its deadline and this is given up.
DRAIN_GRACE_MS: Final = 5_000


def mint() -> str:
    """A fresh UUIDv7."""
    return uuid7(CLOCK.now_ms(), ENTROPY.bits(74))


def new_boot() -> str:
    """A process's random part: a guessable one would let one writer use up another's message ids."""
    return f"{ENTROPY.bits(64):016x}"


class Wire:
    """One connection and what is made over it; `on_reconnect` runs each time the broker comes back."""

    def __init__(self) -> None:
        self.bus: NatsBus
        self.logs: list[JetStreamLog] = []
        self.reconnects = asyncio.Event()

    def log(self, stream: str) -> JetStreamLog:
        log = JetStreamLog(self.bus, stream)
        self.logs.append(log)
        return log


@asynccontextmanager
async def connected(settings: NatsSettings, name: str, telemetry: Telemetry | None = None) -> AsyncIterator[Wire]:
    """A connection that tells its logs when it breaks."""
    wire = Wire()

    async def on_disconnect() -> None:
        if telemetry is not None:
            telemetry.count("swarmd_broker_disconnects_total")
        for log in wire.logs:
            log.disconnected()

    async def on_reconnect() -> None:
        wire.reconnects.set()

    client = await connect(settings, name, ConnectionEvents(on_disconnect=on_disconnect, on_reconnect=on_reconnect))
    wire.bus = NatsBus(client)
    try:
        yield wire
    finally:
        await disconnect(client)


class Role(Protocol):
    """A shell that runs until cancelled."""

    async def run(self) -> None: ...

    async def drain(self) -> None: ...


class _Drained:
    """A process of members as a role: its drain has a deadline."""

    def __init__(self, members: MemberProcess, deadline_ms: int) -> None:
        self._members, self._deadline_ms = members, deadline_ms

    async def run(self) -> None:
        await self._members.run()

    async def drain(self) -> None:
        try:
            async with asyncio.timeout((self._deadline_ms + DRAIN_GRACE_MS) / 1000):
                await self._members.drain(self._deadline_ms)
        except TimeoutError:
            log.warning("not drained in time: its lease will lapse, and others resume what it had under way")


async def live(
    wires: Sequence[Wire],
    role: Role,
    stop: asyncio.Event,
    ready: Callable[[], None],
    reconnected: Callable[[], Awaitable[None]] | None = None,
    serving: asyncio.Event | None = None,
) -> None:
    """Run one role until `stop`, then drain it; a bug in a handler of any of its connections ends it.

    `reconnected` is called whenever the first connection is back, `ready` once `serving` is set (at once without it).
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(role.run()), *(group.create_task(wire.bus.watch()) for wire in wires)]
        if reconnected is not None:
            tasks.append(group.create_task(_on_reconnect(wires[0], reconnected)))
        if serving is None or await _first(serving, stop):
            ready()
            await stop.wait()
        await role.drain()
        for task in tasks:
            task.cancel()


async def _first(wanted: asyncio.Event, other: asyncio.Event) -> bool:
    """Wait for either; whether it was `wanted` that came about."""
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(event.wait()) for event in (wanted, other)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    return wanted.is_set()


async def _on_reconnect(wire: Wire, act: Callable[[], Awaitable[None]]) -> None:
    while True:
        await wire.reconnects.wait()
        wire.reconnects.clear()
        try:
            await act()
        except Fault:  # the broker went away again: its next return asks again
            wire.reconnects.set()
            await CLOCK.sleep(200)


def _told_of_return(
    writer: LogWriter, log: JetStreamLog, reader: Reader | None = None
) -> Callable[[], Awaitable[None]]:
    """What a member's writer must know when the broker is back."""

    async def back() -> None:
        if reader is not None:
            reader.forget()
        writer.reconnected(await log.last_seq())

    return back


class OrchestratorOptions(Struct, frozen=True):
    """One orchestrator process."""

    swarm: str
    name: str
    settings: LeaderSettings = LeaderSettings()
    limits: StreamLimits = StreamLimits()
    replies_prefixed: bool = True


async def run_orchestrator(
    nats: NatsSettings,
    options: OrchestratorOptions,
    telemetry: Telemetry,
    stop: asyncio.Event,
    ready: Callable[[], None],
) -> None:
    """Run one orchestrator until `stop` is set; `ready` is called once it follows its log."""
    async with connected(nats, f"orchestrator-{options.name}", telemetry) as wire:
        swarm, probe = options.swarm, TelemetryProbe(telemetry)
        for config in swarm_streams(swarm, options.limits):
            await patiently(ensure_stream, wire.bus, config)
        intake = await patiently(stream_state, wire.bus, subjects.intake_stream(swarm))
        log, boot = wire.log(subjects.log_stream(swarm)), new_boot()
        ports = OrchestratorPorts(
            log=log,
            intake=wire.log(subjects.intake_stream(swarm)),
            stores=_stores(wire.bus, swarm),
            bus=wire.bus,
            lease=NatsLease(wire.bus, swarm, f"{options.name} {boot}"),
            clock=CLOCK,
            entropy=ENTROPY,
            probe=probe,
            meter=telemetry,
        )
        state = await patiently(load_state, swarm, log, NatsSnapshots(wire.bus, swarm), probe)
        role = Orchestrator(state, (options.name, boot), ports, options.settings, _incarnation(intake["created"]))
        role.reply_prefix = f"swarm.{swarm}.reply." if options.replies_prefixed else ""
        await live((wire,), role, stop, ready, reconnected=role.reconnected, serving=role.caught_up)


def _incarnation(created: str) -> str:
    """A stream's creation time as part of an id: a stream made anew counts from 1 again, its ids must differ."""
    return "".join(c for c in created if c.isdigit())[:17]


def _stores(bus: NatsBus, swarm: str) -> Callable[[], Any]:
    names = {
        "log": subjects.log_stream(swarm),
        "blobs": subjects.blob_stream(swarm),
        "intake": subjects.intake_stream(swarm),
    }

    async def look() -> list[StoreHealth]:
        states = {store: await stream_state(bus, name) for store, name in names.items()}
        return [StoreHealth(store, state["bytes"], state["max_bytes"]) for store, state in states.items()]

    return look


class WorkerOptions(Struct, frozen=True):
    """One worker process with `nodes` worker nodes of `capacity` slots each."""

    swarm: str
    name: str
    agents: Mapping[str, Agent]
    models: Callable[[str], Model]
    tools: Callable[[str], Tool]
    run_tool: Callable[[Tool, dict[str, Any]], Any]
    nodes: int = 1
    capacity: int = 16
    labels: Mapping[str, str] = {}
    default_model: str = "offline:extractive"
    fallbacks: tuple[str, ...] = ()
    retries: int = RetryLimits().retries
    prices: Mapping[str, Price] = {}
    share_rates: Callable[[RateLedger, Meter], None] | None = None
    memory: str = "shared"
    drain_ms: int = 20_000


async def run_worker(
    nats: NatsSettings, options: WorkerOptions, telemetry: Telemetry, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    """Run one worker process until `stop` is set, then drain it."""
    boot, role = new_boot(), "worker"
    async with (
        connected(nats, f"worker-{options.name}", telemetry) as wire,
        connected(nats, f"heart-{options.name}") as heart,
    ):
        log = wire.log(subjects.log_stream(options.swarm))
        subject = subjects.log(options.swarm, role, options.name)
        signature = sign(subject, f"/{options.swarm}/{role}/{options.name}", boot, ENTROPY)
        writer = LogWriter(log, signature, CLOCK, TelemetryProbe(telemetry))
        writer.seen = await patiently(log.last_seq)
        if options.share_rates is not None:
            options.share_rates(NatsRates(wire.bus, options.swarm, CLOCK), telemetry)
        ports = AttemptPorts(
            reader=Reader(log),
            blobs=NatsBlobs(wire.bus, options.swarm),
            bus=wire.bus,
            clock=CLOCK,
            entropy=ENTROPY,
            writer=writer,
            models=options.models,
            tools=options.tools,
            run_tool=options.run_tool,
            meter=telemetry,
            swarm=options.swarm,
            memory=options.memory,
            default_model=options.default_model,
            fallbacks=options.fallbacks,
            retry_limits=RetryLimits(options.retries),
            prices=options.prices,
        )
        nodes = [NodeOffer(mint(), options.agents, options.capacity, options.labels) for _ in range(options.nodes)]
        settings = MemberSettings(options.swarm, options.name, boot)
        worker = Worker(settings, nodes, ports, heart.bus)
        drained, back = _Drained(worker, options.drain_ms), _told_of_return(writer, log, ports.reader)
        await live((wire, heart), drained, stop, ready, reconnected=back, serving=worker.joined)


class DelegateOptions(Struct, frozen=True):
    """One delegate process: it presents swarm `child` to swarm `parent`. The child may live on another broker."""

    parent: str
    child: str
    labels: Mapping[str, str] = {}
    capacity_max: int = 256
    child_nats: NatsSettings | None = None
    drain_ms: int = 5_000
    cut_ms: int = CUT_MS


async def run_delegate(
    nats: NatsSettings, options: DelegateOptions, telemetry: Telemetry, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    """Run one delegate until `stop` is set; what it has under way stays with the child for its successor."""
    boot, role, parent, child = new_boot(), "delegate", options.parent, options.child
    below = options.child_nats or nats
    async with (
        connected(nats, f"delegate-{child}", telemetry) as wire,
        connected(nats, f"heart-{child}") as heart,
        connected(below, f"delegate-{child}-of-{parent}") as inner,
    ):
        log = wire.log(subjects.log_stream(parent))
        signature = sign(subjects.log(parent, role, child), f"/{parent}/{role}/{child}", boot, ENTROPY)
        writer = LogWriter(log, signature, CLOCK, TelemetryProbe(telemetry))
        writer.seen = await patiently(log.last_seq)
        ports = DelegatePorts(
            parent=MemberPorts(wire.bus, heart.bus, writer, CLOCK, telemetry),
            child=ChildSwarm(child, inner.bus, f"{below.inbox_prefix}.of.{parent}.{child}"),
            parent_blobs=NatsBlobs(wire.bus, parent),
            child_blobs=NatsBlobs(inner.bus, child),
        )
        settings = DelegateSettings(parent, child, boot, options.labels, options.capacity_max, options.cut_ms)
        delegate = Delegate(settings, ports)
        drained, back = _Drained(delegate, options.drain_ms), _told_of_return(writer, log)
        await live((wire, heart, inner), drained, stop, ready, reconnected=back, serving=delegate.joined)
