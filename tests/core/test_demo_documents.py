"""Which files the demo reads, and what it says about the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from swarmd.core.errors import Rejected
from swarmd.edges.demo.documents import BYTES_MAX, find_documents

if TYPE_CHECKING:
    from pathlib import Path


def test_text_is_read_and_everything_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.md").write_text("# A")
    (tmp_path / "LICENSE").write_text("Free.")
    (tmp_path / "picture").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin").write_bytes("Gr\xfc\xdfe".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "huge.txt").write_text("x" * (BYTES_MAX + 1))
    (tmp_path / ".hidden").write_text("no")
    found = find_documents([str(tmp_path)])
    assert sorted(found.paths) == ["LICENSE", "deep/a.md"]
    assert found.roots == (str(tmp_path),)
    assert {name: why.split(" (")[0] for name, why in found.skipped.items()} == {
        "picture": "binary",
        "latin": "not UTF-8 text",
        "empty.txt": "empty",
        "huge.txt": "too large",
    }


def test_single_files_and_folders_share_their_names_beginning(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("a")
    (tmp_path / "README.md").write_text("b")
    found = find_documents([str(tmp_path / "docs"), str(tmp_path / "README.md")])
    assert sorted(found.paths) == ["README.md", "docs/a.md"]


@pytest.mark.parametrize(("name", "code"), [("gone", "not_found"), ("", "no_documents")])
def test_nothing_to_read_is_an_error_that_says_what_to_give(tmp_path: Path, name: str, code: str) -> None:
    with pytest.raises(Rejected, match="give") as error:
        find_documents([str(tmp_path / name)])
    assert error.value.code == code


def test_a_character_cut_by_the_probe_is_no_reason(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("x" * 65_535 + "ü" * 10, encoding="utf-8")
    assert sorted(find_documents([str(tmp_path)]).paths) == ["long.txt"]
