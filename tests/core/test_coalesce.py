"""Concurrent calls share batches; a cancelled leader takes nobody with it."""

from __future__ import annotations

import asyncio

import pytest

from swarmd.coalesce import Coalescer
from swarmd.core.errors import Fault


class Double:
    """Answers 2 * item, once the gate is open, and keeps what it was asked."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()

    async def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.asked.set()
        await self.gate.wait()
        if 13 in items:
            raise Fault("unlucky", "13 was asked")
        return [2 * item for item in items]


def coalescer(double: Double, items_max: int = 100) -> Coalescer[int, int]:
    return Coalescer(double, window_ms=0, items_max=items_max)


async def test_concurrent_calls_share_one_batch_and_get_their_own_answers() -> None:
    double = Double()
    asking = coalescer(double)
    assert await asyncio.gather(*(asking.ask([n, n + 1]) for n in range(3))) == [[0, 2], [2, 4], [4, 6]]
    assert double.batches == [[0, 1, 1, 2, 2, 3]]
    assert await asking.ask([]) == []
    assert await asking.ask([5]) == [10]
    assert len(double.batches) == 2


async def test_a_batch_has_a_limit_and_a_single_large_call_has_none() -> None:
    double = Double()
    asking = coalescer(double, items_max=3)
    answers = await asyncio.gather(*(asking.ask([n] * size) for n, size in enumerate([2, 2, 1, 5])))
    assert answers == [[0, 0], [2, 2], [4], [6] * 5]
    assert double.batches == [[0, 0], [1, 1, 2], [3] * 5]


async def test_while_a_batch_is_in_flight_others_gather() -> None:
    double = Double()
    asking = coalescer(double)
    double.gate.clear()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(asking.ask([1]))
        await double.asked.wait()
        others = [group.create_task(asking.ask([n])) for n in (2, 3, 4)]
        await asyncio.sleep(0)
        double.gate.set()
    assert await first == [2]
    assert [await other for other in others] == [[4], [6], [8]]
    assert double.batches == [[1], [2, 3, 4]]


async def test_a_failure_reaches_those_in_the_batch_and_nobody_after() -> None:
    double = Double()
    asking = coalescer(double)
    answers = await asyncio.gather(asking.ask([1]), asking.ask([13]), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Fault, Fault]
    assert await asking.ask([1]) == [2]


@pytest.mark.parametrize("is_in_flight", [False, True], ids=["gathering", "in flight"])
@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_a_cancelled_call_takes_nobody_with_it(is_in_flight: bool, cancelled: int) -> None:
    double = Double()
    asking = coalescer(double)
    double.gate.clear()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        calls = [group.create_task(asking.ask([n])) for n in range(3)]
        if is_in_flight:
            await double.asked.wait()
        else:
            await asyncio.sleep(0)
        calls[cancelled].cancel()
        double.gate.set()
    for n, call in enumerate(calls):
        if n == cancelled:
            assert call.cancelled()
        else:
            assert call.result() == [2 * n]
    assert await asking.ask([7]) == [14]


async def test_all_cancelled_leaves_it_usable() -> None:
    double = Double()
    asking = coalescer(double)
    double.gate.clear()
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(asking.ask([n])) for n in range(3)]
        await double.asked.wait()
        for call in calls:
            call.cancel()
    double.gate.set()
    assert await asking.ask([7]) == [14]
