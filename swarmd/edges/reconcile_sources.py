"""Where differences are looked for: a hive and its children, members, the catalog, snapshots, a memory. Each is a
`Source`.

A source reads, and hands values to `core/reconcile`. Another one is one more class here, and one more entry where
`Reconciler` puts them together. Must not know what is done about a difference.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from msgspec import Struct

from swarmd.adapters.jetstream import JetStreamLog
from swarmd.adapters.streams import stream_state
from swarmd.core import evolve, reconcile, subjects
from swarmd.core.catalog import FindQuery, FindReply, FoundTask, Gatherer
from swarmd.core.codec import Codec, Commit
from swarmd.core.errors import UNREADABLE, Fault, Rejected, SwarmdError
from swarmd.core.events import Event, Failure, Reunited
from swarmd.core.reconcile import Difference, Row
from swarmd.core.state import SwarmState
from swarmd.core.wire import Roll, RollQuery
from swarmd.edges.memory_client import MemoryClient
from swarmd.edges.replay import verify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from swarmd.adapters.nats_bus import NatsBus
    from swarmd.adapters.nats_connect import NatsSettings

ASK_MS: Final = 5_000
#: So long a process may take to list what it runs, and a catalog to be as far as the log.
PATIENCE_S: Final = 5.0
LOOK_S: Final = 0.1
ROLLS_AT_ONCE: Final = 32
PAGE: Final = 500
#: After so many commits a reader of a long log says how far it is.
TOLD_COMMITS: Final = 100_000
ROWS_MAX: Final = 10_000
#: Memories that are named in a difference.
SHOWN: Final = 5


class Source(Protocol):
    """One pair of things that should agree."""

    name: str

    async def look(self) -> list[Difference]:
        """What differs now. Raises `Rejected` or `Fault` when it cannot be seen."""
        ...


class _Error(Struct):
    error: Failure | None = None


async def ask(bus: NatsBus, subject: str, body: Any) -> bytes:
    """One request. Raises what is in its answer as `Rejected`."""
    payload = await bus.request(subject, msgspec.json.encode(body), ASK_MS)
    try:
        told = msgspec.json.decode(payload, type=_Error)
    except UNREADABLE as error:
        raise Fault("bad_answer", f"what answered on {subject} cannot be read: {error}") from None
    if told.error is not None:
        raise Rejected(told.error.code, told.error.message)
    return payload


class Fold:
    """The log of a swarm, folded from its start by direct reads; `rows` are its tasks, when they are `wanted`."""

    def __init__(self, bus: NatsBus, swarm: str, told: Callable[[str], None], rows_wanted: bool = False) -> None:
        self.bus, self.swarm = bus, swarm
        self._log, self._codec = JetStreamLog(bus, subjects.log_stream(swarm)), Codec()
        self._gatherer = Gatherer(SwarmState(swarm)) if rows_wanted else None
        self.state = SwarmState(swarm) if self._gatherer is None else self._gatherer.state
        self.rows: dict[str, Row] = {}
        self.reunions: dict[tuple[str, str], dict[str, Any]] = {}
        self._told = told

    async def advance(self) -> None:
        """Fold up to the log's end. Raises `Rejected("no_stream")` where the broker has no such log."""
        last = int((await stream_state(self.bus, subjects.log_stream(self.swarm)))["last_seq"])
        begun = self.state.seq
        async for commit in self._commits(last):
            refused: list[int] = []
            if self._gatherer is not None:
                refused = self._gatherer.fold(commit)[1]
                if len(self._gatherer) > ROWS_MAX:
                    reconcile.gather(self.rows, self._gatherer.take())
            else:
                evolve.apply(self.state, commit, refused)
            if isinstance(commit, Commit) and commit.role == "delegate":
                self._note(commit, refused)
            if (commit.seq - begun) % TOLD_COMMITS == 0:
                self._told(f"swarm {self.swarm}: {commit.seq} of {last} commits read")
        if self._gatherer is not None:
            reconcile.gather(self.rows, self._gatherer.take())

    async def _commits(self, last: int) -> AsyncIterator[Any]:
        async for records in self._log.scan(self.state.seq, last):
            for record in records:
                yield self._codec.decode(record)

    def _note(self, commit: Commit, refused: list[int]) -> None:
        for index, event in enumerate(commit.events):
            if isinstance(event, Event) and isinstance(event.data, Reunited) and index not in refused:
                told: dict[str, Any] = msgspec.to_builtins(event.data)
                self.reunions[event.data.member, event.data.way] = {"time": event.time, "seq": commit.seq} | told


class Children:
    """The log of a hive against those of its child swarms. `reach` is a child's bus: each may have its own broker."""

    name = "hive"

    def __init__(self, hive: Fold, reach: Callable[[str], NatsBus], told: Callable[[str], None]) -> None:
        self._hive, self._reach, self._told = hive, reach, told
        self.folds: dict[str, Fold] = {}
        self.unseen: dict[str, str] = {}

    async def look(self) -> list[Difference]:
        await self._hive.advance()
        found: list[Difference] = []
        for member in list(self._hive.state.members.values()):
            child = member.id.partition("/")[2]
            if member.kind != "swarm":
                continue
            fold = self.folds.setdefault(child, Fold(self._reach(child), child, self._told))
            try:
                await fold.advance()
            except SwarmdError as error:
                elsewhere = f"its log is not on this broker: name the broker with --child {child}=URL"
                self.unseen[child] = elsewhere if error.code == "no_stream" else error.message
                continue
            self.unseen.pop(child, None)
            found += reconcile.hive_against_child(self._hive.state, fold.state)
        return found


