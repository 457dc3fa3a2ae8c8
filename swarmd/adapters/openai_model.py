"""A `Model` behind any OpenAI-compatible endpoint: POST {base_url}/chat/completions, nothing else.

Job: make one HTTP call of one request through the `openai` package.
Invariants: the package's retries are off (a retry is the caller's, recorded and paced by `retry_after_ms`); the raw
answer is validated here, because the package lets error objects, missing choices and HTML pages pass as success;
errors are told apart by class, status and code, never by their wording; the API key is in no text, repr or cause.
Must not know: agents, prompts, prices, where the key came from.
"""

from __future__ import annotations

import asyncio
import importlib
import math
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from swarmd.adapters.chat_format import decode_body, error_code, error_text, names_parameter, parse_answer, request_body
from swarmd.core.errors import Fault, Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping

    import openai

    from swarmd.core.turns import ModelReply, ModelRequest

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_TIMEOUT_S = 5.0
RETRY_AFTER_MS_MAX = 3_600_000
# What servers that want no key are given instead ("none", "ollama") is shorter, and is a word of its own.
SECRET_CHARS_MIN = 8

TokenParameter = Literal["auto", "max_tokens", "max_completion_tokens"]

_REFUSALS = {
    400: "bad_request",
    401: "unauthorized",
    402: "insufficient_quota",
    403: "forbidden",
    404: "model_not_found",
    413: "context_too_long",
    422: "bad_request",
}
_PASSING = {408, 409, 425, 429}


