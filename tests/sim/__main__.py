"""`python -m tests.sim --seed N [--seeds M] [--break RULE] [--trace]`."""

from __future__ import annotations

import argparse
import sys
import traceback

from tests.sim.breaks import BREAKS
from tests.sim.checks import Violation
from tests.sim.simulation import Simulation, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Run the core under seeded faults.")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from the first on")
    parser.add_argument("--break", dest="break_", default="", choices=BREAKS, help="break one rule of the core")
    arguments = parser.parse_args()
    failed = 0
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        try:
            simulation = simulate(seed, arguments.break_)
        except Violation as violation:
            failed += 1
            print(violation)
            if arguments.seeds == 1 and violation.__cause__ is not None:
                traceback.print_exception(violation.__cause__)
        else:
            if arguments.seeds == 1:
                print(_summary(simulation))
    print(f"{arguments.seeds - failed} of {arguments.seeds} seeds passed")
    return 1 if failed else 0


def _summary(simulation: Simulation) -> str:
    oracle = simulation.swarm.oracle
    faults = [name for name in simulation.world.faults.__struct_fields__ if getattr(simulation.faults, name)]
    counters = oracle.state.counters
    return "\n".join(
        [
            *simulation.world.trace,
            f"faults: {', '.join(faults) or 'none'}",
            f"log {oracle.state.seq} commits, term {oracle.state.term}, {len(oracle.accepted)} tasks, "
            f"{oracle.executions} steps executed, {counters.steps} recorded",
            f"ignored by the fold: {counters.ignored}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
