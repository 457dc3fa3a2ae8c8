"""`swarmd up`: everything on this machine, as one supervised group of processes.

Job: lock the data directory, start the broker with its users, then each role as a process of its own; say when every
swarm has a leader and its members; answer for all metrics and health in one place; end everything in the right order.
Invariants: credentials reach children by file, never by argument; children die with this process. Must not know what
the roles do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from swarmd.adapters.broker_users import keep_credentials, users_config
from swarmd.adapters.data_dir import lock_data_dir
from swarmd.adapters.logs import configure_logs
from swarmd.adapters.nats_connect import NatsSettings
from swarmd.adapters.nats_server import NatsServer
from swarmd.adapters.sd_notify import Notifier
from swarmd.adapters.telemetry import Health, HealthServer, Telemetry, gather
from swarmd.config.tables import worker_range
from swarmd.core import subjects
from swarmd.core.errors import Fault, Rejected
from swarmd.core.wire import SwarmStatus
from swarmd.edges.child import Child
from swarmd.edges.crews import Crew
from swarmd.edges.disk import watch_disk
from swarmd.edges.plan import ORDER, Part, members_wanted, parts_of, worker_part, workers_of, write_settings
from swarmd.edges.settings import READY_FILE, data_dir, leader_settings, nats_of, secrets_of
from swarmd.edges.web.token import keep_token, sign_in_url
from swarmd.edges.wiring import connected

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.config import Settings

log = logging.getLogger(__name__)

JOINED_S: Final = 120.0
LOOK_S: Final = 0.1
GRACE_S: Final = 15.0
"""Beyond its own drain time a role gets so long to end."""


class Ready(Struct, omit_defaults=True):
    """What `up --json` prints when everything works, and what it leaves in its data directory meanwhile."""

    nats: str
    metrics: str
    data: str
    logs: str
    pids: dict[str, int]
    swarms: list[str]
    hive: str = ""
    web: str = ""
    without: dict[str, str] = {}


class Up:
    """One `swarmd up`. `run` ends when it is told to stop; `announce` is called once, when all is ready."""

    def __init__(self, settings: Settings, announce: Callable[[Ready], None]) -> None:
        self._settings, self._announce = settings, announce
        self._data: Path = data_dir(settings)
        self._logs = self._data / "logs"
        self._children: dict[Part, Child] = {}
        self._crews: list[Crew] = []
        self._users: dict[str, str] = {}
        self._server: NatsServer | None = None
        self._nats = NatsSettings()
        self._told: Ready | None = None
        self._telemetry, self._health = Telemetry("up", ""), Health("swarms")
        self._pages = HealthServer(self._metrics, self._health, settings.metrics.host, settings.metrics.port)
        self._notifier = Notifier()
        self._stop = asyncio.Event()
        self._without: dict[str, str] = {}

    async def run(self) -> None:
        """Start, say so, supervise, stop. Raises `Rejected` or `Fault` when it cannot start or go on."""
        async with AsyncExitStack() as held:
            held.enter_context(lock_data_dir(self._data))
            self._logs.mkdir(exist_ok=True, mode=0o700)
            self._pages.start()
            held.callback(self._pages.stop)
            self._listen()
            async with asyncio.TaskGroup() as group:
                side = [group.create_task(self._tick())]
                try:
                    self._users = await self._start_broker(group)
                    await self._start_roles(group)
                    side += [group.create_task(crew.run(self._nats, group)) for crew in self._crews]
                    if self._server is not None:
                        swarms = list(members_wanted(self._settings))
                        side.append(group.create_task(watch_disk(self._data, swarms, self._nats, self._renew_broker)))
                    await self._stop.wait()
                finally:
                    self._notifier.stopping("draining")
                    self._health.not_ready("swarms", "stopping")
                    for task in side[1:]:  # before the broker that it is connected to ends
                        task.cancel()
                    (self._data / READY_FILE).unlink(missing_ok=True)
                    await self._end()
                    side[0].cancel()

    # --- starting ---

    async def _start_broker(self, group: asyncio.TaskGroup) -> dict[str, str]:
        """The broker of our own with a user per role (role → its file), or the one that the settings name."""
        settings = self._settings
        if settings.nats.url:
            self._nats = nats_of(settings)
            async with connected(self._nats, "swarmd-up"):
                return {}  # it can be reached: each role connects for itself
        folder = self._data / "users"
        swarms = [*settings.swarms, *([settings.hive.name] if settings.hive else [])]
        kept = keep_credentials(folder, swarms)
        users = users_config({role: one.password for role, one in kept.items()}, swarms, [settings.memory.name])
        broker = settings.broker
        self._server = NatsServer(self._data, broker.port, broker.host, sync_always=broker.sync_always, users=users)
        await self._server.start()
        group.create_task(self._server.supervise(self._on_broker_restart))
        admin = kept["admin"]
        self._nats = NatsSettings(
            url=self._server.url, user=admin.user, password=admin.password, inbox_prefix=admin.inbox_prefix
        )
        return {role: str(folder / f"{role}.json") for role in kept}

    def _renew_broker(self) -> None:
        """End the broker; its supervisor starts it again on the same port and data."""
        if self._server is not None:
            os.kill(self._server.pid, signal.SIGTERM)

    def _on_broker_restart(self, pid: int) -> None:
        self._telemetry.count("swarmd_broker_restarts_total")
        self._on_change()

    async def _start_roles(self, group: asyncio.TaskGroup) -> None:
        """Orchestrators first, since they make the streams; then everything else at once; then all must have joined."""
        parts, self._without = parts_of(self._settings)
        if any(part.role == "web" for part in parts):
            keep_token(self._data)
        config = write_settings(self._settings, self._data)
        self._children = {part: self._child(part, config) for part in parts}
        self._crews = self._scaled_crews(config)
        for wave in (True, False):
            chosen = [child for part, child in self._children.items() if (part.user == "orchestrator") == wave]
            for child in chosen:
                group.create_task(child.run())
            for child in chosen:
                await self._or_stop(child.wait_ready())
        await self._or_stop(self._joined())
        self._tell()

    def _child(self, part: Part, config: Path) -> Child:
        arguments = ["-P", "-m", "swarmd", "run", part.role, *part.flags, "--config", str(config)]
        arguments += ["--parent", str(os.getpid())]
        if self._users:
            of_swarm = self._users.get(f"{part.user}.{part.swarm}")
            arguments += ["--nats", self._nats.url, "--user-file", of_swarm or self._users[part.user]]
        log_file = self._logs / f"{part.name}.log"
        return Child(part.name, arguments, log_file, _environment(), self._on_change)

    def _scaled_crews(self, config: Path) -> list[Crew]:
        """The crews whose size is a range."""
        crews = []
        for swarm in members_wanted(self._settings):
            bounds = workers_of(self._settings, swarm)
            if bounds[0] < bounds[1]:
                plan, hire = partial(worker_part, self._settings, swarm), partial(self._child, config=config)
                crews.append(Crew(swarm, bounds, plan, hire, self._on_change, GRACE_S))
        return crews

    def _everyone(self) -> dict[Part, Child]:
        """Every process, those of crews that have grown among them."""
        return self._children | {part: child for crew in self._crews for part, child in crew.everyone.items()}

    async def _or_stop(self, wait: Any) -> None:
        """Wait for something, but no longer than until we are told to stop."""
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(wait)
            stopping = group.create_task(self._stop.wait())
            await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not waiting.done():
                waiting.cancel()
        if self._stop.is_set():
            raise Stopped

    async def _joined(self) -> None:
        """Until each swarm has a leader, its worker nodes and its child swarms."""
        async with connected(self._nats, "swarmd-up") as wire:
            missing = ""
            try:
                async with asyncio.timeout(JOINED_S):
                    for swarm, count in members_wanted(self._settings).items():
                        while True:
                            missing = await _missing(wire.bus, swarm, count)
                            if not missing:
                                break
                            await asyncio.sleep(LOOK_S)
            except TimeoutError:
                raise Fault("not_ready", f"after {JOINED_S:.0f} s {missing}; see {self._logs}") from None

    # --- telling ---

    def _ready(self) -> Ready:
        pids = {"up": os.getpid(), **({"nats": self._server.pid} if self._server else {})}
        pids |= {child.name: child.pid for child in self._everyone().values()}
        hive = self._settings.hive.name if self._settings.hive else ""
        web = next((child.web for child in self._children.values() if child.web), "")
        return Ready(
            nats=self._nats.url,
            metrics=self._pages.url,
            data=str(self._data),
            logs=str(self._logs),
            pids=pids,
            swarms=list(self._settings.swarms),
            hive=hive,
            web=web,
            without=self._without,
        )

    def _tell(self) -> None:
        self._told = self._ready()
        self._write_ready(self._told)
        self._on_change()
        self._health.ready("swarms")
        self._notifier.ready(f"serving {', '.join(self._told.swarms)} on {self._told.nats}")
        self._announce(self._told)

    def _write_ready(self, ready: Ready) -> None:
        file = self._data / READY_FILE
        temporary = file.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(ready) + b"\n")
        temporary.replace(file)

    def _on_change(self) -> None:
        """A child became ready or died, or the broker has another pid."""
        for child in self._children.values():
            if child.ready.is_set():
                self._health.ready(child.name)
            else:
                self._health.not_ready(child.name, f"not ready, {child.restarts} restarts so far")
        if self._told is not None and not self._stop.is_set():
            self._write_ready(self._ready())

    def _metrics(self) -> str:
        targets = [
            ({"process": child.name}, f"{child.metrics}/metrics")
            for child in self._everyone().values()
            if child.metrics
        ]
        self._telemetry.gauge("swarmd_loop_tick_age_seconds", self._health.tick_age_s())
        return gather(self._telemetry, targets)

    async def _tick(self) -> None:
        watchdog_s = self._notifier.watchdog_s
        while True:
            self._health.tick()
            if watchdog_s:
                self._notifier.watchdog()
            await asyncio.sleep(min(watchdog_s or 1.0, 1.0))

    # --- stopping ---

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()

        def on_signal(number: signal.Signals) -> None:
            if self._stop.is_set():
                log.warning("a second %s: killing everything", number.name)
                for child in self._everyone().values():
                    child.kill()
                os._exit(130)  # the broker dies with us
            log.info("%s: draining", number.name)
            self._stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)

    async def _end(self) -> None:
        """Members first, while their swarms still lead; the log's readers after its writers; the broker last."""
        self._stop.set()
        for user in ORDER:
            ending = [(part, child) for part, child in self._everyone().items() if part.user == user]
            await asyncio.gather(*(child.stop(part.drain_s + GRACE_S) for part, child in ending))
        if self._server is not None:
            await self._server.stop()


