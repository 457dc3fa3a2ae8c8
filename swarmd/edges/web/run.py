"""Runs the page as a role: one connection as a client, a watch over the inboxes, the server.

The only place that lists the rooms.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from msgspec import Struct

from swarmd.edges.people import People
from swarmd.edges.web.guard import Guard
from swarmd.edges.web.inbox import inbox_room
from swarmd.edges.web.server import Pages, serving
from swarmd.edges.web.watch import Watch
from swarmd.edges.wiring import connected

if TYPE_CHECKING:
    from swarmd.adapters.nats_connect import NatsSettings
    from swarmd.adapters.telemetry import Telemetry
    from swarmd.edges.role_process import Ready

log = logging.getLogger(__name__)


class WebOptions(Struct, frozen=True):
    """Where the page listens, for which swarms, and the names besides its own under which it may be asked for."""

    swarms: tuple[str, ...]
    token: str
    host: str = "127.0.0.1"
    port: int = 9465
    hosts: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"WebOptions(swarms={self.swarms!r}, host={self.host!r}, port={self.port!r})"


async def run_web(
    nats: NatsSettings, options: WebOptions, telemetry: Telemetry, stop: asyncio.Event, ready: Ready
) -> None:
    """Serve until `stop` is set. Raises `Rejected("port_in_use")`, or what connecting raises."""
    guard = Guard(options.token, asyncio.get_running_loop().time)
    async with connected(nats, "web", telemetry) as wire, asyncio.TaskGroup() as group:
        watch = Watch({swarm: People(wire.bus, swarm) for swarm in options.swarms})
        sides = [group.create_task(watch.run()), group.create_task(wire.bus.watch())]
        pages = Pages(guard, [inbox_room(watch)])
        async with serving(pages, options.host, options.port, options.hosts) as address:
            log.info("the page is served at %s", address)
            ready(web=address)
            await stop.wait()
            watch.close()
        for side in sides:
            side.cancel()
