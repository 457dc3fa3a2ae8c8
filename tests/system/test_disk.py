"""The disk under `up`: its leader hears of it, and a broker that ran dry is started anew once there is room."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import pytest

from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect
from swarmd.adapters.nats_server import NatsServer
from swarmd.core.wire import StoreHealth
from swarmd.edges import disk

if TYPE_CHECKING:
    from pathlib import Path

    from swarmd.ports import Received

pytest.importorskip("nats")


class Usage(NamedTuple):
    free: int


async def test_a_disk_that_runs_dry_refuses_work_and_renews_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [disk.HEADROOM * 2]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(free[0]))
    monkeypatch.setattr(disk, "LOOK_S", 0.01)
    server = NatsServer(tmp_path)
    await server.start()
    client = await connect(NatsSettings(url=server.url), "test")
    heard: asyncio.Queue[StoreHealth] = asyncio.Queue()
    renewed = asyncio.Event()

    def on_health(message: Received) -> None:
        heard.put_nowait(msgspec.json.decode(message.payload, type=StoreHealth))

    async def until(used: int) -> None:
        async with asyncio.timeout(10):
            while (await heard.get()).bytes != used:
                pass

    try:
        await NatsBus(client).subscribe("swarm.main.health.up.store", on_health)
        async with asyncio.TaskGroup() as group:
            settings = NatsSettings(url=server.url)
            watching = group.create_task(disk.watch_disk(tmp_path, ["main"], settings, renewed.set))
            await until(0)
            free[0] = disk.DRY - 1
            await until(disk.HEADROOM - disk.DRY + 1)
            assert not renewed.is_set()
            free[0] = disk.WET + 1
            async with asyncio.timeout(10):
                await renewed.wait()
            watching.cancel()
    finally:
        await client.close()
        await server.stop()