class Stopped(Exception):
    """Told to stop before everything was ready."""


async def _missing(bus: Any, swarm: str, count: int) -> str:
    """What this swarm still lacks, in words; "" when it is complete."""
    try:
        answer = await bus.request(subjects.ctl(swarm, "status"), b"", 2_000)
        status = msgspec.json.decode(answer, type=SwarmStatus)
    except (Fault, msgspec.ValidationError):
        return f"swarm {swarm} has no leader"
    joined = status.crew.working
    if not status.leader:
        return f"swarm {swarm} has no leader"
    return "" if joined >= count else f"swarm {swarm} has {joined} of {count} members"


def _environment() -> dict[str, str]:
    """For children: settings reach them by file, so the variables that made them must not be read twice."""
    from swarmd.config import from_environment

    dropped = {f"SWARMD_{s}_{k}".upper() for s, keys in from_environment(os.environ).items() for k in keys}
    environment = {name: value for name, value in os.environ.items() if name.upper() not in dropped}
    environment.pop("NOTIFY_SOCKET", None)
    environment.pop("WATCHDOG_USEC", None)
    return environment


def main(settings: Settings, agents: tuple[str, ...], workers: str, *, as_json: bool) -> int:
    """Run until told to stop; the exit code. `agents` and `workers` ("": as set) are for every swarm."""
    settings = _changed(settings, agents, workers)
    configure_logs(settings.log.format, settings.log.level, secrets=secrets_of(settings), role="up")
    for swarm in (*settings.swarms, *([settings.hive.name] if settings.hive else [])):
        leader_settings(settings, swarm)  # what is wrong with it is said before anything is started

    def announce(ready: Ready) -> None:
        print(msgspec.json.encode(ready).decode() if as_json else _greeting(ready, settings), flush=True)

    try:
        asyncio.run(Up(settings, announce).run())
    except* Stopped:
        log.info("stopped before everything was ready")
    return 0


