"""What a worker finds: tools of modules beside the built-in ones, and each as its table in the settings wants it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from swarmd import config
from swarmd.adapters.models import ModelSettings
from swarmd.adapters.tools import BUILT_IN, ToolSettings
from swarmd.core.agent import AgentSpec
from swarmd.core.errors import Rejected
from swarmd.edges.loading import OpenTools, load_agents
from swarmd.edges.open_models import OpenModels
from swarmd.roles.llm_agent import CONTEXT_TOOLS
from swarmd.roles.tool_calls import run_tool

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "tools.md"
MODULE = "tests.contract.loading_tools"


def opened(toml: str = "") -> OpenTools:
    return OpenTools(ToolSettings(), tables=config.load(toml, {}).tool)


def load(tools: OpenTools, *declared: AgentSpec, modules: tuple[str, ...] = (MODULE,)) -> list[str]:
    return list(load_agents(modules, declared, OpenModels(ModelSettings), tools))


async def test_a_declared_agent_names_tools_of_modules() -> None:
    tools = opened()
    spec = AgentSpec("clerk", "Order things.", tools=["shout", "order", "calculator", "recall"])
    assert load(tools, spec) == ["clerk"]
    assert (await run_tool(tools("shout"), {"text": "a"})).text == "A"
    assert (await run_tool(tools("order"), {"item": "pen"}, "t/tool:order#1")).text == "pen t/tool:order#1"
    assert (await run_tool(tools("current_time"), {})).text.endswith("UTC)")


async def test_a_table_goes_before_the_author() -> None:
    tools = opened(
        """
        [tool.order]
        approval = true
        approver = "ops"
        approval_timeout_s = 60
        on_timeout = "reject"
        timeout_ms = 1234
        concurrency = 2
        [tool.shout]
        retries = 3
        side_effects = "idempotent"
        """
    )
    load(tools)
    order, shout = tools("order"), tools("shout")
    policy = order.policy
    assert (policy.approval, policy.approver, policy.timeout_s, policy.on_timeout) == (True, "ops", 60, "reject")
    assert (order.timeout_ms, policy.concurrency, order.side_effects) == (1234, 2, "at_most_once")
    assert (shout.policy.retries, shout.side_effects, shout.policy.approval) == (3, "idempotent", False)
    assert shout.timeout_ms == 30_000
    assert (await run_tool(order, {"item": "pen"}, "k")).text == "pen k"


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('[tool.shell]\napprover = "ops"', "but not approval = true"),
        (
            '[tool.shell]\napproval = true\non_timeout = "escalate"\napproval_timeout_s = 1',
            "escalate_to belong together",
        ),
        ('[tool.shell]\napproval = true\non_timeout = "reject"', "never happens"),
        ('[tool.shell]\nretries = 1\nside_effects = "at_most_once"', "at_most_once"),
        ("[tool.shell]\naproval = true", "did you mean 'approval'"),
        ('[tool.shell]\napproval = true\non_timeout = "approve"', "approve"),
        ("[tool.shell]\napproval_timeout_s = 0", "tool.shell.approval_timeout_s|> 0"),
    ],
)
def test_tables_that_contradict_themselves(toml: str, words: str) -> None:
    with pytest.raises(Rejected, match=words):
        config.load(toml, {})


def test_a_table_that_is_all_but_named_like_a_built_in_tool() -> None:
    with pytest.raises(Rejected, match=r"\[tool.shel\] is for no tool: did you mean \[tool.shell\]"):
        load(opened("[tool.shel]\napproval = true"))
    tools = opened("[tool.elsewhere]\napproval = true\n[tool.shout]\n")
    load(tools)
    assert tools.unmatched() == ["elsewhere"]


def test_retries_of_what_may_be_called_once() -> None:
    tools = opened("[tool.order]\nretries = 1")
    load(tools)
    with pytest.raises(Rejected, match=r"tool\.order\.retries: the tool is at_most_once"):
        tools("order")


def test_an_unknown_tool_names_the_nearest() -> None:
    with pytest.raises(Rejected, match="did you mean 'shout'") as caught:
        load(opened(), AgentSpec("clerk", "Order.", tools=["shuot"]))
    assert caught.value.code == "unknown_tool"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1", "has no agents"),
        ("@tool\ndef f(x): 'Doc.'", "parameter 'x' has no type hint"),
        ("@tool\ndef shell(x: int): 'Doc.'", "rename it"),
        ("@tool\ndef recall(x: int): 'Doc.'", "rename it"),
        ("@tool\ndef shout(x: int): 'Doc.'", "rename one"),
        ("@tool\ndef f(x: int): 'Doc.'\ng = f\n@tool(name='f')\ndef h(): 'Doc.'", "two tools 'f'"),
    ],
)
def test_modules_that_cannot_be_used(source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger.py").write_text(f"from swarmd import tool\n{source}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    with pytest.raises(Rejected, match=words):
        load(opened(), modules=(MODULE, "stranger"))
    sys.modules.pop("stranger", None)


async def test_the_example_of_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = dict(re.findall(r"```(python|toml)\n(.*?)```", HOW_TO.read_text(), re.DOTALL))
    (tmp_path / "shop.py").write_text(blocks["python"])
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = config.load(blocks["toml"], {})
    tools = OpenTools(ToolSettings(), settings.tool)
    models = OpenModels(ModelSettings)
    found = load_agents(settings.swarms["main"].agents, settings.declared("main"), models, tools)
    assert "clerk" in found
    assert (await run_tool(tools("stock"), {"item": "pen"})).text == "3"
    assert (await run_tool(tools("stock"), {"item": "ink"})).error == "unknown_item: there is no 'ink'; there are pen"
    assert tools("order").policy.approval
    sys.modules.pop("shop")


def test_the_documents_list_what_is_built_in() -> None:
    rows = " ".join(re.findall(r"^\| (`.*?) \|", HOW_TO.read_text().partition("## Built in")[2], re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", rows)) == {*BUILT_IN, *CONTEXT_TOOLS}
