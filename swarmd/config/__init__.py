"""The settings of swarmd: what `swarm.toml`, the environment and flags may say, as frozen structs.

Job: from the text of a file and a mapping of variables make one `Settings`, or say which key is wrong and which one
was meant. Precedence: flags, environment (`SWARMD_<SECTION>_<KEY>`), file, defaults. Invariants: a secret is named
(by a variable or a file), never held; nothing is read from disk or environment here, the edges hand it in.
"""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from swarmd.config.checks import check
from swarmd.config.tables import (
    AgentTable,
    BrokerTable,
    BudgetTable,
    DataTable,
    HealthTable,
    HiveTable,
    KeyTable,
    LimitsTable,
    LogTable,
    McpTable,
    MemoryTable,
    MetricsTable,
    ModelTable,
    NatsTable,
    ObserverTable,
    PlacementTable,
    ProgramTable,
    ProviderTable,
    ScheduleTable,
    SwarmTable,
    TenantTable,
    ToolsTable,
    ToolTable,
    WebTable,
)
from swarmd.core.budgets import SWARM, has_limit, tenant_account
from swarmd.core.errors import Rejected
from swarmd.core.prices import Price

if typing.TYPE_CHECKING:
    from swarmd.core.events import Limit, Schedule

__all__ = [
    "DEFAULT_SWARM",
    "ENV_PREFIX",
    "SECTIONS",
    "AgentTable",
    "BrokerTable",
    "BudgetTable",
    "DataTable",
    "HealthTable",
    "HiveTable",
    "KeyTable",
    "LimitsTable",
    "LogTable",
    "McpTable",
    "MemoryTable",
    "MetricsTable",
    "ModelTable",
    "NatsTable",
    "ObserverTable",
    "Overrides",
    "PlacementTable",
    "ProgramTable",
    "ProviderTable",
    "ScheduleTable",
    "Settings",
    "SwarmTable",
    "TenantTable",
    "ToolTable",
    "ToolsTable",
    "WebTable",
    "from_environment",
    "load",
]

ENV_PREFIX: Final = "SWARMD_"
DEFAULT_SWARM: Final = "main"
#: Settings as nested mappings, by section and key: what a flag or a variable overrides.
Overrides = Mapping[str, Mapping[str, Any]]


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set. `swarm` maps names to swarms; without any there is one, `main`."""

    nats: NatsTable = NatsTable()
    broker: BrokerTable = BrokerTable()
    data: DataTable = DataTable()
    log: LogTable = LogTable()
    metrics: MetricsTable = MetricsTable()
    web: WebTable = WebTable()
    model: ModelTable = ModelTable()
    provider: dict[str, ProviderTable] = field(default_factory=dict)
    price: dict[str, Price] = field(default_factory=dict)
    tools: ToolsTable = ToolsTable()
    tool: dict[str, ToolTable] = field(default_factory=dict)
    memory: MemoryTable = MemoryTable()
    observer: ObserverTable = ObserverTable()
    limits: LimitsTable = LimitsTable()
    budget: BudgetTable = BudgetTable()
    tenant: dict[str, TenantTable] = field(default_factory=dict)
    health: HealthTable = HealthTable()
    placement: PlacementTable = PlacementTable()
    key: dict[str, KeyTable] = field(default_factory=dict)
    swarm: dict[str, SwarmTable] = field(default_factory=dict)
    hive: HiveTable | None = None
    agent: tuple[AgentTable, ...] = ()
    program: dict[str, ProgramTable] = field(default_factory=dict)
    mcp: dict[str, McpTable] = field(default_factory=dict)
    schedule: dict[str, ScheduleTable] = field(default_factory=dict)

    @property
    def budgets(self) -> dict[str, Limit]:
        """The limits of each swarm and of its tenants, by account."""
        tables = {SWARM: self.budget, **{tenant_account(name): table for name, table in self.tenant.items()}}
        return {name: table.limit() for name, table in tables.items() if has_limit(table.limit())}

    @property
    def swarms(self) -> dict[str, SwarmTable]:
        """The swarms that `up` hosts, without the hive."""
        return self.swarm or {DEFAULT_SWARM: SwarmTable()}

    def crew(self, swarm: str) -> SwarmTable | HiveTable:
        """What hosts the agents of `swarm`, the hive's own included; defaults for a swarm that is not declared."""
        if self.hive is not None and swarm == self.hive.name:
            return self.hive
        return self.swarms.get(swarm, SwarmTable())

    @property
    def children(self) -> dict[str, tuple[str, ...]]:
        """The swarms that are members of another one, by the name of that one."""
        return {name: table.swarms for name, table in self.hosted.items() if table.swarms}

    @property
    def hosted(self) -> dict[str, SwarmTable | HiveTable]:
        """All swarms that `up` hosts, the hive last."""
        found: dict[str, SwarmTable | HiveTable] = {**self.swarms}
        if self.hive is not None:
            found[self.hive.name] = self.hive
        return found

    def schedules(self, swarm: str) -> dict[str, Schedule]:
        """The declared schedules of `swarm`, by id."""
        mine = {name: table for name, table in self.schedule.items() if (table.swarm or swarm) == swarm}
        return {name: table.schedule(name, table.budget.each()) for name, table in mine.items()}

    def declared(self, swarm: str) -> list[AgentTable]:
        """The declared LLM agents of `swarm`."""
        return [agent for agent in self.agent if not agent.swarms or swarm in agent.swarms]

    def programs(self, swarm: str) -> dict[str, ProgramTable]:
        """The program agents of `swarm`, by name."""
        return {name: one for name, one in self.program.items() if not one.swarms or swarm in one.swarms}


