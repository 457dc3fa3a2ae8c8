"""A delegate: presents a child swarm to its parent as one member, and the parent's attempts to the child as tasks.

The member is the child, not this process: a restarted delegate joins under a new boot and is handed every live
attempt again under the same epochs. An attempt's task in the child has an id made of parent, task and epoch, so
whatever is submitted twice runs once. The child retries by itself: its verdict is final for the attempt.
Must not know how the child places its work, nor that its members may be swarms again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from msgspec import UNSET, Raw, Struct

from swarmd.core.budgets import amounts_of
from swarmd.core.errors import Conflict, Fault, Rejected
from swarmd.core.events import NULL, Completed, Fact, Failure, MemberJoined, Returned, Spending
from swarmd.core.ids import delegated_id, swarm_member
from swarmd.core.wire import Outcome, Submission
from swarmd.ports import Blobs
from swarmd.roles.child import ChildSwarm
from swarmd.roles.member import Key, MemberPorts, MemberProcess, MemberSettings, failed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmd.core.wire import Start

log = logging.getLogger(__name__)

STATUS_MS: Final = 500
#: A child that refused work as full gets none for so many looks.
FULL_LOOKS: Final = 4
#: A child that has not answered so often in a row gets no new work.
SILENCES_MAX: Final = 4
#: No child is offered with more slots than this, whatever it says.
CAPACITY_MAX: Final = 10_000
AGENTS_MAX: Final = 1_000
_FULL: Final = ("swarm_full", "store_full", "log_full")
#: Nothing stops a sound attempt from being tried under another id.
_ANOTHER_ID: Final = ("id_taken", "id_too_old")


class DelegateSettings(MemberSettings, frozen=True):
    """Who the delegate is: its swarm is the parent, its writer bears the child's name."""

    labels: Mapping[str, str] = {}
    capacity_max: int = CAPACITY_MAX


class Offer(Struct, frozen=True):
    """What the child can run: agents, and slots over all its members."""

    agents: tuple[str, ...] = ()
    capacity: int = 0


class DelegatePorts(Struct, frozen=True):
    """The shell's ports on the parent, the child, and the blob stores of both."""

    parent: MemberPorts
    child: ChildSwarm
    parent_blobs: Blobs
    child_blobs: Blobs


