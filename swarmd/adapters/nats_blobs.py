"""Blobs in a JetStream stream of their own: content-addressed chunks with a manifest written last.

A plain stream instead of the broker's object store, whose streams allow roll-ups: there, whoever may
write one object can wipe all of them by a header (`docs/adr/0006`). The reader checks the hash. What a
replica lacks is asked of the stream's leader, and a cluster that elects one is waited for.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from swarmd.adapters.nats_bus import ApiRefused, patiently
from swarmd.core import subjects
from swarmd.core.errors import UNREADABLE, Fault, Rejected

if TYPE_CHECKING:
    from swarmd.adapters.nats_bus import NatsBus

CHUNK_BYTES: Final = 512 * 1024
BLOB_BYTES_MAX: Final = 256 * 1024 * 1024
TIMEOUT_MS: Final = 5_000
_STORE_FAILED, _NO_MESSAGE = 10077, 10037
_MANIFEST: Final = "manifest"


class _Manifest(Struct):
    bytes: int
    chunks: int


class NatsBlobs:
    """The Blobs of one swarm."""

    def __init__(self, bus: NatsBus, swarm: str) -> None:
        self._bus, self._swarm = bus, swarm
        self._stream = subjects.blob_stream(swarm)

    async def put(self, payload: bytes) -> str:
        """Store `payload`; return its SHA-256 in hex."""
        if len(payload) > BLOB_BYTES_MAX:
            raise Rejected("too_large", f"a blob of {len(payload)} bytes is over {BLOB_BYTES_MAX}")
        digest = await asyncio.to_thread(lambda: hashlib.sha256(payload).hexdigest())
        chunks = [payload[i : i + CHUNK_BYTES] for i in range(0, len(payload), CHUNK_BYTES)]
        for number, chunk in enumerate(chunks):
            await patiently(self._store, digest, str(number), chunk)
        manifest = msgspec.json.encode(_Manifest(len(payload), len(chunks)))
        await patiently(self._store, digest, _MANIFEST, manifest)
        return digest

    async def _store(self, digest: str, part: str, payload: bytes) -> None:
        """Store one part. It is written once: a second time it must be the same, or the store is full."""
        subject = subjects.blob(self._swarm, digest, part)
        answer = msgspec.json.decode(await self._bus.request(subject, payload, TIMEOUT_MS))
        error = answer.get("error")
        if error and error.get("err_code") == _STORE_FAILED:
            try:
                stored = await self._fetch(digest, part)
            except Rejected:
                why = f"stream {self._stream} is full: raise its limit or remove old blobs"
                raise Rejected("blobs_full", why) from None
            if stored != payload:
                raise Rejected("blob_corrupt", f"blob {digest} has another content than its hash says")
        elif error:
            raise Fault("broker_error", f"stream {self._stream}: {error.get('description')}")

    async def get(self, digest: str) -> bytes:
        """The payload with this hash. Raises `Rejected("blob_missing" | "blob_corrupt")`."""
        if len(digest) != 64 or not digest.isalnum():
            raise Rejected("blob_missing", f"{digest[:80]!r} is no SHA-256 in hex")
        try:
            manifest = msgspec.json.decode(await patiently(self._fetch, digest, _MANIFEST), type=_Manifest)
        except UNREADABLE:
            raise Rejected("blob_corrupt", f"the manifest of blob {digest} cannot be read") from None
        if not 0 <= manifest.chunks <= BLOB_BYTES_MAX // CHUNK_BYTES + 1:
            raise Rejected("blob_corrupt", f"the manifest of blob {digest} cannot be true")
        parts = [await patiently(self._fetch, digest, str(number)) for number in range(manifest.chunks)]
        payload = b"".join(parts)
        if await asyncio.to_thread(lambda: hashlib.sha256(payload).hexdigest()) != digest:
            raise Rejected("blob_corrupt", f"blob {digest} has another content than its hash says")
        return payload

    async def _fetch(self, digest: str, part: str) -> bytes:
        subject = subjects.blob(self._swarm, digest, part)
        message = await self._bus.request_raw(f"$JS.API.DIRECT.GET.{self._stream}.{subject}", b"", TIMEOUT_MS)
        if not (message.headers and message.headers.get("Status")):
            return bytes(message.data)
        try:  # a replica that lacks it is overruled by the stream's leader
            body = msgspec.json.encode({"last_by_subj": subject})
            answer = await self._bus.api(f"STREAM.MSG.GET.{self._stream}", body, TIMEOUT_MS)
        except ApiRefused as error:
            if error.code != _NO_MESSAGE:
                raise Fault("broker_error", f"stream {self._stream}: {error}") from None
            raise Rejected("blob_missing", f"blob {digest} is not stored (part {part})") from None
        return base64.b64decode(answer["message"].get("data", ""))

    async def remove(self, digest: str) -> None:
        """Drop a blob (snapshots do, once two newer ones exist)."""
        body = msgspec.json.encode({"filter": subjects.blob(self._swarm, digest, "*")})
        try:
            await self._bus.api(f"STREAM.PURGE.{self._stream}", body)
        except ApiRefused as error:
            raise Fault("broker_error", f"stream {self._stream}: {error}") from None
