"""What a leader answers about itself: from the fold, with its sequence and in words."""

from __future__ import annotations

import msgspec
import pytest

from swarmd.core import ids
from swarmd.core.errors import Rejected
from swarmd.core.events import Completed, Failed, Failure, RetryPolicy, Spawned, Stepped, Suspended
from swarmd.core.status import MEMBERS_SHOWN, members_page, swarm_status, task_status
from swarmd.core.wire import Crew, MemberQuery
from tests.core.history import offer
from tests.sim.stage import Stage, wish

NODE = ids.node_member("w", "b", 0)


def test_a_task_says_what_it_waits_for_from_beginning_to_end() -> None:
    stage = Stage()
    leader = stage.leading()
    leader.submit(wish(retry=RetryPolicy(attempts_max=2)), "t", stage.now_ms, False, "client")
    stage.decide(leader)
    assert task_status(leader, "t").waiting_for == "a member that offers agent 'a': none does"
    stage.member("w", (NODE, offer(NODE, 1)))
    stage.decide(leader)
    stage.member("w", ("t", Stepped(epoch=1, key="k", kind="step")), ("t", Spawned(epoch=1, key="s", n=1, agent="a")))
    running = task_status(leader, "t")
    assert (running.state, running.member, running.epoch, running.steps, running.children) == (
        "assigned",
        NODE,
        1,
        2,
        1,
    )
    assert task_status(leader, "t~1").waiting_for == "a free slot among 1 members"
    stage.member("w", ("t", Suspended(epoch=1, waits=[["t~1"]])))
    assert task_status(leader, "t").waiting_for == "its children t~1 (t~1 waits for a free slot among 1 members)"
    stage.decide(leader)
    stage.member("w", ("t~1", Failed(epoch=1, failure=Failure("x", "y"))))
    assert task_status(leader, "t~1").waiting_for == "its back-off after failure 1"
    stage.wait(300, leader)
    stage.member("w", ("t~1", Completed(epoch=2)))
    stage.decide(leader)
    stage.member("w", ("t", Completed(epoch=2)))
    done = task_status(leader, "t")
    assert (done.state, done.seq) == ("completed", leader.state.seq)
    with pytest.raises(Rejected) as refusal:
        task_status(leader, "nobody")
    assert refusal.value.code == "unknown_task"


def test_a_task_that_requires_labels_nobody_has_says_so() -> None:
    stage = Stage()
    leader = stage.leading()
    stage.member("w", (NODE, offer(NODE)))
    leader.submit(wish(requires={"gpu": "yes"}), "t", stage.now_ms, False, "client")
    stage.decide(leader)
    assert "with labels {'gpu': 'yes'}: none has them" in task_status(leader, "t").waiting_for


def test_the_swarm_says_who_leads_what_runs_and_who_was_heard() -> None:
    stage = Stage()
    leader = stage.leading()
    stage.member("w", (NODE, offer(NODE, 1)))
    for name in ("t", "u"):
        leader.submit(wish(retry=RetryPolicy(attempts_max=1)), name, stage.now_ms, False, "client")
        stage.decide(leader)
    stage.now_ms += 70
    status = swarm_status(leader, stage.now_ms)
    assert (status.term, status.leader, status.seq) == (1, leader.writer, leader.state.seq)
    assert (status.tasks, status.waiting) == ({"assigned": 1, "queued": 1}, {"a": 1})
    (member,) = status.members
    assert (member.member, member.running, member.capacity, member.heard_ms, member.reachable) == (NODE, 1, 1, 70, True)
    stage.member("w", ("t", Failed(epoch=1, failure=Failure("x", "y"))))
    assert swarm_status(leader, stage.now_ms).tasks == {"queued": 1, "dead": 1}


def test_thousands_of_members_are_counted_and_listed_page_by_page() -> None:
    stage = Stage()
    leader = stage.leading()
    names = [ids.node_member("w", "b", n) for n in range(600)]
    stage.member("w", *((name, offer(name, 2)) for name in names))
    status = swarm_status(leader, stage.now_ms)
    assert len(status.members) == MEMBERS_SHOWN
    assert status.crew == Crew(members=600, reachable=600, working=600, slots=1_200)
    assert status.offers == {"a": status.crew}
    found: list[str] = []
    after = ""
    while True:
        page = members_page(leader, MemberQuery(after, 250), stage.now_ms)
        assert (page.total, page.seq) == (600, leader.state.seq)
        found += [member.member for member in page.members]
        after = page.after
        if not after:
            break
    assert found == sorted(names)
    with pytest.raises(Rejected, match="1 to 1000"):
        members_page(leader, MemberQuery(limit=0), stage.now_ms)


def test_a_page_never_outgrows_a_message() -> None:
    stage = Stage()
    leader = stage.leading()
    names = [ids.node_member("w", "b", n) for n in range(30)]
    for name in names:
        fact = offer(name, 2)
        fact.agents = [f"agent-{n}-{'x' * 40}" for n in range(500)]
        stage.member("w", (name, fact))
    page = members_page(leader, MemberQuery(), stage.now_ms)
    assert 0 < len(page.members) < 30
    assert page.after == page.members[-1].member
    assert len(msgspec.json.encode(page)) < 768 * 1024
