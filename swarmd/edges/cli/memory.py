"""Commands about a memory: remember, recall, get, update, forget, stats; the others have modules of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmd.edges.cli import flags, memory_files, memory_jobs, memory_trace, memory_watch
from swarmd.edges.cli.memory_asking import SHARED, narrowed, reach, said_of_it

if TYPE_CHECKING:
    import argparse

    from swarmd.edges.cli.session import Session
    from swarmd.edges.memory_client import MemoryClient


def add(commands: flags.Commands) -> None:
    """Their parsers."""
    summary = "remember, recall, watch, and what operators do with a memory"
    group = commands.group("memory", summary, "swarmd memory recall 'who renews a lease?'")
    _add_remember(group)
    _add_recall(group)
    get = group.add("get", _get, "show memories by id, as the log has them", "swarmd memory get lease-rule")
    get.add_argument("ids", metavar="ID", nargs="+")
    reach(get)
    _add_update(group)
    forget = group.add("forget", _forget, "drop memories (admin)", "swarmd memory forget lease-rule --data data")
    forget.add_argument("ids", metavar="ID", nargs="+")
    forget.add_argument("--reason", default="", help="written into the log")
    reach(forget, admin=False)
    for module in (memory_watch, memory_trace, memory_jobs, memory_files):
        module.add(group)
    stats = group.add("stats", _stats, "how many memories, how far the store is, what goes on", "swarmd memory stats")
    reach(stats)


def _add_remember(group: flags.Commands) -> None:
    example = "swarmd memory remember 'A lease lasts two seconds' --label kind=rule --expires 30d"
    parser = group.add("remember", _remember, "remember a text", example)
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the text, or - for stdin")
    parser.add_argument("--file", metavar="FILE", help="take the text from a file")
    parser.add_argument("--id", default="", help="its id; the same id and text again is the same memory")
    parser.add_argument("--space", default=SHARED, help="shared, or in full, as swarm/main/agent/desk (admin)")
    said_of_it(parser)
    reach(parser)


def _add_recall(group: flags.Commands) -> None:
    example = "swarmd memory recall 'who renews a lease?' --filter 'labels.kind = \"rule\"' --k 3"
    parser = group.add("recall", _recall, "find memories by words and by meaning", example)
    parser.add_argument("text", metavar="TEXT", nargs="?", help="what to find, or - for stdin")
    parser.add_argument("--file", metavar="FILE", help="take the text from a file")
    parser.add_argument("--k", type=int, default=5, metavar="N", help="at most so many, 1 to 100 (default: 5)")
    parser.add_argument("--mode", choices=["hybrid", "dense", "lexical"], default="hybrid", help="how to search")
    parser.add_argument(
        "--diversity", type=float, default=0.0, metavar="X", help="from 0, the best, to 1, what differs"
    )
    parser.add_argument("--min-similarity", type=float, default=-1.0, metavar="X", help="the least cosine, -1 to 1")
    parser.add_argument("--at-least", type=int, default=0, metavar="SEQ", help="wait until the store is as new as that")
    parser.add_argument(
        "--as-of", type=int, default=0, metavar="SEQ", help="ask the view of that sequence (see rebuild)"
    )
    parser.add_argument("--author", default="", help="only what this author said")
    narrowed(parser)
    reach(parser)


def _add_update(group: flags.Commands) -> None:
    example = "swarmd memory update lease-rule 'A lease lasts three seconds' --data data"
    parser = group.add("update", _update, "let a memory say something else (admin)", example)
    parser.add_argument("id", metavar="ID")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="its new text, or - for stdin; without one it stays")
    parser.add_argument("--file", metavar="FILE", help="take the text from a file")
    parser.add_argument("--if-seq", type=int, default=0, metavar="SEQ", help="refuse unless this version is current")
    said_of_it(parser)
    reach(parser, admin=False)


# --- remember, update, forget ----------------------------------------------------------------------


def _remember(args: argparse.Namespace) -> int:
    from swarmd.edges.cli import memory_asking as asking

    text, space = asking.text_of(args), asking.space_of(args.space)
    fields = {"id": args.id, "author": args.author, "space": space, **_said(args)}
    _check(args, str(text))

    async def act(session: Session, client: MemoryClient) -> int:
        reply = await client.remember(str(text), **fields)
        session.tell(reply, reply.id)
        return flags.OK

    return asking.ask(args, act, admin=asking.needs_admin(space))


def _update(args: argparse.Namespace) -> int:
    from swarmd.core.errors import Rejected
    from swarmd.edges.cli import memory_asking as asking

    asking.within("--if-seq", args.if_seq, 0, asking.SEQ_MAX)
    text, fields = asking.text_of(args, needed=False), _said(args)
    if text is not None:
        fields["text"] = text
    if not fields:
        raise Rejected("bad_usage", "say what shall change: a text, --label, --source, --expires or --payload")
    _check(args, "it stays" if text is None else text)

    async def act(session: Session, client: MemoryClient) -> int:
        reply = await client.update(args.id, author=args.author, if_seq=args.if_seq, **fields)
        session.tell(reply, f"{reply.id} has a new version, at sequence {reply.seq}")
        return flags.OK

    return asking.ask(args, act, admin=True)


def _said(args: argparse.Namespace) -> dict[str, Any]:
    """What flags say of a text; what was not given is left out."""
    from swarmd.edges.cli import memory_asking as asking

    said: dict[str, Any] = {}
    if args.source is not None:
        said["source"] = args.source
    if args.label:
        said["labels"] = asking.labels_of(args.label)
    if args.expires:
        said["expires_at_ms"] = asking.expires_ms(args.expires)
    if args.payload is not None:
        said["payload"] = asking.payload_of(args.payload)
    return said


def _check(args: argparse.Namespace, text: str) -> None:
    """What the node would refuse, before it is asked."""
    from swarmd.core.memory_door import check_field, check_text
    from swarmd.edges.cli.memory_asking import usage

    with usage():
        check_text(text)
        for name in ("id", "author", "source"):
            check_field(getattr(args, name) or "", name)


def _forget(args: argparse.Namespace) -> int:
    from swarmd.edges.cli import memory_asking as asking

    async def act(session: Session, client: MemoryClient) -> int:
        for id in args.ids:
            reply = await client.forget(id, args.reason)
            session.tell(reply, f"{id} is dropped, at sequence {reply.seq}")
        return flags.OK

    return asking.ask(args, act, admin=True)


# --- recall, get, stats ----------------------------------------------------------------------------


def _recall(args: argparse.Namespace) -> int:
    from swarmd.core.memory import RECALL_MAX
    from swarmd.edges.cli import memory_asking as asking

    asking.within("--k", args.k, 1, RECALL_MAX)
    asking.within("--diversity", args.diversity, 0, 1)
    asking.within("--min-similarity", args.min_similarity, -1, 1)
    asking.within("--at-least", args.at_least, 0, asking.SEQ_MAX)
    asking.within("--as-of", args.as_of, 0, asking.SEQ_MAX)
    text, spaces = asking.text_of(args), asking.spaces_of(args)
    fields = {
        "k": args.k,
        "labels": asking.labels_of(args.label),
        "at_least_seq": args.at_least,
        "mode": args.mode,
        "filter": asking.filter_of(args, args.author),
        "spaces": spaces,
        "min_similarity": args.min_similarity,
        "diversity": args.diversity,
        "as_of": args.as_of,
    }

    async def act(session: Session, client: MemoryClient) -> int:
        from swarmd.edges.cli.memory_shown import passages_text
        from swarmd.edges.cli.session import as_json, note

        reply = await client.recall(str(text), **fields)
        if session.json:
            print(as_json(reply))
        elif reply.passages:
            print(passages_text(reply.passages))
        if not reply.passages:
            note(f"nothing was found, as of sequence {reply.seq}")
        return flags.OK

    return asking.ask(args, act, admin=asking.needs_admin(*spaces))


def _get(args: argparse.Namespace) -> int:
    from swarmd.edges.cli import memory_asking as asking

    async def act(session: Session, client: MemoryClient) -> int:
        from swarmd.core.errors import Rejected
        from swarmd.edges.cli.memory_shown import memory_text

        found = {memory.id: memory for memory in await client.get(args.ids)}
        for number, id in enumerate(args.ids):
            if id in found:
                session.tell(found[id], ("\n" if number else "") + memory_text(found[id]))
        missing = [id for id in args.ids if id not in found]
        if missing:
            seen = "" if args.admin else ", among those that a client may see: --admin sees every space"
            raise Rejected("unknown_memory", f"there is no memory {', '.join(missing)}{seen}")
        return flags.OK

    return asking.ask(args, act)


def _stats(args: argparse.Namespace) -> int:
    from swarmd.edges.cli import memory_asking as asking

    async def act(session: Session, client: MemoryClient) -> int:
        from swarmd.edges.cli.memory_shown import stats_text

        stats = await client.stats()
        session.tell(stats, stats_text(stats))
        return flags.OK

    return asking.ask(args, act)
