"""The real clock and the real randomness: the only place that asks the operating system for either."""

from __future__ import annotations

import asyncio
import secrets
import time


class SystemClock:
    """Wall-clock milliseconds that follow the monotonic clock, so that they never run backwards."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ms(self) -> int:
        return (time.monotonic_ns() + self._offset_ns) // 1_000_000

    async def sleep(self, delay_ms: int) -> None:
        await asyncio.sleep(delay_ms / 1000)


class SystemEntropy:
    """Random bits from the operating system."""

    def bits(self, count: int) -> int:
        return secrets.randbits(count)
