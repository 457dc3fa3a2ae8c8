"""The built-in tools by name. (`swarmd.roles.tool_calls` carries calls out; recall and remember belong to the worker.)

Job: build the tools that an agent's settings allow; a tool that was not named is not built.
Must not know: agents, journals.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from msgspec import Struct

from swarmd.adapters.calculator import Calculator, CurrentTime
from swarmd.adapters.file_tools import ListFiles, ReadFile, Roots
from swarmd.adapters.sandbox import SandboxLimits, open_python, open_shell
from swarmd.adapters.web_fetch import FetchUrl
from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swarmd.ports import Clock, Tool

BUILT_IN = ("read_file", "list_files", "fetch_url", "calculator", "current_time", "shell", "python")


class ToolSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What the built-in tools may touch: directories to read, and `host:port` exceptions to the address guard.

    Scripts of `shell` and `python` may write to `writable_roots`; each of their processes has the memory.
    """

    roots: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    writable_roots: tuple[str, ...] = ()
    script_ms: int = 30_000
    script_memory_bytes_max: int = 512 * 1024**2
    script_processes_max: int = 32


def open_tools(
    names: Sequence[str], settings: ToolSettings | None = None, clock: Clock | None = None
) -> dict[str, Tool]:
    """The named built-in tools; `current_time` needs the clock.

    Raises `Rejected("unknown_tool" | "no_roots" | "bad_root" | "no_clock" | "no_sandbox")`.
    """
    settings = settings or ToolSettings()
    makers: dict[str, Callable[[], Tool]] = {
        "read_file": lambda: ReadFile(_roots(settings)),
        "list_files": lambda: ListFiles(_roots(settings)),
        "fetch_url": lambda: FetchUrl(settings.allow_hosts),
        "calculator": Calculator,
        "current_time": lambda: _current_time(clock),
        "shell": lambda: open_shell(settings.roots, settings.writable_roots, _limits(settings)),
        "python": lambda: open_python(settings.roots, settings.writable_roots, _limits(settings)),
    }
    for name in names:
        if name not in makers:
            near = difflib.get_close_matches(name, BUILT_IN, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"built in are {', '.join(BUILT_IN)}"
            raise Rejected("unknown_tool", f"there is no built-in tool {name!r}: {hint}")
    return {name: makers[name]() for name in names}


def _roots(settings: ToolSettings) -> Roots:
    roots = [*settings.roots, *settings.writable_roots]
    if not roots:
        raise Rejected("no_roots", "read_file and list_files need roots: the directories that may be read")
    return Roots(roots)


def _current_time(clock: Clock | None) -> Tool:
    if clock is None:
        raise Rejected("no_clock", "current_time needs a clock")
    return CurrentTime(clock)


def _limits(settings: ToolSettings) -> SandboxLimits:
    return SandboxLimits(
        time_ms=settings.script_ms,
        memory_bytes_max=settings.script_memory_bytes_max,
        processes_max=settings.script_processes_max,
    )
