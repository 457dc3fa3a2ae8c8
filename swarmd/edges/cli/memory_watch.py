"""The command memory watch: matches line by line, for as long as one likes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmd.edges.cli import flags
from swarmd.edges.cli.memory_asking import narrowed, reach

if TYPE_CHECKING:
    import argparse

    from swarmd.edges.cli.session import Session
    from swarmd.edges.memory_client import MemoryClient


def add(group: flags.Commands) -> None:
    """Its parser."""
    example = "swarmd memory watch 'a build failed' --name builds --threshold 0.4"
    parser = group.add("watch", _watch, "be told of new memories that mean something alike", example)
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the meaning, or - for stdin; none: go on with --name")
    parser.add_argument("--file", metavar="FILE", help="take the text from a file")
    parser.add_argument("--name", default="", help="the watcher's name: its watch stays, and is gone on with")
    parser.add_argument("--threshold", type=float, default=0.3, metavar="X", help="the least cosine (default: 0.3)")
    parser.add_argument("--expires", default="", metavar="TIME", help="end the watch after 2h, 30d, … or at a time")
    parser.add_argument(
        "--after", type=int, default=0, metavar="SEQ", help="only matches after the one of that sequence"
    )
    parser.add_argument("--count", type=int, default=0, metavar="N", help="stop after so many matches (0: never)")
    parser.add_argument("--for", dest="span", default="", metavar="TIME", help="stop after 90s, 10m, …")
    parser.add_argument("--end", action="store_true", help="end the watch --name, and drop its matches")
    narrowed(parser)
    reach(parser)


def _watch(args: argparse.Namespace) -> int:
    from swarmd.core.errors import Rejected
    from swarmd.edges.cli import memory_asking as asking
    from swarmd.edges.cli.times import duration_ms

    asking.within("--threshold", args.threshold, -1, 1)
    asking.within("--after", args.after, 0, asking.SEQ_MAX)
    asking.within("--count", args.count, 0, asking.SEQ_MAX)
    span_s = duration_ms("--for", args.span) / 1000 if args.span else None
    text, spaces = asking.text_of(args, needed=False), asking.spaces_of(args)
    if text is None and not args.name:
        raise Rejected("bad_usage", "give a text to watch for, or --name NAME of a watch to go on with")
    if args.end and (text is not None or not args.name):
        raise Rejected("bad_usage", "--end takes --name NAME of a watch, and no text")
    fields = {
        "threshold": args.threshold,
        "filter": asking.filter_of(args),
        "labels": asking.labels_of(args.label),
        "spaces": spaces,
        "expires_at_ms": asking.expires_ms(args.expires),
    }
    name = args.name or _name_for(str(text), fields)

    async def act(session: Session, client: MemoryClient) -> int:
        if args.end:
            await client.unwatch(name)
            session.tell({"watcher": name}, f"watch {name} is over")
            return flags.OK
        if text is not None:
            await client.watch(name, text, **fields)
        try:
            return await _follow(session, client, name, span_s)
        finally:
            if not args.name:
                await client.unwatch(name)

    return asking.ask(args, act, admin=asking.needs_admin(*spaces), patience_ms=asking.LONG_PATIENCE_MS)


def _name_for(text: str, fields: dict[str, Any]) -> str:
    """The same for the same watch: one that was left behind is taken up again."""
    from hashlib import blake2b

    import msgspec

    said = msgspec.json.encode([text, {**fields, "expires_at_ms": 0}], order="deterministic")
    return f"cli-{blake2b(said, digest_size=6).hexdigest()}"


async def _follow(session: Session, client: MemoryClient, name: str, span_s: float | None) -> int:
    """Print matches as they come. Tells at its end how to go on."""
    import asyncio

    from swarmd.edges.cli.memory_shown import match_text
    from swarmd.edges.cli.session import as_json, note

    note(f"watching as {name}: new memories are told as they come, until Ctrl-C")
    last, count = session.args.after, 0
    try:
        async with asyncio.timeout(span_s):
            async for match in client.matches(name, after=last):
                print(as_json(match) if session.json else match_text(match.seq, match.memory), flush=True)
                last, count = match.seq, count + 1
                if count == session.args.count:
                    break
    except TimeoutError:
        pass  # --for is over
    finally:
        if session.args.name:
            note(f"{count} matches; go on with `swarmd memory watch --name {name} --after {last}`")
    return flags.OK
