"""What an observer counts while it folds a log, over the fakes: one sample per thing that happened, by reason."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from msgspec import Raw

from swarmd.adapters.catalog import SqliteCatalog
from swarmd.adapters.fakes import FakeBus, FakeLog
from swarmd.adapters.system import SystemClock
from swarmd.adapters.telemetry import METRICS
from swarmd.core import subjects
from swarmd.core.codec import message_id
from swarmd.core.events import MemberLeft, MemberLost, Requeued, Returned, Stepped
from swarmd.roles import observer as observers
from swarmd.roles.observer import Observer, ObserverPorts, ObserverSettings, load
from swarmd.roles.replica import Follower
from tests.core.history import NODE, OTHER, History

if TYPE_CHECKING:
    from pathlib import Path

    from swarmd.core.codec import Commit, Garbage

SWARM = "s"
PATIENT_S = 20.0


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "LOOK_MS", 20)


class Unsaved:
    """Snapshots that are never there."""

    async def load(self) -> list[bytes]:
        return []

    async def save(self, payload: bytes) -> None: ...


class Tally:
    """A probe and a meter that add up counters, and keep the last value of gauges."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.gauges: dict[tuple[str, ...], float] = {}
        self.incidents: list[str] = []
        self.looked = asyncio.Event()

    def committed(self, events: int, size: int, took_ms: float) -> None: ...

    def folded(self, seq: int, events: int) -> None: ...

    def trouble(self, where: str, error: Exception) -> None: ...

    def notice(self, what: str) -> None: ...

    def incident(self, what: str) -> None:
        self.incidents.append(what)

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        self.counts[name, *labels] += int(by)

    def gauge(self, name: str, value: float, *labels: str) -> None:
        self.gauges[name, *labels] = value
        if name == "swarmd_store_limit_bytes":
            self.looked.set()

    def observe(self, name: str, value: float, *labels: str) -> None: ...

    def of(self, name: str) -> dict[tuple[str, ...], int]:
        """The counts of one metric by its labels."""
        return {key[1:]: count for key, count in self.counts.items() if key[0] == name}


async def observed(history: History, directory: Path) -> Tally:
    """The tally of an observer that has folded the whole history and has looked at its catalog once."""
    log, tally = FakeLog(), Tally()
    for record in history.records:
        await log.append(record.subject, record.payload, record.message_id, record.seen)
    catalog = SqliteCatalog(directory / "catalog.db")
    ports = ObserverPorts(log, FakeBus(), Unsaved(), catalog, SystemClock(), tally, tally)
    state, mark = await load(SWARM, "log", ports)
    observer = Observer(state, mark, ObserverSettings(SWARM, "obs"), ports)
    async with asyncio.timeout(PATIENT_S), asyncio.TaskGroup() as group:
        running = group.create_task(observer.run())
        await tally.looked.wait()
        assert observer.state.seq == len(history.records)
        running.cancel()
    await catalog.close()
    return tally


async def test_attempts_taken_from_a_member_are_counted_by_reason(tmp_path: Path) -> None:
    history = History().running("a").submitted("b").assigned("b").submitted("c").submitted("d")
    history.lead(NODE, MemberLost(term=1, member=NODE))  # it ran a and b
    history.assigned("c", member=OTHER)
    history.other("c", Returned(epoch=1))
    history.other("c", Returned(epoch=1))  # stale
    history.assigned("d", member=OTHER)
    history.lead("d", Requeued(term=1, epoch=1, reason="undelivered"))
    history.lead("d", Requeued(term=1, epoch=1, reason="undelivered"))  # stale
    history.other(OTHER, MemberLeft(member=OTHER))
    tally = await observed(history, tmp_path)
    assert history.state.members == {}
    assert tally.of("swarmd_reassigned_total") == {("member_lost",): 2, ("returned",): 1, ("undelivered",): 1}


async def test_a_member_that_is_lost_idle_takes_nothing_along(tmp_path: Path) -> None:
    history = History().joined()
    history.lead(NODE, MemberLost(term=1, member=NODE))
    assert (await observed(history, tmp_path)).of("swarmd_reassigned_total") == {}


async def test_commits_and_events_without_effect_are_told_apart(tmp_path: Path) -> None:
    history = History().running()
    stale = Stepped(epoch=7, key="k", kind="step", result=Raw(b"1"))
    history.work("t", stale, stale, Stepped(epoch=1, key="k", kind="step", result=Raw(b"1")))
    history.store(subjects.log(SWARM, "worker", "w1"), message_id("b1", 90), b"not a commit")
    history.store(subjects.log(SWARM, "worker", "w1"), message_id("b1", 91), b'[{"type": "who.knows.v1"}]')
    tally = await observed(history, tmp_path)
    assert tally.of("swarmd_commits_void_total") == {(): 1}
    assert tally.of("swarmd_events_void_total") == {("refused",): 2, ("garbage",): 1}


async def test_what_is_counted_and_shown_is_declared_with_these_labels(tmp_path: Path) -> None:
    tally = await observed(History().running(), tmp_path)
    declared = {metric.name: len(metric.labels) for metric in METRICS}
    used = [*tally.counts, *tally.gauges]
    assert {name: len(labels) for name, *labels in used} == {name: declared[name] for name, *_ in used}


async def test_the_catalog_has_one_name_as_a_store(tmp_path: Path) -> None:
    tally = await observed(History().running(), tmp_path)
    assert {key[1:] for key in tally.gauges if "_store_" in key[0]} == {("the catalog of obs",)}


async def test_a_second_reader_of_a_log_tells_nothing() -> None:
    log, tally = FakeLog(), Tally()
    await log.append("s", b"not a commit", "b.1", 0)
    read: list[Commit | Garbage] = []

    async def keep(commits: list[Commit | Garbage]) -> None:
        read.extend(commits)
        following.cancel()

    for follower, told in [(Follower(log), 0), (Follower(log, tally), 1)]:
        async with asyncio.timeout(PATIENT_S), asyncio.TaskGroup() as group:
            following = group.create_task(follower.run(0, keep))
        assert len(tally.incidents) == told
    assert len(read) == 2