class OpenAIModel:
    """One model of one endpoint; safe for many concurrent calls on one event loop.

    `token_parameter` is the field that carries `max_output_tokens`. "auto" starts with `max_completion_tokens` at
    OpenAI itself and with `max_tokens` elsewhere; if the server refuses a field by name, the other one is tried once
    and remembered when it works.
    """

    def __init__(
        self,
        name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_ms: int = 60_000,
        token_parameter: TokenParameter = "auto",
    ) -> None:
        """Check the settings; no I/O. Raises `Rejected("bad_model_name" | "bad_base_url" | "bad_api_key")`."""
        url = (base_url or OPENAI_URL).rstrip("/")
        _check_url(url)
        key = (api_key or "").strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise Rejected("bad_api_key", "the API key holds a space or a character that no HTTP header can carry")
        if not name or timeout_ms < 1:
            raise Rejected("bad_model_name", "a model needs a name and a timeout of at least 1 ms")
        self.name = f"openai:{name}"
        self.base_url = url
        self._model = name
        self._key = key
        self._timeout_s = timeout_ms / 1000
        preferred = "max_completion_tokens" if urlsplit(url).hostname == "api.openai.com" else "max_tokens"
        self._token_parameter: str = preferred if token_parameter == "auto" else token_parameter
        self._client: openai.AsyncOpenAI | None = None
        self._opening = asyncio.Lock()

    def __repr__(self) -> str:
        return f"OpenAIModel({self._model!r}, base_url={self.base_url!r})"

    async def complete(self, request: ModelRequest) -> ModelReply:
        """One call, or two when the token field has to be changed.

        Raises `Fault("rate_limited" | "model_unavailable" | "model_unreachable" | "model_timeout" | "bad_answer" |
        "bad_tool_call")`, `Rejected("unauthorized" | "forbidden" | "model_not_found" | "bad_request" |
        "context_too_long" | "insufficient_quota" | "output_cut" | "missing_extra")`.
        """
        parameter = self._token_parameter
        outcome = await self._post(request_body(request, self._model, parameter))
        limit = request.max_output_tokens
        if limit is not None and isinstance(outcome, _Refusal) and outcome.is_about(parameter):
            other = "max_tokens" if parameter == "max_completion_tokens" else "max_completion_tokens"
            second = await self._post(request_body(request, self._model, other))
            if not (isinstance(second, _Refusal) and second.is_about(other)):
                outcome = second
            if not isinstance(second, _Refusal):
                self._token_parameter = other
        if isinstance(outcome, _Refusal):
            raise self._translated(outcome)
        if isinstance(outcome, Fault):
            raise outcome
        body = decode_body(outcome)
        if isinstance(body, dict) and body.get("error"):  # some gateways fail after they have said 200
            code = error_code(body)[0]
            raise self._translated(_Refusal(int(code) if code.isdecimal() and len(code) == 3 else 500, body, {}))
        reply = parse_answer(body, request, self._model)
        reply.model = f"openai:{reply.model}"
        return reply

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _post(self, body: dict[str, Any]) -> bytes | _Refusal | Fault:
        """The bytes of a 200 answer, or what went wrong.

        Failures are returned, not raised: an exception raised inside the `except` would carry the package's own one,
        and with it the request and its key, wherever it is logged.
        """
        client = await self._opened()
        import openai

        try:
            async with asyncio.timeout(self._timeout_s):  # the package bounds each read, not the whole
                raw = await client.chat.completions.with_raw_response.create(**body)
                return self._redacted(raw.http_response.content)
        except (TimeoutError, openai.APITimeoutError):
            return Fault("model_timeout", f"{self.name} gave no answer within {self._timeout_s:g} s")
        except openai.APIConnectionError as error:
            reason = type(error.__cause__ or error).__name__
            return Fault("model_unreachable", f"cannot reach {self.base_url}: {reason}")
        except openai.APIStatusError as error:
            content = self._redacted(error.response.content)
            try:
                problem = decode_body(content)
            except Fault:
                problem = content.decode("utf-8", "replace")
            return _Refusal(error.status_code, problem, error.response.headers)
        except openai.APIError as error:
            return Fault("bad_answer", f"{self.name}: {type(error).__name__}")

    async def _opened(self) -> openai.AsyncOpenAI:
        async with self._opening:
            if self._client is None:
                try:  # the import takes most of a second: not on the event loop
                    package = await asyncio.to_thread(importlib.import_module, "openai")
                except ModuleNotFoundError as error:
                    raise missing_extra() from error
                self._client = package.AsyncOpenAI(
                    api_key=self._key or "none",  # servers that want no key still get a well-formed header
                    base_url=self.base_url,
                    max_retries=0,
                    timeout=package.Timeout(self._timeout_s, connect=min(CONNECT_TIMEOUT_S, self._timeout_s)),
                )
            return self._client

    def _redacted(self, content: bytes) -> bytes:
        """What a server sent, without our key in it: some echo it when they refuse it."""
        return content.replace(self._key.encode(), b"[api key]") if len(self._key) >= SECRET_CHARS_MIN else content

    def _translated(self, refusal: _Refusal) -> Fault | Rejected:
        message = f"{self.name} answered {refusal.status}: {error_text(refusal.body) or 'no reason given'}"
        codes = error_code(refusal.body)
        if "insufficient_quota" in codes:
            return Rejected("insufficient_quota", message)
        if "context_length_exceeded" in codes:
            return Rejected("context_too_long", message)
        if refusal.status in _PASSING or refusal.status >= 500:
            code = "rate_limited" if refusal.status == 429 else "model_unavailable"
            return Fault(code, message, retry_after_ms=retry_after_ms(refusal.headers))
        return Rejected(_REFUSALS.get(refusal.status, "bad_request"), message)


class _Refusal:
    """An answer that is an error: HTTP status, decoded body (or text), headers."""

    def __init__(self, status: int, body: object, headers: Mapping[str, str]) -> None:
        self.status = status
        self.body = body
        self.headers = headers

    def is_about(self, parameter: str) -> bool:
        return self.status in (400, 422) and names_parameter(self.body, parameter)


def missing_extra() -> Rejected:
    return Rejected("missing_extra", "this model needs the package openai: pip install 'swarmd[models]'")


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
