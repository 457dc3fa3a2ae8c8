"""A loop that stands still is told of, with the place."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from swarmd.edges import stalls

if TYPE_CHECKING:
    import pytest


def block(until: list[float]) -> None:
    """What an agent must not do."""
    while not until:
        time.sleep(0.01)


def test_a_loop_that_stands_still_is_told_of_once_with_the_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stalls, "LOOK_S", 0.01)
    age, enough = 9.0, list[float]()

    def age_s() -> float:
        if len([line for line in caplog.messages if "stood still" in line]) == 1:
            enough.append(age)
        return 0.0 if len(enough) > 3 else age

    watch = stalls.StallWatch(age_s, 2.0)
    watch.start()
    block(enough)
    while "the event loop goes on" not in caplog.messages:
        time.sleep(0.01)
    watch.stop()
    (told,) = [line for line in caplog.messages if "stood still for 9.0 s" in line]
    assert "block (" in told
    assert "test_stalls.py:" in told
