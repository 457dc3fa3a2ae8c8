"""What counts as a lesson: a task that fails everywhere is nobody's fault, and one task is judged once."""

from __future__ import annotations

from swarmd.core.events import Completed, Failed, Failure, Rated, Requeued, RetryPolicy
from tests.core.history import NODE, OTHER, History

WHY = Failure("broken", "it broke")


def failed(history: History, member: str, epoch: int) -> None:
    """An attempt of `t` fails at this member, and the task waits again."""
    history.assigned("t", epoch, member)
    (history.work if member == NODE else history.other)("t", Failed(epoch=epoch, failure=WHY))
    history.lead("t", Requeued(term=1, epoch=epoch, reason="retry"))


def counted(history: History, member: str) -> int:
    pace = history.state.members[member].paces.get("a")
    return pace.ended if pace is not None else 0


def test_what_fails_at_several_members_is_no_ones_fault() -> None:
    history = History().joined().submitted("t")
    history.state.tasks["t"].retry = RetryPolicy(attempts_max=99)
    failed(history, NODE, 1)
    failed(history, NODE, 2)
    assert (counted(history, NODE), counted(history, OTHER)) == (2, 0)
    failed(history, OTHER, 3)
    failed(history, NODE, 4)
    failed(history, OTHER, 5)
    assert (counted(history, NODE), counted(history, OTHER)) == (2, 0)


def test_a_probe_counts_whatever_it_fails_of() -> None:
    history = History().joined().submitted("t")
    history.state.tasks["t"].retry = RetryPolicy(attempts_max=99)
    failed(history, OTHER, 1)
    history.state.members[NODE].quarantined = "it failed"
    failed(history, NODE, 2)
    assert counted(history, NODE) == 1


def test_a_task_is_judged_once() -> None:
    history = History().running()
    history.work("t", Completed(epoch=1))
    for _ in range(3):
        history.lead("t", Rated(term=1, score=-1.0))
    assert history.state.members[NODE].paces["a"].rated == 1
    assert history.state.tombstones["t"].rated
