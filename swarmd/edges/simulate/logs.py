"""Where a recorded log is read: from a broker, or from the data directory of an `up` that is not running."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from swarmd.adapters.broker_users import keep_credentials, users_config
from swarmd.adapters.data_dir import lock_data_dir
from swarmd.adapters.nats_connect import NatsSettings
from swarmd.adapters.nats_server import NatsServer
from swarmd.core.errors import Rejected
from swarmd.edges.replay import commits
from swarmd.edges.settings import admin_of, require_running
from swarmd.edges.simulate.recorded import Recording

if TYPE_CHECKING:
    from swarmd.config import Settings


async def read_log(settings: Settings, swarm: str, folder: str = "") -> Recording:
    """The log of `swarm`: from the broker of the settings, or (`folder`) from a data directory.

    While an `up` runs in that directory its broker is asked, else one is started there for as long as it takes. Raises
    `Rejected` ("no_log", "no_stream", "log_trimmed"), or what connecting raises.
    """
    if not folder:
        require_running(settings)
        return await _read(admin_of(settings), swarm)
    path = Path(folder)
    if not (path / "nats").is_dir():
        raise Rejected("no_log", f"{folder} is no data directory of `swarmd up`: there is no log in it")
    at = msgspec.structs.replace(settings, data=msgspec.structs.replace(settings.data, dir=folder))
    try:
        require_running(at)
    except Rejected:
        return await _read_stopped(path, settings.memory.name, swarm)
    return await _read(admin_of(at), swarm)


async def _read_stopped(path: Path, memory: str, swarm: str) -> Recording:
    with lock_data_dir(path):
        kept = keep_credentials(path / "users")
        users = users_config({role: one.password for role, one in kept.items()}, [swarm], [memory])
        server, admin = NatsServer(path, users=users), kept["admin"]
        try:
            await server.start()
            nats = NatsSettings(
                url=server.url, user=admin.user, password=admin.password, inbox_prefix=admin.inbox_prefix
            )
            return await _read(nats, swarm)
        finally:
            await server.stop()


async def _read(nats: NatsSettings, swarm: str) -> Recording:
    recording = Recording(swarm)
    async for commit in commits(nats, swarm):
        recording.fold(commit)
    return recording
