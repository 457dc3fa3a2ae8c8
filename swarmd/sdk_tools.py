"""What tool authors use: the `@tool` decorator. Importing it starts nothing and registers nothing globally.

Job: make a tool of an ordinary function: schema from its type hints, description from its docstring, and a call that
converts arguments, runs sync functions beside the event loop, and turns any JSON into text.
Must not know: agents, journals, models, how a call is limited (`roles/tool_calls`).
"""

from __future__ import annotations

import inspect
import os
import re
import threading
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypedDict, TypeVar, overload

import msgspec
from msgspec import Meta, Struct

from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.tool_text import fit
from swarmd.core.turns import ToolSpec
from swarmd.ports import SideEffects, ToolOutput, ToolPolicy
from swarmd.tool_schema import KEY_PARAMETER, Parameters, documented

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FunctionType, ModuleType
    from typing import Unpack

    from swarmd.aside import Processes

Function = TypeVar("Function", bound="Callable[..., Any]")
_MARK: Final = "__swarmd_tool__"
#: What model endpoints accept as the name of a tool.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CONCURRENCY: Final = 16


class ToolOptions(TypedDict, total=False):
    """What `@tool(...)` may declare; `Options` says what each is and its default."""

    description: str
    timeout_s: float
    retries: int
    backoff_s: float
    output_bytes_max: int
    concurrency: int
    side_effects: SideEffects


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """The limits of a tool.

    `timeout_s` is for one try; `retries` follow a `Fault` only, `backoff_s` apart and doubling; `concurrency` is the
    number of calls at once in one process (0: 16, and for sync="process" the number of processors). `side_effects`:
    "none" (it only looks), "idempotent" (it acts; two calls with one `idempotency_key` act as one) or "at_most_once" (a
    call whose outcome is unknown is never repeated). The default is "idempotent", as for any step: after a crash, a
    call that was not recorded is made again, with the same key. A tool that cannot use the key must say "at_most_once".
    """

    description: str = ""
    timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    retries: Annotated[int, Meta(ge=0, le=20)] = 0
    backoff_s: Annotated[float, Meta(ge=0)] = 0.5
    output_bytes_max: Annotated[int, Meta(ge=256)] = 64 * 1024
    concurrency: Annotated[int, Meta(ge=0)] = 0
    side_effects: SideEffects = "idempotent"


