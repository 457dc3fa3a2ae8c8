"""What every process of members shares: it joins, heartbeats, takes dispatched attempts and reports on them.

An attempt is listed in heartbeats until the receipt of its last report is here. Heartbeats have a
connection of their own, so that a flood of work cannot make a healthy process look dead.
Must not know what an attempt is made of: a worker runs an agent, a delegate asks another swarm.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from swarmd.core import subjects
from swarmd.core.errors import UNREADABLE, Fault, Rejected
from swarmd.core.events import Event, Fact, Failed, Failure, MemberJoined, MemberLeft
from swarmd.core.ids import member_subject
from swarmd.core.link import Receiver, read_dispatch
from swarmd.core.offers import nonsense_in
from swarmd.core.wire import (
    Beat,
    ChildDone,
    ChildrenDone,
    Grant,
    Heartbeat,
    Instruct,
    Pause,
    Recall,
    Rejoin,
    Replaced,
    Report,
    Rest,
    Start,
    Stop,
    WaitDone,
)
from swarmd.ports import Bus, Clock, Meter, Stored
from swarmd.roles.writer import LogWriter

if TYPE_CHECKING:
    from swarmd.core.state import Pair
    from swarmd.ports import Received

log = logging.getLogger(__name__)

HEARTBEAT_MS: Final = 250
JOIN_MS: Final = 15_000
HEED_MS: Final = 2_000
#: A list that makes a heartbeat longer than this is left out.
HEARTBEAT_BYTES_MAX: Final = 512 * 1024
MESSAGE_CHARS_MAX: Final = 2_000

_beats: Final = msgspec.json.Decoder(Beat)


class MemberSettings(Struct, frozen=True):
    """Who the process is: its swarm, its writer name in that swarm's log, and this life's unguessable boot."""

    swarm: str
    writer: str
    boot: str


class MemberPorts(Struct, frozen=True):
    """What the shell needs of the world; `heart` is the bus of the heartbeats' own connection."""

    bus: Bus
    heart: Bus
    writer: LogWriter
    clock: Clock
    meter: Meter


