"""Finds what a worker hosts: agents of Python modules, declared ones with the models and tools they name, programs.

Everything that a declaration names is opened before the first task, so that a missing key or package is an error at
the start and not a failed task. Must not know workers or connections.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from swarmd.adapters.models import ModelSettings, open_model
from swarmd.adapters.programs import SubprocessPrograms
from swarmd.adapters.tools import ToolSettings, open_tools
from swarmd.core.errors import Rejected
from swarmd.roles.llm_agent import CONTEXT_TOOLS, llm_agent
from swarmd.roles.program_agent import program_agent
from swarmd.sdk import Agent, agents_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from swarmd.core.agent import AgentSpec
    from swarmd.core.program import ProgramSpec
    from swarmd.core.turns import ToolSpec
    from swarmd.ports import Model, Tool


class OpenModels:
    """Models by name, opened at first use and kept until `close`."""

    def __init__(self, settings: Callable[[str], ModelSettings]) -> None:
        self._settings = settings
        self._open: dict[str, Model] = {}

    def __call__(self, name: str) -> Model:
        """Raises `Rejected` when there is no such model or it cannot be reached by these settings."""
        if name not in self._open:
            self._open[name] = open_model(self._settings(name))
        return self._open[name]

    async def close(self) -> None:
        while self._open:
            _, model = self._open.popitem()
            await model.close()


class OpenTools:
    """Tools by name, built at first use."""

    def __init__(self, settings: ToolSettings) -> None:
        self._settings = settings
        self._open: dict[str, Tool] = {}

    def __call__(self, name: str) -> Tool:
        """Raises `Rejected` for a name that is not built in, or a tool that these settings do not allow."""
        if name not in self._open:
            self._open |= open_tools([name], self._settings)
        return self._open[name]

    def spec(self, name: str) -> ToolSpec:
        return self(name).spec


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
        for agent in _agents_of(module):
            _add(found, agent, f"module {module}")
    for spec in declared:
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


def _agents_of(module: str) -> list[Agent]:
    try:
        loaded: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            hint = f"looked in {os.getcwd()} and the installed packages"
            raise Rejected("bad_agents", f"there is no module {module!r} for --agents: {hint}") from None
        raise Rejected("bad_agents", f"module {module!r} needs {error.name!r}, which is not installed") from None
    except Exception as error:  # importing runs a stranger's code: whatever it raises is told, not traced
        raise Rejected("bad_agents", f"module {module!r} fails at import: {type(error).__name__}: {error}") from error
    agents = agents_in(loaded)
    if not agents:
        raise Rejected("bad_agents", f"module {module!r} has no agents: mark async functions with @swarmd.agent")
    return agents
