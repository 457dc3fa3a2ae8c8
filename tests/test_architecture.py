"""Imports point one way, heavy libraries stay in their rooms, and importing swarmd does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "swarmd"

# Modules on the top level are leaves: what several of the layers above them use, such as computation on text and data,
# batching of calls, keeping a child process alive.
LEAVES = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", "__main__", "ports", "config", "sdk", "agents"}

# What each layer may import of swarmd.
ALLOWED: dict[str, set[str]] = {
    "core": {"core"},
    "ports": {"core"},
    "config": {"core", "config"},
    "leaf": {"core", "ports", "leaf"},
    "adapters": {"core", "ports", "config", "leaf", "adapters"},
    "sdk": {"core", "ports", "config", "leaf"},
    "agents": {"core", "ports", "leaf", "sdk", "roles", "agents"},
    "demo_agents": {"core", "ports", "leaf", "sdk", "roles", "demo_agents"},
    "strategies": {"core", "ports", "leaf", "sdk", "roles", "strategies"},
    "roles": {"core", "ports", "config", "leaf", "sdk", "roles"},
    "edges": {"core", "ports", "config", "leaf", "adapters", "roles", "sdk", "agents", "demo_agents", "edges"},
    "__main__": {"edges"},
    "__init__": {"core", "ports", "config", "leaf", "sdk"},
}

# One outside system may take several files, which may know each other; no adapter knows another system's.
SYSTEMS = (
    {"nats_bus", "jetstream", "streams", "nats_blobs", "nats_lease", "nats_rates", "snapshots"},
    {"models", "extractive_model", "noop_model", "openai_model", "openai_client", "openai_embedder"}
    | {"chat_request", "chat_format", "chat_stream", "model_gate"},
    {"tools", "file_tools", "web_fetch", "html_text", "calculator", "sandbox"},
    {"mcp_tools", "mcp_session", "mcp_stdio", "mcp_http", "mcp_sieve", "mcp_format"},
    {"milvus_store", "milvus_server"},
    {"bert_embedder", "bert_files"},
    {"telemetry", "probe"},
)

# A library is known to the adapters that are named for it; everyone may use what the base is made of.
LIBRARIES = {
    "nats": {"adapters"},
    "nkeys": {"adapters"},
    "openai": {"adapters"},
    "pymilvus": {"adapters"},
    "numpy": {"adapters", "edges"},
    "grpc": {"adapters"},
    "aiohttp": {"adapters", "edges"},
    "yarl": {"adapters"},
    "milvus_lite": {"adapters"},
    "prometheus_client": {"adapters"},
    "uvloop": {"edges"},
    "rich": {"edges"},
    "snowballstemmer": {"leaf"},
    "cronsim": {"leaf"},
    "mcp": {"adapters", "edges"},
    "mcp_types": {"adapters", "edges"},
    "anyio": {"adapters"},
    "httpx2": {"adapters"},
    "pydantic": {"adapters"},
    "uvicorn": {"edges"},
    "jsonschema": {"leaf", "adapters"},
    "referencing": {"leaf", "adapters"},
    "msgspec": set(ALLOWED),
}
HEAVY = (
    "openai",
    "mcp",
    "mcp_types",
    "anyio",
    "httpx2",
    "pydantic",
    "jsonschema",
    "pymilvus",
    "grpc",
    "milvus_lite",
    "nkeys",
    "prometheus_client",
    "rich",
    "numpy",
    "pandas",
    "aiohttp",
)
IMPURE = {
    "asyncio",
    "time",
    "random",
    "secrets",
    "os",
    "socket",
    "subprocess",
    "threading",
    "logging",
    "pathlib",
    "uuid",
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer(parts: tuple[str, ...]) -> str:
    """The layer of a module given as the parts of its name below `swarmd`."""
    if not parts:
        return "__init__"
    first = parts[0]
    return "leaf" if first in LEAVES else first


def own_parts(file: Path) -> tuple[str, ...]:
    return file.relative_to(PACKAGE).with_suffix("").parts


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported when the file is) for every import, with those for types only left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only: set[ast.AST] = set()
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            typing_only.update(child for statement in node.body for child in ast.walk(statement))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full"
            module = node.module or ""
            yield module, node not in inside
            if module == "swarmd" or (PACKAGE / Path(*module.split(".")[1:])).is_dir():
                yield from ((f"{module}.{alias.name}", node not in inside) for alias in node.names)


def test_imports_point_one_way() -> None:
    wrong = []
    for file in sources():
        mine = layer(own_parts(file))
        for module, _ in imports(file):
            parts = tuple(module.split("."))
            if parts[0] == "swarmd" and parts[1:]:
                theirs = layer(parts[1:])
                if theirs not in ALLOWED.get(mine, set()):
                    wrong.append(f"{file.relative_to(ROOT)} ({mine}) imports {module} ({theirs})")
    assert wrong == []


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {layer(own_parts(file)) for file in sources()} <= set(ALLOWED)


def test_adapters_of_different_systems_do_not_know_each_other() -> None:
    wrong = []
    for file in sources():
        parts = own_parts(file)
        if parts[0] != "adapters" or len(parts) < 2:
            continue
        family = next((system for system in SYSTEMS if parts[1] in system), {parts[1]})
        for module, _ in imports(file):
            other = module.split(".")
            if other[:2] == ["swarmd", "adapters"] and len(other) > 2 and other[2] not in family:
                wrong.append(f"{file.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_each_library_stays_in_its_layer() -> None:
    wrong = []
    known = {"swarmd", *LIBRARIES, *sys.stdlib_module_names}
    for file in sources():
        mine = layer(own_parts(file))
        for module, _ in imports(file):
            top = module.split(".")[0]
            if top not in known:
                wrong.append(f"{file.relative_to(ROOT)} imports {module}, which no rule names")
            elif top in LIBRARIES and mine not in LIBRARIES[top]:
                wrong.append(f"{file.relative_to(ROOT)} ({mine}) imports {module}")
    assert wrong == []


def test_the_core_is_pure() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in sources()
        if layer(own_parts(file)) == "core"
        for module, _ in imports(file)
        if module.split(".")[0] in IMPURE
    ]
    assert wrong == []


def test_heavy_libraries_are_imported_only_where_they_are_used() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {module} at its top"
        for file in sources()
        if layer(own_parts(file)) != "edges"
        for module, at_top in imports(file)
        if at_top and module.split(".")[0] in HEAVY
    ]
    assert wrong == []


@pytest.mark.parametrize("module", ["swarmd", "swarmd.ports"])
def test_importing_does_nothing(module: str, tmp_path: Path) -> None:
    """No file, no output, no heavy library, no event loop."""
    program = f"import sys, {module}; sys.stdout.write(' '.join(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded & {*HEAVY, "nats", "asyncio", "uvloop"} == set()
    assert list(tmp_path.iterdir()) == []
    assert done.stderr == ""
