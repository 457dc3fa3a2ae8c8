"""The time machine: the log shown, one task's timeline, the state at any sequence, and the proof that all agree.

Everything here only reads, by direct reads: it needs no right to write, to make consumers, or to lead.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct, field

from swarmd.adapters.jetstream import JetStreamLog
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect, disconnect
from swarmd.adapters.snapshots import NatsSnapshots
from swarmd.adapters.streams import stream_state
from swarmd.core import compare, evolve, snapshot, subjects
from swarmd.core.catalog import INDIRECT, Gatherer
from swarmd.core.codec import Codec, Commit, Garbage, Record
from swarmd.core.errors import UNREADABLE, Fault, Rejected, SwarmdError
from swarmd.core.events import Event, MemberLost
from swarmd.core.ids import check_name, check_task_id
from swarmd.core.state import Place, SwarmState
from swarmd.core.wire import SwarmStatus
from swarmd.roles.observer import FoundOne
from swarmd.roles.replica import agrees

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ASK_MS: Final = 5_000
GARBAGE_MAX: Final = 1_000
LOADS_MAX: Final = 5


class _Reader:
    """The log of one swarm, decoded, over a connection of its own."""

    def __init__(self, bus: NatsBus, swarm: str) -> None:
        self.bus, self.swarm = bus, swarm
        self.log = JetStreamLog(bus, subjects.log_stream(swarm))
        self.codec = Codec()

    async def ends(self) -> tuple[int, int]:
        """The first and last sequence held. Raises `Rejected("no_stream")` for an unknown swarm."""
        state = await stream_state(self.bus, subjects.log_stream(self.swarm))
        return int(state["first_seq"]), int(state["last_seq"])

    async def whole(self) -> int:
        """The last sequence of a log that holds its first. Raises `Rejected("no_stream" | "log_trimmed")`."""
        first, last = await self.ends()
        if first > 1:
            raise Rejected("log_trimmed", f"the log of swarm {self.swarm} starts at {first}: it cannot be folded whole")
        return last

    async def commits(self, after: int, upto: int) -> AsyncIterator[Commit | Garbage]:
        async for records in self.log.scan(after, upto):
            for record in records:
                yield self.codec.decode(record)

    async def at(self, seqs: list[int]) -> dict[int, tuple[Record, Commit | Garbage]]:
        records = await self.log.read(seqs)
        return {record.seq: (record, self.codec.decode(record)) for record in records}


@asynccontextmanager
async def _reading(nats: NatsSettings, swarm: str) -> AsyncIterator[_Reader]:
    client = await connect(nats, "replay")
    try:
        yield _Reader(NatsBus(client), check_name("swarm", swarm))
    finally:
        await disconnect(client)


async def commits(nats: NatsSettings, swarm: str) -> AsyncIterator[Commit | Garbage]:
    """The whole log, decoded. Raises `Rejected("no_stream" | "log_trimmed")`."""
    async with _reading(nats, swarm) as reader:
        async for commit in reader.commits(0, await reader.whole()):
            yield commit


# --- show ------------------------------------------------------------------------------------------


async def show(nats: NatsSettings, swarm: str, *, after: int = 0, to: int = 0) -> AsyncIterator[dict[str, Any]]:
    """The events after sequence `after` up to `to` (0: the end), one dict each, garbage included and named."""
    async with _reading(nats, swarm) as reader:
        first, last = await reader.ends()
        async for commit in reader.commits(max(after, first - 1), min(to or last, last)):
            if isinstance(commit, Garbage):
                yield _garbage(commit)
                continue
            for index, event in enumerate(commit.events):
                yield _garbage(event) if isinstance(event, Garbage) else _shown(commit, index, event)


def _shown(commit: Commit, index: int, event: Event) -> dict[str, Any]:
    envelope = msgspec.json.decode(msgspec.json.encode(event))
    return {"seq": commit.seq, "index": index, "role": commit.role, "writer": commit.writer, "event": envelope}


def _garbage(garbage: Garbage) -> dict[str, Any]:
    return {"seq": garbage.seq, "index": garbage.index, "garbage": garbage.reason}


# --- replay ----------------------------------------------------------------------------------------


async def replay(nats: NatsSettings, swarm: str, *, task: str = "", to: int = 0) -> AsyncIterator[dict[str, Any]]:
    """A task's timeline, one dict an event, or without `task` one dict: the state at sequence `to` (0: the end).

    Only what the fold accepted is in a timeline. Its places come from the catalog when an observer runs,
    else from folding the log. Raises `Rejected("unknown_task" | "no_stream" | "bad_sequence")`.
    """
    async with _reading(nats, swarm) as reader:
        _, last = await reader.ends()
        if to < 0 or to > last:
            raise Rejected("bad_sequence", f"the log of swarm {swarm} ends at sequence {last}, {to} is not in it")
        if not task:
            state, start = await _state_at(reader, to or last)
            yield _summary(state) | {"folded_from": start}
            return
        check_task_id(task)
        places = await _places(reader, task, to)
        for at in range(0, len(places), 256):
            part = places[at : at + 256]
            found = await reader.at([seq for seq, _ in part])
            for seq, index in part:
                for line in _line(found[seq][1], index):
                    yield line


def _line(commit: Commit | Garbage, index: int) -> list[dict[str, Any]]:
    """What a place says; an indirect one was moved by another's end, such as a member's."""
    if isinstance(commit, Garbage):
        return [_garbage(commit)]
    if index != INDIRECT:
        event = commit.events[index]
        return [_garbage(event) if isinstance(event, Garbage) else _shown(commit, index, event)]
    causes = [
        _shown(commit, number, event) | {"indirect": True}
        for number, event in enumerate(commit.events)
        if isinstance(event, Event) and isinstance(event.data, MemberLost)
    ]
    return causes or [{"seq": commit.seq, "index": INDIRECT, "indirect": True}]


async def _places(reader: _Reader, task: str, to: int) -> list[Place]:
    known = await _catalogued(reader, task)
    if known is None:
        known = await _gathered(reader, task, to)
    if not known:
        raise Rejected("unknown_task", f"no task {task} is in the log of swarm {reader.swarm}")
    return [place for place in known if not to or place[0] <= to]


async def _catalogued(reader: _Reader, task: str) -> list[Place] | None:
    """The places that an observer knows; None when none answers or it does not know the task."""
    body = msgspec.json.encode({"task": task})
    try:
        answer = await reader.bus.request(subjects.find(reader.swarm, "task"), body, ASK_MS)
        found = msgspec.json.decode(answer, type=FoundOne)
    except (Fault, *UNREADABLE):
        return None
    return found.task.history if found.task is not None else None


async def _gathered(reader: _Reader, task: str, to: int) -> list[Place]:
    first, last = await reader.ends()
    gatherer, places = Gatherer(SwarmState(reader.swarm)), list[Place]()
    async for commit in reader.commits(first - 1, to or last):
        gatherer.fold(commit)
        if task in gatherer or len(gatherer) > 10_000:
            for row in gatherer.take():
                if row.id == task:
                    places.extend(row.history)
    return places


async def _state_at(reader: _Reader, seq: int) -> tuple[SwarmState, int]:
    """The state at a sequence, and that of the snapshot it was folded from (0: the log's start)."""
    state = SwarmState(reader.swarm)
    for found in await _snapshots(reader):
        if found.state is not None and found.state.seq <= seq:
            state = found.state
            break
    start = state.seq
    async for commit in reader.commits(start, seq):
        evolve.apply(state, commit)
    return state, start


def _summary(state: SwarmState) -> dict[str, Any]:
    members = [
        {"member": m.id, "agents": m.agents, "capacity": m.capacity, "running": sorted(m.running)}
        for m in state.members.values()
    ]
    counters = msgspec.json.decode(msgspec.json.encode(state.counters))
    summary = {"swarm": state.swarm, "seq": state.seq, "term": state.term, "leader": state.leader_writer}
    return summary | {"tasks": compare.task_counts(state), "counters": counters, "members": members}


# --- verify ----------------------------------------------------------------------------------------


class _Snapshot(Struct):
    """A saved state, or why it cannot be used."""

    state: SwarmState | None
    why: str = ""


class _Replayed(Struct):
    """The whole log, folded from its start."""

    state: SwarmState
    at_status: list[str]
    events: int = 0
    garbage: list[dict[str, Any]] = field(default_factory=list)


async def verify(nats: NatsSettings, swarm: str) -> dict[str, Any]:
    """Fold the whole log and compare: with each snapshot plus its tail, and with what the leader says.

    `{"ok", "seq", "events", "differences", "ignored", "garbage", "snapshots", "leader"}`. A damaged snapshot is a
    difference (the log takes its place, but somebody should know); a leader or a snapshot that is not there
    is not. Needs the right to read the snapshots: an admin's or an observer's.
    """
    async with _reading(nats, swarm) as reader:
        status, leader = await _status(reader)
        snapshots = await _snapshots(reader)
        last = await reader.whole()
        replayed = await _replayed(reader, last, status)
        found = [f"the leader at sequence {status.seq}: {one}" for one in replayed.at_status] if status else []
        for saved in snapshots:
            found += await _check_snapshot(reader, saved, replayed.state)
        counters = replayed.state.counters
        return {
            "ok": not found,
            "seq": replayed.state.seq,
            "events": replayed.events,
            "differences": found,
            "ignored": dict(counters.ignored),
            "garbage": replayed.garbage,
            "snapshots": [_told(saved) for saved in snapshots],
            "leader": leader,
        }


async def _replayed(reader: _Reader, last: int, status: SwarmStatus | None) -> _Replayed:
    result = _Replayed(SwarmState(reader.swarm), [])
    asked = status.seq if status else 0
    if status is not None and asked > last:
        result.at_status = [f"it has folded sequence {asked}, the log ends at {last}"]
    async for commit in reader.commits(0, last):
        evolve.apply(result.state, commit)
        events = [commit] if isinstance(commit, Garbage) else commit.events
        for event in events:
            if not isinstance(event, Garbage):
                result.events += 1
            elif len(result.garbage) < GARBAGE_MAX:
                result.garbage.append(_garbage(event))
        if status is not None and commit.seq == asked:
            result.at_status = compare.status_differences(result.state, status, "the leader")
    return result


async def _status(reader: _Reader) -> tuple[SwarmStatus | None, str]:
    """What the leader says, and who that is; nobody has to lead for a log to be sound."""
    try:
        answer = await reader.bus.request(subjects.ctl(reader.swarm, "status"), b"", ASK_MS)
        status = msgspec.json.decode(answer, type=SwarmStatus)
    except (Fault, *UNREADABLE) as error:
        return None, f"nobody answered: {error}"
    return status, status.leader


async def _snapshots(reader: _Reader) -> list[_Snapshot]:
    """The saved states, newest first. One that is not readable, or not this log's, says why."""
    found: list[_Snapshot] = []
    try:
        for _ in range(LOADS_MAX):  # one that was replaced while it was read is missing, not damaged
            payloads = await NatsSnapshots(reader.bus, reader.swarm).load()
            if all(payloads):
                break
    except SwarmdError as error:
        return [_Snapshot(None, f"not readable with these rights: {error.message}")]
    for payload in payloads:
        try:
            state = snapshot.decode(payload)
        except Rejected as error:
            found.append(_Snapshot(None, f"damaged: {error.message}"))
            continue
        if state.swarm == reader.swarm and await agrees(state, reader.log):
            found.append(_Snapshot(state))
        else:
            found.append(_Snapshot(None, f"at sequence {state.seq} it does not agree with the log"))
    return found


async def _check_snapshot(reader: _Reader, saved: _Snapshot, replayed: SwarmState) -> list[str]:
    if saved.state is None:
        return [] if saved.why.startswith("not readable") else [f"a snapshot is of no use: {saved.why}"]
    state, start = saved.state, saved.state.seq
    async for commit in reader.commits(start, replayed.seq):
        evolve.apply(state, commit)
    saved.why = f"used from sequence {start}"
    if state.seq > replayed.seq:
        return []  # saved after the end that was looked at
    return [
        f"the snapshot at sequence {start}: {one}"
        for one in compare.differences(replayed, state, ("the log", "the snapshot and its tail"))
    ]


def _told(saved: _Snapshot) -> dict[str, Any]:
    return {"usable": saved.state is not None, "note": saved.why}
