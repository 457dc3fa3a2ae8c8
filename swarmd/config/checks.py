"""What no single setting shows: names that are used twice, or that nothing has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from swarmd.config.tables import worker_range
from swarmd.core.budgets import BUDGET_MAX
from swarmd.core.errors import Rejected
from swarmd.core.ids import check_name
from swarmd.core.model_profile import PROFILES
from swarmd.core.offers import CAPACITY_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmd.config import Settings
    from swarmd.config.tables import HiveTable, McpTable, SwarmTable


def check(settings: Settings, where: str) -> None:
    """What no single field shows."""
    names = [*(agent.name for agent in settings.agent), *settings.program]
    for name in settings.swarm:
        check_name("swarm", name)
    for name in names:
        check_name("agent", name)
    for name, provider in settings.provider.items():
        check_name("provider", name)
        if name not in PROFILES and not provider.base_url:
            raise Rejected("bad_config", f"{where}: provider {name!r} needs a base_url: no such provider is known")
    for name in settings.price:
        if not all(name.partition(":")):
            raise Rejected(
                "bad_config", f'{where}: price {name!r} must be called by its model: [price."provider:model"]'
            )
    if settings.health.gone_ms > settings.health.lease_ms:
        raise Rejected("bad_config", f"{where}: [health] gone_ms is more than lease_ms: it would never count")
    _check_workers(settings, where)
    _check_tools(settings, where)
    _check_budgets(settings, where)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Rejected("bad_config", f"{where}: two agents are called {twice[0]!r}")
    hosted = {*settings.swarms, *([settings.hive.name] if settings.hive else [])}
    placed = [*((agent.name, agent.swarms) for agent in settings.agent)]
    placed += [(name, program.swarms) for name, program in settings.program.items()]
    for name, swarms in placed:
        for swarm in swarms:
            if swarm not in hosted:
                raise Rejected("bad_config", f"{where}: agent {name!r} names swarm {swarm!r}, {_listed_names(hosted)}")
    for name, table in settings.schedule.items():
        check_name("schedule", name)
        if not table.swarm and len(hosted) > 1:
            raise Rejected("bad_config", f"{where}: schedule {name!r} must name its swarm: {_listed_names(hosted)}")
        if table.budget.period != "total":
            raise Rejected("bad_config", f"{where}: schedule {name!r}: each task has a budget of its own, not a day")
        if table.swarm and table.swarm not in hosted:
            why = f"names swarm {table.swarm!r}, {_listed_names(hosted)}"
            raise Rejected("bad_config", f"{where}: schedule {name!r} {why}")
    for name, server in settings.mcp.items():
        _check_mcp(name, server, where)
    if settings.hive is not None and settings.hive.name in settings.swarms:
        raise Rejected("bad_config", f"{where}: the hive and a swarm are both called {settings.hive.name!r}")
    for parent, children in settings.children.items():
        for child in children:
            if child not in hosted:
                raise Rejected("bad_config", f"{where}: {parent} names swarm {child!r}, {_listed_names(hosted)}")
            if children.count(child) > 1:
                raise Rejected("bad_config", f"{where}: {parent} names swarm {child!r} twice: a child is one member")
        _check_ring(settings.children, [parent], where)


def _check_ring(children: Mapping[str, Sequence[str]], path: list[str], where: str) -> None:
    """No swarm may contain itself: a task could go round for ever."""
    for child in children.get(path[-1], ()):
        if child in path:
            ring = " > ".join([*path[path.index(child) :], child])
            raise Rejected("bad_config", f"{where}: swarm {child!r} would contain itself: {ring}")
        _check_ring(children, [*path, child], where)


def _check_budgets(settings: Settings, where: str) -> None:
    tables = {"budget": settings.budget, **{f"tenant.{name}": table for name, table in settings.tenant.items()}}
    tables |= {f"schedule.{name}.budget": table.budget for name, table in settings.schedule.items()}
    for name, table in tables.items():
        for key, unit in (("tokens", 1), ("cost_usd", 1_000_000), ("steps", 1), ("wall_s", 1000)):
            value = getattr(table, key)
            if value is not None and not 1 <= value * unit <= BUDGET_MAX:
                why = "nothing could ever be spent" if value == 0 else "it is out of bounds"
                raise Rejected("bad_config", f"{where}: {name}.{key} is {value}: {why}; leave it out for no limit")
    for tenant in settings.tenant:
        if not 0 < len(tenant) <= 64:
            raise Rejected("bad_config", f"{where}: tenant {tenant[:80]!r}: a tenant's name has 1 to 64 characters")
    for key in settings.key:
        if not 0 < len(key) <= 128 or "*" in key[:-1]:
            why = "a key has 1 to 128 characters, and * only at its end, for all keys that begin so"
            raise Rejected("bad_config", f"{where}: key {key[:150]!r}: {why}")


def _check_workers(settings: Settings, where: str) -> None:
    crews: list[tuple[str, SwarmTable | HiveTable]] = [(f"swarm.{name}", crew) for name, crew in settings.swarm.items()]
    if settings.hive is not None:
        crews.append(("hive", settings.hive))
    for name, crew in crews:
        try:
            worker_range(crew.workers)
        except ValueError:
            why = f'{name}.workers: {crew.workers!r} is neither a number such as 2 nor a range such as "1..4"'
            raise Rejected("bad_config", f"{where}: {why}") from None
        if crew.capacity > CAPACITY_MAX:
            why = f"{name}.capacity is {crew.capacity}: a node runs at most {CAPACITY_MAX} attempts at once"
            raise Rejected("bad_config", f"{where}: {why}")


def _check_tools(settings: Settings, where: str) -> None:
    for name, tool in settings.tool.items():
        asks = tool.approver or tool.approval_timeout_s or tool.escalate_to or tool.on_timeout != "fail"
        if asks and not tool.approval:
            raise Rejected("bad_config", f"{where}: tool.{name} says how to approve, but not approval = true")
        if tool.approval and (tool.on_timeout == "escalate") != bool(tool.escalate_to):
            why = 'on_timeout = "escalate" and escalate_to belong together'
            raise Rejected("bad_config", f"{where}: tool.{name}: {why}")
        if tool.on_timeout != "fail" and tool.approval_timeout_s is None:
            raise Rejected(
                "bad_config", f"{where}: tool.{name}: on_timeout without an approval_timeout_s never happens"
            )
        if tool.retries and tool.side_effects == "at_most_once":
            raise Rejected("bad_config", f"{where}: tool.{name} cannot be at_most_once and have retries")


def _listed_names(known: Any) -> str:
    return f"there are {', '.join(sorted(known))}"


_MCP_NAME: Final = re.compile("[a-z0-9]+(?:[-_][a-z0-9]+)*")


def _check_mcp(name: str, server: McpTable, where: str) -> None:
    """A server's name begins the names of its tools, which models and providers limit."""
    if len(name) > 24 or not _MCP_NAME.fullmatch(name):
        wanted = "1 to 24 of a-z 0-9, with single - or _ between"
        raise Rejected("bad_config", f"{where}: mcp.{name[:80]}: the name of an MCP server must be {wanted}")
    if bool(server.command) == bool(server.url):
        raise Rejected("bad_config", f"{where}: mcp.{name}: give either a command or a url")
    if server.url and not server.url.startswith(("http://", "https://")):
        raise Rejected("bad_config", f"{where}: mcp.{name}: url must begin with http:// or https://")
    if server.env and not server.command:
        raise Rejected("bad_config", f"{where}: mcp.{name}: env is for a command; a url takes headers_env")
    if server.headers_env and not server.url:
        raise Rejected("bad_config", f"{where}: mcp.{name}: headers_env is for a url; a command takes env")
