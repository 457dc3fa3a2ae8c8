"""A memory as real processes that are killed and robbed, a writer that never stops, and what must be true afterwards.

The node is `swarmd run memory` with its Milvus Lite as a child; the log is a real broker's. What was acknowledged is
compared with the log, the store, the watcher and recalls. Nothing here waits for time, but for what is so.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.jetstream import JetStreamLog
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import ConnectionEvents, connect, disconnect
from swarmd.core import memory_fold, subjects
from swarmd.core.codec import Codec, Commit
from swarmd.core.errors import Fault
from swarmd.core.events import Event, Failure
from swarmd.core.memory import MEMORY_FACTS, RememberedV2
from swarmd.core.memory_fold import MemoryState
from swarmd.core.memory_wire import JobReply, MatchesReply, MemoryStats, RecallReply, RememberReply
from tests.system.rig import ROOT, RoleProcess
from tests.system.swarms import until
from tests.system.ups import PLAIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from swarmd.core.memory_wire import Job
    from tests.system.rig import Rig

MEMORY = "shared"
WATCHER = "alarms"
ALARM_EVERY = 10
#: So long anything may take to be right again; a node waits 20 s for its store before it says that it is behind.
RIGHT_S = 120.0
ANSWER_MS = 25_000
SOON_MS = 2_000
#: What may be answered while there is trouble: each says what to do.
PLAIN_FAULTS = frozenset("timeout no_responders disconnected busy not_accepted log_full no_receipt job_running".split())
STORE_FAULTS = frozenset({"memory_behind", "memory_unavailable", "memory_closed", "memory_full", "memory_lost"})


class Havoc:
    """A memory on a broker: its nodes, whoever writes, watches and recalls, and what was answered."""

    def __init__(self, rig: Rig, bus: NatsBus, log: JetStreamLog, prefix: str) -> None:
        self.rig, self.bus, self.log, self.prefix = rig, bus, log, prefix
        self.acked: dict[str, int] = {}
        self.tried: dict[str, str] = {}
        self.refused: dict[str, int] = {}
        self.matched: list[tuple[int, str]] = []
        self.recalls: list[tuple[str, float]] = []
        self.enough = asyncio.Event()
        self.padding, self.wait_ms = "", SOON_MS
        self._numbers = count()

    # --- processes ---

    async def node(self, name: str = "m1", *, waits: bool = True, **environ: str) -> RoleProcess:
        """Start a memory node; `waits` until it says that it is warm."""
        errors = self.rig.directory / f"{len(self.rig.processes)}-{name}.log"
        command = [sys.executable, "-m", "swarmd", "--nats", self.rig.nats.url, "run", "memory", "--name", name]
        with errors.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=sink,
                cwd=ROOT,
                env={**PLAIN, "SWARMD_DATA_DIR": str(self.data_of(name)), **environ},
            )
        started = RoleProcess(name, process, errors)
        self.rig.processes.append(started)
        return await started.ready() if waits else started

    def data_of(self, name: str = "m1") -> Path:
        return self.rig.directory / f"data-{name}"

    def files(self, name: str = "m1") -> list[Path]:
        """The files of a node's store, rows and words."""
        found = [path for path in (self.data_of(name) / "milvus").rglob("*") if path.is_file()]
        return [path for path in found if path.name not in ("LOCK", "boot", "milvus.log")]

    async def milvus(self, node: RoleProcess) -> int:
        """The pid of a node's Milvus, once it runs."""
        pid: int = await until(lambda: milvus_of(node.process.pid))
        return pid

    # --- asking ---

    async def ask(self, verb: str, body: Any, *, admin: bool = False, wait_ms: int = ANSWER_MS) -> bytes:
        subject = subjects.memory_ctl(MEMORY, verb) if admin else subjects.memory_verb(MEMORY, verb)
        return await self.bus.request(subject, msgspec.json.encode(body), wait_ms)

    async def asked(self, verb: str, body: Any, answer: Any, **how: Any) -> Any:
        """As `ask`, until somebody answers without an error."""

        async def look() -> Any:
            try:
                reply = msgspec.json.decode(await self.ask(verb, body, **how), type=answer)
            except Fault as fault:
                if fault.code not in PLAIN_FAULTS:
                    raise
                return None
            if not isinstance(reply.error, Failure):
                return reply
            assert reply.error.code in PLAIN_FAULTS | STORE_FAULTS, reply.error
            return None

        return await until(look, RIGHT_S)

    async def stats(self) -> MemoryStats:
        """What the node says of itself; waits for one that answers."""

        async def look() -> MemoryStats | None:
            try:
                return msgspec.json.decode(await self.ask("stats", {}, wait_ms=SOON_MS), type=MemoryStats)
            except Fault:
                return None

        found: MemoryStats = await until(look, RIGHT_S)
        return found

    async def watch(self) -> None:
        await self.asked("watch", {"watcher": WATCHER, "text": "alarm", "labels": {"kind": "alarm"}}, RememberReply)

    # --- load ---

    async def write(self, pause_s: float = 0.02) -> None:
        """Remember one after the other, each asked again under its id until it is acknowledged."""
        while not self.enough.is_set():
            await self.remember_one()
            await asyncio.sleep(pause_s)  # a steady load, not the greatest one

    async def remember_one(self) -> None:
        number = next(self._numbers)
        memory = f"{self.prefix}{number}"
        is_alarm = number % ALARM_EVERY == 0
        text = f"{'alarm' if is_alarm else 'note'} {self.prefix}x{number}{'' if is_alarm else self.padding}"
        self.tried[memory] = text
        body = {"text": text, "id": memory, "labels": {"kind": "alarm" if is_alarm else "note"}}
        while True:
            try:
                reply = msgspec.json.decode(await self.ask("remember", body, wait_ms=self.wait_ms), type=RememberReply)
                if not isinstance(reply.error, Failure):
                    assert self.acked.setdefault(memory, reply.seq) == reply.seq
                    return
                code = reply.error.code
            except Fault as fault:
                code = fault.code
            assert code in PLAIN_FAULTS, code
            self.refused[code] = self.refused.get(code, 0) + 1
            if self.enough.is_set():
                return
            await asyncio.sleep(0.05)  # nobody is there, or there is no room: ask again

    async def more(self, number: int, wait_s: float = 60.0) -> None:
        """Wait until so many more are acknowledged."""
        goal = len(self.acked) + number
        await until(lambda: len(self.acked) >= goal, wait_s)

    async def rate(self, seconds: float) -> float:
        """How many are acknowledged in a second, for so long."""
        before, started = len(self.acked), time.monotonic()
        await until(lambda: time.monotonic() - started >= seconds, seconds + 30)
        return (len(self.acked) - before) / (time.monotonic() - started)

    async def caught_up(self) -> None:
        """Wait until a recall finds all that is acknowledged by now."""
        await self.asked("recall", {"text": "alarm", "at_least_seq": max(self.acked.values())}, RecallReply)

    async def is_in_trouble(self) -> bool:
        return bool((await self.stats()).trouble)

    async def answered(self) -> None:
        """A recall is answered while there is trouble: with memories, or with what is wrong."""
        reply = msgspec.json.decode(await self.ask("recall", {"text": "alarm"}), type=RecallReply)
        if isinstance(reply.error, Failure):
            assert reply.error.code in STORE_FAULTS, reply.error
            assert reply.error.message

    async def remembered(self) -> int:
        return (await self.stats()).memories

    async def has_remembered(self, count: int) -> bool:
        return await self.remembered() >= count

    async def texts(self) -> list[tuple[str, str]]:
        """Every text that is in the log, with its id: repetitions too."""
        codec, found = Codec(MEMORY_FACTS, {}), list[tuple[str, str]]()
        async for records in self.log.scan(0, await self.log.last_seq()):
            for commit in map(codec.decode, records):
                if isinstance(commit, Commit):
                    events = [event for event in commit.events if isinstance(event, Event)]
                    found += [(e.subject, e.data.text) for e in events if isinstance(e.data, RememberedV2)]
        return found

    async def listen(self) -> None:
        """Fetch each match once, from after the last one seen."""
        while not self.enough.is_set():
            await self._fetch(1_000)

    async def _fetch(self, wait_ms: int, at_least_seq: int = 0) -> bool:
        after = self.matched[-1][0] if self.matched else 0
        body = {"watcher": WATCHER, "after": after, "wait_ms": wait_ms, "at_least_seq": at_least_seq}
        try:
            answer = await self.ask("matches", body, wait_ms=wait_ms + 2_000)
        except Fault:
            await asyncio.sleep(0.05)  # nobody serves just now
            return False
        reply = msgspec.json.decode(answer, type=MatchesReply)
        if isinstance(reply.error, Failure):
            assert reply.error.code in PLAIN_FAULTS | STORE_FAULTS, reply.error
            return False
        assert not reply.missed
        self.matched += [(match.seq, match.memory.id) for match in reply.matches]
        return not reply.matches and reply.seq >= at_least_seq

    async def recall_now_and_then(self, pause_s: float = 0.1) -> None:
        """Recall all the time; what was answered, and after how long. Silence beyond the bound is a failure."""
        while not self.enough.is_set():
            started = time.monotonic()
            try:
                reply = msgspec.json.decode(await self.ask("recall", {"text": "alarm"}), type=RecallReply)
                said = reply.error.code if isinstance(reply.error, Failure) else "ok"
            except Fault as fault:
                said = fault.code
            self.recalls.append((said, time.monotonic() - started))
            await asyncio.sleep(pause_s)

    @asynccontextmanager
    async def load(self, writers: int = 4, pause_s: float = 0.02, *, recalls: bool = True) -> AsyncIterator[None]:
        """Writers, a watcher and a reader, until the block ends."""
        async with asyncio.TaskGroup() as group:
            for _ in range(writers):
                group.create_task(self.write(pause_s))
            group.create_task(self.listen())
            if recalls:
                group.create_task(self.recall_now_and_then())
            try:
                yield
            finally:
                self.enough.set()
        self.enough.clear()

    # --- what must be true ---

    async def fold(self) -> tuple[MemoryState, int]:
        """What the log says, and how many of its events were void repetitions."""
        codec, state, written = Codec(MEMORY_FACTS, {}), MemoryState(MEMORY), 0
        async for records in self.log.scan(0, await self.log.last_seq()):
            for record in records:
                commit = codec.decode(record)
                memory_fold.apply(state, commit)
                if isinstance(commit, Commit):
                    written += sum(isinstance(e, Event) and isinstance(e.data, RememberedV2) for e in commit.events)
        return state, written - len(state.known)

    async def job(self, verb: str, body: Any) -> Job:
        """A job from its beginning to its end; begun again when its node went."""

        async def run() -> Job | None:
            job = (await self.asked(verb, body, JobReply, admin=True)).job
            while job.state == "running":
                try:
                    answer = await self.ask("job", {"id": job.id}, admin=True, wait_ms=SOON_MS)
                except Fault:
                    return None
                job = msgspec.json.decode(answer, type=JobReply).job
                if job is msgspec.UNSET:
                    return None
            return job if job.state == "done" else None

        found: Job = await until(run, RIGHT_S)
        return found

    async def check(self, sample: int = 200) -> dict[str, Any]:
        """Everything acknowledged is there once: in the log, in the store, for the watcher, and when it is recalled."""
        started = time.monotonic()
        state, void = await self.fold()
        last = max(self.acked.values())
        for memory, seq in self.acked.items():
            known = state.known[memory]
            assert (known.place[0], known.gone_seq) == (seq, 0), memory
        ours = {memory for memory in state.known if memory.startswith(self.prefix)}
        assert ours <= self.tried.keys()
        await self.asked("recall", {"text": "alarm", "at_least_seq": last}, RecallReply)
        behind_s = time.monotonic() - started
        verified = await self.job("verify", {})
        assert (verified.missing, verified.extra, verified.differing) == (0, 0, 0), verified
        assert verified.rows == state.live
        await self.check_matches(state)
        await self.check_recalls(sample)
        waits = [took for said, took in self.recalls if said != "no_responders"]
        return {
            "acknowledged": len(self.acked),
            "void repetitions in the log": void,
            "refused": self.refused,
            "caught up after s": round(behind_s, 2),
            "recalls": {said: sum(s == said for s, _ in self.recalls) for said in {s for s, _ in self.recalls}},
            "longest recall s": round(max(waits, default=0.0), 2),
        }

    async def check_matches(self, state: MemoryState) -> None:
        """Each match was given once, in the order of the log, which is the order of what matched."""
        if WATCHER not in "".join(map(str, state.watches)):
            return
        await until(lambda: self._fetch(0, state.seq), RIGHT_S)
        alarms = [m for m in state.known if m.startswith(self.prefix) and self.tried[m].startswith("alarm")]
        alarms.sort(key=lambda memory: state.known[memory].first)
        assert [memory for _, memory in self.matched] == alarms
        assert [seq for seq, _ in self.matched] == sorted({seq for seq, _ in self.matched}), self.matched

    async def check_recalls(self, sample: int) -> None:
        """Each is found by its words: all of them, or so many that are spread over all."""
        acked = list(self.acked)
        asked = acked[:: max(1, len(acked) // sample)]
        slots = asyncio.Semaphore(64)

        async def find(memory: str) -> None:
            async with slots:
                found = await self.asked("recall", {"text": self.tried[memory], "k": 3}, RecallReply)
                assert memory in [passage.id for passage in found.passages], memory

        async with asyncio.TaskGroup() as group:
            for memory in asked:
                group.create_task(find(memory))


@asynccontextmanager
async def havoc(rig: Rig, prefix: str = "m") -> AsyncIterator[Havoc]:
    """A client of a memory that outlives its broker's deaths."""

    async def on_disconnect() -> None:
        log.disconnected()

    async def on_error(error: Exception) -> None:
        """Losing the broker is part of what is tested."""

    connection = await connect(rig.nats, "havoc", ConnectionEvents(on_disconnect=on_disconnect, on_error=on_error))
    try:
        bus = NatsBus(connection)
        log = JetStreamLog(bus, subjects.memory_stream(MEMORY))
        yield Havoc(rig, bus, log, prefix)
    finally:
        await disconnect(connection)


class SmallDisk:
    """A disk in memory of so many megabytes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def grow(self, megabytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(self._directory)], check=True)


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mount one; the test is skipped where that is not allowed."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield SmallDisk(directory)
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def milvus_of(pid: int) -> int:
    """The Milvus Lite among the children of a process; 0 where there is none yet."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in map(int, children):
            if b"milvus_lite" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
