"""One run of the demo from the first file to the closing line.

Counts and proofs are read from the logs of the three swarms while they grow. Must not know how anything is drawn.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from swarmd.adapters.extractive_model import MODEL_NAME, OFFLINE_NOTICE
from swarmd.adapters.models import ModelSettings, open_model
from swarmd.adapters.system import SystemClock
from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.events import Failure
from swarmd.demo_agents.hive import DESK, LIBRARY, Survey
from swarmd.edges.client import Client
from swarmd.edges.demo.account import Account, closing, facts
from swarmd.edges.demo.crash import Strike, aftermath, strike
from swarmd.edges.demo.documents import Documents, find_documents
from swarmd.edges.demo.ledger import Ledger, follow
from swarmd.edges.demo.show import Bar, Display, Sight, open_display
from swarmd.edges.demo.stage import HIVE, Cast, Running, clear, staged
from swarmd.edges.wiring import connected

if TYPE_CHECKING:
    from swarmd.core.wire import Outcome
    from swarmd.ports import Log

SWARMS: Final = (HIVE, LIBRARY, DESK)
LOOK_S: Final = 0.1
RATE_MS: Final = 2_000
FAILED: Final = 5
CHECK_FAILED: Final = 6


class Wish(Struct, frozen=True):
    """What was asked for on the command line."""

    paths: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    out: str = "report.md"
    crash: bool = False
    workers: int = 2
    model: str = ""
    base_url: str = ""
    keep: bool = False
    data: str = ""
    as_json: bool = False


async def perform(wish: Wish) -> int:
    """Run the demo; the exit code."""
    documents, model, data = _prepare(wish)
    display = open_display(as_json=wish.as_json)
    cast = Cast(documents.roots, wish.workers, model, wish.base_url)
    clock = SystemClock()
    started_ms = clock.now_ms()
    try:
        display.say(f"{len(documents.paths)} documents, model {model}; starting broker, memory and three swarms …")
        if not wish.model and os.environ.get("OPENAI_API_KEY"):
            display.say("OPENAI_API_KEY is set: --model openai:<name> would have the texts written instead of chosen")
        async with staged(data, cast) as running:
            ready_ms = clock.now_ms() - started_ms
            display.say(f"ready after {ready_ms / 1000:.1f} s: {running.nats}")
            display.say(f"  metrics  {running.metrics}/metrics\n  logs     {running.logs}")
            account = await Job(wish, documents, model, running, display).run()
            account.ready_ms = ready_ms
    finally:
        display.close()
    kept = wish.keep or bool(wish.data) or not account.ok
    if not kept:
        clear(data)
        account.data = account.logs = ""
    if wish.as_json:
        print(msgspec.json.encode(account).decode(), flush=True)
    else:
        print(closing(account, kept, data), flush=True)
    if account.ok:
        return 0
    return FAILED if account.error else CHECK_FAILED


def _prepare(wish: Wish) -> tuple[Documents, str, Path]:
    """Documents, model and data directory; what is wrong with the wish is found before anything is started."""
    if wish.workers < 1:
        raise Rejected("bad_usage", f"--workers must be at least 1, not {wish.workers}")
    if wish.crash and wish.workers < 2:
        raise Rejected("bad_usage", "--crash needs at least 2 workers, so that one can take over at once")
    if wish.base_url and not wish.model:
        raise Rejected("bad_usage", "--base-url needs a model too: --model openai:<name at that endpoint>")
    out = Path(wish.out)
    if out.is_dir() or not os.access(out.resolve().parent, os.W_OK):
        raise Rejected("bad_out", f"cannot write {out}: name a file in a folder that exists with --out")
    model = wish.model or MODEL_NAME
    open_model(ModelSettings(model, wish.base_url))  # a missing key or package is told now, not by failed tasks
    documents = find_documents(wish.paths)
    return documents, model, Path(wish.data or tempfile.mkdtemp(prefix="swarmd-demo-")).resolve()


class Job:
    """The macro-task on a running hive, watched through the logs."""

    def __init__(self, wish: Wish, documents: Documents, model: str, running: Running, display: Display) -> None:
        self._wish, self._documents, self._model = wish, documents, model
        self._running, self._display = running, display
        self._ledgers = {swarm: Ledger(swarm) for swarm in SWARMS}
        self._logs: dict[str, Log] = {}
        self._struck: Strike | None = None
        self._clock = SystemClock()
        self._started_ms = self._clock.now_ms()
        self._finished: list[tuple[int, int]] = []

    async def run(self) -> Account:
        """Submit, watch, wait for the verdict, settle the account."""
        async with AsyncExitStack() as held:
            wire = await held.enter_async_context(connected(self._running.settings("observer"), "demo"))
            client = await held.enter_async_context(Client.connect(self._running.settings("admin"), swarm=HIVE))
            async with asyncio.TaskGroup() as group:
                side = []
                for swarm, ledger in self._ledgers.items():
                    self._logs[swarm] = log = wire.log(subjects.log_stream(swarm))
                    side.append(group.create_task(follow(ledger, log)))
                side.append(group.create_task(self._watch()))
                if self._wish.crash:
                    side.append(group.create_task(self._strike()))
                self._started_ms = self._clock.now_ms()
                outcome = await client.outcome(await client.submit("survey", self._survey()))
                took_ms = self._clock.now_ms() - self._started_ms
                for swarm, ledger in self._ledgers.items():
                    await ledger.reach(await self._logs[swarm].last_seq())
                self._display.show(self._sight("done"))
                for task in side:
                    task.cancel()
                output = await client.output_of(outcome) if outcome.state == "completed" else b""
        return self._account(outcome, output, took_ms)

    def _survey(self) -> Survey:
        names = self._documents
        made = (
            f"Made by `swarmd demo` from {len(names.paths)} files. One swarm read, summarised and remembered each of "
            "them; another answered the questions and wrote about the themes, from passages it recalled. Numbers in "
            "brackets point to the sources. Model: {model}."
        )
        if self._model == MODEL_NAME:
            made += f"\n\n> {OFFLINE_NOTICE}"
        return Survey(names.paths, list(self._wish.questions), names.skipped, made)

    # --- watching ---

    async def _watch(self) -> None:
        while True:
            self._display.show(self._sight(self._stage()))
            await asyncio.sleep(LOOK_S)

    async def _strike(self) -> None:
        """Kill one worker early on, when there is something to lose and much left to do."""
        library = self._ledgers[LIBRARY]
        after = max(1, len(self._documents.paths) // 2)
        self._struck = struck = await strike(self._running, library, self._logs[LIBRARY], after)
        lost = sum(len(library.under_way(member)) for member in struck.members)
        self._display.say(f"killed {struck.process} (pid {struck.pid}) with {lost} documents under way")

    def _stage(self) -> str:
        if self._ledgers[LIBRARY].totals.completed < len(self._documents.paths):
            return "reading and remembering"
        return "answering and reporting"

    def _sight(self, stage: str) -> Sight:
        now = self._clock.now_ms()
        totals = {swarm: ledger.totals for swarm, ledger in self._ledgers.items()}
        bars = {
            swarm: Bar(
                done=total.completed + total.failed,
                total=max(total.submitted, len(self._documents.paths) if swarm == LIBRARY else 0),
                running=total.running,
                members=total.members,
                model_calls=total.model_calls,
            )
            for swarm, total in totals.items()
        }
        note = f"{self._struck.process} killed" if self._struck else ""
        done = sum(bar.done for bar in bars.values())
        return Sight(stage, now - self._started_ms, bars, self._rate(now, done), note)

    def _rate(self, now: int, done: int) -> float:
        """Tasks finished a second over the last moments."""
        self._finished = [(at, count) for at, count in self._finished if now - at <= RATE_MS] + [(now, done)]
        first_ms, first = self._finished[0]
        return (done - first) * 1000 / (now - first_ms) if now > first_ms else 0.0

    # --- the account ---

    def _account(self, outcome: Outcome, output: bytes, took_ms: int) -> Account:
        running, ledgers = self._running, self._ledgers
        totals = {swarm: ledger.totals for swarm, ledger in ledgers.items()}
        finished = sum(total.completed + total.failed for total in totals.values())
        account = Account(
            ok=False,
            report="",
            model=self._model,
            took_ms=took_ms,
            tasks={swarm: total.submitted for swarm, total in totals.items()},
            steps=sum(total.steps for total in totals.values()),
            model_calls=sum(total.model_calls for total in totals.values()),
            tasks_per_s=round(finished * 1000 / max(took_ms, 1), 1),
            steps_repeated=sum(len(ledger.repeated) for ledger in ledgers.values()),
            crash=aftermath(self._struck, ledgers[LIBRARY]) if self._struck else None,
            nats=running.nats,
            metrics=running.metrics,
            logs=running.logs,
            data=running.data,
        )
        if outcome.state != "completed":
            error = outcome.error if isinstance(outcome.error, Failure) else Failure(outcome.state, outcome.state)
            account.error = f"the survey is {outcome.state}: {error.code}: {error.message}"
            return account
        made: dict[str, Any] = msgspec.json.decode(output)
        account.documents, account.passages = made["documents"], made["passages"]
        account.questions, account.skipped = made["questions"], made["skipped"]
        account.model = ", ".join(made["models"])
        account.report = str(Path(self._wish.out).resolve())
        Path(self._wish.out).write_text(made["markdown"] + facts(account), encoding="utf-8")
        account.ok = not account.steps_repeated and _as_wished(self._wish, account)
        return account


def _as_wished(wish: Wish, account: Account) -> bool:
    """A wished crash must have cost a worker its attempts, and all of them must have been finished by others."""
    crash = account.crash
    if not wish.crash:
        return True
    return crash is not None and 0 < crash.tasks_resumed == crash.tasks_finished and not crash.steps_repeated
