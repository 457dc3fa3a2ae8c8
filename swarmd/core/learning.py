"""What reports and judgements teach (experience.py), and the facts about members that follow from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import structs

from swarmd.core import effects as fx
from swarmd.core import experience
from swarmd.core.events import Quarantined, Rated, Readmitted, Recalled
from swarmd.core.experience import Learned, Pace
from swarmd.core.moves import Sink, end
from swarmd.core.outcomes import recalled
from swarmd.core.state import tombstone
from swarmd.core.wait_facts import leads

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.core.codec import Commit
    from swarmd.core.events import Fact
    from swarmd.core.state import Attempt, Member, SwarmState, Task


def _pace(member: Member, agent: str) -> Pace:
    pace = member.paces.get(agent)
    if pace is None:
        pace = member.paces[agent] = Pace()
    return pace


def learn(state: SwarmState, task: Task, attempt: Attempt, at_ms: int, failed: bool = False) -> None:
    """An attempt ended with a result, or with a failure that another attempt might not have."""
    agent = task.agent
    pace = _pace(state.members[attempt.member], agent)
    if failed or not attempt.begun:
        experience.ended(pace, failed, at_ms)
        return
    learned = state.learned.get(agent)
    if learned is None:
        learned = state.learned[agent] = Learned()
    since_ms = attempt.since_ms
    experience.ran(learned, pace, at_ms - since_ms if at_ms > since_ms else 0, at_ms)


def _rated(state: SwarmState, commit: Commit, index: int, subject: str, fact: Rated, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    buried = tombstone(state, subject)
    if buried is None:
        return "unknown_task"
    member = state.members.get(buried.member)
    if member is not None and not buried.rated:  # however often somebody says it, it is one task that was done
        experience.rated(_pace(member, buried.agent), min(1.0, max(-1.0, fact.score)))
    generation = state.tombstones if subject in state.tombstones else state.older_tombstones
    generation[subject] = structs.replace(buried, rated=True)
    return ""


def _recalled(state: SwarmState, commit: Commit, index: int, subject: str, fact: Recalled, out: Sink) -> str:
    if not leads(state, commit, fact.term):
        return "not_leader"
    task = state.tasks.get(subject)
    if task is None:
        return "unknown_task"
    if task.epoch or task.state != "queued":
        return "begun"
    end(state, fx.Ended(task, "cancelled", (commit.seq, index), failure=recalled(fact.reason)), out)
    return ""


def _quarantined(state: SwarmState, commit: Commit, index: int, subject: str, fact: Quarantined, out: Sink) -> str:
    return _judge(state, commit, fact, fact.reason or "quarantined", out)


def _readmitted(state: SwarmState, commit: Commit, index: int, subject: str, fact: Readmitted, out: Sink) -> str:
    return _judge(state, commit, fact, "", out)


def _judge(state: SwarmState, commit: Commit, fact: Quarantined | Readmitted, quarantined: str, out: Sink) -> str:
    """The member counts by what it does from here on: probes, or what it is given when it is taken back."""
    if not leads(state, commit, fact.term):
        return "not_leader"
    member = state.members.get(fact.member)
    if member is None:
        return "unknown_member"
    member.quarantined = quarantined
    for pace in member.paces.values():
        pace.ended, pace.failing = 0, 0.0
    out.append(fx.Judged(member))
    return ""


LEARNING_TRANSITIONS: Final[dict[type[Fact], Callable[..., str]]] = {
    Rated: _rated,
    Recalled: _recalled,
    Quarantined: _quarantined,
    Readmitted: _readmitted,
}
