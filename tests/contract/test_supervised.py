"""A child process under supervision, in small programs: ready, dead, slow, deaf to SIGTERM, stopped too early."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from swarmd.core.errors import Fault
from swarmd.supervised import Child, Supervised

if TYPE_CHECKING:
    from pathlib import Path

PATIENT_S = 20.0
SERVE = "import pathlib, signal; pathlib.Path('up').touch(); signal.pause()"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SERVE}"
DIE = "print('first'); print('no'); print('such'); print('luck'); raise SystemExit(3)"


class Server:
    """Runs `program` in `directory`; ready when the file `up` is there."""

    def __init__(self, directory: Path, program: str, ready_s: float = PATIENT_S, stop_s: float = PATIENT_S) -> None:
        self.directory, self.program = directory, program
        said = directory / "said"
        self.child = Supervised(Child("toy", "toy", (said,), ready_s, stop_s))
        self._output = said

    async def start(self) -> None:
        (self.directory / "up").unlink(missing_ok=True)
        with self._output.open("wb") as output:
            await self.child.launch([sys.executable, "-c", self.program], output, self.directory)
        await self.child.until_ready(self.is_ready)

    async def is_ready(self) -> bool:
        return (self.directory / "up").exists()


async def test_it_serves_until_it_is_stopped(tmp_path: Path) -> None:
    server = Server(tmp_path, SERVE)
    assert (server.child.pid, server.child.exit_code) == (0, None)
    await server.start()
    assert server.child.pid > 0
    await server.child.stop()
    await server.child.stop()
    assert (server.child.pid, server.child.exit_code) == (0, -signal.SIGTERM)
    async with asyncio.timeout(PATIENT_S):
        await server.child.supervise(server.start, 1, None)  # nothing is left to do


async def test_one_that_dies_at_its_start_is_quoted(tmp_path: Path) -> None:
    server = Server(tmp_path, DIE)
    with pytest.raises(Fault, match=r"^toy ended at its start: no \| such \| luck$") as died:
        await server.start()
    assert (died.value.code, server.child.exit_code) == ("toy_died", 3)


async def test_one_that_does_not_get_ready_is_ended(tmp_path: Path) -> None:
    server = Server(tmp_path, "import signal; signal.pause()", ready_s=0.05)
    with pytest.raises(Fault, match="it said nothing; see") as slow:
        await server.start()
    assert (slow.value.code, server.child.pid) == ("toy_slow", 0)


async def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    server = Server(tmp_path, "import signal; signal.pause()")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await server.start()
    assert server.child.pid == 0


async def test_one_that_is_deaf_to_sigterm_is_killed(tmp_path: Path) -> None:
    server = Server(tmp_path, DEAF, stop_s=0.05)
    await server.start()
    await server.child.stop()
    assert server.child.exit_code == -signal.SIGKILL


async def test_the_dead_are_replaced_until_it_is_hopeless(tmp_path: Path) -> None:
    server, pids = Server(tmp_path, SERVE), list[int]()
    await server.start()
    first = server.child.pid

    def on_restart(pid: int) -> None:
        pids.append(pid)
        server.program = DIE
        os.kill(pid, signal.SIGKILL)

    os.kill(first, signal.SIGKILL)
    with pytest.raises(Fault, match=r"toy died 3 times in a row: no \| such \| luck") as hopeless:
        async with asyncio.timeout(PATIENT_S):
            await server.child.supervise(server.start, 2, on_restart)
    assert hopeless.value.code == "toy_died"
    assert len(pids) == 1
    assert first not in pids


async def test_a_stop_during_a_restart_leaves_no_process(tmp_path: Path) -> None:
    server = Server(tmp_path, SERVE)
    await server.start()
    restarting = asyncio.Event()

    async def restart() -> None:
        restarting.set()
        await server.start()

    async with asyncio.timeout(PATIENT_S), asyncio.TaskGroup() as group:
        group.create_task(server.child.supervise(restart, 5, None))
        os.kill(server.child.pid, signal.SIGKILL)
        await restarting.wait()
        await server.child.stop()
    assert server.child.pid == 0
    server.child.rearm()
    await server.start()
    assert server.child.pid > 0
    await server.child.stop()
