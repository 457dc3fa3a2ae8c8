"""A delegate: presents a child swarm to its parent as one member, and the parent's attempts to the child as tasks.

The member is the child, not this process: a restarted delegate joins under a new boot and is handed every live
attempt again under the same epochs. An attempt's task in the child has an id made of parent, task and epoch, so
whatever is submitted twice runs once. The child retries by itself: its verdict is final for the attempt, unless that is
that it was recalled before anybody had begun it: then the attempt goes back to the parent's queue.
Must not know how the child places its work, nor which members the parent has besides.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET, Raw, Struct

from swarmd.core import subjects
from swarmd.core.budgets import amounts_of
from swarmd.core.errors import UNREADABLE, Conflict, Fault, Rejected
from swarmd.core.events import NULL, Completed, Fact, Failure, MemberJoined, Returned, Spending
from swarmd.core.ids import delegated_id, swarm_member
from swarmd.core.offers import AGENTS_MAX
from swarmd.core.outcomes import RECALLED
from swarmd.core.sharing import RING_LABEL, labels_for, path_of
from swarmd.core.wire import Heartbeat, Load, Outcome, Roll, RollQuery, Submission, SwarmLoad
from swarmd.ports import Blobs
from swarmd.roles.child import ChildSwarm
from swarmd.roles.exchange import carry
from swarmd.roles.member import MemberPorts, MemberProcess, MemberSettings, failed
from swarmd.roles.reunion import CUT_MS, Reunion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmd.core.state import Pair
    from swarmd.core.wire import Start

log = logging.getLogger(__name__)

LOOK_MS: Final = 250
#: A delegate that was not heard for so long is taken for dead by another that starts.
SILENT_MS: Final = 900
ROLL_MS_MAX: Final = 2_000
#: A child that refused work as full gets none for so many looks.
FULL_LOOKS: Final = 8
#: A child that has not answered for so long gets no new work.
UNANSWERED_MS: Final = 2_000
#: No child is offered with more slots than this, whatever it says.
CAPACITY_MAX: Final = 10_000
_FULL: Final = ("swarm_full", "store_full", "log_full")
#: Nothing stops a sound attempt from being tried under another id, or after a ring of swarms is taken apart.
_TRY_AGAIN: Final = ("id_taken", "id_too_old", "hive_ring")


class DelegateSettings(MemberSettings, frozen=True):
    """Who the delegate is: its swarm is the parent, its writer bears the child's name."""

    labels: Mapping[str, str] = {}
    capacity_max: int = CAPACITY_MAX
    cut_ms: int = CUT_MS


