"""The demo's hive as a running `swarmd up`: its settings, its process, and what it says when it is ready.

Invariant: the process ends with this one, whatever happens to it. Must not know the job.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct, field

from swarmd.adapters.broker_users import read_credentials
from swarmd.adapters.nats_connect import NatsSettings
from swarmd.core.errors import Fault, Rejected
from swarmd.demo_agents.hive import DESK, LIBRARY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HIVE: Final = "hive"
READY_S: Final = 180.0
STOP_S: Final = 60.0
CONFIG_FILE: Final = "demo.json"
#: Ask the kernel for SIGTERM when the parent dies, then become `swarmd up` under the same pid.
_LAUNCHER: Final = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.executable, [sys.executable, "-P", "-m", "swarmd", *sys.argv[2:]])
"""


class Cast(Struct, frozen=True):
    """Who plays: how many processes read, which model, and which directories the tools may read."""

    roots: tuple[str, ...]
    workers: int = 2
    model: str = ""
    base_url: str = ""


class Running(Struct):
    """A hive that is ready."""

    nats: str
    metrics: str
    data: str
    logs: str
    pids: dict[str, int] = field(default_factory=dict)

    def settings(self, role: str) -> NatsSettings:
        """How to connect as the broker's user for this role."""
        own = read_credentials(Path(self.data, "users", f"{role}.json"))
        return NatsSettings(url=self.nats, user=own.user, password=own.password, inbox_prefix=own.inbox_prefix)

    def pid(self, process: str) -> int:
        """The process as it is now: one that was started again has another pid. 0 if it is not known."""
        try:
            told = msgspec.json.decode(Path(self.data, "up.json").read_bytes(), type=Running)
        except (OSError, msgspec.MsgspecError):
            return self.pids.get(process, 0)
        return told.pids.get(process, 0)


def settings_of(data: Path, cast: Cast) -> dict[str, Any]:
    """The settings of the demo's hive, as a file of `swarmd up --config` has them."""
    model = {"name": cast.model} if cast.model else {}
    return {
        "data": {"dir": str(data)},
        "broker": {"port": 0},
        "metrics": {"port": 0},
        "web": {"enabled": False},
        "model": {**model, **({"base_url": cast.base_url} if cast.base_url else {})},
        "tools": {"roots": list(cast.roots)},
        "swarm": {
            LIBRARY: {"workers": cast.workers, "nodes": 2, "capacity": 4, "agents": ["swarmd.demo_agents.library"]},
            DESK: {"workers": 1, "nodes": 1, "capacity": 8, "agents": ["swarmd.demo_agents.desk"]},
        },
        "hive": {"name": HIVE, "swarms": [LIBRARY, DESK], "agents": ["swarmd.demo_agents.hive"], "capacity": 4},
    }


@asynccontextmanager
async def staged(data: Path, cast: Cast) -> AsyncIterator[Running]:
    """A running hive in `data`. Raises `Rejected` for settings that cannot work, `Fault` when it does not get ready."""
    config, log_file = _lay_out(data, cast)
    with log_file.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", _LAUNCHER, str(os.getpid())),
            *("up", "--json", "--config", str(config), "--data", str(data)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the demo, which ends this one in order
        )
    try:
        yield await _ready(process, log_file)
    finally:
        await _end(process)


def _lay_out(data: Path, cast: Cast) -> tuple[Path, Path]:
    """The settings file and the log file of a new data directory."""
    if (data / "nats").exists():
        raise Rejected("data_dir_used", f"{data} holds the data of an earlier run: give the demo an empty directory")
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = data / CONFIG_FILE
    config.write_bytes(msgspec.json.format(msgspec.json.encode(settings_of(data, cast))))
    return config, data / "up.log"


def _last_words(log_file: Path) -> str:
    words = [line for line in log_file.read_text(errors="replace").splitlines() if line.strip()]
    return words[-1] if words else "it said nothing"


async def _ready(process: asyncio.subprocess.Process, log_file: Path) -> Running:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_S):
            line = await process.stdout.readline()
    except TimeoutError:
        raise Fault("not_ready", f"the hive is not ready after {READY_S:.0f} s; see {log_file}") from None
    if not line:
        await process.wait()
        kind = Rejected if process.returncode in (2, 3) else Fault
        raise kind("not_started", f"`swarmd up` ended: {_last_words(log_file)}; see {log_file}")
    running = msgspec.json.decode(line, type=Running)
    if "memory" not in running.pids:
        raise Rejected("no_memory", "the demo needs the shared memory: run `pip install 'swarmd[memory]'`")
    return running


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _environment() -> dict[str, str]:
    """Settings come from the file alone; a variable meant for another swarmd must not change the demo's hive."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SWARMD_")}


def clear(data: Path) -> None:
    """Remove a data directory."""
    shutil.rmtree(data, ignore_errors=True)
