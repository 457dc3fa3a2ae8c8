"""The `openai` package as a way to send one request: opened late, closed for good, silent about its key.

Job: endpoint settings, one HTTP exchange, and what its errors mean. Invariants: the package's retries are off (a retry
is the caller's, recorded and paced by `retry_after_ms`); errors are told apart by class, status and code, never by
their wording; the API key is in no text, repr or cause; no answer is read without a bound.
Must not know: chat, embeddings, agents, where the key came from.
"""

from __future__ import annotations

import importlib
import math
import ssl
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from msgspec import Struct

from swarmd.adapters.chat_format import decode_body, error_code, error_text
from swarmd.core.errors import Fault, Rejected
from swarmd.core.model_profile import Profile

if TYPE_CHECKING:
    from types import ModuleType

CONNECT_TIMEOUT_S: Final = 5.0
RETRY_AFTER_MS_MAX: Final = 3_600_000
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
# What servers that want no key are given instead ("none", "ollama") is shorter, and is a word of its own.
SECRET_CHARS_MIN: Final = 8

_REFUSALS: Final = {
    400: "bad_request",
    401: "unauthorized",
    402: "insufficient_quota",
    403: "forbidden",
    404: "model_not_found",
    413: "context_too_long",
    422: "bad_request",
}
_PASSING: Final = {408, 409, 425, 429}
#: Codes and types of error bodies that say more than the status they come with.
_CODES: Final = {
    "insufficient_quota": "insufficient_quota",
    "billing_hard_limit_reached": "insufficient_quota",
    "billing_not_active": "insufficient_quota",
    "context_length_exceeded": "context_too_long",
    "exceed_context_size_error": "context_too_long",
    "content_filter": "content_filtered",
    "content_policy_violation": "content_filtered",
}


class Endpoint(Struct, frozen=True):
    """Where a provider answers and how it is asked. `stall_ms` is the longest silence within a stream."""

    provider: str
    base_url: str
    api_key: str = ""
    timeout_ms: int = 60_000
    stall_ms: int = 30_000
    profile: Profile = Profile()

    def __repr__(self) -> str:
        return f"Endpoint({self.provider!r}, {self.base_url!r})"

    def checked(self) -> Endpoint:
        """The same, sound and trimmed. Raises `Rejected("bad_base_url" | "bad_api_key" | "bad_timeout")`."""
        url, key = self.base_url.rstrip("/"), self.api_key.strip()
        _check_url(url)
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise Rejected("bad_api_key", "the API key holds a space or a character that no HTTP header can carry")
        if self.timeout_ms < 1 or self.stall_ms < 1:
            raise Rejected("bad_timeout", "a model needs timeouts of at least 1 ms")
        return Endpoint(self.provider, url, key, self.timeout_ms, self.stall_ms, self.profile)

    def redacted(self, content: bytes) -> bytes:
        """What a server sent, without our key in it: some echo it when they refuse it."""
        return content.replace(self.api_key.encode(), b"[api key]") if self._has_secret else content

    def redacted_text(self, text: str) -> str:
        return text.replace(self.api_key, "[api key]") if self._has_secret else text

    @property
    def _has_secret(self) -> bool:
        return len(self.api_key) >= SECRET_CHARS_MIN

    def options(self, package: ModuleType) -> dict[str, Any]:
        """How a client of the package is made."""
        timeout_s = self.timeout_ms / 1000
        return {
            "api_key": self.api_key or "none",  # servers that want no key still get a well-formed header
            "base_url": self.base_url,
            "max_retries": 0,
            "timeout": package.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
        }


class Refusal(Struct):
    """An answer that is an error: HTTP status, decoded body (or text), headers."""

    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def is_about_the_request(self) -> bool:
        return self.status in (400, 422)

    def translated(self, name: str) -> Fault | Rejected:
        """As an error of ours, with the words of the server."""
        message = f"{name} answered {self.status}: {error_text(self.body) or 'no reason given'}"
        for code in error_code(self.body):
            if code in _CODES:
                return Rejected(_CODES[code], message)
        if self.status in _PASSING or self.status >= 500:
            known = "rate_limited" if self.status == 429 else "model_unavailable"
            return Fault(known, message, retry_after_ms=retry_after_ms(self.headers))
        return Rejected(_REFUSALS.get(self.status, "bad_request"), message)


def refusal_within(body: Any) -> Refusal:
    """An error object that came although the status was 200: some gateways fail after they have said so."""
    code = error_code(body)[0]
    return Refusal(int(code) if code.isdecimal() and len(code) == 3 else 500, body, {})


def failure_of(error: Exception, endpoint: Endpoint, name: str) -> Refusal | Fault:
    """What an exception of the package, or of the HTTP library below it, means.

    Returned, not raised: raised inside the `except` it would carry the package's own one, and with it the request and
    its key, wherever it is logged.
    """
    import openai

    if isinstance(error, openai.APITimeoutError):
        return Fault("model_timeout", f"{name} gave no answer within {endpoint.timeout_ms / 1000:g} s")
    if isinstance(error, openai.APIStatusError):
        return Refusal(error.status_code, _body_of(endpoint.redacted(error.response.content)), error.response.headers)
    if isinstance(error, openai.APIError) and not isinstance(error, openai.APIConnectionError):
        return Fault("bad_answer", f"{name}: {type(error).__name__}")
    reason = type(error.__cause__ or error).__name__
    return Fault("model_unreachable", f"cannot reach {endpoint.base_url}: {reason}")


def exchange_errors() -> tuple[type[Exception], ...]:
    """What an exchange may raise besides timeouts: the package's errors, and those of its HTTP library."""
    import openai

    library = importlib.import_module("httpx2")
    return openai.APIError, library.HTTPError, library.StreamError, ssl.SSLError, OSError


def package() -> ModuleType:
    """The package; importing it takes most of a second, so do it off the event loop. Raises `missing_extra()`."""
    try:
        return importlib.import_module("openai")
    except ModuleNotFoundError as error:
        raise missing_extra() from error


def missing_extra() -> Rejected:
    return Rejected("missing_extra", "this model needs the package openai: pip install 'swarmd[models]'")


def _body_of(content: bytes) -> Any:
    try:
        return decode_body(content)
    except Fault:
        return content.decode("utf-8", "replace")


def retry_after_ms(headers: Mapping[str, str]) -> int | None:
    """What `retry-after-ms` or `Retry-After` asks for, within 0 to one hour; None if they ask for nothing sensible.

    A date is read against the answer's own `Date`, so no clock of ours has to agree with the server's.
    """
    for header, scale in (("retry-after-ms", 1.0), ("retry-after", 1000.0)):
        try:
            wait = float(headers.get(header, "")) * scale
        except ValueError:
            continue
        if math.isfinite(wait):
            return int(min(max(wait, 0.0), RETRY_AFTER_MS_MAX))
    try:
        until, now = (parsedate_to_datetime(headers.get(header, "")) for header in ("retry-after", "date"))
        return int(min(max((until - now).total_seconds() * 1000, 0.0), RETRY_AFTER_MS_MAX))
    except (ValueError, TypeError):  # no dates, or one of them without a time zone
        return None


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_sound = False
    if not is_sound or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise Rejected("bad_base_url", "base_url must look like https://host[:port]/v1")
    if parts.username is not None or parts.password is not None:
        raise Rejected("bad_base_url", "base_url must not hold a user or a password: give the key by itself")
