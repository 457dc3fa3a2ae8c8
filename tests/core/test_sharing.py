"""What a child swarm has room for, and what is recalled from it: given loads, then slots and recalls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from swarmd.core import ids
from swarmd.core.events import Completed, MemberJoined, Recalled, Returned
from swarmd.core.sharing import (
    AGAIN_MS,
    ASKED_MAX,
    PATH_LABEL,
    RECALLABLE_MAX,
    RING_LABEL,
    Handed,
    free_slots,
    labels_for,
    line_slots,
    path_of,
    swarm_load,
    takes,
)
from swarmd.core.state import Member, TaskState
from swarmd.core.wire import Heartbeat, Load, Recall, Replaced, SwarmLoad
from tests.core.history import History
from tests.sim.stage import Stage, wish

if TYPE_CHECKING:
    from swarmd.core.leader import Leader

KID, KIN = ids.swarm_member("kid"), ids.swarm_member("kin")


def child(capacity: int = 8, running: int = 0) -> Member:
    member = Member(KID, "swarm", "delegate", "kid", "d1", ["a"], capacity)
    member.running = {f"t{n}": 1 for n in range(running)}
    return member


def test_a_member_without_a_load_has_what_it_does_not_run() -> None:
    assert free_slots(child(8, running=3), None, taken=2) == 3
    assert free_slots(child(2, running=3), None) == 0


def test_an_attempt_that_ends_makes_room_at_once_and_one_that_was_handed_over_takes_it() -> None:
    load = Load(free=2, slots=6, held=4)  # two slots of the child are its own clients'
    assert free_slots(child(8, running=4), load) == 2
    assert free_slots(child(8, running=3), load) == 3
    assert free_slots(child(8, running=4), load, taken=2) == 0


def test_where_something_waits_only_what_was_free_is_there_for_others() -> None:
    full = Load(queued=5, free=0, slots=3, held=3)
    assert free_slots(child(8, running=3), full) == 0
    assert free_slots(child(8, running=1), full) == 0, "what waits in the child gets these slots"
    other_agents = Load(queued=5, free=2, slots=5, held=3, full=["a"])
    assert [free_slots(child(8, running=3), other_agents, taken) for taken in (0, 1, 2, 3)] == [2, 1, 0, 0]
    assert not takes(other_agents, "a")
    assert takes(other_agents, "b")
    assert takes(None, "a")


def test_a_few_may_stand_in_line_where_nothing_is_free() -> None:
    full = Load(queued=5, slots=3, held=3)
    assert [line_slots(child(16, running=3), full, taken) for taken in (0, 1, 2)] == [2, 1, 0]
    assert line_slots(child(16, running=4), Load(queued=5, slots=3, held=4, waiting=1)) == 1
    assert line_slots(child(2, running=0), full) == 1
    assert line_slots(child(2, running=2), full) == 0
    assert line_slots(child(16), Load(free=3, slots=3)) == 0, "nothing waits there"
    assert line_slots(child(16), None) == 0


def test_a_delegate_knows_which_of_its_attempts_wait() -> None:
    handed = Handed()
    for name in ("t1", "t2", "t3"):
        handed.accepted(name)
    asked = handed.look()
    handed.accepted("t4")  # too late to be asked about
    handed.ended("t3")
    load = handed.told(asked, SwarmLoad("kid", ["a"], 4, Load(queued=1, free=0, below=["deep"]), waiting=["t2"]))
    assert (load.held, load.waiting, load.slots, load.below) == (3, 1, 2, ["kid", "deep"])
    assert handed.recallable() == ["t2"]
    assert handed.look() == ["t4", "t2"], "what has begun is not asked about again"
    handed.ended("t2")
    assert handed.recallable() == []


def test_a_delegate_asks_about_so_many_at_once_and_names_so_many() -> None:
    handed = Handed()
    for n in range(ASKED_MAX + 5):
        handed.accepted(f"t{n}")
    asked = handed.look()
    assert (len(asked), asked[0]) == (ASKED_MAX, f"t{ASKED_MAX + 4}")
    handed.told(asked, SwarmLoad("kid", ["a"], 4, Load(), waiting=asked))
    assert len(handed.recallable()) == RECALLABLE_MAX


def test_the_path_of_a_task_gives_way_to_other_labels() -> None:
    assert path_of({PATH_LABEL: "top/middle"}, "low") == ["top", "middle", "low"]
    assert labels_for({"a": "1"}, ["top"]) == {"a": "1", PATH_LABEL: "top"}
    assert labels_for({}, ["x" * 200, "y" * 60]) == {PATH_LABEL: "y" * 60}
    many = {str(n): "" for n in range(32)}
    assert labels_for(many, ["top"]) == many


# --- the leader ------------------------------------------------------------------------------------


def joined(stage: Stage, name: str, capacity: int = 2, **fields: Any) -> None:
    member = ids.swarm_member(name)
    agents = fields.pop("agents", ["a"])
    fact = MemberJoined(member=member, kind="swarm", agents=agents, capacity=capacity, **fields)
    stage.member(name, (member, fact), role="delegate", boot="d1")


def spoken_for(stage: Stage, boot: str) -> None:
    """Another process joins for the child."""
    fact = MemberJoined(member=KID, kind="swarm", agents=["a"], capacity=8)
    stage.member("kid", (KID, fact), role="delegate", boot=boot)


def beat(stage: Stage, leader: Leader, name: str, load: Load, waiting: tuple[str, ...] = (), boot: str = "d1") -> None:
    state = leader.state
    recallable = [(task, state.tasks[task].epoch) for task in waiting]
    fact = Heartbeat("delegate", name, boot, 0, 0, state.seq, {}, None, {ids.swarm_member(name): load}, recallable)
    leader.heartbeat(fact, stage.now_ms)


def submitted(stage: Stage, leader: Leader, *tasks: str, **fields: Any) -> None:
    for task in tasks:
        assert leader.submit(wish(**fields), task, stage.now_ms, False, "client") is None
    stage.decide(leader)


def recalls(stage: Stage, leader: Leader) -> list[tuple[str, int]]:
    leader.tick(stage.now_ms)
    return [(item.task, item.epoch) for _, item in stage.dispatched(leader) if isinstance(item, Recall)]


def overloaded(stage: Stage, *tasks: str, **fields: Any) -> Leader:
    """A leader whose child `kid` was handed these, and whose clients were faster; `kin` joins with two slots."""
    leader = stage.leading()
    joined(stage, "kid", capacity=len(tasks))
    submitted(stage, leader, *tasks, **fields)
    assert [leader.state.tasks[task].state for task in tasks] == ["assigned"] * len(tasks)
    stage.dispatched(leader)
    joined(stage, "kin")
    held = len(tasks)
    beat(stage, leader, "kid", Load(queued=held, members=1, held=held, waiting=held), tasks)
    return leader


def test_what_waits_in_a_child_is_recalled_for_as_many_slots_as_are_free_elsewhere() -> None:
    stage = Stage()
    leader = overloaded(stage, "t1", "t2", "t3")
    assert recalls(stage, leader) == [("t1", 1), ("t2", 1)]
    assert recalls(stage, leader) == [], "the slots are meant for those two"
    stage.member("kid", ("t1", Returned(epoch=1, reason="recalled")), role="delegate", boot="d1")
    stage.decide(leader)
    assert leader.state.tasks["t1"].attempts[2].member == KIN
    assert recalls(stage, leader) == []
    stage.member("kin", ("t1", Completed(epoch=2)), role="delegate", boot="d1")
    assert recalls(stage, leader) == [("t3", 1)]


def test_a_recall_that_came_to_nothing_is_tried_again_after_a_while() -> None:
    stage = Stage()
    leader = overloaded(stage, "t1")
    assert recalls(stage, leader) == [("t1", 1)]
    stage.now_ms += AGAIN_MS // 2
    for name in ("kid", "kin"):
        beat(stage, leader, name, Load(queued=1, held=1, waiting=1) if name == "kid" else Load(free=2, slots=2), ())
    beat(stage, leader, "kid", Load(queued=1, held=1, waiting=1), ("t1",))
    assert recalls(stage, leader) == []
    stage.now_ms += AGAIN_MS // 2 + 1
    assert recalls(stage, leader) == [("t1", 1)]


def test_the_most_urgent_is_recalled_first_and_only_where_it_can_run() -> None:
    stage = Stage()
    leader = stage.leading()
    joined(stage, "kid", capacity=4, labels={"swarm": "kid"}, agents=["a", "b"])
    submitted(stage, leader, "plain")
    submitted(stage, leader, "bound", requires={"swarm": "kid"})
    submitted(stage, leader, "other", agent="b")
    submitted(stage, leader, "urgent", priority=5)
    joined(stage, "kin", capacity=1, labels={"swarm": "kin"})
    tasks = ("plain", "bound", "other", "urgent")
    beat(stage, leader, "kid", Load(queued=4, held=4, waiting=4), tasks)
    stage.dispatched(leader)
    assert recalls(stage, leader) == [("urgent", 1)]


def test_nothing_is_recalled_for_a_child_that_is_full_itself() -> None:
    stage = Stage()
    leader = overloaded(stage, "t1")
    beat(stage, leader, "kin", Load(queued=2, members=1))
    assert recalls(stage, leader) == []
    beat(stage, leader, "kin", Load(queued=2, free=1, slots=1, full=["a"]))
    assert recalls(stage, leader) == [], "its free slot is not for this agent"
    beat(stage, leader, "kin", Load(free=1, slots=1))
    assert recalls(stage, leader) == [("t1", 1)]


def test_what_finds_no_free_slot_stands_in_line_and_priority_decides_who() -> None:
    stage = Stage()
    leader = stage.leading()
    joined(stage, "kid", capacity=8)
    beat(stage, leader, "kid", Load(queued=9, members=1))
    submitted(stage, leader, "low")
    assert leader.state.tasks["low"].state == "assigned"
    submitted(stage, leader, "mid", "late")
    submitted(stage, leader, "high", priority=9)
    assert {leader.state.tasks[task].state for task in ("mid", "late", "high")} == {"queued"}
    beat(stage, leader, "kid", Load(queued=9, members=1, held=0, slots=0))
    stage.member("kid", ("low", Completed(epoch=1)), role="delegate", boot="d1")
    stage.decide(leader)
    assert [task.id for task in leader.state.tasks.values() if task.attempts] == ["high"]


def test_a_child_without_a_slot_for_an_agent_is_not_given_it() -> None:
    stage = Stage()
    leader = stage.leading()
    joined(stage, "kid", capacity=8, agents=["a", "b"])
    beat(stage, leader, "kid", Load(free=3, slots=3, full=["a"]))
    submitted(stage, leader, "ta")
    submitted(stage, leader, "tb", agent="b")
    assert [leader.state.tasks[task].state for task in ("ta", "tb")] == ["queued", "assigned"]


def test_an_offer_that_changes_does_not_forget_the_load_but_a_new_delegate_does() -> None:
    stage = Stage()
    leader = stage.leading()
    joined(stage, "kid", capacity=8)
    load = Load(free=1, slots=1)
    beat(stage, leader, "kid", load)
    joined(stage, "kid", capacity=7)
    assert leader.links.load(KID) == load
    stage.member(
        "kid", (KID, MemberJoined(member=KID, kind="swarm", agents=["a"], capacity=8)), role="delegate", boot="d2"
    )
    assert leader.links.load(KID) is None


def test_of_two_delegates_that_live_the_one_that_was_replaced_is_told() -> None:
    stage = Stage()
    leader = stage.leading()
    joined(stage, "kid")
    stage.member(
        "kid", (KID, MemberJoined(member=KID, kind="swarm", agents=["a"], capacity=8)), role="delegate", boot="d2"
    )
    stage.dispatched(leader)
    beat(stage, leader, "kid", Load(), boot="d2")
    beat(stage, leader, "kid", Load(), boot="d1")
    assert stage.dispatched(leader) == [("kid/d1", Replaced(KID))]
    assert leader.links.load(KID) == Load(), "of the one that speaks"


# --- the child -------------------------------------------------------------------------------------


def test_a_swarm_says_what_it_has_room_for() -> None:
    stage = Stage()
    leader = stage.leading()
    node = ids.node_member("w", "b", 0)
    stage.member("w", (node, MemberJoined(member=node, kind="node", agents=["a", "c"], capacity=1)))
    joined(stage, "kid", capacity=4, agents=["b", "c"])
    beat(stage, leader, "kid", Load(free=2, slots=2, below=["kid", "deep"]))
    submitted(stage, leader, "t1", "t2")
    submitted(stage, leader, "nowhere", agent="unknown")
    seen = swarm_load(leader, ["t1", "t2", "gone"])
    assert (seen.swarm, seen.agents, seen.capacity, seen.waiting) == ("s", ["a", "b", "c"], 5, ["t2"])
    assert seen.load == Load(queued=1, free=2, members=2, full=["a"], below=["deep", "kid"])


def test_a_child_that_was_refused_as_part_of_a_ring_is_not_below() -> None:
    stage = Stage()
    leader = stage.leading()
    joined(stage, "kid", capacity=0, labels={RING_LABEL: "s"})
    assert swarm_load(leader, []).load.below == []


@pytest.mark.parametrize(("begun", "state"), [(False, None), (True, "assigned")])
def test_the_fold_gives_up_only_what_nobody_has_begun(begun: bool, state: TaskState | None) -> None:
    history = History().joined().submitted("t")
    if begun:
        history.assigned("t")
    history.lead("t", Recalled(term=1, reason="elsewhere"))
    task = history.state.tasks.get("t")
    assert (task.state if task else None) == state
    if begun:
        assert history.ignored() == {"begun": 1}
    else:
        assert history.state.tombstones["t"].state == "cancelled"
