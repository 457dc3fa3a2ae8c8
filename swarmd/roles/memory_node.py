"""A memory node: one memory, served on subjects through its own log.

Of several nodes the one that holds the memory's lease serves; the others fold along. The log is the truth and
arbitrates: a node that does not know yet that it lost the lease may still append, and what came second is void in every
fold. The store is written only while the lease is fresh. Must not know which store or embedder there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from swarmd.core import subjects
from swarmd.core.errors import Fault, SwarmdError
from swarmd.core.memory_lineage import lineage
from swarmd.core.memory_spaces import may_read
from swarmd.core.memory_wire import (
    ExportRequest,
    ForgetRequest,
    GetRequest,
    JobReply,
    JobRequest,
    LineageRequest,
    MatchesRequest,
    MemoryStats,
    RebuildRequest,
    RecallRequest,
    RememberMany,
    RememberReply,
    RememberRequest,
    RevokeRequest,
    UnwatchRequest,
    UpdateRequest,
    VerifyRequest,
    WatchRequest,
)
from swarmd.ports import Bus, Clock, Embeddings, Entropy, Lease, Log, Meter, Probe, VectorStores, WatchMatrix
from swarmd.roles.memory_desk import Desk, DeskPorts, Verb
from swarmd.roles.memory_ends import Ends
from swarmd.roles.memory_log import LogPorts, MemoryLog
from swarmd.roles.memory_projection import Projection, ProjectionPorts
from swarmd.roles.memory_reads import Reads
from swarmd.roles.memory_watch import Watches, WatchPorts
from swarmd.roles.memory_writes import Writes

if TYPE_CHECKING:
    from swarmd.core.memory_fold import MemoryState
    from swarmd.core.memory_spaces import Caller
    from swarmd.core.memory_wire import ExportReply, LineageReply, RevokeReply

LEASE_MS: Final = 400
#: The lease lives for 2 s at the broker; the store is written only while a renewal is younger than this.
LEASE_TRUST_MS: Final = 1_500
GAUGE_MS: Final = 1_000
DRAIN_S: Final = 5.0


class MemoryPorts(Struct, frozen=True):
    """What a memory node needs of the world; `embeddings`, `spec` and `matrix` as its projection and watches say.

    `log_size` tells how many bytes the log has, and how many it may have (0: any).
    """

    log: Log
    bus: Bus
    lease: Lease
    stores: VectorStores
    embeddings: Callable[[str, int], Embeddings]
    spec: str
    matrix: Callable[[int], WatchMatrix]
    clock: Clock
    entropy: Entropy
    probe: Probe
    meter: Meter
    log_size: Callable[[], Awaitable[tuple[int, int]]]


class MemoryNode:
    """Construct, `run`, `drain`. Raises `Rewound` when the memory's log is another than was folded.

    `leading` is set while it serves; `ready` once it is warm, or stands by.
    """

    def __init__(self, memory: str, name: str, boot: str, ports: MemoryPorts) -> None:
        self.memory = memory
        self.leading = asyncio.Event()
        self.ready = asyncio.Event()
        self._name, self._ports = name, ports
        clock, probe, meter = ports.clock, ports.probe, ports.meter
        self._log = MemoryLog(memory, name, boot, LogPorts(ports.log, clock, ports.entropy, probe))
        self._projection = Projection(
            self._log,
            ProjectionPorts(
                ports.log, ports.stores, ports.embeddings, ports.spec, self._is_lease_fresh, clock, probe, meter
            ),
        )
        self._watches = Watches(self._log, self._projection, WatchPorts(ports.matrix, clock, probe, meter))
        self._writes = Writes(self._log, clock, ports.entropy, lambda: self._projection.pin)
        self._reads = Reads(self._log, self._projection, clock)
        self._ends = Ends(self._log, self._writes, clock, probe)
        self._desk = Desk(memory, self._verbs(), DeskPorts(ports.bus, clock, probe, meter))
        self._renewed_ms = 0
        self._draining = False
        self._group: asyncio.TaskGroup

    @property
    def state(self) -> MemoryState:
        """What the log says."""
        return self._log.state

    def _verbs(self) -> dict[str, Verb]:
        """What can be asked. Where only admins may, the desk lets nobody else through."""
        writes, reads = self._writes, self._reads
        return {
            "remember": Verb(RememberRequest, at_once=writes.remember),
            "remember_many": Verb(RememberMany, at_once=writes.remember_many),
            "update": Verb(UpdateRequest, by_and_by=writes.update),
            "forget": Verb(ForgetRequest, by_and_by=writes.forget),
            "recall": Verb(RecallRequest, by_and_by=reads.recall),
            "get": Verb(GetRequest, by_and_by=reads.get),
            "watch": Verb(WatchRequest, by_and_by=self._watch),
            "unwatch": Verb(UnwatchRequest, by_and_by=self._unwatch),
            "matches": Verb(MatchesRequest, by_and_by=self._watches.matches, waits=True),
            "stats": Verb(None, by_and_by=self._stats),
            "revoke": Verb(RevokeRequest, by_and_by=self._revoke),
            "lineage": Verb(LineageRequest, by_and_by=self._lineage),
            "export": Verb(ExportRequest, by_and_by=self._export),
            "rebuild": Verb(RebuildRequest, by_and_by=self._rebuild),
            "verify": Verb(VerifyRequest, by_and_by=self._verify),
            "job": Verb(JobRequest, by_and_by=self._job),
        }

    # --- life ---

    async def run(self) -> None:
        """Fold, and serve while the lease is held, until cancelled."""
        target = await self._log.last_seq()
        try:
            async with asyncio.TaskGroup() as self._group:
                for life in (self._log.run(), self._desk.run(), self._gauge(), self._watch_size()):
                    self._group.create_task(life)
                await self._log.folded(target)
                await self._campaign()
        finally:
            await self._projection.close()

    async def drain(self) -> None:
        """Take no more requests, answer those at hand, give the lease to another node; then cancel `run`."""
        self._draining = True
        if not self.leading.is_set():
            return
        try:
            await self._desk.close()
            self._watches.drain()
            async with asyncio.timeout(DRAIN_S):
                await self._desk.idle()
        except TimeoutError:
            self._ports.probe.incident(f"{self._desk.asked} requests to memory {self.memory} were left unanswered")
        try:
            # Its receipt also says that the broker sends us no more requests: it reads what we say in order.
            await self._ports.lease.release()
        except SwarmdError as error:  # it lapses by itself
            self._ports.probe.trouble("lease", error)

    async def reconnected(self) -> None:
        """The broker came back: the log must still be the one that was folded. Raises `Rewound`."""
        await self._log.reconnected()

    # --- leading ---

    async def _campaign(self) -> None:
        ports = self._ports
        is_waiting = False
        while not self._draining:
            try:
                if await ports.lease.acquire():
                    is_waiting = False
                    await self._lead()
                elif not is_waiting:
                    ports.probe.notice(f"another node serves memory {self.memory}: {self._name} stands by")
                    is_waiting = True
                    self.ready.set()
            except Fault as error:
                ports.probe.trouble("lease", error)
            await ports.clock.sleep(LEASE_MS)

    async def _lead(self) -> None:
        """Serve and project until the lease is lost."""
        ports = self._ports
        self._renewed_ms = ports.clock.now_ms()
        lives = (self._projection.run(), self._watches.run(), self._ends.sweep(), self._warm_up())
        tasks = [self._group.create_task(life) for life in lives]
        try:
            await self._desk.open()
            self.leading.set()
            ports.probe.notice(f"{self._name} serves memory {self.memory} from sequence {self._log.seq}")
            while await self._renew():
                await ports.clock.sleep(LEASE_MS)
            ports.probe.incident(f"{self._name} lost the lease of memory {self.memory}")
        finally:
            self.leading.clear()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._desk.close()

    async def _warm_up(self) -> None:
        await self._log.until(lambda: self._projection.warm)
        self.ready.set()

    async def _renew(self) -> bool:
        """Extend the lease. A silent broker is asked again until the lease must have lapsed."""
        now = self._ports.clock.now_ms()
        try:
            if not await self._ports.lease.renew():
                return False
            self._renewed_ms = now
            return True
        except Fault as error:
            self._ports.probe.trouble("lease", error)
            return self._is_lease_fresh()

    def _is_lease_fresh(self) -> bool:
        return self._ports.clock.now_ms() - self._renewed_ms < LEASE_TRUST_MS

    async def _gauge(self) -> None:
        meter = self._ports.meter
        while True:
            await self._ports.clock.sleep(GAUGE_MS)
            self._desk.report()
            self._writes.tell_late()
            meter.gauge("swarmd_memories", self.state.live, self.memory)
            if self.leading.is_set():
                meter.gauge("swarmd_memory_lag_messages", max(0, self._log.seq - self._projection.applied), self.memory)

    async def _watch_size(self) -> None:
        """Look how full the log is."""
        ports = self._ports
        store = subjects.memory_stream(self.memory)
        while True:
            try:
                size, size_max = await ports.log_size()
                self._log.holds(size, size_max)
                ports.meter.gauge("swarmd_store_bytes", size, store)
                ports.meter.gauge("swarmd_store_limit_bytes", size_max, store)
            except SwarmdError as error:
                ports.probe.trouble("size of the memory's log", error)
            await ports.clock.sleep(GAUGE_MS)

    # --- verbs that are done elsewhere ---

    async def _watch(self, caller: Caller, wanted: WatchRequest) -> RememberReply:
        return RememberReply(wanted.watcher, await self._watches.watch(caller, wanted))

    async def _unwatch(self, caller: Caller, wanted: UnwatchRequest) -> RememberReply:
        return RememberReply(wanted.watcher, await self._watches.unwatch(caller, wanted))

    async def _revoke(self, caller: Caller, wanted: RevokeRequest) -> RevokeReply:
        return await self._ends.revoke(wanted)

    async def _lineage(self, caller: Caller, wanted: LineageRequest) -> LineageReply:
        return lineage(self.state, wanted)

    async def _export(self, caller: Caller, wanted: ExportRequest) -> ExportReply:
        return await self._reads.export(wanted)

    async def _rebuild(self, caller: Caller, wanted: RebuildRequest) -> JobReply:
        return JobReply(await self._projection.rebuild(wanted))

    async def _verify(self, caller: Caller, wanted: VerifyRequest) -> JobReply:
        return JobReply(await self._projection.verify(wanted))

    async def _job(self, caller: Caller, wanted: JobRequest) -> JobReply:
        return JobReply(self._projection.job(wanted.id))

    async def _stats(self, caller: Caller, wanted: Any) -> MemoryStats:
        state, projection = self.state, self._projection
        is_admin, pin = caller.kind == "admin", projection.pin
        return MemoryStats(
            self.memory,
            state.seq,
            projection.applied,
            state.live,
            len(state.known) - state.live,
            dict(state.counters.ignored),
            state.counters.garbage,
            projection.trouble,
            pin.embedder if pin is not None else "",
            pin.dimension if pin is not None else 0,
            projection.generation,
            projection.warm,
            len(state.watches),
            self._watches.matched,
            {space: count for space, count in state.spaces.items() if may_read(caller, space)},
            projection.jobs if is_admin else [],
            projection.views if is_admin else [],
        )
