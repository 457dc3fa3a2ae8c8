"""The settings of swarmd: what `swarm.toml`, the environment and flags may say, as frozen structs.

Job: from the text of a file and a mapping of variables make one `Settings`, or say which key is wrong and which one
was meant. Precedence: flags, environment (`SWARMD_<SECTION>_<KEY>`), file, defaults. Invariants: a secret is named
(by a variable or a file), never held; nothing is read from disk or environment here, the edges hand it in.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
import typing
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct, field

from swarmd.core.agent import AgentSpec
from swarmd.core.budgets import BUDGET_MAX, SWARM, has_limit, tenant_account
from swarmd.core.errors import Rejected
from swarmd.core.events import Budget, Limit, Schedule
from swarmd.core.ids import NAME_PATTERN, check_name
from swarmd.core.model_profile import PROFILES, Structured, SystemRole, TokenParameter
from swarmd.core.prices import Price
from swarmd.core.program import ProgramSpec
from swarmd.core.schedule_spec import ScheduleSpec

ENV_PREFIX: Final = "SWARMD_"
DEFAULT_SWARM: Final = "main"
#: Settings as nested mappings, by section and key: what a flag or a variable overrides.
Overrides = Mapping[str, Mapping[str, Any]]

Port = typing.Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = typing.Annotated[int, msgspec.Meta(ge=1)]
Seconds = typing.Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Natural = typing.Annotated[int, msgspec.Meta(ge=0)]
Name = typing.Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]


class NatsTable(Struct, frozen=True, forbid_unknown_fields=True):
    """The broker. Without `url`, `swarmd up` starts one of its own and every other command asks 127.0.0.1:4222."""

    url: str = ""
    user: str = ""
    password_env: str = "SWARMD_NATS_PASSWORD"
    password_file: str = ""
    user_file: str = ""
    credentials_file: str = ""
    nkey_seed_file: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_hostname: str = ""
    tls_first: bool = False
    replies_prefixed: bool | None = None


class BrokerTable(Struct, frozen=True, forbid_unknown_fields=True):
    """The broker that `swarmd up` starts; `port` 0 takes any free one. `sync_always` survives a power failure."""

    host: str = "127.0.0.1"
    port: Port = 4222
    sync_always: bool = True


class DataTable(Struct, frozen=True, forbid_unknown_fields=True):
    """Where `swarmd up` keeps everything; "" is $XDG_DATA_HOME/swarmd, or ~/.local/share/swarmd."""

    dir: str = ""


class LogTable(Struct, frozen=True, forbid_unknown_fields=True):
    """How log lines look, on stderr."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class MetricsTable(Struct, frozen=True, forbid_unknown_fields=True):
    """Where `swarmd up` answers /metrics, /livez and /readyz; `port` 0 takes any free one."""

    host: str = "127.0.0.1"
    port: Port = 9464


class WebTable(Struct, frozen=True, forbid_unknown_fields=True):
    """The page for people that `swarmd up` serves; `hosts` are further names it may be asked for, such as a proxy's."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = 9465
    hosts: tuple[str, ...] = ()


class ModelTable(Struct, frozen=True, forbid_unknown_fields=True):
    """The default model, `provider:model`, how its provider is reached, and what is tried when it fails."""

    name: str = "offline:extractive"
    base_url: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    api_key_file: str = ""
    timeout_ms: Positive = 60_000
    stall_ms: Positive = 30_000
    retries: Natural = 4
    fallbacks: tuple[str, ...] = ()


class ProviderTable(Struct, frozen=True, forbid_unknown_fields=True):
    """A provider of models: one of one's own, or changes to a known one. None and "" leave what its profile says."""

    base_url: str = ""
    api_key_env: str = ""
    api_key_file: str = ""
    timeout_ms: Natural = 0
    stall_ms: Natural = 0
    concurrency_max: Positive = 64
    requests_per_minute: Natural = 0
    tokens_per_minute: Natural = 0
    token_parameter: TokenParameter | None = None
    stream: bool | None = None
    stream_usage: bool | None = None
    structured: Structured | None = None
    temperature: bool | None = None
    tools: bool | None = None
    parallel_tools: bool | None = None
    system_role: SystemRole | None = None
    embeddings: bool | None = None
    cost_in_usage: bool | None = None


class ToolsTable(Struct, frozen=True, forbid_unknown_fields=True):
    """What the built-in tools may touch: directories to read, and `host:port` exceptions to the address guard.

    `writable_roots` can be read by all of them and written by `shell` and `python`, whose scripts have `script_ms`,
    and `script_memory_bytes_max` for each of `script_processes_max` processes.
    """

    roots: tuple[str, ...] = ()
    writable_roots: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    script_ms: Positive = 30_000
    script_memory_bytes_max: Positive = 512 * 1024**2
    script_processes_max: Positive = 32


class ToolTable(Struct, frozen=True, forbid_unknown_fields=True):
    """How one tool may be called, by its name; goes before what its author declared, and None or 0 leaves that.

    With `approval` somebody approves each call: `approver` ("" anybody) within `approval_timeout_s` (None: for ever).
    Then the call fails, is rejected (the model is told), or `escalate_to` are asked in turn; it is never approved.
    """

    approval: bool = False
    approver: str = ""
    approval_timeout_s: typing.Annotated[float, msgspec.Meta(gt=0)] | None = None
    on_timeout: Literal["fail", "reject", "escalate"] = "fail"
    escalate_to: tuple[str, ...] = ()
    timeout_ms: Natural = 0
    retries: typing.Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    concurrency: Natural = 0
    side_effects: Literal["none", "idempotent", "at_most_once"] | None = None


