"""What the documents tell people to run is run: the tutorial's commands, and the member that is only a NATS client."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.system.pages import COMMAND_S, ROOT, commands, environment, files_of, marked, shell
from tests.system.swarms import a_swarm
from tests.system.ups import PLAIN, RunningUp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# --- the tutorial ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "tour"
    folder.mkdir()
    files_of("tutorial.md", folder)
    environ = environment(folder)
    modules = ("--agents", "swarmd.agents", "--agents", "tour")
    with RunningUp(folder / "data", *modules, cwd=folder, environ=environ):
        for command, promised in commands("tutorial.md"):
            done = shell(command, folder, environ)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            if promised:
                assert done.stdout.splitlines() == promised, command
        checked = subprocess.run(
            [folder / "bin" / "swarmd", "config", "check", "swarm.toml"],
            cwd=folder,
            env={**PLAIN, **environ},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr
        assert "reviewer" in checked.stdout


@pytest.mark.slow
def test_the_programs_of_the_readme_run(tmp_path: Path) -> None:
    agents, client = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "scales.py").write_text(agents)
    environ = {"PYTHONPATH": str(ROOT)}
    with RunningUp(tmp_path / "data", "--agents", "scales", cwd=tmp_path, environ=environ) as up:
        if up.ready.get("without"):
            pytest.skip(f"needs the memory: {up.ready['without']}")
        (tmp_path / "client.py").write_text(client.replace("nats://127.0.0.1:4222", up.ready["nats"]))
        done = subprocess.run(
            [sys.executable, "client.py"],
            cwd=tmp_path,
            env={**PLAIN, **environ},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "NATS carries messages." in done.stdout


def test_the_tutorial_has_commands_to_run() -> None:
    assert len(commands("tutorial.md")) >= 12
    assert [name for name, _ in marked("tutorial.md", "file")] == ["tour.py", "swarm.toml"]


# --- a member that knows nothing but NATS ----------------------------------------------------------


@contextmanager
def member(folder: Path, url: str, user_file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The program of docs/protocol.md as a process; ended by its pid."""
    ((_, program),) = marked("protocol.md", "member")
    (folder / "member.py").write_text(program)
    with (folder / "member.err").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, folder / "member.py", url, user_file], stdout=subprocess.DEVNULL, stderr=errors
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_the_member_of_the_protocol_runs_tasks_and_is_missed_when_it_dies(tmp_path: Path) -> None:
    async with a_swarm(tmp_path, with_users=True) as swarm:
        user_file = tmp_path / "credentials" / "worker.json"
        with member(tmp_path, swarm.nats.url, user_file) as process:
            handles = [await swarm.client.submit("shout", word) for word in ("hello", "there")]
            assert [await swarm.client.result(handle, 30_000) for handle in handles] == ["HELLO", "THERE"]
            assert process.poll() is None, (tmp_path / "member.err").read_text()
        waiting = await swarm.client.submit("shout", "again")
        with member(tmp_path, swarm.nats.url, user_file):
            assert await swarm.client.result(waiting, 30_000) == "AGAIN"
        assert (await swarm.client.outcome(handles[0])).attempts == 1
