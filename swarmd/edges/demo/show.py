"""Shows how a run goes: bars on a terminal, plain lines elsewhere, nothing for machines.

Must not know where the numbers come from.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

from msgspec import Struct

LINE_EVERY_MS = 2_000


class Bar(Struct, frozen=True):
    """Progress of one swarm: tasks finished of those known, with what runs now on how many slots."""

    done: int
    total: int
    running: int
    members: int
    model_calls: int


class Sight(Struct, frozen=True):
    """One look at a run."""

    stage: str
    elapsed_ms: int
    bars: dict[str, Bar]
    tasks_per_s: float
    note: str = ""


class Display(Protocol):
    """What a run is shown on."""

    def say(self, line: str) -> None:
        """A line that stays."""
        ...

    def show(self, sight: Sight) -> None:
        """The newest look."""
        ...

    def close(self) -> None: ...


def open_display(*, as_json: bool) -> Display:
    """The display that suits where stdout goes."""
    if as_json:
        return Silence()
    return LiveBars() if sys.stdout.isatty() else Lines()


class Silence:
    """For machines: only the final object is printed."""

    def say(self, line: str) -> None:
        return

    def show(self, sight: Sight) -> None:
        return

    def close(self) -> None:
        return


class Lines:
    """One line now and then, and whenever the stage changes."""

    def __init__(self) -> None:
        self._stage, self._shown_ms = "", -LINE_EVERY_MS

    def say(self, line: str) -> None:
        print(line, flush=True)

    def show(self, sight: Sight) -> None:
        if sight.stage == self._stage and sight.elapsed_ms - self._shown_ms < LINE_EVERY_MS:
            return
        self._stage, self._shown_ms = sight.stage, sight.elapsed_ms
        swarms = ", ".join(f"{name} {bar.done}/{bar.total}" for name, bar in sight.bars.items())
        print(f"{sight.elapsed_ms / 1000:6.1f} s  {_status(sight)}: {swarms}", flush=True)

    def close(self) -> None:
        return


def _status(sight: Sight) -> str:
    members = sum(bar.members for bar in sight.bars.values())
    calls = sum(bar.model_calls for bar in sight.bars.values())
    note = f", {sight.note}" if sight.note else ""
    return f"{sight.stage}, {members} members, {sight.tasks_per_s:.1f} tasks/s, {calls} model calls{note}"


class LiveBars:
    """Bars that move, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.text import Text

        self._console, self._group, self._text = Console(), Group, Text
        self._progress = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[running]} running on {task.fields[members]} members"),
            TimeElapsedColumn(),
            console=self._console,
            expand=True,
        )
        self._tasks: dict[str, Any] = {}
        self._live = Live(console=self._console, refresh_per_second=8, transient=False)
        self._live.start()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, sight: Sight) -> None:
        for name, bar in sight.bars.items():
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=None, running=0, members=0)
            self._progress.update(
                self._tasks[name],
                total=bar.total or None,
                completed=bar.done,
                running=bar.running,
                members=bar.members,
            )
        self._live.update(self._group(self._text(f" {_status(sight)}"), self._progress))

    def close(self) -> None:
        self._live.stop()
