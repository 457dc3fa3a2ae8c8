"""What `swarmd bench memory` runs on: a broker, a memory node with its embedded store, and pymilvus beside them.

Everything is real: the broker syncs each commit, the node is a process as `swarmd run` starts it, what remembers are
processes of their own, and the yardstick is a second Milvus Lite of the same kind with the same rows. Must not know
what is measured.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct, field

from swarmd.adapters.milvus_server import MilvusServer
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect
from swarmd.adapters.nats_server import NatsServer
from swarmd.adapters.raw_milvus import RawMilvus
from swarmd.core.errors import Fault
from swarmd.edges.bench import cpu_s, start
from swarmd.edges.bench_memory_pour import Order, Poured
from swarmd.edges.bench_memory_texts import DIMENSION, agent_of, lines, task_of
from swarmd.edges.memory_client import MemoryClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from swarmd.core.memory_wire import MemoryStats, RecallReply, RememberRequest

MEMORY: Final = "bench"
SWARM: Final = "bench"
EMBEDDER: Final = f"hash:{DIMENSION}"
POURERS: Final = 2
PAUSE_S: Final = 0.01
#: So long the node may take over what it has been given, or to start.
CATCH_UP_S: Final = 1_200.0
STOP_S: Final = 60.0
#: A line of `Poured` has the times of all its requests.
LINE_BYTES_MAX: Final = 64 * 1024 * 1024


class Filled(Struct):
    """What became of some memories: seconds until all were acknowledged, and until all could be found."""

    count: int
    acknowledged_s: float
    searchable_s: float
    matched_s: float
    latencies_ms: list[float] = field(default_factory=list)


class Rig:
    """A running memory, whoever asks it, and the yardstick."""

    def __init__(self, stack: AsyncExitStack, folder: Path, broker: NatsServer, bus: NatsBus) -> None:
        self._stack, self._folder, self._broker = stack, folder, broker
        self.client = MemoryClient(bus, MEMORY)
        self.member = MemoryClient(bus, MEMORY, swarm=SWARM)
        self.admin = MemoryClient(bus, MEMORY, admin=True)
        self.raw: RawMilvus
        self._node: asyncio.subprocess.Process
        self._pourers: list[asyncio.subprocess.Process] = []

    # --- the node ---

    async def start_node(self) -> float:
        """Start it; seconds until it answers and is warm."""
        started = perf_counter()
        self._node = await start(self._stack, self._broker.url, self._folder, "memory", "--memory", MEMORY)
        await self._until(lambda stats: stats.warm and stats.applied >= stats.seq)
        return perf_counter() - started

    async def stop_node(self) -> None:
        """End it in order."""
        self._node.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await self._node.wait()
        except TimeoutError:
            raise Fault("bench", f"the memory node did not end within {STOP_S:.0f} s") from None

    async def _until(self, reached: Any) -> MemoryStats:
        try:
            async with asyncio.timeout(CATCH_UP_S):
                while True:
                    stats = await self.client.stats()
                    if reached(stats):
                        return stats
                    await asyncio.sleep(PAUSE_S)
        except TimeoutError:
            raise Fault("bench", f"the memory node did not catch up within {CATCH_UP_S:.0f} s: {stats}") from None

    def pids(self) -> dict[str, list[int]]:
        """Processes by kind."""
        below = _descendants(self._node.pid)
        milvus = [pid for pid in below if b"milvus_lite" in _command(pid)]
        return {
            "broker": [self._broker.pid],
            "node": [self._node.pid, *(pid for pid in below if pid not in milvus)],
            "milvus": milvus,
            "clients": [process.pid for process in self._pourers],
        }

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds used so far, by kind."""
        return {kind: sum(map(cpu_s, pids)) for kind, pids in self.pids().items()}

    def mib(self) -> dict[str, float]:
        """Resident memory, by kind."""
        return {kind: round(sum(map(_rss_bytes, pids)) / 1024**2, 1) for kind, pids in self.pids().items()}

    # --- asking it ---

    async def recall(self, text: str, caller: int | None = None, **fields: Any) -> RecallReply:
        """As a client, or on behalf of a task of an agent: another one for each number."""
        if caller is None:
            return await self.client.recall(text, **fields)
        return await self.member.recall(text, agent=agent_of(caller), task=task_of(caller), **fields)

    async def prepare(self, memories: Sequence[RememberRequest]) -> None:
        """Start the processes that remember these."""
        file = self._folder / "requests"
        await asyncio.to_thread(file.write_bytes, lines(memories))
        for _ in range(POURERS):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "swarmd.edges.bench_memory_pour"),
                *(self._broker.url, MEMORY, SWARM, str(file)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LINE_BYTES_MAX,
            )
            self._stack.push_async_callback(_end, process)
            self._pourers.append(process)
        for process in self._pourers:
            await _line(process)

    async def fill(self, span: tuple[int, int], in_flight: int, batch: int = 1) -> Filled:
        """Remember memories `span[0]` up to `span[1]`, shared among the clients, and wait until all can be found."""
        (first, last), count = span, len(self._pourers)
        cuts = [first + (last - first) * share // count for share in range(count + 1)]
        started = perf_counter()
        for process, low, high in zip(self._pourers, cuts, cuts[1:], strict=False):
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(Order(low, high, max(1, in_flight // count), batch)) + b"\n")
        poured = [msgspec.json.decode(await _line(process), type=Poured) for process in self._pourers]
        acknowledged_s = perf_counter() - started
        errors = [one.error for one in poured if one.error]
        acknowledged = sum(one.acknowledged for one in poured)
        if errors or acknowledged != last - first:
            raise Fault("bench", f"{acknowledged} of {last - first} memories were acknowledged: {errors or 'no error'}")
        end = (await self.client.stats()).seq
        await self._until(lambda stats: stats.applied >= end)
        searchable_s = perf_counter() - started
        await self._until(lambda stats: stats.matched >= end)
        latencies = sorted(latency for one in poured for latency in one.latencies_ms)
        return Filled(last - first, acknowledged_s, searchable_s, perf_counter() - started, latencies)


@asynccontextmanager
async def a_rig() -> AsyncIterator[Rig]:
    """A broker in a directory of its own, an empty memory node that is warm, and pymilvus; all gone afterwards."""
    os.environ["SWARMD_MEMORY_EMBEDDER"] = EMBEDDER
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swarmd-bench-")))
        broker, yardstick = NatsServer(folder), MilvusServer(folder / "yardstick")
        async with asyncio.TaskGroup() as group:
            group.create_task(broker.start())
            group.create_task(yardstick.start())
            stack.push_async_callback(broker.stop)
            stack.push_async_callback(yardstick.stop)
        connection = await connect(NatsSettings(url=broker.url), "bench")
        stack.push_async_callback(connection.close)
        rig = Rig(stack, folder, broker, NatsBus(connection))
        rig.raw = await asyncio.to_thread(RawMilvus, yardstick.uri)
        stack.callback(rig.raw.close)
        yield rig


async def _line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise Fault("bench", "a client process ended; its error is above")
    return line


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


def _descendants(pid: int) -> list[int]:
    """The processes below this one (Linux)."""
    below: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
            below.setdefault(parent, []).append(int(folder.name))
    found = list(below.get(pid, ()))
    for child in found:  # grows while it is walked
        found += below.get(child, ())
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def _rss_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return 0
