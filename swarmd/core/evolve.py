"""The fold: one commit changes the state it owns, deterministically, and says what follows from it.

It reads nothing but the log: no clock, no configuration. It never fails; what is stale by epoch, from the
wrong member, of a role without authority, or after a verdict changes nothing and is counted by reason.
It may mutate in place, since it runs tens of thousands of times a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from swarmd.core.codec import Commit, Garbage
from swarmd.core.commits import admit
from swarmd.core.events import AUTHORITY, LEADER_ROLES, MEMBER_ROLES, Fact
from swarmd.core.leader_facts import LEADER_TRANSITIONS
from swarmd.core.member_facts import MEMBER_TRANSITIONS
from swarmd.core.moves import Sink
from swarmd.core.state import SwarmState

#: A transition returns why it changed nothing, or "" when it was accepted.
Transition = Callable[[SwarmState, Commit, int, str, Any, Sink], str]
TRANSITIONS: Final[dict[type[Fact], Transition]] = {**LEADER_TRANSITIONS, **MEMBER_TRANSITIONS}

#: Which facts each role may write: `AUTHORITY`, the other way round.
_ALLOWED: Final[dict[str, frozenset[type]]] = {
    role: frozenset(kind for kind in AUTHORITY if role in AUTHORITY[kind]) for role in MEMBER_ROLES | LEADER_ROLES
}


def apply(state: SwarmState, commit: Commit | Garbage, refused: list[int] | None = None) -> Sink:
    """Fold one commit; return the effects of its accepted events, in order.

    `refused` collects the indexes of events that changed nothing, for readers who tell events on.
    """
    out: Sink = []
    state.seq = commit.seq
    state.message_id = commit.message_id
    if isinstance(commit, Garbage):
        state.counters.garbage += 1
        return out
    why = admit(state, f"{commit.role}/{commit.writer}/{commit.boot}", commit.n, commit.seen, commit.seq)
    if why:
        _ignore(state, why)
        if refused is not None:
            refused.extend(range(len(commit.events)))
        return out
    allowed, transitions = _ALLOWED.get(commit.role, frozenset()), TRANSITIONS
    for index, event in enumerate(commit.events):
        fact = event.data
        kind = type(fact)
        if kind in allowed:
            why = transitions[kind](state, commit, index, event.subject, fact, out)  # type: ignore[index, union-attr]
        elif fact is None:
            state.counters.garbage += 1
            continue
        else:
            why = "wrong_role"
        if why:
            _ignore(state, why)
            if refused is not None:
                refused.append(index)
    return out


def _ignore(state: SwarmState, why: str) -> None:
    ignored = state.counters.ignored
    ignored[why] = ignored.get(why, 0) + 1
