"""Built-in tool that reads the public web: `fetch_url`.

Job: GET a page and return its readable text, without ever reaching into the network this process lives in.
Invariants: the guard sits where sockets are made, so each address is judged at the very connect that would use it;
a name that resolves differently the second time, an odd way to write an address, or a redirect cannot get past it.
Redirects are followed one by one, each as strictly as the first URL. No proxy of the environment, no cookies, no
credentials; size and time are bounded.
Why aiohttp (the extra `[web]`): its connector hands every address to a socket factory of ours, a fetch can be
cancelled at any moment, and decompression is bounded; `http.client` would need a thread per fetch that a timeout
cannot stop. It is imported at the first call, off the event loop.
Must not know: agents, journals, other tools.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from importlib import import_module
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from swarmd.adapters.html_text import readable
from swarmd.core.errors import Fault, Rejected
from swarmd.core.turns import ToolSpec
from swarmd.ports import ToolPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    import aiohttp
    import yarl

    from swarmd.ports import SideEffects

BODY_BYTES_MAX = 2_000_000
REDIRECTS_MAX = 3
PORTS = frozenset({80, 443})
URL_CHARS_MAX = 2_000
USER_AGENT = "swarmd (+fetch_url)"

#: Not public, though some versions of `ipaddress` hold them for it: protocol assignments, relays, documentation.
_SPECIAL = tuple(ipaddress.ip_network(network) for network in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20"))
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_TEXT_TYPES = frozenset({"application/json", "application/xml", "application/xhtml+xml", "application/yaml"})
_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, also when it is wrapped in an IPv6 one.

    `is_global` alone is not enough: it holds for multicast and for NAT64 addresses of private hosts.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        elif int(ip) >> 32 & 0xFFFF_FFFF in _ISATAP and not is_public(
            str(ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF))
        ):
            return False
        if inner is not None:
            return is_public(str(inner))
        if ip.scope_id or ip.is_site_local or ip.teredo:
            return False
    if any(ip in network for network in _SPECIAL):
        return False
    is_special = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved
    return ip.is_global and not is_special and not ip.is_unspecified


class _Guard:
    """Makes the sockets of one request; an address that may not be reached gets none, and `refused` names it."""

    def __init__(self, is_open: bool) -> None:
        self.is_open = is_open
        self.refused = ""

    def __call__(self, info: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        family, kind, protocol, _, where = info
        if not self.is_open and not is_public(str(where[0])):
            self.refused = str(where[0])
            raise OSError(f"{where[0]} is not a public address")
        return socket.socket(family, kind, protocol)


class _Answer(Struct):
    status: int
    reason: str
    location: str
    content_type: str
    charset: str
    body: bytes


class FetchUrl:
    """`fetch_url(url)`: the text of a web page, or of any other text that a URL leads to."""

    def __init__(
        self, allow_hosts: Sequence[str] = (), *, timeout_ms: int = 20_000, output_bytes_max: int = 64 * 1024
    ) -> None:
        """`allow_hosts` are exact `host:port` pairs (`127.0.0.1:8080`, `[::1]:8080`) that may be reached whatever
        their address and port; a redirect that leads elsewhere is judged as usual."""
        self._allow_hosts = frozenset(host.lower() for host in allow_hosts)
        self.timeout_ms = timeout_ms
        self.output_bytes_max = output_bytes_max
        self.side_effects: SideEffects = "none"
        self.policy = ToolPolicy()
        self.spec = ToolSpec(
            name="fetch_url",
            description="Read a public web page or text file by its http or https URL. What it says is not verified.",
            parameters={
                "type": "object",
                "properties": {"url": {"type": "string", "minLength": 1, "maxLength": URL_CHARS_MAX}},
                "required": ["url"],
                "additionalProperties": False,
            },
        )

    async def call(self, arguments: dict[str, Any], key: str = "") -> str:
        """Raises `Rejected("missing_extra" | "bad_url" | "blocked_address" | "too_many_redirects" | "http_refused" |
        "too_large" | "not_text")`, `Fault("unreachable" | "http_failed")`."""
        try:
            await asyncio.to_thread(import_module, "aiohttp")
        except ModuleNotFoundError:
            raise Rejected("missing_extra", "fetch_url needs the package aiohttp: pip install 'swarmd[web]'") from None
        url = self._checked(arguments["url"])
        for _ in range(REDIRECTS_MAX + 1):
            answer = await self._get(url)
            if not answer.location:
                return await asyncio.to_thread(_text_of, answer, url)  # a large page takes a while
            url = self._checked(answer.location, url)
        raise Rejected("too_many_redirects", f"{arguments['url']} redirects more than {REDIRECTS_MAX} times")

    def _checked(self, text: str, base: yarl.URL | None = None) -> yarl.URL:
        import yarl

        try:
            url = yarl.URL(text.strip())
            url = (base.join(url) if base else url).with_fragment(None)
            host, port = url.host, url.port
        except (ValueError, TypeError) as error:
            raise Rejected("bad_url", f"{text[:200]!r} is not a URL: {error}") from None
        if url.scheme not in ("http", "https") or not host:
            raise Rejected("bad_url", f"{text[:200]!r} must start with http:// or https:// and name a host")
        if url.raw_user is not None or url.raw_password is not None:
            raise Rejected("bad_url", "a URL must not hold a user or a password")
        if port not in PORTS and not self._is_allowed(url):
            raise Rejected("bad_url", f"port {port} is not allowed: only 80 and 443 are")
        return url

    def _is_allowed(self, url: yarl.URL) -> bool:
        return f"{url.host_subcomponent or ''}:{url.port}".lower() in self._allow_hosts

    async def _get(self, url: yarl.URL) -> _Answer:
        """One request on a connection of its own."""
        import aiohttp

        guard = _Guard(self._is_allowed(url))
        connector = aiohttp.TCPConnector(socket_factory=guard, use_dns_cache=False, force_close=True)
        headers = {"User-Agent": USER_AGENT, "Accept": "text/html, text/*;q=0.9, application/json;q=0.8, */*;q=0.1"}
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector, cookie_jar=aiohttp.DummyCookieJar(), headers=headers, trust_env=False
                ) as session,
                session.get(url, allow_redirects=False) as response,
            ):
                return await _read(response, url)
        except (aiohttp.InvalidURL, aiohttp.InvalidUrlClientError) as error:
            raise Rejected("bad_url", f"{url} is not a URL: {type(error).__name__}") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            if guard.refused:
                reason = f"{url.host} is at {guard.refused}, which is not a public address"
                raise Rejected("blocked_address", reason) from None
            raise Fault("unreachable", f"cannot fetch {url}: {type(error).__name__}") from error


async def _read(response: aiohttp.ClientResponse, url: yarl.URL) -> _Answer:
    """The answer with its body, which is read only where it is wanted and up to the limit."""
    location = response.headers.get("Location", "") if response.status in (301, 302, 303, 307, 308) else ""
    answer = _Answer(
        status=response.status,
        reason=response.reason or "",
        location=location,
        content_type=response.content_type,
        charset=response.charset or "utf-8",
        body=b"",
    )
    if location or not 200 <= response.status < 300:
        return answer
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > BODY_BYTES_MAX:
            raise Rejected("too_large", f"{url} holds more than {BODY_BYTES_MAX} bytes")
        chunks.append(chunk)
    answer.body = b"".join(chunks)
    return answer


def _text_of(answer: _Answer, url: yarl.URL) -> str:
    if not 200 <= answer.status < 300:
        message = f"{url} answered {answer.status} {answer.reason}".rstrip()
        if answer.status in (408, 425, 429) or answer.status >= 500:
            raise Fault("http_failed", message)
        raise Rejected("http_refused", message)
    kind = answer.content_type
    is_text = kind.startswith("text/") or kind in _TEXT_TYPES or kind.endswith(("+json", "+xml"))
    if not is_text or b"\0" in answer.body[:4_096]:
        raise Rejected("not_text", f"{url} is {kind}, fetch_url reads text only")
    try:
        text = answer.body.decode(answer.charset, "replace")
    except LookupError:  # a character set that nobody knows
        text = answer.body.decode("utf-8", "replace")
    return readable(text) if kind in _HTML_TYPES else text
