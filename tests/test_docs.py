"""The documents say what the code does: examples validate, lists are complete, commands exist, the diagram is true.

What of them can be run is run by `tests/system/test_documents.py`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd import config
from swarmd.adapters.telemetry import METRICS
from swarmd.core import subjects
from swarmd.core.events import (
    AUTHORITY,
    FACTS,
    TYPES,
    Assigned,
    Awaited,
    Cancelled,
    Completed,
    Configured,
    Expired,
    Fact,
    Failed,
    Failure,
    MemberLost,
    Paused,
    Redriven,
    Requeued,
    Resolved,
    RetryPolicy,
    Returned,
    Spawned,
    Suspended,
    Unpaused,
)
from swarmd.core.memory import MEMORY_FACTS
from swarmd.core.prices import Price
from swarmd.edges import cli, schemas
from swarmd.edges.cli import flags
from swarmd.roles.context import Context
from swarmd.roles.family import Spawning
from swarmd.roles.memory_steps import Keeping, Recalling, Updating
from swarmd.roles.waits import Approving, Asking
from swarmd.roles.watch_steps import Watching
from tests.core.history import NODE, OTHER, History
from tests.sim.laws import LAWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])
jsonschema = pytest.importorskip("jsonschema")

BLOCK = re.compile(r"(?:<!-- ([a-z]+)(?:: ([^\n]*?))? -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
NAMED_FILE = re.compile(r"`((?:swarmd|core|roles|adapters|edges|tests|ops|schemas|docs)/[\w./-]+)`")
#: Built from pieces, so that this file does not find itself.
UNFINISHED = re.compile("|".join((r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", r"\bXX" + r"X\b", r"\bTB" + r"D\b")))


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> Iterator[tuple[str, str, str]]:
    """(kind of mark, its value, content) of each fenced block in this language."""
    for mark, value, found, content in BLOCK.findall(page):
        if found == language:
            yield mark, value, content


def identity(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- prose -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=identity)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", path.read_text()):
        if "://" in target:
            continue
        file = path.parent / target if target else path
        assert file.exists(), f"{identity(path)} links to {target}"
        if anchor:
            heads = {_anchor(head) for head in re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)}
            assert anchor in heads, f"{identity(path)} links to {target}#{anchor}"


def _anchor(head: str) -> str:
    return re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=identity)
def test_nothing_is_left_unfinished(path: Path) -> None:
    assert UNFINISHED.findall(path.read_text()) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=identity)
def test_fences_are_closed(path: Path) -> None:
    assert path.read_text().count("```") % 2 == 0


def test_named_files_exist() -> None:
    """Paths of the repository in backticks, with or without a place in the file."""
    missing = [
        f"{identity(path)}: {name}"
        for path in DOCUMENTS
        for name in re.findall(
            r"`((?:swarmd|core|roles|adapters|edges|tests|ops|schemas|docs)/[\w./-]+)`", path.read_text()
        )
        if not (ROOT / name).exists() and not (ROOT / "swarmd" / name).exists()
    ]
    assert missing == []


# --- decisions -------------------------------------------------------------------------------------

DECISIONS = sorted((DOCS / "adr").glob("*.md"))


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.name)
def test_a_decision_has_its_header(path: Path) -> None:
    page = path.read_text()
    assert re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", path.name)
    assert page.startswith("# ")
    heads = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert heads == ["Status", "Date", "Context", "Decision", "Consequences"]
    status = re.search(r"^## Status\n\n(.*)$", page, re.MULTILINE)
    assert status is not None
    assert re.fullmatch(r"Proposed|Accepted|Rejected|Superseded by \[.*\]\(\d{4}-.*\.md\)", status[1])
    assert re.search(r"^## Date\n\n\d{4}-\d\d-\d\d$", page, re.MULTILINE)


# --- the protocol ----------------------------------------------------------------------------------


def _examples() -> list[tuple[str, str, str]]:
    return list(blocks(text("protocol.md"), "json"))


@pytest.mark.parametrize(("mark", "where", "example"), _examples(), ids=lambda part: str(part)[:40])
def test_each_example_is_valid(mark: str, where: str, example: str) -> None:
    value = json.loads(example)
    if mark == "struct":
        module, _, name = where.partition(":")
        again = msgspec.json.encode(msgspec.json.decode(example, type=getattr(importlib.import_module(module), name)))
        _refuse_unknown(value, msgspec.json.decode(again), name)
        return
    assert mark == "schema", f"no schema is named for: {example[:80]}"
    file, _, name = where.partition("#")
    schema: dict[str, Any] = json.loads((ROOT / "schemas" / file).read_text())
    if name:
        schema = {"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]}
    jsonschema.validate(value, schema, cls=jsonschema.Draft202012Validator)
    for structs in (schemas.WIRE, schemas.MEMORY):
        for struct in structs:
            if struct.__name__ == name:
                again = msgspec.json.decode(msgspec.json.encode(msgspec.json.decode(example, type=struct)))
                _refuse_unknown(value, again, name)


def _refuse_unknown(given: Any, known: Any, where: str) -> None:
    """A field that the code does not have would be dropped silently by messages between processes."""
    if isinstance(given, dict) and isinstance(known, dict):
        for key, value in given.items():
            assert key in known or value in ({}, [], "", 0, None), f"{where}: no field {key}"
            _refuse_unknown(value, known.get(key), f"{where}.{key}")
    elif isinstance(given, list) and isinstance(known, list):
        for one, other in zip(given, known, strict=True):
            _refuse_unknown(one, other, where)


def test_each_message_has_an_example() -> None:
    shown = {where.partition("#")[2] for _, where, _ in _examples()}
    assert {struct.__name__ for struct in (*schemas.WIRE, *schemas.MEMORY)} <= shown


PLACES = {
    "swarm": "<S>",
    "memory": "<M>",
    "role": "<role>",
    "writer": "<writer>",
    "boot": "<boot>",
    "verb": "<verb>",
    "digest": "<sha256>",
    "chunk": "<part>",
    "task": "<task>",
    "kind": "<type>",
    "provider": "<provider>",
    "node": "<node>",
}


def test_each_subject_and_stream_is_explained() -> None:
    page = text("protocol.md")
    made = [
        function(*(PLACES[name] for name in inspect.signature(function).parameters))
        for _, function in inspect.getmembers(subjects, inspect.isfunction)
    ]
    assert [name for name in made if not name.endswith(".>") and f"`{name}`" not in page] == []
    assert len(made) >= 15


def test_each_event_type_is_listed_with_its_writers() -> None:
    listed = dict(re.findall(r"^\| `(swarmd\.[a-z_.0-9]+)` \| ([^|]*) \|", text("protocol.md"), re.MULTILINE))
    wanted = {name: ", ".join(sorted(AUTHORITY[fact], reverse=True)) for name, fact in FACTS.items()}
    wanted |= dict.fromkeys(MEMORY_FACTS, "memory")
    assert listed == wanted


def test_each_request_that_is_answered_is_listed() -> None:
    page = text("protocol.md")
    verbs = [address.rpartition(".")[2] for address, *_ in schemas.CHANNELS.values() if ".ctl." in address]
    assert verbs
    assert [verb for verb in verbs if f"| `{verb}` |" not in page] == []


def _codes(*files: str) -> set[str]:
    """Codes of errors that these modules raise."""
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse((ROOT / "swarmd" / file).read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                first = node.args[0] if node.args else None
                if node.func.id in ("Rejected", "Conflict") and isinstance(first, ast.Constant):
                    found.add(str(first.value))
    return found


def test_each_error_code_of_a_request_is_explained() -> None:
    package = ROOT / "swarmd"
    files = [file for layer in ("core", "roles") for file in (package / layer).glob("*.py") if file.stem != "snapshot"]
    codes = _codes(*(file.relative_to(package).as_posix() for file in files))
    assert len(codes) >= 15
    assert [code for code in sorted(codes) if f"`{code}`" not in text("protocol.md")] == []


# --- settings and metrics --------------------------------------------------------------------------


def _settings() -> Iterator[tuple[str, str, str]]:
    tables = {f"[{section}]": struct for section, struct in config.SECTIONS.items()}
    tables |= {"[swarm.<name>]": config.SwarmTable, "[hive]": config.HiveTable, "[[agent]]": config.AgentTable}
    tables |= {"[program.<name>]": config.ProgramTable, "[tool.<name>]": config.ToolTable}
    tables |= {"[mcp.<name>]": config.McpTable}
    tables |= {"[provider.<name>]": config.ProviderTable, '[price."<provider:model>"]': Price}
    tables |= {
        "[tenant.<name>]": config.TenantTable,
        "[key.<name>]": config.KeyTable,
        "[schedule.<name>]": config.ScheduleTable,
    }
    for section, struct in tables.items():
        for known in msgspec.structs.fields(struct):
            if known.required:
                yield section, known.name, "required"
                continue
            default = known.default if known.default is not msgspec.NODEFAULT else known.default_factory()
            yield section, known.name, "none" if default is None else f"`{msgspec.json.encode(default).decode()}`"


def test_each_setting_is_listed_with_its_default() -> None:
    listed = []
    for part in re.split(r"^## ", text("configuration.md"), flags=re.MULTILINE)[1:]:
        section = part.split("\n")[0].strip("`")
        rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", part, re.MULTILINE)
        listed += [(section, name, default) for name, default in rows]
    assert sorted(listed) == sorted(_settings())


def test_each_metric_is_listed() -> None:
    listed = re.findall(r"^\| `(swarmd_\w+)` \| (\w+) \|", text("metrics.md"), re.MULTILINE)
    assert sorted(listed) == sorted((metric.name, metric.kind) for metric in METRICS)


def test_each_exit_code_is_listed() -> None:
    listed = re.findall(r"^\| (\d+) \|", text("operations.md"), re.MULTILINE)
    assert listed == re.findall(r"^  (\d+) ", flags.EXIT_CODES, re.MULTILINE)


# --- the context -----------------------------------------------------------------------------------

#: Of a context, but for the worker that runs the attempt.
NOT_FOR_AGENTS = {"load", "pack", "reused"}


def _keywords(name: str) -> list[str]:
    """The arguments of a method of the context that go by name, those of `**how` among them."""
    found = []
    for parameter in inspect.signature(getattr(Context, name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            found.append(parameter.name)
        elif parameter.name == "how":
            found += {"ask": Asking, "approve": Approving, "spawn": Spawning, "recall": Recalling}[name].__annotations__
        elif parameter.name == "what":
            found += {"remember": Keeping, "update_memory": Updating, "watch": Watching}[name].__annotations__
    return found


def test_each_call_of_the_context_is_listed_with_its_arguments() -> None:
    listed = dict(re.findall(r"^\| `(\w+)\(([^`]*)\)` \|", text("how-to/agents.md"), re.MULTILINE))
    methods = {name for name, _ in inspect.getmembers(Context, inspect.iscoroutinefunction) if not name.startswith("_")}
    assert set(listed) == methods - NOT_FOR_AGENTS
    for name, arguments in listed.items():
        words = set(re.findall(r"\w+", arguments))
        assert words >= set(_keywords(name)), name
        known = {*inspect.signature(getattr(Context, name)).parameters, *_keywords(name)}
        assert words <= known, name


# --- commands --------------------------------------------------------------------------------------


def _commands() -> Iterator[tuple[str, str]]:
    for path in DOCUMENTS:
        page = path.read_text()
        for _, _, content in blocks(page, "console"):
            joined = content.replace("\\\n", " ")
            yield from ((identity(path), line[2:]) for line in joined.splitlines() if line.startswith("$ swarmd "))


@pytest.mark.parametrize(("where", "command"), sorted(set(_commands())))
def test_each_command_can_be_parsed(where: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = list(takewhile(lambda word: word != "|", shlex.split(command, comments=True)[1:]))
    try:
        cli.parser(argv).parse_args(argv)
    except SystemExit:
        pytest.fail(f"{where}: {command}: {capsys.readouterr().err}")


def test_commands_named_in_passing_exist() -> None:
    top = cli.parser()._subparsers
    assert top is not None
    known = set(top._group_actions[0].choices or ())
    named = {
        (identity(path), command) for path in DOCUMENTS for command in re.findall(r"`swarmd ([a-z]+)", path.read_text())
    }
    assert {(path, command) for path, command in named if command not in known} == set()


def test_make_targets_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for path in DOCUMENTS for target in re.findall(r"(?:`|\$ )make ([a-z-]+)", path.read_text())}
    assert named - targets == set()


# --- laws ------------------------------------------------------------------------------------------


def test_the_laws_are_those_that_are_tested() -> None:
    parts = re.split(r"^## ", text("laws.md"), flags=re.MULTILINE)[1:]
    assert len(parts) == len(LAWS)
    for part, (number, law) in zip(parts, LAWS.items(), strict=True):
        head = law.name.partition(":")[0]
        assert part.startswith(f"{number}. {head}\n"), f"law {number} is {head!r}"
        faults = re.search(r"\*Faults:\* (.*?)\.", part)
        assert faults is not None
        assert set(re.findall(r"`(\w+)`", faults[1])) == set(law.faults), f"law {number}"


def test_what_carries_a_law_exists() -> None:
    for place in re.findall(r"\*Where:\* (.*?)\n\*Faults", text("laws.md"), re.DOTALL):
        files = [ROOT / "swarmd" / name for name in re.findall(r"`(\w+/\w+\.py)`", place)]
        source = "\n".join(file.read_text() for file in files)
        for name in re.findall(r"`(\w+)`", place):
            assert re.search(rf"\b{name}\b", source), f"{name} is not in {place}"


# --- the life of a task ----------------------------------------------------------------------------

Edge = tuple[str, str, str]
LIVE = ("queued", "assigned", "suspended", "backoff", "paused")
WHY = Failure("broken", "it broke")


def _drawn() -> set[Edge]:
    ((_, _, diagram),) = [found for found in blocks(text("architecture.md"), "mermaid") if found[0] == "states"]
    edges = re.findall(r"^  (\S+) --> (\S+) : (.+)$", diagram, re.MULTILINE)
    return {(start, end, label) for start, end, label in edges}


def _state(history: History, task: str) -> str:
    state = history.state
    if task in state.tasks:
        return state.tasks[task].state
    if task in state.tombstones:
        return state.tombstones[task].state
    return "[*]"


def _label(fact: Fact) -> str:
    return TYPES[type(fact)].split(".")[-2]


class _Walk:
    """Drives the fold and notes each change of a task's state as an arrow."""

    def __init__(self) -> None:
        self.seen: set[Edge] = set()

    def note(self, history: History, task: str, label: str, act: Callable[[], Any]) -> str:
        before = _state(history, task)
        act()
        after = _state(history, task)
        if before != after:
            self.seen.add((before, after, label))
        return after

    def lead(self, history: History, task: str, fact: Fact, subject: str = "") -> str:
        return self.note(history, task, _label(fact), lambda: history.lead(subject or task, fact))

    def work(self, history: History, task: str, fact: Fact) -> str:
        return self.note(history, task, _label(fact), lambda: history.work(task, fact))


