"""The command line: arguments to settings to a role or a command.

One module per group of commands; what a command needs is imported when it runs, so that `--help` answers at once.
Results go to stdout, everything else to stderr; errors end with their code in brackets.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from swarmd.edges.cli import (
    checks,
    flags,
    history,
    mcp,
    memory,
    nodes,
    people,
    processes,
    reconciling,
    schedules,
    simulations,
    swarms,
    tasks,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DESCRIPTION = "Runs swarms of agents on one event log: NATS JetStream for the log, Milvus for shared memory."
EPILOG = f"""start here:
  swarmd up                                       a broker, one swarm and two agents, on this machine
  swarmd submit echo '{{"hello": "world"}}' --wait   from another terminal
  swarmd demo                                     the main job on real files

settings come from flags, then SWARMD_<SECTION>_<KEY>, then --config FILE, then defaults.

{flags.EXIT_CODES}"""


def parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The whole command line; `argv` says for which command the flags of its own module are wanted."""
    shared = flags.common()
    top = argparse.ArgumentParser(
        prog="swarmd",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared],
        allow_abbrev=False,  # a command's own flag may begin like several global ones
    )
    top.add_argument("--version", action=_Version, nargs=0, help="show the version")
    commands = flags.Commands(top, shared)
    processes.add(commands, argv)
    for module in (tasks, people, schedules, swarms, nodes, memory, history, checks, reconciling, simulations, mcp):
        module.add(commands)
    return top


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import swarmd

        print(swarmd.__version__)
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser(argv).parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return flags.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as in `swarmd log show | head`: nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return flags.OK
    except Exception as error:  # every error ends as one line and a code; what is no known kind is raised again
        return _explain(error)


def _explain(error: BaseException) -> int:
    from swarmd.core.errors import Conflict, Fault, Rejected

    leaves = list(_leaves(error))
    known = [leaf for leaf in leaves if isinstance(leaf, Rejected | Conflict | Fault)]
    if not known or len(known) < len(leaves):
        raise error
    for leaf in known:
        print(f"error: {leaf.message} ({leaf.code})", file=sys.stderr)
    if known[0].code == "bad_usage":
        return flags.USAGE
    return flags.FAULT if isinstance(known[0], Fault) else flags.REJECTED


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