class FunctionTool:
    """A function as a tool (`swarmd.ports.Tool`)."""

    def __init__(self, function: FunctionType, name: str, sync: Literal["thread", "process"], options: Options) -> None:
        """Raises `Rejected("bad_tool")` for what cannot be a tool, naming it."""
        self._function, self._sync = function, sync
        self._is_async = inspect.iscoroutinefunction(function)
        self._parameters = Parameters(function)
        description = options.description or documented(function)[0]
        _check(function, name, description, sync, options)
        self.spec = ToolSpec(name, description, self._parameters.schema)
        self.timeout_ms = max(1, round(options.timeout_s * 1000))
        self.output_bytes_max = options.output_bytes_max
        self.side_effects: SideEffects = options.side_effects
        usual = (os.cpu_count() or 1) if sync == "process" and not self._is_async else _CONCURRENCY
        self.policy = ToolPolicy(
            retries=options.retries,
            backoff_ms=round(options.backoff_s * 1000),
            concurrency=options.concurrency or usual,
        )
        self._threads = threading.BoundedSemaphore(self.policy.concurrency)
        self._processes: Processes | None = None

    def __repr__(self) -> str:
        return f"FunctionTool({self.spec.name!r})"

    async def call(self, arguments: dict[str, Any], key: str = "") -> str | ToolOutput:
        """The function's result: a text as it is, anything else as JSON.

        Raises `Rejected("bad_arguments" | "bad_result" | ...)`, `Fault("tool_died" | "tool_busy" | ...)`, and from an
        async function or a thread whatever the function raises.
        """
        if self._is_async:
            value = await self._function(**self._filled(arguments, key))
            if isinstance(value, str):
                return value
            if value is None or isinstance(value, bool | int | float):
                return self._as_text(value)
            # How long a list or dict takes is not known before.
            from swarmd.aside import in_thread

            return await in_thread(partial(self._as_text, value))
        return await (self._in_process(arguments, key) if self._sync == "process" else self._in_thread(arguments, key))

    def perform(self, arguments: dict[str, Any], key: str) -> ToolOutput:
        """Call the (sync) function here and now."""
        return self._as_text(self._function(**self._filled(arguments, key)))

    def _filled(self, arguments: dict[str, Any], key: str) -> dict[str, Any]:
        values = self._parameters.convert(arguments)
        return {**values, KEY_PARAMETER: key} if self._parameters.takes_key else values

    def _as_text(self, value: Any) -> ToolOutput:
        """The result as text, cut here: whoever is handed it shall not have to hold it whole."""
        if not isinstance(value, str):
            try:
                value = msgspec.json.encode(value).decode()
            except (TypeError, ValueError, RecursionError) as error:
                why = f"{self.spec.name} returned a {type(value).__name__}, which is no text and no JSON: {error}"
                raise Rejected("bad_result", why) from None
        return ToolOutput(*fit(value, self.output_bytes_max))

    async def _in_thread(self, arguments: dict[str, Any], key: str) -> ToolOutput:
        from swarmd.aside import in_thread

        if not self._threads.acquire(blocking=False):
            why = f"{self.policy.concurrency} calls of {self.spec.name} that ran out of time are still at work"
            raise Fault("tool_busy", f"{why}: it was not called")
        return await in_thread(partial(self.perform, arguments, key), ended=self._threads.release)

    async def _in_process(self, arguments: dict[str, Any], key: str) -> ToolOutput:
        from swarmd.aside import ProcessDied, Processes

        self._parameters.convert(arguments)  # what is wrong with them is said before a process is started
        if self._processes is None:
            self._processes = Processes()
        function = self._function
        wanted = (function.__module__, function.__qualname__, arguments, key)
        try:
            answer: _Answer = await self._processes.call(_perform_in_process, *wanted)
        except ProcessDied:
            why = f"the process of {self.spec.name} ended in the middle of the call: killed, out of memory, or crashed"
            raise Fault("tool_died", why) from None
        kind, code, text, number = answer
        if kind == "rejected":
            raise Rejected(code, text)
        if kind == "fault":
            raise Fault(code, text, retry_after_ms=number or None)
        return ToolOutput(text, number)

    def close(self) -> None:
        """End the processes that wait for calls."""
        if self._processes is not None:
            self._processes.close()


#: ("text", "", text, bytes cut), ("rejected", code, message, 0), ("fault", code, message, pause in ms): plain values,
#: since an error that cannot be unpickled would break the process it is sent to.
_Answer = tuple[Literal["text", "rejected", "fault"], str, str, int]


def _perform_in_process(module: str, name: str, arguments: dict[str, Any], key: str) -> _Answer:
    """In the other process: find the tool by the name of its function, and call it."""
    from functools import reduce
    from importlib import import_module

    try:
        tool: FunctionTool = getattr(reduce(getattr, name.split("."), import_module(module)), _MARK)
        output = tool.perform(arguments, key)
    except Fault as error:
        return "fault", error.code, error.message, error.retry_after_ms or 0
    except SwarmdError as error:
        return "rejected", error.code, error.message, 0
    except BaseException as error:  # whatever a stranger's code raises is told
        said = f"{name} raised {type(error).__name__}: {error}"
        return "rejected", "tool_failed", fit(said, 4_000)[0], 0
    return "text", "", output.text, output.cut_bytes