class Offer(Struct, frozen=True):
    """What the child can run: agents, and slots over all its members; nothing if it contains its parent."""

    agents: tuple[str, ...] = ()
    capacity: int = 0
    in_a_ring: bool = False


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
        self._answered_ms = ports.parent.clock.now_ms()
        self._silent = False
        self._reunion = Reunion(ports.child, ports.parent.clock, self._delegated, settings.cut_ms)
        self._load: Load | None = None
        self._ring = False
        self._replaced = asyncio.Event()
        self._cancels: set[Pair] = set()
        self._asking: set[Pair] = set()

    # --- the offer ---

    async def run(self) -> None:
        """Present the child until cancelled.

        Raises `Rejected`: "hive_ring" if the child contains the parent, "second_delegate" if another one lives.
        """
        await self._child.open()
        try:
            await self._look()
            if self._ring:
                raise Rejected("hive_ring", self._in_a_ring())
            await self._wait_for_silence()
            await super().run()
        finally:
            await self._child.close()

    def begin(self) -> None:
        """Keep the offer as true as the child's state."""
        self._group.create_task(self._watch())
        self._group.create_task(self._yield_to_another())
        self._group.create_task(self._reunion.run(self._shell.writer))

    def offers(self) -> list[MemberJoined]:
        """The child as it was last seen."""
        offer = self._announced = self._current()
        labels = {**self._labels, RING_LABEL: self._who.swarm} if offer.in_a_ring else self._labels
        child = swarm_member(self._child.name)
        return [
            MemberJoined(member=child, kind="swarm", agents=list(offer.agents), capacity=offer.capacity, labels=labels)
        ]

    def describe(self, beat: Heartbeat) -> None:
        """What the child has to do besides, and what could be recalled from it."""
        if self._load is None:
            return
        beat.load = {swarm_member(self._child.name): self._load}
        waiting = self._child.recallable()
        if waiting:
            names = {delegated_id(self._who.swarm, *key): key for key in self._asking}
            beat.recallable = [names[name] for name in waiting if name in names]

    def _current(self) -> Offer:
        """A full child, a silent one, one that contains its parent, and a leaving delegate offer no slot."""
        withheld = self._draining or self._ring or self._full_looks > 0 or self._silent
        return Offer(self._offer.agents, 0, self._ring) if withheld else self._offer

    async def _watch(self) -> None:
        while True:
            await self._shell.clock.sleep(LOOK_MS)
            await self._look()
            self._hurry.set()
            if self._current() != self._announced:
                await self.announce()

    async def _look(self) -> None:
        """Ask the child what it can run."""
        try:
            seen = await self._child.look()
        except Fault as error:
            if not self._silent and self._shell.clock.now_ms() - self._answered_ms > UNANSWERED_MS:
                self._silent = True
                log.warning("swarm %s does not answer (%s): it gets no new work", self._child.name, error.message)
            return
        self._answered_ms, self._silent = self._shell.clock.now_ms(), False
        self._load = seen.load
        self._reunion.heard("child")
        self._full_looks = FULL_LOOKS if seen.refusing else max(0, self._full_looks - 1)
        if self._who.swarm in seen.load.below:
            self._found_ring()
        self._offer = self._offer_of(seen)

    def _offer_of(self, seen: SwarmLoad) -> Offer:
        agents = seen.agents
        if len(agents) > AGENTS_MAX and len(self._offer.agents) < AGENTS_MAX:
            log.warning("swarm %s has %d agents; the first %d are offered", self._child.name, len(agents), AGENTS_MAX)
        return Offer(tuple(agents[:AGENTS_MAX]), min(max(0, seen.capacity), self._capacity_max))

    # --- who must not be presented ---

    def _in_a_ring(self) -> str:
        parent, child = self._who.swarm, self._child.name
        how = "they are one and the same" if parent == child else f"{child} contains {parent} already"
        return f"swarm {child} cannot be a member of {parent}: {how}, and a swarm must not contain itself"

    def _found_ring(self) -> None:
        """From here on the child gets nothing more; what it was given stays with it."""
        if not self._ring:
            self._ring = True
            log.error("%s: it gets no new work; end one of the delegates", self._in_a_ring())

    async def _wait_for_silence(self) -> None:
        """Until no other delegate is heard of; a predecessor that was killed a moment ago is, at first."""
        waited_ms = 0
        while 0 <= await self._heard_ms() < SILENT_MS:
            if waited_ms > 2 * SILENT_MS:
                raise Rejected("second_delegate", self._of_two())
            await self._shell.clock.sleep(LOOK_MS)
            waited_ms += LOOK_MS

    async def _heard_ms(self) -> int:
        """How long ago a delegate of the child was heard in the parent; -1 when none was, or nobody can say."""
        query = msgspec.json.encode(RollQuery(swarm_member(self._child.name)))
        try:
            answer = await self._shell.bus.request(subjects.ctl(self._who.swarm, "roll"), query, ROLL_MS_MAX)
            roll = msgspec.json.decode(answer, type=Roll)
        except (Fault, *UNREADABLE) as error:
            log.debug("whether swarm %s has a delegate is not known: %s", self._child.name, error)
            return -1
        return roll.heard_ms if roll.reachable else -1

    def _of_two(self) -> str:
        return f"another delegate speaks for swarm {self._child.name} in {self._who.swarm}: end one of them"

    def replaced(self, member: str) -> None:
        """Two delegates would take the child from each other for ever."""
        if not self._draining:
            self._replaced.set()

    async def _yield_to_another(self) -> None:
        await self._replaced.wait()
        raise Rejected("second_delegate", self._of_two())

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
        self._reunion.began(key)
        try:
            outcome = await self._child.run(await self._submission(start))
            self._reunion.ended(key)
            return await self._verdict(start, outcome)
        except (Rejected, Conflict) as error:
            if error.code in _FULL:
                if not self._full_looks:
                    self._full_looks = FULL_LOOKS
                    await self.announce()
                return Returned(epoch=start.epoch, reason=error.message[:500])
            return failed(start, error.code, error.message, error.code in _TRY_AGAIN)
        finally:
            self._asking.discard(key)
            self._reunion.left(key)

    def _see(self, seq: int) -> None:
        super()._see(seq)
        self._reunion.heard("parent")

    def _delegated(self, key: Pair) -> str:
        return delegated_id(self._who.swarm, *key)

    def _start(self, start: Start) -> None:
        if not self._draining:  # otherwise it is the next delegate's
            super()._start(start)

    def recall(self, key: Pair) -> None:
        """Ask the child to give it back; if it does, its verdict says so, to this delegate or to the next."""
        if key in self._asking:
            name = delegated_id(self._who.swarm, *key)
            why = f"swarm {self._who.swarm} can run it elsewhere"
            self._group.create_task(self._child.recall(name, why))

    async def _submission(self, start: Start) -> Submission:
        if 0 in amounts_of(start.grant):
            raise Rejected("budget_exhausted", "nothing is left of a budget that this task draws on")
        if start.input_blob:
            await self._carry(start.input_blob, True)
        path = path_of(start.labels, self._who.swarm)
        if self._child.name in path:
            raise Rejected("hive_ring", f"it came through {'/'.join(path)}, so it must not go to {self._child.name}")
        left_ms = start.deadline_at_ms - self._shell.clock.now_ms() if start.deadline_at_ms else 0
        return Submission(
            agent=start.agent,
            input=Raw(bytes(start.input)),
            id=self._delegated((start.task, start.epoch)),
            priority=start.priority,
            timeout_ms=max(left_ms, 1) if start.deadline_at_ms else 0,
            tenant=start.tenant,
            budget=start.grant,
            labels=labels_for(start.labels, path),
            input_blob=start.input_blob,
        )

    async def _verdict(self, start: Start, outcome: Outcome) -> Fact:
        if outcome.state == "completed":
            if outcome.output_blob:
                try:
                    await self._carry(outcome.output_blob, False)
                except Rejected as refused:  # the work is done and paid for, and cannot be had
                    return self._failed(start, outcome, refused.code, refused.message)
            output = outcome.output if isinstance(outcome.output, Raw) else NULL
            return Completed(
                epoch=start.epoch,
                output=Raw(bytes(output)),
                output_blob=outcome.output_blob,
                spent=_spent(start, outcome),
            )
        error = outcome.error if outcome.error is not UNSET else Failure(outcome.state, outcome.state)
        assert isinstance(error, Failure)
        if outcome.state == "cancelled" and error.code == RECALLED:
            return Returned(epoch=start.epoch, reason=RECALLED)  # nobody began it: nothing was spent
        return self._failed(start, outcome, error.code, f"in swarm {self._child.name}: {error.message}")

    @staticmethod
    def _failed(start: Start, outcome: Outcome, code: str, message: str) -> Fact:
        fact = failed(start, code, message, False)
        fact.spent = _spent(start, outcome)
        return fact

    async def _carry(self, digest: str, down: bool) -> None:
        """Bring a blob to the child, or up from it. Raises `Rejected` for one that cannot be had."""
        above = (self._who.swarm, self._ports.parent_blobs)
        below = (self._child.name, self._ports.child_blobs)
        await carry(digest, above if down else below, below if down else above, self._shell.clock)

    def stop(self, key: Pair) -> None:
        """End the attempt here and its task in the child."""
        self._cancel(key)
        self._reunion.stopping(key)
        if key not in self._cancels:
            self._cancels.add(key)
            self._group.create_task(self._cancel_there(key))

    async def _cancel_there(self, key: Pair) -> None:
        # Submissions and cancels leave on one connection, in order: no submission of ours overtakes this.
        try:
            answer = await self._child.cancel(self._delegated(key), "its attempt was stopped by the parent swarm")
            self._reunion.stopped(key, answer)
        finally:
            self._cancels.discard(key)


def _spent(start: Start, outcome: Outcome) -> Spending:
    """What the child spent; a verdict that was read from the log long after does not say, and counts as all of it."""
    if isinstance(outcome.spent, Spending):
        return outcome.spent
    return Spending(*(amount or 0 for amount in amounts_of(start.grant)))
