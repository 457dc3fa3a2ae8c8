"""Progress on stderr: a line now and then where there is no terminal, a bar on one, nothing when quiet."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from swarmd.edges.cli import progress

if TYPE_CHECKING:
    import pytest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_where_there_is_no_terminal_lines_come_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 1.0, 10.0, 11.0, 16.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(times))
    with progress.progress("importing", "memories") as bar:
        bar.at(1, 100, 10)
        bar.at(50, 100, 5_000)
        bar.at(60, 100, 6_000)
        bar.at(3, 0)
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "importing: 50% 5,000 memories, 500 a second\nimporting:\n")


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("importing", "memories", quiet=True) as bar:
        bar.at(1, 2, 3)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with progress.progress("importing", "memories") as bar:
        bar.at(1, 2, 7)
    shown = screen.getvalue()
    assert "importing" in shown
    assert "50%" in shown
    assert "7 memories" in shown
