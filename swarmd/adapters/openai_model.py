"""A `Model` behind any OpenAI-compatible endpoint: POST {base_url}/chat/completions, nothing else.

Job: make one call of one request, streamed when somebody listens. Invariants: the raw answer is validated here, because
the package lets error objects, missing choices, HTML pages, truncated and malformed streams pass as success; a call is
bounded as a whole, and within a stream by the longest silence; a second request is sent only when the first one was
refused for a field that can be done without, and what was learned is remembered.
Must not know: agents, prompts, prices.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from swarmd.adapters.chat_format import decode_body, parse_answer
from swarmd.adapters.chat_request import TOKEN_FIELDS, adapted, request_body
from swarmd.adapters.chat_stream import EventLines, StreamedAnswer, StreamRefused
from swarmd.adapters.openai_client import (
    ANSWER_BYTES_MAX,
    Endpoint,
    Refusal,
    exchange_errors,
    failure_of,
    package,
    refusal_within,
)
from swarmd.core.errors import Fault, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

    import openai

    from swarmd.core.turns import ModelReply, ModelRequest

    OnDelta = Callable[[str], None]


#: Fields of other providers, which the package passes on without knowing them.
FOREIGN_FIELDS: Final = ("usage",)


class OpenAIModel:
    """One model of one endpoint; safe for many concurrent calls on one event loop."""

    def __init__(self, model: str, endpoint: Endpoint) -> None:
        """Check the settings; no I/O. Raises `Rejected("bad_model_name" | "bad_base_url" | "bad_api_key" | ...)`."""
        if not model:
            raise Rejected("bad_model_name", "a model needs a name: provider:model")
        self._endpoint = endpoint.checked()
        self._model = model
        self._profile = endpoint.profile
        self._client: openai.AsyncOpenAI | None = None
        self._opening = asyncio.Lock()
        self.name = f"{endpoint.provider}:{model}"
        self.base_url = self._endpoint.base_url

    def __repr__(self) -> str:
        return f"OpenAIModel({self.name!r}, base_url={self.base_url!r})"

    async def complete(self, request: ModelRequest, on_delta: OnDelta | None = None) -> ModelReply:
        """One call; with `on_delta` it is streamed and each piece of text is handed over as it comes.

        Raises `Fault("rate_limited" | "model_unavailable" | "model_unreachable" | "model_timeout" | "model_stalled" |
        "truncated" | "bad_answer" | "bad_tool_call")`, `Rejected("unauthorized" | "forbidden" | "model_not_found" |
        "bad_request" | "context_too_long" | "insufficient_quota" | "content_filtered" | "output_cut" |
        "tools_unsupported" | "missing_extra")`.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        call = _Call(request, on_delta if self._profile.stream else None)
        outcome = await self._adapting(call)
        if isinstance(outcome, Refusal):
            raise outcome.translated(self.name)
        if isinstance(outcome, Fault):
            raise outcome
        if isinstance(outcome, dict) and outcome.get("error"):
            raise refusal_within(outcome).translated(self.name)
        reply = parse_answer(outcome, request, self._model)
        reply.model = f"{self._endpoint.provider}:{reply.model}"
        reply.text = self._endpoint.redacted_text(reply.text)
        reply.took_ms = round((clock() - began) * 1000)
        if call.first_at is not None:
            reply.first_token_ms = round((call.first_at - began) * 1000)
        if on_delta is not None and not call.told and reply.text:  # the server did not stream: all at once
            on_delta(reply.text)
        return reply

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _adapting(self, call: _Call) -> Any:
        """The decoded body of a 200 answer, or what went wrong; without fields that the server refuses by name."""
        profile, first, tried = self._profile, None, set[str]()
        while True:
            body = request_body(call.request, self._model, profile, stream=call.streamed)
            outcome = await self._send(body, call)
            if not isinstance(outcome, Refusal) or not outcome.is_about_the_request:
                break
            change = adapted(profile, body, outcome.body, tried)
            if change is None:
                # Refused for what came in place of a refused field: then the first reason is the better one.
                return outcome if first is None or not any(name in str(outcome.body) for name in tried) else first
            first = first or outcome
            name, profile = change
            tried |= TOKEN_FIELDS if name in TOKEN_FIELDS else {name}
        if isinstance(outcome, dict):
            self._profile = profile
        return outcome

    async def _send(self, body: dict[str, Any], call: _Call) -> Any:
        client, timeout_s = await self._opened(), self._endpoint.timeout_ms / 1000
        try:
            async with asyncio.timeout(timeout_s):  # the package bounds each read, not the whole
                return await self._exchange(client, body, call)
        except TimeoutError:
            return Fault("model_timeout", f"{self.name} gave no answer within {timeout_s:g} s")
        except StreamRefused as refused:
            return refusal_within(refused.body)
        except Fault as fault:
            return fault
        except exchange_errors() as error:
            if call.first_at is not None:
                return Fault("truncated", f"the stream of {self.name} broke off: {type(error).__name__}")
            return failure_of(error, self._endpoint, self.name)

    async def _exchange(self, client: openai.AsyncOpenAI, body: dict[str, Any], call: _Call) -> Any:
        """Send, read with a bound on size and silence, decode. Raises what `_send` translates."""
        create = client.chat.completions.with_streaming_response.create
        foreign = {name: body[name] for name in FOREIGN_FIELDS if name in body}
        known = {name: value for name, value in body.items() if name not in foreign}
        async with create(**known, extra_body=foreign or None) as raw:
            kind = raw.headers.get("content-type", "")
            reading = _Stream(self._endpoint, call) if "event-stream" in kind else _Whole(self._endpoint)
            silence_s = self._endpoint.stall_ms / 1000 if call.streamed else None
            clock = asyncio.get_running_loop().time
            try:
                async with asyncio.timeout(silence_s) as silence:
                    async for piece in raw.http_response.aiter_bytes():
                        if silence_s is not None:
                            silence.reschedule(clock() + silence_s)
                        if reading.feed(piece):
                            break
            except TimeoutError:
                if not silence.expired():
                    raise
                raise Fault("model_stalled", f"{self.name} sent nothing for {silence_s:g} s in its answer") from None
        return reading.result()

    async def _opened(self) -> openai.AsyncOpenAI:
        async with self._opening:
            if self._client is None:
                library = await asyncio.to_thread(package)
                self._client = library.AsyncOpenAI(**self._endpoint.options(library))
            return self._client


