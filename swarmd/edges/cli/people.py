"""Commands by which people take part: inbox, tell, pause, resume, signal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from swarmd.edges.cli import flags

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from swarmd.edges.cli.session import Session
    from swarmd.edges.people import Inbox, InboxItem, People

PROMPT_CHARS = 60
LOOK_S = 0.3
_ID = "of the request, or of a task that asks just one thing"


def add(commands: flags.Commands) -> None:
    """Their parsers."""
    inbox = commands.group("inbox", "list what agents ask people, and answer it", "swarmd inbox", _list)
    inbox.parser.add_argument("--task", default="", help="only what this task asks")
    inbox.parser.add_argument("--limit", type=int, default=100, metavar="N", help="list so many (default: 100)")
    inbox.parser.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS", help="if nothing is asked, wait so long until something is"
    )
    inbox.parser.add_argument("--to", default="", help="only what is addressed to this person or group")
    show = inbox.add("show", _show, "show one request", "swarmd inbox show 9f3c21ab04")
    show.add_argument("id", metavar="ID", help=_ID)
    _add_answer(inbox)
    inbox.add("url", _url, "print the address that signs in to the page of `up`", "swarmd inbox url --data ./data")
    tell = commands.add("tell", _tell, "give a running agent an instruction", "swarmd tell 0198c2-… briefer")
    tell.add_argument("task", metavar="TASK")
    tell.add_argument("text", metavar="TEXT")
    _add_by(tell)
    for name, run, summary in (
        ("pause", _pause, "let a task rest after its current step"),
        ("resume", _resume, "let a paused task go on"),
    ):
        parser = commands.add(name, run, summary, f"swarmd {name} 0198c2-…")
        parser.add_argument("task", metavar="TASK")
        if name == "pause":
            parser.add_argument("--reason", default="", help="kept in the log")
        _add_by(parser)
    signal = commands.add("signal", _signal, "wake what waits for an event", "swarmd signal invoice-paid 42")
    signal.add_argument("name", metavar="NAME")
    signal.add_argument("value", metavar="JSON", nargs="?", help="its value: JSON if it is JSON, else a text")
    signal.add_argument("--task", default="", help="wake this task only")
    signal.add_argument("--below", action="store_true", help="in all swarms below this one too")
    _add_by(signal)


def _add_by(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--by", default="", metavar="NAME", help="who says so (default: the user of this system)")


def _add_answer(inbox: flags.Commands) -> None:
    answer = inbox.add("answer", _answer, "answer one request", "swarmd inbox answer 9f3c21ab04 --value true")
    answer.add_argument("id", metavar="ID", help=_ID)
    how = answer.add_mutually_exclusive_group()
    how.add_argument("--value", metavar="JSON", help="the answer: JSON, or plain words where a text is asked for")
    how.add_argument("--approve", action="store_true", help="approve the tool call as `inbox show` shows it")
    how.add_argument("--reject", metavar="REASON", help="reject the tool call; the agent is told why")
    how.add_argument("--edit", metavar="JSON", help="approve the tool call with these arguments instead")
    answer.add_argument("--digest", default="", help="with --approve or --edit: only if this is the shown hash")
    _add_by(answer)


def _run(args: argparse.Namespace, act: Callable[[Session, People], Awaitable[Any]]) -> Any:
    """Connect, do one thing, disconnect: nobody holds a connection while a person thinks."""
    from swarmd.edges.cli.session import run
    from swarmd.edges.people import People

    got: list[Any] = []

    async def over(session: Session) -> int:
        got.append(await act(session, People(session.wire.bus, session.swarm)))
        return flags.OK

    run(args, over)
    return got[0]


def _by(args: argparse.Namespace) -> str:
    """Who says so: named, or the user of the operating system."""
    import getpass
    import os

    if args.by:
        return str(args.by)
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        return f"uid {os.getuid()}"


def _json_or_text(text: str) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(text.encode("utf-8", "surrogateescape"))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return text


# --- looking ---------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import as_json, note, table

    async def ask(session: Session, people: People) -> Inbox:
        return await _asked(people, args)

    found: Inbox = _run(args, ask)
    items = found.requests
    if flags.wants_json(args):
        for item in items:
            print(as_json(item))
        return flags.OK
    rows = [
        [item.id, item.kind, item.agent, item.to or "anyone", until_text(item.until_ms), item.task, _line(item.prompt)]
        for item in items
    ]
    print(table(["id", "kind", "agent", "to", "until", "task", "prompt"], rows))
    more = f", {found.total - len(items)} more not listed" if found.total > len(items) else ""
    note(f"{len(items)} open{more}; answer one with `swarmd inbox answer ID`" if items else "nobody asks anything")
    return flags.OK


async def _asked(people: People, args: argparse.Namespace) -> Inbox:
    """The inbox, as soon as there is something in it or the wait is over. Raises `Fault("timeout")`."""
    import asyncio

    from swarmd.core.errors import Fault

    try:
        async with asyncio.timeout(args.wait or None):
            while True:
                found = await people.inbox(task=args.task, to=args.to, limit=args.limit)
                if found.requests or not args.wait:
                    return found
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise Fault("timeout", f"nobody asked anything within {args.wait:g} s") from None


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= PROMPT_CHARS else f"{text[: PROMPT_CHARS - 1]}…"


def until_text(until_ms: int) -> str:
    """A deadline for people, in UTC."""
    from datetime import UTC, datetime

    if not until_ms:
        return "no limit"
    try:
        return datetime.fromtimestamp(until_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "no limit"


def item_text(item: InboxItem) -> str:
    """One request for people: everything that is needed to answer it, without control characters."""
    from swarmd.edges.cli.prompts import as_text
    from swarmd.roles.tool_calls import clean

    lines = [
        f"request  {item.id} ({item.kind})",
        f"task     {item.task} of agent {item.agent}",
        f"to       {item.to or 'anyone'}",
        f"until    {until_text(item.until_ms)}{f', then: {item.on_timeout}' if item.until_ms else ''}",
        f"asked    {item.asked_at}",
        *(f"label    {key}={value}" for key, value in sorted(item.labels.items())),
        "",
        item.prompt,
    ]
    if item.is_approval:
        lines += ["", f"tool     {item.tool}", f"hash     {item.digest}", "arguments", as_text(item.arguments)]
    return clean("\n".join(lines))


def _show(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import as_json
    from swarmd.roles.tool_calls import clean

    async def ask(session: Session, people: People) -> InboxItem:
        return await people.request(args.id)

    item: InboxItem = _run(args, ask)
    if flags.wants_json(args):
        print(as_json(item))
    else:
        print(item_text(item))
        print(clean(f"\n{_how_to_answer(item)}"))
    return flags.OK


def _how_to_answer(item: InboxItem) -> str:
    """What a person may type. The schema of a decision says no more than its flags do; `--json` has it."""
    from swarmd.edges.cli.prompts import as_text

    command = f"swarmd inbox answer {item.id}"
    if item.is_approval:
        return f"answer\n{command} --approve\n{command} --reject REASON\n{command} --edit JSON"
    return f"answer\n{as_text(item.schema)}\n{command} --value JSON"


def _url(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import as_json
    from swarmd.edges.settings import running_web
    from swarmd.edges.web.token import sign_in_url

    url = sign_in_url(*running_web(flags.settings_of(args)))
    print(as_json({"url": url}) if flags.wants_json(args) else url)
    return flags.OK


# --- answering -------------------------------------------------------------------------------------


def _answer(args: argparse.Namespace) -> int:
    from swarmd.core.errors import Conflict, Fault, Rejected
    from swarmd.edges.cli.session import as_json, note

    async def ask(session: Session, people: People) -> InboxItem:
        return await people.request(args.id)

    item: InboxItem = _run(args, ask)
    by, given = _by(args), _given(args, item)
    value = _prompted(item) if given is None else given[0]

    async def send(session: Session, people: People) -> int:
        task = await people.answer(item.id, value, by=by)
        session.tell({"task": task, "id": item.id, "by": by}, f"answered {item.id} as {by}: task {task} goes on")
        return flags.OK

    while True:
        try:
            return int(_run(args, send))
        except BaseException as error:
            found = _only(error)
            if isinstance(found, Rejected) and found.code == "invalid_answer" and given is None:
                approves = item.is_approval and value["decision"] == "approve"
                if not approves:  # else there is no field to ask for again
                    value = _corrected(item, value, found.message)
                    continue
            if given is None and isinstance(found, Conflict | Fault | Rejected):
                note(f"your answer was not used: {as_json(value)}")
            raise


def _only(error: BaseException) -> BaseException:
    """The error itself, out of the groups that carry it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _given(args: argparse.Namespace, item: InboxItem) -> tuple[Any] | None:
    """The answer that the flags hold; None without any. Raises `Rejected("bad_usage")` for flags of the other kind."""
    import msgspec

    from swarmd.core.errors import Rejected

    decides = args.approve or args.reject is not None or args.edit is not None
    if decides and not item.is_approval:
        raise Rejected("bad_usage", f"request {item.id} is a question: answer it with --value JSON")
    if args.digest and args.digest != item.digest:
        raise Rejected("digest_differs", f"the arguments to approve have the hash {item.digest}, not {args.digest}")
    if args.approve:
        return (decision(item, "approve"),)
    if args.reject is not None:
        return (decision(item, "reject", reason=args.reject),)
    if args.edit is not None:
        try:
            return (decision(item, "edit", arguments=msgspec.json.decode(args.edit)),)
        except msgspec.DecodeError as error:
            raise Rejected("bad_usage", f"--edit takes the arguments as a JSON object: {error}") from None
    if args.value is None:
        return None
    value = _json_or_text(args.value)
    if item.is_approval and not isinstance(value, dict):
        how = "answer it with --approve, --reject REASON or --edit JSON"
        raise Rejected("bad_usage", f"request {item.id} is the approval of a tool call: {how}")
    wants_text = item.schema.get("type") == "string"
    return (args.value if wants_text and not isinstance(value, str) else value,)