def _changed(settings: Settings, agents: tuple[str, ...], workers: str) -> Settings:
    """The settings with what flags say of every swarm."""
    changes: dict[str, Any] = {"agents": agents} if agents else {}
    if workers:
        try:
            worker_range(workers)
        except ValueError:
            why = f"--workers {workers}: write a number such as 2, or a range such as 1..4"
            raise Rejected("bad_usage", why) from None
        changes["workers"] = workers
    swarms = {name: msgspec.structs.replace(table, **changes) for name, table in settings.swarms.items()}
    return msgspec.structs.replace(settings, swarm=swarms) if changes else settings


def _greeting(ready: Ready, settings: Settings) -> str:
    """What a person wants to know when everything works."""
    swarm = ready.hive or ready.swarms[0]
    where = f" --data {shlex.quote(ready.data)}" if settings.data.dir else ""
    where += "" if swarm == "main" else f" --swarm {swarm}"
    first = ["see what there is:", f"  swarmd agents{where}"]
    offers = [name for name in settings.hosted if name == swarm or ready.hive]
    if any("swarmd.agents" in settings.crew(name).agents and workers_of(settings, name)[1] for name in offers):
        first = ["submit a task:", f'  swarmd submit echo \'{{"hello": "world"}}\' --wait{where}']
    lines = [
        f"swarmd is ready: {'hive ' + ready.hive + ' over ' if ready.hive else ''}swarm {', '.join(ready.swarms)}",
        f"  broker   {ready.nats}",
        f"  metrics  {ready.metrics}/metrics  (health: {ready.metrics}/readyz)",
        f"  data     {ready.data}",
        f"  logs     {ready.logs}",
    ]
    if ready.web:
        # An address that signs in is for a person at a terminal; whatever else reads our output is a log.
        there = sys.stdout.isatty()
        shown = sign_in_url(ready.web, Path(ready.data)) if there else f"{ready.web}  (swarmd inbox url{where})"
        lines.append(f"  inbox    {shown}")
    lines += [f"  without  {role}: {why}" for role, why in ready.without.items()]
    return "\n".join([*lines, *first])
