"""Runs a declared LLM agent: asks the pure machine for the next move, performs it as a step, repeats.

After a crash the recorded steps drive the machine to the same place, without a call being made twice.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from swarmd.core.agent import AgentSpec, Answer, CallModel, CallTools, after_reply, after_tools, begin, next_move
from swarmd.core.turns import ToolCall, ToolSpec
from swarmd.roles.attempt import AgentFailed, Context
from swarmd.sdk import Agent

if TYPE_CHECKING:
    from collections.abc import Callable

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
#: Tools that act through the context instead of a Tool object.
MEMORY_TOOLS: Final = {tool.name: tool for tool in (RECALL_TOOL, REMEMBER_TOOL)}


def llm_agent(spec: AgentSpec, tool_specs: Callable[[str], ToolSpec]) -> Agent:
    """An agent for a worker from its declaration; `tool_specs` resolves the names of ordinary tools."""
    tools = [MEMORY_TOOLS.get(name) or tool_specs(name) for name in spec.tools]

    async def run(ctx: Context, wanted: Any) -> str:
        turns = begin(spec, wanted)
        while True:
            match next_move(spec, turns, tools):
                case CallModel(request):
                    turns = after_reply(turns, await ctx.model(request, model=spec.model))
                case CallTools(calls):
                    turns = after_tools(turns, await _call_all(ctx, calls, spec.tools))
                case Answer(text):
                    return text
                case give_up:
                    failure = give_up.failure
                    raise AgentFailed(failure.code, failure.message, retryable=False)

    return Agent(spec.name, run)


async def _call_all(ctx: Context, calls: list[ToolCall], offered: list[str]) -> list[tuple[ToolCall, str]]:
    """All calls at once, each recorded as it ends; keys follow the order of the calls, not of their ends."""
    texts = await asyncio.gather(*(_call(ctx, call, offered) for call in calls))
    return list(zip(calls, texts, strict=True))


async def _call(ctx: Context, call: ToolCall, offered: list[str]) -> str:
    if call.name not in offered:
        return f"error: there is no tool {call.name!r}; the tools are {', '.join(offered) or 'none'}"
    arguments = call.arguments
    if call.name == "recall":
        passages = await ctx.recall(str(arguments.get("text", "")), k=int(arguments.get("k", 5)))
        return "\n\n".join(f"[{n}] {p.source}\n{p.text}" for n, p in enumerate(passages, 1)) or "nothing was found"
    if call.name == "remember":
        reply = await ctx.remember(str(arguments.get("text", "")), source=str(arguments.get("source", "")))
        return f"remembered as {reply.id}"
    return await ctx.tool(call.name, arguments)
