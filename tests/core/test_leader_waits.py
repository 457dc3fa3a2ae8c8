"""The leader where tasks wait: ends of waits, escalations, answers, and what it tells those who run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmd.core.errors import Rejected
from swarmd.core.events import (
    Awaited,
    Cancelled,
    Completed,
    Escalated,
    Event,
    Paused,
    Question,
    Requeued,
    Resolved,
    Returned,
    Signalled,
    Spawned,
    Suspended,
    Told,
    Unpaused,
)
from swarmd.core.wire import ChildDone, Instruct, Pause, Receipt, Start, WaitDone
from tests.core.history import offer
from tests.sim.stage import LEASE_MS, Stage, wish

if TYPE_CHECKING:
    from swarmd.core.leader import Leader

NODE = "w/b/0"


def running(stage: Stage, **fields: Any) -> Leader:
    """A leader whose node runs task `t` at epoch 1, and has been told so."""
    leader = stage.leading()
    stage.member("w", (NODE, offer(NODE)))
    assert leader.submit(wish(**fields), "t", stage.now_ms, False, None) is None
    stage.decide(leader)
    stage.dispatched(leader)
    return leader


def awaits(stage: Stage, key: str, kind: Any, in_ms: int = 0, **fields: Any) -> None:
    until_ms = stage.now_ms + in_ms if in_ms else 0
    stage.member("w", ("t", Awaited(epoch=1, key=key, kind=kind, until_ms=until_ms, **fields)))


def pass_time(stage: Stage, leader: Leader, delay_ms: int) -> list[Event]:
    """Time passes while the member's heartbeats go on; what the leader decided."""
    events: list[Event] = []
    for _ in range(delay_ms // 10):
        stage.beat(leader, "w", ack=99)
        events += stage.wait(10, leader)
    return [event for event in events if isinstance(event.data, Resolved | Escalated | Requeued)]


def answer(leader: Leader, by: str, key: str = "q") -> None:
    leader.propose(Event("t", Resolved(term=leader.state.term, key=key, by=by)), by)


def code(answers: list[Any]) -> dict[str, str]:
    """Who was told what: the code of an error, or ""."""
    return {ask: receipt.error.code if receipt.error else "" for ask, receipt in answers}


def test_a_timer_ends_its_wait_once_and_wakes_the_sleeper() -> None:
    stage = Stage()
    leader = running(stage)
    awaits(stage, "z", "timer", in_ms=100)
    stage.member("w", ("t", Suspended(epoch=1, waits=[["z"]])))
    assert pass_time(stage, leader, 90) == []
    events = pass_time(stage, leader, 300)
    assert [event.data for event in events] == [Resolved(term=1, key="z", by="time", timed_out=True)]
    assert leader.state.tasks["t"].epoch == 2
    start = [item for _, item in stage.dispatched(leader) if isinstance(item, Start)][-1]
    assert start.epoch == 2
    assert start.resolved == {"z": leader.state.tasks["t"].awaited["z"].resolved}


def test_a_question_goes_up_level_by_level_and_then_ends() -> None:
    stage = Stage()
    leader = running(stage)
    asked = Question("Go on?", on_timeout="escalate", escalate_to=["boss", "chief"], timeout_ms=50)
    awaits(stage, "q", "human", in_ms=50, name="ada", question=asked)
    wait = leader.state.tasks["t"].awaited["q"]
    assert [event.data for event in pass_time(stage, leader, 50)] == [
        Escalated(term=1, key="q", level=1, to="boss", until_ms=stage.now_ms + 50)
    ]
    assert (wait.name, wait.level) == ("boss", 1)
    assert len(pass_time(stage, leader, 60)) == 1
    assert (wait.name, wait.level) == ("chief", 2)
    (end,) = pass_time(stage, leader, 200)
    assert end.data == Resolved(term=1, key="q", by="time", timed_out=True)


def test_a_new_leader_ends_the_waits_of_the_old_one_and_tells_what_may_not_have_been_told() -> None:
    stage = Stage()
    first = running(stage)
    awaits(stage, "z", "timer", in_ms=100)
    awaits(stage, "e", "event", name="rain")
    stage.write(first, [Event("s", Signalled(term=1, name="rain")), Event("t", Told(term=1, text="be brief"))])
    stage.write(first, [Event("t", Paused(term=1))])
    second = stage.leading("L2")
    items = [item for _, item in stage.dispatched(second)]
    task = second.state.tasks["t"]
    assert task.awaited["e"].resolved is not None
    assert WaitDone("t", "e", task.awaited["e"].resolved) in items
    assert Instruct("t", task.told[0]) in items
    assert Pause("t") in items
    assert [event.data for event in pass_time(stage, second, 150)] == [
        Resolved(term=2, key="z", by="time", timed_out=True)
    ]


def test_a_new_leader_tells_of_children_in_the_order_of_their_verdicts() -> None:
    """Whoever waits for the first of them must not be told of another one first."""
    stage = Stage()
    first = running(stage)
    stage.member("w", *(("t", Spawned(epoch=1, key=f"spawn#{n}", n=n, agent="a")) for n in (1, 2)))
    older, younger = list(first.state.tasks["t"].children)
    for child in (younger, older):
        stage.write(first, [Event(child, Cancelled(term=1))])
    told = [item.child for _, item in stage.dispatched(stage.leading("L2")) if isinstance(item, ChildDone)]
    assert told == [younger, older]


def test_of_two_answers_the_first_counts_and_the_second_is_told_so() -> None:
    stage = Stage()
    leader = running(stage)
    awaits(stage, "q", "human")
    answer(leader, "ada")
    answer(leader, "bob")
    assert leader.answers == []
    stage.decide(leader)
    assert code(leader.answers) == {"ada": "", "bob": "too_late"}


def test_whose_answer_counts_is_told_right_when_commits_are_folded_in_another_order() -> None:
    """Commits in flight may be stored in any order: it is the log's that decides."""
    stage = Stage()
    leader = running(stage)
    awaits(stage, "q", "human")
    made = stage.history._n["orchestrator", leader.writer, leader.boot]
    answer(leader, "ada")
    first = leader.decide()
    answer(leader, "bob")
    second = leader.decide()
    stage.write(leader, second, n=made + 2)
    assert code(leader.answers) == {"bob": ""}
    stage.write(leader, first, n=made + 1)
    assert code(leader.answers) == {"ada": "too_late", "bob": ""}


def test_an_answer_that_could_not_be_stored_is_told_to_who_gave_it() -> None:
    stage = Stage()
    leader = running(stage)
    awaits(stage, "q", "human", in_ms=100)
    answer(leader, "ada")
    answer(leader, "bob")
    events = leader.decide()
    leader.dropped(events[1:], Rejected("log_full", "the log is full"))
    stage.write(leader, events[:1])
    assert code(leader.answers) == {"bob": "log_full", "ada": ""}


def test_the_end_of_a_wait_that_could_not_be_stored_comes_again() -> None:
    stage = Stage()
    leader = running(stage)
    awaits(stage, "z", "timer", in_ms=50)
    stage.now_ms += 60
    leader.tick(stage.now_ms)
    leader.dropped(leader.decide(), Rejected("log_full", "the log is full"))
    (end,) = pass_time(stage, leader, 50)
    assert end.data == Resolved(term=1, key="z", by="time", timed_out=True)


def test_what_a_running_task_waits_for_and_is_told_reaches_its_member() -> None:
    stage = Stage()
    leader = running(stage)
    awaits(stage, "e", "event", name="rain")
    term = leader.state.term
    leader.propose(Event("s", Signalled(term=term, name="rain")), "weather")
    leader.propose(Event("t", Told(term=term, text="be brief")))
    leader.propose(Event("t", Paused(term=term)))
    stage.decide(leader)
    task = leader.state.tasks["t"]
    assert task.awaited["e"].resolved is not None
    assert [item for _, item in stage.dispatched(leader)] == [
        WaitDone("t", "e", task.awaited["e"].resolved),
        Instruct("t", task.told[0]),
        Pause("t"),
    ]
    assert leader.answers == [("weather", Receipt("s"))]


def test_a_paused_task_is_not_assigned_until_it_is_resumed() -> None:
    stage = Stage()
    leader = running(stage)
    leader.propose(Event("t", Paused(term=leader.state.term)))
    stage.decide(leader)
    stage.member("w", ("t", Returned(epoch=1)))
    assert stage.decide(leader) == []
    leader.propose(Event("t", Unpaused(term=leader.state.term)), "operator")
    stage.decide(leader)
    assert leader.state.tasks["t"].attempts.keys() == {2}


def test_a_task_of_the_future_begins_on_time_and_its_time_to_live_counts_from_then() -> None:
    stage = Stage()
    leader = stage.leading()
    stage.member("w", (NODE, offer(NODE)))
    begin_ms = stage.now_ms + 200
    assert leader.submit(wish(not_before_ms=begin_ms, timeout_ms=100), "t", stage.now_ms, False, None) is None
    stage.decide(leader)
    task = leader.state.tasks["t"]
    assert (task.state, task.deadline_at_ms) == ("delayed", begin_ms + 100)
    assert pass_time(stage, leader, 190) == []
    other = stage.leading("L2")
    assert [event.data for event in pass_time(stage, other, 20)] == [Requeued(term=2, epoch=0, reason="due")]
    assert task.state == "assigned"
    stage.member("w", ("t", Completed(epoch=1)))
    assert leader.state.tasks == other.state.tasks == {}


def test_a_sleeper_outlives_its_member() -> None:
    stage = Stage()
    leader = running(stage)
    awaits(stage, "e", "event", name="rain")
    stage.member("w", ("t", Suspended(epoch=1, waits=[["e"]])))
    stage.wait(10 * LEASE_MS, leader)
    assert leader.state.members == {}
    assert leader.state.tasks["t"].victims == ()
    stage.member("v", ("v/b/0", offer("v/b/0")))
    leader.propose(Event("s", Signalled(term=leader.state.term, name="rain")))
    stage.decide(leader)
    assert leader.state.tasks["t"].attempts[2].member == "v/b/0"
