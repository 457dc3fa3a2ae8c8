"""`swarmd bench scale`: thousands of worker nodes in the swarms of one hive, compared with one flat swarm.

Everything is real: a broker that syncs each commit, and each role a process of its own, as `swarmd run` starts it. A
swarm is an orchestrator, a worker process with its share of the nodes, and a delegate; each node is a member with
subjects of its own. Hive and flat swarm run one after the other on this machine, so only their ratio means anything.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw, Struct

from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect
from swarmd.adapters.nats_server import NatsServer
from swarmd.adapters.streams import stream_state
from swarmd.core import subjects
from swarmd.core.errors import Fault, Rejected
from swarmd.core.wire import Members, NodeStatus, SwarmStatus
from swarmd.edges.bench import cpu_s, progress, spawn
from swarmd.edges.client import Client

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

AGENTS: Final = "swarmd.edges.bench_scale_agents"
HIVE: Final = "hive"
FLAT: Final = "flat"
#: How many processes start at once.
STARTING: Final = 4
JOIN_S: Final = 300.0
ASKED: Final = 200
#: Every swarm reserves room for its stores; seventeen of the usual size would not fit on most disks.
LIMITS: Final = {"SWARMD_LIMITS_LOG_BYTES_MAX": str(1 << 30), "SWARMD_LIMITS_BLOB_BYTES_MAX": str(64 << 20)}


#: A process: its name here, its swarm, and what `swarmd run` is given.
Wanted = tuple[str, str, tuple[str, ...]]


class Shape(Struct, frozen=True):
    """`nodes` worker nodes of `capacity` slots in the children of a hive; in one flat swarm where `swarms` is 0.

    `workers` is the number of worker processes of a flat swarm.
    """

    nodes: int
    swarms: int
    workers: int
    capacity: int

    def children(self) -> list[str]:
        """The names of the hive's swarms."""
        return [f"s{number:02}" for number in range(self.swarms)]