#: Settings that name a variable with a secret: such a variable is no setting itself.
_NAMED_VARIABLES: Final = (
    ("nats", "password_env", NatsTable().password_env),
    ("model", "api_key_env", ModelTable().api_key_env),
    ("memory", "token_env", MemoryTable().token_env),
)
#: The sections of plain keys, which variables and flags can override.
SECTIONS: Final[dict[str, type[Struct]]] = {
    "nats": NatsTable,
    "broker": BrokerTable,
    "data": DataTable,
    "log": LogTable,
    "metrics": MetricsTable,
    "web": WebTable,
    "model": ModelTable,
    "tools": ToolsTable,
    "memory": MemoryTable,
    "observer": ObserverTable,
    "limits": LimitsTable,
    "health": HealthTable,
    "placement": PlacementTable,
    "budget": BudgetTable,
}


def load(text: str, environ: Mapping[str, str], flags: Overrides | None = None, *, source: str = "") -> Settings:
    """Settings from a file's text (TOML or a JSON object, "" for none), the environment and flags.

    Raises `Rejected("bad_config" | "unknown_setting" | "bad_name")`, naming `source`, the key and what it may be.
    """
    where = source or "the configuration"
    tree = _parse(text, where)
    _refuse_unknown(tree, Settings, "", where)
    for section in SECTIONS:
        if not isinstance(tree.get(section, {}), dict):
            raise Rejected("bad_config", f"{where}: {section} is a table: write [{section}] and its keys below")
    named = {tree.get(section, {}).get(key, default) for section, key, default in _NAMED_VARIABLES}
    for layer in (from_environment(environ, ignored=frozenset(named)), flags or {}):
        for section, keys in layer.items():
            tree[section] = {**tree.get(section, {}), **keys}
    try:
        settings = msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        raise Rejected("bad_config", f"{where}: {_in_words(str(error))}") from None
    check(settings, where)
    return settings


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        if text.startswith("{"):  # no TOML document does
            return msgspec.json.decode(text, type=dict[str, Any])
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, msgspec.DecodeError) as error:
        raise Rejected("bad_config", f"{where} cannot be read: {error}") from None


_SECRETS: Final = frozenset(default for _, _, default in _NAMED_VARIABLES)


def from_environment(environ: Mapping[str, str], ignored: frozenset[str] = _SECRETS) -> dict[str, dict[str, Any]]:
    """What variables named `SWARMD_<SECTION>_<KEY>` set; lists are separated by commas.

    A variable of a known section with an unknown key is an error, since it would be silently without effect;
    `ignored` are variables that settings name for other ends, such as passwords.
    """
    found: dict[str, dict[str, Any]] = {}
    for variable, value in sorted(environ.items()):
        section, _, key = variable.removeprefix(ENV_PREFIX).lower().partition("_")
        table = SECTIONS.get(section) if variable.startswith(ENV_PREFIX) else None
        if table is None or variable in ignored:
            continue
        types = {known.name: known.type for known in msgspec.structs.fields(table)}
        if key not in types:
            near = _nearest(key, types)
            hint = f"did you mean {ENV_PREFIX}{section.upper()}_{near.upper()}?" if near else _listed(types)
            raise Rejected("unknown_setting", f"no setting for the variable {variable}: {hint}")
        found.setdefault(section, {})[key] = _from_text(variable, value, types[key])
    return found


def _from_text(variable: str, value: str, wanted: Any) -> Any:
    if wanted == tuple[str, ...]:
        return tuple(part.strip() for part in value.split(",") if part.strip())
    try:
        return msgspec.convert(value, wanted, strict=False)
    except msgspec.ValidationError as error:
        raise Rejected("bad_config", f"{variable}={value!r}: {_in_words(str(error))}") from None


def _refuse_unknown(tree: Any, wanted: Any, path: str, where: str) -> None:
    """Walk tables alongside their structs; the first key that no struct has is an error with the nearest one."""
    if isinstance(wanted, type) and issubclass(wanted, Struct):
        if not isinstance(tree, dict):
            return
        types = {known.name: known.type for known in msgspec.structs.fields(wanted)}
        for key, value in tree.items():
            if key not in types:
                near = _nearest(key, types)
                hint = f"did you mean {near!r}?" if near else _listed(types)
                raise Rejected("unknown_setting", f"{where}: there is no setting {path}{key}: {hint}")
            _refuse_unknown(value, types[key], f"{path}{key}.", where)
        return
    for inner in typing.get_args(wanted):
        if isinstance(tree, dict) and typing.get_origin(wanted) is dict:
            for key, value in tree.items():
                _refuse_unknown(value, inner, f"{path}{key}.", where)
        elif isinstance(tree, list):
            for value in tree:
                _refuse_unknown(value, inner, path, where)
        else:
            _refuse_unknown(tree, inner, path, where)


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.5)
    return near[0] if near else ""


def _listed(known: Mapping[str, Any]) -> str:
    return f"there are {', '.join(known)}"


def _in_words(problem: str) -> str:
    """A validation error with the place first, as it is written in the file."""
    what, separator, place = problem.partition(" - at `$")
    return f"{place.rstrip('`').lstrip('.')}: {what}" if separator else what
