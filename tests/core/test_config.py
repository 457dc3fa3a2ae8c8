"""The configuration: precedence, unknown keys, wrong values, the sample file, the environment."""

from __future__ import annotations

import contextlib
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd import config
from swarmd.core.errors import Rejected
from swarmd.core.prices import Price
from swarmd.edges.settings import leader_settings

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "ops" / "swarm.toml"


def refusal(text: str, environ: dict[str, str] | None = None) -> Rejected:
    with pytest.raises(Rejected) as caught:
        config.load(text, environ or {})
    return caught.value


def test_without_anything_there_is_one_swarm_with_the_built_in_agents() -> None:
    settings = config.load("", {})
    assert list(settings.swarms) == ["main"]
    assert settings.swarms["main"].agents == ("swarmd.agents",)
    assert settings.hive is None


def test_flags_go_before_variables_before_the_file_before_defaults() -> None:
    file = '[log]\nlevel = "warning"\nformat = "json"\n[metrics]\nport = 1\nhost = "::1"'
    environ = {"SWARMD_LOG_LEVEL": "error", "SWARMD_METRICS_PORT": "2", "PATH": "/bin"}
    settings = config.load(file, environ, {"metrics": {"port": 3}})
    assert (settings.metrics.port, settings.log.level, settings.log.format) == (3, "error", "json")
    assert (settings.metrics.host, settings.broker.port) == ("::1", 4222)


def test_the_file_may_be_json_as_up_hands_it_to_its_children() -> None:
    settings = config.load('[swarm.a]\nworkers = 3\n[[agent]]\nname = "x"\ninstructions = "y"', {})
    again = config.load(msgspec.json.encode(settings).decode(), {})
    assert again == settings


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ('[nats]\nurll = ""', "nats.urll", "'url'"),
        ("[swarm.a]\nworker = 1", "swarm.a.worker", "'workers'"),
        ("[hive]\norchestrator = 1", "hive.orchestrator", "'orchestrators'"),
        ('[[agent]]\nname = "a"\ninstrctions = "b"', "agent.instrctions", "'instructions'"),
        ("[mettrics]\nport = 1", "mettrics", "'metrics'"),
    ],
)
def test_an_unknown_key_fails_with_the_nearest_name(text: str, key: str, meant: str) -> None:
    error = refusal(text)
    assert error.code == "unknown_setting"
    assert key in error.message
    assert f"did you mean {meant}" in error.message


def test_a_key_like_no_other_lists_those_there_are() -> None:
    assert "there are format, level" in refusal("[log]\nzzz = 1").message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[broker]\nport = 70000", "broker.port"),
        ("[broker]\nport = true", "broker.port"),
        ('[log]\nlevel = "loud"', "log.level"),
        ("[swarm.a]\norchestrators = 3", "orchestrators"),
        ("[limits]\ndead_max = 0", "limits.dead_max"),
        ('[[agent]]\nname = "a"', "instructions"),
        ('[hive]\nswarms = ["b"]', "'b'"),
        ('[hive]\nname = "main"', "both called 'main'"),
        ('[hive]\nswarms = ["hive"]', "swarm 'hive' would contain itself: hive > hive"),
        ('[swarm.a]\nswarms = ["b"]\n[swarm.b]\nswarms = ["c"]\n[swarm.c]\nswarms = ["a"]', "a > b > c > a"),
        ('[swarm.a]\nswarms = ["x"]', "a names swarm 'x'"),
        ('[hive]\nswarms = ["main", "main"]\n[swarm.main]', "hive names swarm 'main' twice"),
        ("[swarm.a]\ncapacity = 100001", "at most 100000 attempts"),
        ("[provider.mine]\nconcurrency_max = 3", "provider 'mine' needs a base_url"),
        ('[price."gpt"]\ninput = 1\noutput = 1', "must be called by its model"),
        ('[price."a:b"]\ninput = -1\noutput = 1', "price"),
        ('[[agent]]\nname="a"\ninstructions=""\n[[agent]]\nname="a"\ninstructions=""', "two agents"),
        ('[[agent]]\nname="a"\ninstructions=""\nswarms=["x"]', "'x'"),
        ("[health]\nlease_ms = 1000\ngone_ms = 1500", "would never count"),
        ("nats = 1", "nats"),
        ("x = ", "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_a_wrong_value_names_its_place(text: str, words: str) -> None:
    error = refusal(text)
    assert error.code in ("bad_config", "unknown_setting")
    assert words in error.message


def test_names_must_fit_into_subjects() -> None:
    assert refusal('[swarm."a b"]').code == "bad_name"
    assert refusal('[[agent]]\nname = "a.b"\ninstructions = ""').code == "bad_name"


def test_a_variable_of_no_setting_is_an_error_with_the_nearest_name() -> None:
    error = refusal("", {"SWARMD_NATS_URLL": "x"})
    assert error.code == "unknown_setting"
    assert "SWARMD_NATS_URL?" in error.message
    assert refusal("", {"SWARMD_BROKER_PORT": "many"}).code == "bad_config"


def test_variables_with_secrets_are_no_settings() -> None:
    environ = {"SWARMD_NATS_PASSWORD": "s3cret", "SWARMD_MODEL_SECRET": "t0ken", "SWARMD_DEMAND_TOOLS": "1"}
    settings = config.load('[model]\napi_key_env = "SWARMD_MODEL_SECRET"', environ)
    assert b"s3cret" not in msgspec.json.encode(settings)
    assert b"t0ken" not in msgspec.json.encode(settings)


def test_lists_in_variables_are_separated_by_commas() -> None:
    settings = config.load("", {"SWARMD_TOOLS_ROOTS": "/srv/docs, /srv/more", "SWARMD_OBSERVER_FEED": "true"})
    assert settings.tools.roots == ("/srv/docs", "/srv/more")
    assert settings.observer.feed is True


def test_declared_agents_belong_to_some_swarms_or_to_all() -> None:
    settings = config.load(
        '[swarm.a]\n[swarm.b]\n[[agent]]\nname="x"\ninstructions=""\nswarms=["a"]\n[[agent]]\nname="y"\ninstructions=""',
        {},
    )
    assert [agent.name for agent in settings.declared("a")] == ["x", "y"]
    assert [agent.name for agent in settings.declared("b")] == ["y"]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[mcp.a]", "either a command or a url"),
        ('[mcp.a]\ncommand=["x"]\nurl="http://x"', "either a command or a url"),
        ('[mcp.a__b]\ncommand=["x"]', "must be 1 to 24 of"),
        ('[mcp.A]\ncommand=["x"]', "must be 1 to 24 of"),
        ('[mcp.a]\nurl="ws://x"', "must begin with http"),
        ('[mcp.a]\nurl="http://x"\nenv=["K"]', "env is for a command"),
        ('[mcp.a]\ncommand=["x"]\nheaders_env={A="B"}', "headers_env is for a url"),
        ('[mcp.a]\ncommand=["x"]\ntimeout_s=0', "mcp"),
        ('[mcp.a]\ncomand=["x"]', "did you mean 'command'"),
    ],
)
def test_an_mcp_server_is_described_once_and_well(text: str, hint: str) -> None:
    with pytest.raises(Rejected) as refused:
        config.load(text, {})
    assert hint in refused.value.message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('[schedule.a]\nagent="x"\nswarm="other"', "there are main"),
        ('[swarm.a]\n[swarm.b]\n[schedule.s]\nagent="x"', "must name its swarm"),
        ('[schedule."a b"]\nagent="x"', "must be 1 to 64 of"),
        ('[schedule.a]\nagent="x"\nuntil=2026-01-01T00:00:00', "timezone"),
        ('[schedule.a]\nagent="x"\nevery=5', "did you mean 'every_ms'"),
        ('[schedule.a]\nagent="x"\nbudget={tokens=0}', "nothing could ever be spent"),
        ('[schedule.a]\nagent="x"\nbudget={period="day"}', "each task has a budget of its own"),
    ],
)
def test_a_schedule_belongs_to_one_swarm(text: str, hint: str) -> None:
    assert hint in refusal(text).message