class Members:
    """Live attempts in the log against what the members' processes list."""

    name = "members"

    def __init__(self, fold: Fold) -> None:
        self._fold = fold

    async def look(self) -> list[Difference]:
        await self._fold.advance()
        places, rolls, failed = asyncio.Semaphore(ROLLS_AT_ONCE), dict[str, Roll](), list[SwarmdError]()

        async def call(member: str) -> None:
            async with places:
                if failed:
                    return
                try:
                    roll = await self.roll(member)
                except SwarmdError as error:
                    failed.append(error)
                    return
                if roll is not None:
                    rolls[member] = roll

        async with asyncio.TaskGroup() as group:
            for member in reconcile.processes(self._fold.state.members.values()):
                group.create_task(call(member))
        if failed:
            raise failed[0]
        await self._fold.advance()
        return reconcile.log_against_members(self._fold.state, rolls)

    async def roll(self, member: str) -> Roll | None:
        """What the member's process lists, asked for now; None for a member that has gone meanwhile."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            subject = subjects.ctl(self._fold.swarm, "roll")
            try:
                roll = msgspec.json.decode(await ask(self._fold.bus, subject, RollQuery(member)), type=Roll)
            except Rejected as error:
                if error.code == "unknown_member":
                    return None
                raise
            waited_s = loop.time() - began
            is_new = 0 <= roll.age_ms < waited_s * 1000
            if is_new or not roll.reachable:
                return roll
            if waited_s > PATIENCE_S:
                roll.age_ms = -1  # an old list says nothing
                return roll
            await asyncio.sleep(LOOK_S)


class Catalogued:
    """The log against the catalog of an observer."""

    name = "catalog"

    def __init__(self, fold: Fold) -> None:
        self._fold = fold

    async def look(self) -> list[Difference]:
        await self._fold.advance()
        upto = self._fold.state.seq
        await self.wait_for(upto)
        listed: list[FoundTask] = []
        query = FindQuery(limit=PAGE)
        while True:
            page = await self._page(query)
            listed += page.tasks
            if not page.next:
                return reconcile.log_against_catalog(self._fold.swarm, self._fold.rows, listed, upto)
            query.before = page.next

    async def wait_for(self, seq: int) -> None:
        """Until the catalog has what the log has up to `seq`. Raises `Fault("lagging")`."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    if (await self._page(FindQuery(limit=1))).seq >= seq:
                        return
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise Fault("lagging", f"the catalog of swarm {self._fold.swarm} does not reach sequence {seq}") from None

    async def _page(self, query: FindQuery) -> FindReply:
        answer = await ask(self._fold.bus, subjects.find(self._fold.swarm, "tasks"), query)
        return msgspec.json.decode(answer, type=FindReply)


class Saved:
    """The log against the snapshots, and against what the leader says of itself."""

    name = "snapshots"

    def __init__(self, nats: NatsSettings, swarm: str) -> None:
        self._nats, self._swarm = nats, swarm

    async def look(self) -> list[Difference]:
        found = await verify(self._nats, self._swarm)
        unread = [one["note"] for one in found["snapshots"] if one["note"].startswith("not readable")]
        if unread and not found["differences"]:
            raise Fault("not_readable", unread[0])
        return [self._difference(text) for text in found["differences"]]

    def _difference(self, text: str) -> Difference:
        if text.startswith("the leader"):
            says = f"{text}: restart the orchestrator, which then folds the log anew"
            return Difference(self.name, "leader", self._swarm, text.partition(":")[2].partition(":")[0].strip(), says)
        return Difference(self.name, "snapshot", self._swarm, text.partition(":")[0], text, repair="rebuild")


class Remembered:
    """The log of a memory against its store, compared by the node that serves it."""

    name = "memory"

    def __init__(self, bus: NatsBus, memory: str, told: Callable[[str], None]) -> None:
        self._bus, self._memory, self._told = bus, memory, told
        self._client = MemoryClient(bus, memory, admin=True, told=told)

    async def look(self) -> list[Difference]:
        await self._reach()
        job = await self._client.verify()
        kinds = (
            ("missing", job.missing, "are not in the store"),
            ("left_over", job.extra, "are in the store, and not there by the log"),
            ("differing", job.differing, "say something else in the store"),
        )
        such_as = f"; such as {', '.join(job.examples[:SHOWN])}" if job.examples else ""
        return [
            Difference(self.name, kind, "", self._memory, f"{count} memories {says}{such_as}", repair="verify")
            for kind, count, says in kinds
            if count
        ]

    async def repair(self) -> None:
        """Have the node put right what differs."""
        self._told(f"the node of memory {self._memory} puts its store right by the log")
        await self._client.verify(repair=True)

    async def _reach(self) -> None:
        """Raises `Fault` soon where no node serves, or where we may not ask it."""
        try:
            await ask(self._bus, subjects.memory_ctl(self._memory, "stats"), {})
        except Fault as fault:
            if fault.code not in ("no_responders", "timeout"):
                raise
            why = (
                "no node serves it"
                if fault.code == "no_responders"
                else "its node did not answer; only an admin may ask"
            )
            raise Fault(fault.code, f"memory {self._memory}: {why}") from None
