"""Agents for tests of faults: they note in a file what they really do, and wait at gates until a test opens them."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from swarmd import AgentFailed, agent

if TYPE_CHECKING:
    from swarmd.roles.context import Context


def note(ledger: str, line: str) -> None:
    """Append one line, whole, whoever else writes."""
    descriptor = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def is_open(gate: str) -> bool:
    return os.path.exists(gate)


async def pass_gate(gate: str) -> None:
    while not is_open(gate):
        await asyncio.sleep(0.02)


@agent
async def echo(ctx: Context, wanted: Any) -> Any:
    """The input, as one step."""
    return await ctx.step("echo", lambda: wanted)


@agent
async def stepper(ctx: Context, wanted: Any) -> Any:
    """So many `steps`, each noted when it is done; after step `hold` it waits at `gate`."""

    async def act(number: int) -> int:
        note(wanted["ledger"], f"{ctx.task} {number}")
        return number * number

    results = []
    for number in range(1, wanted["steps"] + 1):
        results.append(await ctx.step("act", act, number))
        if number == wanted.get("hold"):
            await pass_gate(wanted["gate"])
    return results


@agent
async def held(ctx: Context, wanted: Any) -> Any:
    """Notes that it started, waits at its gate, returns its task."""
    note(wanted["ledger"], f"{ctx.task} started {ctx.epoch}")
    try:
        await pass_gate(wanted["gate"])
    except asyncio.CancelledError:
        note(wanted["ledger"], f"{ctx.task} stopped {ctx.epoch}")
        raise
    return ctx.task


@agent
async def parent(ctx: Context, wanted: Any) -> Any:
    """Its children's outputs; `children` are [agent, input]."""
    children = [await ctx.spawn(name, given) for name, given in wanted["children"]]
    return await ctx.gather(*children)


@agent
async def unsteady(ctx: Context, wanted: Any) -> Any:
    """Fails until the gate is open."""
    note(wanted["ledger"], f"{ctx.task} tried {ctx.epoch}")
    if not is_open(wanted["gate"]):
        raise AgentFailed("closed", "the gate is closed")
    return "open"


@agent
async def large(ctx: Context, wanted: Any) -> Any:
    """A text of so many bytes; with a list, that of its length."""
    return "x" * wanted if isinstance(wanted, int) else len(wanted)


@agent
async def overloaded(ctx: Context, wanted: Any) -> Any:
    """Wants an event that no message can hold."""
    await ctx.spawn("echo", 1, labels={"weight": "x" * wanted})


@agent
async def slow_step(ctx: Context, wanted: Any) -> Any:
    """One step that is under way until the gate is open."""

    async def act() -> str:
        note(wanted["ledger"], f"{ctx.task} begun")
        await pass_gate(wanted["gate"])
        return "done"

    return await ctx.step("slow", act)


@agent
async def talkative(ctx: Context, wanted: Any) -> Any:
    """Asks a model that is not there, with the key from the environment."""
    return (await ctx.model("hello", model="openai:none")).text


@agent
async def rememberer(ctx: Context, wanted: Any) -> Any:
    """Remembers so many texts, each as one step; the ids that they got."""
    ids = []
    for number in range(wanted["count"]):
        kept = await ctx.remember(f"{ctx.task} says {number}", labels={"by": "rememberer"})
        note(wanted["ledger"], f"{ctx.task} {number}")
        ids.append(kept.id)
    return ids
