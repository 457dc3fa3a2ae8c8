"""An observer of a swarm: folds the log and serves what is off the hot path.

It feeds the catalog, takes snapshots, publishes the live feed when asked to, answers `find.tasks` and
`find.task`, and shows the state as metrics. It writes nothing into the log and decides nothing: any number of
observers may run, none has to. What it serves may lag and says at which sequence it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from swarmd.core import effects as fx
from swarmd.core import snapshot, subjects
from swarmd.core.catalog import FindQuery, FindReply, FoundTask, Gatherer
from swarmd.core.codec import Commit, Garbage, encode_event
from swarmd.core.commands import parse_query
from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.events import Event, Failure, Requeued, Returned
from swarmd.core.ids import TASK_ID_PATTERN, is_plain
from swarmd.core.wire import StoreHealth
from swarmd.ports import Bus, Catalog, Clock, Log, Mark, Meter, Probe, Snapshots
from swarmd.roles.replica import Follower, Rewound, agrees, load_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.core.state import SwarmState
    from swarmd.ports import Received, Subscription

#: The catalog is written so often, or when so many tasks changed; beyond the last number the fold waits for it.
FLUSH_MS: Final = 500
FLUSH_ROWS: Final = 5_000
ROWS_MAX: Final = 50_000
#: Events of the live feed that wait to be published; more are dropped and counted.
FEED_MAX: Final = 10_000
LOOK_MS: Final = 1_000
#: A snapshot is due after so many events too: full commits hold a thousand each, and a start shall take seconds.
SNAPSHOT_EVENTS: Final = 500_000
ASKED_MAX: Final = 256
#: How long `find.task` waits for the catalog to reach the log's end before it says that it does not know a task.
CATCH_UP_MS: Final = 2_000
DRAIN_S: Final = 5.0
REPLY_BYTES_MAX: Final = 768 * 1024

_TOKEN: Final = re.compile(TASK_ID_PATTERN)
_FIND: Final = msgspec.json.Decoder(FindQuery)


class FoundOne(Struct, omit_defaults=True):
    """The answer to `find.task`, as of log sequence `seq`."""

    task: FoundTask | None = None
    seq: int = 0
    error: Failure | None = None


class Tended(Struct, omit_defaults=True):
    """The answer to `tend.rebuild` and `tend.snapshot`: the sequence at which the observer was, or its snapshot is."""

    seq: int
    error: Failure | None = None


class ObserverPorts(Struct, frozen=True):
    """What an observer needs of the world."""

    log: Log
    bus: Bus
    snapshots: Snapshots
    catalog: Catalog
    clock: Clock
    probe: Probe
    meter: Meter


class ObserverSettings(Struct, frozen=True):
    """Who it is and how often it saves; `snapshot_commits` 0 takes no snapshots."""

    swarm: str
    name: str
    feed: bool = False
    snapshot_commits: int = 10_000
    snapshot_ms: int = 60_000


async def load(swarm: str, source: str, ports: ObserverPorts) -> tuple[SwarmState, Mark]:
    """The state to start from and the catalog's mark: never a state that is ahead of the catalog.

    `source` names the log stream (a stream made anew has another name).
    """
    mark = await ports.catalog.open(source)
    if not await agrees(Folded(mark.seq, mark.message_id), ports.log):
        ports.probe.incident(f"the catalog's sequence {mark.seq} does not agree with the log: building it anew")
        await ports.catalog.drop()
        mark = await ports.catalog.open(source)
    return await load_state(swarm, ports.log, ports.snapshots, ports.probe, upto=mark.seq), mark


class Folded(Struct):
    """A place in the log with what is expected there."""

    seq: int
    message_id: str


class Observer:
    """Construct with what `load` returned, `run`. Raises `Rewound` when the log is another than was folded."""

    def __init__(self, state: SwarmState, mark: Mark, settings: ObserverSettings, ports: ObserverPorts) -> None:
        self._settings, self._ports = settings, ports
        self._rows = Gatherer(state)
        self._applied, self._known_seq = mark, mark.seq
        self._folding = asyncio.Lock()
        self._flushing = asyncio.Lock()
        self._flush_wanted = asyncio.Event()
        self._moved = asyncio.Event()
        self._submitted_ms: dict[str, int] = {}
        self._feed: deque[tuple[str, bytes]] = deque()
        self._feed_wanted = asyncio.Event()
        self._saved_seq, self._unsaved_events = state.seq, 0
        self._saved_ms = 0
        self._snapshot_wanted = asyncio.Event()
        self._asked = 0
        self._warned = False
        self._finds: Subscription | None = None
        #: The broker has the subscription, so whoever asks from now on is answered.
        self.serving = asyncio.Event()
        self._group: asyncio.TaskGroup
        self.snapshots_taken = 0
        self.feed_dropped = 0

    @property
    def state(self) -> SwarmState:
        """The folded state."""
        return self._rows.state

    async def run(self) -> None:
        """Observe until cancelled."""
        swarm, bus = self._settings.swarm, self._ports.bus
        self._saved_ms = self._ports.clock.now_ms()
        self._finds = await bus.subscribe(subjects.find(swarm, "*"), self._on_find, queue="observers")
        tends = await bus.subscribe(subjects.tend(swarm, "*"), self._on_tend)
        try:
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(self._follow())
                self._group.create_task(self._flusher())
                self._group.create_task(self._watch())
                if self._settings.feed:
                    self._group.create_task(self._publisher())
                if self._settings.snapshot_commits:
                    self._group.create_task(self._snapshotter())
                await self._ports.log.last_seq()  # a round trip on the same connection, behind the subscription
                self.serving.set()
        finally:
            await tends.close()
            await self._finds.close()

    async def drain(self) -> None:
        """Take no more requests, bring the catalog up to the fold if it lets us; then cancel `run`."""
        if self._finds is not None:
            await self._finds.close()
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._flush()
        except TimeoutError:
            self._ports.probe.incident("the catalog took too long: the log holds what it lacks")

    async def reconnected(self) -> None:
        """The broker came back: the log must still be the one that was folded."""
        async with self._folding:
            folded = Folded(self.state.seq, self.state.message_id)
        if not await agrees(folded, self._ports.log):
            raise Rewound(f"the log at sequence {folded.seq} is not the one that was folded")

    # --- folding ---

    async def _follow(self) -> None:
        await Follower(self._ports.log, self._ports.probe).run(self.state.seq, self._on_commits)

    async def _on_commits(self, commits: list[Commit | Garbage]) -> None:
        async with self._folding:
            for commit in commits:
                effects, refused = self._rows.fold(commit)
                if commit.seq <= self._known_seq:
                    if commit.seq == self._known_seq:
                        self._rows.take()  # the catalog has all this already
                    continue
                self._count(effects, commit, refused)
                if self._settings.feed and isinstance(commit, Commit):
                    self._tell(commit, refused)
            if self.state.seq < self._known_seq:
                self._rows.take()
        self._moved.set()
        if len(self._rows) >= FLUSH_ROWS:
            self._flush_wanted.set()
        if len(self._rows) >= ROWS_MAX:
            await self._flush()
        every = self._settings.snapshot_commits
        self._unsaved_events += sum(len(commit.events) for commit in commits if isinstance(commit, Commit))
        if every and (self.state.seq - self._saved_seq >= every or self._unsaved_events >= SNAPSHOT_EVENTS):
            self._snapshot_wanted.set()

    def _count(self, effects: list[fx.Effect], commit: Commit | Garbage, refused: list[int]) -> None:
        meter = self._ports.meter
        if isinstance(commit, Garbage):
            meter.count("swarmd_commits_void_total")
            return
        now = self._ports.clock.now_ms()
        for effect in effects:
            if isinstance(effect, fx.Ended):
                meter.count("swarmd_tasks_total", effect.task.agent, effect.state)
                seen_ms = self._submitted_ms.pop(effect.task.id, None)
                if seen_ms is not None:
                    meter.observe("swarmd_task_seconds", (now - seen_ms) / 1000, effect.task.agent)
            elif isinstance(effect, fx.Queued) and effect.task.submitted[0] == commit.seq:
                meter.count("swarmd_tasks_submitted_total", effect.task.agent)
                self._submitted_ms[effect.task.id] = now
            elif isinstance(effect, fx.Refusal):
                meter.count("swarmd_submissions_rejected_total", effect.failure.code)
            elif isinstance(effect, fx.Delayed):
                meter.count("swarmd_retries_total")
            elif isinstance(effect, fx.Gone) and effect.member.running:
                meter.count("swarmd_reassigned_total", "member_lost", by=len(effect.member.running))
        for index, event in enumerate(commit.events):
            if isinstance(event, Garbage):
                meter.count("swarmd_events_void_total", "garbage")
            elif index in refused:
                meter.count("swarmd_events_void_total", "refused")
            elif isinstance(event.data, Returned):
                meter.count("swarmd_reassigned_total", "returned")
            elif isinstance(event.data, Requeued) and event.data.reason == "undelivered":
                meter.count("swarmd_reassigned_total", "undelivered")

    # --- the live feed ---

    def _tell(self, commit: Commit, refused: list[int]) -> None:
        swarm = self._settings.swarm
        for index, event in enumerate(commit.events):
            if not isinstance(event, Event) or index in refused or not _is_token(event.subject):
                continue
            if len(self._feed) >= FEED_MAX:
                self.feed_dropped += 1
                self._ports.meter.count("swarmd_feed_dropped_total")
                continue
            kind = event.type.split(".")[-2]
            self._feed.append((subjects.event(swarm, event.subject, kind), encode_event(event)))
        self._feed_wanted.set()

    async def _publisher(self) -> None:
        while True:
            await self._feed_wanted.wait()
            self._feed_wanted.clear()
            while self._feed:
                subject, payload = self._feed.popleft()
                try:
                    await self._ports.bus.publish(subject, payload)
                except SwarmdError as error:
                    self.feed_dropped += 1
                    self._ports.meter.count("swarmd_feed_dropped_total")
                    self._ports.probe.trouble("feed", error)
                    await self._ports.clock.sleep(200)

    # --- the catalog ---

    async def _flusher(self) -> None:
        while True:
            try:
                async with asyncio.timeout(FLUSH_MS / 1000):
                    await self._flush_wanted.wait()
            except TimeoutError:
                pass
            self._flush_wanted.clear()
            await self._flush()

    async def _flush(self) -> None:
        """Write what has changed. What the catalog cannot take at all ends the observer: it is built anew."""
        async with self._flushing:
            if self.state.seq <= self._applied.seq:
                return
            mark, rows = Mark(self.state.seq, self.state.message_id), self._rows.take()
            while True:
                try:
                    await self._ports.catalog.apply(rows, mark)
                    break
                except Fault as error:
                    if error.code == "catalog_damaged":
                        raise Rewound(error.message) from error
                    self._ports.probe.trouble("catalog", error)
                    await self._ports.clock.sleep(500)
            self._applied = mark

    # --- snapshots ---

    async def _snapshotter(self) -> None:
        clock, settings = self._ports.clock, self._settings
        while True:
            left_ms = max(0, self._saved_ms + settings.snapshot_ms - clock.now_ms())
            try:
                async with asyncio.timeout(left_ms / 1000):
                    await self._snapshot_wanted.wait()
            except TimeoutError:
                pass
            self._snapshot_wanted.clear()
            self._saved_ms = clock.now_ms()
            if self.state.seq > self._saved_seq:
                try:
                    await self.save_snapshot()
                except SwarmdError as error:
                    self._ports.probe.trouble("snapshot", error)

    async def save_snapshot(self) -> None:
        """Save the state. The fold waits while it is encoded, in slices; requests are answered between them."""
        started_ms = self._ports.clock.now_ms()
        async with self._folding:
            seq, events, parts = self.state.seq, self._unsaved_events, list[bytes]()
            for part in snapshot.slices(self.state):
                parts.append(part)
                if len(part) > 50_000:
                    await asyncio.sleep(0)
        await self._flush()  # a snapshot must never be ahead of the catalog that is built from it
        payload = await asyncio.to_thread(lambda: snapshot.seal(b"".join(parts)))
        await self._ports.snapshots.save(payload)
        self._saved_seq = seq
        self._unsaved_events -= events
        self.snapshots_taken += 1
        self._ports.meter.observe("swarmd_snapshot_seconds", (self._ports.clock.now_ms() - started_ms) / 1000)

    # --- requests ---

    def _on_find(self, message: Received) -> None:
        if not is_plain(message.reply):
            return
        verbs: dict[str, Callable[[bytes], Any]] = {"tasks": self._find_tasks, "task": self._find_task}
        verb = message.subject.rpartition(".")[2]
        self._group.create_task(self._answer(message, verb, verbs.get(verb)))

    async def _answer(self, message: Received, verb: str, find: Callable[[bytes], Any] | None) -> None:
        self._asked += 1
        try:
            if find is None:
                raise Rejected("unknown_verb", f"find has tasks and task, not {verb[:80]}")
            if self._asked > ASKED_MAX:
                raise Fault("busy", f"{ASKED_MAX} requests are being answered: ask again")
            payload = await find(message.payload)
        except SwarmdError as error:
            payload = msgspec.json.encode(FindReply(seq=self._applied.seq, error=Failure(error.code, error.message)))
        finally:
            self._asked -= 1
        try:
            await self._ports.bus.publish(message.reply, payload)
        except SwarmdError as error:
            self._ports.probe.trouble("find", error)

    def _on_tend(self, message: Received) -> None:
        """An admin wants the catalog made anew, or a snapshot: of every observer, since each has its own."""
        verbs = {"rebuild": self._rebuild, "snapshot": self._save_now}
        act = verbs.get(message.subject.rpartition(".")[2])
        if act is not None and is_plain(message.reply):
            self._group.create_task(act(message.reply))

    async def _rebuild(self, reply: str) -> None:
        await self._ports.bus.publish(reply, msgspec.json.encode(Tended(self.state.seq)))
        raise Rewound("an admin wants the catalog made anew from the log")

    async def _save_now(self, reply: str) -> None:
        try:
            await self.save_snapshot()
            answer = Tended(self._saved_seq)
        except SwarmdError as error:
            answer = Tended(self._saved_seq, Failure(error.code, error.message))
        await self._ports.bus.publish(reply, msgspec.json.encode(answer))

    async def _find_tasks(self, payload: bytes) -> bytes:
        query = _parse(payload)
        with contextlib.suppress(Fault):  # an answer says how far it is; a late one is better than none
            await self._catch_up()
        seq = self._applied.seq
        tasks, after = await self._ports.catalog.find(query)
        answer = msgspec.json.encode(FindReply(tasks, seq, after))
        if len(answer) > REPLY_BYTES_MAX:
            raise Rejected("too_large", f"{len(tasks)} tasks are {len(answer)} bytes: ask with a smaller limit")
        return answer

    async def _find_task(self, payload: bytes) -> bytes:
        """One task as fresh as the fold; one that is not found is looked for again at the log's end."""
        task = parse_query(payload).task
        if task in self._rows:
            await self._flush()
        found = await self._ports.catalog.task(task)
        if found is None:
            await self._catch_up()
            found = await self._ports.catalog.task(task)
        seq = self._applied.seq
        if found is None:
            raise Rejected("unknown_task", f"no task {task[:200]} is in the log up to sequence {seq}")
        answer = msgspec.json.encode(FoundOne(found, seq))
        if len(answer) > REPLY_BYTES_MAX:
            found.history = [*found.history[:1_000], *found.history[-10_000:]]
            answer = msgspec.json.encode(FoundOne(found, seq))
        return answer

    async def _catch_up(self) -> None:
        last = await self._ports.log.last_seq()
        try:
            async with asyncio.timeout(CATCH_UP_MS / 1000):
                while self.state.seq < last:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise Fault("lagging", f"the catalog is at sequence {self.state.seq} of {last}: ask again") from None
        await self._flush()

    # --- what it shows ---

    async def _watch(self) -> None:
        """Gauges, and the catalog's size for whoever leads."""
        while True:
            await self._ports.clock.sleep(LOOK_MS)
            self._show_tasks()
            try:
                last = await self._ports.log.last_seq()
                self._ports.meter.gauge("swarmd_fold_lag_messages", max(0, last - self.state.seq))
                await self._report_size()
            except SwarmdError as error:
                self._ports.probe.trouble("observer", error)

    def _show_tasks(self) -> None:
        meter, state = self._ports.meter, self.state
        states = dict.fromkeys(("queued", "backoff", "suspended", "assigned"), 0)
        for task in state.tasks.values():
            states[task.state] += 1
        meter.gauge("swarmd_queue_tasks", states["queued"])
        meter.gauge("swarmd_suspended_tasks", states["suspended"])
        meter.gauge("swarmd_live_tasks", len(state.tasks))
        meter.gauge("swarmd_dead_tasks", len(state.dead))
        meter.gauge("swarmd_term", state.term)

    async def _report_size(self) -> None:
        held, limit = await self._ports.catalog.size()
        name = self._settings.name
        store = StoreHealth(f"the catalog of {name}", held, limit)
        self._ports.meter.gauge("swarmd_store_bytes", held, store.store)
        self._ports.meter.gauge("swarmd_store_limit_bytes", limit, store.store)
        await self._ports.bus.publish(subjects.health(self._settings.swarm, name, "store"), msgspec.json.encode(store))
        full = limit > 0 and held >= 0.8 * limit
        if full and not self._warned:
            self._ports.probe.incident(f"the catalog holds {held} of {limit} bytes: raise its limit or archive")
        self._warned = full


def _parse(payload: bytes) -> FindQuery:
    if not payload.strip():
        return FindQuery()
    try:
        return _FIND.decode(payload)
    except msgspec.ValidationError as error:
        raise Rejected("bad_field", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("bad_json", f"not JSON: {error}") from None


def _is_token(subject: str) -> bool:
    return bool(_TOKEN.fullmatch(subject))
