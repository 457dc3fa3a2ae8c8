"""Carry out one tool call under its limits and say what came of it.

Job: check the arguments, wait for a seat, enforce the tool's timeout and output cap, repeat what may be repeated, clean
the text, record a failure as text.
Invariants: whatever a tool does becomes a `ToolOutcome`, which the model may read and react to: a failure it declares
(`Rejected`, `Fault`), a timeout, or anything else that it raises (`tool_failed`). Only a cancellation of the caller,
and a signal to the process, pass through. Output is valid UTF-8 without control characters and never longer than the
tool's cap. A call of an `at_most_once` tool is made once.
Must not know: which tools there are, agents, journals.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from swarmd.core.errors import Fault, Rejected
from swarmd.core.tool_text import capped, clean, fit, untrusted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from swarmd.ports import Clock, Entropy, Tool

__all__ = ["ToolCalls", "ToolOutcome", "argument_problems", "capped", "clean", "run_tool", "untrusted"]

ERROR_BYTES_MAX: Final = 2_000
BACKOFF_MS_MAX: Final = 30_000


class ToolOutcome(Struct, omit_defaults=True):
    """What a model is told: `text`, or `error` as "code: message" with a `hint` what to do about it.

    `cut_bytes` were taken out of the middle of the text; `retries` were needed.
    """

    text: str
    error: str = ""
    hint: str = ""
    cut_bytes: int = 0
    retries: int = 0

    def told(self) -> str:
        """The outcome in one text, as a model acts on it best."""
        if not self.error:
            return self.text
        return f"error: {self.error}" + (f"\nhint: {self.hint}" if self.hint else "")


class ToolCalls:
    """Carries calls out, for one process: the seats of each tool are shared by all of its agents."""

    def __init__(self, clock: Clock | None = None, entropy: Entropy | None = None) -> None:
        """Without a clock pauses are the event loop's; without entropy they have no jitter."""
        self._clock, self._entropy = clock, entropy
        self._seats: dict[str, asyncio.Semaphore] = {}

    async def __call__(self, tool: Tool, arguments: dict[str, Any], key: str = "") -> ToolOutcome:
        """Call a tool under its limits; each try has `tool.timeout_ms`, and so has the wait for a seat."""
        name = tool.spec.name
        try:
            problems = argument_problems(tool.spec.parameters, arguments)
        except (TypeError, ValueError, AttributeError, RecursionError) as error:  # a schema that is none
            return _failed("bad_schema", f"the parameters of {name} are no JSON Schema: {error}", "use another tool")
        if problems:
            return _failed("bad_arguments", "; ".join(problems), f"correct these arguments and call {name} again")
        retries = 0 if tool.side_effects == "at_most_once" else tool.policy.retries
        for tried in range(retries + 1):
            try:
                async with self._seat(tool):
                    outcome = await _call_once(tool, arguments, key)
            except Fault as fault:
                if tried == retries:
                    after = f" (tried {tried + 1} times)" if tried else ""
                    hint = "this may work later; do something else meanwhile, or say that it failed"
                    return _failed(fault.code, fault.message + after, hint, tried)
                await self._pause(fault.retry_after_ms or tool.policy.backoff_ms * 2**tried)
            else:
                outcome.retries = tried
                return outcome
        raise AssertionError("the last try returns")

    @asynccontextmanager
    async def _seat(self, tool: Tool) -> AsyncIterator[None]:
        """One of the tool's seats. Raises `Fault("tool_busy")` when none gets free in the time of a call."""
        seats = self._seats.setdefault(tool.spec.name, asyncio.Semaphore(max(1, tool.policy.concurrency)))
        try:
            async with asyncio.timeout(tool.timeout_ms / 1000):
                await seats.acquire()
        except TimeoutError:
            busy = f"all {tool.policy.concurrency} seats of {tool.spec.name} are taken: it was not called"
            raise Fault("tool_busy", busy) from None
        try:
            yield
        finally:
            seats.release()

    async def _pause(self, delay_ms: int) -> None:
        delay_ms = min(delay_ms, BACKOFF_MS_MAX)
        if self._entropy is not None:
            delay_ms = delay_ms // 2 + self._entropy.bits(31) % (delay_ms // 2 + 1)
        if self._clock is None:
            await asyncio.sleep(delay_ms / 1000)
        else:
            await self._clock.sleep(delay_ms)


async def run_tool(tool: Tool, arguments: dict[str, Any], key: str = "") -> ToolOutcome:
    """One call by itself, with seats of its own. A process that makes many shares one `ToolCalls`."""
    return await ToolCalls()(tool, arguments, key)


