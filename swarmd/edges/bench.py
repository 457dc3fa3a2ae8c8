"""`swarmd bench`: what this machine does, from a submission at the client to the outcome at the client.

Everything is real: an embedded broker on the disk, one orchestrator, worker nodes in processes of their own,
the agent `echo`, which returns its input at once. Rates are compared within one run only; the CPU time per task
of every process says what bounds them.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter  # the loop's own clock counts milliseconds under uvloop
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw, Struct

from swarmd.adapters.jetstream import JetStreamLog
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect
from swarmd.adapters.nats_server import NatsServer
from swarmd.adapters.streams import ensure_stream
from swarmd.core import subjects
from swarmd.core.errors import Fault, Rejected
from swarmd.core.wire import Submission, SwarmStatus
from swarmd.edges.client import Client, Handle

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Iterator

SWARM: Final = "bench"
BATCH: Final = 256
READY_S: Final = 60.0
RAW_MESSAGES: Final = 3_000
RAW_IN_FLIGHT: Final = 256
EVENTS_PER_TASK: Final = 3
INPUT: Final = Raw(b'{"n":1}')


class Shape(Struct, frozen=True):
    """What a measurement runs: `processes` worker processes with `nodes` worker nodes among them."""

    nodes: int
    processes: int
    capacity: int
    observer: bool
    sync_always: bool = True


class Rig:
    """One running swarm and its client."""

    def __init__(self, client: Client, bus: NatsBus, pids: dict[str, list[int]]) -> None:
        self.client, self.bus, self.pids = client, bus, pids

    async def status(self) -> SwarmStatus:
        """The swarm as its leader sees it."""
        answer = await self.bus.request(subjects.ctl(SWARM, "status"), b"", 5_000)
        return msgspec.json.decode(answer, type=SwarmStatus)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds used so far, by kind of process."""
        return {kind: sum(map(cpu_s, pids)) for kind, pids in self.pids.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench throughput` and `bench latency`."""
    parser.add_argument(
        "--tasks", type=int, default=None, help="tasks per measurement (throughput 50000, latency 1000)"
    )
    parser.add_argument("--nodes", type=int, default=50, help="worker nodes (default: 50)")
    parser.add_argument("--processes", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument("--capacity", type=int, default=64, help="slots per worker node (default: 64)")
    parser.add_argument("--in-flight", type=int, default=4096, help="throughput: tasks without an outcome at a time")
    parser.add_argument("--repeat", type=int, default=3, help="throughput: measurements, of which the median counts")
    parser.add_argument("--pairs", type=int, default=0, help="throughput: interleaved pairs with the broker's own sync")
    parser.add_argument("--observer", action="store_true", help="run an observer (catalog, snapshots) as well")


async def run(args: argparse.Namespace) -> int:
    """Measure and print; one JSON object with `--json`."""
    if min(args.nodes, args.processes, args.capacity, args.in_flight, args.repeat) < 1 or (args.tasks or 1) < 1:
        raise Rejected("bad_usage", "tasks, nodes, processes, capacity, in-flight and repeat must be at least 1")
    if args.nodes < args.processes:
        raise Rejected("bad_usage", f"{args.processes} processes need at least as many nodes, not {args.nodes}")
    shape = Shape(args.nodes, args.processes, args.capacity, args.observer)
    load = os.getloadavg()[0]
    result = await (_throughput(args, shape) if args.measure == "throughput" else _latency(args, shape))
    result["load_before"] = round(load, 2)
    if getattr(args, "json", False):
        print(msgspec.json.encode(result).decode())
    else:
        for name, value in result.items():
            print(f"{name:24} {value}")
    return 0


# --- what is measured ------------------------------------------------------------------------------


async def _throughput(args: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    tasks = args.tasks or 50_000
    rates: list[float] = []
    async with a_rig(shape) as rig:
        await _push(rig, min(tasks, 4_000), args.in_flight)
        raw = await _raw_publish_per_s(rig.bus)
        before = rig.cpu_s()
        for _ in range(args.repeat):
            rates.append(await _push(rig, tasks, args.in_flight))
            progress(f"{rates[-1]:,.0f} tasks/s")
        after = rig.cpu_s()
    rate = statistics.median(rates)
    result = {
        "tasks_per_s": round(rate),
        "events_per_s": round(rate * EVENTS_PER_TASK),
        "raw_publish_per_s": round(raw),
        "tasks": tasks,
        "rates": [round(r) for r in rates],
        "cpu_us_per_task": {
            kind: round((after[kind] - before[kind]) / (tasks * args.repeat) * 1e6, 1) for kind in after
        },
    } | _about(shape)
    if args.pairs:
        result |= await _pairs(args, shape, tasks)
    return result


async def _pairs(args: argparse.Namespace, shape: Shape, tasks: int) -> dict[str, Any]:
    """The rate with fsync against the broker's default, interleaved, each on a fresh broker."""
    ratios: list[float] = []
    for pair in range(args.pairs):
        rates: dict[bool, float] = {}
        for always in (True, False) if pair % 2 == 0 else (False, True):
            async with a_rig(msgspec.structs.replace(shape, sync_always=always)) as rig:
                await _push(rig, min(tasks, 4_000), args.in_flight)
                rates[always] = await _push(rig, tasks, args.in_flight)
        ratios.append(rates[True] / rates[False])
        progress(f"pair {pair + 1}: {rates[True]:,.0f} with fsync, {rates[False]:,.0f} without")
    return {
        "ratio_to_default_sync": round(statistics.median(ratios), 3),
        "ratios_to_default_sync": [round(ratio, 3) for ratio in ratios],
    }


async def _latency(args: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    """One task at a time."""
    count = args.tasks or 1_000
    async with a_rig(shape) as rig:
        samples: list[float] = []
        for number in range(count + 50):
            started = perf_counter()
            await rig.client.run("echo", number)
            if number >= 50:
                samples.append((perf_counter() - started) * 1000)
        append_ms = await _append_ms(rig.bus)
    cuts = statistics.quantiles(samples, n=100) if len(samples) > 1 else samples * 99
    return {
        "p50_ms": round(cuts[49], 3),
        "p90_ms": round(cuts[89], 3),
        "p99_ms": round(cuts[98], 3),
        "max_ms": round(max(samples), 3),
        "one_append_p50_ms": round(append_ms, 3),
        "tasks": count,
    } | _about(shape)


def _about(shape: Shape) -> dict[str, Any]:
    return {
        "agent": "echo",
        "nodes": shape.nodes,
        "processes": shape.processes,
        "capacity": shape.capacity,
        "sync": "always" if shape.sync_always else "default",
        "observers": ["observer"] if shape.observer else [],
        "cpus": os.cpu_count(),
    }


async def _push(rig: Rig, tasks: int, in_flight: int) -> float:
    """Submit `tasks` tasks, never more than `in_flight` without an outcome; tasks per second."""
    batches = deque([BATCH] * (tasks // BATCH) + ([tasks % BATCH] if tasks % BATCH else []))

    async def feed() -> None:
        while batches:
            size = batches.popleft()
            wanted = (Submission(agent="echo", input=INPUT) for _ in range(size))
            for handle in await rig.client.submit_many(wanted):
                if not isinstance(handle, Handle):
                    raise handle
                outcome = await rig.client.outcome(handle)
                if outcome.state != "completed":
                    raise Fault("bench", f"task {outcome.task} ended {outcome.state}")

    started = perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(max(1, in_flight // BATCH)):
            group.create_task(feed())
    return tasks / (perf_counter() - started)


async def _raw_publish_per_s(bus: NatsBus) -> float:
    """One message an event, each with its own receipt: what the same broker does without packing."""
    log, numbers = await _scratch_log(bus), iter(range(RAW_MESSAGES))
    started = perf_counter()

    async def publish() -> None:
        for number in numbers:
            await log.append(f"raw.bench.{number % 8}", b"x" * 300, f"raw.{number}", 0)

    async with asyncio.TaskGroup() as group:
        for _ in range(RAW_IN_FLIGHT):
            group.create_task(publish())
    return RAW_MESSAGES / (perf_counter() - started)


async def _append_ms(bus: NatsBus) -> float:
    """The median time from one lone message to its receipt."""
    log, samples = await _scratch_log(bus), []
    for number in range(300):
        started = perf_counter()
        await log.append("raw.bench.0", b"x" * 300, f"lone.{number}", 0)
        samples.append((perf_counter() - started) * 1000)
    return statistics.median(samples)


async def _scratch_log(bus: NatsBus) -> JetStreamLog:
    config = {"name": "RAW_bench", "subjects": ["raw.bench.*"], "storage": "file", "retention": "limits"}
    await ensure_stream(bus, config)
    return JetStreamLog(bus, "RAW_bench")


# --- what it runs on -------------------------------------------------------------------------------


@asynccontextmanager
async def a_rig(shape: Shape, agents: str = "swarmd.agents") -> AsyncIterator[Rig]:
    """A broker in a directory of its own, the roles as processes, and a connected client; all gone afterwards."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swarmd-bench-")))
        server = NatsServer(folder, sync_always=shape.sync_always)
        await server.start()
        stack.push_async_callback(server.stop)
        pids = {"broker": [server.pid], "client": [os.getpid()]}
        pids["orchestrator"] = [await spawn(stack, server.url, folder, "orchestrator")]
        pids["workers"] = []
        for number, nodes in enumerate(_shares(shape.nodes, shape.processes)):
            extra = ["--name", f"w{number}", "--nodes", str(nodes), "--capacity", str(shape.capacity)]
            pids["workers"].append(await spawn(stack, server.url, folder, "worker", *extra, "--agents", agents))
        if shape.observer:
            pids["observer"] = [await spawn(stack, server.url, folder, "observer")]
        connection = await connect(NatsSettings(url=server.url), "bench")
        stack.push_async_callback(connection.close)
        bus = NatsBus(connection)
        await wait_members(bus, shape.nodes)
        client = await stack.enter_async_context(Client.over(bus, SWARM))
        yield Rig(client, bus, pids)


def _shares(nodes: int, processes: int) -> Iterator[int]:
    for number in range(processes):
        yield nodes // processes + (number < nodes % processes)


async def spawn(stack: AsyncExitStack, url: str, folder: Path, role: str, *extra: str, swarm: str = SWARM) -> int:
    """One role as a process; its pid once it is ready."""
    return (await start(stack, url, folder, role, *extra, swarm=swarm)).pid


async def start(
    stack: AsyncExitStack, url: str, folder: Path, role: str, *extra: str, swarm: str = SWARM
) -> asyncio.subprocess.Process:
    """One role as a process, which is ready; it is killed with the stack, unless it has ended by then."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "swarmd", "run", role, "--swarm", swarm, "--nats", url, "--data", str(folder),
        "--log-level", "error", "--parent", str(os.getpid()), *extra,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    stack.push_async_callback(_end, process)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_S):
            line = await process.stdout.readline()
    except TimeoutError:
        line = b""
    if not line:
        raise Fault("not_ready", f"the {role} did not get ready within {READY_S:.0f} s; its error is above")
    return process


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


async def wait_members(bus: NatsBus, nodes: int) -> None:
    try:
        async with asyncio.timeout(READY_S):
            while True:
                try:
                    answer = await bus.request(subjects.ctl(SWARM, "status"), b"", 1_000)
                    if msgspec.json.decode(answer, type=SwarmStatus).crew.members >= nodes:
                        return
                except Fault:
                    pass  # nobody leads yet
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise Fault("not_ready", f"{nodes} worker nodes did not join within {READY_S:.0f} s") from None


def cpu_s(pid: int) -> float:
    """User and system time of a process (Linux)."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
