"""Agents for tests of placement: slow or sick in some processes, and one that takes its process with it."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

from swarmd import AgentFailed, agent
from tests.system.fault_agents import is_open, note, pass_gate

if TYPE_CHECKING:
    from swarmd.roles.context import Context


@agent(idempotent=True)
async def race(ctx: Context, wanted: Any) -> Any:
    """Waits at `gate` in a process that is SLOW, if one is given; says where it was done."""
    if os.environ.get("SLOW") and wanted.get("gate"):
        note(wanted["ledger"], f"{ctx.task} started {ctx.epoch}")
        try:
            await pass_gate(wanted["gate"])
        except asyncio.CancelledError:
            note(wanted["ledger"], f"{ctx.task} stopped {ctx.epoch}")
            raise
        return "slow"
    return "fast"


@agent
async def sickly(ctx: Context, wanted: Any) -> Any:
    """Fails in a process that is SICK, until the gate is open."""
    if os.environ.get("SICK") and not is_open(wanted["gate"]):
        raise AgentFailed("sick", "not here")
    return "well"


@agent
async def poison(ctx: Context, wanted: Any) -> Any:
    """Kills the process that runs it, until the gate is open."""
    note(wanted["ledger"], f"{ctx.task} began {ctx.epoch}")
    if not is_open(wanted["gate"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return "cured"