class McpTable(Struct, frozen=True, forbid_unknown_fields=True):
    """An MCP server whose tools agents may use: a `command` that is run, or the `url` of one that runs elsewhere.

    `env` and `headers_env` name variables, which are passed on; `tools` limits what is offered, empty offers all.
    """

    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    url: str = ""
    headers_env: dict[str, str] = field(default_factory=dict)
    connect_timeout_s: Seconds = 30.0
    timeout_s: Seconds = 60.0
    output_bytes_max: Positive = 64 * 1024
    tools: tuple[str, ...] = ()


class MemoryTable(Struct, frozen=True, forbid_unknown_fields=True):
    """The shared memory; `uri` names a Milvus server of one's own, "" embeds Milvus Lite.

    `embedder` is "hash" or `provider:model`; its dimension is needed where the model is not a known one.
    """

    name: Name = "shared"
    enabled: bool = True
    uri: str = ""
    token_env: str = "SWARMD_MEMORY_TOKEN"
    log_bytes_max: Positive = 4 * 1024**3
    embedder: str = "hash"
    embedder_dimension: Natural = 0


class ObserverTable(Struct, frozen=True, forbid_unknown_fields=True):
    """The observer of each swarm. `feed` publishes each folded event; `snapshot_commits` 0 takes no snapshots."""

    feed: bool = False
    snapshot_commits: Natural = 10_000
    snapshot_ms: Positive = 60_000


class LimitsTable(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of each swarm. A store is warned about at 80 %; when it is full, new work is refused."""

    live_tasks_max: Positive = 1_000_000
    remembered_max: Positive = 250_000
    dead_max: Positive = 10_000
    losses_max: Positive = 10
    log_bytes_max: Positive = 8 * 1024**3
    intake_bytes_max: Positive = 256 * 1024**2
    blob_bytes_max: Positive = 8 * 1024**3
    catalog_bytes_max: Positive = 4 * 1024**3
    replicas: typing.Annotated[int, msgspec.Meta(ge=1, le=5)] = 1


class BudgetTable(Struct, frozen=True, forbid_unknown_fields=True):
    """What a swarm or a tenant may spend; what is left out has no limit. Each swarm of a file counts by itself."""

    tokens: int | None = None
    cost_usd: float | None = None
    steps: int | None = None
    wall_s: float | None = None
    period: Literal["total", "day"] = "total"

    def limit(self) -> Limit:
        """The same in whole units: millionths of a US dollar, milliseconds."""
        cost = None if self.cost_usd is None else math.floor(self.cost_usd * 1_000_000)
        wall = None if self.wall_s is None else math.floor(self.wall_s * 1000)
        return Limit(self.tokens, cost, self.steps, wall, self.period)

    def each(self) -> Budget:
        """The same for one task, which has no days."""
        limit = self.limit()
        return Budget(limit.tokens, limit.cost_microusd, limit.steps, limit.wall_ms)


class SwarmTable(Struct, frozen=True, forbid_unknown_fields=True):
    """One swarm: `workers` processes of `nodes` worker nodes with `capacity` slots each."""

    workers: Natural = 1
    nodes: Positive = 2
    capacity: Positive = 16
    agents: tuple[str, ...] = ("swarmd.agents",)
    labels: dict[str, str] = field(default_factory=dict)
    orchestrators: typing.Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    drain_ms: Natural = 20_000


class HiveTable(Struct, frozen=True, forbid_unknown_fields=True):
    """A swarm whose members are swarms: `swarms` are its children, `workers` and `agents` are its own."""

    name: Name = "hive"
    swarms: tuple[str, ...] = ()
    workers: Natural = 1
    nodes: Positive = 1
    capacity: Positive = 64
    agents: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    orchestrators: typing.Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    drain_ms: Natural = 20_000
    child_capacity: Positive = 256


class AgentTable(AgentSpec, frozen=True, forbid_unknown_fields=True):
    """A declared LLM agent; `swarms` limits it to some swarms, empty offers it in all."""

    swarms: tuple[str, ...] = ()


class ProgramTable(ProgramSpec, frozen=True, forbid_unknown_fields=True):
    """A program agent, named by its key; `swarms` limits it to some swarms, empty offers it in all."""

    swarms: tuple[str, ...] = ()


class ScheduleTable(ScheduleSpec, frozen=True, forbid_unknown_fields=True):
    """A declared schedule, by its id; `swarm` may be left out where there is one only."""

    swarm: str = ""
    budget: BudgetTable = BudgetTable()


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
    tenant: dict[str, BudgetTable] = field(default_factory=dict)
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
    _check(settings, where)
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


def _check(settings: Settings, where: str) -> None:
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
    if settings.hive is None:
        return
    if settings.hive.name in settings.swarms:
        raise Rejected("bad_config", f"{where}: the hive and a swarm are both called {settings.hive.name!r}")
    for child in settings.hive.swarms:
        if child not in settings.swarms:
            raise Rejected("bad_config", f"{where}: the hive names swarm {child!r}, {_listed_names(settings.swarms)}")


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
