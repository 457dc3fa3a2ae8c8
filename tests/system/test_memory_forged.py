"""Commits that no memory node would make, by somebody who may write the log: the node goes on and says the same."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec
import pytest

pytest.importorskip("numpy", reason="needs numpy (pip install 'swarmd[memory]')")

from swarmd.core import subjects
from swarmd.core.codec import Packer
from swarmd.core.events import Event, Fact
from swarmd.core.memory import MEMORY_TYPES, Matched, Read, Rebuilt, RememberedV2, Updated, Watched
from swarmd.core.memory_wire import ExportReply, JobReply, MatchesReply
from tests.system.memory_nodes import MEMORY, World, a_world, code
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MINE = "hash-v2-64"


def vector(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


FORGED: dict[str, tuple[str, Fact]] = {
    "a match in the future": ("first", Matched(seq=2**62, index=0, watchers={"w": 0.9})),
    "a match of nobody": ("nobody", Matched(seq=4, index=0, watchers={"w": 0.9})),
    "a vector of three bytes": ("forged", RememberedV2(text="forged", vector=b"abc", embedder=MINE)),
    "a vector of another length": ("forged", RememberedV2(text="forged", vector=vector(1, 2), embedder=MINE)),
    "a vector that is none": (
        "forged",
        RememberedV2(text="forged", vector=vector(*[float("nan")] * 64), embedder=MINE),
    ),
    "an infinite vector": ("forged", RememberedV2(text="forged", vector=vector(*[float("inf")] * 64), embedder=MINE)),
    "a vector too long": ("forged", RememberedV2(text="forged", vector=vector(*[3e38] * 64), embedder=MINE)),
    "a text with control characters": ("forged", RememberedV2(text="nul \0 \x1b")),
    "a text of any size": ("forged", RememberedV2(text="word " * 50_000)),
    "a payload that is no text": ("forged", RememberedV2(text="forged", payload=msgspec.Raw(b'"\xff"'))),
    "an id of any size": ("i" * 100_000, RememberedV2(text="forged")),
    "a time that no store can hold": ("forged", RememberedV2(text="forged", expires_at_ms=10**30)),
    "a filter that does not parse": ("forged", Watched(threshold=-1.0, text="x", filter="(((")),
    "a watch that is near to all": ("forged", Watched(threshold=-1.0, vector=vector(*[1e38] * 64), embedder=MINE)),
    "a watch of nothing": ("forged", Watched(threshold=1e308)),
    "an update of nobody": ("nobody", Updated(text="x", replaces=-1)),
    "a reader of nobody": ("t", Read(swarm="a/b", how="get", memories={"nobody": -1, "first": 10**40})),
    "a generation too far": ("m", Rebuilt(generation=2**63, embedder="hash:64", embedder_id=MINE, dimension=64)),
    "an embedder that is none": ("m", Rebuilt(generation=70, embedder="hash:64", embedder_id="x", dimension=64)),
}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as made:
        await made.node(is_warm=True)
        yield made


async def forge(world: World, subject: str, fact: Fact) -> None:
    packer = Packer()
    packer.add(Event(subject, fact, type=MEMORY_TYPES[type(fact)], source="/x", id="f", time="2026-01-01T00:00:00Z"))
    where = subjects.memory_log(MEMORY, "memory", "forger")
    await world.log.append(where, packer.payload(), "forger.1", await world.log.last_seq())


async def rebuilt(world: World) -> None:
    begun = await world.ask("rebuild", {"embedder": "hash:64"}, JobReply, admin=True)
    assert not code(begun), begun
    job = world.nodes[0].node._projection.jobs[-1]
    await until(lambda: job.state != "running")
    assert job.state == "done", job


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_commit_holds_nothing_up(world: World, name: str) -> None:
    subject, fact = FORGED[name]
    await world.kept("a first memory", id="first")
    await world.tell("watch", {"watcher": "w", "text": "after it", "threshold": -1.0})
    await world.kept("another memory", id="second")
    await forge(world, subject, fact)
    seq = await world.kept("after it all", id="after")
    wanted = {"watcher": "w", "wait_ms": 10_000, "at_least_seq": seq, "max": 100}
    found = await world.ask("matches", wanted, MatchesReply)
    assert {"second", "after"} <= {match.memory.id for match in found.matches}
    assert not code(await world.ask("export", {}, ExportReply, admin=True))
    assert not code(await world.get("first", subject, swarm="main", task="t"))
    assert not code(await world.lineage("first", depth=3))
    await rebuilt(world)
    assert "after" in await world.recall("after it all")
    assert not (await world.stats(admin=True)).trouble
    other = await world.node(is_leading=False)
    await until(lambda: other.state.seq == world.nodes[0].state.seq)
    for part in ("known", "live", "spaces", "matched", "numbered", "rebuilt", "wrote", "read", "counters"):
        assert getattr(other.state, part) == getattr(world.nodes[0].state, part), part
    assert not any(running.task.done() for running in world.nodes)


async def test_what_a_store_refuses_is_not_said_to_be_repaired(world: World) -> None:
    await forge(world, *FORGED["a text of any size"])
    seq = await world.kept("after it all", id="after")
    await world.recall("after it all", at_least_seq=seq)
    await world.ask("verify", {"repair": True}, JobReply, admin=True)
    job = world.nodes[0].node._projection.jobs[-1]
    await until(lambda: job.state != "running")
    assert (job.state, job.missing, job.repaired) == ("done", 1, 0)
