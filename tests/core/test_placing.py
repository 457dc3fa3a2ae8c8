"""The leader's part in keys and tenants: they hold and nobody is stuck, whatever befalls tasks and leaders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.errors import Conflict, Rejected
from swarmd.core.events import (
    Assigned,
    Awaited,
    Completed,
    Event,
    Fact,
    Failed,
    MemberLost,
    Paused,
    Requeued,
    Returned,
    Suspended,
    Unpaused,
)
from swarmd.core.keys import KeyPolicy
from swarmd.core.placement import TenantPolicy
from swarmd.core.policies import PlacementSettings
from tests.core.crew import WHY, Crew
from tests.sim.stage import wish

if TYPE_CHECKING:
    from swarmd.core.state import Task

KEYS = {"two": KeyPolicy(2), "rate": KeyPolicy(3, per_minute=6_000)}
LIVING = ("complete", "complete", "fail", "suspend", "return", "requeue", "lose", "wake", "pause", "unpause", "cancel")
acts = st.one_of(
    *(
        st.tuples(
            st.just("submit"),
            st.sampled_from("ab"),
            st.sampled_from(["one", "two", "rate", ""]),
            st.sampled_from(["", "acme"]),
        )
        for _ in range(4)
    ),
    *(st.tuples(st.sampled_from(["decide", "decide", "hold", "store", "drop"])) for _ in range(3)),
    *(st.tuples(st.sampled_from(LIVING), st.integers(0, 20)) for _ in range(4)),
    st.tuples(st.just("time"), st.sampled_from([1, 40, 700])),
    st.tuples(st.just("leader")),
)


class Trial(Crew):
    """Two agents on three processes, of which one is replaced when it is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.tenants = KEYS, {"acme": TenantPolicy(slots_max=2)}
        self.placement = PlacementSettings(hedge_share=0)
        self.held: list[Event] = []
        self.hired = 0
        self.start()
        for _ in range(3):
            self.replace()

    def replace(self) -> None:
        self.hired += 1
        self.hire(f"p{self.hired}", capacity=3, agents="ab", idempotent=False)

    def lead(self, subject: str, fact: Fact) -> None:
        self.write(self.leader, [Event(subject, fact)])

    def act(self, wanted: tuple[Any, ...], n: int) -> None:
        match wanted:
            case ("submit", agent, key, tenant):
                wished = wish(agent, concurrency_key=key, tenant=tenant)
                try:
                    self.leader.submit(wished, f"t{n}", self.now_ms, False, None)
                except (Rejected, Conflict) as error:
                    raise AssertionError(error.message) from error
            case ("decide",) if not self.held:
                self.decide(self.leader)
            case ("hold",) if not self.held:
                self.held = self.leader.decide()
            case ("store",) if self.held:
                self.write(self.leader, self.held)
                self.held = []
            case ("drop",) if self.held:
                self.leader.dropped(self.held, Rejected("store_full", "no room"))
                self.held = []
            case ("time", delay_ms):
                self.pass_time_only(delay_ms)
            case ("leader",):
                self.held = []
                self.start(f"M{n}")
            case (verb, which):
                tasks = list(self.leader.state.tasks.values())
                if tasks:
                    self.live(verb, tasks[which % len(tasks)])

    def pass_time_only(self, delay_ms: int) -> None:
        """Nothing is stored meanwhile."""
        self.now_ms += delay_ms
        for process in [member.writer for member in self.leader.state.members.values()]:
            self.beat(self.leader, process, 0)
        self.leader.tick(self.now_ms)

    def live(self, verb: str, task: Task) -> None:
        term, attempt = self.leader.state.term, next(iter(task.attempts.values()), None)
        if verb == "wake" and task.state == "backoff":
            self.lead(task.id, Requeued(term=term, epoch=task.epoch, reason="retry"))
        elif verb == "pause":
            self.lead(task.id, Paused(term=term))
        elif verb == "unpause":
            self.lead(task.id, Unpaused(term=term))
        elif verb == "cancel":
            self.leader.cancel(task.id, "")
        if attempt is None:
            return
        epoch, process = attempt.epoch, attempt.member.split("/")[0]
        if verb == "complete":
            self.member(process, (task.id, Completed(epoch=epoch)))
        elif verb == "fail":
            self.member(process, (task.id, Failed(epoch=epoch, failure=WHY)))
        elif verb == "return":
            self.member(process, (task.id, Returned(epoch=epoch)))
        elif verb == "suspend":
            key = f"w{epoch}"
            wait = Awaited(epoch=epoch, key=key, kind="timer", until_ms=self.now_ms + 300)
            self.member(process, (task.id, wait), (task.id, Suspended(epoch=epoch, waits=[[key]])))
        elif verb == "requeue":
            self.lead(task.id, Requeued(term=term, epoch=epoch, reason="undelivered"))
        elif verb == "lose":
            self.lead(attempt.member, MemberLost(term=term, member=attempt.member))
            self.replace()

    def check(self) -> None:
        """No key and no tenant ever has more than it may, with what is decided and not stored."""
        state, used = self.leader.state, dict(self.leader.state.keys)
        acme = state.tenants["acme"].slots if "acme" in state.tenants else 0
        for event in self.held:
            task = state.tasks.get(event.subject)
            if isinstance(event.data, Assigned) and task is not None and task.epoch < event.data.epoch:
                if task.concurrency_key:
                    used[task.concurrency_key] = used.get(task.concurrency_key, 0) + 1
                acme += task.tenant == "acme"
        assert used.get("one", 0) <= 1
        assert used.get("two", 0) <= 2
        assert used.get("rate", 0) <= 3
        assert acme <= 2
        running: dict[str, int] = {}
        for task in state.tasks.values():
            if task.attempts and task.concurrency_key:
                running[task.concurrency_key] = running.get(task.concurrency_key, 0) + 1
        assert state.keys == running

    def check_nobody_is_stuck(self) -> None:
        """All that could be decided is: whoever waits has no slot, no key, or a tenant with all that it may have."""
        state = self.leader.state
        if all(len(member.running) >= member.capacity for member in state.members.values()):
            return
        for task in state.tasks.values():
            if task.state == "queued" and not (task.tenant == "acme" and state.tenants["acme"].slots >= 2):
                assert task.concurrency_key, f"{task.id} waits beside a free slot"
                assert self.leader.placing.is_blocked(task.id), f"{task.id} waits, its key is free"


