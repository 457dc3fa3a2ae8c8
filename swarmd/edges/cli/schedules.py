"""Commands about schedules: add, list, remove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmd.edges.cli import flags

if TYPE_CHECKING:
    import argparse

    from swarmd.core.wire import ScheduleStatus
    from swarmd.edges.cli.session import Session


def add(commands: flags.Commands) -> None:
    """Their parsers."""
    group = commands.group("schedule", "tasks at points in time: add, list, remove", "swarmd schedule list", _list)
    _add_add(group)
    group.add("list", _list, "list schedules with their next slots", "swarmd schedule list")
    remove = group.add("remove", _remove, "remove a schedule; its tasks live on", "swarmd schedule remove poll")
    remove.add_argument("id", metavar="ID")


def _add_add(group: flags.Commands) -> None:
    example = "swarmd schedule add digest summarise --cron '0 7 * * MON-FRI' --zone Europe/Berlin"
    parser = group.add("add", _add, "bring a schedule in force, or change it", example)
    parser.add_argument("id", metavar="ID", help="its name")
    parser.add_argument("agent", metavar="AGENT", help="the agent that shall run its tasks")
    parser.add_argument("input", metavar="INPUT", nargs="?", help="their input: JSON if it is JSON, else a text")
    parser.add_argument("--file", metavar="FILE", help="take the input from a file, or from stdin with -")
    parser.add_argument("--every", default="", metavar="TIME", help="an interval: 500ms, 30s, 10m, 2h or 1d")
    parser.add_argument("--cron", default="", metavar="FIELDS", help="minute, hour, day of month, month, day of week")
    parser.add_argument("--zone", default="UTC", help="time zone of --cron, as Europe/Berlin (default: UTC)")
    parser.add_argument("--from", dest="begin", default="", metavar="TIME", help="no slot before: 2026-12-01T08:00")
    parser.add_argument("--until", default="", metavar="TIME", help="no slot after")
    parser.add_argument("--missed", choices=["skip", "once", "all"], default="once", help="what is done about slots")
    parser.add_argument("--grace", default="1m", metavar="TIME", help="a slot is missed when it is older (default: 1m)")
    parser.add_argument("--overlap", choices=["allow", "skip"], default="allow", help="skip while the last task lives")
    parser.add_argument("--priority", type=int, default=0, help="-1000 to 1000, higher first")
    parser.add_argument("--timeout", default="", metavar="TIME", help="a task gives up after so long")
    parser.add_argument("--tenant", default="", help="for whom; tenants share slots by weight")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="may be repeated")
    parser.add_argument("--attempts-max", type=int, default=3, metavar="N", help="attempts before a task is dead")
    parser.add_argument("--budget", action="append", default=[], metavar="KEY=N", help="what each task may spend")


def _add(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import run
    from swarmd.edges.cli.tasks import input_of

    options, wanted = _options(args), input_of(args)

    async def act(session: Session) -> int:
        from swarmd.edges.planning import Planning

        await Planning(session.wire.bus, session.swarm).schedule(args.id, args.agent, wanted, **options)
        session.tell({"schedule": args.id}, f"schedule {args.id} is in force")
        return flags.OK

    return run(args, act)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    from swarmd.core.events import RetryPolicy
    from swarmd.edges.cli.budgets import budget_of
    from swarmd.edges.cli.times import duration_ms, moment_ms

    return {
        "every_ms": duration_ms("--every", args.every) if args.every else 0,
        "cron": args.cron,
        "zone": args.zone,
        "not_before_ms": moment_ms("--from", args.begin) if args.begin else 0,
        "until_ms": moment_ms("--until", args.until) if args.until else 0,
        "missed": args.missed,
        "grace_ms": duration_ms("--grace", args.grace),
        "overlap": args.overlap,
        "priority": args.priority,
        "tenant": args.tenant,
        "labels": flags.labels_of(args.label),
        "retry": RetryPolicy(attempts_max=args.attempts_max),
        "budget": budget_of(args.budget),
        "timeout_ms": duration_ms("--timeout", args.timeout) if args.timeout else 0,
    }


def _list(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import run

    async def act(session: Session) -> int:
        from swarmd.edges.cli.session import as_json, note, table
        from swarmd.edges.planning import Planning

        found = await Planning(session.wire.bus, session.swarm).schedules()
        if session.json:
            for one in found:
                print(as_json(one))
            return flags.OK
        columns = ["id", "agent", "when", "next", "last", "fired", "skipped", "from"]
        print(table(columns, [_row(one) for one in found]))
        note(f"{len(found)} schedules")
        return flags.OK

    return run(args, act)


def _row(status: ScheduleStatus) -> list[str]:
    from swarmd.edges.cli.times import moment_text

    schedule = status.schedule
    when = f"{schedule.cron} ({schedule.zone})" if schedule.cron else f"every {schedule.every_ms} ms"
    last, following = moment_text(status.last_ms) or "-", moment_text(status.next_ms) or "never"
    origin = "settings" if schedule.declared else "request"
    return [status.id, status.agent, when, following, last, str(status.fired), str(status.skipped), origin]


def _remove(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import run

    async def act(session: Session) -> int:
        from swarmd.edges.planning import Planning

        await Planning(session.wire.bus, session.swarm).unschedule(args.id)
        session.tell({"schedule": args.id}, f"schedule {args.id} is removed")
        return flags.OK

    return run(args, act)
