"""Two states of a swarm side by side: what differs, in words that an operator can act on. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from swarmd.core.state import SwarmState
    from swarmd.core.wire import SwarmStatus

DIFFERENCES_MAX: Final = 50
_SHOWN: Final = 80
#: Maps whose order says what is forgotten first.
_ORDERED: Final = ("dead", "tombstones", "older_tombstones")


def differences(left: SwarmState, right: SwarmState, names: tuple[str, str]) -> list[str]:
    """What `left` and `right` say differently, up to `DIFFERENCES_MAX` of it; `names` are what to call them."""
    found: list[str] = []
    for name in left.__struct_fields__:
        _compare(name, getattr(left, name), getattr(right, name), names, found)
    for name in _ORDERED:
        mine, theirs = list(getattr(left, name)), list(getattr(right, name))
        if mine != theirs and sorted(mine) == sorted(theirs):
            found.append(f"{name}: the same entries in another order")
    return _bounded(found)


def status_differences(state: SwarmState, status: SwarmStatus, name: str) -> list[str]:
    """Where a leader's own report differs from `state`, which must be folded up to the same sequence."""
    names = ("the log", name)
    found: list[str] = []
    _compare("seq", state.seq, status.seq, names, found)
    _compare("term", state.term, status.term, names, found)
    _compare("leader", state.leader_writer, status.leader, names, found)
    _compare("tasks", task_counts(state), status.tasks, names, found)
    _compare("counters", _plain(state.counters), status.counters, names, found)
    _compare("members", sorted(state.members), sorted(member.member for member in status.members), names, found)
    for member in status.members:
        folded = state.members.get(member.member)
        if folded is not None:
            path = f"members.{member.member}"
            _compare(f"{path}.running", len(folded.running), member.running, names, found)
            _compare(f"{path}.capacity", folded.capacity, member.capacity, names, found)
    return _bounded(found)


def task_counts(state: SwarmState) -> dict[str, int]:
    """How many tasks there are in each state, the dead ones included."""
    counts: dict[str, int] = {}
    for task in state.tasks.values():
        counts[task.state] = counts.get(task.state, 0) + 1
    if state.dead:
        counts["dead"] = len(state.dead)
    return counts


def _compare(path: str, left: Any, right: Any, names: tuple[str, str], found: list[str]) -> None:
    if len(found) > DIFFERENCES_MAX or left == right:
        return
    if isinstance(left, Struct) and type(left) is type(right):
        for name in left.__struct_fields__:
            _compare(f"{path}.{name}", getattr(left, name), getattr(right, name), names, found)
    elif isinstance(left, dict) and isinstance(right, dict):
        for key in {**left, **right}:
            if key not in right:
                found.append(f"{path}.{key}: only {names[0]} has it")
            elif key not in left:
                found.append(f"{path}.{key}: only {names[1]} has it")
            else:
                _compare(f"{path}.{key}", left[key], right[key], names, found)
            if len(found) > DIFFERENCES_MAX:
                return
    else:
        found.append(f"{path}: {names[0]} has {_shown(left)}, {names[1]} has {_shown(right)}")


def _bounded(found: list[str]) -> list[str]:
    if len(found) <= DIFFERENCES_MAX:
        return found
    return [*found[:DIFFERENCES_MAX], "and more"]


def _plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
