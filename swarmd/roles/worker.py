"""A worker process: hosts worker nodes, runs the attempts that the leader dispatches to them, reports.

An attempt is listed in heartbeats until the receipt of its last report is here. Heartbeats have a
connection of their own, so that a flood of work cannot make a healthy process look dead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from swarmd.core import subjects
from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import Completed, Event, Fact, Failed, Failure, MemberJoined, MemberLeft, Returned
from swarmd.core.ids import node_member
from swarmd.core.link import Receiver
from swarmd.core.wire import Beat, ChildDone, Dispatch, Heartbeat, Rejoin, Report, Start, Stop
from swarmd.roles.attempt import AgentFailed, AttemptPorts, Context, SuspendAttempt
from swarmd.sdk import Agent

if TYPE_CHECKING:
    from swarmd.ports import Bus, Received

log = logging.getLogger(__name__)

HEARTBEAT_MS = 250
REPORT_RETRY_MS = 500
_Key = tuple[str, int]


class NodeOffer(Struct, frozen=True):
    """What one worker node offers; `node` is its unique id (UUIDv7)."""

    node: str
    agents: Mapping[str, Agent]
    capacity: int
    labels: Mapping[str, str] = {}


class WorkerSettings(Struct, frozen=True):
    """Where a worker belongs and how it behaves."""

    swarm: str
    writer: str
    boot: str
    default_model: str = "offline:extractive"
    role: str = "worker"


class Worker:
    """Construct, `run`, `drain`. One process, any number of nodes, one log writer."""

    def __init__(self, settings: WorkerSettings, nodes: list[NodeOffer], ports: AttemptPorts, heart: Bus) -> None:
        self._settings, self._ports, self._heart = settings, ports, heart
        self._nodes = {node_member(settings.writer, settings.boot, n): node for n, node in enumerate(nodes)}
        self._receiver = Receiver()
        self._running: dict[_Key, asyncio.Task[None]] = {}
        self._contexts: dict[str, Context] = {}
        self._counts = dict.fromkeys(self._nodes, 0)
        self._list_wanted = asyncio.Event()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._group: asyncio.TaskGroup
        self.resumed = self.replayed = self.replayed_model_calls = 0

    # --- life ---

    async def run(self) -> None:
        """Join, run attempts and report until cancelled."""
        swarm, bus = self._settings.swarm, self._ports.bus
        address = subjects.dispatch(swarm, self._settings.role, self._settings.writer, self._settings.boot)
        work = await bus.subscribe(address, self._on_dispatch)
        beats = await bus.subscribe(subjects.beat(swarm), self._on_beat)
        try:
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(self._ports.writer.run())
                await self._join()
                self._group.create_task(self._beat())
        finally:
            await work.close()
            await beats.close()

    async def _join(self) -> None:
        joined = [self._ports.writer.append(self._offer(member)) for member in self._nodes]
        await asyncio.gather(*joined)

    def _offer(self, member: str) -> Event:
        node = self._nodes[member]
        fact = MemberJoined(
            member=member,
            kind="node",
            agents=sorted(node.agents),
            capacity=0 if self._draining else node.capacity,
            node=node.node,
            labels=dict(node.labels),
        )
        return Event(member.replace("/", ":"), fact)

    async def drain(self, deadline_ms: int) -> None:
        """Take no new attempts, finish what runs or hand it back at the deadline, leave. Heartbeats go on."""
        self._draining = True
        await self._join()
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                await self._idle.wait()
        except TimeoutError:
            for key in list(self._running):
                self._cancel(key)
            await self._idle.wait()
        left = [Event(m.replace("/", ":"), MemberLeft(member=m)) for m in self._nodes]
        await asyncio.gather(*(self._ports.writer.append(event) for event in left))

    # --- what the leader says ---

    def _on_dispatch(self, message: Received) -> None:
        try:
            dispatch = msgspec.json.decode(message.payload, type=Dispatch)
        except msgspec.MsgspecError:
            log.warning("a dispatch could not be read", exc_info=True)
            return
        self._see(dispatch.seq)
        for item in self._receiver.take(dispatch):
            match item:
                case Start():
                    self._start(item)
                case Stop(task, epoch):
                    self._cancel((task, epoch))
                case ChildDone(task, child, place):
                    context = self._contexts.get(task)
                    if context is not None:
                        context.child_done(child, place)
                case Report():
                    self._list_wanted.set()
                case Rejoin():
                    self._group.create_task(self._join())

    def _on_beat(self, message: Received) -> None:
        try:
            self._see(msgspec.json.decode(message.payload, type=Beat).seq)
        except msgspec.MsgspecError:
            log.warning("a beacon could not be read", exc_info=True)

    def _see(self, seq: int) -> None:
        self._ports.writer.seen = max(self._ports.writer.seen, seq)

    async def _beat(self) -> None:
        """Say what runs, every so often and whenever a list is wanted."""
        settings = self._settings
        subject = subjects.health(settings.swarm, settings.writer, settings.boot)
        while True:
            listed = sorted(self._running) if self._list_wanted.is_set() else None
            self._list_wanted.clear()
            beat = Heartbeat(
                settings.role,
                settings.writer,
                settings.boot,
                self._receiver.term,
                self._receiver.ack,
                self._ports.writer.acked,
                {member: count for member, count in self._counts.items() if count},
                listed,
            )
            try:
                await self._heart.publish(subject, msgspec.json.encode(beat))
            except Fault:
                log.debug("no heartbeat: the broker cannot be reached")
            try:
                async with asyncio.timeout(HEARTBEAT_MS / 1000):
                    await self._list_wanted.wait()
            except TimeoutError:
                pass

    # --- attempts ---

    def _start(self, start: Start) -> None:
        key = (start.task, start.epoch)
        if key in self._running:
            return
        self._counts[start.member] = self._counts.get(start.member, 0) + 1
        self._idle.clear()
        self._running[key] = self._group.create_task(self._attempt(start))

    def _cancel(self, key: _Key) -> None:
        attempt = self._running.get(key)
        if attempt is not None:
            attempt.cancel()

    async def _attempt(self, start: Start) -> None:
        """Run one attempt to its report's receipt. A stopped attempt reports nothing, a draining one is handed back."""
        key = (start.task, start.epoch)
        try:
            try:
                fact = await self._outcome(start)
            except asyncio.CancelledError:
                if not self._draining:
                    return
                fact = Returned(epoch=start.epoch, reason="the worker is draining")
            await self._report(Event(start.task, fact))
        except asyncio.CancelledError:
            return
        finally:
            del self._running[key]
            self._counts[start.member] -= 1
            if not self._running:
                self._idle.set()

    async def _outcome(self, start: Start) -> Fact:
        """The report on this attempt, whatever its agent does."""
        node = self._nodes.get(start.member)
        agent = node.agents.get(start.agent) if node else None
        if agent is None:
            return self._failed(start, "no_agent", f"this worker has no agent {start.agent!r}", True)
        context = Context(start, self._ports, self._settings.default_model)
        self._contexts[start.task] = context
        try:
            wanted = await context.load()
            output = await agent.run(context, wanted)
            inline, blob = await context.pack(output)
            return Completed(epoch=start.epoch, output=inline, output_blob=blob)
        except SuspendAttempt as suspension:
            return context.suspended(suspension)
        except AgentFailed as error:
            return self._failed(start, error.code, error.message, error.retryable)
        except Rejected as error:
            return self._failed(start, error.code, error.message, False)
        except Fault as error:
            return self._failed(start, error.code, error.message, True, error.retry_after_ms or 0)
        except Exception as error:
            # An agent is a stranger's code: whatever it raises is a failed attempt, never a dead worker.
            log.warning("agent %s failed", start.agent, exc_info=True, extra={"task": start.task})
            return self._failed(start, "agent_error", f"{type(error).__name__}: {error}", True)
        finally:
            self._contexts.pop(start.task, None)
            if start.journal:
                self.resumed += 1
                self.replayed += context.replayed
                self.replayed_model_calls += context.replayed_model_calls

    @staticmethod
    def _failed(start: Start, code: str, message: str, retryable: bool, retry_after_ms: int = 0) -> Failed:
        failure = Failure(code, message[:2_000])
        return Failed(epoch=start.epoch, failure=failure, retryable=retryable, retry_after_ms=retry_after_ms)

    async def _report(self, event: Event) -> None:
        """Hand in the last report of an attempt; a full log is waited out, a report too large becomes a failure."""
        while True:
            try:
                await self._ports.writer.append(event)
                return
            except Rejected as error:
                if error.code == "too_large" and not isinstance(event.data, Failed):
                    why = Failure("too_large", error.message)
                    event = Event(event.subject, Failed(epoch=event.data.epoch, failure=why, retryable=False))  # type: ignore[attr-defined]
                    continue
                log.warning("a report waits: %s", error.message, extra={"task": event.subject})
                await self._ports.clock.sleep(REPORT_RETRY_MS)
