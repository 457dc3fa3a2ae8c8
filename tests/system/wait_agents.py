"""Agents for tests of waiting: they ask, sleep, listen, write to each other, and note what they really do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from swarmd import agent
from swarmd.core.wire import Outcome
from tests.system.fault_agents import note, pass_gate

if TYPE_CHECKING:
    from swarmd.roles.context import Context

AGE = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]}


@agent
async def asker(ctx: Context, wanted: Any) -> Any:
    """Asks for an age, having noted once that it is about to."""
    await ctx.step("note", note, wanted["ledger"], f"{ctx.task} asks")
    answer = await ctx.ask("How old?", schema=AGE, **wanted.get("how", {}))
    return {"value": answer.value, "by": answer.by, "timed_out": answer.timed_out}


@agent
async def approver(ctx: Context, wanted: Any) -> Any:
    """Wants a call of `pay` approved."""
    decision = await ctx.approve("pay", wanted["arguments"], **wanted.get("how", {}))
    return {"decision": decision.decision, "arguments": decision.arguments, "reason": decision.reason}


@agent
async def sleeper(ctx: Context, wanted: Any) -> Any:
    """Notes its start and its end around a sleep."""
    await ctx.step("before", note, wanted["ledger"], f"{ctx.task} before")
    await ctx.sleep(wanted["s"])
    await ctx.step("after", note, wanted["ledger"], f"{ctx.task} after")
    return "slept"


@agent
async def listener(ctx: Context, wanted: Any) -> Any:
    """The value of an event."""
    return await ctx.wait_event(wanted["event"], earlier=wanted.get("earlier", False), timeout_s=wanted.get("s"))


@agent
async def both(ctx: Context, wanted: Any) -> Any:
    """Two branches: each waits for an event of its own, and notes that it came."""

    async def branch(name: str) -> Any:
        value = await ctx.wait_event(name)
        await ctx.step(f"note {name}", note, wanted["ledger"], name)
        return value

    return await asyncio.gather(branch(wanted["first"]), branch(wanted["second"]))


@agent
async def receiver(ctx: Context, wanted: Any) -> Any:
    """The values of so many messages."""
    return [(await ctx.receive(timeout_s=wanted.get("s"))).value for _ in range(wanted["count"])]


@agent
async def writer(ctx: Context, wanted: Any) -> Any:
    """Writes to a task, or to all of an agent."""
    for value in wanted["values"]:
        if "agent" in wanted:
            await ctx.broadcast(value, agent=wanted["agent"])
        else:
            await ctx.send(wanted["to"], value)


@agent
async def obedient(ctx: Context, wanted: Any) -> Any:
    """Works in steps, each behind a gate of its own, and returns what it was told before each."""
    heard = []
    for number in range(wanted["steps"]):
        heard.append(await ctx.told())
        await ctx.step("work", pass_gate, f"{wanted['gate']}-{number}")
    return heard


@agent
async def chooser(ctx: Context, wanted: Any) -> Any:
    """Takes the first child that has a verdict, and cancels the others."""
    children = [await ctx.spawn("listener", {"event": name}) for name in wanted]
    ((first, output),) = await ctx.first(*children)
    await ctx.cancel(*(child for child in children if child != first))
    rest = await ctx.gather(*(child for child in children if child != first), return_failures=True)
    return {"first": output, "others": [one.state if isinstance(one, Outcome) else one for one in rest]}
