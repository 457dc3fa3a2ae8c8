"""The life of one role process: logs, metrics, health, signals, and the line that says it is ready.

Job: everything around a role that is the same for all of them. On stdout it says exactly one line, JSON, when it is
ready: {"ready": true, "metrics": URL}, with more addresses if it serves more. SIGTERM drains, a second one ends at
once. Must not know what a role does.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from swarmd.adapters.logs import configure_logs
from swarmd.adapters.telemetry import Health, HealthServer, Telemetry
from swarmd.core.ids import check_name
from swarmd.edges.settings import nats_of, secrets_of
from swarmd.edges.stalls import StallWatch
from swarmd.roles.replica import Rewound

if TYPE_CHECKING:
    import argparse

    from swarmd.adapters.nats_connect import NatsSettings
    from swarmd.config import Settings

log = logging.getLogger(__name__)


class Ready(Protocol):
    """What a role calls once it works, with the addresses of what it serves by name."""

    def __call__(self, **addresses: str) -> None: ...


#: Runs a role until the event is set; calls the last argument once it works.
Role = Callable[["NatsSettings", Telemetry, asyncio.Event, Ready], Awaitable[None]]
PR_SET_PDEATHSIG: Final = 1
TICK_S: Final = 1.0
#: Without a tick for so long the loop stands still; at twice that a worker's nodes are lost.
STALLED_S: Final = 2.0


def run_role(args: argparse.Namespace, settings: Settings) -> int:
    """Run one role in this process until it is told to stop; the exit code."""
    from swarmd.edges.roles import build, swarm_for

    _die_with(args.parent)
    kind, swarm = args.role, swarm_for(args, settings)
    name = check_name("writer", args.name or f"{kind}-{_host()}-{os.getpid()}")
    nats = nats_of(settings, connect_timeout_ms=30_000)
    configure_logs(settings.log.format, settings.log.level, secrets=secrets_of(settings, nats), role=kind, swarm=swarm)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_live(kind, swarm, nats, build(args, settings, swarm, name), args.metrics_port))


async def _live(kind: str, swarm: str, nats: NatsSettings, role: Role, metrics_port: int) -> int:
    """Serve health, run the role, start it anew when its log was rewound under it."""
    import swarmd

    telemetry, health, stop = Telemetry(kind, swarm), Health(kind), asyncio.Event()
    telemetry.gauge("swarmd_info", 1, swarmd.__version__)

    def metrics() -> str:
        telemetry.gauge("swarmd_loop_tick_age_seconds", health.tick_age_s())
        return telemetry.text()

    pages = HealthServer(metrics, health, port=metrics_port)
    pages.start()
    stop_on_signals(stop)
    said = False

    def ready(**addresses: str) -> None:
        nonlocal said
        health.ready(kind)
        if not said:
            said = True
            print(msgspec.json.encode({"ready": True, "metrics": pages.url, **addresses}).decode(), flush=True)

    tune_gc()
    stalls = StallWatch(health.tick_age_s, STALLED_S)
    stalls.start()
    try:
        async with asyncio.TaskGroup() as group:
            ticking = group.create_task(_tick(health))
            while True:
                try:
                    await role(nats, telemetry, stop, ready)
                    break
                except* Rewound as rewound:
                    log.warning("%s; starting again from the log", rewound.exceptions[0])
                    health.not_ready(kind, "folding the log again")
            ticking.cancel()
    finally:
        stalls.stop()
        pages.stop()
    return 0


async def _tick(health: Health) -> None:
    while True:
        health.tick()
        await asyncio.sleep(TICK_S)


def stop_on_signals(stop: asyncio.Event) -> None:
    """SIGTERM and SIGINT set `stop`; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            log.warning("a second %s: ending at once", number.name)
            os._exit(130)
        log.info("%s: stopping", number.name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)


def tune_gc() -> None:
    """What is loaded stays for good; collections of the young are rare (at 20,000 tasks a second each one shows)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _die_with(parent: int) -> None:
    """Be killed when `parent` dies: its broker dies with it, so there is nothing left to drain into."""
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request was made
        os._exit(1)


def _host() -> str:
    return "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:30] or "host"
