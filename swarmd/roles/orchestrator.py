"""One orchestrator of a swarm: an asyncio shell around the leader machine.

It follows the log, folds it, and while it leads it writes the machine's decisions and sends what the fold
made due. Standing by it only folds, so that it is warm. It must not decide anything itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from swarmd.core import commands, subjects
from swarmd.core.errors import UNREADABLE, Fault, Rejected, SwarmdError
from swarmd.core.ids import intake_id
from swarmd.core.leader import Leader
from swarmd.core.state import SwarmState
from swarmd.core.wire import Beat, Dispatch, Heartbeat, Outcome, Start, StoreHealth, Submission
from swarmd.cron import Cron
from swarmd.ports import Bus, Clock, Entropy, Intake, Lease, Log, Meter, Probe
from swarmd.roles.leader_gauges import show_leader
from swarmd.roles.replica import Follower, Rewound, agrees
from swarmd.roles.requests import Requests
from swarmd.roles.stores import StoreWatch
from swarmd.roles.succession import Succession
from swarmd.roles.writer import LogWriter, sign

if TYPE_CHECKING:
    from swarmd.core.codec import Commit, Garbage, Record
    from swarmd.core.events import Event
    from swarmd.core.health import LinkKey
    from swarmd.core.office import LeaderSettings, OwedOutcome
    from swarmd.ports import Received, Stored, Subscription

TICK_MS = 50
BEAT_MS = 250
STORES_MS = 2_000
RENEW_MS = 400
#: How long the broker may take to say that nobody listens; whoever listens says nothing.
PROBE_MS = 150
OUTCOME_BYTES_MAX = 400_000


class OrchestratorPorts(Struct, frozen=True):
    """What an orchestrator needs of the world."""

    log: Log
    intake: Intake
    stores: Callable[[], Awaitable[list[StoreHealth]]]
    bus: Bus
    lease: Lease
    clock: Clock
    entropy: Entropy
    probe: Probe
    meter: Meter


class _Service:
    """What only a leader does: its requests' subscription and its reading of the intake."""

    def __init__(self, ctl: Subscription, intake: asyncio.Task[None]) -> None:
        self._ctl, self._intake = ctl, intake

    async def end(self) -> None:
        self._intake.cancel()
        await self._ctl.close()


