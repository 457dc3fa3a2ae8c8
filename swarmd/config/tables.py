"""The tables of `swarm.toml`, one struct each: what may be said in them, and what holds when nothing is said."""

from __future__ import annotations

import math
import typing
from typing import Literal

import msgspec
from msgspec import Struct, field

from swarmd.core.agent import AgentSpec
from swarmd.core.events import Budget, Limit
from swarmd.core.ids import NAME_PATTERN
from swarmd.core.keys import KeyPolicy
from swarmd.core.model_profile import Structured, SystemRole, TokenParameter
from swarmd.core.placement import TenantPolicy
from swarmd.core.policies import PlacementSettings
from swarmd.core.program import ProgramSpec
from swarmd.core.schedule_spec import ScheduleSpec

Port = typing.Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = typing.Annotated[int, msgspec.Meta(ge=1)]
Seconds = typing.Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Natural = typing.Annotated[int, msgspec.Meta(ge=0)]
Name = typing.Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]


def worker_range(workers: int | str) -> tuple[int, int]:
    """The fewest and the most worker processes that "MIN..MAX" or a number allows. Raises `ValueError` for others."""
    if isinstance(workers, int):
        return workers, workers
    fewest, separator, most = workers.partition("..")
    bounds = int(fewest), int(most) if separator else int(fewest)
    if not 0 <= bounds[0] <= bounds[1]:
        raise ValueError(workers)
    return bounds


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
    retries: Natural = 8
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

    `embedder` is "hash", "hash:DIMENSION", "model:DIRECTORY" or `provider:model`; the dimension is needed where such a
    model is not a known one. What it may be asked in a minute is counted by each memory node for itself.
    """

    name: Name = "shared"
    enabled: bool = True
    uri: str = ""
    token_env: str = "SWARMD_MEMORY_TOKEN"
    log_bytes_max: Positive = 4 * 1024**3
    embedder: str = "hash"
    embedder_dimension: Natural = 0
    embedder_requests_per_minute: Natural = 0
    embedder_tokens_per_minute: Natural = 0
    embedder_cache_bytes: Natural = 64 * 1024**2


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
    losses_max: Positive = 5
    log_bytes_max: Positive = 8 * 1024**3
    intake_bytes_max: Positive = 256 * 1024**2
    blob_bytes_max: Positive = 8 * 1024**3
    catalog_bytes_max: Positive = 4 * 1024**3
    replicas: typing.Annotated[int, msgspec.Meta(ge=1, le=5)] = 1


class HealthTable(Struct, frozen=True, forbid_unknown_fields=True):
    """When the leader of each swarm gives a process of members up. Heartbeats come each 250 ms."""

    lease_ms: typing.Annotated[int, msgspec.Meta(ge=1_000, le=600_000)] = 2_000
    gone_ms: typing.Annotated[int, msgspec.Meta(ge=500, le=600_000)] = 700
    phi: typing.Annotated[float, msgspec.Meta(ge=1, le=100)] = 8.0


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


class TenantTable(BudgetTable, frozen=True, forbid_unknown_fields=True):
    """What a tenant may spend, and its share: slots by `weight` where tenants compete, at most `slots_max` of them.

    With `live_max` live tasks its next submissions are refused (`tenant_full`). 0 is no bound.
    """

    weight: typing.Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 1.0
    slots_max: Natural = 0
    live_max: Natural = 0

    def policy(self) -> TenantPolicy:
        """Its share and bounds."""
        return TenantPolicy(self.weight, self.slots_max, self.live_max)


class KeyTable(KeyPolicy, frozen=True, forbid_unknown_fields=True):
    """A concurrency key, or with a name that ends in `*` all that begin so."""


class PlacementTable(Struct, frozen=True, forbid_unknown_fields=True):
    """How leaders place tasks. A level of priority is worth `ageing_ms` of waiting.

    Attempts of idempotent agents that take longer than `hedge_quantile` of them get a second one beside them, as long
    as those are at most `hedge_share` of all (0: never). With `affinity` tasks go to members that did their like.
    """

    policy: Literal["adaptive", "pull"] = "adaptive"
    ageing_ms: Natural = 10_000
    hedge_share: typing.Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    hedge_quantile: typing.Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.95
    affinity: bool = False

    def settings(self) -> PlacementSettings:
        """The same for a leader."""
        return PlacementSettings(self.policy, self.ageing_ms, self.hedge_share, self.hedge_quantile, self.affinity)


class SwarmTable(Struct, frozen=True, forbid_unknown_fields=True):
    """One swarm: `workers` processes of `nodes` worker nodes with `capacity` slots each; `swarms` are members too.

    `workers` may be a range, "MIN..MAX": then as many run as its leader desires, and one that has not been needed for
    `workers_idle_ms` is drained.
    """

    workers: Natural | str = 1
    workers_idle_ms: Natural = 60_000
    nodes: Positive = 2
    capacity: Positive = 16
    agents: tuple[str, ...] = ("swarmd.agents",)
    labels: dict[str, str] = field(default_factory=dict)
    orchestrators: typing.Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    drain_ms: Natural = 20_000
    swarms: tuple[str, ...] = ()


class HiveTable(Struct, frozen=True, forbid_unknown_fields=True):
    """A swarm whose members are swarms: `swarms` are its children, `workers` and `agents` are its own."""

    name: Name = "hive"
    swarms: tuple[str, ...] = ()
    workers: Natural | str = 1
    workers_idle_ms: Natural = 60_000
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
