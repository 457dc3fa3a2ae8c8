"""What agent authors use: the `@agent` decorator. Importing it starts nothing and registers nothing globally."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, overload

from swarmd.core.ids import check_name

if TYPE_CHECKING:
    from types import ModuleType

    from swarmd.reuse import Reuse
    from swarmd.roles.context import Context

AgentFunction = Callable[["Context", Any], Awaitable[Any]]
_MARK = "__swarmd_agent__"


#: For each former version the new names of its steps; steps that are not named keep theirs.
Migrations = Mapping[str, Mapping[str, str]]


class Agent:
    """Something a worker can run: a name and an async function of (context, input) that returns JSON-able output.

    A task stays with the `version` it began with. Members that offer another one run it only if that `migrates` from
    the first: their code must then go through the recorded steps, under their new names, as the old code did.

    Two attempts of an `idempotent` agent may run at once: when one is late it gets another beside it, and the first
    result counts. With `reuse` the result of an earlier task may stand for that of one whose input is alike.
    """

    def __init__(
        self,
        name: str,
        run: AgentFunction,
        version: str = "1",
        migrates: Migrations | None = None,
        idempotent: bool = False,
        reuse: Reuse | None = None,
    ) -> None:
        self.idempotent, self.reuse = idempotent, reuse
        self.name = check_name("agent", name)
        self.run = run
        self.version = check_name("version", version)
        self.migrates = {check_name("version", old): dict(names) for old, names in (migrates or {}).items()}

    @property
    def versions(self) -> list[str]:
        """What it can run, its own version first."""
        return [self.version, *self.migrates]

    def __repr__(self) -> str:
        return f"Agent({self.name!r})"


@overload
def agent(function: AgentFunction) -> AgentFunction: ...


@overload
def agent(
    *,
    name: str = "",
    version: str = "1",
    migrates: Migrations | None = None,
    idempotent: bool = False,
    reuse: Reuse | None = None,
) -> Callable[[AgentFunction], AgentFunction]: ...


def agent(
    function: AgentFunction | None = None,
    *,
    name: str = "",
    version: str = "1",
    migrates: Migrations | None = None,
    idempotent: bool = False,
    reuse: Reuse | None = None,
) -> Any:
    """Mark an async function as an agent, under its own name or `name`; the function stays callable.

    Raise `version` when tasks under way could not go on with the new code; `migrates={"1": {"old": "new"}}` lets it
    take over tasks of version 1 whose steps were renamed. Late attempts of an `idempotent` agent are hedged. With
    `reuse=Reuse(threshold=0.95)` results are kept in the memory, and taken for inputs that are alike.

    @agent
    async def greet(ctx, who):
        return f"Hello, {who}!"
    """

    def mark(marked: AgentFunction) -> AgentFunction:
        called = name or getattr(marked, "__name__", "")
        setattr(marked, _MARK, Agent(called, marked, version, migrates, idempotent, reuse))
        return marked

    return mark if function is None else mark(function)


def agents_in(module: ModuleType) -> list[Agent]:
    """The agents that a module defines or imports, by name."""
    found = {a.name: a for a in (getattr(value, _MARK, None) for value in vars(module).values()) if a is not None}
    return [found[name] for name in sorted(found)]
