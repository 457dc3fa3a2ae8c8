"""Three nats-servers that are one cluster, on loopback: started, killed, frozen and started again, each by its pid."""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from swarmd.adapters.nats_bus import ApiRefused, NatsBus
from swarmd.adapters.nats_connect import ConnectionEvents, NatsSettings, connect, disconnect
from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Fault
from tests.system.swarms import until

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("n1", "n2", "n3")
ELECTION_S = 30.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Cluster:
    """`start` brings all three up; `url` lists them with commas. Ends what it started."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        ports = free_ports(2 * len(NAMES))
        self.ports = dict(zip(NAMES, ports, strict=False))
        self._routes = dict(zip(NAMES, ports[len(NAMES) :], strict=True))
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    @property
    def url(self) -> str:
        return ",".join(f"nats://127.0.0.1:{port}" for port in self.ports.values())

    def _config(self, name: str) -> Path:
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in self._routes.values())
        file = self._directory / f"{name}.conf"
        file.write_text(
            f'server_name: "{name}"\nlisten: "127.0.0.1:{self.ports[name]}"\n'
            f'jetstream {{ store_dir: "{self._directory / name}" }}\n'
            f'logfile: "{self._directory / name}.log"\n'
            f'cluster {{ name: "rig", listen: "127.0.0.1:{self._routes[name]}", routes: [{routes}] }}\n'
        )
        return file

    async def start(self) -> None:
        """All three, and wait until they have a leader who takes streams."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            await self.launch(name)
        await until(self._takes_streams, ELECTION_S)

    async def launch(self, name: str) -> None:
        """Start one server; it takes its part as soon as it can."""
        self._processes[name] = await asyncio.create_subprocess_exec(
            str(find_nats_server()), "-c", str(self._config(name)), stderr=asyncio.subprocess.DEVNULL
        )

    async def _takes_streams(self) -> bool:
        answer = await self._ask("INFO", b"")
        return answer is not None and "error" not in answer

    async def _ask(self, verb: str, body: bytes, name: str = "") -> dict[str, Any] | None:
        """What a server answers, over a connection for this one question; None when it cannot just now."""
        url = f"nats://127.0.0.1:{self.ports[name]}" if name else self.url
        try:
            client = await connect(NatsSettings(url=url, connect_timeout_ms=2_000), "cluster", QUIET)
        except Fault:
            return None
        try:
            return await NatsBus(client).api(verb, body, 2_000)
        except (Fault, ApiRefused):
            return None
        finally:
            await disconnect(client)

    async def info(self, stream: str) -> dict[str, Any]:
        """What its leader says of a stream, as soon as there is one."""

        async def look() -> dict[str, Any] | None:
            return await self._ask(f"STREAM.INFO.{stream}", b"", self.alive()[0])

        found: dict[str, Any] = await until(look, ELECTION_S)
        return found

    async def leader_of(self, stream: str) -> str:
        """The server that leads a stream."""

        async def look() -> str:
            return str((await self.info(stream))["cluster"].get("leader") or "")

        found: str = await until(look, ELECTION_S)
        return found

    async def caught_up(self, stream: str) -> None:
        """Wait until every replica of a stream has all of it."""

        async def look() -> bool:
            replicas = (await self.info(stream))["cluster"].get("replicas", [])
            good = [one for one in replicas if one["current"] and not one.get("offline") and not one.get("lag")]
            return len(good) == len(NAMES) - 1

        await until(look, ELECTION_S)

    def alive(self) -> list[str]:
        return [name for name, process in self._processes.items() if process.returncode is None]

    def signal(self, name: str, number: int) -> None:
        process = self._processes[name]
        if process.returncode is None:
            process.send_signal(number)

    async def kill(self, name: str) -> None:
        """SIGKILL one server, and wait until it is gone."""
        self.signal(name, signal.SIGKILL)
        await self._processes[name].wait()

    async def stop(self) -> None:
        """End all that still runs."""
        for name in self.alive():
            self.signal(name, signal.SIGCONT)
            await self.kill(name)


async def _quietly(error: Exception) -> None:
    """Servers that are away are part of what is tested."""


QUIET = ConnectionEvents(on_error=_quietly)