def _in(state: str) -> tuple[History, str]:
    """A history whose task `t~1`, a child of the running `t`, is in this live state."""
    history = History().running("t", retry=RetryPolicy(attempts_max=2))
    history.work("t", Spawned(epoch=1, key="spawn#1", n=1, agent="a"))
    if state not in ("queued", "paused"):
        history.assigned("t~1")
    if state == "suspended":
        history.work("t~1", Spawned(epoch=1, key="spawn#1", n=1, agent="a"))
        history.work("t~1", Suspended(epoch=1, waits=[["t~1~1"]]))
    if state == "paused":
        history.lead("t~1", Paused(term=1))
    if state == "backoff":
        history.work("t~1", Failed(epoch=1, failure=WHY))
    assert _state(history, "t~1") == state
    return history, "t~1"


def _candidates(history: History, task: str) -> Iterator[tuple[str, Fact]]:
    """Every fact that might move the task, by who writes it; the fold says which of them do."""
    epoch = history.state.tasks[task].epoch
    decided: list[Fact] = [
        Assigned(term=1, epoch=epoch + 1, member=OTHER),
        Requeued(term=1, epoch=epoch, reason="undelivered"),
        Requeued(term=1, epoch=epoch, reason="retry"),
        Cancelled(term=1),
        Expired(term=1),
        Redriven(term=1),
        Paused(term=1),
        Unpaused(term=1),
        MemberLost(term=1, member=NODE),
    ]
    reported: list[Fact] = [
        Suspended(epoch=epoch, waits=[]),
        Returned(epoch=epoch),
        Completed(epoch=epoch),
        Failed(epoch=epoch, failure=WHY),
        Failed(epoch=epoch, failure=WHY, retryable=False),
    ]
    yield from (("lead", fact) for fact in decided)
    yield from (("work", fact) for fact in reported)


