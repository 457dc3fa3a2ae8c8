"""The generated schemas: up to date, valid, and true of what the code writes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from swarmd import config
from swarmd.core.codec import rfc3339
from swarmd.core.events import FACTS, TYPES, Completed, Event, Fact, Submitted
from swarmd.core.wire import Outcome, Submission
from swarmd.edges import schemas

ROOT = Path(__file__).parents[2]
jsonschema = pytest.importorskip("jsonschema")


def read(path: str) -> Any:
    return json.loads((ROOT / "schemas" / path).read_text())


def test_the_files_agree_with_the_code() -> None:
    assert schemas.compare(ROOT / "schemas") == []


def test_drift_is_found(tmp_path: Path) -> None:
    schemas.write(tmp_path)
    assert schemas.compare(tmp_path) == []
    changed = tmp_path / "events" / "swarmd.task.completed.v1.json"
    changed.write_text(changed.read_text().replace("epoch", "epoque"))
    (tmp_path / "wire.json").unlink()
    (tmp_path / "old.json").write_text("{}")
    found = schemas.compare(tmp_path)
    assert len(found) == 3
    assert any("successor" in line for line in found)


@pytest.mark.parametrize("path", sorted(schemas.documents()))
def test_each_schema_is_a_schema(path: str) -> None:
    document = read(path)
    if path != "asyncapi.json":
        jsonschema.Draft202012Validator.check_schema(document)


def test_each_event_type_has_its_file() -> None:
    assert {f"{name}.json" for name in FACTS} <= {file.name for file in (ROOT / "schemas" / "events").iterdir()}


@pytest.mark.parametrize(
    "fact",
    [Submitted(term=1, agent="echo", digest="00", input=msgspec.Raw(b'{"a":1}')), Completed(epoch=1)],
    ids=["submitted", "completed"],
)
def test_what_is_written_is_valid(fact: Fact) -> None:
    event = Event("task", fact, TYPES[type(fact)], "boot.1.0", "/main/orchestrator/o1", rfc3339(1_700_000_000_000))
    jsonschema.validate(msgspec.json.decode(msgspec.json.encode(event)), read(f"events/{event.type}.json"))


def test_the_wire_schema_takes_what_clients_write_and_refuses_what_they_must_not() -> None:
    definitions = read("wire.json")["$defs"]
    submission = {"$ref": "#/$defs/Submission", "$defs": definitions}
    jsonschema.validate(msgspec.json.decode(msgspec.json.encode(Submission("echo"))), submission)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"agent": "echo", "inptu": 1}, submission)
    outcome = {"$ref": "#/$defs/Outcome", "$defs": definitions}
    jsonschema.validate(msgspec.json.decode(msgspec.json.encode(Outcome("t", "completed"))), outcome)


def test_the_configuration_schema_takes_the_sample() -> None:
    schema = read("config.schema.json")
    sample = msgspec.to_builtins(tomllib.loads((ROOT / "ops" / "swarm.toml").read_text()))  # moments become texts
    jsonschema.validate(sample, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"nats": {"urll": ""}}, schema)
    assert msgspec.json.decode(msgspec.json.encode(config.Settings()))


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = read("asyncapi.json")
    assert document["asyncapi"].startswith("3.")

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            target = node.get("$ref")
            if isinstance(target, str) and target.startswith("#/"):
                at = document
                for part in target[2:].split("/"):
                    at = at[part]
            elif isinstance(target, str):
                assert (ROOT / "schemas" / target).is_file()
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
