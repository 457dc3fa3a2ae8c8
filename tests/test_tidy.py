"""The house stays tidy: nothing unimported, nothing left half done, nothing grown out of proportion."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "swarmd"
TOP = {"swarmd", "schemas", "ops", "tests", "docs"} | {
    "pyproject.toml",
    "Dockerfile",
    "README.md",
    "Makefile",
    "LICENSE",
    "CHANGELOG.md",
}

FILE_LINES_MAX = 600
"""The feel is 300; above it stays only what has one subject, such as the fold's table of transitions."""
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 7
"""Six and `self`."""
VAGUE = re.compile(r"(Manager|Handler|Helper|Util|Utils|Mock)$")
# Built from pieces, so that this file does not find itself.
UNFINISHED = re.compile("|".join(("FIX" + "ME", "TO" + "DO", "XX" + "X", "HA" + "CK")))


def sources(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*.py") if "__pycache__" not in file.parts)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("needs a git checkout")
    return done.stdout.splitlines()


def test_each_module_opens_with_its_job() -> None:
    silent = [
        str(file.relative_to(ROOT))
        for file in [*sources(PACKAGE), *sources(ROOT / "tests")]
        if file.stat().st_size and not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert silent == []


def test_nothing_is_left_unfinished() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in [*sources(PACKAGE), *sources(ROOT / "tests")]
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert found == []


def test_no_file_has_grown_out_of_proportion() -> None:
    long = {
        str(file.relative_to(ROOT)): lines
        for file in sources(PACKAGE)
        if (lines := len(file.read_text().splitlines())) > FILE_LINES_MAX
    }
    assert long == {}


def test_no_function_has_grown_out_of_proportion() -> None:
    found = []
    for file in sources(PACKAGE):
        for function in functions(ast.parse(file.read_text())):
            where = f"{file.relative_to(ROOT)}:{function.lineno} {function.name}"
            lines = (function.end_lineno or 0) - function.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                found.append(f"{where}: {lines} lines")
            arguments = function.args
            count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
            if count > PARAMETERS_MAX:
                found.append(f"{where}: {count} parameters")
    assert found == []


def test_names_say_what_a_thing_is() -> None:
    vague = [
        f"{file.relative_to(ROOT)}: {node.name}"
        for file in sources(PACKAGE)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and VAGUE.search(node.name)
    ]
    assert vague == []


def test_every_module_is_used() -> None:
    """By another module, a test, or the command's entry point."""
    used = {"swarmd", "swarmd.__main__"}
    for file in [*sources(PACKAGE), *sources(ROOT / "tests")]:
        me = file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("swarmd."):
                names = [node.value.partition(":")[0]]  # loaded by name, such as `import_module("swarmd.x")`
            used.update(name for name in names if name != me)
    modules = {
        file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for file in sources(PACKAGE)
        if file.name != "__init__.py"
    }
    assert modules - used == set()


def test_broad_excepts_say_why() -> None:
    """Catching everything is for the places that report and end; each carries its reason there."""
    found = []
    for file in sources(PACKAGE):
        lines = file.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in _BROAD)
                if broad and not _passes_on(node) and "#" not in "".join(lines[node.lineno - 1 : node.lineno + 1]):
                    found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert found == []


_BROAD = ("Exception", "BaseException")


def _passes_on(caught: ast.ExceptHandler) -> bool:
    """Whether the failure is raised again or given to whoever waits for the outcome."""
    return any(
        (isinstance(node, ast.Raise) and node.exc is None)
        or (isinstance(node, ast.Attribute) and node.attr == "set_exception")
        for node in ast.walk(caught)
    )


def test_the_top_level_holds_what_it_should() -> None:
    top = {name.split("/")[0] for name in tracked()}
    assert {name for name in top if not name.startswith(".")} <= TOP


def test_no_host_of_a_registry_is_named() -> None:
    found = [
        name
        for name in tracked()
        if name.startswith("ops/lock/") and re.search(r"https?://|--(extra-)?index-url|--find-links", _text(name))
        if not name.endswith(".sh")
    ]
    assert found == []


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8", errors="replace")


def test_each_decision_has_a_status() -> None:
    heads = ("## Status", "## Context", "## Decision", "## Consequences")
    wrong = [
        f"{file.name}: no {head}"
        for file in sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
        for head in heads
        if head not in file.read_text()
    ]
    assert wrong == []


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for name in tracked():
        if not name.endswith(".md"):
            continue
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", _text(name)):
            if (
                "://" not in target
                and not target.startswith("mailto:")
                and not (ROOT / name).parent.joinpath(target).exists()
            ):
                broken.append(f"{name}: {target}")
    assert broken == []