def test_the_life_of_a_task_is_drawn_as_it_is() -> None:
    walk = _Walk()
    for state in LIVE:
        for number in range(len(list(_candidates(*_in(state))))):
            history, task = _in(state)
            who, fact = list(_candidates(history, task))[number]
            (walk.lead if who == "lead" else walk.work)(history, task, fact)
        history, task = _in(state)
        walk.note(history, task, "parent ends", lambda h=history: h.lead("t", Cancelled(term=1)))  # type: ignore[misc]
    _walk_the_rest(walk)
    assert walk.seen == _drawn()


def _walk_the_rest(walk: _Walk) -> None:
    """What needs a history of its own: beginnings, waits, too many losses, redriving."""
    history = History().joined()
    walk.note(history, "t", "submitted", lambda: history.submitted("t"))
    later = History().joined()
    walk.note(later, "d", "submitted", lambda: later.submitted("d", not_before_ms=1))
    walk.lead(later, "d", Requeued(term=1, epoch=0, reason="due"))
    for end in (Cancelled(term=1), Expired(term=1)):
        later.submitted("e", not_before_ms=1)
        walk.lead(later, "e", end)
        later = History().joined()
    later.submitted("t").assigned()
    later.work("t", Awaited(epoch=1, key="k#1", kind="timer", until_ms=1))
    later.work("t", Suspended(epoch=1, waits=[["k#1"]]))
    walk.lead(later, "t", Resolved(term=1, key="k#1", timed_out=True))
    history.assigned()
    walk.note(history, "t~1", "spawned", lambda: history.work("t", Spawned(epoch=1, key="s#1", n=1, agent="a")))
    history.assigned("t~1", member=OTHER)
    walk.work(history, "t", Suspended(epoch=1, waits=[["t~1"]]))
    walk.note(history, "t", "child ends", lambda: history.other("t~1", Completed(epoch=1)))
    history.assigned("t", epoch=2)
    history.lead("s", Configured(term=1, live_tasks_max=9, remembered_max=9, dead_max=9, losses_max=0))
    walk.lead(history, "t", MemberLost(term=1, member=NODE), subject=NODE)
    walk.lead(history, "t", Redriven(term=1))