class _Call:
    """One call under way: what is asked, who listens, when the first piece came."""

    def __init__(self, request: ModelRequest, on_delta: OnDelta | None) -> None:
        self.request = request
        self.first_at: float | None = None
        self.told = False
        self._on_delta = on_delta

    @property
    def streamed(self) -> bool:
        return self._on_delta is not None

    def heard(self, text: str, begun: bool) -> None:
        if begun and self.first_at is None:
            self.first_at = asyncio.get_running_loop().time()
        if text and self._on_delta is not None:
            self.told = True
            self._on_delta(text)


class _Whole:
    """An answer in one piece."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._content = bytearray()

    def feed(self, piece: bytes) -> bool:
        self._content += piece
        if len(self._content) > ANSWER_BYTES_MAX:
            raise Fault("bad_answer", f"the model's answer is larger than {ANSWER_BYTES_MAX} bytes")
        return False

    def result(self) -> Any:
        return decode_body(self._endpoint.redacted(bytes(self._content)))


class _Stream:
    """An answer as server-sent events; `feed` returns whether it is complete."""

    def __init__(self, endpoint: Endpoint, call: _Call) -> None:
        self._endpoint, self._call = endpoint, call
        self._lines, self._answer = EventLines(), StreamedAnswer()
        self._size = 0

    def feed(self, piece: bytes) -> bool:
        self._size += len(piece)
        if self._size > ANSWER_BYTES_MAX:
            raise Fault("bad_answer", f"the model's stream is larger than {ANSWER_BYTES_MAX} bytes")
        self._take(self._lines.feed(piece))
        return self._answer.done

    def _take(self, events: list[str]) -> None:
        for data in events:
            text = self._answer.add(self._endpoint.redacted_text(data))
            self._call.heard(text, self._answer.begun)

    def result(self) -> Any:
        self._take(self._lines.end())
        return self._answer.body()
