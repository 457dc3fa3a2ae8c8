"""Which processes `up` runs, from the settings alone: a list of parts, and the settings file that they read.

Must not start anything.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from swarmd.config.tables import worker_range

if TYPE_CHECKING:
    from pathlib import Path

    from swarmd.config import HiveTable, Settings, SwarmTable

#: Users of the broker in the order in which their processes end.
ORDER: Final = ("client", "worker", "delegate", "orchestrator", "observer", "memory")


class Part(Struct, frozen=True):
    """One process: its name in logs and metrics, the role it runs, as whom, and for which swarm."""

    name: str
    role: str
    user: str
    swarm: str
    flags: tuple[str, ...]
    drain_s: float = 0.0


def parts_of(settings: Settings) -> tuple[list[Part], dict[str, str]]:
    """Every process of `up`, and what is left out with the reason why."""
    parts: list[Part] = []
    for swarm, table in settings.swarms.items():
        parts += _crew(settings, swarm, table, "orchestrator")
    hive = settings.hive
    if hive is not None:
        parts += _crew(settings, hive.name, hive, "hivemind")
    for parent, children in settings.children.items():
        for child in children:
            flags = ("--swarm", parent, "--child", child, "--name", child)
            name = f"delegate-{child}" if hive is not None and parent == hive.name else f"delegate-{parent}-{child}"
            drain_s = settings.crew(parent).drain_ms / 1000
            parts.append(Part(name, "delegate", "delegate", parent, flags, drain_s))
    without: dict[str, str] = {}
    memory = settings.memory
    if memory.enabled:
        missing = [name for name in ("pymilvus", "milvus_lite") if importlib.util.find_spec(name) is None]
        if "pymilvus" in missing or (missing and not memory.uri):
            without["memory"] = "Milvus is not installed; `pip install 'swarmd[memory]'` brings it"
        else:
            shared = ("--memory", memory.name, "--name", "memory")
            parts.append(Part("memory", "memory", "memory", "", shared))
    if settings.web.enabled:
        if importlib.util.find_spec("aiohttp") is None:
            without["web"] = "aiohttp is not installed; `pip install 'swarmd[web]'` brings it"
        else:
            parts.append(Part("web", "web", "client", "", ()))  # a page is one more client, with a client's rights
    return parts, without


def _crew(settings: Settings, swarm: str, table: SwarmTable | HiveTable, role: str) -> list[Part]:
    """Orchestrators, the fewest workers and the observer of one swarm."""
    parts = []
    for n in range(1, table.orchestrators + 1):
        name = f"orchestrator-{swarm}-{n}"
        parts.append(Part(name, role, "orchestrator", swarm, ("--swarm", swarm, "--name", f"o{n}")))
    parts += [worker_part(settings, swarm, n) for n in range(1, workers_of(settings, swarm)[0] + 1)]
    parts.append(Part(f"observer-{swarm}", "observer", "observer", swarm, ("--swarm", swarm, "--name", "v1")))
    return parts


def worker_part(settings: Settings, swarm: str, n: int) -> Part:
    """The `n`-th worker process of a swarm, from 1."""
    flags = ("--swarm", swarm, "--name", f"w{n}")
    drain_s = settings.crew(swarm).drain_ms / 1000
    return Part(f"worker-{swarm}-{n}", "worker", "worker", swarm, flags, drain_s)


def workers_of(settings: Settings, swarm: str) -> tuple[int, int]:
    """The fewest and the most worker processes of a swarm.

    None where there are no agents to host, such as in a hive that only delegates.
    """
    table = settings.crew(swarm)
    hosts = bool(table.agents or settings.declared(swarm) or settings.programs(swarm))
    return worker_range(table.workers) if hosts else (0, 0)


def members_wanted(settings: Settings) -> dict[str, int]:
    """How many members each swarm has once all processes run: worker nodes and child swarms."""
    hosted = settings.hosted.items()
    return {name: workers_of(settings, name)[0] * table.nodes + len(table.swarms) for name, table in hosted}


def write_settings(settings: Settings, folder: Path) -> Path:
    """The settings in force as a file for the children, private since it may name addresses with passwords."""
    file = folder / "settings.json"
    temporary = file.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as stream:
        stream.write(msgspec.json.encode(settings))
    temporary.replace(file)
    return file
