"""What a program agent may call: each verb's arguments, checked, and the context's answer as plain JSON.

Invariant: a wait names only children that this attempt has spawned, so that no call waits for what cannot come.
Must not know processes or the form of the lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from swarmd.core import program
from swarmd.core.errors import UNREADABLE, Rejected
from swarmd.core.turns import Turn
from swarmd.core.wire import Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from msgspec import Raw

    from swarmd.roles.attempt import Child


def arguments_of(verb: str, args: Raw) -> program.Arguments:
    """Raises `Rejected("unknown_verb" | "bad_arguments")`, naming what there is or which field is wrong."""
    wanted = program.ARGUMENTS.get(verb)
    if wanted is None:
        raise Rejected("unknown_verb", f"there is no verb {verb!r}; there are {', '.join(program.ARGUMENTS)}")
    try:
        return msgspec.json.decode(args, type=wanted)
    except UNREADABLE as error:
        raise Rejected("bad_arguments", f"{verb}: {error}") from None


class Verbs:
    """The verbs of one attempt; `ctx` is its context."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self._children: dict[str, Child] = {}

    async def perform(self, verb: str, args: Raw) -> Any:
        """The answer, as something that can be written as JSON. Raises what the context raises."""
        arguments = arguments_of(verb, args)
        act: Callable[[Any], Awaitable[Any]] | None = getattr(self, f"_{verb}", None)
        if act is not None:
            return await act(arguments)
        return await getattr(self._ctx, verb)(**_keywords(arguments))

    # Verbs without a method here are those whose arguments are what the context's method of that name takes.

    async def _model(self, said: program.ModelArguments) -> Any:
        turns = [Turn("user", said.prompt)] if isinstance(said.prompt, str) else said.prompt
        prompt = [Turn(turn.role, turn.content) for turn in turns]
        more = {"schema": said.schema} if said.schema is not None else {}
        return await self._ctx.model(prompt, model=said.model, name=said.name, **more)

    async def _spawn(self, said: program.SpawnArguments) -> str:
        wanted = msgspec.json.decode(said.input)
        child: Child = await self._ctx.spawn(said.agent, wanted, swarm=said.swarm, labels=said.labels)
        self._children[child.task] = child
        return child.task

    async def _gather(self, said: program.GatherArguments) -> list[Any]:
        found = await self._ctx.gather(*self._spawned(said.children), return_failures=said.return_failures)
        return [_ending(output) for output in found] if said.return_failures else list(found)

    async def _first(self, said: program.FirstArguments) -> list[Any]:
        found = await self._ctx.first(*self._spawned(said.children), count=said.count)
        return [{"task": child.task, **_ending(output)} for child, output in found]

    async def _cancel(self, said: program.CancelArguments) -> None:
        await self._ctx.cancel(*self._spawned(said.children), reason=said.reason)

    async def _update_memory(self, said: program.UpdateMemoryArguments) -> Any:
        given = {name: value for name, value in _keywords(said).items() if value is not msgspec.UNSET}
        return await self._ctx.update_memory(**given)

    async def _get_memories(self, said: program.GetMemoriesArguments) -> Any:
        return await self._ctx.get_memories(*said.ids)

    async def _sleep(self, said: program.SleepArguments) -> None:
        await self._ctx.sleep(said.seconds)

    def _spawned(self, tasks: Sequence[str]) -> list[Child]:
        strangers = [task for task in tasks if task not in self._children]
        if strangers:
            raise Rejected("unknown_child", f"{strangers[0]!r} is no child that this attempt has spawned")
        return [self._children[task] for task in tasks]


def _keywords(arguments: program.Arguments) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in arguments.__struct_fields__}


def _ending(output: Any) -> dict[str, Any]:
    """A child's verdict: its output, or why there is none."""
    return {"failed": output} if isinstance(output, Outcome) else {"output": output}
