"""What agent authors use: the `@agent` decorator. Importing it starts nothing and registers nothing globally."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, overload

from swarmd.core.ids import check_name

if TYPE_CHECKING:
    from types import ModuleType

    from swarmd.roles.attempt import Context

AgentFunction = Callable[["Context", Any], Awaitable[Any]]
_MARK = "__swarmd_agent__"


class Agent:
    """Something a worker can run: a name and an async function of (context, input) that returns JSON-able output."""

    def __init__(self, name: str, run: AgentFunction) -> None:
        self.name = check_name("agent", name)
        self.run = run

    def __repr__(self) -> str:
        return f"Agent({self.name!r})"


@overload
def agent(function: AgentFunction) -> AgentFunction: ...


@overload
def agent(*, name: str) -> Callable[[AgentFunction], AgentFunction]: ...


def agent(function: AgentFunction | None = None, *, name: str = "") -> Any:
    """Mark an async function as an agent, under its own name or `name`; the function stays callable.

    @agent
    async def greet(ctx, who):
        return f"Hello, {who}!"
    """

    def mark(marked: AgentFunction) -> AgentFunction:
        setattr(marked, _MARK, Agent(name or getattr(marked, "__name__", ""), marked))
        return marked

    return mark if function is None else mark(function)


def agents_in(module: ModuleType) -> list[Agent]:
    """The agents that a module defines or imports, by name."""
    found = {a.name: a for a in (getattr(value, _MARK, None) for value in vars(module).values()) if a is not None}
    return [found[name] for name in sorted(found)]
