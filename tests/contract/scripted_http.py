"""A tiny HTTP/1.1 server on a free port that answers what a test tells it to, also what no sane server would."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@dataclass
class Asked:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class ScriptedServer:
    """`answer` maps a request to the raw bytes of a response; None leaves the caller waiting."""

    answer: Callable[[Asked], bytes | None]
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    given_up: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            asked = Asked(method, path, headers, body)
            self.asked.append(asked)
            response = self.answer(asked)
            if response is None:
                await reader.read()  # until the caller gives up
                self.given_up += 1
            else:
                writer.write(response)
                await writer.drain()


@contextlib.asynccontextmanager
async def serving(answer: Callable[[Asked], bytes | None] | bytes | None) -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer(answer if callable(answer) else lambda _: answer)
    server = await asyncio.start_server(scripted._serve, "127.0.0.1", 0)
    scripted.port = server.sockets[0].getsockname()[1]
    try:
        yield scripted
    finally:
        server.close()


def http(body: Any, status: int = 200, kind: str = "application/json", **headers: str) -> bytes:
    """The bytes of a response; anything but bytes and text is sent as JSON. `retry_after` becomes Retry-After."""
    if not isinstance(body, bytes | str):
        body = json.dumps(body)
    content = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} Because", f"Content-Length: {len(content)}", "Connection: close"]
    lines += [f"Content-Type: {kind}"] if kind else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def streaming(*pieces: Any, done: bool = True, kind: str = "text/event-stream") -> bytes:
    """A stream of server-sent events, one per piece (bytes are sent as they are), that ends with the connection."""
    events = [
        piece if isinstance(piece, bytes) else b"data: " + json.dumps(piece).encode() + b"\n\n" for piece in pieces
    ]
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode()
    return head + b"".join(events) + (b"data: [DONE]\n\n" if done else b"")
