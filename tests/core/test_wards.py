"""Members that fail are set apart, probed and taken back; never too many, and nobody for what is nobody's fault."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.errors import Rejected
from swarmd.core.events import Event, MemberLost, Quarantined, Readmitted, RetryPolicy
from swarmd.core.quarantine import ENDED_MIN, PROBE_MS
from tests.core.crew import Crew, member_of

RETRIES = RetryPolicy(attempts_max=1_000, backoff_ms=10, backoff_ms_max=10)


class Ward(Crew):
    """Work for all members; those that are `bad` fail at the agents named."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: dict[str, str] = {}
        self.done = 0

    def work(self, rounds: int, agent: str = "a", delay_ms: int = 100) -> list[Event]:
        """Every slot that is free gets a task; what runs ends well or badly by whoever has it."""
        events: list[Event] = []
        for _ in range(rounds):
            slots = sum(member.capacity for member in self.leader.state.members.values())
            waiting = sum(task.agent == agent for task in self.leader.state.tasks.values())
            for _ in range(slots - waiting):
                self.done += 1
                self.submit(f"{agent}{self.done}", agent, retry=RETRIES)
            events += self.pass_time(delay_ms)
            for task in list(self.leader.state.tasks.values()):
                for epoch, attempt in list(task.attempts.items()):
                    failed = task.agent in self.bad.get(attempt.member.split("/")[0], "")
                    self.report(task.id, epoch, failed=failed)
        return events

    def apart(self) -> list[str]:
        return [member.writer for member in self.leader.state.members.values() if member.quarantined]

    def runs(self, process: str) -> int:
        return sum(pace.ended for pace in self.leader.state.members[member_of(process)].paces.values())


def ward(*processes: str, agents: str = "a") -> Ward:
    made = Ward()
    made.start()
    made.hire(*processes, idempotent=False, agents=agents)
    return made


def facts(events: list[Event], kind: type) -> list[str]:
    return [event.data.member.split("/")[0] for event in events if isinstance(event.data, kind)]  # type: ignore[attr-defined]


def test_who_fails_is_set_apart_probed_and_taken_back() -> None:
    made = ward("v", "w", "x")
    made.bad = {"x": "a"}
    events = made.work(4 * ENDED_MIN)
    assert facts(events, Quarantined) == ["x"]
    assert made.leader.state.members[member_of("x")].quarantined == "100% of its attempts of a failed, of others' 0%"
    assert made.apart() == ["x"]
    before = made.runs("x")
    made.work(40)  # four seconds: probes after two, and then after four more
    assert 1 <= made.runs("x") - before <= 2
    made.bad = {}
    events = made.work(120, delay_ms=500)
    assert facts(events, Readmitted) == ["x"]
    assert made.apart() == []
    for n in range(6):
        made.submit(f"late{n}")
    made.pass_time(2_000)
    assert made.leader.state.members[member_of("x")].running, "it works like any other"


def test_who_has_many_slots_and_idle_neighbours_is_probed_all_the_same() -> None:
    made = Ward()
    made.start()
    made.hire("v", "w", "x", capacity=8, idempotent=False)
    made.bad = {"x": "a"}
    made.work(4)
    made.pass_time(1_000)
    assert made.apart() == ["x"]
    made.bad = {}
    for n in range(120):  # a trickle, which the others have room for
        made.submit(f"single{n}")
        made.pass_time(100)
        made.report(f"single{n}")
    assert made.apart() == []


