"""A worker process: hosts worker nodes and runs the attempts of agents that the leader dispatches to them."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import Completed, Event, Fact, Failed, MemberJoined, Returned, Spending, Suspended
from swarmd.core.ids import member_subject, node_member
from swarmd.core.state import FIRST_VERSION
from swarmd.core.wire import ChildrenDone, Grant, Instruct, NodeAttempt, NodeStatus, Pause, Rest, WaitDone
from swarmd.roles.attempt import AgentFailed, AttemptPorts
from swarmd.roles.context import Context
from swarmd.roles.member import MemberPorts, MemberProcess, MemberSettings, failed
from swarmd.roles.nodes import NodeSubjects
from swarmd.sdk import Agent

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from swarmd.core.wire import ChildDone, Start
    from swarmd.ports import Bus

log = logging.getLogger(__name__)

#: More attempts than this are not named in a node's status.
LISTED_MAX: Final = 100


class NodeOffer(Struct, frozen=True):
    """What one worker node offers; `node` is its unique id (UUIDv7)."""

    node: str
    agents: Mapping[str, Agent]
    capacity: int
    labels: Mapping[str, str] = {}


class Worker(MemberProcess):
    """Any number of nodes in one process. `resumed`, `replayed` and `replayed_model_calls` count since its start."""

    def __init__(self, settings: MemberSettings, nodes: list[NodeOffer], ports: AttemptPorts, heart: Bus) -> None:
        super().__init__(settings, MemberPorts(ports.bus, heart, ports.writer, ports.clock, ports.meter))
        self._ports = ports
        self._nodes = {node_member(settings.writer, settings.boot, n): node for n, node in enumerate(nodes)}
        self._counts = dict.fromkeys(self._nodes, 0)
        self._contexts: dict[str, Context] = {}
        self._begun: dict[str, tuple[Start, int]] = {}
        self._member_of = {node.node: member for member, node in self._nodes.items()}
        self._resting: set[str] = set()
        self._born_ms = ports.clock.now_ms()
        self._subjects = NodeSubjects(settings.swarm, self, heart, self._beside)
        self.resumed = self.replayed = self.replayed_model_calls = 0

    async def run(self) -> None:
        """Run attempts until cancelled; each node answers on its own subjects."""
        await self._subjects.open(self._member_of)
        try:
            await super().run()
        finally:
            await self._subjects.close()

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Serve a request to a node; nobody knows of a node before it has joined."""
        if self.joined.is_set() and not self._closing:
            self._group.create_task(work)
        else:
            work.close()

    # --- nodes ---

    def offers(self) -> list[MemberJoined]:
        """What each node offers now."""
        return [self._offer(member, node) for member, node in self._nodes.items()]

    def _offer(self, member: str, node: NodeOffer) -> MemberJoined:
        """A draining worker offers no slot, a resting node neither."""
        return MemberJoined(
            member=member,
            kind="node",
            agents=sorted(node.agents),
            capacity=0 if self._draining or member in self._resting else node.capacity,
            node=node.node,
            labels=dict(node.labels),
            versions={name: a.versions for name, a in node.agents.items() if a.versions != FIRST_VERSION},
            idempotent=sorted(name for name, a in node.agents.items() if a.idempotent),
        )

    def node_status(self, node: str, listed: bool) -> NodeStatus:
        """One node as it is now; its oldest attempts by name if `listed`."""
        now, member = self._ports.clock.now_ms(), self._member_of[node]
        offer = self._nodes[member]
        running = [
            NodeAttempt(start.task, start.epoch, start.agent, max(0, now - since))
            for start, since in (self._begun.values() if listed else ())
            if start.member == member
        ]
        return NodeStatus(
            node,
            member,
            sorted(offer.agents),
            offer.capacity,
            self._counts[member],
            max(0, now - self._born_ms),
            self._draining or member in self._resting,
            dict(offer.labels),
            running[:LISTED_MAX],
        )

    async def relieve(self, node: str, resting: bool) -> None:
        """Offer no slot of this node, or all of them again. Raises `Rejected("draining" | "log_full")`."""
        if self._draining:
            raise Rejected("draining", "this worker is ending: all of its nodes take no new work")
        member = self._member_of[node]
        (self._resting.add if resting else self._resting.discard)(member)
        offer = self._offer(member, self._nodes[member])
        await self._shell.writer.append(Event(member_subject(member), offer))

    # --- attempts ---

    def handed_back(self, start: Start) -> Fact | None:
        """A stopped attempt reports nothing, that of a draining worker is handed back."""
        return Returned(epoch=start.epoch, reason="the worker is draining") if self._draining else None

    def child_done(self, item: ChildDone) -> None:
        """Tell the attempt that waits for it."""
        context = self._contexts.get(item.task)
        if context is not None:
            context.resolve(item.child, item.place)

    def tell(self, item: Rest | ChildrenDone | WaitDone | Instruct | Pause | Grant) -> None:
        """Tell the attempt that it is for."""
        context = self._contexts.get(item.task)
        match item:
            case _ if context is None:
                return
            case Rest():
                context.rest(item)
            case ChildrenDone(_, verdicts):
                context.children_done(verdicts)
            case WaitDone(_, key, place):
                context.resolve(key, place)
            case Instruct(_, place):
                context.instruct(place)
            case Pause():
                context.pause()
            case Grant():
                context.grant(item)

    async def outcome(self, start: Start) -> Fact:
        """The report on this attempt, whatever its agent does, with the time that no step has reported."""
        node = self._nodes.get(start.member)
        agent = node.agents.get(start.agent) if node else None
        if agent is None:
            return failed(start, "no_agent", f"this worker has no agent {start.agent!r}", True)
        if start.version not in agent.versions:
            return failed(start, "no_version", f"this worker has no version {start.version} of {start.agent!r}", True)
        context = Context(start, self._ports, agent.migrates.get(start.version))
        self._contexts[start.task] = context
        self._begun[start.task] = (start, self._ports.clock.now_ms())
        fact = await self._run(start, agent, context)
        fact.spent = Spending(wall_ms=context.ran_ms())
        return fact

    async def _run(self, start: Start, agent: Agent, context: Context) -> Completed | Failed | Suspended:
        try:
            wanted = await context.load()
            try:
                reuse = agent.reuse if start.version == agent.version else None
                output = await context.reused(reuse, start.version, wanted, lambda: _run_agent(agent, context, wanted))
                context.check_read()
            finally:
                context.close()
            if context.suspended is not None:  # whatever came of it
                return context.suspended
            inline, blob = await context.pack(output)
            return Completed(epoch=start.epoch, output=inline, output_blob=blob)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            # An agent is a stranger's code: whatever it raises is a failed attempt, never a dead worker.
            return context.suspended or self._ending(start, error)
        finally:
            if self._contexts.get(start.task) is context:  # not that of a newer epoch
                del self._contexts[start.task], self._begun[start.task]
            if start.journal or start.steps or start.more:
                self.resumed += 1
                self.replayed += context.replayed
                self.replayed_model_calls += context.replayed_model_calls

    @staticmethod
    def _ending(start: Start, error: BaseException) -> Failed:
        """The report on an attempt whose agent raised `error`, alone or out of a TaskGroup of its own."""
        error = next(_leaves(error))
        if isinstance(error, AgentFailed):
            return failed(start, error.code, error.message, error.retryable)
        if isinstance(error, Rejected):
            return failed(start, error.code, error.message, False)
        if isinstance(error, Fault):
            return failed(start, error.code, error.message, True, error.retry_after_ms or 0)
        log.warning("agent %s failed", start.agent, exc_info=error, extra={"task": start.task})
        return failed(start, "agent_error", f"{type(error).__name__}: {_said(error)}", True)


async def _run_agent(agent: Agent, context: Context, wanted: Any) -> Any:
    running = agent.run(context, wanted)
    if not inspect.isawaitable(running):
        why = f"agent {agent.name} is no async function: write `async def`"
        raise AgentFailed("not_async", why, retryable=False)
    return await running


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failing:  # a stranger's `__str__` too
        return f"its text raised {type(failing).__name__}"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