class Delegate(MemberProcess):
    """One member, `swarm/<child>`, whose writer bears the child's name."""

    role = "delegate"

    def __init__(self, settings: DelegateSettings, ports: DelegatePorts) -> None:
        super().__init__(settings, ports.parent)
        self._child, self._ports = ports.child, ports
        self._labels = {**settings.labels, "swarm": ports.child.name}
        self._capacity_max = min(settings.capacity_max, CAPACITY_MAX)
        self._offer, self._announced = Offer(), Offer()
        self._full_looks = 0
        self._silences = 0
        self._recalls: set[Key] = set()
        self._asking: set[Key] = set()

    # --- the offer ---

    async def run(self) -> None:
        """Present the child until cancelled."""
        await self._child.open()
        try:
            await self._look()
            await super().run()
        finally:
            await self._child.close()

    def begin(self) -> None:
        """Keep the offer as true as the child's status."""
        self._group.create_task(self._watch())

    def offers(self) -> list[MemberJoined]:
        """The child as it was last seen."""
        offer = self._announced = self._current()
        child = swarm_member(self._child.name)
        return [
            MemberJoined(
                member=child, kind="swarm", agents=list(offer.agents), capacity=offer.capacity, labels=self._labels
            )
        ]

    def _current(self) -> Offer:
        """A full child, a silent one and a leaving delegate offer no slot."""
        withheld = self._draining or self._full_looks > 0 or self._silences > SILENCES_MAX
        return Offer(self._offer.agents, 0) if withheld else self._offer

    async def _watch(self) -> None:
        while True:
            await self._shell.clock.sleep(STATUS_MS)
            await self._look()
            if self._current() != self._announced:
                await self.announce()

    async def _look(self) -> None:
        """Ask the child what it can run."""
        try:
            status = await self._child.status()
        except Fault as error:
            self._silences += 1
            if self._silences == SILENCES_MAX + 1:
                log.warning("swarm %s does not answer (%s): it gets no new work", self._child.name, error.message)
            return
        self._silences = 0
        self._full_looks = FULL_LOOKS if status.refusing else max(0, self._full_looks - 1)
        members = [member for member in status.members if member.reachable and member.capacity > 0]
        agents = sorted({agent for member in members for agent in member.agents})
        if len(agents) > AGENTS_MAX:
            log.warning("swarm %s has %d agents; the first %d are offered", self._child.name, len(agents), AGENTS_MAX)
        capacity = min(sum(member.capacity for member in members), self._capacity_max)
        self._offer = Offer(tuple(agents[:AGENTS_MAX]), capacity)

    async def leave(self) -> None:
        """The child stays a member, and its work goes on: the next delegate takes over."""

    async def drain(self, deadline_ms: int) -> None:
        """Take no new attempts and hand in what is known; unfinished ones stay with the child."""
        self._draining = True
        await self.announce()
        for key in list(self._asking):
            self._cancel(key)
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d reports had no receipt in time: the next delegate repeats them", len(self._running))

    # --- attempts ---

    async def outcome(self, start: Start) -> Fact:
        """Run the attempt as a task of the child and report its verdict."""
        key = (start.task, start.epoch)
        self._asking.add(key)
        try:
            return await self._verdict(start, await self._child.run(await self._submission(start)))
        except (Rejected, Conflict) as error:
            if error.code in _FULL:
                if not self._full_looks:
                    self._full_looks = FULL_LOOKS
                    await self.announce()
                return Returned(epoch=start.epoch, reason=error.message[:500])
            return failed(start, error.code, error.message, error.code in _ANOTHER_ID)
        finally:
            self._asking.discard(key)

    def _start(self, start: Start) -> None:
        if not self._draining:  # otherwise it is the next delegate's
            super()._start(start)

    async def _submission(self, start: Start) -> Submission:
        if 0 in amounts_of(start.grant):
            raise Rejected("budget_exhausted", "nothing is left of a budget that this task draws on")
        if start.input_blob:
            await self._copy(start.input_blob, self._ports.parent_blobs, self._ports.child_blobs)
        left_ms = start.deadline_at_ms - self._shell.clock.now_ms() if start.deadline_at_ms else 0
        return Submission(
            agent=start.agent,
            input=Raw(bytes(start.input)),
            id=delegated_id(self._who.swarm, start.task, start.epoch),
            priority=start.priority,
            timeout_ms=max(left_ms, 1) if start.deadline_at_ms else 0,
            tenant=start.tenant,
            budget=start.grant,
            labels=start.labels,
            input_blob=start.input_blob,
        )

    async def _verdict(self, start: Start, outcome: Outcome) -> Fact:
        if outcome.state == "completed":
            if outcome.output_blob:
                await self._copy(outcome.output_blob, self._ports.child_blobs, self._ports.parent_blobs)
            output = outcome.output if isinstance(outcome.output, Raw) else NULL
            return Completed(
                epoch=start.epoch,
                output=Raw(bytes(output)),
                output_blob=outcome.output_blob,
                spent=_spent(start, outcome),
            )
        error = outcome.error if outcome.error is not UNSET else Failure(outcome.state, outcome.state)
        assert isinstance(error, Failure)
        fact = failed(start, error.code, f"in swarm {self._child.name}: {error.message}", False)
        fact.spent = _spent(start, outcome)
        return fact

    async def _copy(self, digest: str, source: Blobs, target: Blobs) -> None:
        """Bring a blob over by its hash; repeated while a broker is away."""
        while True:
            try:
                await target.put(await source.get(digest))
                return
            except Fault as error:
                log.info("blob %s is not copied yet: %s", digest, error.message)
                await self._shell.clock.sleep(STATUS_MS)

    def stop(self, key: Key) -> None:
        """End the attempt here and its task in the child."""
        self._cancel(key)
        if key not in self._recalls:
            self._recalls.add(key)
            self._group.create_task(self._recall(key))

    async def _recall(self, key: Key) -> None:
        # Submissions and cancels leave on one connection, in order: no submission of ours overtakes this.
        try:
            await self._child.cancel(delegated_id(self._who.swarm, *key), "its attempt was stopped by the parent swarm")
        finally:
            self._recalls.discard(key)


def _spent(start: Start, outcome: Outcome) -> Spending:
    """What the child spent; a verdict that was read from the log long after does not say, and counts as all of it."""
    if isinstance(outcome.spent, Spending):
        return outcome.spent
    return Spending(*(amount or 0 for amount in amounts_of(start.grant)))
