"""Between an MCP transport and the SDK: lists of tools are taken apart, so that one ill tool does not spoil the list.

Job: the SDK takes a list of tools whole or not at all; keep the schemas as they came, to be judged one by one, and pass
on a list that the SDK can take. Everything else passes untouched.
Must not know: processes, HTTP, what a tool is for.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Sieve:
    """`schemas` are the tools' schemas as their server sent them, by its own names; `nameless` tools were dropped."""

    def __init__(self) -> None:
        self.schemas: dict[str, Any] = {}
        self.nameless = 0

    @asynccontextmanager
    async def over(self, transport: Any) -> AsyncIterator[Any]:
        """The transport with the sieve in its way in."""
        async with transport as (incoming, outgoing):
            yield _Sifted(incoming, self), outgoing

    def sift(self, message: Any) -> None:
        """Change the answer to `tools/list` in place."""
        result = getattr(getattr(message, "message", None), "result", None)
        if isinstance(result, dict) and isinstance(result.get("tools"), list):
            result["tools"] = [fit for tool in result["tools"] if (fit := self._fit(tool)) is not None]

    def _fit(self, tool: Any) -> dict[str, Any] | None:
        """What the SDK needs of a tool; what a server says of its output and of its safety is not used."""
        name = tool.get("name") if isinstance(tool, dict) else None
        if not isinstance(name, str):
            self.nameless += 1
            return None
        schema = tool.get("inputSchema")
        self.schemas[name] = schema
        fit = {key: tool[key] for key in ("title", "description") if isinstance(tool.get(key), str)}
        return fit | {"name": name, "inputSchema": schema if _is_shaped(schema) else {"type": "object"}}


def _is_shaped(schema: Any) -> bool:
    """Whether the SDK takes it; it needs it for arguments that travel as HTTP headers."""
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return False
    properties, required = schema.get("properties", {}), schema.get("required", [])
    return (
        isinstance(properties, dict)
        and all(isinstance(value, dict) for value in properties.values())
        and isinstance(required, list)
        and all(isinstance(value, str) for value in required)
    )


class _Sifted:
    """A stream of messages, each through the sieve."""

    def __init__(self, stream: Any, sieve: Sieve) -> None:
        self._stream, self._sieve = stream, sieve

    @property
    def last_context(self) -> Any:
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        message = await self._stream.receive()
        self._sieve.sift(message)
        return message

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> _Sifted:
        return self

    async def __anext__(self) -> Any:
        message = await self._stream.__anext__()
        self._sieve.sift(message)
        return message

    async def __aenter__(self) -> _Sifted:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        ended: bool | None = await self._stream.__aexit__(*error)
        return ended