class MemberProcess:
    """Construct, `run`, `drain`. One process, one log writer; a subclass says what is offered and how attempts run."""

    role = "worker"

    def __init__(self, settings: MemberSettings, ports: MemberPorts) -> None:
        self._who, self._shell = settings, ports
        self._receiver = Receiver()
        self._running: dict[Pair, asyncio.Task[None]] = {}
        self._cut_short: set[Pair] = set()
        self._counts: dict[str, int] = {}
        self._list_wanted = False
        self._hurry = asyncio.Event()
        self._list_left_out = False
        self._draining = self._closing = False
        self.joined = asyncio.Event()
        self._leader_seq, self._leader_read = 0, asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._group: asyncio.TaskGroup

    # --- what a subclass says ---

    def offers(self) -> list[MemberJoined]:
        """What each member of this process offers now."""
        raise NotImplementedError

    async def outcome(self, start: Start) -> Fact:
        """Run an attempt; return the last report on it, whatever happens to it."""
        raise NotImplementedError

    def handed_back(self, start: Start) -> Fact | None:
        """What to report on an attempt that was cut short; None for nothing."""
        return None

    def stop(self, key: Pair) -> None:
        """The attempt has no right to go on."""
        self._cancel(key)

    def recall(self, key: Pair) -> None:
        """The attempt could run elsewhere: it is to be given back if nobody has begun it."""

    def replaced(self, member: str) -> None:
        """Another process speaks for the member now."""

    def describe(self, beat: Heartbeat) -> None:
        """Add to a heartbeat what only a subclass knows."""

    def child_done(self, item: ChildDone) -> None:
        """A child of a running attempt has its verdict."""

    def tell(self, item: Rest | ChildrenDone | WaitDone | Instruct | Pause | Grant) -> None:
        """Something for a running attempt."""

    # --- life ---

    async def run(self) -> None:
        """Join, run attempts and report until cancelled."""
        who, bus = self._who, self._shell.bus
        address = subjects.dispatch(who.swarm, self.role, who.writer, who.boot)
        work = await bus.subscribe(address, self._on_dispatch)
        beats = await bus.subscribe(subjects.beat(who.swarm), self._on_beat)
        try:
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(self._shell.writer.run())
                await self._enter()
                self._group.create_task(self._beat())
                self.begin()
                try:
                    await asyncio.get_running_loop().create_future()  # until this is cancelled, or a task fails
                finally:
                    self._closing = True  # a group that ends takes no more tasks
        finally:
            await work.close()
            await beats.close()

    def begin(self) -> None:
        """Called once the offer is stored: a place to start what else the process does in its group."""

    async def _enter(self) -> None:
        """Join for the first time. Raises `Rejected`: "bad_offer", or "cannot_join" when the log takes nothing."""
        who = self._who
        for offer in self.offers():
            wrong = nonsense_in(offer)
            if wrong:
                raise Rejected("bad_offer", f"no swarm gives work to {who.writer}: {wrong}")
        try:
            async with asyncio.timeout(JOIN_MS / 1000):
                await self.join()
        except TimeoutError:
            why = f"the log of swarm {who.swarm} took no event of {who.writer} within {JOIN_MS / 1000:.0f} s"
            hint = f"a {self.role} needs a user that may write it (--user-file DATA/users/{self.role}.json)"
            raise Rejected("cannot_join", f"{why}: {hint}") from None
        self.joined.set()

    async def join(self) -> int:
        """Store the offer of every member; return the sequence of the last one."""
        writer = self._shell.writer
        offers = self.offers()
        self._shell.meter.gauge("swarmd_capacity_attempts", sum(offer.capacity for offer in offers))
        joined = [writer.append(Event(member_subject(offer.member), offer)) for offer in offers]
        return max((stored.seq for stored in await asyncio.gather(*joined)), default=0)

    async def announce(self) -> None:
        """Store the offers anew; a log that takes nothing just now is told about them another time."""
        try:
            await self.join()
        except Rejected as error:
            log.warning("an offer was not stored: %s", error.message)

    async def drain(self, deadline_ms: int) -> None:
        """Take no new attempts, finish what runs or cut it short at the deadline, leave. Heartbeats go on."""
        self._draining = True
        withdrawn = await self.join()
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                await self._heed(withdrawn)
                await self._idle.wait()
        except TimeoutError:
            for key in list(self._running):
                self._cancel(key)
            await self._idle.wait()
        await self.leave()

    async def _heed(self, seq: int) -> None:
        """Wait until the leader has folded `seq`: what it had given this process before that is here then.

        Whoever leaves with attempts on their way to it is not let go, and would be missed. But nobody may lead.
        """
        try:
            async with asyncio.timeout(HEED_MS / 1000):
                while self._leader_seq < seq:
                    self._leader_read.clear()
                    await self._leader_read.wait()
        except TimeoutError:
            log.info("no leader has taken notice of the withdrawn offer within %d ms", HEED_MS)

    async def leave(self) -> None:
        """Say that every member is gone."""
        left = [MemberLeft(member=offer.member) for offer in self.offers()]
        await asyncio.gather(*(self._shell.writer.append(Event(member_subject(f.member), f)) for f in left))

    # --- what the leader says ---

    def _on_dispatch(self, message: Received) -> None:
        if self._closing:
            return
        try:
            dispatch, unknown = read_dispatch(message.payload)
        except UNREADABLE as error:
            log.warning("a dispatch could not be read: %s", error)
            return
        if unknown:
            log.warning("skipped what this version does not know of a dispatch: %s", ", ".join(sorted(set(unknown))))
        self._see(dispatch.seq)
        soon = asyncio.get_running_loop().call_soon  # an attempt that starts here can hear after its first turn
        for item in self._receiver.take(dispatch):
            match item:
                case Start():
                    self._start(item)
                case Stop(task, epoch):
                    self.stop((task, epoch))
                case ChildDone():
                    soon(self.child_done, item)
                case Rest() | ChildrenDone() | WaitDone() | Instruct() | Pause() | Grant():
                    soon(self.tell, item)
                case Recall(task, epoch):
                    self.recall((task, epoch))
                case Replaced(member):
                    self.replaced(member)
                case Report():
                    self._list_wanted = True
                    self._hurry.set()
                case Rejoin():
                    self._group.create_task(self.announce())

    def _on_beat(self, message: Received) -> None:
        try:
            self._see(_beats.decode(message.payload).seq)
        except UNREADABLE as error:
            log.warning("a beacon could not be read: %s", error)

    def _see(self, seq: int) -> None:
        self._leader_seq = seq
        self._leader_read.set()
        self._shell.writer.seen = max(self._shell.writer.seen, seq)

    async def _beat(self) -> None:
        """Say what runs, every so often and whenever there is a hurry: a list is wanted, or a child was looked at."""
        who = self._who
        subject = subjects.health(who.swarm, who.writer, who.boot)
        while True:
            self._hurry.clear()
            wanted, self._list_wanted = self._list_wanted, False
            payload = self._heartbeat(wanted)
            self._shell.meter.gauge("swarmd_running_attempts", len(self._running))
            try:
                await self._shell.heart.publish(subject, payload)
            except Fault:
                log.debug("no heartbeat: the broker cannot be reached")
            except Rejected as error:
                log.warning("no heartbeat: %s", error.message)
            if self._list_left_out:  # the leader asks for it again at once: the answer keeps to the pace
                await asyncio.sleep(HEARTBEAT_MS / 1000)
                continue
            try:
                async with asyncio.timeout(HEARTBEAT_MS / 1000):
                    await self._hurry.wait()
            except TimeoutError:
                pass

    def _heartbeat(self, list_wanted: bool) -> bytes:
        """The heartbeat as of now; a list that no message can hold is left out, and the leader asks again."""
        who = self._who
        beat = Heartbeat(
            self.role,
            who.writer,
            who.boot,
            self._receiver.term,
            self._receiver.ack,
            self._shell.writer.acked,
            {member: count for member, count in self._counts.items() if count},
            sorted(self._running) if list_wanted else None,
        )
        self.describe(beat)
        payload = msgspec.json.encode(beat)
        if not list_wanted:
            return payload
        too_long = len(payload) > HEARTBEAT_BYTES_MAX
        if too_long and not self._list_left_out:
            why = "a heartbeat that lists %d attempts has %d bytes: until it is under %d, lists are left out"
            log.warning(why, len(self._running), len(payload), HEARTBEAT_BYTES_MAX)
        self._list_left_out = too_long
        if not too_long:
            return payload
        beat.listed = None
        return msgspec.json.encode(beat)

    # --- attempts ---

    def _start(self, start: Start) -> None:
        key = (start.task, start.epoch)
        if key in self._running:
            return
        self._counts[start.member] = self._counts.get(start.member, 0) + 1
        self._idle.clear()
        self._running[key] = self._group.create_task(self._attempt(start))

    def _cancel(self, key: Pair) -> None:
        attempt = self._running.get(key)
        if attempt is not None:
            self._cut_short.add(key)
            attempt.cancel()

    async def _attempt(self, start: Start) -> None:
        """Run one attempt to its report's receipt."""
        key, ended = (start.task, start.epoch), "stopped"
        try:
            try:
                fact = await self.outcome(start)
            except asyncio.CancelledError:
                back = self._after_cancel(start)
                if back is None:
                    return
                fact = back
            ended = type(fact).__name__.lower()
            await self._report(Event(start.task, fact))
        except asyncio.CancelledError:
            return
        finally:
            self._shell.meter.count("swarmd_attempts_total", start.agent, ended)
            del self._running[key]
            self._cut_short.discard(key)
            self._counts[start.member] -= 1
            if not self._running:
                self._idle.set()

    def _after_cancel(self, start: Start) -> Fact | None:
        """What is to be reported on an attempt that ended by being cancelled, by whomever."""
        if (start.task, start.epoch) in self._cut_short:
            return self.handed_back(start)
        fact = failed(start, "agent_error", "the agent cancelled itself", True)
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            return fact
        # Either the agent cancelled the very task that it runs in, or the process ends: then nobody writes any more,
        # and to wait for a receipt would be to wait for ever.
        self._shell.writer.append(Event(start.task, fact)).add_done_callback(_unheard)
        return None

    async def _report(self, event: Event) -> None:
        """Hand in the last report of an attempt; one that is too large becomes a failure."""
        try:
            await self._shell.writer.store(event)
        except Rejected as error:
            epoch: int = event.data.epoch  # type: ignore[attr-defined]  # every report has one
            why = Failure(error.code, error.message)
            await self._shell.writer.store(Event(event.subject, Failed(epoch=epoch, failure=why, retryable=False)))


def failed(start: Start, code: str, message: str, retryable: bool, retry_after_ms: int = 0) -> Failed:
    """The report that an attempt failed."""
    failure = Failure(_text(code), _text(message)[:MESSAGE_CHARS_MAX])
    return Failed(epoch=start.epoch, failure=failure, retryable=retryable, retry_after_ms=retry_after_ms)


def _unheard(receipt: asyncio.Future[Stored]) -> None:
    """Nobody waits for this receipt: the leader misses a report that was not stored, and queues the task again."""
    if not receipt.cancelled():
        receipt.exception()


def _text(said: object) -> str:
    """What an agent said of its failure, which may hold undecodable file names or be no text at all."""
    return str(said).encode("utf-8", "replace").decode()
