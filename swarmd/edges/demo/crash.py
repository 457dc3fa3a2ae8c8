"""Kills a worker in mid-run, and shows from the log that nothing it had recorded was done again.

The worker is stopped first, so that the log can be read to its end: only then is it certain that it dies with recorded
steps. Must not know how attempts are resumed.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from msgspec import Struct

from swarmd.demo_agents.hive import LIBRARY

if TYPE_CHECKING:
    from swarmd.edges.demo.ledger import Ledger
    from swarmd.edges.demo.stage import Running
    from swarmd.ports import Log


class Strike(Struct, frozen=True):
    """A process that was killed, and the members it spoke for."""

    process: str
    pid: int
    members: tuple[str, ...]


class Aftermath(Struct, frozen=True):
    """What became of it, counted from the log."""

    process: str
    pid: int
    attempts_lost: int
    tasks_resumed: int
    tasks_finished: int
    steps_kept: int
    model_calls_kept: int
    steps_repeated: int


async def strike(running: Running, ledger: Ledger, log: Log, after: int) -> Strike:
    """SIGKILL a worker process whose attempts have recorded model calls, once there are `after` in all."""
    while True:
        writer = _busiest(ledger) if ledger.totals.model_calls >= after else ""
        if writer:
            struck = await _try(running, ledger, log, writer)
            if struck is not None:
                return struck
        await ledger.news()


def _busiest(ledger: Ledger) -> str:
    """The writer whose attempts have the most recorded model calls, "" if none has any."""
    calls: dict[str, int] = {}
    for member in ledger.state.members.values():
        under_way = sum(len(attempt.model_steps) for attempt in ledger.under_way(member.id))
        calls[member.writer] = calls.get(member.writer, 0) + under_way
    best = max(sorted(calls), key=calls.__getitem__, default="")
    return best if best and calls[best] else ""


async def _try(running: Running, ledger: Ledger, log: Log, writer: str) -> Strike | None:
    """Stop the process, read the log to its end, and kill it if it still has what it is to be killed for."""
    process = f"worker-{LIBRARY}-{writer.removeprefix('w')}"
    pid = running.pid(process)
    if not pid:
        return None
    os.kill(pid, signal.SIGSTOP)
    killed = False
    try:
        await ledger.reach(await log.last_seq())
        members = tuple(ledger.members_of(writer))
        if any(attempt.model_steps for member in members for attempt in ledger.under_way(member)):
            os.kill(pid, signal.SIGKILL)
            killed = True
            return Strike(process, pid, members)
        return None
    finally:
        if not killed:
            os.kill(pid, signal.SIGCONT)


def aftermath(struck: Strike, ledger: Ledger) -> Aftermath:
    """The account of a strike; read it when the run is over."""
    lost = [attempt for attempt in ledger.lost if attempt.member in struck.members]
    resumed = {attempt.task for attempt in lost if attempt.steps}
    again = set(ledger.repeated)
    kept = {(attempt.task, step) for attempt in lost for step in attempt.steps}
    calls = {(attempt.task, step) for attempt in lost for step in attempt.model_steps}
    return Aftermath(
        process=struck.process,
        pid=struck.pid,
        attempts_lost=len(lost),
        tasks_resumed=len(resumed),
        tasks_finished=sum(task not in ledger.state.tasks for task in resumed),
        steps_kept=len(kept - again),
        model_calls_kept=len(calls - again),
        steps_repeated=len(kept & again),
    )
