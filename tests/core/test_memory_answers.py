"""Errors in a memory node's answers are raised as the kind that the node raised them as."""

from __future__ import annotations

import ast
from pathlib import Path

import msgspec
import pytest

from swarmd.core.errors import Conflict, Fault, Rejected
from swarmd.core.events import Failure
from swarmd.core.memory_wire import RecallReply, Refusal
from swarmd.memory_answers import CONFLICTS, FAULTS, read

PACKAGE = Path(__file__).parents[2] / "swarmd"
FILES = (
    *("roles/memory_*.py", "core/memory_*.py", "adapters/milvus_*.py", "adapters/milvus_store/*.py"),
    *("adapters/*embed*.py", "cached_embedder.py", "roles/writer.py"),
)


def codes(kind: str) -> set[str]:
    """Codes of this kind that a memory node can come to answer with."""
    found: set[str] = set()
    for file in [file for pattern in FILES for file in PACKAGE.glob(pattern)]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == kind and node.args:
                found |= {str(one.value) for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant)}
    return found


def test_every_code_of_a_fault_or_conflict_is_known() -> None:
    assert codes("Fault") >= {"busy", "memory_behind"}
    assert codes("Fault") - FAULTS == set()
    assert codes("Conflict") - CONFLICTS == set()
    assert codes("Rejected") & (FAULTS | CONFLICTS) == set()


@pytest.mark.parametrize(("code", "kind"), [("busy", Fault), ("id_taken", Conflict), ("bad_filter", Rejected)])
def test_an_error_is_raised_as_its_kind(code: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="why"):
        read(msgspec.json.encode(Refusal(Failure(code, "why"))), RecallReply)


@pytest.mark.parametrize("reply", [b"", b"{", b"\xff", b'{"passages": 7}', b"[]"])
def test_what_cannot_be_read_is_a_fault(reply: bytes) -> None:
    with pytest.raises(Fault, match="cannot read"):
        read(reply, RecallReply)
