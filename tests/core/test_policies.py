"""Who gets a task: what a leader has learned, was told, or is wary of changes the choice, and the log says why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.codec import Commit
from swarmd.core.errors import Rejected
from swarmd.core.events import Assigned, Event, MemberLost, Why
from swarmd.core.placement import TenantPolicy
from swarmd.core.policies import PlacementSettings, PolicyName
from swarmd.core.status import task_status
from swarmd.core.wire import Feedback
from tests.core.crew import Crew, member_of
from tests.core.history import offer
from tests.sim.stage import wish


def crew(*processes: str, policy: PolicyName = "adaptive", capacity: int = 1, **settings: Any) -> Crew:
    made = Crew()
    for name, value in settings.items():
        setattr(made, name, value)
    made.placement = PlacementSettings(policy, hedge_share=0)
    made.start()
    made.hire(*processes, capacity=capacity)
    return made


def where(made: Crew, task: str) -> str:
    (attempt,) = made.attempts(task).values()
    return attempt.member.split("/")[0]


def teach(made: Crew, rounds: int, slow: str = "", times: int = 5) -> None:
    """Rounds in which every member runs one task, the slow one so many times as long."""
    for n in range(rounds):
        names = [f"r{made.leader.state.seq}-{k}" for k in range(len(made.leader.state.members))]
        for name in names:
            made.submit(name)
        last = [name for name in names if made.attempts(name) and where(made, name) == slow]
        made.pass_time(90 + n % 3 * 10, 1_000)
        for name in names:
            if name not in last and made.attempts(name):
                made.report(name)
        made.pass_time(100 * (times - 1) if last else 0, 1_000)
        for name in last:
            made.report(name)


def test_a_slow_member_is_asked_last_and_not_for_one_task_alone() -> None:
    made = crew("v", "w", "x")
    teach(made, 12, slow="x")
    made.submit("t")
    assert where(made, "t") in "vw"
    made.submit("u")
    assert {where(made, "t"), where(made, "u")} == {"v", "w"}
    made.submit("single")
    assert made.attempts("single") == {}, "waiting for a better one takes less time"
    made.report("t")
    assert where(made, "single") in "vw"


def test_a_slow_member_helps_when_the_queue_is_long() -> None:
    made = crew("v", "w", "x")
    teach(made, 12, slow="x")
    for n in range(20):
        made.submit(f"t{n}")
    assert len(made.leader.state.members[member_of("x")].running) == 1


def test_plain_pull_does_not_care() -> None:
    made = crew("v", "w", "x", policy="pull")
    teach(made, 12, slow="x")
    for task in "tuv":
        made.submit(task)
    assert {where(made, task) for task in "tuv"} == {"v", "w", "x"}


def test_what_people_say_changes_who_is_asked() -> None:
    made = crew("v", "w")
    teach(made, 15)
    done = {stone.member: task for task, stone in made.leader.state.tombstones.items()}
    for _ in range(8):
        for member, score in ((member_of("v"), -1.0), (member_of("w"), 0.5)):
            made.leader.rate(Feedback(done[member], score, "so it was", "ada"))
    made.decide(made.leader)
    made.pass_time(500)
    made.submit("first")  # placed by what was known before
    made.pass_time(100)
    made.report("first")
    for n in range(6):
        made.submit(f"t{n}")
        assert where(made, f"t{n}") == "w"
        made.pass_time(100)
        made.report(f"t{n}")


def test_feedback_is_for_finished_tasks() -> None:
    made = crew("v")
    with pytest.raises(Rejected) as refusal:
        made.leader.rate(Feedback("nobody", 1.0))
    assert refusal.value.code == "unknown_task"
    made.submit("t")
    with pytest.raises(Rejected) as refusal:
        made.leader.rate(Feedback("t", 1.0))
    assert refusal.value.code == "not_finished"


def test_every_placement_says_why() -> None:
    made = crew("v", "w")
    made.hire("elsewhere", agents="z")
    for name in ("t", "u", "waits"):
        made.submit(name)
    made.pass_time(800)
    made.report("t")
    commits = [made.history.codec.decode(record) for record in made.history.records]
    events = [event for commit in commits if isinstance(commit, Commit) for event in commit.events]
    assigned = [event for event in events if isinstance(event, Event) and isinstance(event.data, Assigned)]
    whys = {event.subject: event.data.why for event in assigned if isinstance(event.data, Assigned)}
    assert whys == {"t": Why("load", 2), "u": Why("only", 1), "waits": Why("only", 1, 800, 800)}


# --- suspects --------------------------------------------------------------------------------------


def suspects(made: Crew, *tasks: str, agent: str = "a") -> None:
    """Tasks that were running when two members were lost; the leader that comes then knows them from the log."""
    term = made.leader.state.term
    for task in tasks:
        made.submit(task, agent)
        for epoch in (1, 2):
            victim = f"victim-{task}-{epoch}"
            made.hire(victim, agents=agent)
            given = Event(task, Assigned(term=term, epoch=epoch, member=member_of(victim)))
            lost = Event(member_of(victim), MemberLost(term=term, member=member_of(victim)))
            made.write(made.leader, [given, lost])
    made.start(f"after-{tasks[0]}")


def processes(made: Crew) -> list[str]:
    """The process of every running suspect."""
    tasks = made.leader.state.tasks.values()
    return [a.member.split("/")[0] for t in tasks if len(t.victims) >= 2 for a in t.attempts.values()]


def hire_nodes(made: Crew, process: str, nodes: int, agents: str = "a") -> None:
    """A process of several members with four slots each."""
    offers = [offer(member_of(process, n), 4) for n in range(nodes)]
    for fact in offers:
        fact.agents = list(agents)
    made.member(process, *((fact.member, fact) for fact in offers))


def test_no_process_gets_two_suspects_even_within_one_decision() -> None:
    made = crew()
    suspects(made, "p", "q", "r")
    hire_nodes(made, "v", 3)
    hire_nodes(made, "w", 2)
    made.decide(made.leader)
    assert sorted(processes(made)) == ["v", "w"]
    made.submit("innocent")
    assert where(made, "innocent") in "vw", "others are not held up"
    made.report(next(task.id for task in made.leader.state.tasks.values() if task.victims and task.attempts))
    assert sorted(processes(made)) == ["v", "w"]


def test_suspects_of_different_lanes_are_kept_apart_too() -> None:
    made = crew()
    suspects(made, "p")
    suspects(made, "q", agent="c")
    hire_nodes(made, "v", 2, agents="ac")
    made.decide(made.leader)
    assert processes(made) == ["v"]


@given(st.lists(st.sampled_from(["hire", "decide", "hold", "store", "drop", "end", "leader"]), max_size=16))
@settings(max_examples=60)
def test_suspects_are_alone_in_whatever_order_things_are_stored(acts: list[str]) -> None:
    made = crew()
    suspects(made, "p", "q", "r", "s")
    held: list[Event] = []
    for n, act in enumerate(acts):
        if act == "hire":
            hire_nodes(made, f"v{n}", 2)
        elif act == "decide":
            made.decide(made.leader)
        elif act == "hold" and not held:
            held = made.leader.decide()
        elif act == "store" and held:
            made.write(made.leader, held)
            held = []
        elif act == "drop" and held:
            made.leader.dropped(held, Rejected("store_full", "no room"))
            held = []
        elif act == "leader":
            made.start(f"M{n}")
            held = []
        elif act == "end":
            running = [task.id for task in made.leader.state.tasks.values() if task.attempts]
            if running:
                made.report(running[0])
        assert len(processes(made)) == len(set(processes(made)))
    if held:
        made.write(made.leader, held)
    hire_nodes(made, "last", 2)
    for _ in range(12):
        made.pass_time(100)
        for task in list(made.leader.state.tasks.values()):
            if task.attempts:
                made.report(task.id)
    assert not made.leader.state.tasks
    assert not made.leader.placing._policy.lent


# --- bounds of tenants -----------------------------------------------------------------------------


def test_a_tenant_has_no_more_live_tasks_than_it_may_however_fast_it_asks() -> None:
    """What is proposed and not stored counts; whoever is refused may come back, and others are let in."""
    made = crew("v", tenants={"acme": TenantPolicy(live_max=3)})
    refused = 0
    for n in range(5):
        try:
            made.leader.submit(wish(tenant="acme"), f"t{n}", made.now_ms, False, None)
        except Rejected as error:
            refused += error.code == "tenant_full" and "its limit is 3" in error.message
    made.leader.submit(wish(tenant="other"), "o", made.now_ms, False, None)
    assert refused == 2
    made.decide(made.leader)
    assert made.leader.state.tenants["acme"].live == 3
    made.report("t0")
    made.submit("again", tenant="acme")
    assert made.leader.state.tenants["acme"].live == 3


def test_a_tenant_with_all_its_slots_is_told_so() -> None:
    made = crew("v", capacity=4, tenants={"acme": TenantPolicy(slots_max=2)})
    for n in range(3):
        made.submit(f"t{n}", tenant="acme")
    made.submit("other")
    assert len(made.attempts("other")) == 1
    said = task_status(made.leader, "t2").waiting_for
    assert said == "a slot of its tenant 'acme', which has all 2 that it may have"


def test_a_lone_suspect_waits_for_a_process_of_its_own() -> None:
    made = crew()
    suspects(made, "p", "q")
    hire_nodes(made, "v", 1)
    made.decide(made.leader)
    (waiting,) = [task.id for task in made.leader.state.tasks.values() if not task.attempts]
    assert "a process of its own: 2 members were lost" in task_status(made.leader, waiting).waiting_for
    assert len(task_status(made.leader, waiting).victims) == 2


def test_what_could_not_be_stored_counts_no_more() -> None:
    made = crew("v", tenants={"acme": TenantPolicy(live_max=1)})
    for n in range(3):
        made.leader.submit(wish(tenant="acme"), f"t{n}", made.now_ms, False, None)
        made.leader.dropped(made.leader.decide(), Rejected("store_full", "no room"))
    made.submit("t", tenant="acme")
    assert list(made.leader.state.tasks) == ["t"]


# --- policies that are compared --------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["adaptive", "pull", "random", "round-robin", "least-loaded", "power-of-two"])
def test_each_policy_places_everything_and_is_the_same_twice(policy: PolicyName) -> None:
    def run() -> list[tuple[str, str]]:
        made = crew("v", "w", "x", policy=policy, capacity=2)
        for n in range(30):
            made.submit(f"t{n}")
        placed = []
        for _ in range(60):
            for task in list(made.leader.state.tasks.values()):
                if task.attempts:
                    placed.append((task.id, where(made, task.id)))
                    made.report(task.id)
        assert not made.leader.state.tasks
        return placed

    assert run() == run()


@pytest.mark.parametrize("policy", ["adaptive", "pull"])
def test_late_binding_gives_nobody_more_than_its_slots(policy: PolicyName) -> None:
    made = crew("v", "w", policy=policy, capacity=3)
    for n in range(30):
        made.submit(f"t{n}")
    assert [len(member.running) for member in made.leader.state.members.values()] == [3, 3]
