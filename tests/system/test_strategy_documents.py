"""What the pages of the strategies tell people to run is run as it stands, with the files that they show."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swarmd import strategies
from swarmd.sdk import agents_in
from tests.system.pages import shell
from tests.system.ups import RunningUp

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "how-to" / "strategies").glob("*.md"))

#: What must come of each page's command.
PROMISES: dict[str, Any] = {
    "map-reduce": lambda out: out["parts"] == 3 and out["failed"] == {} and "lease" in out["result"],
    "orchestrator-workers": lambda out: (
        "lease" in out["result"] and "\n---\n" in out["result"] and len(out["tasks"]) == 3
    ),
    "quorum": lambda out: out["canonical"] == "spam" and out["won"],
    "consensus": lambda out: (
        (out["answer"], out["by"]) == ({"total": 12}, ["north", "south"]) and set(out) >= {"conflict", "cancelled"}
    ),
    "blackboard": lambda out: (out["ended"], out["rounds"], len(out["notes"])) == ("nothing_new", 3, 3),
    "router": lambda out: out["agent"] == "summarise" and out["result"]["offline"],
    "debate": lambda out: out["answer"].startswith("A lease lasts two seconds. [1]") and not out["agreed"],
}


def marked(page: Path, mark: str) -> list[tuple[str, str]]:
    """(value of the mark, content) of each fenced block below `<!-- mark: value -->` or `<!-- mark -->`."""
    return re.findall(rf"<!-- {mark}(?:: ([^\n]*?))? -->\n```\w*\n(.*?)```", page.read_text(), re.DOTALL)


#: Pages whose commands want an `up` of their own, with these settings, in this data directory.
APART: dict[str, tuple[str, str]] = {"consensus": ("three.toml", "three")}


def files() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        yield from marked(page, "file")


def run_commands(page: Path, folder: Path, environ: dict[str, str], without: Any) -> None:
    for needed, content in marked(page, "run"):
        if needed in (without or {}):
            continue
        for line in content.splitlines():
            done = shell(line.removeprefix("$ "), folder, environ)
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
            assert PROMISES[page.stem](json.loads(done.stdout)), f"{line}: {done.stdout}"


@pytest.mark.slow
def test_the_pages_commands_run_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "swarmd"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m swarmd "$@"\n')
    command.chmod(0o755)
    for name, content in files():
        (tmp_path / name).write_text(content)
    own = [name for page in PAGES if page.stem not in APART for name, _ in marked(page, "file")]
    modules = ["swarmd.agents", "swarmd.strategies", *(Path(name).stem for name in own if name.endswith(".py"))]
    environ = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    hosted = [flag for module in modules for flag in ("--agents", module)]
    with RunningUp(tmp_path / "data", *hosted, cwd=tmp_path, environ=environ) as up:
        for page in PAGES:
            if page.stem not in APART:
                run_commands(page, tmp_path, environ, up.ready.get("without"))
    for page in PAGES:
        if page.stem in APART:
            settings, data = APART[page.stem]
            with RunningUp(tmp_path / data, "--config", settings, cwd=tmp_path, environ=environ) as up:
                run_commands(page, tmp_path, environ, up.ready.get("without"))


def test_each_strategy_has_a_page_with_its_parts() -> None:
    names = {agent.name for agent in agents_in(strategies)}
    assert {page.stem.replace("-", "_") for page in PAGES} - {"README"} == names
    assert set(PROMISES) == {page.stem for page in PAGES} - {"README"}
    for page in PAGES:
        if page.stem == "README":
            continue
        text = page.read_text()
        heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert heads == ["When", "Run it", "Input and output", "Evidence"], page
        assert "```mermaid" in text
        assert marked(page, "run"), page


def test_each_input_shown_is_one_that_is_taken() -> None:
    """Fields in the tables are those of the structs."""
    from swarmd.strategies.agreeing import Consensus
    from swarmd.strategies.boards import Board
    from swarmd.strategies.debating import Debate
    from swarmd.strategies.mapping import MapReduce
    from swarmd.strategies.orchestrating import Job
    from swarmd.strategies.routing import Routing
    from swarmd.strategies.voting import Vote

    kinds: dict[str, Any] = {
        "map-reduce": MapReduce,
        "orchestrator-workers": Job,
        "quorum": Vote,
        "consensus": Consensus,
        "blackboard": Board,
        "router": Routing,
        "debate": Debate,
    }
    for page in PAGES:
        if page.stem in kinds:
            table = page.read_text().partition("## Input and output")[2].partition("## Evidence")[0]
            rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
            listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
            assert listed == set(kinds[page.stem].__struct_fields__), page
