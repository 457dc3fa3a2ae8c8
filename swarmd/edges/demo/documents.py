"""Which files a survey reads: text under the given paths; whatever else is there is named with the reason.

Must not know what is done with them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DOCUMENTS_MAX: Final = 1_000
BYTES_MAX: Final = 1_000_000
"""What the tool reads of one file."""
_PROBE_BYTES: Final = 65_536
_PASSED_OVER: Final = frozenset({"__pycache__", "node_modules"})


class Documents(Struct, frozen=True):
    """`paths` maps names as a report shows them to files; `skipped` maps names to reasons; `roots` hold all files."""

    paths: dict[str, str]
    skipped: dict[str, str]
    roots: tuple[str, ...]


def find_documents(given: Sequence[str]) -> Documents:
    """The text files in and under `given`; hidden ones in folders are passed over.

    Raises `Rejected("no_documents" | "not_found" | "too_many_documents")`.
    """
    starts = [Path(path).expanduser() for path in given] or own_documents()
    for start in starts:
        if not start.exists():
            raise Rejected("not_found", f"there is no {start}: give files or folders that exist")
    starts = [start.resolve() for start in starts]
    roots = tuple(sorted({str(start if start.is_dir() else start.parent) for start in starts}))
    base = Path(os.path.commonpath(roots))
    paths: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for file in sorted({file for start in starts for file in _files(start)}):
        name = str(file.relative_to(base))
        why = _unfit(file)
        if why:
            skipped[name] = why
        else:
            paths[name] = str(file)
    if not paths:
        raise Rejected(
            "no_documents", f"no text files in {', '.join(map(str, starts))}: give files or folders with some"
        )
    if len(paths) > DOCUMENTS_MAX:
        raise Rejected(
            "too_many_documents", f"{len(paths)} documents; the demo takes {DOCUMENTS_MAX}: give fewer paths"
        )
    return Documents(paths, skipped, roots)


def own_documents() -> list[Path]:
    """The project's own documents, when this is run from a checkout."""
    root = Path(__file__).resolve().parents[3]
    own = [path for path in (root / "docs", root / "README.md", root / "CHANGELOG.md") if path.exists()]
    if not (root / "pyproject.toml").exists() or not own:
        raise Rejected("no_documents", "there are no documents of our own here: run `swarmd demo PATH …` on some")
    return own


def _files(start: Path) -> Iterator[Path]:
    if start.is_file():
        yield start
        return
    for directory, names, files in os.walk(start):
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in _PASSED_OVER)
        for name in files:
            file = Path(directory, name)
            if not name.startswith(".") and not file.is_symlink():
                yield file


def _unfit(file: Path) -> str:
    """Why a file is not read, "" when it is."""
    try:
        if not file.is_file():
            return "not a regular file"
        size = file.stat().st_size
        if size > BYTES_MAX:
            return f"too large ({size:,} bytes; {BYTES_MAX:,} are read)"
        with file.open("rb") as stream:
            head = stream.read(_PROBE_BYTES)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not head.strip():
        return "empty"
    if b"\0" in head:
        return "binary"
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < len(head) - 3 or size <= _PROBE_BYTES:  # otherwise a character was cut at the end of the probe
            return "not UTF-8 text"
    return ""
