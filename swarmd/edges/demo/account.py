"""The account of a run: one object for machines, the last section of the report, the closing words for people.

Must not know how anything was counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

from swarmd.adapters.extractive_model import MODEL_NAME, OFFLINE_NOTICE
from swarmd.demo_agents.hive import LIBRARY
from swarmd.edges.demo.crash import Aftermath
from swarmd.edges.demo.stage import CONFIG_FILE

if TYPE_CHECKING:
    from pathlib import Path


class Account(Struct):
    """The final object: what was made, from what, and what it took. Times in milliseconds, rates per second."""

    ok: bool
    report: str
    model: str
    documents: int = 0
    passages: int = 0
    questions: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    took_ms: int = 0
    ready_ms: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    model_calls: int = 0
    tasks_per_s: float = 0.0
    steps_repeated: int = 0
    crash: Aftermath | None = None
    error: str = ""
    nats: str = ""
    metrics: str = ""
    logs: str = ""
    data: str = ""


def facts(account: Account) -> str:
    """The last section of the report."""
    tasks = ", ".join(f"{count} in {swarm}" for swarm, count in account.tasks.items())
    lines = [
        "\n## The run\n",
        f"- Tasks: {tasks}; {account.tasks_per_s} a second.",
        f"- Steps recorded: {account.steps}, of them {account.model_calls} model calls; done twice: "
        f"{account.steps_repeated}.",
        f"- Passages remembered: {account.passages}.",
        f"- Time: {account.took_ms / 1000:.1f} s.",
    ]
    if account.crash is not None:
        lines.append(f"- {crash_line(account.crash)}")
    return "\n".join(lines) + "\n"


def crash_line(crash: Aftermath) -> str:
    return (
        f"{crash.process} was killed with {crash.attempts_lost} attempts under way; {crash.tasks_resumed} tasks were "
        f"resumed and {crash.tasks_finished} of them finished; {crash.model_calls_kept} model calls and "
        f"{crash.steps_kept} steps in all were not repeated, {crash.steps_repeated} were."
    )


def closing(account: Account, kept: bool, data: Path) -> str:
    """What a person wants to know at the end."""
    lines = []
    if account.error:
        lines.append(account.error)
    else:
        tasks = sum(account.tasks.values())
        lines.append(
            f"{account.documents} documents, {len(account.questions)} questions, {tasks} tasks, {account.steps} steps, "
            f"{account.model_calls} model calls in {account.took_ms / 1000:.1f} s"
        )
        lines += [f"  not read: {name}: {why}" for name, why in sorted(account.skipped.items())]
    if account.crash is not None:
        lines.append(crash_line(account.crash))
    elif not account.ok and not account.error and not account.steps_repeated:
        lines.append("no worker could be killed in mid-run: the documents were read too soon, give more of them")
    if account.steps_repeated:
        lines.append(f"{account.steps_repeated} recorded steps were done again: this must not happen")
    if account.model == MODEL_NAME:
        lines.append(OFFLINE_NOTICE)
    if account.report:
        lines.append(f"report   {account.report}")
    if not kept:
        return "\n".join([*lines, "look further with --keep: swarmd log show, swarmd replay, the metrics and logs"])
    here = f"--data {data} --swarm {LIBRARY}"
    return "\n".join(
        [
            *lines,
            f"logs     {account.logs}",
            f"data     {data}",
            "look further:",
            f"  swarmd up --config {data / CONFIG_FILE} &",
            f"  swarmd log show {here}",
            f"  swarmd replay {here}",
        ]
    )
