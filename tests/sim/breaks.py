"""Rules of the core broken on purpose, to show that the simulation would notice."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from swarmd.core import evolve, member_facts
from swarmd.core.events import Resolved
from swarmd.core.health import Links
from swarmd.core.state import live_attempt
from swarmd.core.wait_facts import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

BREAKS: Final = ("epoch", "lease", "dedup", "stored", "wait", "recall")


def _reported_without_epoch(state: Any, commit: Any, subject: str, epoch: int) -> Any:
    """As in the fold, but whatever attempt is live is taken for the one that reports."""
    task = state.tasks.get(subject)
    if task is None:
        return "after_verdict"
    attempt = live_attempt(task)
    return "stale_epoch" if attempt is None else (task, attempt)


def _resolved_again(state: Any, commit: Any, index: int, subject: str, fact: Resolved, out: Any) -> str:
    """As in the fold, but the last answer counts instead of the first."""
    task = state.tasks.get(subject)
    if fact.term != state.term or task is None or fact.key not in task.awaited:
        return "unknown_wait"
    resolve(state, task, fact.key, (commit.seq, index), out)
    return ""


@contextmanager
def broken(rule: str) -> Iterator[None]:
    """Break `rule` for a while; "stored" and "recall" are broken in simulated shells, "" breaks nothing."""
    kept: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, value: Any) -> None:
        kept.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    if rule == "epoch":
        replace(member_facts, "reported", _reported_without_epoch)
    elif rule == "lease":
        replace(Links, "lapsed", lambda links, now_ms: [])
    elif rule == "dedup":
        replace(evolve, "admit", lambda state, writer, n, seen, seq: "")
    elif rule == "wait":
        replace(evolve, "TRANSITIONS", {**evolve.TRANSITIONS, Resolved: _resolved_again})
    elif rule not in ("", "stored", "recall"):
        raise ValueError(f"no such break: {rule!r}; there are {', '.join(BREAKS)}")
    try:
        yield
    finally:
        for owner, name, value in reversed(kept):
            setattr(owner, name, value)