def decision(item: InboxItem, chosen: str, **more: Any) -> dict[str, Any]:
    """The answer to an approval; it repeats the hash of the arguments that it is about."""
    return {"decision": chosen, "digest": item.digest, **more}


def _prompted(item: InboxItem) -> Any:
    """Ask the person at the terminal. Raises `Rejected("bad_usage")` where there is none."""
    from swarmd.core.errors import Rejected
    from swarmd.edges.cli.prompts import Prompts, say

    if not sys.stdin.isatty():
        ways = "--approve, --reject REASON or --edit JSON" if item.is_approval else "--value JSON"
        raise Rejected("bad_usage", f"there is no terminal to ask at: answer with {ways}")
    say(f"{item_text(item)}\n")
    prompts = Prompts()
    if not item.is_approval:
        return prompts.ask(_form(item))
    chosen = prompts.choose("your decision?", ("approve", "reject", "edit"))
    if chosen == "approve":
        return decision(item, chosen)
    if chosen == "reject":
        return decision(item, chosen, reason=prompts.ask(_reason()))
    return decision(item, chosen, arguments=prompts.ask(_form(item)))


def _form(item: InboxItem) -> Any:
    """The form of the answer; of an approval that of the arguments, with those of the call as defaults."""
    from swarmd.edges import forms

    if not item.is_approval:
        return forms.form_of(item.schema, item.default)
    return forms.arguments_form(item.schema, item.arguments)


