"""Commands that run something: up, run, demo, bench."""

from __future__ import annotations

import argparse
import importlib
from typing import TYPE_CHECKING

from swarmd.edges.cli import flags

if TYPE_CHECKING:
    from collections.abc import Sequence

ROLES = ("orchestrator", "worker", "observer", "memory", "delegate", "hivemind", "web")


def add(commands: flags.Commands, argv: Sequence[str]) -> None:
    """Their parsers."""
    up = commands.add("up", _up, "run everything on this machine", "swarmd up --data ./swarmd-data --port 4222")
    up.add_argument("--port", type=int, default=None, help="of the broker it starts (default: 4222; 0: any free one)")
    up.add_argument("--metrics-port", type=int, default=None, help="of /metrics and /readyz (default: 9464; 0: any)")
    up.add_argument(
        "--web-port", type=int, default=None, help="of the page for people (default: 9465; 0: any free one)"
    )
    up.add_argument("--workers", default="", metavar="N|MIN..MAX", help="worker processes of every swarm (default: 1)")
    up.add_argument("--agents", action="append", metavar="MODULE", help="agents of every swarm; may be repeated")
    _add_run(commands)
    demo = commands.add("demo", _run_module, "run the main job on real files", "swarmd demo docs README.md")
    _extend(demo, "swarmd.edges.demo", "demo" in argv)
    bench = commands.group("bench", "measure throughput and latency", "swarmd bench throughput --tasks 100000 --json")
    for name in ("throughput", "latency"):
        measured = bench.add(name, _run_module, f"measure {name}", f"swarmd bench {name} --json")
        measured.set_defaults(measure=name)
        _extend(measured, "swarmd.edges.bench", "bench" in argv)
    steps = bench.add("agent", _run_module, "measure an agent's steps", "swarmd bench agent --runs 100 --json")
    _extend(steps, "swarmd.edges.bench_agent", "bench" in argv and "agent" in argv)
    core = bench.add("core", _run_module, "measure the core without a broker", "swarmd bench core --json")
    _extend(core, "swarmd.edges.bench_core", "bench" in argv and "core" in argv)
    failover = bench.add("failover", _run_module, "measure failover", "swarmd bench failover --json")
    _extend(failover, "swarmd.edges.bench_failover", "bench" in argv and "failover" in argv)
    loads = bench.add("load", _run_module, "measure latency under load", "swarmd bench load --seconds 20 --json")
    _extend(loads, "swarmd.edges.bench_load", "bench" in argv and "load" in argv)
    scale = bench.add("scale", _run_module, "measure a hive of thousands of nodes", "swarmd bench scale --json")
    _extend(scale, "swarmd.edges.bench_scale", "bench" in argv and "scale" in argv)
    memories = bench.add("memory", _run_module, "measure a shared memory", "swarmd bench memory --rows 20000 --json")
    _extend(memories, "swarmd.edges.bench_memory", "bench" in argv and "memory" in argv)
    found = bench.add("retrieval", _run_module, "measure what a recall finds", "swarmd bench retrieval --json")
    _extend(found, "swarmd.edges.bench_retrieval", "bench" in argv and "retrieval" in argv)
    models = bench.add("model", _run_module, "measure a model", "swarmd bench model --model openai:gpt-4o-mini --json")
    _extend(models, "swarmd.edges.bench_model", "bench" in argv and "model" in argv)


def _add_run(commands: flags.Commands) -> None:
    example = "swarmd run worker --agents my.agents --nodes 4 --nats nats://10.0.0.5:4222"
    run = commands.add("run", _run, "run one role against a broker", example)
    run.add_argument("role", choices=ROLES)
    run.add_argument("--name", default="", help="the writer's name: unique per role and swarm (default: role-host-pid)")
    run.add_argument("--agents", action="append", metavar="MODULE", help="worker: agents to host; may be repeated")
    run.add_argument("--nodes", type=int, default=None, help="worker: nodes in this process")
    run.add_argument("--capacity", type=int, default=None, help="worker: slots per node; delegate: of the child")
    run.add_argument("--label", action="append", default=None, metavar="KEY=VALUE", help="of its members; repeatable")
    run.add_argument("--child", default="", metavar="SWARM", help="delegate: the child swarm that it speaks for")
    run.add_argument("--memory", default=None, metavar="NAME", help="the shared memory (default: shared)")
    run.add_argument("--metrics-port", type=int, default=0, help="of /metrics and /readyz (default: any free one)")
    run.add_argument("--web-port", type=int, default=None, help="web: of the page (default: 9465; 0: any free one)")
    run.add_argument("--replies-prefixed", action=argparse.BooleanOptionalAction, default=None,
                     help="orchestrator: outcomes cross accounts (default: with --user-file)")  # fmt: skip
    run.add_argument("--parent", type=int, default=0, help=argparse.SUPPRESS)


def _extend(parser: argparse.ArgumentParser, module: str, wanted: bool) -> None:
    """Let a module add its own flags, but only for its own command: importing it would slow down every other."""
    parser.set_defaults(module=module)
    if wanted:
        importlib.import_module(module).add_arguments(parser)


def _up(args: argparse.Namespace) -> int:
    from swarmd.edges.up import main

    return main(flags.settings_of(args), tuple(args.agents or ()), args.workers, as_json=flags.wants_json(args))


def _run(args: argparse.Namespace) -> int:
    from swarmd.edges.role_process import run_role

    return run_role(args, flags.settings_of(args))


def _run_module(args: argparse.Namespace) -> int:
    import asyncio

    from swarmd.edges.role_process import loop_factory

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        code: int = runner.run(importlib.import_module(args.module).run(args))
    return code
