"""The command that compares policies of placement: simulate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.edges.cli import flags

if TYPE_CHECKING:
    import argparse

    from swarmd.edges.simulate.shapes import Workload


def add(commands: flags.Commands) -> None:
    """Its parser; names of workloads and policies are checked when it runs, so that no help needs the core."""
    example = "swarmd simulate --workload slow-quarter --policy pull,adaptive --seeds 20"
    parser = commands.add("simulate", _simulate, "compare policies of placement on a virtual clock", example)
    parser.add_argument(
        "--workload", action="append", metavar="NAME", help="which, repeated or by commas (default: all)"
    )
    parser.add_argument("--log", default="", metavar="DIR", help="replay the log in this data directory instead")
    parser.add_argument("--policy", action="append", metavar="NAME", help="which ones (a,b; default: all)")
    parser.add_argument("--seeds", type=int, default=None, metavar="N", help="how many (default: 5)")
    parser.add_argument("--first-seed", type=int, default=1, metavar="SEED", help="count from here (default: 1)")
    parser.add_argument("--tasks", type=int, default=None, metavar="N", help="tasks of a workload (default: 2000)")
    parser.add_argument("--members", type=int, default=None, metavar="N", help="worker nodes (default: 16)")
    parser.add_argument("--slots", type=int, default=None, metavar="N", help="slots of each node (default: 1)")
    parser.add_argument("--jobs", type=int, default=None, metavar="N", help="processes (default: one per processor)")
    parser.add_argument("--check", action="store_true", help="fail if adaptive misses a target")
    parser.add_argument("--plot", default="", metavar="FILE.svg", help="draw the comparison")


def _simulate(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import note
    from swarmd.edges.simulate.command import run

    told, missed = run(args, flags.wants_json(args), _recorded(args))
    print(told)
    if not args.check:
        return flags.OK
    for target in missed:
        note(f"missed: {target}")
    return flags.CHECK_FAILED if missed else flags.OK


def _recorded(args: argparse.Namespace) -> Workload | None:
    """What the log holds that the flags name; None when they name none."""
    if not args.log and not any(hasattr(args, flag) for flag in ("nats", "swarm", "data")):
        return None
    import asyncio

    from swarmd.core.errors import Rejected
    from swarmd.edges.cli.session import note
    from swarmd.edges.simulate.logs import read_log

    if args.workload or args.tasks or args.members or args.slots:
        raise Rejected("bad_usage", "a log has its own work: leave out --workload, --tasks, --members and --slots")
    swarm = flags.swarm_of(args)
    recording = asyncio.run(read_log(flags.settings_of(args), swarm, args.log))
    workload = recording.workload()
    note(f"{len(workload.jobs)} tasks of swarm {swarm}; {recording.left_out()} without a result are left out")
    return workload
