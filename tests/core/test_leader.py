"""The leader machine where no law is at stake: what it decides in which order."""

from __future__ import annotations

from tests.core.history import offer
from tests.sim.stage import Stage, wish


def test_a_cancellation_does_not_overtake_the_submission_it_is_of() -> None:
    """Both wait for the writer at once; the fold would not know the task if the cancellation stood first."""
    stage = Stage()
    leader = stage.leading()
    stage.member("w", ("w/b/0", offer("w/b/0")))
    assert leader.submit(wish(), "t", stage.now_ms, False, "client") is None
    leader.cancel("t", "changed my mind")
    stage.decide(leader)
    assert leader.state.tasks == {}
    assert leader.state.tombstones["t"].state == "cancelled"
    assert stage.started(leader) == []
