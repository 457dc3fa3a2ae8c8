"""Commands about single worker nodes: list, status, drain, resume. Each node answers for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.edges.cli import flags

if TYPE_CHECKING:
    import argparse

    from swarmd.core.wire import NodeStatus
    from swarmd.edges.cli.session import Session


def add(commands: flags.Commands) -> None:
    """Their parsers."""
    group = commands.group("node", "single worker nodes: list, status, drain, resume", "swarmd node list", _list)
    group.add("list", _list, "list worker nodes", "swarmd node list --json")
    example = "swarmd node {} 01a204be-11cc-7299-92b3-2872170e9070"
    for name, summary in (
        ("status", "ask a node what it runs"),
        ("drain", "let a node take no new work; what it runs goes on"),
        ("resume", "let a drained node take work again"),
    ):
        parser = group.add(name, _ask, summary, example.format(name))
        parser.add_argument("node", metavar="NODE", help="its id, as `swarmd node list` shows it")
        parser.set_defaults(verb=name)


def _list(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import run

    async def act(session: Session) -> int:
        from swarmd.edges.cli.session import as_json, note, table

        nodes = [member for member in await session.members() if member.kind == "node"]
        if session.json:
            for node in nodes:
                print(as_json(node))
            return flags.OK
        columns = ["node", "member", "running", "capacity", "state", "agents"]
        rows = []
        for node in nodes:
            state = "silent" if not node.reachable else "draining" if node.capacity == 0 else "up"
            counts = [str(node.running), str(node.capacity)]
            rows.append([node.node, node.member, *counts, state, ", ".join(node.agents)])
        print(table(columns, rows))
        note(f"{len(nodes)} nodes")
        return flags.OK

    return run(args, act)


def _ask(args: argparse.Namespace) -> int:
    from swarmd.core.ids import check_name
    from swarmd.edges.cli.session import run
    from swarmd.edges.settings import admin_of

    check_name("node", args.node)

    async def act(session: Session) -> int:
        status = await _asked(session, args.verb, args.node)
        session.tell(status, _text(status))
        return flags.OK

    return run(args, act, admin_of if args.verb != "status" else None)


async def _asked(session: Session, verb: str, node: str) -> NodeStatus:
    """The node's answer. Raises `Rejected("unknown_node")` when nobody answers for it."""
    from swarmd.core import subjects
    from swarmd.core.errors import Fault, Rejected
    from swarmd.core.wire import NodeStatus

    try:
        return await session.ask(subjects.node(session.swarm, node, verb), None, NodeStatus)
    except Fault as fault:
        if fault.code not in ("no_responders", "timeout"):
            raise
        hint = f"`swarmd node list --swarm {session.swarm}` lists those that live"
        if verb != "status":
            hint += "; only an admin may drain and resume (--user-file DATA/users/admin.json)"
        raise Rejected("unknown_node", f"no node {node} of swarm {session.swarm} answers: {hint}") from None


def _text(status: NodeStatus) -> str:
    """A node's answer for people."""
    labels = " ".join(f"{name}={value}" for name, value in status.labels.items())
    lines = [
        f"node     {status.node} ({status.member})",
        f"state    {'draining: it takes no new work' if status.draining else 'up'}",
        f"agents   {', '.join(status.agents)}",
        f"running  {status.attempts} of {status.capacity}",
        f"uptime   {status.uptime_ms / 1000:,.0f} s",
    ]
    lines += [f"labels   {labels}"] if labels else []
    lines += [f"  {one.task} epoch {one.epoch} {one.agent}, {one.ran_ms / 1000:.1f} s" for one in status.running]
    return "\n".join(lines)
