"""How strategies put something to an agent or to a model, and get an answer that they can use.

Job: a `Call` says whom to ask, with what, and which part of the answer counts; answers that must be JSON of a certain
shape go back with the error, a bounded number of times. Every wait goes through the context, so all of it is durable.
Must not know any strategy.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from swarmd.core.errors import Rejected
from swarmd.core.events import Failure
from swarmd.core.ids import check_name
from swarmd.core.tool_text import fit, untrusted
from swarmd.core.turns import ModelRequest, Turn
from swarmd.core.wire import Outcome
from swarmd.strategies.templates import as_text, fill, references, shown, take

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from swarmd.roles.attempt import Child
    from swarmd.roles.context import Context

T = TypeVar("T")
#: How often an answer that cannot be used goes back with its error.
REPAIRS_MAX: Final = 2
#: How much of a result a model is shown at once.
QUOTED_BYTES_MAX: Final = 200_000
#: How many braces of a text are tried as the beginning of an object.
OPENINGS_MAX: Final = 100


class Call(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Whom to ask: `agent`, or without one a `model` ("" is the default one) with `instructions`.

    `input` is a template for what an agent is given (see `templates`), `take` the part of its output that counts.
    """

    agent: str = ""
    model: str = ""
    instructions: str = ""
    input: Any = UNSET
    take: str = ""


AnyCall = Call | str


class Prompt(Struct, frozen=True):
    """A question in two forms: `values` for agents, `instructions` and `text` for models."""

    values: dict[str, Any]
    instructions: str
    text: str


def read(kind: type[T], wanted: Any, example: str) -> T:
    """The input of a strategy as its struct. Raises `Rejected("bad_input")` that shows an example."""
    try:
        return msgspec.convert(wanted, kind)
    except msgspec.ValidationError as error:
        raise Rejected("bad_input", f"{error}; got {shown(wanted)}; an example: {example}") from None


def call_of(given: AnyCall) -> Call:
    """A bare name is a call of that agent."""
    return Call(agent=given) if isinstance(given, str) else given


def agent_call(given: AnyCall, role: str, names: Collection[str]) -> Call:
    """A call that must name an agent, with an input made of `names`. Raises `Rejected("bad_input")`."""
    call = call_of(given)
    if not call.agent:
        raise Rejected("bad_input", f"{role} must name an agent")
    check_name("agent", call.agent)
    for name in references(call.input) if call.input is not UNSET else ():
        if name not in names:
            raise Rejected("bad_input", f"the input of {role} uses {name!r}; there is {', '.join(sorted(names))}")
    return call


def input_for(call: Call, values: Mapping[str, Any], default: Any) -> Any:
    """What the agent is given: its template with `values`, or `default` without a template."""
    return default if isinstance(call.input, UnsetType) else fill(call.input, values)


def quoted(what: str, text: str) -> str:
    """What others have said, as a model gets to see it: bounded, and marked as data that gives no orders."""
    return untrusted(what, fit(text, QUOTED_BYTES_MAX)[0])


def failure_of(result: Any) -> str:
    """Why there is no output, in words; "" for an output."""
    if not isinstance(result, Outcome):
        return ""
    error = result.error if isinstance(result.error, Failure) else Failure(result.state, "no reason was given")
    return f"{error.code}: {error.message}"


async def each(
    ctx: Context, wanted: Sequence[tuple[Call, Any]], *, labels: Mapping[str, str] | None = None
) -> list[Any]:
    """Ask several agents at once; the parts of their outputs that count, or their `Outcome`s where there is none."""
    children = [await ctx.spawn(call.agent, given, labels=labels) for call, given in wanted]
    results = await ctx.gather(*children, return_failures=True)
    return [taken(call, child, result) for (call, _), child, result in zip(wanted, children, results, strict=True)]


def taken(call: Call, child: Child, result: Any) -> Any:
    """The part of an output that counts; an `Outcome` if there is none, or no such part."""
    if isinstance(result, Outcome):
        return result
    try:
        return take(result, call.take)
    except Rejected as error:
        return Outcome(child.task, "dead", error=Failure("bad_output", f"{call.agent}: {error.message}"))


async def ask(ctx: Context, call: Call, prompt: Prompt, name: str) -> Any:
    """One answer: of an agent, its output; of a model, its text. Raises what the agent or the model raised."""
    return (await _asked(ctx, call, prompt, name, []))[0]


async def ask_for(ctx: Context, call: Call, prompt: Prompt, name: str, accept: Callable[[Any], T]) -> T:
    """One answer as JSON that `accept` takes; what it raises as `Rejected` goes back to whoever answered.

    Raises `Rejected("bad_answer")` when the answer is still not usable after `REPAIRS_MAX` repairs.
    """
    refused: list[tuple[str, str]] = []
    while True:
        answer, who = await _asked(ctx, call, prompt, name, refused)
        try:
            return accept(json_in(answer) if isinstance(answer, str) else answer)
        except Rejected as error:
            if len(refused) == REPAIRS_MAX:
                raise Rejected(
                    "bad_answer",
                    f"the {name} ({who}) gave no usable answer in {REPAIRS_MAX + 1} tries: {error.message}; "
                    f"the last answer: {shown(answer)!r}",
                ) from None
            refused.append((as_text(answer), error.message))


async def _asked(
    ctx: Context, call: Call, prompt: Prompt, name: str, refused: Sequence[tuple[str, str]]
) -> tuple[Any, str]:
    if call.agent:
        values = dict(prompt.values)
        if refused:
            values["rejected"] = {"answer": refused[-1][0], "error": refused[-1][1]}
        child = await ctx.spawn(call.agent, input_for(call, values, values))
        (output,) = await ctx.gather(child)
        return take(output, call.take), f"agent {call.agent}"
    own = f"{prompt.instructions}\n\n{call.instructions}".strip()
    turns = [Turn("system", own), Turn("user", prompt.text)]
    for answer, error in refused:
        turns.append(Turn("assistant", answer))
        turns.append(Turn("user", f"That cannot be used: {error}\nAnswer again, with the whole JSON and nothing else."))
    reply = await ctx.model(ModelRequest(turns), model=call.model, name=name)
    return reply.text, f"model {reply.model}"


def json_in(text: str) -> Any:
    """The JSON object that a text consists of or holds, such as in a fenced block: the first one that parses.

    Raises `Rejected("no_json")`.
    """
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    at = text.find("{")
    for _ in range(OPENINGS_MAX):
        if at < 0:
            break
        try:
            return decoder.raw_decode(text, at)[0]
        except (ValueError, RecursionError):
            at = text.find("{", at + 1)
    raise Rejected("no_json", f"there is no JSON object in {shown(text)!r}")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
