"""What a memory node refuses, each with its own code and a word on what to do; nothing of it reaches the log."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("numpy", reason="needs numpy (pip install 'swarmd[memory]')")

from swarmd.core.errors import Rejected
from swarmd.core.memory_wire import ADMIN_VERBS, PUBLIC_VERBS
from swarmd.roles import memory_desk, memory_writes
from tests.system.memory_nodes import Refused, World, a_world, code

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NORTH = [0.0, 1.0] + [0.0] * 62


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as made:
        await made.node(is_warm=True)
        yield made


BAD_BYTES: list[tuple[str, bytes, str, str]] = [
    ("remember", b"{", "bad_json", "JSON"),
    ("remember", b"", "bad_json", "JSON"),
    ("remember", b'{"id":"x"}', "bad_field", "`text`"),
    ("remember", b'{"text":1}', "bad_field", "$.text"),
    ("remember", b'{"text":"x","lables":{}}', "bad_field", "lables"),
    ("remember", b"[]", "bad_field", "object"),
    ("remember", b'{"text":"x","id":NaN}', "bad_json", "JSON"),
    ("remember", b'{"text":"x","vector":[1e999]}', "bad_field", "$.vector"),
    ("remember", b'{"text":"\\ud800"}', "not_unicode", "surrogate"),
    ("remember", b'{"text":"x \\udc00"}', "not_unicode", "surrogate"),
    ("remember", b'{"text":"\xff"}', "not_unicode", "UTF-8"),
    ("remember", b'{"text":"x","payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep", "nested"),
    ("remember", b'{"text":"x","payload":' + b"[" * 200 + b"]" * 200 + b"}", "too_deep", "nested"),
    ("remember", b'{"text":"x","payload":"\\ud800"}', "not_unicode", "surrogate"),
    ("remember", b'{"text":"x","payload":"\xff"}', "bad_payload", "payload"),
    ("recall", b'{"text":"x","labels":{"a":1}}', "bad_field", "$.labels"),
    ("recall", b'{"text":"x","mode":"fuzzy"}', "bad_field", "$.mode"),
    ("recall", b'{"text":"x","k":"many"}', "bad_field", "$.k"),
    ("forget", b"{}", "bad_field", "`id`"),
    ("update", b"\xff", "bad_json", "JSON"),
    ("get", b'{"ids":"a"}', "bad_field", "$.ids"),
    ("matches", b"{}", "bad_field", "`watcher`"),
]


@pytest.mark.parametrize(("verb", "body", "expected", "named"), BAD_BYTES)
async def test_what_is_no_request(world: World, verb: str, body: bytes, expected: str, named: str) -> None:
    seq = world.nodes[0].state.seq
    error = await world.refused(verb, body)
    assert (error.code, named in error.message) == (expected, True), error
    assert world.nodes[0].state.seq == seq


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("remember", {"text": "  "}, "text_empty", "text"),
    ("remember", {"text": ""}, "text_empty", "text"),
    ("remember", {"text": "x" * 40_000}, "too_large", "32768"),
    ("remember", {"text": "é" * 20_000}, "too_large", "40000 bytes"),
    ("remember", {"text": "a bell \a"}, "control_characters", "U+0007 at 7"),
    ("remember", {"text": "nul \0"}, "control_characters", "U+0000"),
    ("remember", {"text": "x", "id": "a\nb"}, "control_characters", "id"),
    ("remember", {"text": "x", "source": "\t"}, "control_characters", "source"),
    ("remember", {"text": "x", "author": "a\x85"}, "control_characters", "author"),
    ("remember", {"text": "x", "labels": {"a": "\x1b[31m"}}, "control_characters", "label value"),
    ("remember", {"text": "x", "labels": {"\x7f": "a"}}, "control_characters", "label name"),
    ("remember", {"text": "x", "labels": {"": "a"}}, "bad_label", "empty name"),
    ("remember", {"text": "x", "labels": {str(n): "" for n in range(65)}}, "too_many_labels", "65"),
    ("remember", {"text": "x", "labels": {f"{n:01020}": "v" * 1020 for n in range(40)}}, "too_large", "labels"),
    ("remember", {"text": "x", "id": "i" * 1_025}, "too_large", "id"),
    ("remember", {"text": "x", "payload": "p" * 40_000}, "too_large", "payload"),
    ("remember", {"text": "x", "expires_at_ms": -1}, "bad_expiry", "-1"),
    ("remember", {"text": "x", "expires_at_ms": 10}, "bad_expiry", "past"),
    ("remember", {"text": "x", "expires_at_ms": 10**17}, "bad_expiry", "no time"),
    ("remember", {"text": "x", "space": "swarm/no such"}, "unknown_space", "swarm/main/agent/desk"),
    ("remember", {"text": "x", "vector": [1.0, 2.0]}, "wrong_dimension", "64"),
    ("remember", {"text": "x", "vector": []}, "wrong_dimension", "64"),
    ("remember", {"text": "x", "vector": [0.0] * 64}, "bad_vector", "zeros"),
    ("remember", {"text": "x", "vector": [], "embedder": "other"}, "wrong_dimension", "0 dimensions"),
    ("recall", {"text": ""}, "text_empty", "query"),
    ("recall", {"text": "x", "k": 0}, "bad_k", "k is 0"),
    ("recall", {"text": "x", "k": 101}, "bad_k", "100"),
    ("recall", {"text": "x", "filter": "author ="}, "bad_filter", ""),
    ("recall", {"text": "x", "filter": "id in (1)"}, "bad_filter", ""),
    ("recall", {"text": "x", "filter": "true; drop"}, "bad_filter", ""),
    ("recall", {"text": "x", "spaces": ["swarm"]}, "unknown_space", "swarm"),
    ("recall", {"text": "x", "spaces": ["swarm/main"]}, "not_allowed", "admin"),
    ("recall", {"text": "x", "min_similarity": 1.5}, "bad_min_similarity", "1.5"),
    ("recall", {"text": "x", "diversity": -0.1}, "bad_diversity", "-0.1"),
    ("recall", {"text": "x", "at_least_seq": -1}, "bad_sequence", "at_least_seq"),
    ("recall", {"text": "x", "at_least_seq": 2**62}, "bad_sequence", "the log ends at"),
    ("recall", {"text": "x", "as_of": 5}, "unknown_view", "5"),
    ("recall", {"vector": [1.0]}, "wrong_dimension", "64"),
    ("recall", {"vector": [0.0] * 64}, "bad_vector", "zeros"),
    ("recall", {"vector": NORTH, "mode": "lexical"}, "bad_mode", "words"),
    ("recall", {"text": "x", "mode": "lexical", "min_similarity": 0.5}, "bad_min_similarity", "words"),
    ("recall", {"text": "a bell \a"}, "control_characters", "query text"),
    ("get", {"ids": []}, "bad_ids", "0 ids"),
    ("get", {"ids": ["x"] * 1_001}, "bad_ids", "1001"),
    ("watch", {"watcher": "w", "text": "x", "threshold": 1.5}, "bad_threshold", "1.5"),
    ("watch", {"watcher": "w", "text": " "}, "text_empty", "watched"),
    ("watch", {"watcher": "no name", "text": "x"}, "bad_name", "watcher"),
    ("unwatch", {"watcher": "nobody"}, "unknown_watch", "nobody"),
    ("update", {"id": "nothing", "text": "x"}, "unknown_memory", "nothing"),
    ("update", {"id": "\n", "text": "x"}, "control_characters", "id"),
]


@pytest.mark.parametrize(("verb", "body", "expected", "named"), BAD)
async def test_what_cannot_be(world: World, verb: str, body: dict[str, Any], expected: str, named: str) -> None:
    seq = world.nodes[0].state.seq
    error = await world.refused(verb, body)
    assert (error.code, named in error.message) == (expected, True), error
    assert world.nodes[0].state.seq == seq


@pytest.mark.parametrize(
    ("verb", "body", "expected"),
    [
        ("revoke", {}, "bad_revoke"),
        ("revoke", {"since_ms": -5}, "bad_revoke"),
        ("revoke", {"id": "nothing"}, "unknown_memory"),
        ("revoke", {"author": "x", "reason": "\0"}, "control_characters"),
        ("lineage", {"id": "nothing"}, "unknown_memory"),
        ("lineage", {"id": "t1", "swarm": "main"}, "unknown_task"),
        ("lineage", {"id": "t1", "depth": 0}, "bad_depth"),
        ("job", {"id": "nothing"}, "unknown_job"),
        ("rebuild", {"as_of_seq": -1}, "bad_as_of"),
    ],
)
async def test_what_admins_cannot_ask_either(world: World, verb: str, body: dict[str, Any], expected: str) -> None:
    assert (await world.refused(verb, body, admin=True)).code == expected


async def test_text_may_have_lines_and_tabs(world: World) -> None:
    await world.kept("one\n\ttwo\r\nthree", id="a")
    assert [one.text for one in (await world.get("a")).memories] == ["one\n\ttwo\r\nthree"]


async def test_verbs_that_are_not_there_or_not_for_the_caller(world: World) -> None:
    unknown = await world.refused("remebmer", {"text": "x"})
    assert (unknown.code, "remember_many" in unknown.message) == ("unknown_verb", True)
    for who in ({}, {"swarm": "main"}):
        for verb in ADMIN_VERBS:
            refused = await world.refused(verb, {}, **who)
            assert (refused.code, f"memory.shared.ctl.{verb}" in refused.message) == ("not_allowed", True)
    for verb in (*PUBLIC_VERBS, *ADMIN_VERBS):
        reply = await world.ask(verb, {}, Refused, admin=True)
        assert code(reply) not in ("not_allowed", "unknown_verb")


async def test_a_request_is_answered_nowhere_that_is_not_the_askers(world: World) -> None:
    heard: list[str] = []
    await world.bus.subscribe("swarm.main.>", lambda message: heard.append(message.subject))
    await world.bus.publish("memory.shared.stats", b"", "swarm.main.log.orchestrator.x")
    await world.bus.publish("memory.shared.stats", b"", "")
    await world.bus.publish("memory.shared.lease", b"", "_INBOX.x.y")
    await world.stats()
    assert heard == []


async def test_a_message_that_the_broker_would_not_take_is_refused_where_it_is_sent(world: World) -> None:
    with pytest.raises(Rejected, match="limit"):
        await world.remember("x" * 10_000_000)


async def test_a_log_that_takes_nothing_is_told_and_nothing_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a broker does whose disk is full: it says nothing at all."""
    monkeypatch.setattr(memory_writes, "UNSURE_MS", 10)
    monkeypatch.setattr(memory_desk, "ANSWER_MS", 50)
    await world.kept("one", id="a")
    room, append = asyncio.Event(), world.log.append

    async def when_there_is_room(*commit: Any) -> Any:
        await room.wait()
        return await append(*commit)

    monkeypatch.setattr(world.log, "append", when_there_is_room)
    for _ in range(2):  # asked again, it is told again
        reply = await world.remember("two", id="b")
        assert code(reply) == "no_receipt"
    assert (await world.refused("forget", {"id": "a"}, admin=True)).code == "timeout"
    room.set()
    assert await world.kept("two", id="b") == await world.kept("two", id="b") > 0
    assert len(await world.recall("two")) == 1  # the other one was dropped all the same