async def _call_once(tool: Tool, arguments: dict[str, Any], key: str) -> ToolOutcome:
    """One try. Raises `Fault` only: another try may help there."""
    name = tool.spec.name
    limit = asyncio.timeout(tool.timeout_ms / 1000)
    here = asyncio.current_task()
    cancelled = here.cancelling() if here is not None else 0
    try:
        async with limit:
            said = await tool.call(arguments, key)
        if isinstance(said, str):
            text, cut_bytes = fit(said, tool.output_bytes_max)
        else:
            text, more = fit(said.text, tool.output_bytes_max)
            cut_bytes = said.cut_bytes + more
        return ToolOutcome(text, cut_bytes=cut_bytes)
    except Rejected as error:
        return _failed(error.code, error.message, "the same call will fail again: change it as the message says")
    except (Fault, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a tool is a stranger's code: whatever it raises is told, and ends nobody else
        if limit.expired() and isinstance(error, TimeoutError):
            unsure = "" if tool.side_effects == "none" else ". It may have had its effect nonetheless"
            message = f"{name} did not finish within {tool.timeout_ms} ms{unsure}"
            return _failed("tool_timeout", message, "ask for less at once, or go on without it")
        if isinstance(error, asyncio.CancelledError) and here is not None and here.cancelling() > cancelled:
            raise
        return _failed(
            "tool_failed", _in_words(name, error), "check the arguments; if they are right, go on without it"
        )


def _in_words(name: str, error: BaseException) -> str:
    """An undeclared failure. Its text may be anything, and making it may fail too."""
    try:
        said = str(error)
    except Exception:  # an error that cannot even be shown
        said = ""
    return f"{name} raised {type(error).__name__}" + (f": {said[:ERROR_BYTES_MAX]}" if said else "")


def _failed(code: str, message: str, hint: str = "", retries: int = 0) -> ToolOutcome:
    return ToolOutcome("", error=fit(f"{code}: {message}", ERROR_BYTES_MAX)[0], hint=hint, retries=retries)


def argument_problems(schema: Mapping[str, Any], arguments: Any) -> list[str]:
    """What is wrong with the arguments, in words for the model; empty if nothing is.

    Checked, at every depth: `type`, `enum`, `const`, `properties`, `required`, `additionalProperties: false`,
    `items`, and the bounds of numbers, texts and lists. Other keywords of JSON Schema are left to the tool.
    """
    return list(_problems(schema, arguments, ""))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: _is_number(value) and value == value // 1,
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}
_BOUNDS: tuple[tuple[str, str, Callable[[Any, Any], bool]], ...] = (
    ("minimum", "number", lambda value, bound: value >= bound),
    ("maximum", "number", lambda value, bound: value <= bound),
    ("minLength", "string", lambda value, bound: len(value) >= bound),
    ("maxLength", "string", lambda value, bound: len(value) <= bound),
    ("minItems", "array", lambda value, bound: len(value) >= bound),
    ("maxItems", "array", lambda value, bound: len(value) <= bound),
)


def _problems(schema: Mapping[str, Any], value: Any, path: str) -> Iterator[str]:
    where = path or "the arguments"
    wanted = schema.get("type")
    kinds = [wanted] if isinstance(wanted, str) else list(wanted or [])
    if kinds and not any(_TYPES[kind](value) for kind in kinds if kind in _TYPES):
        yield f"{where} must be of type {' or '.join(kinds)}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} must be one of {schema['enum']!r}"
    if "const" in schema and value != schema["const"]:
        yield f"{where} must be {schema['const']!r}"
    for keyword, kind, holds in _BOUNDS:
        if keyword in schema and _TYPES[kind](value) and not holds(value, schema[keyword]):
            yield f"{where} must keep to {keyword} {schema[keyword]}"
    if isinstance(value, dict):
        yield from _object_problems(schema, value, path)
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            yield from _problems(schema["items"], item, f"{where}[{index}]")


def _object_problems(schema: Mapping[str, Any], value: dict[str, Any], path: str) -> Iterator[str]:
    known = schema.get("properties", {})
    for key in schema.get("required", []):
        if key not in value:
            yield f"{f'{path}.' if path else ''}{key} is missing"
    for key, item in value.items():
        inner = f"{path}.{key}" if path else key
        if isinstance(known.get(key), dict):
            yield from _problems(known[key], item, inner)
        elif schema.get("additionalProperties") is False and key not in known:
            yield f"{inner} is unknown; known: {', '.join(known) or 'none'}"
