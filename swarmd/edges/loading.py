"""Finds what a worker hosts: agents and tools of Python modules, declared agents with what they name, programs.

Everything that a declaration names is opened before the first task, so that a missing key or package is an error at
the start and not a failed task. Must not know workers or connections.
"""

from __future__ import annotations

import asyncio
import difflib
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from swarmd.adapters.mcp_tools import PREFIX, SEPARATOR, McpServers
from swarmd.adapters.programs import SubprocessPrograms
from swarmd.adapters.system import SystemClock
from swarmd.adapters.tools import BUILT_IN, ToolSettings, open_tools
from swarmd.core.errors import Rejected, SwarmdError
from swarmd.edges.declared_tools import DeclaredTool
from swarmd.roles.llm_agent import CONTEXT_TOOLS, llm_agent
from swarmd.roles.program_agent import program_agent
from swarmd.sdk import Agent, agents_in
from swarmd.sdk_tools import tools_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from swarmd.adapters.mcp_session import McpServerSettings
    from swarmd.config import ToolTable
    from swarmd.core.agent import AgentSpec
    from swarmd.core.program import ProgramSpec
    from swarmd.core.turns import ToolSpec
    from swarmd.edges.open_models import OpenModels
    from swarmd.ports import Clock, Tool
    from swarmd.sdk_tools import FunctionTool


class OpenTools:
    """Tools by name: built in, found in modules (`add`), or of MCP servers (`mcp`).

    Each is as its table `[tool.<name>]` wants it called; that of an MCP server answers to both of its names.
    """

    def __init__(
        self,
        settings: ToolSettings,
        tables: Mapping[str, ToolTable] | None = None,
        clock: Clock | None = None,
        *,
        mcp: Mapping[str, McpServerSettings] | None = None,
    ) -> None:
        self._settings, self._tables = settings, tables or {}
        self._clock = clock or SystemClock()
        self._found: dict[str, tuple[FunctionTool, str]] = {}
        self._open: dict[str, Tool] = {}
        self.mcp = McpServers(mcp or {})

    def __call__(self, name: str) -> Tool:
        """Raises `Rejected` for a name that is not known, or a tool that these settings do not allow."""
        if name not in self._open:
            self._open[name] = self._declared(name, self._find(name))
        return self._open[name]

    def spec(self, name: str) -> ToolSpec:
        return self(name).spec

    def add(self, tool: FunctionTool, origin: str) -> None:
        """Offer a tool of a module. Raises `Rejected("bad_tool")` when its name is taken."""
        name = tool.spec.name
        other, whence = self._found.get(name, (tool, origin))
        if name in BUILT_IN or name in CONTEXT_TOOLS or self.mcp.owns(name):
            raise Rejected("bad_tool", f"{origin} has a tool {name!r}, which is the name of another: rename it")
        if other is not tool:
            raise Rejected("bad_tool", f"tool {name!r} comes from {whence} and from {origin}: rename one")
        self._found[name] = (tool, origin)

    def discover(self, declared: Iterable[AgentSpec]) -> None:
        """Ask the MCP servers that these agents name for their tools. Raises `Rejected` or `Fault` naming a server."""
        names = [name for spec in declared for name in spec.tools if self.mcp.owns(name)]
        if names:
            asyncio.run(self.mcp.discover(names))

    def resolved(self, spec: AgentSpec) -> AgentSpec:
        """The same agent with each tool under its own name, after `discover`."""
        names: list[str] = []
        for name in spec.tools:
            names += self.mcp.expand(name) if self.mcp.owns(name) else [name]
        return msgspec.structs.replace(spec, tools=list(dict.fromkeys(names)))

    def of_modules(self) -> list[str]:
        """Names of the tools that the modules loaded so far have."""
        return sorted(self._found)

    def unmatched(self) -> list[str]:
        """Names of tables that no tool known so far has: such a table may be misspelt."""
        known = {*BUILT_IN, *CONTEXT_TOOLS, *self._found}
        return sorted(name for name in self._tables if name not in known and not self.mcp.owns(name))

    def close(self) -> None:
        """End the processes that tools keep."""
        for tool, _ in self._found.values():
            tool.close()

    def _find(self, name: str) -> Tool:
        if name in self._found:
            return self._found[name][0]
        if self.mcp.owns(name):
            return self.mcp.tool(self.mcp.expand(name)[0] if name.startswith(PREFIX) else name)
        if name not in BUILT_IN:
            known = [*BUILT_IN, *self._found]
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise Rejected("unknown_tool", f"there is no tool {name!r}: {hint}")
        return open_tools([name], self._settings, self._clock)[name]

    def _declared(self, name: str, tool: Tool) -> Tool:
        names = [name, tool.spec.name]
        if self.mcp.owns(name):
            server, _, own = tool.spec.name.partition(SEPARATOR)
            names.append(f"{PREFIX}{server}.{own}")
        table = next((self._tables[known] for known in names if known in self._tables), None)
        return DeclaredTool(tool, table) if table is not None else tool


