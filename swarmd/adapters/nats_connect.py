"""One connection to NATS, with the options that a long-running process needs, and errors that say what to do.

Job: turn `NatsSettings` into a connected client. Invariants: connecting is bounded, staying connected is not (the
client reconnects for ever); a secret is never part of a text; TLS that was asked for is never silently left out.
Must not know subjects, streams or roles.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from msgspec import Struct

from swarmd.core.errors import Fault, Rejected, SwarmdError

if TYPE_CHECKING:
    from nats.aio.client import Client

log = logging.getLogger(__name__)

PENDING_BYTES = 64 * 1024 * 1024
RECONNECT_WAIT_S = 0.2
ABANDON_S = 0.5
CLOSE_S = 5.0
PING_S = 5
"""With two missed pings a dead peer is noticed after 10 to 15 s; the library's default takes minutes."""


class NatsSettings(Struct, frozen=True, kw_only=True):
    """Where the broker is and who we are. At most one of password, token, credentials file and nkey seed is used.

    `url` may list several servers, separated by commas. `connect_timeout_ms` bounds the first connection only.
    """

    url: str = "nats://127.0.0.1:4222"
    user: str = ""
    password: str = ""
    token: str = ""
    credentials_file: str = ""
    nkey_seed_file: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_hostname: str = ""
    tls_first: bool = False
    inbox_prefix: str = "_INBOX"
    connect_timeout_ms: int = 5_000

    def __repr__(self) -> str:
        who = self.user or ("token" if self.token else "") or self.credentials_file or self.nkey_seed_file
        return f"NatsSettings(url={redact_url(self.url)!r}, as={who!r}, tls={self.wants_tls})"

    __str__ = __repr__

    @property
    def wants_tls(self) -> bool:
        return bool(self.tls_ca or self.tls_cert or self.tls_first or "tls://" in self.url or "wss://" in self.url)


class ConnectionEvents(Struct, frozen=True, kw_only=True):
    """Callbacks of one connection; each must return soon, since reconnecting waits for it."""

    on_error: Callable[[Exception], Awaitable[None]] | None = None
    on_disconnect: Callable[[], Awaitable[None]] | None = None
    on_reconnect: Callable[[], Awaitable[None]] | None = None
    on_close: Callable[[], Awaitable[None]] | None = None


async def connect(settings: NatsSettings, name: str, events: ConnectionEvents | None = None) -> Client:
    """Return a connected `nats.aio.client.Client` named `name` (shown in the broker's connection list).

    Tries until `connect_timeout_ms` while the broker is absent. Raises `Rejected` ("bad_nats_url", "bad_credentials",
    "broker_refused", "tls_failed", "tls_missing"), where another try will not help, or `Fault("broker_unreachable")`.
    """
    events = events or ConnectionEvents()
    options = _options(settings, events)
    urls = _urls(settings)
    where = ", ".join(redact_url(url) for url in urls)
    last: list[BaseException] = []
    _client_class()  # to import the library takes a while, which is none of the broker's
    try:
        async with asyncio.timeout(settings.connect_timeout_ms / 1000) as limit:
            while not limit.expired():  # the library may swallow the cancellation by which it ends a wait
                try:
                    return await _connect_once(urls, name, options, events, last)
                except (OSError, TimeoutError) as error:
                    if isinstance(error, ssl.SSLError):
                        raise
                    last[:] = [error]
                    await asyncio.sleep(RECONNECT_WAIT_S)
            raise TimeoutError
    except TimeoutError as error:
        cause = last[0] if last else error
        raise _unreachable(where, cause) from cause
    except ssl.SSLError as error:
        raise _tls_failed(where, error) from error


async def _connect_once(
    urls: list[str],
    name: str,
    options: dict[str, Any],
    events: ConnectionEvents,
    last: list[BaseException],
) -> Client:
    from nats import errors

    client = _client_class()()
    connected = False

    async def on_error(error: Exception) -> None:
        if not connected:
            last[:] = [error]
        elif events.on_error is not None:
            await events.on_error(error)
        else:
            log.warning("NATS connection %s: %s", name, str(error) or type(error).__name__)

    try:
        # With reconnecting on, the library would try a wrong password for ever.
        await client.connect(servers=urls, name=name, error_cb=on_error, allow_reconnect=False, **options)
        _refuse_plain(client, options)
    except errors.Error as error:
        await _abandon(client)
        if isinstance(error, TimeoutError):
            raise
        raise Rejected(
            "broker_refused",
            f"the broker refused {name}: {str(error).removeprefix('nats: ') or type(error).__name__}; check user, "
            "password or credentials, and that this is the client port of a NATS server",
        ) from error
    except BaseException:
        await _abandon(client)
        raise
    client.options["allow_reconnect"] = True
    connected = True
    return client


@cache
def _client_class() -> type[Client]:
    from nats.aio.client import Client

    class SturdyClient(Client):
        """The broker passes on subjects of any bytes; one that is no UTF-8 would end the library's read loop."""

        def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> Any:
            try:
                return super()._build_message(sid, subject, reply, data, headers)
            except UnicodeDecodeError:
                log.warning("passed over a message on %r with reply %r: no UTF-8", subject[:100], reply[:100])
                return None

    return SturdyClient


async def disconnect(client: Client) -> None:
    """Close for good, within a few seconds.

    The library's reconnecting misses a cancellation that comes at the moment of a refused connection, and would then
    go on for ever: a process that is told to stop while its broker is away would not end.
    """
    reconnecting = client._reconnection_task
    while not client.is_closed:
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(CLOSE_S):
                await client.close()
        while reconnecting is not None and not reconnecting.done():
            reconnecting.cancel()
            await asyncio.wait([reconnecting], timeout=ABANDON_S)


