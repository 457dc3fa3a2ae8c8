"""The rate of each provider, shared by all workers of a swarm: one message per provider, changed by compare-and-set.

Job: lease slices of a token bucket whose state is the last message on `swarm.<S>.rate.<provider>`. The stream is kept
in memory: after a broker restart the buckets are full again, which is a burst of a tenth of a minute's rate. The last
known state is tried first, so an undisputed lease is one request. Must not know what is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from swarmd.adapters.nats_bus import ApiRefused
from swarmd.core import subjects
from swarmd.core.errors import UNREADABLE, Fault
from swarmd.core.model_limits import Buckets, Rate, Slice, full, take

if TYPE_CHECKING:
    from swarmd.adapters.nats_bus import NatsBus
    from swarmd.ports import Clock

TIMEOUT_MS: Final = 2_000
#: Somebody else was first so often in a row: give way for a while.
TRIES_MAX: Final = 32
GIVE_WAY_MS: Final = 50
_WRONG_LAST_SEQUENCE: Final = (10071, 10164)
_NO_MESSAGE: Final = 10037


class NatsRates:
    """A `RateLedger` of one swarm."""

    def __init__(self, bus: NatsBus, swarm: str, clock: Clock) -> None:
        self._bus, self._swarm, self._clock = bus, swarm, clock
        self._known: dict[str, tuple[Buckets, int]] = {}
        self._behind_ms = 0

    async def lease(self, provider: str, rate: Rate, need: Slice, wish: Slice) -> tuple[Slice, int]:
        """A slice, or an empty one and how long to wait (ms). Raises `Fault` when the broker does not answer."""
        subject = subjects.rate(self._swarm, provider)
        known = self._known.get(provider)
        for _ in range(TRIES_MAX):
            held, seq = known or await self._read(subject, rate)
            buckets = msgspec.json.decode(msgspec.json.encode(held), type=Buckets)
            # The fastest clock of all workers counts; one that lags would else find every bucket emptied before it.
            self._behind_ms = max(self._behind_ms, held.at_ms - self._clock.now_ms())
            leased, wait = take(buckets, rate, need, wish, self._clock.now_ms() + self._behind_ms)
            if wait:
                if known is None:
                    return leased, wait
                known = None  # others may have been idle for longer than this process knows
                continue
            stored = await self._write(subject, buckets, seq)
            if stored:
                self._known[provider] = (buckets, stored)
                return leased, 0
            self._known.pop(provider, None)
            known = None
        return Slice(), GIVE_WAY_MS

    async def _read(self, subject: str, rate: Rate) -> tuple[Buckets, int]:
        body = msgspec.json.encode({"last_by_subj": subject})
        try:
            found = await self._bus.api(f"STREAM.MSG.GET.{subjects.rate_stream(self._swarm)}", body, TIMEOUT_MS)
        except ApiRefused as error:
            if error.code == _NO_MESSAGE:
                return full(rate, self._clock.now_ms()), 0
            raise Fault("broker_error", f"rate {subject}: {error}") from None
        message = msgspec.convert(found["message"], _Found)
        try:
            return msgspec.json.decode(message.data, type=Buckets), message.seq
        except UNREADABLE:  # of another version: counted anew
            return full(rate, self._clock.now_ms()), message.seq

    async def _write(self, subject: str, buckets: Buckets, expected: int) -> int:
        """The new sequence, or 0 when somebody else was first."""
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        message = await self._bus.request_raw(subject, msgspec.json.encode(buckets), TIMEOUT_MS, headers)
        answer = msgspec.json.decode(message.data)
        error = answer.get("error")
        if not error:
            return int(answer["seq"])
        if error.get("err_code") in _WRONG_LAST_SEQUENCE:
            return 0
        raise Fault("broker_error", f"rate {subject}: {error.get('description')}")


class _Found(msgspec.Struct):
    seq: int
    data: bytes = b""