def _check(function: Callable[..., Any], name: str, description: str, sync: str, options: Options) -> None:
    if not _NAME.fullmatch(name):
        raise Rejected("bad_tool", f"a tool cannot be called {name!r}: use up to 64 letters, digits, '_' and '-'")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise Rejected("bad_tool", f"tool {name!r} yields: a tool returns its result at once")
    if not description:
        raise Rejected("bad_tool", f"tool {name!r} has no docstring: a model is told by it what the tool does")
    if options.retries and options.side_effects == "at_most_once":
        raise Rejected("bad_tool", f"tool {name!r} cannot be at_most_once and have retries")
    if sync not in ("thread", "process"):
        raise Rejected("bad_tool", f"tool {name!r}: sync is 'thread' or 'process', not {sync!r}")
    if sync == "process" and inspect.iscoroutinefunction(function):
        raise Rejected("bad_tool", f"tool {name!r} is async: sync='process' is for functions that are not")
    if sync == "process" and ("<locals>" in function.__qualname__ or function.__module__ == "__main__"):
        why = "another process must be able to import it: define it at the top of a module"
        raise Rejected("bad_tool", f"tool {name!r}: sync='process', but {why}")


@overload
def tool(function: Function) -> Function: ...


@overload
def tool(
    *, name: str = "", sync: Literal["thread", "process"] = "thread", **options: Unpack[ToolOptions]
) -> Callable[[Function], Function]: ...


def tool(
    function: Any = None,
    *,
    name: str = "",
    sync: Literal["thread", "process"] = "thread",
    **options: Unpack[ToolOptions],
) -> Any:
    """Mark a function as a tool, under its own name or `name`; the function stays callable.

    @tool(timeout_s=10, side_effects="none")
    def word_count(text: str, longer_than: int = 0) -> int:
        '''Count the words of a text.

        Args:
            text: what to count in
            longer_than: count only words with more letters
        '''
        return sum(len(word) > longer_than for word in text.split())

    The model's arguments are converted to the hinted types first: str, int, float, bool, Literal, Enum, Optional, list,
    dict, dataclasses, msgspec.Struct, and `Annotated[..., msgspec.Meta(...)]` of these. A parameter `idempotency_key`
    gets the step's key and is not shown to the model. An async function must not block. A sync function runs in a
    thread (a hung one is left there and keeps its seat) or, with sync="process", in a process of its own that is
    killed when its time is up. `Options` lists the limits. Raise `Rejected` for input the model should change, `Fault`
    for a world that may do better later.
    Raises `Rejected("bad_tool")` at once for what cannot be a tool.
    """

    def mark(marked: Any) -> Any:
        if not inspect.isfunction(marked):
            raise Rejected("bad_tool", f"{marked!r} is no function: mark functions with @tool")
        chosen = name or marked.__name__
        try:
            limits = msgspec.convert(dict(options), Options)
        except msgspec.ValidationError as error:
            raise Rejected("bad_tool", f"tool {chosen!r}: {str(error).replace('`', '')}") from None
        setattr(marked, _MARK, FunctionTool(marked, chosen, sync, limits))
        return marked

    return mark if function is None else mark(function)


def tool_of(function: Callable[..., Any]) -> FunctionTool:
    """The tool that a function was marked as. Raises `Rejected("bad_tool")` for one that was not."""
    found = getattr(function, _MARK, None)
    if not isinstance(found, FunctionTool):
        raise Rejected("bad_tool", f"{function!r} is not marked with @tool")
    return found


def tools_in(module: ModuleType) -> list[FunctionTool]:
    """The tools that a module defines or imports, by name. Raises `Rejected("bad_tool")` for two of one name."""
    found: dict[str, FunctionTool] = {}
    for value in vars(module).values():
        marked = getattr(value, _MARK, None) if inspect.isfunction(value) else None
        if isinstance(marked, FunctionTool) and found.setdefault(marked.spec.name, marked) is not marked:
            raise Rejected("bad_tool", f"module {module.__name__} has two tools {marked.spec.name!r}: rename one")
    return [found[name] for name in sorted(found)]
