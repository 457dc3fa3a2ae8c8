"""The subjects of worker nodes: each node of a process answers for itself on `swarm.<S>.node.<node>.<verb>`.

One subscription per node, and nothing else that is kept per node: thousands of them share a process. What is asked is
answered on the heartbeats' connection, so that a flood of work does not make a healthy node look dead.
Must not know how attempts run.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from swarmd.core import subjects
from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import Failure
from swarmd.core.ids import is_plain
from swarmd.core.wire import NodeStatus, Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from swarmd.ports import Bus, Received, Subscription

log = logging.getLogger(__name__)

VERBS: Final = ("ping", "status", "drain", "resume")
#: A log that takes no offer for so long is told of in the answer; the node holds to what it was told.
OFFER_MS: Final = 8_000


class Host(Protocol):
    """The process that hosts the nodes."""

    def node_status(self, node: str, listed: bool) -> NodeStatus:
        """What a node does now, with its attempts by name if `listed`."""
        ...

    async def relieve(self, node: str, resting: bool) -> None:
        """The node takes no new work, or does so again; returns once its offer is stored. Raises `Rejected`."""
        ...


class NodeSubjects:
    """Serves the nodes of one process on `bus`; `close` ends it."""

    def __init__(self, swarm: str, host: Host, bus: Bus, beside: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._swarm, self._host, self._bus, self._beside = swarm, host, bus, beside
        self._subscriptions: list[Subscription] = []

    async def open(self, nodes: Iterable[str]) -> None:
        """Listen for each of these nodes; what takes time is handed to `beside`."""
        for node in nodes:
            address = subjects.node(self._swarm, node, "*")
            self._subscriptions.append(await self._bus.subscribe(address, self._take))

    async def close(self) -> None:
        """The nodes are gone: whoever asks is told by the broker that nobody answers."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.close()

    def _take(self, message: Received) -> None:
        if message.reply and not is_plain(message.reply):
            return  # an answer must not be aimed at one of swarmd's own subjects
        _, _, _, node, verb = message.subject.split(".")
        if verb in VERBS:
            self._beside(self._serve(node, verb, message.reply))
        else:
            why = f"a node has {', '.join(VERBS)}, not {verb}"
            self._beside(self._answer(message.reply, Receipt(error=Failure("unknown_verb", why))))

    async def _serve(self, node: str, verb: str, reply: str) -> None:
        try:
            if verb in ("drain", "resume"):
                async with asyncio.timeout(OFFER_MS / 1000):
                    await self._host.relieve(node, verb == "drain")
            answer: NodeStatus | Receipt = self._host.node_status(node, verb == "status")
        except Rejected as error:
            answer = Receipt(error=Failure(error.code, error.message))
        except TimeoutError:
            why = (
                f"the node holds to it, but the log took no event within {OFFER_MS // 1000} s: the leader may not know"
            )
            answer = Receipt(error=Failure("not_stored", why))
        await self._answer(reply, answer)

    async def _answer(self, reply: str, answer: NodeStatus | Receipt) -> None:
        if not reply:
            return
        try:
            await self._bus.publish(reply, msgspec.json.encode(answer))
        except (Fault, Rejected) as error:
            log.info("a node's answer was not sent: %s", error.message)
