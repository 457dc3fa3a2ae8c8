"""The numbering of writers: each commit counts once, in whatever order it is stored."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core import commits
from swarmd.core.commits import WINDOW, admit
from swarmd.core.state import SwarmState


@st.composite
def within_window(draw: st.DrawFn) -> list[int]:
    """Commits 1..k shuffled by no more than the window, some of them repeated anywhere later."""
    count = draw(st.integers(1, 200))
    jitter = st.integers(0, WINDOW - 2)
    order = sorted(range(1, count + 1), key=lambda n: (n + draw(jitter), n))
    repeats = draw(st.lists(st.integers(0, count - 1), max_size=30))
    for at in repeats:
        order.insert(draw(st.integers(at + 1, len(order))), order[at])
    return order


@given(within_window())
@settings(deadline=None, max_examples=60)
def test_any_order_and_repetition_within_the_window_counts_each_once(order: list[int]) -> None:
    state = SwarmState("s")
    counted = [n for seq, n in enumerate(order, 1) if not admit(state, "worker/w/b", n, seq - 1, seq)]
    assert sorted(counted) == sorted(set(order))
    window = state.writers["worker/w/b"]
    assert (window.high, window.missing) == (max(order), [])
    assert state.counters.gaps == 0


def test_writers_and_boots_are_counted_apart() -> None:
    state = SwarmState("s")
    for seq, writer in enumerate(("worker/w/b", "worker/w/c", "worker/v/b", "delegate/w/b"), 1):
        assert admit(state, writer, 1, 0, seq) == ""
    assert admit(state, "worker/w/b", 1, 0, 5) == "repeated"


def test_what_never_came_is_a_gap_once_it_is_too_old_to_come() -> None:
    state = SwarmState("s")
    assert admit(state, "w", 1, 0, 1) == ""
    assert admit(state, "w", 3, 0, 2) == ""
    assert (state.writers["w"].missing, state.counters.gaps) == ([2], 0)
    assert admit(state, "w", 3 + WINDOW, 0, 3) == ""
    assert state.counters.gaps == 1
    assert admit(state, "w", 2, 0, 4) == "repeated"


def test_a_leap_is_bounded() -> None:
    state = SwarmState("s")
    assert admit(state, "w", 10**12, 0, 1) == ""
    assert len(state.writers["w"].missing) == WINDOW


def test_an_idle_writer_is_forgotten_only_when_its_repeats_are_void(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "HORIZON", 100)
    monkeypatch.setattr(commits, "SWEEP_EVERY", 10)
    state = SwarmState("s")
    assert admit(state, "idle", 1, 0, 1) == ""
    for seq in range(2, 112):
        assert admit(state, "busy", seq - 1, seq - 1, seq) == ""
        if "idle" not in state.writers:
            break
    assert state.seq == 0
    assert "idle" not in state.writers
    assert admit(state, "idle", 1, 0, seq) == "beyond_horizon"
    assert admit(state, "idle", 2, seq - 1, seq) == ""


def test_a_commit_that_saw_the_future_is_void() -> None:
    assert admit(SwarmState("s"), "w", 1, 9, 8) == "beyond_horizon"


@pytest.mark.parametrize("n", [0, -1])
def test_numbers_begin_at_one(n: int) -> None:
    assert admit(SwarmState("s"), "w", n, 0, 1) == "repeated"
