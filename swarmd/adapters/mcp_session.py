"""One supervised connection to an MCP server: connect, list, call, reconnect.

Job: keep a session with one server alive through the official SDK, over stdio or streamable HTTP.
Invariants: connecting, listing, calling and closing are each bounded in time, whatever the server does; calls in flight
when the connection ends fail at once and say so; after an end the next try waits longer, up to `BACKOFF_S_MAX`;
failures are told apart by class and code, never by their wording.
Must not know: agents, models, where secrets came from.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field

from swarmd.adapters.mcp_format import Arguments, offered_name, plain, wanted_input
from swarmd.adapters.mcp_sieve import Sieve
from swarmd.adapters.mcp_stdio import Pipe, Program
from swarmd.core.errors import Fault, Rejected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import mcp_types as types
    from mcp import Client

log = logging.getLogger(__name__)

TEARDOWN_S: Final = 5.0
BACKOFF_S_MIN: Final = 0.25
BACKOFF_S_MAX: Final = 30.0
#: A life that lasted so long starts the backoff anew.
STEADY_S: Final = 30.0
#: A list of tools that changes more often than this is read again only so often.
RELIST_S: Final = 1.0
TOOLS_MAX: Final = 500
PAGES_MAX: Final = 50
#: A message may hold more than the text that is kept of it, such as images that are only described.
MESSAGE_BYTES_MIN: Final = 4 * 1024**2


class McpServerSettings(Struct, frozen=True):
    """One server: a command with names of variables, or a URL with headers; secrets are in `headers` and `environ`.

    `tools` limits what is offered to these names of the server; empty offers everything.
    """

    name: str
    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    connect_timeout_s: float = 30.0
    timeout_s: float = 60.0
    output_bytes_max: int = 64 * 1024
    tools: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"McpServerSettings({self.name!r})"

    @property
    def message_bytes_max(self) -> int:
        return max(MESSAGE_BYTES_MIN, 8 * self.output_bytes_max)


class Listed(Struct, frozen=True):
    """A tool as its server lists it, judged fit; `true_name` is what the server calls it."""

    true_name: str
    tool: Any
    arguments: Any


class Listing(Struct, frozen=True):
    """What a server offers by our names, and why other tools of it are refused by theirs."""

    tools: dict[str, Listed] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def missing_extra() -> Rejected:
    return Rejected("missing_extra", "MCP servers need the package mcp: pip install 'swarmd[mcp]'")


async def load_sdk() -> None:
    """Import the SDK, which takes most of a second, beside the event loop. Raises `Rejected("missing_extra")`."""
    try:
        for module in ("mcp", "httpx2", "jsonschema.validators", "referencing"):
            await asyncio.to_thread(importlib.import_module, module)
    except ModuleNotFoundError as error:
        raise missing_extra() from error


class McpSession:
    """One server and its connections, one after the other; `keep` runs until it is cancelled."""

    def __init__(self, settings: McpServerSettings) -> None:
        self.settings = settings
        self.listing = Listing()
        #: How often it was connected.
        self.lives = 0
        self._client: Client | None = None
        self._turn = asyncio.Event()  # set whenever something has changed; replaced each time
        self._lost = asyncio.Event()
        self._changed = asyncio.Event()
        self._failure: Fault | Rejected | None = None
        self._retry_at = self._since = 0.0
        self._in_flight: set[asyncio.Timeout] = set()

    # --- for whoever calls ---

    async def listed(self) -> Listing:
        """The current listing, once there is one. Raises `Fault("mcp_unavailable")` or why the last try failed."""
        await self._connected()
        return self.listing

    async def call(self, name: str, arguments: Mapping[str, Any], key: str = "") -> types.CallToolResult:
        """One call of one tool by our name of it.

        Raises `Rejected("tool_gone" | "bad_arguments" | "bad_schema" | "needs_input")`,
        `Fault("mcp_unavailable" | "mcp_lost" | "mcp_timeout" | "mcp_error" | "bad_answer")`.
        """
        client = await self._connected()
        listed = self.listing.tools.get(name)
        if listed is None:
            raise Rejected("tool_gone", f"the server {self.settings.name} offers no tool {name} any more")
        listed.arguments.check(arguments)
        return await self._ask(client, listed.true_name, dict(arguments), key)

    async def _connected(self) -> Client:
        """The live connection; waits for one that is being made, but not through a backoff."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.settings.connect_timeout_s + TEARDOWN_S):
                while self._client is None:
                    left = self._retry_at - loop.time()
                    if left > 0 and self._failure is not None:
                        raise self._unavailable(left)
                    await self._turn.wait()
        except TimeoutError:
            raise self._unavailable(0) from None
        return self._client

    def _unavailable(self, left_s: float) -> Fault:
        why = self._failure.message if self._failure is not None else "it has not answered yet"
        wait_ms = max(0, int(left_s * 1000))
        text = f"the server {self.settings.name} is not there: {why}; it is tried again"
        return Fault("mcp_unavailable", text, retry_after_ms=wait_ms or None)

    async def _ask(self, client: Client, tool: str, arguments: dict[str, Any], key: str) -> types.CallToolResult:
        from mcp.shared.exceptions import MCPError
        from mcp_types import CallToolRequest, CallToolRequestParams, CallToolResult, InputRequiredResult
        from pydantic import TypeAdapter, ValidationError

        server = self.settings.name
        meta: Any = {"swarmd/idempotency-key": key} if key else None
        request = CallToolRequest(params=CallToolRequestParams(name=tool, arguments=arguments, _meta=meta))
        # Not `call_tool`: it would run the patterns of the server's output schema on the server's output.
        answers: TypeAdapter[CallToolResult | InputRequiredResult] = TypeAdapter(CallToolResult | InputRequiredResult)
        limit = asyncio.timeout(self.settings.timeout_s)
        try:
            async with limit:
                self._in_flight.add(limit)
                result = await client.session.send_request(request, answers)
        except TimeoutError:
            if self._client is not client:
                raise _lost(server) from None
            text = f"{tool} of the server {server} did not answer within {self.settings.timeout_s:g} s"
            raise Fault("mcp_timeout", text) from None
        except MCPError as error:
            failure = self._translated(error, tool)
            if failure.code == "mcp_lost":
                self._give_up(client)
            raise failure from None
        except (ValidationError, RecursionError):
            raise Fault("bad_answer", f"the server {server} answered {tool} with what is no result") from None
        except _closed_errors():
            self._give_up(client)
            raise _lost(server) from None
        finally:
            self._in_flight.discard(limit)
        if isinstance(result, InputRequiredResult):
            raise Rejected("needs_input", f"{tool} asks for input that cannot be given here: {wanted_input(result)}")
        return result

    def _translated(self, error: Any, tool: str) -> Fault | Rejected:
        from mcp_types import CONNECTION_CLOSED, INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, REQUEST_TIMEOUT

        server, said = self.settings.name, plain(str(error.message), 1_000)
        if error.code == CONNECTION_CLOSED or (error.code == INVALID_REQUEST and self.settings.url):
            return _lost(server)
        if error.code == REQUEST_TIMEOUT:
            return Fault("mcp_timeout", f"{tool} of the server {server} did not answer in time")
        if error.code in (INVALID_PARAMS, METHOD_NOT_FOUND):
            return Rejected("bad_arguments", f"the server {server} refuses the call of {tool}: {said}")
        return Fault("mcp_error", f"the server {server} failed at {tool}: {said}")

    def _give_up(self, client: Client) -> None:
        """This connection has ended, whether or not its keeper has seen it yet."""
        if self._client is client:
            self._client = None
            self._lost.set()

    # --- for whoever keeps it ---

    async def keep(self) -> None:
        """Connect, and again after each end, until cancelled."""
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            self._since = loop.time()
            failure: Fault | Rejected = Fault("mcp_lost", "the connection ended")
            try:
                await self._live()
            except (Fault, Rejected) as error:
                failure = error
            failures = 1 if loop.time() - self._since > STEADY_S else failures + 1
            pause_s = min(BACKOFF_S_MIN * 2 ** min(failures - 1, 10), BACKOFF_S_MAX)
            self._failure, self._retry_at = failure, loop.time() + pause_s
            self._tell()
            log.warning("MCP server %s: %s; next try in %.2f s", self.settings.name, failure.message, pause_s)
            await asyncio.sleep(pause_s)
            self._retry_at = 0.0

    async def look(self) -> Listing:
        """Connect, list, close. Raises `Fault` or `Rejected` with what is wrong."""
        async with self._connection():
            return self.listing

    async def _live(self) -> None:
        """One connection, from its start to its end."""
        self._lost, self._changed = asyncio.Event(), asyncio.Event()
        async with self._connection() as (client, said):
            self._client, self._failure = client, None
            self._since = asyncio.get_running_loop().time()
            self.lives += 1
            self._tell()
            try:
                await self._watch(client, said)
            finally:
                self._client = None
                self._abandon()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[Client, _Said]]:
        """A connected client with its tools listed. Raises `Fault` or `Rejected` when it fails, at whatever point."""
        await load_sdk()
        said = _Said()
        try:
            async with self._open(said) as client:
                yield client, said
        except (Fault, Rejected):
            raise
        except Exception as error:  # translated, and raised again
            raise _as_failure(error, self.settings.name, said) from None

    def _abandon(self) -> None:
        """Calls in flight end now: some servers' deaths are seen by nobody but the pipe."""
        now = asyncio.get_running_loop().time()
        for limit in self._in_flight:
            limit.reschedule(now)

    def _tell(self) -> None:
        """Wake whoever waits for a change."""
        self._turn.set()
        self._turn = asyncio.Event()

    @asynccontextmanager
    async def _open(self, said: _Said) -> AsyncIterator[Client]:
        """A connected client with its tools listed; start and end are bounded."""
        from mcp import Client

        settings = self.settings
        async with AsyncExitStack() as stack:
            transport = await self._transport(stack, said)
            client = Client(
                said.sieve.over(transport),
                read_timeout_seconds=settings.timeout_s,
                message_handler=self._on_message,
                cache=None,
            )
            limit = asyncio.timeout(settings.connect_timeout_s)
            try:
                async with limit:
                    await client.__aenter__()
            except TimeoutError:
                why = f"it did not answer within {settings.connect_timeout_s:g} s"
                raise Fault("mcp_unavailable", said.with_words(why)) from None
            stack.push_async_exit(_BoundedExit(client))
            try:
                async with asyncio.timeout(settings.connect_timeout_s):
                    await self._list(client, said.sieve)
            except TimeoutError:
                raise Fault("mcp_unavailable", f"it listed no tools within {settings.connect_timeout_s:g} s") from None
            yield client

    async def _transport(self, stack: AsyncExitStack, said: _Said) -> Any:
        settings = self.settings
        if settings.command:
            program = Program(settings.name, settings.command, settings.env, settings.environ)
            said.pipe = Pipe(program, settings.message_bytes_max)
            return said.pipe.open()
        from swarmd.adapters.mcp_http import http_transport

        return await http_transport(stack, settings)

    async def _on_message(self, message: Any) -> None:
        from mcp_types import ToolListChangedNotification

        if isinstance(message, ToolListChangedNotification):
            self._changed.set()

    async def _watch(self, client: Client, said: _Said) -> None:
        """Until the connection ends: read the list again when it changes."""
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(self._lost.wait()), group.create_task(self._follow_changes(client, said))]
            if said.pipe is not None:
                waits.append(group.create_task(said.pipe.ended.wait()))
            tasks = [*waits, group.create_task(self._subscribe(client))]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()

    async def _follow_changes(self, client: Client, said: _Said) -> None:
        """Returns when the list cannot be read: such a connection is worth nothing."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._list(client, said.sieve)
            except (Fault, Rejected) as error:
                log.warning("MCP server %s: its changed list cannot be read: %s", self.settings.name, error.message)
                return
            self._tell()
            await asyncio.sleep(RELIST_S)

    async def _subscribe(self, client: Client) -> None:
        """Hear of changes the way the newer protocol tells them; the older one just sends them."""
        from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
        from mcp.shared.exceptions import MCPError

        tools = client.server_capabilities.tools
        if tools is None or not tools.list_changed:
            return
        try:
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    self._changed.set()
        except (ListenNotSupportedError, SubscriptionLost, MCPError, TimeoutError):
            return

    async def _list(self, client: Client, sieve: Sieve) -> None:
        """Read the whole list and judge each tool. Raises `Fault("mcp_error" | "bad_answer" | "mcp_lost")`."""
        from mcp.shared.exceptions import MCPError
        from mcp_types import PaginatedRequestParams
        from pydantic import ValidationError

        found: list[types.Tool] = []
        sieve.schemas.clear()
        params: PaginatedRequestParams | None = None
        try:
            for _ in range(PAGES_MAX):
                page = await client.session.list_tools(params=params)
                found += page.tools
                if not page.next_cursor or len(found) > TOOLS_MAX:
                    break
                params = PaginatedRequestParams(cursor=page.next_cursor)
        except MCPError as error:
            raise self._translated(error, "tools/list") from None
        except (ValidationError, RecursionError):
            raise Fault("bad_answer", "its list of tools is none") from None
        self.listing = await asyncio.to_thread(judged, self.settings, found, dict(sieve.schemas))
        for tool, why in self.listing.refused.items():
            log.warning("MCP server %s: tool %s is refused: %s", self.settings.name, tool, why)


def judged(settings: McpServerSettings, tools: list[types.Tool], schemas: Mapping[str, Any]) -> Listing:
    """The tools that can be offered, by our names, and why the others cannot."""
    listing = Listing()
    for tool in tools:
        name = offered_name(settings.name, tool.name)
        if settings.tools and tool.name not in settings.tools:
            continue
        shown = plain(tool.name, 100)
        if len(listing.tools) == TOOLS_MAX:
            listing.refused[shown] = f"the server has more than {TOOLS_MAX} tools: name those wanted in `tools`"
            break
        if name in listing.tools:
            listing.refused[shown] = "the server lists it twice"
            continue
        try:
            listing.tools[name] = Listed(tool.name, tool, Arguments(schemas.get(tool.name)))
        except Rejected as error:
            listing.refused[shown] = error.message
    for wanted in settings.tools:
        if wanted not in {tool.name for tool in tools}:
            listing.refused[wanted] = "the server has no such tool"
    return listing


class _Said:
    """What came over one connection beside the SDK: last words, if it has a pipe, and tools' schemas."""

    def __init__(self) -> None:
        self.pipe: Pipe | None = None
        self.sieve = Sieve()

    def with_words(self, why: str) -> str:
        words = plain(self.pipe.said(), 500) if self.pipe is not None else ""
        return f"{why}; it said: {words}" if words else why