@given(st.lists(acts, max_size=60))
@settings(max_examples=100)
def test_keys_and_bounds_hold_and_nobody_is_stuck(drawn: list[Any]) -> None:
    trial = Trial()
    for n, wanted in enumerate(drawn):
        trial.act(wanted, n)
        trial.check()
        if not trial.held and wanted[0] == "decide":
            trial.check_nobody_is_stuck()
    if trial.held:
        trial.write(trial.leader, trial.held)
        trial.held = []
    trial.decide(trial.leader)
    rounds = 0
    while trial.leader.state.tasks:
        rounds += 1
        assert rounds < 200, f"stuck: {list(trial.leader.state.tasks.values())}"
        trial.pass_time(500, 500)
        trial.check()
        trial.check_nobody_is_stuck()
        for task in list(trial.leader.state.tasks.values()):
            trial.live("unpause" if task.paused else "complete", task)
    trial.decide(trial.leader)
    state, placing = trial.leader.state, trial.leader.placing
    assert (state.keys, state.tenants) == ({}, {})
    assert not placing.overlays
    assert not any([placing._placed, placing._fresh, placing._policy.lent, placing.hedging._late])
    queue = placing._queue
    assert not any([queue._waiting, queue._crowds, queue._backlog, queue._taken, queue._keys._taken])


def test_a_key_that_holds_a_task_up_is_named_and_its_release_lets_the_next_one_in() -> None:
    trial = Trial()
    trial.submit("first", concurrency_key="one")
    trial.submit("second", concurrency_key="one")
    assert trial.attempts("second") == {}
    assert trial.leader.placing.is_blocked("second")
    trial.live("suspend", trial.leader.state.tasks["first"])
    trial.decide(trial.leader)
    assert len(trial.attempts("second")) == 1, "who sleeps holds no key"
    trial.pass_time(500)
    assert trial.attempts("first") == {}
    trial.report("second")
    assert len(trial.attempts("first")) == 1


def test_rates_hold_for_a_new_leader_too() -> None:
    trial = Trial()
    trial.keys = {"slow": KeyPolicy(9, per_minute=60)}
    trial.start("L2")
    trial.pass_time(5_000, 500)
    for n in range(9):
        trial.submit(f"t{n}", concurrency_key="slow")
    assert trial.leader.state.keys == {"slow": 1}
    trial.start("L3")
    trial.decide(trial.leader)
    assert trial.leader.state.keys == {"slow": 1}
    trial.pass_time(3_000, 100)
    assert trial.leader.state.keys == {"slow": 4}
