"""A streamed chat completion: server-sent events, split anywhere, put together to the body of a whole answer.

Job: everything about streams that needs no network. Invariants: whatever bytes come in whatever pieces, the outcome is
one body for `chat_format.parse_answer`, or `Fault("bad_answer" | "truncated")`; a stream that ends without a finish
reason is truncated, however complete it looks; sizes are bounded. Comments are skipped, a missing [DONE] is forgiven.
Must not know: HTTP, time, who listens to the deltas.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct, field

from swarmd.adapters.chat_format import error_text
from swarmd.core.errors import Fault

LINE_BYTES_MAX = 8 * 1024 * 1024
TOOL_CALLS_MAX = 256


class EventLines:
    """Splits bytes into the data of server-sent events (HTML Living Standard, section 9.2)."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []
        self._was_cr = False

    def feed(self, piece: bytes) -> list[str]:
        """The data of each event that is complete now. Raises `Fault("bad_answer")` for a line without end."""
        if self._was_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        self._was_cr = piece.endswith(b"\r") if piece else self._was_cr
        *lines, self._rest = (self._rest + piece).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            raise Fault("bad_answer", "the model's stream sent a line that is too long")
        return [data for line in lines if (data := self._take(line)) is not None]

    def end(self) -> list[str]:
        """What was left without its empty line: some servers end like that."""
        lines, self._rest = [self._rest, b""], b""
        return [data for line in lines if (data := self._take(line)) is not None]

    def _take(self, line: bytes) -> str | None:
        if not line:
            data, self._data = "\n".join(self._data), []
            return data or None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" ").decode("utf-8", "replace"))
        return None


class _FunctionPart(Struct):
    name: str | None = None
    arguments: Any = None


class _CallPart(Struct):
    index: int | None = None
    id: str | None = None
    function: _FunctionPart | None = None


class _Delta(Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_CallPart] | None = None


class _Choice(Struct):
    index: int | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    model: str | None = None
    usage: Any = None
    error: Any = None


class StreamRefused(Exception):
    """An error object came within the stream; `body` is its chunk."""

    def __init__(self, body: Any) -> None:
        super().__init__("error in stream")
        self.body = body


class _Call(Struct):
    id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)
    whole: Any = None


class StreamedAnswer:
    """Gathers chunks. `done` after [DONE]; `ended` once a finish reason came."""

    def __init__(self) -> None:
        self.done = False
        self.begun = False
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[int, _Call] = {}
        self._finish: str | None = None
        self._model: str | None = None
        self._usage: Any = None

    @property
    def ended(self) -> bool:
        return self._finish is not None

    def add(self, data: str) -> str:
        """Take one event's data; the text that it adds. Raises `Fault("bad_answer")`, `StreamRefused`."""
        if data.strip() == "[DONE]":
            self.done = True
            return ""
        try:
            chunk = msgspec.json.decode(data, type=_Chunk)
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
            raise Fault(
                "bad_answer", f"the model's stream holds a malformed chunk: {error_text(data)[:80]!r}"
            ) from None
        if chunk.error:
            raise StreamRefused(msgspec.json.decode(data))
        self._model = self._model or chunk.model
        self._usage = chunk.usage if chunk.usage is not None else self._usage
        return "".join(self._choice(choice) for choice in chunk.choices or () if not choice.index)

    def _choice(self, choice: _Choice) -> str:
        self._finish = choice.finish_reason or self._finish
        delta = choice.delta
        if delta is None:
            return ""
        for part in delta.tool_calls or ():
            self._call(part)
        if delta.refusal:
            self._refusal.append(delta.refusal)
        text = delta.content or ""
        if text:
            self._text.append(text)
        self.begun = self.begun or bool(text or delta.refusal or delta.tool_calls)
        return text

    def _call(self, part: _CallPart) -> None:
        """Parts belong together by index; without one, an id begins a new call."""
        last = max(self._calls, default=-1)
        at = part.index if part.index is not None else last + 1 if part.id or last < 0 else last
        if len(self._calls) >= TOOL_CALLS_MAX and at not in self._calls:
            raise Fault("bad_answer", f"the model's stream holds more than {TOOL_CALLS_MAX} tool calls")
        call = self._calls.setdefault(at, _Call())
        call.id = call.id or part.id or ""
        if part.function is None:
            return
        call.name = call.name or part.function.name or ""
        if isinstance(part.function.arguments, str):
            call.parts.append(part.function.arguments)
        elif part.function.arguments is not None:
            call.whole = part.function.arguments

    def body(self) -> dict[str, Any]:
        """The whole answer as if it had not been streamed. Raises `Fault("truncated")` when its end is missing."""
        if not self.ended:
            raise Fault("truncated", "the model's stream ended before the answer did")
        calls = [
            {"id": call.id, "function": {"name": call.name, "arguments": call.whole or "".join(call.parts)}}
            for _, call in sorted(self._calls.items())
        ]
        message = {"content": "".join(self._text), "refusal": "".join(self._refusal) or None, "tool_calls": calls}
        choices = [{"message": message, "finish_reason": self._finish}]
        return {"choices": choices, "model": self._model, "usage": self._usage}
