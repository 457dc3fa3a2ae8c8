"""Wiring of the roles that follow a log and serve what they made of it: observers and memory nodes.

When a role finds that the log is another than it has folded (a restored broker), it is built anew here and
starts from what the log says now.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from swarmd.adapters.catalog import SqliteCatalog
from swarmd.adapters.milvus_server import MilvusServer
from swarmd.adapters.milvus_store import MilvusVectorStores, Place, collection_for
from swarmd.adapters.nats_bus import patiently
from swarmd.adapters.nats_lease import NatsLease
from swarmd.adapters.probe import TelemetryProbe
from swarmd.adapters.snapshots import NatsSnapshots
from swarmd.adapters.streams import ensure_stream, memory_streams, stream_state
from swarmd.adapters.watch_matrix import NumpyWatchMatrix
from swarmd.config import Settings
from swarmd.core import subjects
from swarmd.core.errors import Fault, Rejected
from swarmd.edges.embeddings import embedder_of
from swarmd.edges.wiring import CLOCK, ENTROPY, Wire, connected, live, new_boot
from swarmd.ports import Embeddings, Pin
from swarmd.roles.memory_node import MemoryNode, MemoryPorts
from swarmd.roles.observer import Observer, ObserverPorts, ObserverSettings, load
from swarmd.roles.replica import Rewound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from swarmd.adapters.nats_connect import NatsSettings
    from swarmd.adapters.telemetry import Telemetry
    from swarmd.ports import VectorStores

log = logging.getLogger(__name__)

MEMORY_BYTES_MAX = 4 * 1024**3
CATALOG_BYTES_MAX = 4 * 1024**3
MILVUS_RETRY_MS = 2_000
#: What a store is called by that is only to be removed.
_ANY = Pin("", 1)


async def _run_until_stopped(
    wire: Wire, role: Observer | MemoryNode, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    """Run one role until `stop`; raises what ends it, `Rewound` unwrapped."""
    rewound: list[BaseException] = []
    try:
        serving = role.serving if isinstance(role, Observer) else role.ready
        await live((wire,), role, stop, ready, reconnected=role.reconnected, serving=serving)
    except* Rewound as group_of:
        rewound.extend(group_of.exceptions)
    if rewound:
        raise Rewound(str(_first(rewound[0])))


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


class ObserverOptions(Struct, frozen=True):
    """One observer process; its catalog is the file `catalog_path`."""

    swarm: str
    name: str
    catalog_path: Path
    catalog_bytes_max: int = CATALOG_BYTES_MAX
    feed: bool = False
    snapshot_commits: int = 10_000
    snapshot_ms: int = 60_000


async def run_observer(
    nats: NatsSettings, options: ObserverOptions, telemetry: Telemetry, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    """Run one observer until `stop` is set; `ready` is called whenever it has begun to answer."""
    swarm = options.swarm
    settings = ObserverSettings(swarm, options.name, options.feed, options.snapshot_commits, options.snapshot_ms)
    catalog = SqliteCatalog(options.catalog_path, options.catalog_bytes_max)
    async with connected(nats, f"observer-{options.name}", telemetry) as wire:
        ports = ObserverPorts(
            log=wire.log(subjects.log_stream(swarm)),
            bus=wire.bus,
            snapshots=NatsSnapshots(wire.bus, swarm),
            catalog=catalog,
            clock=CLOCK,
            probe=TelemetryProbe(telemetry),
            meter=telemetry,
        )
        try:
            while not stop.is_set():
                created = (await patiently(stream_state, wire.bus, subjects.log_stream(swarm)))["created"]
                state, mark = await load(swarm, f"{swarm} {created}", ports)
                try:
                    await _run_until_stopped(wire, Observer(state, mark, settings, ports), stop, ready)
                except Rewound as error:
                    log.error("%s: the observer starts anew", error)
                    await catalog.drop()
        finally:
            await catalog.close()


def offline_embeddings(spec: str, dimension: int) -> Embeddings:
    """Those of a spec that needs no settings: hashes, or a directory."""
    return embedder_of(spec, Settings(), CLOCK, dimension)


class MemoryOptions(Struct, frozen=True):
    """One memory node. Without `milvus_uri` it runs Milvus Lite as a child, with its files under `data_dir`.

    `embedder` is the spec that a new memory embeds with, `embeddings` makes those of any spec and dimension.
    """

    memory: str
    name: str
    data_dir: Path
    milvus_uri: str = ""
    milvus_token: str = ""
    log_bytes_max: int = MEMORY_BYTES_MAX
    replicas: int = 1
    embedder: str = "hash"
    embeddings: Callable[[str, int], Embeddings] = offline_embeddings


async def run_memory(
    nats: NatsSettings, options: MemoryOptions, telemetry: Telemetry, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    """Run one memory node until `stop` is set; `ready` is called whenever it is warm, or stands by."""
    memory = options.memory
    async with connected(nats, f"memory-{options.name}", telemetry) as wire:
        for config in memory_streams(memory, options.log_bytes_max, options.replicas):
            await patiently(ensure_stream, wire.bus, config)
        async with _milvus(options) as (uri, words):
            while not stop.is_set():
                created = (await patiently(stream_state, wire.bus, subjects.memory_stream(memory)))["created"]
                # A stream made anew counts from 1 again: rows of the former one must never be taken for its own.
                prefix = f"{collection_for(memory)}_{''.join(filter(str.isdigit, created))[:20]}"
                stores = MilvusVectorStores(Place(uri, prefix, options.milvus_token, words))
                try:
                    await serve_memory(wire, options, stores, telemetry, (stop, ready))
                except Rewound as error:
                    log.error("%s: the memory node starts anew", error)
                    await _forget(stores, stop)
                finally:
                    await stores.close()


async def _forget(stores: VectorStores, stop: asyncio.Event) -> None:
    """Remove stores of a log that is gone, before anything is served from them: as soon as they can be reached."""
    while not stop.is_set():
        try:
            for name in await stores.names():
                store = stores.store(name, _ANY)
                await store.drop()
                await store.close()
            return
        except Fault as error:
            log.warning("stores of a log that is gone: %s; trying again", error)
            await CLOCK.sleep(1_000)


async def serve_memory(
    wire: Wire,
    options: MemoryOptions,
    stores: VectorStores,
    telemetry: Telemetry,
    life: tuple[asyncio.Event, Callable[[], None]],
) -> None:
    """One memory node over any stores, until stopped. Raises `Rewound`."""
    boot, stream = new_boot(), subjects.memory_stream(options.memory)

    async def log_size() -> tuple[int, int]:
        state = await stream_state(wire.bus, stream)
        return state["bytes"], state["max_bytes"]

    ports = MemoryPorts(
        log=wire.log(stream),
        bus=wire.bus,
        lease=NatsLease.of_memory(wire.bus, options.memory, f"{options.name} {boot}"),
        stores=stores,
        embeddings=options.embeddings,
        spec=options.embedder,
        matrix=NumpyWatchMatrix,
        clock=CLOCK,
        entropy=ENTROPY,
        probe=TelemetryProbe(telemetry),
        meter=telemetry,
        log_size=log_size,
    )
    await _run_until_stopped(wire, MemoryNode(options.memory, options.name, boot, ports), *life)


async def _keep(server: MilvusServer) -> None:
    """Have an embedded Milvus run, however often it dies."""
    while True:
        try:
            if not server.is_started:
                await server.start()
            await server.supervise()
            return
        except (Fault, Rejected) as error:
            log.error("%s; trying again", error.message)
        await CLOCK.sleep(MILVUS_RETRY_MS)


@asynccontextmanager
async def _milvus(options: MemoryOptions) -> AsyncIterator[tuple[str, Path | None]]:
    """The address of a Milvus: the given one, or that of a child which is restarted when it dies.

    Beside it, where words are kept: a server of its own does that itself. Raises `Rejected` for what no time mends; a
    child that cannot run now is tried for as long as it takes, for writing goes on without it.
    """
    if options.milvus_uri:
        yield options.milvus_uri, None
        return
    server = MilvusServer(options.data_dir)
    try:
        await server.start()
    except Fault as error:
        log.error("%s; memories are taken, and searched once it runs", error.message)
    try:
        async with asyncio.TaskGroup() as group:
            supervising = group.create_task(_keep(server))
            try:
                yield server.uri, server.directory
            finally:
                supervising.cancel()
    finally:
        await server.stop()
