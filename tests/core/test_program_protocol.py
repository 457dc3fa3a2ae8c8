"""What docs/protocol.md says of program agents is what the code does: the dialogue, the verbs, the failures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from swarmd.core import program

ROOT = Path(__file__).parents[2]
_PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
PAGE = _PROTOCOL.partition("## Program agents\n")[2].partition("\n## ")[0]
SIDES: dict[str, Any] = {"host": program.Told, "program": program.Asked}
jsonschema = pytest.importorskip("jsonschema")


def dialogue() -> list[tuple[str, str]]:
    found = re.search(r"<!-- dialogue -->\n```text\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return [(side, line) for side, line in (text.split(maxsplit=1) for text in found[1].splitlines())]


@pytest.mark.parametrize(("side", "line"), dialogue())
def test_each_line_of_the_dialogue_is_valid(side: str, line: str) -> None:
    said = msgspec.json.decode(line, type=SIDES[side])
    assert json.loads(msgspec.json.encode(said)) == json.loads(line)
    definitions = json.loads((ROOT / "schemas" / "program.json").read_text())["$defs"]
    schema = {"$ref": f"#/$defs/{type(said).__name__}", "$defs": definitions}
    jsonschema.validate(json.loads(line), schema, cls=jsonschema.Draft202012Validator)
    if isinstance(said, program.Call):
        msgspec.json.decode(said.args, type=program.ARGUMENTS[said.verb])


def test_every_kind_of_line_is_explained() -> None:
    for side in SIDES.values():
        for struct in side.__args__:
            assert f"`{struct.__struct_config__.tag}`" in PAGE or f'"{struct.__struct_config__.tag}"' in PAGE


def test_each_verb_is_listed_with_its_arguments() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| [^|]* \|$", PAGE.partition("### Verbs")[2], re.MULTILINE)
    listed = {verb: re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", what)) for verb, what in rows}
    wanted = {verb: list(struct.__struct_fields__) for verb, struct in program.ARGUMENTS.items()}
    assert {verb: listed.get(verb) for verb in wanted} == wanted


def test_each_failure_is_listed() -> None:
    places = ("adapters/programs.py", "roles/program_agent.py", "roles/program_verbs.py")
    source = "".join((ROOT / "swarmd" / place).read_text() for place in places)
    codes = set(re.findall(r'\b(?:Rejected|Fault)\(\s*"(\w+)"', source))
    assert len(codes) >= 10
    assert {code for code in codes if f"`{code}`" not in PAGE} == set()


@pytest.mark.parametrize(
    "line",
    [
        '{"op": "step", "id": 1}',
        '{"op": "step", "id": 1, "name": ""}',
        '{"op": "step", "id": 1.5, "name": "x"}',
        '{"op": "step", "id": 1, "name": "x", "nmae": "y"}',
        '{"op": "step", "id": 9007199254740992, "name": "x"}',
        '{"op": "done", "output": }',
        '{"id": 1}',
        "[]",
        "",
    ],
)
def test_what_is_no_message_is_refused(line: str) -> None:
    with pytest.raises(msgspec.MsgspecError):
        msgspec.json.decode(line, type=program.Asked)
