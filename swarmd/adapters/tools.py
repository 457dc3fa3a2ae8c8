"""The built-in tools by name. (`swarmd.roles.tool_calls` carries calls out; recall and remember belong to the worker.)

Job: build the tools that an agent's settings allow; a tool that was not named is not built.
Must not know: agents, journals.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from msgspec import Struct

from swarmd.adapters.file_tools import ListFiles, ReadFile, Roots
from swarmd.adapters.web_fetch import FetchUrl
from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmd.ports import Tool

BUILT_IN = ("read_file", "list_files", "fetch_url")


class ToolSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What the built-in tools may touch: directories to read, and `host:port` exceptions to the address guard."""

    roots: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()


def open_tools(names: Sequence[str], settings: ToolSettings | None = None) -> dict[str, Tool]:
    """The named built-in tools. Raises `Rejected("unknown_tool" | "no_roots" | "bad_root")`."""
    settings = settings or ToolSettings()
    for name in names:
        if name not in BUILT_IN:
            near = difflib.get_close_matches(name, BUILT_IN, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"built in are {', '.join(BUILT_IN)}"
            raise Rejected("unknown_tool", f"there is no built-in tool {name!r}: {hint}")
    tools: dict[str, Tool] = {}
    if "read_file" in names or "list_files" in names:
        if not settings.roots:
            raise Rejected("no_roots", "read_file and list_files need roots: the directories that may be read")
        roots = Roots(settings.roots)
        tools = {"read_file": ReadFile(roots), "list_files": ListFiles(roots)}
    if "fetch_url" in names:
        tools["fetch_url"] = FetchUrl(settings.allow_hosts)
    return {name: tools[name] for name in names}
