"""Waits, messages, instructions and pauses: what opens, resolves and wakes, and what changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest

from swarmd.core import effects as fx
from swarmd.core import wait_facts
from swarmd.core.events import (
    Assigned,
    Awaited,
    Cancelled,
    Completed,
    Dropped,
    Escalated,
    Failed,
    Failure,
    MemberJoined,
    Paused,
    Question,
    Redriven,
    Requeued,
    Resolved,
    RetryPolicy,
    Returned,
    Sent,
    Signalled,
    Spawned,
    Stepped,
    Suspended,
    Told,
    Unpaused,
)
from swarmd.core.state import Mail
from swarmd.core.wait_facts import question_id
from tests.core.history import NODE, OTHER, History

if TYPE_CHECKING:
    from swarmd.core.events import WaitKind

QUESTION = Question("Go on?", on_timeout="escalate", escalate_to=["boss"], timeout_ms=50)


def wait(key: str = "w", kind: WaitKind = "event", epoch: int = 1, **fields: Any) -> Awaited:
    if kind == "event":
        fields.setdefault("name", "rain")
    if kind == "human":
        fields.setdefault("question", QUESTION)
    return Awaited(epoch=epoch, key=key, kind=kind, **fields)


def asleep(*groups: list[str], waits: tuple[Awaited, ...] = ()) -> History:
    """Task `t` sleeps until all of one of `groups` is resolved."""
    history = History().running()
    history.work("t", *(waits or (wait(),)), Suspended(epoch=1, waits=list(groups)))
    return history


def kinds(effects: list[fx.Effect]) -> list[type[fx.Effect]]:
    return [type(effect) for effect in effects]


def state_of(history: History, task: str = "t") -> str:
    return history.state.tasks[task].state


# --- opening and resolving -------------------------------------------------------------------------


def test_a_wait_is_a_step_that_is_open_until_it_is_resolved() -> None:
    history = History().running()
    effects = history.work("t", wait("a", "timer", until_ms=70), wait("b", "human"), wait("c"))
    task = history.state.tasks["t"]
    assert kinds(effects) == [fx.WaitOpened] * 3
    assert list(task.attempts[1].journal) == ["a", "b", "c"]
    assert task.spent_steps == 3
    assert history.state.questions == {question_id("t", "b"): ("t", "b")}
    assert history.state.listeners == {"rain": {"t": ["c"]}}
    effects = history.lead("t", Resolved(term=1, key="b", by="ada"))
    assert effects == [fx.WaitEnded(task, "b", (7, 0))]
    assert task.awaited["b"].resolved == (7, 0)
    assert history.state.questions == {}
    assert history.state.closed == {question_id("t", "b"): (7, 0)}


def test_the_first_result_of_a_wait_holds() -> None:
    history = History().running()
    history.work("t", wait("b", "human"))
    history.lead("t", Resolved(term=1, key="b", by="ada"), Resolved(term=1, key="b", by="bob"))
    history.lead("t", Escalated(term=1, key="b", level=1, to="boss"))
    assert history.state.tasks["t"].awaited["b"].resolved == (7, 0)
    assert history.ignored() == {"already_resolved": 2}


def test_only_the_leader_resolves_and_only_what_is_awaited() -> None:
    history = History().running()
    history.work("t", wait("b", "human"))
    history.work("t", Resolved(term=1, key="b"))
    history.lead("t", Resolved(term=2, key="b"), Resolved(term=1, key="nothing"))
    history.lead("u", Resolved(term=1, key="b"))
    assert history.state.tasks["t"].awaited["b"].resolved is None
    assert history.ignored() == {"wrong_role": 1, "not_leader": 1, "unknown_wait": 2}


def test_a_repeated_wait_is_refused_and_one_of_an_earlier_branch_is_taken_up() -> None:
    history = History().running()
    history.work("t", wait(), wait())
    history.lead("t", Assigned(term=1, epoch=2, member=OTHER))  # hedged, from the branch with the wait
    history.lead("t", Requeued(term=1, epoch=2, reason="undelivered"))
    assert history.ignored() == {"repeated_step": 1}
    history = History().running()
    history.lead("t", Assigned(term=1, epoch=2, member=OTHER))  # hedged, before the wait
    history.work("t", wait())
    effects = history.other("t", wait(epoch=2))
    task = history.state.tasks["t"]
    assert effects == []
    assert task.attempts[2].journal == task.attempts[1].journal == {"w": (7, 0)}
    effects = history.lead("s", Signalled(term=1, name="rain"))
    assert effects == [fx.WaitEnded(task, "w", (9, 0))]


def test_an_escalation_moves_on_by_one_level_at_a_time() -> None:
    history = History().running()
    history.work("t", wait("b", "human", name="ada", until_ms=50))
    effects = history.lead("t", Escalated(term=1, key="b", level=1, to="boss", until_ms=100))
    opened = history.state.tasks["t"].awaited["b"]
    assert effects == [fx.WaitOpened(history.state.tasks["t"], "b", opened)]
    assert (opened.level, opened.name, opened.until_ms, opened.resolved) == (1, "boss", 100, None)
    history.lead("t", Escalated(term=1, key="b", level=1, to="boss"), Escalated(term=1, key="b", level=3, to="x"))
    history.lead("t", Escalated(term=1, key="gone", level=1, to="boss"))
    assert (opened.level, opened.until_ms) == (1, 100)
    assert history.ignored() == {"already_resolved": 2, "unknown_wait": 1}


def test_what_an_ended_task_waited_for_is_in_no_index_and_comes_back_with_it() -> None:
    history = History().running(retry=RetryPolicy(attempts_max=1))
    history.work("t", wait("b", "human"), wait("c"), wait("d", "timer", until_ms=9))
    history.work("t", Failed(epoch=1, failure=Failure("broken", "it broke")))
    state = history.state
    assert (state.questions, state.listeners, list(state.closed)) == ({}, {}, [question_id("t", "b")])
    effects = history.lead("t", Redriven(term=1))
    assert kinds(effects) == [fx.WaitOpened] * 3 + [fx.Queued]
    assert (list(state.questions), list(state.listeners), state.closed) == ([question_id("t", "b")], ["rain"], {})


def test_closed_questions_and_last_signals_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.core.moves.CLOSED_MAX", 2)
    monkeypatch.setattr(wait_facts, "SIGNALS_MAX", 2)
    history = History().running()
    for key in "abc":
        history.work("t", wait(key, "human"))
        history.lead("t", Resolved(term=1, key=key))
        history.lead("s", Signalled(term=1, name=key))
    assert list(history.state.closed) == [question_id("t", key) for key in "bc"]
    assert list(history.state.signals) == ["b", "c"]


# --- sleeping and waking ---------------------------------------------------------------------------


def test_a_task_sleeps_until_all_of_one_group_is_resolved() -> None:
    history = asleep(["w", "x"], ["y"], waits=(wait("w"), wait("x", "human"), wait("y", "timer", until_ms=5)))
    task = history.state.tasks["t"]
    assert (task.state, task.attempts, history.state.idle) == ("suspended", {}, {"t": None})
    assert kinds(history.lead("s", Signalled(term=1, name="rain"))) == []
    assert task.state == "suspended"
    effects = history.lead("t", Resolved(term=1, key="x"))
    assert effects == [fx.Queued(task)]
    assert (task.state, task.waits) == ("queued", ())
    history.lead("t", Resolved(term=1, key="y", by="time", timed_out=True))
    assert task.awaited["y"].resolved == (9, 0)


def test_one_of_several_groups_is_enough() -> None:
    history = asleep(["w", "x"], ["y"], waits=(wait("w"), wait("x", "human"), wait("y", "timer", until_ms=5)))
    effects = history.lead("t", Resolved(term=1, key="y", by="time", timed_out=True))
    assert kinds(effects) == [fx.Queued]


def test_children_and_waits_may_be_in_one_group() -> None:
    history = History().running()
    history.work("t", wait(), Spawned(epoch=1, key="s", n=1, agent="a"), Suspended(epoch=1, waits=[["t~1", "w"]]))
    history.assigned("t~1", member=OTHER)
    history.lead("s", Signalled(term=1, name="rain"))
    assert state_of(history) == "suspended"
    history.other("t~1", Completed(epoch=1))
    assert state_of(history) == "queued"


def test_nobody_sleeps_for_nothing_or_for_what_is_unknown() -> None:
    assert state_of(asleep()) == "queued"
    assert state_of(asleep(["w"], [])) == "queued"
    history = asleep(["w"], ["t~9"])
    assert state_of(history) == "assigned"
    assert history.ignored() == {"unknown_wait": 1}


def test_suspended_with_a_resolved_group_goes_straight_to_the_queue() -> None:
    history = History().running()
    history.work("t", wait(), wait("x", "human"))
    history.lead("s", Signalled(term=1, name="rain"))
    effects = history.work("t", Suspended(epoch=1, waits=[["w"], ["x"]]))
    assert kinds(effects) == [fx.Queued]


@pytest.mark.parametrize("again", ["retry", "lost", "returned"])
def test_a_wait_is_resolved_while_its_task_is_between_two_attempts(again: Literal["retry", "lost", "returned"]) -> None:
    history = History().running()
    history.work("t", wait())
    if again == "retry":
        history.work("t", Failed(epoch=1, failure=Failure("broken", "it broke")))
    elif again == "lost":
        history.lead("t", Requeued(term=1, epoch=1, reason="undelivered"))
    else:
        history.work("t", Returned(epoch=1))
    effects = history.lead("s", Signalled(term=1, name="rain"))
    assert effects == []
    assert history.state.tasks["t"].awaited["w"].resolved is not None


# --- signals ---------------------------------------------------------------------------------------


def test_a_signal_wakes_every_task_that_listens_or_the_one_it_names() -> None:
    history = History().running().submitted("u").assigned("u", member=OTHER)
    history.work("t", wait())
    history.other("u", wait("w1"), wait("w2"))
    history.lead("s", Signalled(term=1, name="rain", task="t"))
    assert history.state.listeners == {"rain": {"u": ["w1", "w2"]}}
    assert history.state.signals == {}  # what is meant for one is not an event for others who come later
    effects = history.lead("s", Signalled(term=1, name="rain"))
    assert kinds(effects) == [fx.WaitEnded] * 2
    assert history.state.listeners == {}
    history.work("s", Signalled(term=1, name="rain"))
    history.lead("s", Signalled(term=4, name="rain"))
    assert history.ignored() == {"wrong_role": 1, "not_leader": 1}


def test_an_earlier_event_counts_only_for_those_who_say_so() -> None:
    history = History().running()
    history.lead("s", Signalled(term=1, name="rain"))
    history.lead("s", Signalled(term=1, name="rain"))
    effects = history.work("t", wait("a"), wait("b", earlier=True))
    waits = history.state.tasks["t"].awaited
    assert (waits["a"].resolved, waits["b"].resolved) == (None, (7, 0))  # the last of its name
    assert kinds(effects) == [fx.WaitOpened, fx.WaitEnded]


# --- messages --------------------------------------------------------------------------------------


def send(to: str, key: str = "m", epoch: int = 1) -> Sent:
    return Sent(epoch=epoch, key=key, to=to)


def pair() -> History:
    """`t` runs on the first node, `u` on the other."""
    return History().running().submitted("u").assigned("u", member=OTHER)


def test_a_message_reaches_who_waits_for_it_or_lies_in_the_mailbox() -> None:
    history = pair()
    history.work("t", send("task:u", "m1"), send("task:u", "m2"))
    receiver = history.state.tasks["u"]
    assert list(receiver.mailbox) == [Mail((8, 0), "t"), Mail((8, 1), "t")]
    effects = history.other("u", wait("r1", "message"), wait("r2", "message", name="nobody"), wait("r3", "message"))
    assert kinds(effects) == [fx.WaitEnded, fx.WaitOpened, fx.WaitEnded]
    assert not receiver.mailbox
    assert [receiver.awaited[key].resolved for key in ("r1", "r2", "r3")] == [(8, 0), None, (8, 1)]
    history.other("u", wait("r4", "message", name="t"))
    history.work("t", send("task:u", "m3"), send("task:u", "m4"))
    assert receiver.awaited["r4"].resolved == (11, 0)
    assert list(receiver.mailbox) == [Mail((11, 1), "t")]


def test_a_message_wakes_a_sleeping_receiver() -> None:
    history = pair()
    history.other("u", wait("r", "message"), Suspended(epoch=1, waits=[["r"]]))
    effects = history.work("t", send("task:u"))
    assert effects == [fx.Queued(history.state.tasks["u"])]


def test_a_message_is_sent_once_whatever_branches_send_it() -> None:
    history = pair()
    history.lead("t", Assigned(term=1, epoch=2, member=OTHER))
    history.work("t", send("task:u"), send("task:u"))
    history.other("t", send("task:u", epoch=2))
    assert len(history.state.tasks["u"].mailbox) == 1
    assert history.ignored() == {"repeated_step": 1}


def test_a_broadcast_reaches_every_task_of_an_agent_that_has_begun_once() -> None:
    """Whatever they are doing: running (even twice, hedged), asleep, backing off, paused, waiting for a slot again."""
    history = History().joined()
    names = ["runs", "hedged", "sleeps", "fails", "pauses", "again", "fresh", "other"]
    for name in names:
        history.submitted(name, agent="b" if name == "other" else "a")
        if name != "fresh":
            history.assigned(name)
    history.lead("hedged", Assigned(term=1, epoch=2, member=OTHER))
    history.work("sleeps", wait(), Suspended(epoch=1, waits=[["w"]]))
    history.work("fails", Failed(epoch=1, failure=Failure("broken", "it broke")))
    history.lead("pauses", Paused(term=1))
    history.work("pauses", Suspended(epoch=1, waits=[]))
    history.work("again", Returned(epoch=1))
    history.submitted("t").assigned("t")
    history.work("t", send("agent:a"))
    letters = {name: len(task.mailbox) for name, task in history.state.tasks.items()}
    assert letters == {name: int(name not in ("fresh", "other")) for name in names} | {"t": 0}


def test_the_family_is_parent_siblings_and_children() -> None:
    history = History().running()
    spawned = [Spawned(epoch=1, key=f"s{n}", n=n, agent="a") for n in (1, 2)]
    history.work("t", *spawned)
    history.assigned("t~1", member=OTHER)
    history.other("t~1", Spawned(epoch=1, key="s", n=1, agent="a"))
    history.other("t~1", send("family"))
    letters = {name: len(task.mailbox) for name, task in history.state.tasks.items()}
    assert letters == {"t": 1, "t~1": 0, "t~2": 1, "t~1~1": 1}


def test_a_message_to_a_member_reaches_what_it_runs_and_one_to_nobody_nobody() -> None:
    history = pair()
    history.work("t", send(f"member:{OTHER}", "m1"), send("member:none", "m2"), send("task:none", "m3"))
    history.work("t", send("u", "m4"), send("kin", "m5"), send("", "m6"))
    assert [mail.place for mail in history.state.tasks["u"].mailbox] == [(8, 0)]
    assert history.state.tasks["t"].mailbox == ()


def test_a_full_mailbox_takes_no_more_and_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait_facts, "MAILBOX_MAX", 2)
    history = pair()
    history.work("t", *(send("task:u", f"m{n}") for n in range(3)))
    history.lead("u", *(Told(term=1, text="x") for _ in range(3)))
    receiver = history.state.tasks["u"]
    assert (len(receiver.mailbox), len(receiver.told)) == (2, 2)
    assert history.ignored() == {"mailbox_full": 2}


# --- children, instructions, pauses ----------------------------------------------------------------


def test_dropped_children_are_cancelled_and_nobody_elses() -> None:
    history = pair()
    history.work("t", Spawned(epoch=1, key="s", n=1, agent="a"), Spawned(epoch=1, key="s2", n=2, agent="a"))
    history.assigned("t~1", member=OTHER)
    effects = history.work("t", Dropped(epoch=1, key="d", children=["t~1", "u", "none", "t~1"], reason="enough"))
    ended = [effect for effect in effects if isinstance(effect, fx.Ended)]
    assert [(end.task.id, end.state, end.failure) for end in ended] == [
        ("t~1", "cancelled", Failure("cancelled", "enough"))
    ]
    assert fx.Stopped("t~1", 1, history.state.members[OTHER]) in effects
    assert set(history.state.tasks) == {"t", "u", "t~2"}
    assert history.state.tasks["t"].children == {"t~1": ended[0].place, "t~2": None}


def test_instructions_are_kept_in_order_and_told_to_who_runs() -> None:
    history = History().running()
    task = history.state.tasks["t"]
    assert history.lead("t", Told(term=1, text="be brief")) == [fx.Instructed(task, (6, 0))]
    history.work("t", Returned(epoch=1))
    assert history.lead("t", Told(term=1, text="be quick")) == []
    assert list(task.told) == [(6, 0), (8, 0)]
    history.lead("gone", Told(term=1, text="hello"))
    history.lead("t", Told(term=3, text="hello"))
    assert history.ignored() == {"unknown_task": 1, "not_leader": 1}


def test_a_paused_task_waits_for_no_slot_until_it_is_resumed() -> None:
    history = History().joined().submitted()
    task = history.state.tasks["t"]
    assert history.lead("t", Paused(term=1)) == [fx.Parked(task)]
    history.assigned()
    assert (task.state, task.attempts) == ("paused", {})
    assert history.lead("t", Unpaused(term=1)) == [fx.Queued(task)]
    history.lead("t", Unpaused(term=1))
    assert history.ignored() == {"not_queued": 1, "not_paused": 1}


def test_a_running_task_is_paused_at_its_next_step() -> None:
    history = History().running()
    task = history.state.tasks["t"]
    assert history.lead("t", Paused(term=1), Paused(term=1)) == [fx.PauseWanted(task)]
    assert task.state == "assigned"
    assert history.work("t", Suspended(epoch=1, waits=[])) == []
    assert (task.state, task.paused) == ("paused", True)
    assert history.ignored() == {"already_paused": 1}


def test_a_paused_sleeper_is_woken_and_stays_paused() -> None:
    history = asleep(["w"])
    history.lead("t", Paused(term=1))
    assert state_of(history) == "suspended"
    assert history.lead("s", Signalled(term=1, name="rain")) == []
    assert state_of(history) == "paused"
    assert kinds(history.lead("t", Unpaused(term=1))) == [fx.Queued]


def test_a_paused_task_can_be_cancelled() -> None:
    history = asleep(["w"])
    history.lead("t", Paused(term=1), Cancelled(term=1))
    assert (history.state.tasks, history.state.idle, history.state.listeners) == ({}, {}, {})


# --- a beginning in the future, versions -----------------------------------------------------------


def test_a_task_of_the_future_is_delayed_until_the_leader_says_so() -> None:
    history = History().joined()
    history.submitted(not_before_ms=500)
    task = history.state.tasks["t"]
    assert (task.state, task.not_before_ms) == ("delayed", 500)
    history.assigned()
    history.lead("t", Requeued(term=1, epoch=0, reason="retry"))
    history.lead("t", Paused(term=1))
    history.lead("t", Requeued(term=1, epoch=0, reason="due"))
    assert task.state == "paused"
    assert kinds(history.lead("t", Unpaused(term=1))) == [fx.Queued]
    history.lead("t", Requeued(term=1, epoch=0, reason="due"))
    assert history.ignored() == {"not_queued": 1, "stale_epoch": 2}


def offers(member: str, versions: list[str]) -> MemberJoined:
    return MemberJoined(member=member, kind="node", agents=["a"], capacity=2, versions={"a": versions})


def test_a_task_keeps_the_version_it_began_with() -> None:
    history = History().elected()
    history.work(NODE, offers(NODE, ["2", "1"]))
    history.other(OTHER, offers(OTHER, ["3"]))
    history.submitted().assigned()
    task = history.state.tasks["t"]
    assert task.version == "2"
    history.work("t", Stepped(epoch=1, key="k", kind="step"), Returned(epoch=1))
    history.assigned(epoch=2, member=OTHER)
    assert (task.state, history.ignored()) == ("queued", {"other_version": 1})
    history.other(OTHER, offers(OTHER, ["3", "2"]))
    history.assigned(epoch=2, member=OTHER)
    assert (task.state, task.version) == ("assigned", "2")


def test_a_member_that_names_no_version_runs_the_first() -> None:
    history = History().elected()
    history.work(NODE, offers(NODE, []))
    history.submitted().assigned()
    assert history.state.tasks["t"].version == "1"


def test_what_a_dead_task_did_not_receive_is_there_when_it_is_redriven() -> None:
    history = pair()
    history.work("t", send("task:u", "m1"))
    history.other("u", Failed(epoch=1, failure=Failure("x", "x"), retryable=False))
    history.lead("u", Redriven(term=1), Assigned(term=1, epoch=2, member=NODE))
    history.work("u", wait("receive", "message", epoch=2))
    assert history.state.tasks["u"].awaited["receive"].resolved is not None


def test_a_parent_keeps_the_first_verdict_of_a_child_that_is_redriven() -> None:
    """It may have acted on it, and a resumed attempt must find what the one before it found."""
    history = History().running()
    history.work("t", Spawned(epoch=1, key="spawn", n=1, agent="a"))
    child = next(iter(history.state.tasks["t"].children))
    history.lead(child, Assigned(term=1, epoch=1, member=NODE))
    history.work(child, Failed(epoch=1, failure=Failure("x", "x"), retryable=False))
    first = history.state.tasks["t"].children[child]
    history.lead(child, Redriven(term=1), Assigned(term=1, epoch=2, member=NODE))
    history.work(child, Completed(epoch=2))
    assert history.state.counters.completed == 1
    assert history.state.tasks["t"].children[child] == first
