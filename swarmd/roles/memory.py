"""A memory node: remember, recall, forget, revoke, over subjects, through the memory's own log.

Of several nodes the one that holds the memory's lease serves; the others fold along and are warm. The log is
the truth: a wish to remember is answered once the fold accepted it, whether or not the vector store is there.
The store is a projection with its own mark; it is filled in the order of the log, by one writer, and anew
when it is lost. Must not know which store or embedder it has.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from swarmd.core import memory_fold, subjects
from swarmd.core.codec import Codec, Commit, Garbage
from swarmd.core.errors import Conflict, Fault, Rejected, SwarmdError
from swarmd.core.events import Event, Fact, Failure
from swarmd.core.ids import is_plain, uuid7
from swarmd.core.memory import MEMORY_FACTS, MEMORY_TYPES, Forgotten, Memory, Remembered, Revoked
from swarmd.core.memory_fold import MemoryState
from swarmd.core.memory_wire import (
    ForgetRequest,
    MemoryStats,
    RecalledPassage,
    RecallReply,
    RecallRequest,
    RememberReply,
    RememberRequest,
)
from swarmd.passages import check_memory, check_query
from swarmd.ports import Bus, Clock, Entropy, Lease, Log, MemoryStore, Meter, Probe, RecallQuery
from swarmd.roles.replica import Follower, Rewound, agrees
from swarmd.roles.writer import LogWriter, sign

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from swarmd.ports import Received, Subscription

LEASE_MS: Final = 400
#: The lease lives for 2 s at the broker; the store is written only while a renewal is younger than this.
LEASE_TRUST_MS: Final = 1_500
#: How long a recall waits for the store to be as new as it wants.
RECALL_WAIT_MS: Final = 20_000
#: Requests in the works; more are told to come again.
ASKED_MAX: Final = 2_000
STORE_RETRY_MS: Final = 500
#: Commits that are applied to the store at once.
APPLY_COMMITS: Final = 256
PROGRESS_MS: Final = 5_000
WATCH_MS: Final = 1_000
DRAIN_S: Final = 5.0


class MemoryPorts(Struct, frozen=True):
    """What a memory node needs of the world."""

    log: Log
    bus: Bus
    lease: Lease
    store: MemoryStore
    clock: Clock
    entropy: Entropy
    probe: Probe
    meter: Meter


class _Wish(Struct, eq=False):
    """An event on its way into the log: which text, and who waits for it to be folded."""

    digest: bytes
    folded: asyncio.Future[None]


class MemoryNode:
    """Construct, `run`, `drain`. Raises `Rewound` when the memory's log is another than was folded."""

    def __init__(self, memory: str, name: str, boot: str, ports: MemoryPorts) -> None:
        self.memory = memory
        self.state = MemoryState(memory)
        self.applied = 0
        self.leading = asyncio.Event()
        self._name, self._ports = name, ports
        self._writer = LogWriter(
            ports.log,
            sign(
                subjects.memory_log(memory, memory_fold.MEMORY_ROLE, name),
                f"/{memory}/memory/{name}",
                boot,
                ports.entropy,
            ),
            ports.clock,
            ports.probe,
            MEMORY_TYPES,
        )
        self._wishes: dict[str, _Wish] = {}
        self._moved = asyncio.Condition()
        self._target = 0
        self._store_trouble = "it is being opened"
        self._interrupt: asyncio.Timeout | None = None
        self._renewed_ms = 0
        self._told_ms = 0
        self._asked = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._served: list[Subscription] = []
        self._group: asyncio.TaskGroup
        self._verbs: dict[str, Callable[[bytes], Awaitable[Any]]] = {
            "remember": self._remember,
            "recall": self._recall,
            "forget": self._forget,
            "revoke": self._revoke,
            "stats": self._stats,
        }

    # --- life ---

    async def run(self) -> None:
        """Fold, and serve while the lease is held, until cancelled."""
        target = await self._ports.log.last_seq()
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._fold())
            self._group.create_task(self._writer.run())
            self._group.create_task(self._watch())
            await self._until(lambda: self.state.seq >= target)
            await self._campaign()

    async def drain(self) -> None:
        """Take no more requests, answer those at hand, give the lease to another node; then cancel `run`."""
        self._draining = True
        if not self.leading.is_set():
            return
        try:
            for subscription in self._served:
                await subscription.close()
            async with asyncio.timeout(DRAIN_S):
                await self._idle.wait()
        except TimeoutError:
            self._ports.probe.incident(f"{self._asked} requests to memory {self.memory} were left without an answer")
        try:
            # Its receipt also says that the broker sends us no more requests: it reads what we say in order.
            await self._ports.lease.release()
        except SwarmdError as error:  # it lapses by itself
            self._ports.probe.trouble("lease", error)

    async def reconnected(self) -> None:
        """The broker came back: the log must still be the one that was folded."""
        if not await agrees(MemoryState(self.memory, self.state.seq, self.state.message_id), self._ports.log):
            raise Rewound(f"the log of memory {self.memory} at sequence {self.state.seq} is not what was folded")

    async def _fold(self) -> None:
        follower = Follower(self._ports.log, self._ports.probe, APPLY_COMMITS, Codec(MEMORY_FACTS, {}))
        await follower.run(self.state.seq, self._on_commits)

    async def _on_commits(self, commits: list[Commit | Garbage]) -> None:
        for commit in commits:
            memory_fold.apply(self.state, commit)
            if not self._wishes or isinstance(commit, Garbage):
                continue
            for event in commit.events:
                wish = self._wishes.get(event.subject) if isinstance(event, Event) else None
                if wish is not None and not wish.folded.done():
                    wish.folded.set_result(None)
        self._writer.seen = max(self._writer.seen, self.state.seq)
        await self._tell_moved()

    async def _tell_moved(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    async def _until(self, reached: Callable[[], bool]) -> None:
        async with self._moved:
            await self._moved.wait_for(reached)

    # --- leading ---

    async def _campaign(self) -> None:
        ports = self._ports
        waiting_told = False
        while not self._draining:
            try:
                if await ports.lease.acquire():
                    waiting_told = False
                    await self._lead()
                elif not waiting_told:
                    ports.probe.notice(f"another node serves memory {self.memory}: {self._name} stands by")
                    waiting_told = True
            except Fault as error:
                ports.probe.trouble("lease", error)
            await ports.clock.sleep(LEASE_MS)

    async def _lead(self) -> None:
        """Serve and project until the lease is lost."""
        ports = self._ports
        self._renewed_ms = ports.clock.now_ms()
        self._served = []
        projecting = self._group.create_task(self._project())
        try:
            for verb in self._verbs:
                subject = subjects.memory_verb(self.memory, verb)
                self._served.append(await ports.bus.subscribe(subject, self._on_request))
            self.leading.set()
            ports.probe.notice(f"{self._name} serves memory {self.memory} from sequence {self.state.seq}")
            while await self._renew():
                await ports.clock.sleep(LEASE_MS)
            ports.probe.incident(f"{self._name} lost the lease of memory {self.memory}")
        finally:
            self.leading.clear()
            projecting.cancel()
            await asyncio.wait([projecting])
            for subscription in self._served:
                await subscription.close()

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
            return self._ports.clock.now_ms() - self._renewed_ms < LEASE_TRUST_MS

    # --- the projection ---

    async def _project(self) -> None:
        """Keep the store up with the log; open it again, and start from its mark, after each trouble."""
        ports = self._ports
        # no probe: the fold, which reads the same log, tells everything
        follower = Follower(ports.log, slice_max=APPLY_COMMITS, codec=Codec(MEMORY_FACTS, {}))
        try:
            while True:
                try:
                    await self._open_store()
                    async with asyncio.timeout(None) as self._interrupt:
                        await follower.run(self.applied, self._apply)
                except TimeoutError:
                    self._store_trouble = "it was lost and is being filled again"
                    ports.probe.incident(f"the store of memory {self.memory} was lost: filling it again")
                except Fault as error:
                    if error.code == "gap":
                        raise
                    self._store_trouble = error.message
                    ports.probe.trouble("memory store", error)
                await ports.clock.sleep(STORE_RETRY_MS)
        finally:
            self._store_trouble = "another node serves it"
            await ports.store.close()

    async def _open_store(self) -> None:
        applied = await self._ports.store.open()
        last = await self._ports.log.last_seq()
        if applied > last:
            self._ports.probe.incident(
                f"the store claims sequence {applied}, the log of memory {self.memory} ends at {last}: rebuilding it"
            )
            await self._ports.store.drop()
            applied = await self._ports.store.open()
        self.applied, self._target = applied, last
        self._store_trouble = ""
        if applied < last:
            self._ports.probe.notice(f"filling the store of memory {self.memory}: {applied} of {last} commits")
        self._told_ms = self._ports.clock.now_ms()
        await self._tell_moved()

    async def _apply(self, commits: list[Commit | Garbage]) -> None:
        upto = commits[-1].seq
        await self._until(lambda: self.state.seq >= upto)
        if self._ports.clock.now_ms() - self._renewed_ms > LEASE_TRUST_MS:
            raise Fault("lease_unsure", "the lease could not be renewed: another node may write the store")
        kept, gone = memory_fold.for_store(self.state, commits)
        await self._ports.store.apply([memory for memory, _ in kept], gone, upto)
        self.applied = upto
        self._ports.meter.count("swarmd_remembered_total", self.memory, by=len(kept))
        now = self._ports.clock.now_ms()
        if upto < self._target and now - self._told_ms >= PROGRESS_MS:
            self._told_ms = now
            self._ports.probe.notice(f"filling the store of memory {self.memory}: {upto} of {self._target} commits")
        await self._tell_moved()

    # --- requests ---

    def _on_request(self, message: Received) -> None:
        if is_plain(message.reply):
            self._group.create_task(self._answer(message))

    async def _answer(self, message: Received) -> None:
        verb = message.subject.rpartition(".")[2]
        started_ms = self._ports.clock.now_ms()
        self._asked += 1
        self._idle.clear()
        try:
            if self._asked > ASKED_MAX:
                raise Fault("busy", f"{ASKED_MAX} requests are being answered: ask again")
            answer = await self._verbs[verb](message.payload)
        except SwarmdError as error:
            failure = Failure(error.code, error.message)
            answer = RecallReply(error=failure) if verb == "recall" else RememberReply(error=failure)
        finally:
            self._asked -= 1
        if verb == "recall":
            took_ms = self._ports.clock.now_ms() - started_ms
            self._ports.meter.observe("swarmd_recall_seconds", took_ms / 1000, self.memory)
        try:
            await self._ports.bus.publish(message.reply, msgspec.json.encode(answer))
        except SwarmdError as error:
            self._ports.probe.trouble(f"answer to {verb}", error)
        if not self._asked:
            self._idle.set()

    async def _remember(self, payload: bytes) -> RememberReply:
        wanted = _parse(payload, RememberRequest)
        memory_id = wanted.id or uuid7(self._ports.clock.now_ms(), self._ports.entropy.bits(74))
        check_memory(
            Memory(memory_id, wanted.text, wanted.source, wanted.labels, author=wanted.author, task=wanted.task)
        )
        text = memory_fold.digest(wanted.text)
        fact = Remembered(
            text=wanted.text, source=wanted.source, labels=wanted.labels, author=wanted.author, task=wanted.task
        )

        def answered() -> int:
            return memory_fold.answer_remember(self.state, memory_id, text)

        return RememberReply(memory_id, answered() or await self._commit(memory_id, fact, text, answered))

    async def _forget(self, payload: bytes) -> RememberReply:
        wanted = _parse(payload, ForgetRequest)
        return await self._drop(wanted.id, Forgotten(reason=wanted.reason[:500]))

    async def _revoke(self, payload: bytes) -> RememberReply:
        wanted = _parse(payload, ForgetRequest)
        return await self._drop(wanted.id, Revoked(reason=wanted.reason[:500]))

    async def _drop(self, memory_id: str, fact: Fact) -> RememberReply:
        def answered() -> int:
            return memory_fold.answer_forget(self.state, memory_id)

        return RememberReply(memory_id, answered() or await self._commit(memory_id, fact, b"", answered))

    async def _commit(self, memory_id: str, fact: Fact, text: bytes, answered: Callable[[], int]) -> int:
        """Append one event and wait until it is folded; wishes about the same id take their turn.

        Raises what `answered` raises, `Rejected("log_full")`, or `Fault("not_accepted")`.
        """
        while (earlier := self._wishes.get(memory_id)) is not None:
            if text and earlier.digest and earlier.digest != text:
                raise Conflict("id_taken", f"memory {memory_id[:200]} is being given another text: use another id")
            await asyncio.wait([earlier.folded])
            if seq := answered():
                return seq
        wish = self._wishes[memory_id] = _Wish(text, asyncio.get_running_loop().create_future())
        try:
            await self._writer.append(Event(memory_id, fact))
            await wish.folded
            seq = answered()
        finally:
            del self._wishes[memory_id]
            wish.folded.cancel()
        if not seq:
            raise Fault("not_accepted", "the memory's log did not accept this: send it again")
        return seq

    async def _recall(self, payload: bytes) -> RecallReply:
        wanted = _parse(payload, RecallRequest)
        query = RecallQuery(wanted.text, wanted.k, wanted.labels)
        check_query(query)
        wait_ms = RECALL_WAIT_MS
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await self._until(lambda: self._serves(wanted.at_least_seq))
                seq = self.applied
                (passages,) = await self._ports.store.search([query])
        except TimeoutError:
            raise Fault("memory_behind", self._behind(wanted.at_least_seq)) from None
        except Fault as error:
            if error.code == "memory_lost" and self._interrupt is not None and not self._interrupt.expired():
                self._interrupt.reschedule(0)  # wake the projection: it opens the store again
            raise
        return RecallReply([_passage(p.memory, p.score) for p in passages], seq)

    def _serves(self, at_least_seq: int) -> bool:
        """Whether the store is open and as new as wanted; one that is being filled has too little to answer from."""
        return not self._store_trouble and self.applied >= max(at_least_seq, self._target)

    def _behind(self, at_least_seq: int) -> str:
        if self._store_trouble:
            return f"the vector store cannot be used: {self._store_trouble}"
        wanted = max(at_least_seq, self._target)
        return f"the store has the log up to sequence {self.applied}, {wanted} is wanted: ask again"

    async def _stats(self, payload: bytes) -> MemoryStats:
        state = self.state
        return MemoryStats(
            self.memory,
            state.seq,
            self.applied,
            state.live,
            len(state.known) - state.live,
            dict(state.counters.ignored),
            state.counters.garbage,
            self._store_trouble,
        )

    async def _watch(self) -> None:
        meter = self._ports.meter
        while True:
            await self._ports.clock.sleep(WATCH_MS)
            meter.gauge("swarmd_memories", self.state.live, self.memory)
            if self.leading.is_set():
                meter.gauge("swarmd_memory_lag_messages", max(0, self.state.seq - self.applied), self.memory)


def _parse(payload: bytes, kind: type[Any]) -> Any:
    """A request of a known form; raises `Rejected` naming the field that is wrong."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.ValidationError as error:
        raise Rejected("bad_field", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("bad_json", f"not JSON: {error}") from None


def _passage(memory: Memory, score: float) -> RecalledPassage:
    return RecalledPassage(
        memory.id, memory.text, score, memory.source, memory.labels, memory.author, memory.task, memory.seq
    )