class Orchestrator:
    """Construct, `run`, `drain`. `state` is what `load_state` returned; `incarnation` names the intake stream."""

    def __init__(
        self,
        state: SwarmState,
        name: tuple[str, str],
        ports: OrchestratorPorts,
        settings: LeaderSettings,
        incarnation: str,
    ) -> None:
        self._writer_name, self._boot = name
        self._swarm = state.swarm
        self._ports = ports
        self._incarnation = incarnation
        self.reply_prefix = ""
        self.leader = Leader(state, self._writer_name, self._boot, settings, Cron())
        subject = subjects.log(self._swarm, "orchestrator", self._writer_name)
        source = f"/{self._swarm}/orchestrator/{self._writer_name}"
        signature = sign(subject, source, self._boot, ports.entropy)
        self._writer = LogWriter(ports.log, signature, ports.clock, ports.probe)
        self._writer.keeps_sent = True
        self._writer.seen = state.seq
        self._writer.supply = self._decide
        self._writer.dropped = self.leader.dropped
        self._emit_wanted = asyncio.Event()
        self.caught_up = asyncio.Event()
        self._led = asyncio.Event()
        self._target = 0
        self._stores = StoreWatch(self.leader, ports.clock, ports.probe, ports.meter)
        self._requests = Requests(self.leader, ports.log, ports.clock, ports.entropy, self._changed)
        self._succession = Succession(self._swarm, ports.bus, ports.lease, ports.clock, ports.probe)
        self._holding = self._draining = False
        self._paying: set[OwedOutcome] = set()
        self._sending = asyncio.Lock()
        self._group: asyncio.TaskGroup

    # --- life ---

    async def run(self) -> None:
        """Follow, campaign and lead until cancelled. Raises `Rewound` when the log is not the one that was folded."""
        self._target = await self._ports.log.last_seq()
        health = await self._ports.bus.subscribe(subjects.health(self._swarm, "*", "*"), self._on_health)
        beats = await self._ports.bus.subscribe(subjects.beat(self._swarm), self._succession.on_beat)
        try:
            async with asyncio.TaskGroup() as self._group:
                self._requests.group = self._group
                self._group.create_task(self._follow())
                self._group.create_task(self._writer.run())
                self._group.create_task(self._emitter())
                self._group.create_task(self._ticker())
                self._group.create_task(self._watch_stores())
                self._group.create_task(self._campaign())
        finally:
            await health.close()
            await beats.close()

    async def drain(self) -> None:
        """Hand over leadership at once; call it before cancelling `run`."""
        self._draining = True
        if not self._holding:
            return
        self.leader.resign()
        await self._emit()  # whoever waits for an answer is told to ask again
        try:
            await self._ports.lease.release()
        except Fault as error:  # it runs out by itself
            self._ports.probe.trouble("lease", error)
            return
        await self._beat("")

    async def reconnected(self) -> None:
        """The broker came back: everyone gets a fresh lease, and the log must still be the one that was folded."""
        self.leader.links.renew_all(self._ports.clock.now_ms())
        self._succession.reconnected()
        state = self.leader.state
        seq, message_id = state.seq, state.message_id
        probe = SwarmState(self._swarm, seq=seq, message_id=message_id)
        if not await agrees(probe, self._ports.log):
            raise Rewound(f"the log at sequence {seq} is not the one that was folded")

    # --- following and writing ---

    async def _follow(self) -> None:
        if self.leader.state.seq >= self._target:
            self.caught_up.set()
        self._follower = Follower(self._ports.log, self._ports.probe, sent=self._writer.sent)
        await self._follower.run(self.leader.state.seq, self._on_commits)

    async def _on_commits(self, commits: list[Commit | Garbage]) -> None:
        now = self._ports.clock.now_ms()
        self._stores.grown("log", self._follower.take_bytes())
        for commit in commits:
            self.leader.fold(commit, now)
        self._writer.seen = max(self._writer.seen, self.leader.state.seq)
        if self.leader.state.seq >= self._target:
            self.caught_up.set()
        self._led.set()
        if self.leader.leading:
            self._writer.wake()
            await self._emit()

    def _changed(self) -> None:
        """There may be something to write, and something to send."""
        self._writer.wake()
        self._emit_wanted.set()

    def _decide(self) -> list[Event]:
        return self.leader.decide()

    # --- leadership ---

    async def _campaign(self) -> None:
        """Want the lease; while it is held, lead."""
        await self.caught_up.wait()
        while not self._draining:
            try:
                self._holding = await self._ports.lease.acquire(await self._succession.orphaned())
            except Fault as error:
                self._ports.probe.trouble("lease", error)
            if self._holding:
                await self._lead()
            await self._succession.wait()

    async def _lead(self) -> None:
        """Hold the lease: campaign, serve while leading, until the lease or the leadership is gone."""
        present = await self._ports.bus.subscribe(subjects.incumbent(self._swarm), lambda _: None)
        term, election = self._run_for_office()
        serving: _Service | None = None
        renewed_ms = self._ports.clock.now_ms()
        try:
            while not self._draining:
                self._led.clear()
                if self.leader.leading and serving is None:
                    serving = await self._serve()
                elif serving is not None and not self.leader.leading:
                    return
                elif serving is None and (self.leader.state.term >= term or self._is_void(election)):
                    term, election = self._run_for_office()  # somebody else's term was stored first, or ours was not
                await self._wait_folded(RENEW_MS)
                if self._ports.clock.now_ms() - renewed_ms >= RENEW_MS and not self._draining:
                    renewed_ms = self._ports.clock.now_ms()
                    if not await self._renew():
                        return
        finally:
            self._holding = False
            self.leader.resign()
            self._emit_wanted.set()
            await present.close()
            if serving is not None:
                await serving.end()

    def _run_for_office(self) -> tuple[int, asyncio.Future[Stored]]:
        """Append our election; the term it is for, and its receipt."""
        election = self._writer.append(self.leader.campaign())
        election.add_done_callback(lambda receipt: receipt.exception())  # `_lead` may be gone before it is refused
        return self.leader.state.term + 1, election

    def _is_void(self, election: asyncio.Future[Stored]) -> bool:
        """Whether our election came to nothing: the log was full, or it is folded and no term has begun."""
        if not election.done():
            return False
        error = election.exception()
        if error is None:
            return self.leader.state.seq >= election.result().seq
        if not isinstance(error, Rejected):
            raise error
        self._ports.probe.trouble("election", error)
        return True

    async def _serve(self) -> _Service:
        """We lead: take requests and raw submissions."""
        ctl = await self._ports.bus.subscribe(subjects.ctl(self._swarm, "*"), self._requests.take)
        self._ports.probe.notice(f"{self._writer_name} leads {self._swarm} in term {self.leader.state.term}")
        return _Service(ctl, self._group.create_task(self._read_intake()))

    async def _wait_folded(self, timeout_ms: int) -> None:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._led.wait()
        except TimeoutError:
            return
        if self.leader.leading:
            await self._ports.clock.sleep(timeout_ms)  # under load every moment brings a fold

    async def _renew(self) -> bool:
        try:
            if await self._ports.lease.renew():
                return True
        except Fault as error:
            self._ports.probe.trouble("lease", error)
            return True
        self._ports.probe.incident(f"{self._writer_name} lost the lease of {self._swarm}")
        return False

    async def _ticker(self) -> None:
        beat_at_ms = 0
        while True:
            await self._ports.clock.sleep(TICK_MS)
            if not self.leader.leading:
                continue
            now = self._ports.clock.now_ms()
            self.leader.tick(now)
            for key, batch in self.leader.links.overdue(now):
                await self._publish(subjects.dispatch(self._swarm, *key), msgspec.json.encode(batch))
            for key in self.leader.links.to_probe(now):
                self._group.create_task(self._probe(key))
            self._writer.wake()
            self._emit_wanted.set()
            if now - beat_at_ms >= BEAT_MS:
                beat_at_ms = now
                await self._beat(self._writer_name)

    async def _beat(self, name: str) -> None:
        """The leader's beacon; without a name it is the last one.

        It leaves after everything that follows from what it says is folded: a member that drains relies on that.
        """
        wanted = self.leader.scaling.desired
        beat = Beat(self.leader.state.term, self.leader.state.seq, name, -1 if wanted is None else wanted)
        async with self._sending:
            await self._send()
            await self._publish(subjects.beat(self._swarm), msgspec.json.encode(beat))

    async def _probe(self, key: LinkKey) -> None:
        """Ask whether anybody listens to a silent process' dispatch: batch 0 is none, whoever gets it ignores it."""
        nothing = msgspec.json.encode(Dispatch(self.leader.state.term, 0, self.leader.state.seq, []))
        try:
            await self._ports.bus.request(subjects.dispatch(self._swarm, *key), nothing, PROBE_MS)
        except Fault as error:  # silence is what a living process answers with
            if error.code == "no_responders":
                self.leader.unheard(key, self._ports.clock.now_ms())

    # --- sending ---

    async def _emitter(self) -> None:
        """Send what did not come out of a fold: answers to bad requests, reports, and what ticks made due."""
        while True:
            await self._emit_wanted.wait()
            self._emit_wanted.clear()
            await self._emit()

    async def _publish(self, subject: str, payload: bytes) -> None:
        """Send what may be lost: dispatch is repeated until acknowledged, clients ask again, beacons come anew."""
        try:
            await self._ports.bus.publish(subject, payload)
        except (Fault, Rejected) as error:
            self._ports.probe.trouble("publish", error)

    async def _emit(self) -> None:
        """Send everything that is due; one task at a time, so that batches leave in their order."""
        async with self._sending:
            await self._send()

    async def _send(self) -> None:
        leader = self.leader
        for key, batch in leader.links.flush(leader.state.seq, self._ports.clock.now_ms()):
            starts = sum(type(item) is Start for item in batch.items)
            self._ports.meter.count("swarmd_dispatch_total", by=starts)
            await self._publish(subjects.dispatch(self._swarm, *key), msgspec.json.encode(batch))
        answers, leader.answers = leader.answers, []
        for ask, answer in answers:
            self._requests.answer(ask, answer)
        replies, self._requests.replies = self._requests.replies, []
        for reply, payload in replies:
            await self._publish(reply, payload)
        outcomes, leader.outcomes = leader.outcomes, {}
        for (reply, packed), group in outcomes.items():
            for payload in _pack_outcomes(group, packed):
                await self._publish(self.reply_prefix + reply, payload)
        for one in leader.owed:
            if one not in self._paying:
                self._paying.add(one)
                self._group.create_task(self._pay(one))

    async def _pay(self, owed: OwedOutcome) -> None:
        """Send an outcome that a former leader may not have sent; it stays owed until that is done."""
        try:
            outcome = await self._requests.outcome_at(owed.task, owed.buried)
            for payload in _pack_outcomes([outcome], owed.packed):
                await self._ports.bus.publish(self.reply_prefix + owed.reply, payload)
            self._discharge(owed)
        except Rejected as error:  # no repetition would make it fit: its client finds it by asking
            self._ports.probe.incident(f"the outcome of {owed.task} was not sent: {error.message}")
            self._discharge(owed)
        except Fault as error:
            self._ports.probe.trouble("owed outcome", error)
        finally:
            self._paying.discard(owed)

    def _discharge(self, owed: OwedOutcome) -> None:
        if owed in self.leader.owed:
            self.leader.owed.remove(owed)

    # --- members, stores, intake ---

    def _on_health(self, message: Received) -> None:
        try:
            if message.subject.endswith(".store"):
                self._stores.seen(msgspec.json.decode(message.payload, type=StoreHealth))
            elif self.leader.leading:
                beat = msgspec.json.decode(message.payload, type=Heartbeat)
                self.leader.heartbeat(beat, self._ports.clock.now_ms())
        except UNREADABLE as error:
            self._ports.probe.trouble("heartbeat", error)

    async def _read_intake(self) -> None:
        """Turn raw submissions into tasks or refusals, from the last one that the log says is done."""

        async def on_records(records: list[Record]) -> None:
            now = self._ports.clock.now_ms()
            for record in records:
                task_id = intake_id(self._incarnation, record.seq)
                raw = commands.parse_raw(record.payload)
                if isinstance(raw[0], Submission):
                    task_id = raw[0].id or task_id
                self.leader.intake(record.seq, task_id, raw, now)
            self._writer.wake()

        await self._ports.intake.follow(self.leader.intake_read, on_records)

    async def _watch_stores(self) -> None:
        """Look at the stores' sizes, and drop raw submissions that the log has made tasks or refusals of."""
        purged = 0
        while True:
            await self._ports.clock.sleep(STORES_MS)
            show_leader(self.leader, self._ports.meter, self._ports.clock.now_ms())
            if not self.leader.leading:
                continue
            self._stores.judge()
            try:
                for store in await self._ports.stores():
                    self._stores.seen(store)
                done = self.leader.state.intake_seq
                if done > purged:
                    await self._ports.intake.purge(done)
                    purged = done
            except SwarmdError as error:
                self._ports.probe.trouble("stores", error)


def _pack_outcomes(outcomes: list[Outcome], packed: bool) -> list[bytes]:
    """One message an outcome, or for packed ones JSON arrays of bounded size."""
    parts = [msgspec.json.encode(outcome) for outcome in outcomes]
    if not packed:
        return parts
    payloads: list[bytes] = []
    group: list[bytes] = []
    size = 0
    for part in parts:
        if group and size + len(part) > OUTCOME_BYTES_MAX:
            payloads.append(b"[" + b",".join(group) + b"]")
            group, size = [], 0
        group.append(part)
        size += len(part) + 1
    payloads.append(b"[" + b",".join(group) + b"]")
    return payloads
