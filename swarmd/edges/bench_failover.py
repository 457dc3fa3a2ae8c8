"""`swarmd bench failover`: how long work stands still when a process is killed, and who is given up by mistake.

Everything is real: an embedded broker that syncs each commit to the disk, two orchestrators, three workers in processes
of their own. Times are taken where the log is read, from the signal to the event that ends the standstill.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import tempfile
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw

from swarmd.adapters.jetstream import JetStreamLog
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect
from swarmd.adapters.nats_server import NatsServer
from swarmd.core import subjects
from swarmd.core.codec import Codec, Commit, Record
from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import Assigned, Elected, Event, MemberLost, Stepped
from swarmd.core.wire import Submission
from swarmd.edges.bench import BATCH, INPUT, SWARM, progress, spawn, wait_members
from swarmd.edges.client import Client, Handle

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Callable

AGENTS: Final = ("--agents", "swarmd.edges.bench_agents", "--agents", "swarmd.agents")
SHAPE: Final = ("--nodes", "1", "--capacity", "16")
WORKERS: Final = 3
TASKS: Final = 24
BACKLOG: Final = 1_000
LOOK_S: Final = 0.005
GIVE_UP_S: Final = 60.0
#: What an attempt does that is killed: so long that it is under way then, and resumed with some steps behind it.
LONG: Final = Raw(b'{"steps":150,"pause_ms":20}')
SHORT: Final = Raw(b'{"steps":1,"pause_ms":100}')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench failover`."""
    parser.add_argument("--worker-kills", type=int, default=25, help="SIGKILLs of a busy worker (default: 25)")
    parser.add_argument("--leader-kills", type=int, default=15, help="SIGKILLs of the leader (default: 15)")
    parser.add_argument("--leader-stops", type=int, default=15, help="SIGTERMs of the leader (default: 15)")
    parser.add_argument("--full-s", type=int, default=20, help="seconds at full load, to count false deaths (20)")


async def run(args: argparse.Namespace) -> int:
    """Measure and print; one JSON object with `--json`. Raises `Fault` if a task is lost or nobody takes over."""
    if min(args.worker_kills, args.leader_kills, args.leader_stops, args.full_s) < 0:
        raise Rejected("bad_usage", "no number may be negative")
    load = os.getloadavg()[0]
    async with a_swarm() as swarm:
        result = await _kill_workers(swarm, args.worker_kills)
        result |= await _replace_leaders(swarm, args.leader_kills, signal.SIGKILL, "leader_kill")
        result |= await _replace_leaders(swarm, args.leader_stops, signal.SIGTERM, "leader_stop")
        result |= await _full_load(swarm, args.full_s)  # last: whoever starts after it has a long log to fold
        result |= {"tasks": swarm.completed, "false_deaths": len(swarm.watch.lost - swarm.killed)}
    result |= {"workers": WORKERS, "sync": "always", "cpus": os.cpu_count(), "load_before": round(load, 2)}
    if getattr(args, "json", False):
        print(msgspec.json.encode(result).decode())
    else:
        for name, value in result.items():
            print(f"{name:24} {value}")
    return 0


# --- what the log says, and when -------------------------------------------------------------------


class Watch:
    """Follows the log and notes when it read what; times are of `perf_counter`."""

    def __init__(self) -> None:
        self._codec = Codec()
        self.first_step: dict[tuple[str, int], float] = {}
        self.given_to: dict[str, tuple[int, str]] = {}
        self.first_assigned: dict[int, float] = {}
        self.leaders: dict[int, str] = {}
        self.term = self.assigned = 0
        self.lost: set[str] = set()

    async def take(self, records: list[Record]) -> None:
        now = perf_counter()
        for record in records:
            commit = self._codec.decode(record)
            if isinstance(commit, Commit):
                for event in commit.events:
                    if isinstance(event, Event):
                        self._note(commit, event, now)

    def _note(self, commit: Commit, event: Event, now: float) -> None:
        match event.data:
            case Stepped(epoch=epoch):
                self.first_step.setdefault((event.subject, epoch), now)
            case Assigned(term=term, epoch=epoch, member=member) if term == self.term:
                self.given_to[event.subject] = (epoch, member)
                self.first_assigned.setdefault(term, now)
                self.assigned += 1
            case Elected(term=term) if term > self.term:
                self.term = term
                self.leaders[term] = commit.writer
            case MemberLost(term=term, member=member) if term == self.term:
                self.lost.add(member)

    async def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait for something; raises `Fault("bench")` when it does not come about."""
        ends = perf_counter() + GIVE_UP_S
        while not holds():  # times are noted where the log is read, not here
            if perf_counter() > ends:
                raise Fault("bench", f"{what}: not within {GIVE_UP_S:.0f} s")
            await asyncio.sleep(LOOK_S)


# --- the swarm -------------------------------------------------------------------------------------


class Swarm:
    """Orchestrators and workers that can be signalled and started again."""

    def __init__(self, stack: AsyncExitStack, server: NatsServer, folder: Path) -> None:
        self._stack, self._server, self._folder = stack, server, folder
        self.watch = Watch()
        self.client: Client
        self.bus: NatsBus
        self.pids: dict[str, int] = {}
        self.killed: set[str] = set()
        self.completed = 0

    async def start(self, role: str, name: str) -> None:
        extra = (*AGENTS, *SHAPE) if role == "worker" else ()
        self.pids[name] = await spawn(self._stack, self._server.url, self._folder, role, "--name", name, *extra)

    async def submit(self, agent: str, wanted: Raw, count: int) -> list[Handle]:
        """Submit so many equal tasks; raises what the swarm refuses them with."""
        handles = await self.client.submit_many([Submission(agent=agent, input=wanted) for _ in range(count)])
        for handle in handles:
            if not isinstance(handle, Handle):
                raise handle
        return [handle for handle in handles if isinstance(handle, Handle)]

    async def finish(self, handles: list[Handle]) -> None:
        """Every task must end well."""
        for handle in handles:
            outcome = await self.client.outcome(handle)
            if outcome.state != "completed":
                raise Fault("bench", f"task {outcome.task} ended {outcome.state}")
        self.completed += len(handles)


@asynccontextmanager
async def a_swarm() -> AsyncIterator[Swarm]:
    """A broker in a directory of its own, two orchestrators, the workers, and a client; all gone afterwards."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swarmd-bench-")))
        server = NatsServer(folder, sync_always=True)
        await server.start()
        stack.push_async_callback(server.stop)
        swarm = Swarm(stack, server, folder)
        for name in ("o0", "o1"):
            await swarm.start("orchestrator", name)
        for number in range(WORKERS):
            await swarm.start("worker", f"w{number}")
        connection = await connect(NatsSettings(url=server.url), "bench")
        stack.push_async_callback(connection.close)
        swarm.bus = NatsBus(connection)
        await wait_members(swarm.bus, WORKERS)
        swarm.client = await stack.enter_async_context(Client.over(swarm.bus, SWARM))
        async with asyncio.TaskGroup() as group:
            log = JetStreamLog(swarm.bus, subjects.log_stream(SWARM))
            following = group.create_task(log.follow(0, swarm.watch.take))
            await swarm.watch.until("somebody leads", lambda: swarm.watch.term > 0)
            yield swarm
            following.cancel()


