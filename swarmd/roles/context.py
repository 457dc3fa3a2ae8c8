"""The context: what an agent acts through. Its sides are in files of their own, over one journal."""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from swarmd.aside import in_thread
from swarmd.roles.attempt import AgentFailed
from swarmd.roles.family import Family
from swarmd.roles.reuse_steps import ReuseSteps
from swarmd.roles.tool_steps import ToolSteps
from swarmd.roles.watch_steps import WatchSteps

if TYPE_CHECKING:
    from collections.abc import Callable


class Context(ToolSteps, WatchSteps, ReuseSteps, Family):
    """What an agent acts through.

    `task`, `epoch`, `agent`, `labels`, `priority` and `deadline_at_ms` tell where it is.
    """

    async def step(
        self, name: str, function: Callable[..., Any], *args: Any, timeout_s: float | None = None, **kwargs: Any
    ) -> Any:
        """Do something once: call `function` (async, or sync in a thread), record its JSON result, return it.

        Bound it with `timeout_s`, not with a timeout around the step: that one would strike at another place, or not at
        all, when the task is resumed. Raises `AgentFailed("step_timeout")` when it takes longer than `timeout_s`; a
        thread cannot be stopped, its result is then dropped.
        """

        async def act() -> Any:
            if inspect.iscoroutinefunction(function):
                return await function(*args, **kwargs)
            result = await in_thread(partial(_call, function, args, kwargs))  # of its own: some never end
            return await result if inspect.isawaitable(result) else result

        async def timed() -> Any:
            limit = asyncio.timeout(timeout_s)
            try:
                async with limit:
                    return await act()
            except TimeoutError:
                if not limit.expired():  # the function's own
                    raise
                raise AgentFailed("step_timeout", f"step {name!r} took longer than {timeout_s} s") from None

        return await self._journaled(self._key(name), "step", act if timeout_s is None else timed)

    async def conflict(self, said: Any) -> None:
        """Record that others disagree, and who said what: a step of the kind `conflict`, for whoever reads the log."""

        async def act() -> Any:
            return said

        await self._journaled(self._key("conflict"), "conflict", act)


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a step's function in its thread. No future takes a `StopIteration`: whoever waited would wait for ever."""
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        raise RuntimeError("the step raised StopIteration") from error
