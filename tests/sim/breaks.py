"""Rules of the core broken on purpose, to show that the simulation would notice."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from swarmd.core import evolve, member_facts, moves
from swarmd.core.events import Resolved
from swarmd.core.health import Links
from swarmd.core.hedging import Hedging
from swarmd.core.keys import Keys
from swarmd.core.placing import Placing
from swarmd.core.state import live_attempt
from swarmd.core.wait_facts import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

BREAKS: Final = ("epoch", "lease", "dedup", "stored", "wait", "recall", "key", "share", "hedge")


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


def _occupied_for_ever(state: Any, task: Any, slots: int) -> None:
    """As in the fold, but what is given back is still counted."""
    state.tenants[task.tenant].slots += max(0, slots)


def _started_as_if_idempotent(hedging: Any, task: Any, attempt: Any, *, anew: bool = True) -> int:
    """As it is, but any agent may run twice at once."""
    hedging._allowance = 9.0
    return 50 if len(task.attempts) == 1 else 0


def _whoever_else(task: Any, attempt: Any, members: Any, free: Any) -> Any:
    """As it is, but whether the other member may run it beside the first is not asked."""
    able = (m for m in members if free[m.id] > 0 and m.id != attempt.member and task.agent in m.agents)
    return next(able, None)


@contextmanager
def broken(rule: str) -> Iterator[None]:
    """Break `rule` for a while; "stored" and "recall" are broken in simulated shells, "" breaks nothing."""
    kept: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, value: Any) -> None:
        kept.append((owner, name, vars(owner)[name]))
        setattr(owner, name, value)

    if rule == "epoch":
        replace(member_facts, "reported", _reported_without_epoch)
    elif rule == "lease":
        replace(Links, "lapsed", lambda links, now_ms: [])
    elif rule == "dedup":
        replace(evolve, "admit", lambda state, writer, n, seen, seq: "")
    elif rule == "wait":
        replace(evolve, "TRANSITIONS", {**evolve.TRANSITIONS, Resolved: _resolved_again})
    elif rule == "key":
        replace(Keys, "is_open", lambda keys, key: True)
    elif rule == "share":
        replace(moves, "occupy", _occupied_for_ever)
    elif rule == "hedge":
        replace(Hedging, "started", _started_as_if_idempotent)
        replace(Placing, "_other_member", staticmethod(_whoever_else))
    elif rule not in ("", "stored", "recall"):
        raise ValueError(f"no such break: {rule!r}; there are {', '.join(BREAKS)}")
    try:
        yield
    finally:
        for owner, name, value in reversed(kept):
            setattr(owner, name, value)
