"""Commands that check: config check, config show, doctor, schemas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.edges.cli import flags

if TYPE_CHECKING:
    import argparse


def add(commands: flags.Commands) -> None:
    """Their parsers."""
    config = commands.group("config", "check and show settings", "swarmd config check --config swarm.toml")
    check = config.add("check", _config_check, "check settings and what they name", "swarmd config check swarm.toml")
    check.add_argument("file", nargs="?", default="", metavar="FILE")
    show = config.add("show", _config_show, "show the settings in force", "swarmd config show --config swarm.toml")
    show.add_argument("file", nargs="?", default="", metavar="FILE")
    commands.add("doctor", _doctor, "check broker, JetStream, disk and rights", "swarmd doctor --data ./swarmd-data")
    schemas = commands.add("schemas", _schemas, "write the JSON Schemas from the code", "swarmd schemas --check")
    schemas.add_argument("--check", action="store_true", help="write nothing; fail if a file differs")
    schemas.add_argument("--dir", default="schemas", metavar="DIR", help="where they are (default: ./schemas)")


def _config_check(args: argparse.Namespace) -> int:
    """Read the settings, import the agents, open the models and tools that they name."""
    import os

    from swarmd.edges.cli.session import as_json
    from swarmd.edges.embeddings import blocking_embedder
    from swarmd.edges.loading import OpenTools, load_agents
    from swarmd.edges.open_models import OpenModels
    from swarmd.edges.settings import mcp_settings, model_settings, nats_of, tool_settings

    args.config = args.file or getattr(args, "config", "") or os.environ.get("SWARMD_CONFIG", "")
    settings = flags.settings_of(args)
    nats_of(settings)
    models = OpenModels(model_settings(settings))
    tools = OpenTools(tool_settings(settings), settings.tool, mcp=mcp_settings(settings))
    for model in (settings.model.name, *settings.model.fallbacks):
        models(model)
    blocking_embedder("", settings)
    found: dict[str, list[str]] = {}
    for swarm in [*settings.swarms, *([settings.hive.name] if settings.hive else [])]:
        modules, programs = settings.crew(swarm).agents, settings.programs(swarm)
        agents = load_agents(modules, settings.declared(swarm), models, tools, programs)
        found[swarm] = list(agents)
    if flags.wants_json(args):
        told = {"ok": True, "swarms": found, "tools": tools.of_modules(), "unused_tools": tools.unmatched()}
        print(as_json(told))
        return flags.OK
    for swarm, names in found.items():
        print(f"swarm {swarm}: {', '.join(names) or 'no agents'}")
    if tools.of_modules():
        asks = {name: " (needs approval)" for name, table in settings.tool.items() if table.approval}
        print(f"tools of modules: {', '.join(name + asks.get(name, '') for name in tools.of_modules())}")
    for name in tools.unmatched():
        print(f"note: [tool.{name}] is for a tool that no module of these swarms has")
    print(f"{args.config or 'the configuration'} is sound")
    return flags.OK


def _config_show(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import as_json
    from swarmd.edges.settings import shown

    args.config = args.file or getattr(args, "config", "")
    tree = shown(flags.settings_of(args))
    if flags.wants_json(args):
        print(as_json(tree))
        return flags.OK
    for section, keys in tree.items():
        for key, value in (keys or {}).items() if isinstance(keys, dict) else [("", keys)]:
            print(f"{section}{'.' + key if key else ''} = {as_json(value)}")
    return flags.OK


def _doctor(args: argparse.Namespace) -> int:
    import asyncio

    from swarmd.edges.cli.session import as_json, table
    from swarmd.edges.doctor import examine

    findings = asyncio.run(examine(flags.settings_of(args), flags.swarm_of(args)))
    good = all(finding.state != "fail" for finding in findings)
    if flags.wants_json(args):
        print(as_json({"ok": good, "findings": findings}))
    else:
        print(table(["check", "state", "found"], [[f.check, f.state, f.found] for f in findings]))
    return flags.OK if good else flags.CHECK_FAILED


def _schemas(args: argparse.Namespace) -> int:
    from pathlib import Path

    from swarmd.edges.cli.session import as_json
    from swarmd.edges.schemas import compare, write

    folder = Path(args.dir)
    if not args.check:
        written = write(folder)
        print(as_json({"written": written}) if flags.wants_json(args) else "\n".join(written) or "nothing has changed")
        return flags.OK
    differing = compare(folder)
    if flags.wants_json(args):
        print(as_json({"ok": not differing, "differing": differing}))
    else:
        print("\n".join(differing) or "the schemas agree with the code")
    return flags.CHECK_FAILED if differing else flags.OK
