"""Snapshots of a swarm's state: blobs, named by a small stream that keeps the two newest."""

from __future__ import annotations

import base64
import zlib
from typing import Final

import msgspec
from msgspec import Struct

from swarmd.adapters.nats_blobs import NatsBlobs
from swarmd.adapters.nats_bus import ApiRefused, NatsBus, patiently
from swarmd.adapters.streams import NOT_FOUND
from swarmd.core import subjects
from swarmd.core.errors import UNREADABLE, Fault, Rejected

KEPT: Final = 2
_NO_MESSAGE: Final = 10037


class _Pointer(Struct):
    """Names a snapshot's blob."""

    digest: str
    bytes: int


class NatsSnapshots:
    """The Snapshots of one swarm."""

    def __init__(self, bus: NatsBus, swarm: str) -> None:
        self._bus, self._blobs = bus, NatsBlobs(bus, swarm)
        self._subject, self._stream = subjects.snapshot(swarm), subjects.snapshot_stream(swarm)

    async def load(self) -> list[bytes]:
        """The saved states, newest first; what is damaged or missing is left out."""
        found: list[bytes] = []
        for pointer in await patiently(self._pointers):
            try:
                found.append(zlib.decompress(await self._blobs.get(pointer.digest)))
            except (Rejected, zlib.error):
                found.append(b"")  # its reader says that it could not be used
        return found

    async def _pointers(self) -> list[_Pointer]:
        try:
            state = (await self._bus.api(f"STREAM.INFO.{self._stream}", b""))["state"]
        except ApiRefused as error:
            if error.code != NOT_FOUND:  # a broker that cannot say now has not said that there are none
                raise Fault("broker_error", f"stream {self._stream}: {error}") from None
            return []
        pointers: list[_Pointer] = []
        for seq in range(state["last_seq"], max(state["first_seq"], 1) - 1, -1):
            if len(pointers) == KEPT or not state["messages"]:
                break
            try:
                pointers.append(msgspec.json.decode(await self._at(seq), type=_Pointer))
            except UNREADABLE:
                continue
        return pointers

    async def _at(self, seq: int) -> bytes:
        """What stands at a sequence, "" for nothing; by the stream's leader, since a replica may lack it."""
        try:
            answer = await self._bus.api(f"STREAM.MSG.GET.{self._stream}", msgspec.json.encode({"seq": seq}))
        except ApiRefused as error:
            if error.code != _NO_MESSAGE:
                raise Fault("broker_error", f"stream {self._stream}: {error}") from None
            return b""
        return base64.b64decode(answer["message"].get("data", ""))

    async def save(self, payload: bytes) -> None:
        """Store a state; the blobs of all but the two newest go."""
        old = await self._pointers()
        packed = zlib.compress(payload, 1)
        digest = await self._blobs.put(packed)
        body = msgspec.json.encode(_Pointer(digest, len(packed)))
        answer = msgspec.json.decode(await self._bus.request(self._subject, body, 10_000))
        if "error" in answer:
            raise Fault("broker_error", f"stream {self._stream}: {answer['error'].get('description')}")
        for pointer in old[KEPT - 1 :]:
            if pointer.digest != digest:
                await self._blobs.remove(pointer.digest)
