"""Built-in tools that read files: `read_file` and `list_files`.

Job: text files under the allowed roots, and nothing else on this machine.
Invariants: a path is resolved first and must then lie beneath a root; it is opened from the root's own descriptor,
component by component, without following links, so nothing that is swapped in meanwhile can lead outside. Devices,
pipes and sockets are never opened for reading. Nothing is written.
Must not know: agents, journals, other tools.
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmd.core.errors import Fault, Rejected
from swarmd.core.turns import ToolSpec
from swarmd.ports import ToolPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarmd.ports import SideEffects

FILE_BYTES_MAX = 1_000_000
ENTRIES_MAX = 1_000
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Roots:
    """The directories that may be read. Relative paths are looked for in each, in order."""

    def __init__(self, roots: Sequence[str | Path]) -> None:
        """Raises `Rejected("bad_root")` unless every root is an existing directory; none at all allows nothing."""
        self.all = [Path(root).expanduser().resolve() for root in roots]
        for root in self.all:
            if not root.is_dir():
                raise Rejected("bad_root", f"the root {root} is not a directory")

    def shown(self, full: Path) -> str:
        """A path as tools show it: relative to the root if there is only one, since only then it says all."""
        return str(full.relative_to(self.all[0]) if len(self.all) == 1 else full)

    def find(self, path: str) -> tuple[Path, Path]:
        """The root that holds this path, and the path without links, relative to it.

        Raises `Rejected("bad_path" | "outside_roots" | "not_found")`.
        """
        if "\0" in path:
            raise Rejected("bad_path", "the path holds a NUL character")
        is_inside = False
        for root in self.all:
            try:
                full = (root / path).resolve()
                if not full.is_relative_to(root):
                    continue
                is_inside = True
                full.lstat()
            except RuntimeError:  # a ring of links
                is_inside = True
                continue
            except (OSError, ValueError):  # not there, not readable, no name at all
                continue
            return root, full.relative_to(root)
        if is_inside:
            raise Rejected("not_found", f"there is no {path!r} that may be read")
        raise Rejected("outside_roots", f"{path!r} is outside the allowed directories")


def _open_beneath(root: Path, relative: Path) -> int:
    """Open a resolved path from its root on; a link in place of any component is refused by the kernel."""
    descriptor = os.open(root, _OPEN | os.O_DIRECTORY)
    try:
        for index, name in enumerate(relative.parts):
            is_last = index == len(relative.parts) - 1
            following = os.open(name, _OPEN if is_last else _OPEN | os.O_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = following
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class ReadFile:
    """`read_file(path, first_line?, lines?)`: a UTF-8 text file of at most a megabyte, or some of its lines."""

    def __init__(self, roots: Roots, *, timeout_ms: int = 10_000, output_bytes_max: int = 64 * 1024) -> None:
        self._roots = roots
        self.timeout_ms = timeout_ms
        self.output_bytes_max = output_bytes_max
        self.side_effects: SideEffects = "none"
        self.policy = ToolPolicy()
        self.spec = ToolSpec(
            name="read_file",
            description="Read a text file, whole or some of its lines.",
            parameters={
                "type": "object",
                "properties": {
                    "path": {"type": "string", "minLength": 1, "description": "as list_files gives it"},
                    "first_line": {"type": "integer", "minimum": 1, "description": "line to start at, from 1"},
                    "lines": {"type": "integer", "minimum": 1, "description": "how many lines"},
                },
                "required": ["path"],
                "additionalProperties": False,
            },
        )

    async def call(self, arguments: dict[str, Any], key: str = "") -> str:
        """Raises `Rejected("bad_path" | "outside_roots" | "not_found" | "not_a_file" | "too_large" | "not_text")`,
        `Fault("io_error")`."""
        text = await asyncio.to_thread(self._read, arguments["path"])
        if "first_line" not in arguments and "lines" not in arguments:
            return text
        first = int(arguments.get("first_line", 1)) - 1
        lines = text.splitlines(keepends=True)
        if first >= max(len(lines), 1):
            raise Rejected("bad_arguments", f"{arguments['path']} has {len(lines)} lines only")
        return "".join(lines[first : first + int(arguments.get("lines", len(lines)))])

    def _read(self, path: str) -> str:
        try:
            descriptor = _open_beneath(*self._roots.find(path))
        except OSError as error:  # it went away, turned into a link, or is not ours to read
            raise Rejected("not_found", f"cannot open {path!r}: {error.strerror}") from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise Rejected("not_a_file", f"{path!r} is not a regular file; list_files shows what there is")
        with os.fdopen(descriptor, "rb") as file:
            try:
                content = file.read(FILE_BYTES_MAX + 1)
            except OSError as error:
                raise Fault("io_error", f"cannot read {path!r}: {error.strerror}") from error
        if len(content) > FILE_BYTES_MAX:
            size = max(status.st_size, len(content))
            raise Rejected("too_large", f"{path!r} has {size} bytes, read_file takes {FILE_BYTES_MAX}")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise Rejected("not_text", f"{path!r} is not a UTF-8 text file")
        return text


class ListFiles:
    """`list_files(path?, pattern?)`: the files beneath a directory, one a line with size in bytes, sorted."""

    def __init__(self, roots: Roots, *, timeout_ms: int = 10_000, output_bytes_max: int = 64 * 1024) -> None:
        self._roots = roots
        self.timeout_ms = timeout_ms
        self.output_bytes_max = output_bytes_max
        self.side_effects: SideEffects = "none"
        self.policy = ToolPolicy()
        self.spec = ToolSpec(
            name="list_files",
            description="List the files beneath a directory, sub-directories included, with their sizes in bytes.",
            parameters={
                "type": "object",
                "properties": {
                    "path": {"type": "string", "minLength": 1, "description": "a directory; all if left out"},
                    "pattern": {"type": "string", "minLength": 1, "description": "of file names, such as *.md"},
                },
                "required": [],
                "additionalProperties": False,
            },
        )

    async def call(self, arguments: dict[str, Any], key: str = "") -> str:
        """Raises `Rejected("bad_path" | "outside_roots" | "not_found" | "not_a_directory")`."""
        return await asyncio.to_thread(self._list, arguments.get("path", ""), arguments.get("pattern", "*"))

    def _list(self, path: str, pattern: str) -> str:
        starts = self._roots.all
        if path:
            root, relative = self._roots.find(path)
            starts = [root / relative]
            if not starts[0].is_dir():
                raise Rejected("not_a_directory", f"{path!r} is not a directory; read_file reads files")
        found: list[str] = []
        for start in starts:
            for full, size in _walk(start, pattern):
                if len(found) == ENTRIES_MAX:
                    return "\n".join([*found, f"[more than {ENTRIES_MAX} files: give a path or a pattern]"])
                found.append(f"{self._roots.shown(full)}\t{size}")
        return "\n".join(found) or "[no files]"


def _walk(start: Path, pattern: str) -> Iterator[tuple[Path, int]]:
    """Regular files in a steady order; links are neither followed nor listed, unreadable directories passed over."""
    for directory, names, files in os.walk(start):
        names.sort()
        for name in sorted(files):
            full = Path(directory, name)
            try:
                status = full.lstat()
            except OSError:  # it went away
                continue
            if stat.S_ISREG(status.st_mode) and fnmatch.fnmatch(name, pattern):
                yield full, status.st_size
