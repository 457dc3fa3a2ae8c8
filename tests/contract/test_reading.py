"""Single commits, each read once for all who want it at about the same time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.fakes import FakeLog
from swarmd.core.errors import Fault
from swarmd.core.events import Stepped
from swarmd.roles.reading import Reader
from tests.core.history import History

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmd.core.codec import Record


class Counting(FakeLog):
    """A log that counts its reads, is slow, and may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []
        self.fails = False

    async def read(self, seqs: Sequence[int]) -> list[Record]:
        self.reads += seqs
        for _ in range(3):
            await asyncio.sleep(0)
        if self.fails:
            raise Fault("broken", "no answer")
        return await super().read(seqs)


@pytest.fixture
async def log() -> Counting:
    history, log = History(), Counting()
    for n in range(1, 9):
        history.work("t", Stepped(epoch=1, key=f"s#{n}", kind="step"))
    for record in history.records:
        await log.append(record.subject, record.payload, record.message_id, 0)
    return log


async def test_what_many_want_is_read_once(log: Counting) -> None:
    reader = Reader(log)
    found = await asyncio.gather(reader.commits([1, 2]), reader.commits([2, 3]), reader.event((2, 0)))
    assert sorted(log.reads) == [1, 2, 3]
    assert [sorted(commits) for commits in found[:2]] == [[1, 2], [2, 3]]
    assert found[2] is found[0][2].events[0]  # type: ignore[union-attr]
    await reader.commits([3, 1])
    assert len(log.reads) == 3
    reader.forget()
    await reader.commits([3])
    assert log.reads[-1] == 3


async def test_a_reader_that_goes_or_fails_leaves_the_others_to_read_for_themselves(log: Counting) -> None:
    reader = Reader(log)
    first = asyncio.gather(reader.commits([1]), return_exceptions=True)
    await asyncio.sleep(0)
    second = asyncio.gather(reader.commits([1]))
    await asyncio.sleep(0)
    first.cancel()
    assert list((await second)[0]) == [1]
    log.fails = True
    failed = await asyncio.gather(reader.commits([5]), reader.commits([5]), return_exceptions=True)
    assert all(isinstance(error, Fault) for error in failed)
    log.fails = False
    assert list(await reader.commits([5])) == [5]


async def test_only_the_last_ones_are_kept(log: Counting) -> None:
    (record,) = await log.read([1])
    reader = Reader(log, kept_bytes_max=3 * len(record.payload) + 10)
    for seq in (1, 2, 3, 1, 4):
        await reader.commits([seq])
    log.reads.clear()
    await reader.commits([1, 3, 4])
    assert log.reads == []
    await reader.commits([2])
    assert log.reads == [2]


async def test_a_place_without_an_event_is_a_fault(log: Counting) -> None:
    for place in ((1, 5), (99, 0)):
        with pytest.raises(Fault):
            await Reader(log).event(place)