def _reason() -> Any:
    from swarmd.edges.forms import Field

    return Field("$.reason", "text", label="why not? The agent is told", length_min=1)


def _corrected(item: InboxItem, value: Any, message: str) -> Any:
    """The value after its wrong field was asked for again."""
    from swarmd.edges import forms
    from swarmd.edges.cli.prompts import Prompts

    place = forms.place_of(message)
    if not item.is_approval:
        return Prompts().correct(_form(item), value, place, message)
    if value.get("decision") == "edit":
        place = f"${place.removeprefix('$.arguments')}" if place.startswith("$.arguments") else "$"
        return {**value, "arguments": Prompts().correct(_form(item), value.get("arguments"), place, message)}
    return {**value, "reason": Prompts().correct(_reason(), value.get("reason"), "$.reason", message)}


# --- telling ---------------------------------------------------------------------------------------


def _checked(args: argparse.Namespace) -> str:
    from swarmd.core.ids import check_task_id

    return check_task_id(args.task)


def _tell(args: argparse.Namespace) -> int:
    async def act(session: Session, people: People) -> None:
        await people.tell(_checked(args), args.text, by=_by(args))
        session.tell({"task": args.task}, f"task {args.task} is told at its next step")

    _run(args, act)
    return flags.OK


def _pause(args: argparse.Namespace) -> int:
    async def act(session: Session, people: People) -> None:
        await people.pause(_checked(args), args.reason, by=_by(args))
        session.tell(
            {"task": args.task}, f"task {args.task} rests after its current step; `swarmd resume` lets it go on"
        )

    _run(args, act)
    return flags.OK


def _resume(args: argparse.Namespace) -> int:
    async def act(session: Session, people: People) -> None:
        await people.resume(_checked(args), by=_by(args))
        session.tell({"task": args.task}, f"task {args.task} goes on")

    _run(args, act)
    return flags.OK


def _signal(args: argparse.Namespace) -> int:
    if args.below:
        return _signal_below(args)

    async def act(session: Session, people: People) -> None:
        value = None if args.value is None else _json_or_text(args.value)
        await people.signal(args.name, value, task=_checked(args) if args.task else "", by=_by(args))
        session.tell({"name": args.name}, f"signal {args.name} is given")

    _run(args, act)
    return flags.OK


def _signal_below(args: argparse.Namespace) -> int:
    from swarmd.core.errors import Rejected
    from swarmd.edges.below import signal_below
    from swarmd.edges.cli.session import note, run

    if args.task:
        raise Rejected("bad_usage", "a task is in one swarm: give either --task or --below")

    async def act(session: Session) -> int:
        value = None if args.value is None else _json_or_text(args.value)
        told = await signal_below(session.wire.bus, session.swarm, args.name, value, by=_by(args))
        given = [swarm for swarm, why in told.items() if not why]
        session.tell(
            {"name": args.name, "swarms": told}, f"signal {args.name} is given in {', '.join(given) or 'none'}"
        )
        for swarm, why in told.items():
            if why:
                note(f"not in swarm {swarm}: {why}; give it there with --swarm {swarm} once it can be reached")
        return flags.OK if len(given) == len(told) else flags.FAULT

    return run(args, act)