def load_agents(
    modules: Sequence[str],
    declared: Iterable[AgentSpec],
    models: OpenModels,
    tools: OpenTools,
    programs: Mapping[str, ProgramSpec] | None = None,
) -> dict[str, Agent]:
    """Agents by name, from modules and declarations. Raises `Rejected("bad_agents" | ...)` naming what is wrong."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a module beside the user is found, however swarmd was started
    found: dict[str, tuple[Agent, str]] = {}
    for module in modules:
        agents, functions = _parts_of(module)
        for agent in agents:
            _add(found, agent, f"module {module}")
        for function in functions:
            tools.add(function, f"module {module}")
    _refuse_misspelt(tools)
    declared = list(declared)
    tools.discover(declared)
    for spec in map(tools.resolved, declared):
        for model in [spec.model] if isinstance(spec.model, str) else spec.model:
            if model:
                models(model)
        for tool in spec.tools:
            if tool not in CONTEXT_TOOLS:
                tools(tool)
        _add(found, llm_agent(spec, tools.spec), "a declaration")
    processes = SubprocessPrograms(os.environ)
    for name, program in (programs or {}).items():
        processes.check(name, program)
        _add(found, program_agent(name, program, processes), "a program")
    return {name: agent for name, (agent, _) in sorted(found.items())}


def _add(found: dict[str, tuple[Agent, str]], agent: Agent, origin: str) -> None:
    if agent.name in found and found[agent.name][0] is not agent:
        other = found[agent.name][1]
        raise Rejected("bad_agents", f"agent {agent.name!r} comes from {other} and from {origin}: rename one")
    found[agent.name] = (agent, origin)


def _refuse_misspelt(tools: OpenTools) -> None:
    """A table that is all but named like a built-in tool would silently leave that tool without its approval."""
    for name in tools.unmatched():
        near = difflib.get_close_matches(name, [*BUILT_IN, *CONTEXT_TOOLS], 1, 0.8)
        if near:
            raise Rejected("unknown_tool", f"[tool.{name}] is for no tool: did you mean [tool.{near[0]}]?")


def _parts_of(module: str) -> tuple[list[Agent], list[FunctionTool]]:
    try:
        loaded: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            hint = f"looked in {os.getcwd()} and the installed packages"
            raise Rejected("bad_agents", f"there is no module {module!r} for --agents: {hint}") from None
        raise Rejected("bad_agents", f"module {module!r} needs {error.name!r}, which is not installed") from None
    except SwarmdError as error:  # says itself what is wrong, such as with a tool
        raise Rejected("bad_agents", f"module {module!r} fails at import: {error.message}") from None
    except Exception as error:  # importing runs a stranger's code: whatever it raises is told, not traced
        raise Rejected("bad_agents", f"module {module!r} fails at import: {type(error).__name__}: {error}") from error
    agents, functions = agents_in(loaded), tools_in(loaded)
    if not agents and not functions:
        how = "mark async functions with @swarmd.agent, or functions with @swarmd.tool"
        raise Rejected("bad_agents", f"module {module!r} has no agents: {how}")
    return agents, functions
