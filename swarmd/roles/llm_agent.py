"""Runs a declared LLM agent: asks the pure machine for the next move, performs it as a step, repeats.

After a crash the recorded steps drive the machine to the same place, without a call being made twice.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from swarmd.core.agent import (
    AgentSpec,
    Answer,
    CallModel,
    CallTools,
    after_instructions,
    after_objection,
    after_reply,
    after_tools,
    begin,
    next_move,
)
from swarmd.core.tool_text import untrusted
from swarmd.core.turns import ModelReply, ModelRequest, ToolCall, ToolSpec, Turn
from swarmd.core.wire import Outcome
from swarmd.reuse import declared
from swarmd.roles.attempt import AgentFailed
from swarmd.sdk import Agent
from swarmd.structured import read_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.roles.context import Context

RECALL_TOOL: Final = ToolSpec(
    "recall",
    "Find passages in the swarm's shared memory that answer a question or touch a topic.",
    {
        "type": "object",
        "properties": {"text": {"type": "string"}, "k": {"type": "integer", "minimum": 1, "maximum": 20}},
        "required": ["text"],
        "additionalProperties": False,
    },
)
REMEMBER_TOOL: Final = ToolSpec(
    "remember",
    "Keep a passage in the swarm's shared memory, for every agent to recall.",
    {
        "type": "object",
        "properties": {"text": {"type": "string"}, "source": {"type": "string"}},
        "required": ["text"],
        "additionalProperties": False,
    },
)
ASK_TOOL: Final = ToolSpec(
    "ask_person",
    "Ask a person a question and wait for the answer. It may take hours: ask only what nobody else can tell.",
    {
        "type": "object",
        "properties": {"question": {"type": "string"}, "to": {"type": "string"}},
        "required": ["question"],
        "additionalProperties": False,
    },
)
#: Tools that act through the context instead of a Tool object.
CONTEXT_TOOLS: Final = {tool.name: tool for tool in (RECALL_TOOL, REMEMBER_TOOL, ASK_TOOL)}


def llm_agent(spec: AgentSpec, tool_specs: Callable[[str], ToolSpec]) -> Agent:
    """An agent for a worker from its declaration; `tool_specs` resolves the names of ordinary tools."""
    tools = [CONTEXT_TOOLS.get(name) or tool_specs(name) for name in spec.tools]

    async def run(ctx: Context, wanted: Any) -> Any:
        turns, objections = begin(spec, wanted), 0
        while True:
            match next_move(spec, turns, tools):
                case CallModel():
                    turns = await _answered(ctx, spec, turns, tools)
                case CallTools(calls):
                    turns = after_tools(turns, await _call_all(ctx, calls, [tool.name for tool in tools]))
                case Answer(text):
                    told = await ctx.told()
                    objection = "" if told else await _objection(ctx, spec, wanted, text, objections)
                    if not told and not objection:
                        return text if spec.output is None else read_json(text)
                    objections += bool(objection)
                    turns = after_objection(turns, objection) if objection else after_instructions(turns, told)
                case give_up:
                    failure = give_up.failure
                    raise AgentFailed(failure.code, failure.message, retryable=False)

    made_of = msgspec.json.encode(spec, order="deterministic").decode()
    return Agent(spec.name, run, spec.version, None, spec.idempotent, declared(spec, made_of))


async def _answered(ctx: Context, spec: AgentSpec, turns: list[Turn], tools: list[ToolSpec]) -> list[Turn]:
    """The conversation with what the person says who watches it, and with the model's next reply."""
    turns = after_instructions(turns, await ctx.told())
    request = ModelRequest(turns, tools, spec.temperature)
    reply: ModelReply = await ctx.model(request, model=spec.model, schema=spec.output, stream=spec.stream)
    return after_reply(turns, reply)


async def _objection(ctx: Context, spec: AgentSpec, wanted: Any, text: str, before: int) -> str:
    """What the verifier has against an answer; nothing when there is none. Raises `AgentFailed("not_verified")`."""
    if not spec.verify:
        return ""
    child = await ctx.spawn(spec.verify, {"task": wanted, "answer": text})
    (verdict,) = await ctx.gather(child, return_failures=True)
    if isinstance(verdict, Outcome):
        raise AgentFailed("verifier_failed", f"verifier {spec.verify!r}, task {child.task}: {verdict.state}")
    objection = objection_in(verdict)
    if objection and before >= spec.verify_max:
        why = f"after {before + 1} answers verifier {spec.verify!r} still objects: {objection[:500]}"
        raise AgentFailed("not_verified", why, retryable=False)
    return objection


def objection_in(verdict: Any) -> str:
    """A verifier's output in words: "" for `true`, "ok", `{"ok": true}` and the like, else what it objects to."""
    if isinstance(verdict, str):
        try:
            verdict = read_json(verdict)
        except ValueError:
            return "" if verdict.strip().lower().rstrip(".!") in ("ok", "yes", "accept", "accepted") else verdict
    if isinstance(verdict, dict) and "ok" in verdict:
        return "" if verdict["ok"] is True else str(verdict.get("why") or "no reason was given")
    return "" if verdict is True else f"the verifier said {verdict!r}"


async def _call_all(ctx: Context, calls: list[ToolCall], offered: list[str]) -> list[tuple[ToolCall, str]]:
    """All calls at once, each recorded as it ends; keys follow the order of the calls, not of their ends."""
    if len(calls) == 1:
        return [(calls[0], await _call(ctx, calls[0], offered))]
    texts = await asyncio.gather(*(_call(ctx, call, offered) for call in calls))
    return list(zip(calls, texts, strict=True))


async def _call(ctx: Context, call: ToolCall, offered: list[str]) -> str:
    if call.problem:
        return (
            f"error: bad_arguments: {call.problem}\nhint: call {call.name} again with arguments that are a JSON object"
        )
    if call.name not in offered:
        return f"error: there is no tool {call.name!r}; the tools are {', '.join(offered) or 'none'}"
    arguments = call.arguments
    if call.name == RECALL_TOOL.name:
        passages = await ctx.recall(str(arguments.get("text", "")), k=_count(arguments.get("k", 5)))
        found = "\n\n".join(f"[{n}] {p.source}\n{p.text}" for n, p in enumerate(passages, 1))
        return untrusted("recall", found) if found else "nothing was found"
    if call.name == REMEMBER_TOOL.name:
        reply = await ctx.remember(str(arguments.get("text", "")), source=str(arguments.get("source", "")))
        return f"remembered as {reply.id}"
    if call.name == ASK_TOOL.name:
        answer = await ctx.ask(str(arguments.get("question", "")) or "?", to=str(arguments.get("to", "")))
        return str(answer.value)
    return await ctx.tool(call.name, arguments)


def _count(wanted: Any) -> int:
    return min(20, max(1, wanted)) if isinstance(wanted, int) else 5
