"""An LLM agent as a pure machine over its conversation: what comes next follows from the turns alone.

The shell performs the move, records its result as a step and adds the turns; after a crash the recorded
steps give the same turns and so the same next move. Nothing here calls a model or a tool.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct, field

from swarmd.core.events import Failure
from swarmd.core.turns import ModelReply, ModelRequest, ToolCall, ToolSpec, Turn

#: The same tool called with the same arguments so often in a row is a loop, not progress.
REPEATS_MAX: Final = 3
#: Circles of up to so many rounds of calls are noticed, once they were gone round as often.
CIRCLE_MAX: Final = 4


class AgentSpec(Struct, frozen=True, omit_defaults=True):
    """A declared LLM agent: what `swarm.toml` says about it.

    `model` may be several, asked in turn when one fails. `output` is the JSON Schema of its answer. `verify` names an
    agent that judges each answer: what it objects to is told to the model, at most `verify_max` times. Late attempts of
    an `idempotent` one are hedged. With a `reuse_threshold` above 0 answers to inputs alike are reused.
    """

    name: str
    instructions: str
    model: str | list[str] = ""
    tools: list[str] = field(default_factory=list)
    turns_max: int = 20
    temperature: float | None = None
    version: str = "1"
    idempotent: bool = False
    stream: bool = False
    output: dict[str, Any] | None = None
    verify: str = ""
    verify_max: int = 2
    reuse_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.0
    reuse_scope: Literal["agent", "swarm", "shared"] = "agent"
    reuse_expires_s: Annotated[float, Meta(ge=0)] = 0.0


class CallModel(Struct):
    request: ModelRequest


class CallTools(Struct):
    calls: list[ToolCall]


class Answer(Struct):
    text: str


class GiveUp(Struct):
    failure: Failure


Move = CallModel | CallTools | Answer | GiveUp


def begin(spec: AgentSpec, wanted: Any) -> list[Turn]:
    """The first turns: the agent's instructions and the task's input as text."""
    text = wanted if isinstance(wanted, str) else msgspec.json.encode(wanted).decode()
    return [Turn("system", spec.instructions), Turn("user", text)]


def next_move(spec: AgentSpec, turns: list[Turn], tools: list[ToolSpec]) -> Move:
    """What the agent does now."""
    last = turns[-1]
    if last.role != "assistant":
        if sum(1 for turn in turns if turn.role == "assistant") >= spec.turns_max:
            return GiveUp(Failure("turns_max", f"no answer after {spec.turns_max} model calls"))
        return CallModel(ModelRequest(turns=list(turns), tools=tools, temperature=spec.temperature))
    if not last.tool_calls:
        return Answer(last.content)
    if _repeats(turns) >= REPEATS_MAX:
        names = ", ".join(call.name for call in last.tool_calls)
        return GiveUp(Failure("loop", f"the same calls ({names}) came {REPEATS_MAX} times in a row"))
    if _goes_round(turns):
        names = ", ".join(call.name for call in last.tool_calls)
        return GiveUp(Failure("loop", f"the calls ({names}) go round in a circle that brings nothing new"))
    return CallTools(last.tool_calls)


def after_reply(turns: list[Turn], reply: ModelReply) -> list[Turn]:
    """The conversation with the model's answer."""
    return [*turns, Turn("assistant", reply.text, reply.tool_calls)]


def after_tools(turns: list[Turn], results: list[tuple[ToolCall, str]]) -> list[Turn]:
    """The conversation with the tools' results, in the order of the calls."""
    return [*turns, *(Turn("tool", text, tool_call_id=call.id) for call, text in results)]


def after_instructions(turns: list[Turn], texts: list[str]) -> list[Turn]:
    """The conversation with what a person said meanwhile."""
    return [*turns, *(Turn("user", text) for text in texts)]


def after_objection(turns: list[Turn], objection: str) -> list[Turn]:
    """The conversation with what a verifier has against the last answer."""
    text = f"A reviewer does not accept that answer: {objection}\nAnswer again, with this put right."
    return [*turns, Turn("user", text)]


def _goes_round(turns: list[Turn]) -> bool:
    """Whether the last calls alternate between a few forms: A B A B A B."""
    rounds = [
        tuple((call.name, msgspec.json.encode(call.arguments)) for call in turn.tool_calls)
        for turn in turns
        if turn.role == "assistant"
    ][-CIRCLE_MAX * REPEATS_MAX :]
    for length in range(2, CIRCLE_MAX + 1):
        tail = rounds[-length * REPEATS_MAX :]
        if len(tail) == length * REPEATS_MAX and tail == tail[:length] * REPEATS_MAX:
            return True
    return False


def _repeats(turns: list[Turn]) -> int:
    """How often the last turn's calls came in a row."""
    wanted = [(call.name, call.arguments) for call in turns[-1].tool_calls]
    repeats = 0
    for turn in reversed(turns):
        if turn.role == "assistant":
            if [(call.name, call.arguments) for call in turn.tool_calls] != wanted:
                break
            repeats += 1
    return repeats