class _BoundedExit:
    """Leaves a client within `TEARDOWN_S`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *error: Any) -> None:
        try:
            async with asyncio.timeout(TEARDOWN_S):
                await self._client.__aexit__(*error)
        except TimeoutError:
            log.warning("an MCP connection did not close within %g s; it is left", TEARDOWN_S)


def _lost(server: str) -> Fault:
    text = f"the connection to the server {server} ended during the call: whether it took effect is not known"
    return Fault("mcp_lost", text)


def _closed_errors() -> tuple[type[Exception], ...]:
    import anyio

    return (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream)


def _as_failure(error: Exception, server: str, said: _Said) -> Fault | Rejected:
    """A failure of a connection in our terms, out of the groups that the SDK's tasks raise.

    The SDK works on a stranger's words: whatever it raises on them is a fault of that server, with a trace in the log
    where it is none of the errors it is known to raise, and never the end of a worker that hosts other agents.
    """
    import httpx2
    from mcp.shared.exceptions import MCPError
    from pydantic import ValidationError

    leaf: BaseException = error
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    if isinstance(leaf, Fault | Rejected):
        return leaf
    if isinstance(leaf, MCPError):
        why = plain(leaf.message, 500) or "it refused the connection"
    elif isinstance(leaf, ValidationError | RecursionError):
        why = "it does not speak the protocol"
    else:
        why = _in_words(leaf)
        if not isinstance(leaf, (httpx2.HTTPError, httpx2.StreamError, OSError, *_closed_errors())):
            log.warning("MCP server %s: the SDK failed", server, exc_info=error)
    return Fault("mcp_unavailable", said.with_words(why))


def _in_words(error: BaseException) -> str:
    return plain(f"{type(error).__name__}: {error}", 300)