def test_probes_come_less_often_as_long_as_they_fail() -> None:
    made = ward("v", "w", "x")
    made.bad = {"x": "a"}
    while not made.apart():
        made.work(1)
    begun = []
    for _ in range(150):
        before = made.runs("x")
        made.work(1, delay_ms=500)
        if made.runs("x") > before:
            begun.append(made.now_ms)
    gaps = [later - earlier for earlier, later in pairwise(begun)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= PROBE_MS
    assert gaps[-1] >= 4 * gaps[0]


def test_probes_that_do_well_come_soon() -> None:
    """However long it has failed, it is not kept waiting once it does well."""
    made = ward("v", "w", "x")
    made.bad = {"x": "a"}
    made.work(200, delay_ms=500)
    made.bad = {}
    before = made.now_ms
    while made.apart():
        made.work(1, delay_ms=500)
        assert made.now_ms - before < 120_000
    assert made.leader.state.members[member_of("x")].quarantined == ""


def test_an_agent_that_fails_everywhere_sets_nobody_apart() -> None:
    made = ward("v", "w", "x")
    made.bad = {"v": "a", "w": "a", "x": "a"}
    assert facts(made.work(60), Quarantined) == []


def test_no_more_than_half_are_set_apart() -> None:
    made = ward("t", "u", "v", "w", "x")
    made.bad = {"t": "a", "u": "a", "v": "a"}
    made.work(100)
    assert len(made.apart()) == 2


def test_two_of_two_are_never_set_apart_at_once() -> None:
    made = ward("v", "w")
    made.bad = {"w": "a"}
    made.work(40)
    assert made.apart() == ["w"]
    made.bad = {"v": "a", "w": "a"}
    made.work(60)
    assert made.apart() == ["w"]


def test_the_only_member_of_another_agent_is_not_set_apart() -> None:
    """It fails at what others can do; what nobody else can do would wait for its probes."""
    made = ward("v", "w")
    made.hire("x", agents="az", idempotent=False)
    made.bad = {"x": "a"}
    made.work(60)
    assert made.apart() == []
    made.hire("y", agents="z", idempotent=False)
    made.work(40)
    assert made.apart() == ["x"]


def test_the_next_leader_goes_on() -> None:
    made = ward("v", "w", "x")
    made.bad = {"x": "a"}
    made.work(30)
    assert made.apart() == ["x"]
    made.bad = {}
    made.start("L2")
    assert made.apart() == ["x"]
    before = made.runs("x")
    made.work(15)
    assert made.runs("x") == before, "its first probe comes after the usual time"
    made.work(300)
    assert made.apart() == []


def test_a_leader_that_comes_between_the_decision_and_its_end_decides_anew() -> None:
    made = ward("v", "w", "x")
    made.bad = {"x": "a"}
    dropped = 0
    for _ in range(100):
        made.work(1)
        made.now_ms += 600
        made.leader.tick(made.now_ms)
        events = made.leader.decide()
        if facts(events, Quarantined) and dropped < 2:
            dropped += 1
            made.leader.dropped(events, Rejected("store_full", "no room"))
        else:
            made.write(made.leader, events)
        if made.apart():
            break
    assert (dropped, made.apart()) == (2, ["x"])


def test_a_quarantined_member_that_is_lost_leaves_nothing() -> None:
    made = ward("v", "w", "x")
    made.bad = {"x": "a"}
    made.work(30)
    lost = member_of("x")
    made.write(made.leader, [Event(lost, MemberLost(term=made.leader.state.term, member=lost))])
    made.work(30)
    assert made.leader.wards._wards == {}
    assert made.leader.wards._proposed == set()


def test_who_is_set_apart_comes_back_when_the_others_go() -> None:
    """Better somebody who fails than nobody."""
    made = ward("v", "w", "x")
    made.bad = {"x": "a"}
    made.work(30)
    assert made.apart() == ["x"]
    lost = member_of("v")
    made.write(made.leader, [Event(lost, MemberLost(term=made.leader.state.term, member=lost))])
    made.work(10)
    assert made.apart() == ["x"]
    lost = member_of("w")
    made.write(made.leader, [Event(lost, MemberLost(term=made.leader.state.term, member=lost))])
    made.pass_time(600)
    assert made.apart() == []


def test_what_is_quarantined_has_one_probe_at_a_time_and_no_hedge() -> None:
    made = Ward()
    made.start()
    made.hire("v", "w", idempotent=True, capacity=2)
    made.hire("x", idempotent=True, capacity=4)
    made.bad = {"x": "a"}
    made.work(30)
    assert made.apart() == ["x"]
    member = made.leader.state.members[member_of("x")]
    for n in range(8):
        made.submit(f"long{n}", retry=RETRIES)
    made.pass_time(10_000)
    assert len(member.running) == 1


@given(st.lists(st.sets(st.sampled_from("uvwx")), min_size=1, max_size=4))
@settings(max_examples=15)
def test_whoever_fails_when_half_stay_and_all_come_back(phases: list[set[str]]) -> None:
    made = ward("u", "v", "w", "x")
    for bad in phases:
        made.bad = dict.fromkeys(bad, "a")
        for _ in range(20):
            made.work(1, delay_ms=300)
            assert len(made.apart()) <= 2
    made.bad = {}
    for _ in range(400):
        if not made.apart():
            break
        made.work(1, delay_ms=500)
    assert made.apart() == []