# --- what is measured ------------------------------------------------------------------------------


async def _full_load(swarm: Swarm, seconds: int) -> dict[str, Any]:
    """As many tasks as the machine does; nobody is killed, so whoever is given up or deposed is a mistake."""
    if not seconds:
        return {}
    ends, done, term, lost = perf_counter() + seconds, swarm.completed, swarm.watch.term, len(swarm.watch.lost)

    async def feed() -> None:
        while perf_counter() < ends:
            await swarm.finish(await swarm.submit("echo", INPUT, BATCH))

    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(feed())
    return {
        "full_s": seconds,
        "full_tasks_per_s": round((swarm.completed - done) / seconds),
        "full_false_deaths": len(swarm.watch.lost) - lost,
        "full_elections": swarm.watch.term - term,
    }


async def _kill_workers(swarm: Swarm, times: int) -> dict[str, Any]:
    """SIGKILL of the worker with the most attempts; for each of them the time to the first step of the next attempt."""
    samples: list[float] = []
    watch = swarm.watch
    for n in range(times):
        handles = await swarm.submit("ticking", LONG, TASKS)
        await watch.until("every attempt is under way", lambda: all((h.task, 1) in watch.first_step for h in handles))  # noqa: B023
        members = Counter(watch.given_to[handle.task][1] for handle in handles)
        member = max(members, key=members.__getitem__)
        hit = {h.task: watch.given_to[h.task][0] + 1 for h in handles if watch.given_to[h.task][1] == member}
        swarm.killed.add(member)
        name = member.split("/")[0]
        started = perf_counter()
        os.kill(swarm.pids[name], signal.SIGKILL)
        await watch.until("the work goes on", lambda: all(key in watch.first_step for key in hit.items()))  # noqa: B023
        took = [watch.first_step[key] - started for key in hit.items()]
        samples += took
        progress(f"worker {n + 1}: {len(took)} attempts resumed within {max(took):.2f} s")
        await swarm.start("worker", name)
        await swarm.finish(handles)
        await wait_members(swarm.bus, WORKERS)
    return _summary("worker_kill", samples) | {"worker_kills": times, "attempts_resumed": len(samples)}


async def _replace_leaders(swarm: Swarm, times: int, number: signal.Signals, what: str) -> dict[str, Any]:
    """A signal to the leader under load; the time to the first assignment of its successor."""
    samples: list[float] = []
    watch, enough = swarm.watch, asyncio.Event()

    async def feed() -> None:
        while not enough.is_set():
            await swarm.finish(await swarm.submit("ticking", SHORT, BACKLOG // 4))

    async with asyncio.TaskGroup() as group:
        for _ in range(8 if times else 0):
            group.create_task(feed())
        for n in range(times):
            before = watch.assigned
            await watch.until("work is under way", lambda: watch.assigned > before + BACKLOG)  # noqa: B023
            term, name = watch.term, watch.leaders[watch.term]
            started = perf_counter()
            os.kill(swarm.pids[name], number)
            await watch.until("a successor assigns", lambda: max(watch.first_assigned) > term)  # noqa: B023
            samples.append(watch.first_assigned[min(t for t in watch.first_assigned if t > term)] - started)
            progress(f"{what} {n + 1}: nothing was assigned for {samples[-1]:.2f} s")
            await swarm.start("orchestrator", name)
        enough.set()
    return _summary(what, samples) | {f"{what}s": times}


def _summary(name: str, samples: list[float]) -> dict[str, Any]:
    if not samples:
        return {}
    cuts = statistics.quantiles(samples, n=100, method="inclusive") if len(samples) > 1 else samples * 99
    return {
        f"{name}_p50_s": round(cuts[49], 3),
        f"{name}_p99_s": round(cuts[98], 3),
        f"{name}_max_s": round(max(samples), 3),
    }
