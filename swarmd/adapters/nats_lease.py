"""The leader lease: one message with a time to live, taken and renewed by compare-and-set.

Written with raw publishes, since the library's key-value updates drop the time to live and its reads
show expired entries. Losing the lease is noticed at the next renewal; until then the log's term fences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from swarmd.adapters.nats_bus import ApiRefused
from swarmd.core import subjects
from swarmd.core.errors import Fault

if TYPE_CHECKING:
    from swarmd.adapters.nats_bus import NatsBus

TTL_S: Final = 2
_NO_MESSAGE: Final = 10037
_WRONG_LAST_SEQUENCE: Final = (10071, 10164)


class NatsLease:
    """The lease of one swarm, wanted by `holder` (writer and boot, for people to read)."""

    def __init__(self, bus: NatsBus, swarm: str, holder: str) -> None:
        self._bus, self._subject = bus, subjects.lease(swarm)
        self._stream = subjects.lease_stream(swarm)
        self._holder = holder.encode()
        self._seq = 0

    @classmethod
    def of_memory(cls, bus: NatsBus, memory: str, holder: str) -> NatsLease:
        """The lease of one memory: which of its nodes serves."""
        lease = cls(bus, memory, holder)
        lease._subject, lease._stream = subjects.memory_lease(memory), subjects.memory_lease_stream(memory)
        return lease

    async def look(self) -> int:
        """The sequence of the lease as it is held now, 0 when nobody holds it. Raises `Fault`."""
        body = msgspec.json.encode({"last_by_subj": self._subject})
        try:
            found = await self._bus.api(f"STREAM.MSG.GET.{self._stream}", body, 1_000)
        except ApiRefused as error:
            if error.code == _NO_MESSAGE:
                return 0
            raise Fault("broker_error", f"lease {self._subject}: {error}") from None
        return int(found["message"]["seq"])

    async def acquire(self, mark: int = 0) -> bool:
        """Take the lease if nobody holds it, or if it still has this mark. Raises `Fault` if the broker is silent."""
        return await self._write(mark)

    async def renew(self) -> bool:
        """Extend the lease; False when it was lost."""
        return await self._write(self._seq)

    async def _write(self, expected: int) -> bool:
        headers = {"Nats-TTL": str(TTL_S), "Nats-Expected-Last-Subject-Sequence": str(expected)}
        message = await self._bus.request_raw(self._subject, self._holder, 1_000, headers)
        answer = msgspec.json.decode(message.data)
        error = answer.get("error")
        if not error:
            self._seq = answer["seq"]
            return True
        if error.get("err_code") in _WRONG_LAST_SEQUENCE:
            return False
        raise Fault("broker_error", f"lease {self._subject}: {error.get('description')}")

    async def release(self) -> None:
        """Let go at once, so that a standby need not wait for the time to live."""
        body = msgspec.json.encode({"filter": self._subject})
        try:
            await self._bus.api(f"STREAM.PURGE.{self._stream}", body, 1_000)
        except ApiRefused as error:
            raise Fault("broker_error", f"lease {self._subject}: {error}") from None
