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

    def at(self, done: int, total: int, words: str = "") -> None:
        """`done` of `total` (0: nobody knows); `words` stand beside it."""
        ...


class _Quiet:
    def at(self, done: int, total: int, words: str = "") -> None:
        return


class _Lines:
    def __init__(self, what: str) -> None:
        self._what, self._began_s, self._told_s = what, monotonic(), monotonic()

    def at(self, done: int, total: int, words: str = "") -> None:
        now = monotonic()
        if now - self._told_s < TOLD_S:
            return
        self._told_s = now
        of = f" of {total:,}" if total else ""
        rate = done / (now - self._began_s)
        said = f", {words}" if words else ""
        print(f"{self._what}: {done:,}{of}, {rate:,.0f} a second{said}", file=sys.stderr, flush=True)


class _Bar:
    def __init__(self, bars: Any, what: str) -> None:
        self._bars, self._task = bars, bars.add_task(what, total=None, words="")

    def at(self, done: int, total: int, words: str = "") -> None:
        self._bars.update(self._task, completed=done, total=total or None, words=words)


@contextmanager
def progress(what: str, *, unit: str = "", quiet: bool = False) -> Iterator[Progress]:
    """Tell how far `what` is while the block runs; with the `unit` "bytes" figures are those of a file's size."""
    if quiet:
        yield _Quiet()
        return
    if not sys.stderr.isatty():
        yield _Lines(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, _rate_column(unit), TimeRemainingColumn())
    words = TextColumn("{task.fields[words]}", markup=False)
    with Bars(*columns, words, console=Console(stderr=True), transient=True) as bars:
        yield _Bar(bars, what)


def _rate_column(unit: str) -> Any:
    """How many a second."""
    from rich.progress import ProgressColumn, Task, TransferSpeedColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f}/s" if speed else "")

    return TransferSpeedColumn() if unit == "bytes" else Rate()
