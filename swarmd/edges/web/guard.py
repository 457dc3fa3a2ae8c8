"""Who gets in: token, sessions, the Host and Origin of a request, and how often a token may be guessed.

Job: plain decisions over strings and a clock that is handed in. Invariants: secrets are compared in constant time;
sessions and counters are bounded; nothing here trusts a header that a proxy might forward. Must not know aiohttp.

Why each check: the Host check defeats DNS rebinding (a stranger's name that resolves to this machine makes the browser
believe that the page is theirs), the Origin check and the session's own CSRF token defeat forms and scripts of other
sites and of other ports of this machine, which a SameSite cookie alone does not tell apart.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SESSIONS_MAX: Final = 1_000
IDLE_S: Final = 12 * 3600.0
GUESSES_MAX: Final = 10
"""So many wrong tokens may come from one address within `GUESSES_S`."""
GUESSES_S: Final = 60.0
ADDRESSES_MAX: Final = 1_000
NAME_CHARS_MAX: Final = 80


class Session(Struct):
    """A browser that has shown the token; `name` is who its person says they are."""

    id: str
    csrf: str
    name: str = ""
    seen_s: float = 0.0
    ended: bool = False


class Guard:
    """Decides about requests. `monotonic` gives seconds; `hosts` are names under which the page may be asked for."""

    def __init__(self, token: str, monotonic: Callable[[], float]) -> None:
        self._token, self._monotonic = token.encode(), monotonic
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._guesses: OrderedDict[str, list[float]] = OrderedDict()
        self._hosts: frozenset[str] = frozenset()

    def serve(self, hosts: Iterable[str]) -> None:
        """The values of Host that are ours, each with its port unless that is the scheme's own."""
        self._hosts = frozenset(host.lower() for host in hosts)

    # --- where a request comes from ---

    def knows_host(self, host: str) -> bool:
        return host.lower() in self._hosts

    def is_own_origin(self, origin: str, host: str) -> bool:
        """Whether a page of ours made the request: the Origin names the very host that was asked."""
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() and self.knows_host(host)

    # --- tokens ---

    def wait_s(self, address: str) -> float:
        """How long this address must wait before it may try a token again; 0 when it may."""
        now = self._monotonic()
        tried = [at for at in self._guesses.get(address, ()) if now - at < GUESSES_S]
        return GUESSES_S - (now - tried[0]) if len(tried) >= GUESSES_MAX else 0.0

    def admit(self, token: str, address: str) -> Session | None:
        """A session for the right token; a wrong one is counted against its address."""
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self._token):
            now = self._monotonic()
            tried = [at for at in self._guesses.pop(address, []) if now - at < GUESSES_S]
            self._guesses[address] = [*tried, now][-GUESSES_MAX:]
            while len(self._guesses) > ADDRESSES_MAX:
                self._guesses.popitem(last=False)
            return None
        session = Session(secrets.token_urlsafe(32), secrets.token_urlsafe(32), seen_s=self._monotonic())
        self._sessions[session.id] = session
        while len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return session

    # --- sessions ---

    def session(self, id: str) -> Session | None:
        """The session of a cookie; None for one that is unknown, was ended, or was idle for too long.

        Looked up by a value of 256 random bits: what the time of a lookup could tell is of no use.
        """
        session = self._sessions.get(id)
        now = self._monotonic()
        if session is None or now - session.seen_s > IDLE_S:
            if session is not None:
                self.end(session)
            return None
        session.seen_s = now
        self._sessions.move_to_end(id)
        return session

    def end(self, session: Session) -> None:
        """Its cookie is worth nothing from now on; what is open in its name looks at `ended`."""
        session.ended = True
        self._sessions.pop(session.id, None)


def is_csrf(session: Session, shown: str) -> bool:
    """Whether a request shows the token that only a page of this session knows."""
    return hmac.compare_digest(shown.encode("utf-8", "replace"), session.csrf.encode())


def host_names(host: str, port: int, more: Iterable[str]) -> list[str]:
    """What a browser may write as Host for a page on `host:port`; `more` are names set by the operator."""
    names = {host, *(("localhost", "127.0.0.1", "::1") if host in _HERE else ())}
    bracketed = [f"[{name}]" if ":" in name else name for name in names]
    return [*(f"{name}:{port}" for name in bracketed), *(bracketed if port == 80 else ()), *more]


_HERE: Final = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::")
