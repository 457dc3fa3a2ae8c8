"""How far a long command is: a bar on a terminal, a line now and then elsewhere, nothing beside JSON.

It goes to stderr: stdout holds results. Must not know what is being done.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Between two lines where there is no terminal.
TOLD_S: Final = 5.0


class Progress(Protocol):
    """What is told of something that takes long."""

    def at(self, done: int, total: int, count: int = 0) -> None:
        """`done` of `total`, in whatever unit (0: nobody knows); `count` things are dealt with, whose rate is told."""
        ...


class _Quiet:
    def at(self, done: int, total: int, count: int = 0) -> None:
        return


class _Lines:
    def __init__(self, what: str, things: str) -> None:
        self._what, self._things = what, things
        self._began_s = self._told_s = monotonic()

    def at(self, done: int, total: int, count: int = 0) -> None:
        now = monotonic()
        if now - self._told_s < TOLD_S:
            return
        self._told_s = now
        share = f" {min(1.0, done / total):.0%}" if total else ""
        said = _in_words(count, self._things, now - self._began_s)
        print(f"{self._what}:{share}{' ' if said else ''}{said}", file=sys.stderr, flush=True)


class _Bar:
    def __init__(self, bars: Any, what: str, things: str) -> None:
        self._bars, self._task, self._things = bars, bars.add_task(what, total=None, words=""), things
        self._began_s = monotonic()

    def at(self, done: int, total: int, count: int = 0) -> None:
        words = _in_words(count, self._things, monotonic() - self._began_s)
        self._bars.update(self._task, completed=done, total=total or None, words=words)


def _in_words(count: int, things: str, took_s: float) -> str:
    return f"{count:,} {things}, {count / max(took_s, 0.001):,.0f} a second" if count else ""


@contextmanager
def progress(what: str, things: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Tell how far `what` is while the block runs; `things` are what is counted."""
    if quiet:
        yield _Quiet()
        return
    if not sys.stderr.isatty():
        yield _Lines(what, things)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    words = TextColumn("{task.fields[words]}", markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), words, TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bar(bars, what, things)
