"""Commands about tasks: submit, result, status, tasks, cancel, redrive."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from swarmd.edges.cli import flags
from swarmd.edges.cli.budgets import HELP, account_text, budget_of, spending_text

if TYPE_CHECKING:
    import argparse

    from swarmd.core.wire import Load, NextSlot, Outcome, SwarmStatus
    from swarmd.edges.cli.session import Session
    from swarmd.edges.client import Client

WAITING_NOTE_MS = 3_000
CATALOG_MS = 2_000
SCHEDULES_SHOWN = 5


def add(commands: flags.Commands) -> None:
    """Their parsers."""
    submit = commands.add("submit", _submit, "submit one task", "swarmd submit summarise --file notes.txt --wait")
    submit.add_argument("agent", metavar="AGENT", help="the agent that shall run it")
    submit.add_argument("input", metavar="INPUT", nargs="?", help="its input: JSON if it is JSON, else a text")
    submit.add_argument("--file", metavar="FILE", help="take the input from a file, or from stdin with -")
    submit.add_argument("--wait", action="store_true", help="wait for the outcome and print it")
    submit.add_argument("--id", default="", help="the task's id; the same id and input again is the same task")
    submit.add_argument("--priority", type=int, default=0, help="-1000 to 1000, higher first")
    submit.add_argument("--timeout", type=float, default=0, metavar="SECONDS", help="give up after so long (0: never)")
    submit.add_argument("--tenant", default="", help="for whom; tenants share slots by weight")
    submit.add_argument("--key", default="", help="its concurrency key: tasks of one key run one by one, or as set")
    submit.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="may be repeated")
    submit.add_argument("--require", action="append", default=[], metavar="KEY=VALUE", help="of its member")
    submit.add_argument("--budget", action="append", default=[], metavar="KEY=N", help=HELP)
    submit.add_argument("--attempts-max", type=int, default=3, metavar="N", help="attempts before it is dead")
    submit.add_argument("--at", default="", metavar="TIME", help="begin then, as 2026-12-01T08:00")
    submit.add_argument("--in", dest="delay", default="", metavar="TIME", help="begin after 90s, 10m, 2h, …")
    result = commands.add("result", _result, "wait for a task's outcome", "swarmd result 0198c2-… --timeout 60")
    result.add_argument("task", metavar="TASK")
    result.add_argument("--timeout", type=float, default=0, metavar="SECONDS", help="how long to wait (0: for ever)")
    status = commands.add("status", _status, "show the swarm, or one task", "swarmd status")
    status.add_argument("task", metavar="TASK", nargs="?", default="")
    listed = commands.add("tasks", _tasks, "list tasks, finished ones too", "swarmd tasks --state dead --limit 20")
    listed.add_argument("--state", default="", help="queued, assigned, suspended, backoff, completed, dead, …")
    listed.add_argument("--agent", default="")
    listed.add_argument("--tenant", default="", help="of this tenant only")
    listed.add_argument("--text", default="", help="words that the input holds")
    listed.add_argument("--limit", type=int, default=50)
    listed.add_argument("--before", type=int, default=0, metavar="NEXT", help="`next` of the answer before")
    cancel = commands.add("cancel", _cancel, "cancel a task and its children", "swarmd cancel 0198c2-… --reason typo")
    cancel.add_argument("task", metavar="TASK")
    cancel.add_argument("--reason", default="")
    redrive = commands.add("redrive", _redrive, "give a dead task new attempts", "swarmd redrive 0198c2-…")
    redrive.add_argument("task", metavar="TASK")
    judged = commands.add("feedback", _feedback, "judge a finished task", "swarmd feedback 0198c2-… 0.8 --comment good")
    judged.add_argument("task", metavar="TASK")
    judged.add_argument("score", metavar="SCORE", type=float, help="from -1 (bad) to 1 (good)")
    judged.add_argument("--comment", default="")
    judged.add_argument("--by", default="", help="who judges")


# --- submit and result -----------------------------------------------------------------------------


def _submit(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import run

    wanted, begin_ms = input_of(args), _begin_ms(args)
    return run(args, lambda session: _submit_over(session, wanted, begin_ms))


def _begin_ms(args: argparse.Namespace) -> int:
    """When the task may begin: milliseconds since 1970, 0 for at once."""
    from swarmd.adapters.system import SystemClock
    from swarmd.core.errors import Rejected
    from swarmd.edges.cli.times import duration_ms, moment_ms

    if args.at and args.delay:
        raise Rejected("bad_usage", "give --at or --in, not both")
    if args.at:
        return moment_ms("--at", args.at)
    return SystemClock().now_ms() + duration_ms("--in", args.delay) if args.delay else 0


def input_of(args: argparse.Namespace) -> Any:
    """The input: an argument, a file or stdin; JSON if it parses as JSON, else text."""
    import msgspec

    from swarmd.core.errors import Rejected

    if args.file is not None and args.input is not None:
        raise Rejected("bad_usage", "give the input as an argument or with --file, not both")
    if args.file is None and args.input == "-":
        args.file, args.input = "-", None
    if args.file is None:
        if args.input is None:
            return None
        raw = args.input.encode("utf-8", "surrogateescape")
    else:
        try:
            if args.file == "-":
                raw = sys.stdin.buffer.read()
            else:
                with open(args.file, "rb") as file:
                    raw = file.read()
        except OSError as error:
            raise Rejected("bad_input", f"cannot read {args.file}: {error.strerror}") from None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # no JSON: it is a text
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Rejected("bad_input", "the input is neither JSON nor UTF-8 text") from None


async def _submit_over(session: Session, wanted: Any, begin_ms: int) -> int:
    from swarmd.core.events import RetryPolicy
    from swarmd.edges.client import Client

    args = session.args
    options: dict[str, Any] = {
        "id": args.id,
        "priority": args.priority,
        "timeout_ms": round(args.timeout * 1000),
        "not_before_ms": begin_ms,
        "tenant": args.tenant,
        "concurrency_key": args.key,
        "labels": flags.labels_of(args.label),
        "requires": flags.labels_of(args.require, "--require"),
        "retry": RetryPolicy(attempts_max=args.attempts_max),
        "budget": budget_of(args.budget),
    }
    async with Client.over(session.wire.bus, session.swarm) as client:
        handle = await client.submit(args.agent, wanted, **options)
        if not args.wait:
            session.tell({"task": handle.task}, handle.task)
            return flags.OK
        return await _tell_outcome(session, client, handle.task, 0)


def _result(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import run

    async def act(session: Session) -> int:
        from swarmd.core.wire import TaskStatus
        from swarmd.edges.client import Client

        await session.ctl("status", session.query(args.task), TaskStatus)  # an unknown task is an error, not a wait
        async with Client.over(session.wire.bus, session.swarm) as client:
            return await _tell_outcome(session, client, args.task, round(args.timeout * 1000))

    return run(args, act)


async def _tell_outcome(session: Session, client: Client, task: str, timeout_ms: int) -> int:
    """Wait for a verdict and print it; say what the task waits for when that takes long."""
    import msgspec

    from swarmd.core.errors import Fault

    patience = min(timeout_ms, WAITING_NOTE_MS) if timeout_ms else WAITING_NOTE_MS
    try:
        outcome = await client.outcome(task, patience)
    except Fault:
        if timeout_ms and timeout_ms <= WAITING_NOTE_MS:
            raise
        await _note_waiting(session, task)
        outcome = await client.outcome(task, max(1, timeout_ms - patience) if timeout_ms else 0)
    if outcome.state != "completed":
        return _tell_failure(session, outcome)
    output = msgspec.Raw(await client.output_of(outcome))
    told = msgspec.structs.replace(outcome, output=output, output_blob="")
    value = msgspec.json.decode(output)
    session.tell(told, value if isinstance(value, str) else bytes(output).decode())
    return flags.OK


async def _note_waiting(session: Session, task: str) -> None:
    from swarmd.core.errors import SwarmdError
    from swarmd.core.wire import TaskStatus
    from swarmd.edges.cli.session import note

    try:
        status = await session.ctl("status", session.query(task), TaskStatus)
    except SwarmdError:
        return  # only a courtesy: the wait goes on
    why = f", waits for {status.waiting_for}" if status.waiting_for else ""
    note(f"task {task} is {status.state}{why}")


def _tell_failure(session: Session, outcome: Outcome) -> int:
    from swarmd.core.events import Failure
    from swarmd.edges.cli.session import as_json, note

    if session.json:
        print(as_json(outcome), flush=True)
    error = outcome.error if isinstance(outcome.error, Failure) else Failure(outcome.state, f"it is {outcome.state}")
    note(f"error: task {outcome.task} has no output: {error.message} ({error.code})")
    return flags.TASK_FAILED


# --- asking ----------------------------------------------------------------------------------------


def _status(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import run

    async def act(session: Session) -> int:
        if args.task:
            return await _task_status(session, args.task)
        status = await session.status()
        session.tell(status, swarm_text(status))
        return flags.OK

    return run(args, act)


async def _task_status(session: Session, task: str) -> int:
    from swarmd.core import subjects
    from swarmd.core.errors import Fault, Rejected
    from swarmd.core.wire import TaskStatus
    from swarmd.edges.cli.session import as_json

    try:
        status = await session.ctl("status", session.query(task), TaskStatus)
    except Rejected as error:
        if error.code != "unknown_task":
            raise
        try:
            found = await session.ask(subjects.find(session.swarm, "task"), {"task": task}, dict[str, Any])
        except Fault:
            raise Rejected(
                "unknown_task", f"no task {task} is live or remembered, and no observer serves older ones"
            ) from None
        session.tell(found, "\n".join(f"{key}: {as_json(value)}" for key, value in found.items()))
        return flags.OK
    lines = [f"task     {status.task}", f"state    {status.state}"]
    if not status.agent:  # it has ended: the leader keeps the verdict only
        lines += [] if session.json else await _catalogued(session, task)
        session.tell(status, "\n".join([*lines, f"sequence {status.seq}"]))
        return flags.OK
    lines += [f"agent    {status.agent}"]
    lines += [f"member   {status.member}"] if status.member else []
    lines += [f"waits    for {status.waiting_for}"] if status.waiting_for else []
    lines += [f"attempts {status.epoch}, failed {status.failures}, steps {status.steps}, children {status.children}"]
    lines += [f"spent    {spending_text(status.spent)}"]
    lines += [f"budget   {account_text(account)}" for account in status.budgets]
    lines += await _why_dead(session, task) if status.state == "dead" and not session.json else []
    session.tell(status, "\n".join([*lines, f"sequence {status.seq}"]))
    return flags.OK


async def _why_dead(session: Session, task: str) -> list[str]:
    """The last failure of a dead letter, which is in the log only, and what can be done."""
    from swarmd.core.errors import Fault
    from swarmd.core.events import Failure
    from swarmd.edges.client import Client

    lines = [f"again    swarmd redrive {task}"]
    try:
        async with Client.over(session.wire.bus, session.swarm) as client:
            error = (await client.outcome(task, CATALOG_MS)).error
    except Fault:  # only a courtesy: the state is known
        return lines
    return [f"error    {error.message} ({error.code})", *lines] if isinstance(error, Failure) else lines


async def _catalogued(session: Session, task: str) -> list[str]:
    """What an observer knows of a task that has ended; nothing without an observer."""
    from swarmd.core import subjects
    from swarmd.core.errors import Fault, Rejected
    from swarmd.roles.observer import FoundOne

    try:
        answer = await session.ask(subjects.find(session.swarm, "task"), {"task": task}, FoundOne, CATALOG_MS)
    except (Fault, Rejected):  # none serves, or it is not that far yet
        return []
    found = answer.task
    if found is None:
        return []
    lines = [f"agent    {found.agent}", f"attempts {found.attempts}", f"spent    {found.tokens} tokens"]
    return [*lines, f"began    {found.submitted_at}", f"ended    {found.ended_at}"]


def swarm_text(status: SwarmStatus) -> str:
    """A swarm in a few lines."""
    from swarmd.edges.cli.times import moment_text

    tasks = ", ".join(f"{count} {state}" for state, count in sorted(status.tasks.items())) or "none live"
    counted = {name: count for name, count in status.counters.items() if isinstance(count, int) and count}
    lines = [
        f"swarm    {status.swarm} at sequence {status.seq}",
        f"leader   {status.leader or 'none'} in term {status.term}",
        f"members  {status.crew.members}, {status.crew.used} attempts running on {status.crew.slots} slots",
        f"tasks    {tasks}",
        f"so far   {', '.join(f'{count} {name}' for name, count in counted.items()) or 'nothing'}",
    ]
    lines += [f"child    {child_text(m.member, m.load, m.capacity)}" for m in status.members if m.load is not None]
    lines += [f"waiting  {count} for agent {agent}" for agent, count in sorted(status.waiting.items())]
    lines += [f"next     {moment_text(due.next_ms)} {due.id} ({due.agent})" for due in _soonest(status)]
    lines += [f"refusing {status.refusing}"] if status.refusing else []
    lines += [f"budget   {account_text(account)}" for account in status.budgets]
    return "\n".join(lines)


def child_text(member: str, load: Load, capacity: int) -> str:
    """What a child swarm has to do, as far as its delegate knows: one of no `capacity` may not have answered lately."""
    waits = f"{load.queued} of its tasks wait, {load.waiting} of ours" if load.queued else "nothing waits"
    name = member.partition("/")[2]
    seen = f"{load.free} slots free, {waits}, {load.members} members, answers in {load.latency_ms} ms"
    return f"{name}: {seen}" if capacity else f"{name}: no new work (silent, full or leaving); last seen: {seen}"


def _soonest(status: SwarmStatus) -> list[NextSlot]:
    """The schedules that fire next, the first few of them."""
    return sorted((due for due in status.schedules if due.next_ms), key=lambda due: due.next_ms)[:SCHEDULES_SHOWN]


def _tasks(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import run

    return run(args, _tasks_over)


async def _tasks_over(session: Session) -> int:
    from swarmd.core import subjects
    from swarmd.core.errors import Fault
    from swarmd.edges.cli.session import as_json, note, table

    args = session.args
    asked = {name: getattr(args, name) for name in ("state", "agent", "tenant", "text", "limit", "before")}
    asked = {name: value for name, value in asked.items() if value != ""}
    try:
        found = await session.ask(subjects.find(session.swarm, "tasks"), asked, dict[str, Any])
    except Fault as fault:
        if fault.code == "no_responders":
            why = f"no observer serves swarm {session.swarm}: start one with `swarmd run observer`"
            raise Fault("no_observer", why) from None
        raise
    tasks = found.get("tasks", [])
    if session.json:
        for task in tasks:
            print(as_json(task))
        return flags.OK
    columns = ["id", "state", "agent", "tenant", "submitted_at", "ended_at"]
    print(table(columns, [[str(task.get(name, "")) for name in columns] for task in tasks]))
    note(f"{len(tasks)} tasks, as of sequence {found.get('seq', '?')}")
    return flags.OK


# --- changing --------------------------------------------------------------------------------------


def _cancel(args: argparse.Namespace) -> int:
    return _command(args, "cancel", "is asked to stop")


def _redrive(args: argparse.Namespace) -> int:
    return _command(args, "redrive", "gets new attempts")


def _feedback(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import run

    async def act(session: Session) -> int:
        from swarmd.core.wire import Feedback, Receipt

        feedback = Feedback(session.query(args.task).task, args.score, args.comment, args.by)
        receipt = await session.ctl("feedback", feedback, Receipt)
        session.tell({"task": receipt.task}, f"task {receipt.task} is judged")
        return flags.OK

    return run(args, act)


def _command(args: argparse.Namespace, verb: str, done: str) -> int:
    from swarmd.edges.cli.session import run

    async def act(session: Session) -> int:
        from swarmd.core.wire import Receipt

        query = session.query(args.task, reason=getattr(args, "reason", ""))
        receipt = await session.ctl(verb, query, Receipt)
        session.tell({"task": receipt.task}, f"task {receipt.task} {done}")
        return flags.OK

    return run(args, act)