def test_declared_schedules_stand_in_the_log_as_they_were_declared() -> None:
    text = '[schedule.a]\nagent="x"\nevery_ms=500\ninput={k=1}\nuntil=2027-01-01T01:00:00+01:00\nbudget={tokens=5}'
    settings = config.load(text, {})
    again = config.load(msgspec.json.encode(settings).decode(), {})
    (schedule,) = again.schedules("main").values()
    assert (schedule.id, schedule.agent, bytes(schedule.input), schedule.until_ms) == (
        "a",
        "x",
        b'{"k":1}',
        1798761600000,
    )
    assert (schedule.declared, schedule.budget.tokens) == (True, 5)
    assert leader_settings(again, "main").schedules == {"a": schedule}


def test_a_declared_schedule_that_never_fires_is_refused_by_name() -> None:
    settings = config.load('[schedule.a]\nagent="x"\ncron="0 0 31 2 *"', {})
    with pytest.raises(Rejected, match=r"schedule a: cron .* never fires"):
        leader_settings(settings, "main")
    over = config.load('[schedule.a]\nagent="x"\nevery_ms=500\nuntil=2020-01-01T00:00:00Z', {})
    assert leader_settings(over, "main").schedules


# --- the sample ------------------------------------------------------------------------------------


def _fields(table: Any) -> set[str]:
    return {known.name for known in msgspec.structs.fields(table)}


def test_the_sample_lists_every_setting_with_its_default() -> None:
    text = SAMPLE.read_text()
    tree = tomllib.loads(text)
    settings = config.load(text, {}, source=str(SAMPLE))
    assert set(tree) == _fields(config.Settings)
    commented = {"nats": set(re.findall(r"^# (replies_prefixed) = ", text, re.MULTILINE))}
    commented["budget"] = set(re.findall(r"^# (tokens|cost_usd|steps|wall_s) = ", text, re.MULTILINE))
    for section, table in config.SECTIONS.items():
        assert set(tree[section]) | commented.get(section, set()) == _fields(table), section
        assert getattr(settings, section) == table(), section
    assert set(tree["tenant"]["acme"]) == _fields(config.TenantTable)
    assert set(tree["key"]["crm-*"]) == _fields(config.KeyTable)
    assert set(tree["schedule"]["digest"]) | {"every_ms"} == _fields(config.ScheduleTable)
    assert set(tree["swarm"]["main"]) == _fields(config.SwarmTable)
    assert settings.swarm == {"main": config.SwarmTable()}
    assert set(tree["hive"]) == _fields(config.HiveTable)
    assert set(tree["agent"][0]) == _fields(config.AgentTable)
    assert set(tree["provider"]["local"]) == _fields(config.ProviderTable)
    assert set(tree["price"]["local:my-model"]) == _fields(Price)
    assert set(tree["tool"]["shell"]) == _fields(config.ToolTable)
    assert set(tree["program"]["shouter"]) == _fields(config.ProgramTable)
    assert set(tree["mcp"]["clock"]) == _fields(config.McpTable)
    assert settings.mcp["clock"] == config.McpTable(command=("mcp-server-time",))


@given(st.text(max_size=200))
def test_whatever_the_file_says_it_is_settings_or_a_refusal(text: str) -> None:
    with contextlib.suppress(Rejected):
        assert config.load(text, {}).swarms
