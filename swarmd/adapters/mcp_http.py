"""The way to an MCP server over streamable HTTP: one client, its headers, and a limit on what is read.

Job: hand the SDK an HTTP client that never holds more of an answer than a message may have.
Invariants: headers with secrets go to the configured origin only (the SDK follows no redirect that leaves it); no proxy
or credential is taken from the environment.
Must not know: tools, agents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AsyncExitStack

    from swarmd.adapters.mcp_session import McpServerSettings

CONNECT_S: Final = 5.0


async def http_transport(stack: AsyncExitStack, settings: McpServerSettings) -> Any:
    """A transport for the SDK's `Client`; `stack` closes what is under it."""
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    bytes_max = settings.message_bytes_max

    class Limited(httpx2.AsyncByteStream):
        """A body that fails once it is longer than a message may be."""

        def __init__(self, body: Any) -> None:
            self._body = body

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in self._body:
                size += len(chunk)
                if size > bytes_max:
                    raise TooLong(f"the answer has more than {bytes_max} bytes: ask for less")
                yield chunk

        async def aclose(self) -> None:
            await self._body.aclose()

    class TooLong(httpx2.StreamError):
        """What the SDK turns into an error of the one call."""

    class Transport(httpx2.AsyncHTTPTransport):
        async def handle_async_request(self, request: Any) -> Any:
            response = await super().handle_async_request(request)
            if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
                response.stream = Limited(response.stream)  # a stream of events has a limit on each of its own
            return response

    client = await stack.enter_async_context(
        httpx2.AsyncClient(
            transport=Transport(),
            headers=settings.headers,
            timeout=httpx2.Timeout(CONNECT_S, read=None),
            trust_env=False,
        )
    )
    return streamable_http_client(settings.url, http_client=client, max_sse_event_size=bytes_max)
