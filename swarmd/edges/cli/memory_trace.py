"""Commands about where memories come from and what came of them: lineage, revoke."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from swarmd.edges.cli import flags
from swarmd.edges.cli.memory_asking import reach

if TYPE_CHECKING:
    import argparse

    from swarmd.core.memory_wire import Reader, RevokeReply
    from swarmd.edges.cli.session import Session
    from swarmd.edges.memory_client import MemoryClient
    from swarmd.edges.recalling import Redriven

DEPTH_MAX: Final = 20
NAMED: Final = 20
READS_SHOWN: Final = 5


def add(group: flags.Commands) -> None:
    """Their parsers."""
    lineage = group.add(
        "lineage", _lineage, "show where a memory comes from and what came of it", "swarmd memory lineage lease-rule"
    )
    lineage.add_argument("id", metavar="ID", help="a memory; with --task a task of --swarm")
    lineage.add_argument("--task", action="store_true", help="ID is a task")
    lineage.add_argument("--depth", type=int, default=1, metavar="N", help="how many tasks to follow (default: 1)")
    reach(lineage, admin=False)
    example = "swarmd memory revoke --author desk --since 2h --reason 'a wrong source' --dry"
    revoke = group.add("revoke", _revoke, "withdraw faulty memories, and list every task that read them", example)
    revoke.add_argument("--id", default="", help="this memory; or all that meet every one of:")
    revoke.add_argument("--author", default="", help="whoever said it")
    revoke.add_argument("--task", default="", help="the task that remembered it; --swarm says of which swarm")
    revoke.add_argument("--space", default="", help="its space, in full")
    revoke.add_argument("--since", default="", metavar="TIME", help="said in the last 2h, 3d, … or since a time")
    revoke.add_argument("--reason", default="", help="written into the log")
    revoke.add_argument("--dry", action="store_true", help="withdraw nothing, only list")
    revoke.add_argument("--redrive", action="store_true", help="run every task anew that has read any of it")
    reach(revoke, admin=False)


# --- lineage ---------------------------------------------------------------------------------------


def _lineage(args: argparse.Namespace) -> int:
    from swarmd.edges.cli import memory_asking as asking

    asking.within("--depth", args.depth, 1, DEPTH_MAX)
    swarm = flags.swarm_of(args) if args.task else ""

    async def act(session: Session, client: MemoryClient) -> int:
        from swarmd.edges.cli.memory_tree import tree_text
        from swarmd.edges.cli.session import as_json, note

        reply = await client.lineage(args.id, swarm, args.depth)
        if session.json:
            print(as_json(reply))
            return flags.OK
        texts = {one.id: one.text for one in await client.get([one.id for one in reply.memories])}
        print(tree_text(args.id, swarm, reply, texts))
        if reply.cut:
            note(f"there is more: --depth {args.depth + 1} follows it")
        return flags.OK

    return asking.ask(args, act, admin=True)


# --- revoke ----------------------------------------------------------------------------------------


def _revoke(args: argparse.Namespace) -> int:
    from swarmd.edges.cli import memory_asking as asking

    conditions = _conditions(args)

    async def act(session: Session, client: MemoryClient) -> int:
        import msgspec

        reply = await client.revoke(reason=args.reason, dry=args.dry, **conditions)
        if not session.json:
            _print(reply, args.dry)
        anew = await _redrive(session, client, reply) if args.redrive else []
        if session.json:
            told: dict[str, Any] = msgspec.to_builtins(reply)
            session.tell(told | ({"redriven": anew} if args.redrive else {}), "")
        elif anew:
            _print_anew(anew)
        return flags.OK

    return asking.ask(args, act, admin=True)


def _conditions(args: argparse.Namespace) -> dict[str, Any]:
    """What to withdraw. Raises `Rejected("bad_usage")` where nothing, or two things, are said."""
    from swarmd.core.errors import Rejected
    from swarmd.core.ids import check_task_id
    from swarmd.edges.cli import memory_asking as asking

    swarm = flags.swarm_of(args) if hasattr(args, "swarm") or args.task else ""
    others = {
        "author": args.author,
        "task": args.task,
        "swarm": swarm,
        "space": asking.space_of(args.space) if args.space else "",
        "since_ms": asking.ago_ms("--since", args.since) if args.since else 0,
    }
    given = {name: value for name, value in others.items() if value}
    if args.task:
        with asking.usage("--task"):
            check_task_id(args.task)
    if args.dry and args.redrive:
        raise Rejected("bad_usage", "--dry only lists: give it or --redrive")
    if args.id and given:
        raise Rejected("bad_usage", "give --id alone, or conditions that memories must meet")
    if not args.id and not given:
        raise Rejected("bad_usage", "say what is faulty: --id, --author, --task, --swarm, --space or --since")
    return {"id": args.id} if args.id else given


async def _redrive(session: Session, client: MemoryClient, reply: RevokeReply) -> list[Redriven]:
    """Run the readers anew. Asked again, the first of the memories tells that it is the same revocation."""
    from swarmd.edges.cli.progress import progress
    from swarmd.edges.recalling import redrive_readers

    if not reply.readers or not reply.revoked:
        return []
    first = reply.revoked[0]
    (known,) = [one for one in (await client.lineage(first)).memories if one.id == first]
    with progress("running anew", "tasks", quiet=session.json) as bar:
        return await redrive_readers(session.wire.bus, reply.readers, known.gone_seq, bar.at)


def _print_anew(anew: list[Redriven]) -> None:
    from swarmd.edges.cli.session import note, table

    rows = [
        [one.swarm, one.task, one.new or "-", one.why or ("it was at work" if one.cancelled else "")] for one in anew
    ]
    print(table(["swarm", "task", "runs anew as", "note"], rows))
    note(f"{sum(1 for one in anew if one.new)} of {len(anew)} tasks run anew")


def _print(reply: RevokeReply, dry: bool) -> None:
    from swarmd.edges.cli.session import note, table

    for id in reply.revoked[:NAMED]:
        print(id)
    rest = reply.count - min(NAMED, len(reply.revoked))
    more = f", {rest} of them not listed" if rest > 0 else ""
    note(f"{reply.count} memories {'would be' if dry else 'are'} withdrawn{more}")
    if reply.readers:
        print(table(["swarm", "task", "read", "since", "of them"], [_reader_row(one) for one in reply.readers]))
        note(f"{len(reply.readers)} tasks have read any of them: what they made of it stands")
    else:
        note("no task has read any of them")


def _reader_row(reader: Reader) -> list[str]:
    named = ", ".join(reader.memories[:READS_SHOWN])
    more = ", …" if len(reader.memories) > READS_SHOWN else ""
    return [reader.swarm, reader.task, str(reader.count or len(reader.memories)), str(reader.seq), named + more]