def _refuse_plain(client: Client, options: dict[str, Any]) -> None:
    """The library goes on in plain text when TLS is configured here and not offered there."""
    stream = getattr(client._transport, "_io_writer", None)  # absent on web sockets, where the scheme decides
    secured = stream is None or stream.get_extra_info("ssl_object") is not None
    if "tls" in options and not secured:
        raise Rejected("tls_missing", "TLS is configured here, but the broker does not offer it: check its tls section")


async def _abandon(client: Client) -> None:
    """Let go of a half-open connection without any callback; after a failed TLS handshake closing never ends."""
    client._disconnected_cb = client._closed_cb = None
    writer = getattr(client._transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ABANDON_S):
            await client.close()


def _options(settings: NatsSettings, events: ConnectionEvents) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": RECONNECT_WAIT_S,
        "connect_timeout": max(1.0, min(5.0, settings.connect_timeout_ms / 1000)),
        "ping_interval": PING_S,
        "max_outstanding_pings": 2,
        "pending_size": PENDING_BYTES,
        "inbox_prefix": settings.inbox_prefix,
        "disconnected_cb": events.on_disconnect,
        "reconnected_cb": events.on_reconnect,
        "closed_cb": events.on_close,
    }
    given = [
        label
        for label, value in (
            ("password", settings.password),
            ("token", settings.token),
            ("credentials_file", settings.credentials_file),
            ("nkey_seed_file", settings.nkey_seed_file),
        )
        if value
    ]
    if len(given) > 1:
        raise Rejected("bad_credentials", f"give only one of {', '.join(given)}")
    if settings.user and not settings.password:
        raise Rejected("bad_credentials", f"user {settings.user!r} has no password: set one or leave both out")
    if settings.password and not settings.user:
        raise Rejected("bad_credentials", "a password is set without a user: set both or leave both out")
    if settings.user:
        options |= {"user": settings.user, "password": settings.password}
    if settings.token:
        options["token"] = settings.token
    if settings.credentials_file or settings.nkey_seed_file:
        options |= _nkey_options(settings)
    if settings.wants_tls:
        options["tls"] = _tls_context(settings)
        options["tls_handshake_first"] = settings.tls_first
        if settings.tls_hostname:
            options["tls_hostname"] = settings.tls_hostname
    return options


def _nkey_options(settings: NatsSettings) -> dict[str, Any]:
    path = settings.credentials_file or settings.nkey_seed_file
    _readable(path)
    if importlib.util.find_spec("nkeys") is None:
        raise Rejected("bad_credentials", f"{path} needs the package nkeys: run `pip install 'swarmd[nkeys]'`")
    return {"user_credentials": path} if settings.credentials_file else {"nkeys_seed": path}


def _readable(path: str) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise Rejected("bad_credentials", f"cannot read {path}: {error.strerror}") from error


def _tls_context(settings: NatsSettings) -> ssl.SSLContext:
    for path in (settings.tls_ca, settings.tls_cert, settings.tls_key):
        if path:
            _readable(path)
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca or None)
        if settings.tls_cert:
            context.load_cert_chain(settings.tls_cert, settings.tls_key or None)
    except ssl.SSLError as error:
        files = ", ".join(filter(None, (settings.tls_ca, settings.tls_cert, settings.tls_key)))
        raise Rejected(
            "tls_failed", f"no usable certificate or key in {files}: {error.reason or str(error)}"
        ) from error
    return context


def _urls(settings: NatsSettings) -> list[str]:
    urls = [url.strip() for url in settings.url.split(",") if url.strip()]
    urls = [url if "://" in url else f"nats://{url}" for url in urls]
    for url in urls:
        try:
            parts = urlsplit(url)
            good = bool(parts.hostname) and parts.scheme in ("nats", "tls", "ws", "wss") and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise Rejected("bad_nats_url", f"{redact_url(url)!r} is no NATS address: write nats://HOST:4222")
        if settings.wants_tls and url.startswith("ws://"):
            raise Rejected("bad_nats_url", f"TLS is configured, but {redact_url(url)} is plain: write wss://")
    if not urls:
        raise Rejected("bad_nats_url", "the NATS address is empty: write nats://HOST:4222")
    return urls


def redact_url(url: str) -> str:
    """The address without user and password, for texts and logs."""

    def one(part: str) -> str:
        scheme, separator, rest = part.rpartition("://")
        return scheme + separator + rest.rpartition("@")[2]

    return ",".join(one(part) for part in url.split(","))


def _unreachable(where: str, cause: BaseException) -> SwarmdError:
    if isinstance(cause, ConnectionRefusedError):
        why = "nothing listens there; start it with `swarmd up`, or give its address with --nats"
    elif isinstance(cause, socket.gaierror):
        return Rejected("bad_nats_url", f"no host of this name: {where}; check the address given with --nats")
    elif isinstance(cause, TimeoutError):
        why = "it does not answer; check address and firewall, and whether the port speaks NATS"
    else:
        why = f"{str(cause) or type(cause).__name__}; check the address given with --nats"
    return Fault("broker_unreachable", f"cannot reach the broker at {where}: {why}")


def _tls_failed(where: str, error: ssl.SSLError) -> Rejected:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = f"its certificate is not trusted ({error.verify_message}); give its authority with --tls-ca FILE"
    else:
        why = f"{error.reason or str(error)}; check --tls-cert and --tls-key, and whether the broker expects TLS"
    return Rejected("tls_failed", f"no secure connection to {where}: {why}")
