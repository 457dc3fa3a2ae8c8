"""Reads the settings once, at the edge, and turns them into what adapters and roles are built with.

Job: configuration file, environment and secret files become structs. Invariant: a secret is read here and handed on,
never printed, never put into an event. Must not know what runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from swarmd import config
from swarmd.adapters.broker_users import read_credentials
from swarmd.adapters.mcp_session import McpServerSettings
from swarmd.adapters.models import ModelSettings
from swarmd.adapters.nats_connect import NatsSettings, redact_url
from swarmd.adapters.streams import StreamLimits
from swarmd.adapters.tools import ToolSettings
from swarmd.core.errors import Rejected
from swarmd.core.model_limits import Rate
from swarmd.core.model_profile import PROFILES, Profile
from swarmd.core.office import LeaderSettings
from swarmd.core.schedules import check_schedule
from swarmd.core.state import Limits
from swarmd.cron import Cron

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.config import Overrides, Settings

DEFAULT_URL: Final = "nats://127.0.0.1:4222"
#: What `up` writes into its data directory when it is ready, so that `--data DIR` finds its broker.
READY_FILE: Final = "up.json"
FILE_BYTES_MAX: Final = 4 * 1024 * 1024


def read_settings(config_file: str = "", flags: Overrides | None = None) -> Settings:
    """Settings from `config_file` (or the one that SWARMD_CONFIG names), the environment and flags."""
    name = config_file or os.environ.get("SWARMD_CONFIG", "")
    text = _read_text(Path(name), "the configuration") if name else ""
    return config.load(text, os.environ, flags, source=name)


def _read_text(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode("utf-8")
    except OSError as error:
        raise Rejected("bad_config", f"cannot read {what} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Rejected("bad_config", f"{what} {path} is not UTF-8 text") from None


def data_dir(settings: Settings) -> Path:
    """Where `up` keeps its data: as set, else by the XDG rules, so that it does not depend on where one stands."""
    if settings.data.dir:
        return Path(settings.data.dir).expanduser()
    home = os.environ.get("XDG_DATA_HOME", "")
    return (Path(home) if home else Path.home() / ".local" / "share") / "swarmd"


def nats_of(settings: Settings, *, connect_timeout_ms: int = 5_000) -> NatsSettings:
    """How to reach the broker. Raises `Rejected("bad_credentials" | "bad_config")` for secrets that cannot be read."""
    table = settings.nats
    url = table.url or _running_url(settings) or DEFAULT_URL
    nats = NatsSettings(
        url=url,
        user=table.user,
        password=_password(table) if table.user else "",
        credentials_file=table.credentials_file,
        nkey_seed_file=table.nkey_seed_file,
        tls_ca=table.tls_ca,
        tls_cert=table.tls_cert,
        tls_key=table.tls_key,
        tls_hostname=table.tls_hostname,
        tls_first=table.tls_first,
        connect_timeout_ms=connect_timeout_ms,
    )
    if not table.user_file:
        return nats
    if table.user:
        raise Rejected("bad_credentials", "give either a user or a user file")
    kept = read_credentials(Path(table.user_file))
    return msgspec.structs.replace(nats, user=kept.user, password=kept.password, inbox_prefix=kept.inbox_prefix)


def _password(table: config.NatsTable) -> str:
    if table.password_file:
        return _read_text(Path(table.password_file), "the password file").strip()
    return os.environ.get(table.password_env, "") if table.password_env else ""


def _running_url(settings: Settings) -> str:
    """The address that the `up` of this data directory wrote down, while that `up` lives."""
    ready = _running(settings)
    return "" if ready is None else ready.nats


def require_running(settings: Settings) -> None:
    """Whoever names a data directory and no broker means the `up` of that directory, and no other that may run here.

    Raises `Rejected("not_running")` when there is none.
    """
    if settings.data.dir and not settings.nats.url and _running(settings) is None:
        folder = data_dir(settings)
        how = f"start it with `swarmd up --data {folder}`, or name a broker with --nats URL"
        raise Rejected("not_running", f"no `swarmd up` runs in {folder}: {how}")


def _running(settings: Settings) -> _Running | None:
    try:
        ready = msgspec.json.decode((data_dir(settings) / READY_FILE).read_bytes(), type=_Running)
    except (OSError, msgspec.MsgspecError):
        return None
    return ready if _is_alive(ready.pids.get("up", 0)) else None


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # somebody else's
    except OSError:
        return False
    return True


def running_web(settings: Settings) -> tuple[str, Path]:
    """The address of the page that the `up` of this data directory serves, and that directory.

    Raises `Rejected("not_running")` when there is none.
    """
    folder = data_dir(settings)
    ready = _running(settings)
    if ready is None or not ready.web:
        why = "serves no page" if ready is not None else "is not running"
        raise Rejected("not_running", f"the `up` of {folder} {why}: name its directory with --data DIR")
    return ready.web, folder


class _Running(Struct):
    """What is needed of the ready file."""

    nats: str
    pids: dict[str, int]
    web: str = ""


def admin_of(settings: Settings) -> NatsSettings:
    """As `nats_of`, but as admin of a broker that `up` runs from this data directory, where nobody else is named.

    An admin may read snapshots and measure, which a client may not; who can read its file may be it.
    """
    table = settings.nats
    named = table.user or table.user_file or table.credentials_file or table.nkey_seed_file
    admin = data_dir(settings) / "users" / "admin.json"
    running = _running_url(settings)
    if not named and running and table.url in ("", running) and os.access(admin, os.R_OK):
        settings = msgspec.structs.replace(settings, nats=msgspec.structs.replace(table, user_file=str(admin)))
    return nats_of(settings)


def secrets_of(settings: Settings, nats: NatsSettings | None = None) -> list[str]:
    """Every secret that this process can know, for the logs to hide."""
    found = [nats.password, nats.token] if nats is not None else []
    for variable in (settings.nats.password_env, settings.model.api_key_env, settings.memory.token_env):
        found.append(os.environ.get(variable, "") if variable else "")
    for program in settings.program.values():  # what a program is trusted with, it may print
        found += [os.environ.get(variable, "") for variable in program.env]
    if settings.model.api_key_file:
        try:
            found.append(Path(settings.model.api_key_file).read_text().strip())
        except (OSError, UnicodeDecodeError):
            pass  # whoever needs the key says that it cannot be read
    for server in settings.mcp.values():
        found += [os.environ.get(variable, "") for variable in (*server.env, *server.headers_env.values())]
    return [secret for secret in found if secret]


def shown(settings: Settings) -> dict[str, Any]:
    """The settings as plain data for people: addresses lose user and password, secrets were never in it."""
    tree: dict[str, Any] = msgspec.to_builtins(settings)
    for section, key in (("nats", "url"), ("model", "base_url"), ("memory", "uri")):
        tree[section][key] = redact_url(tree[section][key])
    for provider in tree["provider"].values():
        provider["base_url"] = redact_url(provider["base_url"])
    for server in tree["mcp"].values():
        server["url"] = redact_url(server["url"])
    tree["swarm"] = {name: msgspec.to_builtins(table) for name, table in settings.swarms.items()}
    return tree


def leader_settings(settings: Settings, swarm: str) -> LeaderSettings:
    """How the leader of `swarm` behaves. Raises `Rejected` for a declared schedule that cannot be one."""
    limits = settings.limits
    bounds = Limits(limits.live_tasks_max, limits.remembered_max, limits.dead_max, limits.losses_max)
    schedules, cron = settings.schedules(swarm), Cron()
    for name, schedule in schedules.items():
        try:
            check_schedule(schedule, cron, 0)  # at whatever time: one that is over is no mistake
        except Rejected as error:
            raise Rejected(error.code, f"schedule {name}: {error.message}") from None
    return LeaderSettings(
        bounds,
        lease_ms=settings.health.lease_ms,
        gone_ms=settings.health.gone_ms,
        phi_lost=settings.health.phi,
        budgets=settings.budgets,
        schedules=schedules,
        placement=settings.placement.settings(),
        tenants={name: table.policy() for name, table in settings.tenant.items()},
        keys=dict(settings.key),
        workers_idle_ms=settings.crew(swarm).workers_idle_ms,
    )


def stream_limits(settings: Settings) -> StreamLimits:
    limits = settings.limits
    return StreamLimits(limits.log_bytes_max, limits.intake_bytes_max, limits.blob_bytes_max, limits.replicas)


def model_settings(settings: Settings) -> Callable[[str], ModelSettings]:
    """From a model's name to how it is reached: by its provider's table, the `[model]` section, and the profile.

    Endpoint and key of `[model]` belong to the provider of the default model (openai beside the offline one): a key is
    never sent to another provider's server.
    """
    table = settings.model
    default = table.name.partition(":")[0]
    owner = "openai" if default == "offline" else default

    def named(name: str) -> ModelSettings:
        provider = name.partition(":")[0]
        own = settings.provider.get(provider, config.ProviderTable())
        shared = table if provider == owner else config.ModelTable(api_key_env="")
        # Without being set, this variable is OpenAI's: no other provider is asked with it.
        shared_env = "" if shared.api_key_env == config.ModelTable().api_key_env else shared.api_key_env
        own_key = own.api_key_env or own.api_key_file
        return ModelSettings(
            name,
            own.base_url or shared.base_url,
            own.api_key_env if own_key else shared_env,
            own.api_key_file if own_key else shared.api_key_file,
            own.timeout_ms or table.timeout_ms,
            own.stall_ms or table.stall_ms,
            profile_of(settings, provider),
            Rate(own.requests_per_minute, own.tokens_per_minute),
            own.concurrency_max,
            settings.price,
        )

    return named


def profile_of(settings: Settings, provider: str) -> Profile | None:
    """What a provider can do: its profile with the changes of its table; None for one that is not known."""
    own, known = settings.provider.get(provider), PROFILES.get(provider)
    if own is None:
        return known
    fields = {field.name for field in msgspec.structs.fields(Profile)} - {"base_url", "api_key_env", "key_required"}
    changes = {name: value for name in fields if (value := getattr(own, name)) is not None}
    return msgspec.structs.replace(known or Profile(), **changes)


def tool_settings(settings: Settings) -> ToolSettings:
    table = settings.tools
    return ToolSettings(
        table.roots,
        table.allow_hosts,
        table.writable_roots,
        table.script_ms,
        table.script_memory_bytes_max,
        table.script_processes_max,
    )


def mcp_settings(settings: Settings) -> dict[str, McpServerSettings]:
    """The configured MCP servers, with the secrets that their tables name.

    Raises `Rejected("bad_config")` for a header whose variable is not set.
    """
    found = {}
    for name, table in settings.mcp.items():
        for header, variable in table.headers_env.items():
            if not os.environ.get(variable):
                raise Rejected("bad_config", f"mcp.{name}: the variable {variable} for {header} is not set")
        found[name] = McpServerSettings(
            name=name,
            command=table.command,
            env=table.env,
            url=table.url,
            headers={header: os.environ[variable] for header, variable in table.headers_env.items()},
            environ=dict(os.environ) if table.command else {},
            connect_timeout_s=table.connect_timeout_s,
            timeout_s=table.timeout_s,
            output_bytes_max=table.output_bytes_max,
            tools=table.tools,
        )
    return found


def replies_prefixed(settings: Settings) -> bool:
    """Whether outcomes take the way through accounts: with the users that `up` makes, unless set otherwise."""
    chosen = settings.nats.replies_prefixed
    return bool(settings.nats.user_file) if chosen is None else chosen