class Fleet:
    """The processes of one arrangement, and a client of the swarm at its top."""

    def __init__(self, shape: Shape, top: str, bus: NatsBus, client: Client, pids: dict[str, int]) -> None:
        self.shape, self.top, self.bus, self.client, self.pids = shape, top, bus, client, pids
        self.joined_s = 0.0

    def cpu(self) -> dict[str, float]:
        """CPU seconds of each process."""
        return {name: cpu_s(pid) for name, pid in self.pids.items()}

    def mib(self) -> dict[str, float]:
        """Memory by kind of process: proportional, so that what processes share counts once."""
        found: dict[str, float] = defaultdict(float)
        for name, pid in self.pids.items():
            found[_kind(name)] += _pss_kib(pid) / 1024
        return {kind: round(size, 1) for kind, size in found.items()}

    def swarms(self) -> list[str]:
        """The swarms that have worker nodes."""
        return self.shape.children() or [self.top]

    async def status(self, swarm: str) -> SwarmStatus:
        """A swarm as its leader sees it."""
        answer = await self.bus.request(subjects.ctl(swarm, "status"), b"", 10_000)
        return msgspec.json.decode(answer, type=SwarmStatus)

    async def logs(self) -> tuple[int, int]:
        """What the logs of all swarms hold: bytes and commits."""
        states = [await stream_state(self.bus, subjects.log_stream(name)) for name in {self.top, *self.swarms()}]
        return sum(int(state["bytes"]) for state in states), sum(int(state["messages"]) for state in states)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench scale`."""
    parser.add_argument("--nodes", type=int, default=2_000, help="worker nodes (default: 2000)")
    parser.add_argument("--swarms", type=int, default=16, help="swarms in the hive (default: 16)")
    parser.add_argument("--tasks", type=int, default=20_000, help="sub-tasks of the macro-task (default: 20000)")
    parser.add_argument("--capacity", type=int, default=4, help="slots per worker node (default: 4)")
    parser.add_argument("--workers", type=int, default=4, help="worker processes of the flat swarm (default: 4)")
    parser.add_argument("--repeat", type=int, default=3, help="macro-tasks, of which the median counts (default: 3)")
    parser.add_argument("--idle-s", type=float, default=10.0, help="how long idle processes are watched (default: 10)")
    parser.add_argument("--more-nodes", type=int, default=5_000, help="measured after that (default: 5000; 0: not)")


async def run(args: argparse.Namespace) -> int:
    """Measure and print; one JSON object with `--json`."""
    if min(args.nodes, args.swarms, args.tasks, args.capacity, args.workers, args.repeat) < 1 or args.idle_s <= 0:
        raise Rejected("bad_usage", "nodes, swarms, tasks, capacity, workers, repeat and idle-s must be more than 0")
    if args.nodes < max(args.swarms, args.workers) or 0 < args.more_nodes < args.nodes:
        raise Rejected(
            "bad_usage", "there must be at least as many nodes as swarms and workers, and more of more-nodes"
        )
    os.environ.update(LIMITS)
    result: dict[str, Any] = {"cpus": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)}
    result |= {"nodes": args.nodes, "swarms": args.swarms, "tasks": args.tasks, "capacity": args.capacity}
    result |= await _compared(args, args.nodes)
    if args.more_nodes:
        result["more"] = {"nodes": args.more_nodes} | await _compared(args, args.more_nodes)
        result["kb_per_further_node"] = _per_further_node(result, args)
    if getattr(args, "json", False):
        print(msgspec.json.encode(result).decode())
    else:
        print(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    return 0


async def _compared(args: argparse.Namespace, nodes: int) -> dict[str, Any]:
    """The flat swarm, then the hive, with so many nodes."""
    found: dict[str, Any] = {}
    for name, swarms in (("flat", 0), ("hive", args.swarms)):
        async with a_fleet(Shape(nodes, swarms, args.workers, args.capacity)) as fleet:
            progress(f"{name}: {nodes} nodes joined in {fleet.joined_s:.1f} s, {len(fleet.pids)} processes")
            found[name] = await _measured(fleet, args)
    flat, hive = found["flat"], found["hive"]
    for macro in ("direct", "sections"):
        rate = found[f"ratio_{macro}"] = round(hive[macro]["tasks_per_s"] / flat[macro]["tasks_per_s"], 3)
        spent = [sum(one[macro]["cpu_us_per_task"].values()) for one in (flat, hive)]
        cpu = found[f"cpu_ratio_{macro}"] = round(spent[1] / spent[0], 3) if spent[0] else 0.0
        progress(
            f"{macro}: the hive has {rate} of the flat swarm's rate, and takes {cpu} of its CPU time for each task"
        )
    return found


async def _measured(fleet: Fleet, args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"joined_s": round(fleet.joined_s, 1), "processes": len(fleet.pids)}
    found |= await _idle(fleet, args.idle_s)
    found["asked"] = await _ask_nodes(fleet)
    names = fleet.shape.children()
    for macro, sections in (("direct", None), ("sections", names or [""] * args.swarms)):
        runs = [await _macro(fleet, args.tasks, sections) for _ in range(args.repeat)]
        found[macro] = sorted(runs, key=lambda run: float(run["took_s"]))[len(runs) // 2]
        found[macro]["rates"] = [run["tasks_per_s"] for run in runs]
        progress(f"  {macro}: {found[macro]['tasks_per_s']:,} sub-tasks/s; busiest {found[macro]['busiest'][0]}")
    return found


# --- what is measured ------------------------------------------------------------------------------


async def _idle(fleet: Fleet, idle_s: float) -> dict[str, Any]:
    """What it costs that everything is there and nothing happens."""
    before, started = fleet.cpu(), perf_counter()
    await asyncio.sleep(idle_s)
    shares = _by_kind(_difference(before, fleet.cpu()), perf_counter() - started)
    memory = fleet.mib()
    progress(f"  idle: {sum(shares.values()):.3f} of a processor, {sum(memory.values()):,.0f} MiB")
    return {
        "idle_cpu_share": round(sum(shares.values()), 4),
        "idle_cpu_share_of": {kind: round(share, 4) for kind, share in shares.items()},
        "mib": round(sum(memory.values()), 1),
        "mib_of": memory,
        "kb_per_node": round(sum(memory.values()) * 1024 / fleet.shape.nodes, 1),
    }


async def _ask_nodes(fleet: Fleet) -> dict[str, Any]:
    """Nodes of every swarm asked one by one on their own subjects; each must answer for itself."""
    nodes: list[tuple[str, str]] = []
    for swarm in fleet.swarms():
        page = await fleet.bus.request(subjects.ctl(swarm, "members"), b"", 10_000)
        found = msgspec.json.decode(page, type=Members).members
        nodes += [(swarm, member.node) for member in found[: max(1, ASKED // len(fleet.swarms()))]]
    started = perf_counter()
    for swarm, node in nodes:
        answer = await fleet.bus.request(subjects.node(swarm, node, "ping"), b"", 5_000)
        if msgspec.json.decode(answer, type=NodeStatus).node != node:
            raise Fault("bench", f"another node answers for {node}")
    return {"nodes": len(nodes), "mean_ms": round((perf_counter() - started) / len(nodes) * 1000, 2)}


async def _macro(fleet: Fleet, tasks: int, sections: list[str] | None) -> dict[str, Any]:
    """One task that has `tasks` sub-tasks, itself or through one section for each swarm."""
    wanted: dict[str, Any] = {"count": tasks}
    if sections is not None:
        wanted["sections"] = sections
    before, (size, commits), started = fleet.cpu(), await fleet.logs(), perf_counter()
    at_top = {"at": "top"} if fleet.shape.swarms else {}
    handle = await fleet.client.submit("macro", wanted, requires=at_top)
    outcome = await fleet.client.outcome(handle)
    took_s = perf_counter() - started
    if outcome.state != "completed":
        raise Fault("bench", f"the macro-task ended {outcome.state}: {outcome.error}")
    total = msgspec.json.decode(outcome.output) if isinstance(outcome.output, Raw) else None
    if total != tasks * (tasks - 1) // 2:
        raise Fault("bench", f"the macro-task of {tasks} gathered {total}")
    used, (size_after, commits_after) = _difference(before, fleet.cpu()), await fleet.logs()
    busiest = sorted(used.items(), key=lambda entry: -entry[1])[:5]
    return {
        "tasks_per_s": round(tasks / took_s),
        "took_s": round(took_s, 2),
        "attempts": outcome.attempts,
        "log_bytes_per_task": round((size_after - size) / tasks),
        "commits_per_task": round((commits_after - commits) / tasks, 4),
        "cpu_us_per_task": {kind: round(spent / tasks * 1e6, 1) for kind, spent in _by_kind(used, 1).items()},
        "busiest": [[name, round(spent / took_s, 3)] for name, spent in busiest],
        "cpu_share": round(sum(used.values()) / took_s, 3),
    }


def _difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}


def _kind(name: str) -> str:
    """A process is named by its kind and its swarm."""
    return name.partition(" ")[0]


def _by_kind(used: dict[str, float], per: float) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for name, spent in used.items():
        found[_kind(name)] += spent / per
    return dict(found)


def _per_further_node(result: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """What each node beyond the first measurement takes, all processes together."""
    more = args.more_nodes - args.nodes
    return {
        name: round((result["more"][name]["mib"] - result[name]["mib"]) * 1024 / more, 2) if more else 0.0
        for name in ("flat", "hive")
    }


def _pss_kib(pid: int) -> int:
    """Proportional memory of a process (Linux)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise Fault("bench", f"process {pid} does not say how much memory it takes")


# --- what it runs on -------------------------------------------------------------------------------


@asynccontextmanager
async def a_fleet(shape: Shape) -> AsyncIterator[Fleet]:
    """A broker and every role as a process; all nodes have joined, and a hive knows what its swarms can run."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swarmd-scale-")))
        server = NatsServer(folder)
        await server.start()
        stack.push_async_callback(server.stop)
        started = perf_counter()
        starter = _Starter(stack, server.url, folder)
        starter.pids = {"broker": server.pid, "client": os.getpid()}
        top = HIVE if shape.swarms else FLAT
        await starter.all([(f"orchestrator {name}", name, ("orchestrator",)) for name in (top, *shape.children())])
        await starter.all(_workers(shape, top))
        connection = await connect(NatsSettings(url=server.url), "bench")
        stack.push_async_callback(connection.close)
        bus = NatsBus(connection)
        client = await stack.enter_async_context(Client.over(bus, top))
        fleet = Fleet(shape, top, bus, client, starter.pids)
        await _joined(fleet)
        fleet.joined_s = perf_counter() - started
        yield fleet


def _workers(shape: Shape, top: str) -> list[Wanted]:
    """Worker processes and delegates: name, swarm, and what `swarmd run` is given."""
    hosts = shape.children() or [top] * shape.workers
    wanted: list[Wanted] = []
    for number, swarm in enumerate(hosts):
        nodes = shape.nodes // len(hosts) + (number < shape.nodes % len(hosts))
        crew = ("--nodes", str(nodes), "--capacity", str(shape.capacity), "--agents", AGENTS)
        name = f"w{number}"
        wanted.append((f"workers {swarm}.{name}", swarm, ("worker", "--name", name, *crew)))
    slots = str(shape.nodes * shape.capacity)
    for child in shape.children():
        wanted.append((f"delegates {child}", top, ("delegate", "--child", child, "--capacity", slots)))
    if shape.swarms:
        one = ("--nodes", "1", "--capacity", "2", "--agents", AGENTS, "--label", "at=top")
        wanted.append((f"top-worker {top}", top, ("worker", "--name", "top", *one)))
    return wanted


class _Starter:
    """Starts processes, a few at a time."""

    def __init__(self, stack: AsyncExitStack, url: str, folder: Path) -> None:
        self._stack, self._url, self._folder = stack, url, folder
        self._seats = asyncio.Semaphore(STARTING)
        self.pids: dict[str, int] = {}

    async def all(self, wanted: list[Wanted]) -> None:
        """Start these, and wait until they are ready."""
        async with asyncio.TaskGroup() as group:
            for name, swarm, flags in wanted:
                group.create_task(self._one(name, swarm, flags))

    async def _one(self, name: str, swarm: str, flags: tuple[str, ...]) -> None:
        async with self._seats:
            self.pids[name] = await spawn(self._stack, self._url, self._folder, *flags, swarm=swarm)


async def _joined(fleet: Fleet) -> None:
    """Until each swarm has its nodes, and the hive offers the slots of all of them."""
    try:
        async with asyncio.timeout(JOIN_S):
            while not await _is_complete(fleet):  # noqa: ASYNC110  # of other processes
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise Fault("not_ready", f"{fleet.shape.nodes} worker nodes did not join within {JOIN_S:.0f} s") from None


async def _is_complete(fleet: Fleet) -> bool:
    nodes = sum([await _working(fleet, swarm) for swarm in fleet.swarms()])
    if nodes < fleet.shape.nodes or not fleet.shape.swarms:
        return nodes >= fleet.shape.nodes
    hive = await _status(fleet, HIVE)
    slots = fleet.shape.nodes * fleet.shape.capacity
    return hive is not None and hive.crew.working > fleet.shape.swarms and hive.crew.slots >= slots


async def _working(fleet: Fleet, swarm: str) -> int:
    status = await _status(fleet, swarm)
    return status.crew.working if status is not None else 0


async def _status(fleet: Fleet, swarm: str) -> SwarmStatus | None:
    try:
        return await fleet.status(swarm)
    except Fault:
        return None  # nobody leads yet
