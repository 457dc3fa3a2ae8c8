"""The command reconcile."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from swarmd.edges.cli import flags

if TYPE_CHECKING:
    import argparse

    from swarmd.adapters.nats_bus import NatsBus
    from swarmd.adapters.nats_connect import NatsSettings
    from swarmd.edges.reconcile import Report


def add(commands: flags.Commands) -> None:
    """Its parser."""
    reconcile = commands.add(
        "reconcile",
        _reconcile,
        "compare a swarm's log with its children, members, catalog and snapshots, and a memory with its own",
        "swarmd reconcile --swarm hive --repair",
    )
    reconcile.add_argument("--repair", action="store_true", help="heal what differs, by asking whoever owns it")
    reconcile.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SOURCE",
        help="hive, members, catalog, snapshots or memory; may repeat",
    )
    reconcile.add_argument(
        "--child",
        action="append",
        default=[],
        metavar="NAME=URL[,USER_FILE]",
        help="the broker of a child swarm that has one of its own; may repeat",
    )
    reconcile.add_argument("--memory", metavar="NAME", help="the memory to look at (default: shared)")
    reconcile.add_argument(
        "--settle", type=float, default=2.0, metavar="SECONDS", help="between two looks (default: 2)"
    )


def _reconcile(args: argparse.Namespace) -> int:
    import asyncio

    from swarmd.core.errors import Rejected

    if not 0 <= args.settle <= 3600:
        raise Rejected("bad_usage", "--settle takes 0 to 3600 seconds")
    return asyncio.run(_reconcile_over(args))


async def _reconcile_over(args: argparse.Namespace) -> int:
    from swarmd.adapters.logs import configure_logs
    from swarmd.edges.cli.session import as_json, note
    from swarmd.edges.reconcile import Reconciler, Wish
    from swarmd.edges.settings import admin_of, require_running, secrets_of
    from swarmd.edges.wiring import connected

    settings = flags.settings_of(args)
    require_running(settings)
    nats, as_lines = admin_of(settings), flags.wants_json(args)
    configure_logs(settings.log.format, "warning", secrets=secrets_of(settings, nats))
    wish = Wish(flags.swarm_of(args), args.only, args.repair, args.settle, settings.memory.name)
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(connected(nats, "swarmd-reconcile"))
        buses: dict[str, NatsBus] = {}
        for name, there in _brokers(args.child, nats).items():
            buses[name] = (await stack.enter_async_context(connected(there, "swarmd-reconcile"))).bus
        report = await Reconciler(wire.bus, nats, wish, buses, (lambda text: None) if as_lines else note).run()
    print(as_json(_plain(report)) if as_lines else _in_words(report))
    return flags.OK if report.ok else flags.DIFFERENT


def _brokers(given: list[str], nats: NatsSettings) -> dict[str, NatsSettings]:
    """`NAME=URL[,USER_FILE]` as settings by child. Raises `Rejected("bad_usage")`."""
    from pathlib import Path

    from msgspec import structs

    from swarmd.adapters.broker_users import read_credentials
    from swarmd.core.errors import Rejected
    from swarmd.core.ids import check_name

    found = {}
    for text in given:
        name, separator, where = text.partition("=")
        url, _, user_file = where.partition(",")
        if not separator or not url:
            raise Rejected("bad_usage", f"--child {text!r}: write NAME=URL, or NAME=URL,USER_FILE")
        there = structs.replace(nats, url=url)
        if user_file:
            own = read_credentials(Path(user_file))
            there = structs.replace(there, user=own.user, password=own.password, inbox_prefix=own.inbox_prefix)
        found[check_name("swarm", name)] = there
    return found


def _plain(report: Report) -> dict[str, Any]:
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(report)
    return {"ok": report.ok} | plain


def _in_words(report: Report) -> str:
    from swarmd.edges.cli.session import table

    columns = ["source", "kind", "swarm", "subject", "epoch", "repair", "what it means"]
    lines = []
    for heading, listed in (("repaired", report.repaired), ("differs", report.differences)):
        if listed:
            rows = [
                [one.source, one.kind, one.swarm, one.subject, str(one.epoch or ""), one.repair or "by hand", one.says]
                for one in listed
            ]
            lines += [f"{heading}:", table(columns, rows)]
    lines += [f"not looked at: {name}: {why}" for name, why in report.skipped.items()]
    for one in report.reunions:
        counts = ", ".join(f"{name} {count}" for name, count in one.get("tasks", {}).items() if count)
        what = f"{one['member']} (the way to the {one['way']}) for {one['cut_ms']} ms: {counts or 'no task'}"
        lines.append(f"was cut off, until {one['time']}: {what}")
    if report.ok:
        lines.append(f"swarm {report.swarm} agrees with all that was looked at, at sequence {report.seq}")
    return "\n".join(lines)
