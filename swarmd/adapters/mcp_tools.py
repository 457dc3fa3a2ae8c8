"""Tools of MCP servers as tools of ours.

Job: give each tool of a configured server a name of ours, and carry its calls to the one session with that server.
Invariants: a server is started when somebody wants a tool of it, and once per process; what a server says about the
safety of its own tools is not believed: each may have effects outside.
Must not know: agents, models; how a session is kept.
"""

from __future__ import annotations

import asyncio
import difflib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from swarmd.adapters.mcp_format import described, text_of
from swarmd.adapters.mcp_session import Listing, McpServerSettings, McpSession
from swarmd.core.errors import Fault, Rejected
from swarmd.core.turns import ToolSpec
from swarmd.ports import SideEffects, ToolPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

PREFIX: Final = "mcp."
SEPARATOR: Final = "__"
#: A call may wait for a connection that is being made, and is then bounded by the session itself.
GRACE_MS: Final = 1_000
START_PAUSES_S: Final = (0.2, 1.0)


class McpTool:
    """One tool of one server. `spec` is the newest that the server has listed."""

    def __init__(self, name: str, session: McpSession, spec: ToolSpec) -> None:
        settings = session.settings
        self.spec = spec
        self.timeout_ms = round((settings.timeout_s + settings.connect_timeout_s) * 1000) + GRACE_MS
        self.output_bytes_max = settings.output_bytes_max
        #: What a server says of its tools' safety is a stranger's word, so a call is never repeated by itself.
        self.side_effects: SideEffects = "at_most_once"
        self.policy = ToolPolicy()
        self._name, self._session = name, session

    async def call(self, arguments: dict[str, Any], key: str = "") -> str:
        """The result as text. `key` goes to the server as `_meta["swarmd/idempotency-key"]`.

        Raises `Rejected("tool_error")` with what the tool says of its failure, and whatever `McpSession.call` raises.
        """
        result = await self._session.call(self._name, arguments, key)
        self.spec = spec_of(self._session.listing, self._name)
        if result.is_error:
            raise Rejected("tool_error", text_of(result) or "the tool failed and says nothing")
        return text_of(result)


def spec_of(listing: Listing, name: str) -> ToolSpec:
    """A listed tool as a model sees it; one that is not listed yet takes any arguments, its call says what is wrong."""
    listed = listing.tools.get(name)
    if listed is None:
        return ToolSpec(name, "", {"type": "object"})
    return ToolSpec(name, described(listed.tool), listed.arguments.schema)


class McpServers:
    """The configured servers of one process. Raises `Rejected` for what is not among them."""

    def __init__(self, servers: Mapping[str, McpServerSettings]) -> None:
        self._settings = dict(servers)
        self._listings: dict[str, Listing] = {}
        self._sessions: dict[str, McpSession] = {}
        self._group: asyncio.TaskGroup | None = None
        self._keepers: list[asyncio.Task[None]] = []

    def owns(self, name: str) -> bool:
        """Whether a tool's name, or a pattern, is about MCP servers."""
        return name.startswith(PREFIX) or (SEPARATOR in name and name.partition(SEPARATOR)[0] in self._settings)

    def server_of(self, name: str) -> str:
        """The server that `mcp.SERVER.tool`, `mcp.SERVER.*` or `SERVER__tool` is about."""
        if name.startswith(PREFIX):
            server, _, tool = name.removeprefix(PREFIX).partition(".")
        else:
            server, _, tool = name.partition(SEPARATOR)
        if server not in self._settings:
            near = difflib.get_close_matches(server, self._settings, 1)
            known = ", ".join(sorted(self._settings)) or "none"
            hint = f"did you mean {near[0]!r}?" if near else f"configured are: {known}"
            raise Rejected("unknown_tool", f"tool {name!r}: there is no table [mcp.{server}]: {hint}")
        if not tool:
            raise Rejected("unknown_tool", f"tool {name!r}: write mcp.{server}.* or mcp.{server}.TOOL")
        return server

    async def discover(self, names: Iterable[str]) -> None:
        """List the tools of the servers that these names are about, all at once.

        Each connection ends again: the worker's own is made when it runs. Raises `Rejected` or `Fault`.
        """
        servers = {self.server_of(name) for name in names if self.owns(name)}
        failures: list[Fault | Rejected] = []

        async def look(server: str) -> None:
            try:
                self._listings[server] = await _first_listing(self._settings[server])
            except (Fault, Rejected) as error:
                failures.append(type(error)(error.code, f"MCP server {server}: {error.message}"))

        async with asyncio.TaskGroup() as group:
            for server in sorted(servers - set(self._listings)):
                group.create_task(look(server))
        if failures:
            raise failures[0]

    def expand(self, name: str) -> list[str]:
        """Our names for what `name` stands for, after `discover`. Raises `Rejected("unknown_tool")`."""
        server = self.server_of(name)
        listing = self._listings.get(server, Listing())
        wanted = name.removeprefix(f"{PREFIX}{server}.") if name.startswith(PREFIX) else ""
        if wanted == "*":
            if not listing.tools:
                raise Rejected("unknown_tool", f"tool {name!r}: the server {server} offers no tool that can be used")
            return sorted(listing.tools)
        for ours, listed in listing.tools.items():
            if name == ours or wanted == listed.true_name:
                return [ours]
        why = listing.refused.get(wanted or name.partition(SEPARATOR)[2], "")
        known = ", ".join(sorted(listed.true_name for listed in listing.tools.values()))
        hint = f"it is refused: {why}" if why else f"the server has {known or 'none'}"
        raise Rejected("unknown_tool", f"tool {name!r}: {hint}")

    def tool(self, name: str) -> McpTool:
        """The tool of ours called `name`; its session begins as soon as this runs."""
        server = self.server_of(name)
        if server not in self._sessions:
            session = McpSession(self._settings[server])
            session.listing = self._listings.get(server, Listing())
            self._sessions[server] = session
            self._begin(session)
        session = self._sessions[server]
        return McpTool(name, session, spec_of(session.listing, name))

    def _begin(self, session: McpSession) -> None:
        if self._group is not None:
            self._keepers.append(self._group.create_task(session.keep()))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the sessions of all tools that were asked for and will be, until the end of the block."""
        async with asyncio.TaskGroup() as self._group:
            for session in self._sessions.values():
                self._begin(session)
            try:
                yield
            finally:
                self._group = None
                for keeper in self._keepers:
                    keeper.cancel()
                self._keepers.clear()


async def _first_listing(settings: McpServerSettings) -> Listing:
    """Connect, list, close; a server that fails to be there gets a few tries."""
    for pause_s in (*START_PAUSES_S, 0.0):
        try:
            return await McpSession(settings).look()
        except Fault:
            if not pause_s:
                raise
        await asyncio.sleep(pause_s)
    raise AssertionError("the last try returns or raises")
