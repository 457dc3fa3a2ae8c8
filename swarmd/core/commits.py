"""Which commits count: the numbering of every writer of a log.

A writer's boot numbers its commits from 1 and repeats one under the same number when a receipt is lost.
The fold applies each number once, in whatever order it is stored. A commit whose writer had last seen
something more than `HORIZON` sequences ago is void, which lets the numbering of silent writers be
forgotten: whatever they might still repeat is older than that.
"""

from __future__ import annotations

from typing import Final, Protocol

from swarmd.core.state import Counters, WriterWindow

#: Sequences (commits, not events) after which a writer's silence makes its repeats void.
HORIZON: Final = 200_000
#: How far below its highest number a commit may still arrive; writers keep far fewer in flight.
WINDOW: Final = 128
#: Every so many sequences the writers beyond the horizon are forgotten.
SWEEP_EVERY: Final = 4_096


class Numbered(Protocol):
    """A fold that keeps the numbering of its log's writers."""

    writers: dict[str, WriterWindow]
    counters: Counters


def admit(state: Numbered, writer: str, n: int, seen: int, seq: int) -> str:
    """Enter commit `n` of `writer` (role/name/boot); return why it does not count, or "" when it does."""
    if seq % SWEEP_EVERY == 0:
        _forget(state, seq)
    if seen < seq - HORIZON or seen > seq:
        return "beyond_horizon"
    window = state.writers.get(writer)
    if window is None:
        window = state.writers[writer] = WriterWindow()
    if n > window.high:
        if n > window.high + 1:
            window.missing.extend(range(max(window.high + 1, n - WINDOW), n))
            state.counters.gaps += max(0, n - WINDOW - window.high - 1)
        window.high = n
        if window.missing and window.missing[0] < n - WINDOW:
            kept = [hole for hole in window.missing if hole >= n - WINDOW]
            state.counters.gaps += len(window.missing) - len(kept)
            window.missing = kept
    elif n in window.missing:
        window.missing.remove(n)
    else:
        return "repeated"
    window.last_seq = seq
    return ""


def _forget(state: Numbered, seq: int) -> None:
    silent = [writer for writer, window in state.writers.items() if window.last_seq < seq - HORIZON]
    for writer in silent:
        state.counters.gaps += len(state.writers.pop(writer).missing)
