"""Commands about the log: log show, replay, verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmd.edges.cli import flags

if TYPE_CHECKING:
    import argparse

    from swarmd.edges.cli.session import Session

FOLLOW_S = 0.5


def add(commands: flags.Commands) -> None:
    """Their parsers."""
    log = commands.group("log", "read the log", "swarmd log show --task 0198c2-…")
    show = log.add("show", _show, "show the events in the log", "swarmd log show --from 1000 --limit 50 --json")
    show.add_argument("--task", default="", help="only the events of this task")
    show.add_argument("--from", dest="first", type=int, default=1, metavar="SEQ", help="first sequence")
    show.add_argument("--to", type=int, default=0, metavar="SEQ", help="last sequence (0: the end)")
    show.add_argument("--limit", type=int, default=0, metavar="N", help="at most so many events (0: all)")
    show.add_argument("--follow", action="store_true", help="go on with what is stored from now on")
    replay = commands.add("replay", _replay, "fold the log again", "swarmd replay --task 0198c2-… --to 5000")
    replay.add_argument("--task", default="", help="follow one task as a timeline")
    replay.add_argument("--to", type=int, default=0, metavar="SEQ", help="stop at this sequence (0: the end)")
    commands.add("verify", _verify, "check that replay equals the live state", "swarmd verify --json")


# --- log show --------------------------------------------------------------------------------------


def _show(args: argparse.Namespace) -> int:
    from swarmd.core.errors import Rejected
    from swarmd.edges.cli.session import run

    if args.first < 1 or args.to < 0 or args.limit < 0:
        raise Rejected("bad_usage", "--from starts at 1; --to and --limit are 0 or more")
    return run(args, _show_over)


async def _show_over(session: Session) -> int:
    """Print what is stored; with --follow, what is stored later too."""
    import asyncio

    from swarmd.adapters.streams import stream_state
    from swarmd.core import subjects
    from swarmd.edges.replay import show

    args = session.args
    position, shown = args.first - 1, 0
    while True:
        end = (await stream_state(session.wire.bus, subjects.log_stream(session.swarm)))["last_seq"]
        upto = min(args.to, end) if args.to else end
        if position < upto:
            async for entry in show(session.nats, session.swarm, after=position, to=upto):
                if args.task and entry.get("event", {}).get("subject") != args.task:
                    continue
                _print_entry(session, entry)
                shown += 1
                if shown == args.limit:
                    return flags.OK
            position = upto
        if not args.follow or (args.to and position >= args.to):
            return flags.OK
        await asyncio.sleep(FOLLOW_S)


def _print_entry(session: Session, entry: dict[str, Any]) -> None:
    from swarmd.edges.cli.session import as_json
    from swarmd.roles.tool_calls import clean

    if session.json:
        print(as_json(entry))
    elif "garbage" in entry:
        print(f"{entry['seq']}.{entry['index']}  skipped: {clean(entry['garbage'])}")
    else:
        print(_event_in_words(entry["seq"], entry["index"], entry["event"]))


def _event_in_words(seq: int, index: int, event: dict[str, Any]) -> str:
    """One event as one line for people."""
    from swarmd.edges.cli.session import as_json
    from swarmd.roles.tool_calls import clean

    kind = str(event.get("type", "")).removeprefix("swarmd.").rpartition(".")[0]
    data = clean(as_json(event.get("data")))
    text = data if len(data) <= 200 else data[:200] + "…"
    return f"{seq}.{index}  {event.get('time', '')}  {kind:<16}  {event.get('subject', '')}  {text}"


# --- replay and verify -----------------------------------------------------------------------------


def _replay(args: argparse.Namespace) -> int:
    import asyncio

    return asyncio.run(_replay_over(args))


async def _replay_over(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import as_json
    from swarmd.edges.replay import replay
    from swarmd.edges.settings import admin_of
    from swarmd.roles.tool_calls import clean

    nats = admin_of(flags.settings_of(args))
    async for line in replay(nats, flags.swarm_of(args), task=args.task, to=args.to):
        if flags.wants_json(args):
            print(as_json(line))
        elif "event" in line:
            print(_event_in_words(line["seq"], line["index"], line["event"]))
        else:
            print(clean(_in_words(line)))
    return flags.OK


def _verify(args: argparse.Namespace) -> int:
    import asyncio

    from swarmd.edges.cli.session import as_json
    from swarmd.edges.replay import verify
    from swarmd.edges.settings import admin_of

    found = asyncio.run(verify(admin_of(flags.settings_of(args)), flags.swarm_of(args)))
    print(as_json(found) if flags.wants_json(args) else _in_words(found))
    return flags.OK if found.get("ok") else flags.CHECK_FAILED


def _in_words(line: dict[str, Any]) -> str:
    from swarmd.edges.cli.session import as_json

    return "  ".join(f"{key}={value if isinstance(value, str) else as_json(value)}" for key, value in line.items())
