"""The bus where the library under it misbehaves."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from swarmd.adapters.nats_bus import NatsBus


class Deaf:
    """A client whose request drops a cancellation, as `asyncio.wait_for` may before Python 3.12."""

    async def request(self, *arguments: Any, **options: Any) -> str:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            return "an answer that came at that very moment"
        return "an answer"


async def test_a_cancellation_that_the_library_drops_is_not_lost() -> None:
    bus = NatsBus(cast("Any", Deaf()))

    async def ask() -> None:
        while True:
            await bus.request_raw("somewhere", b"", 1_000)

    asking = asyncio.get_running_loop().create_task(ask())
    await asyncio.sleep(0)
    asking.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_a_timeout_around_a_request_stays_a_timeout() -> None:
    bus = NatsBus(cast("Any", Deaf()))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await bus.request_raw("somewhere", b"", 1_000)
