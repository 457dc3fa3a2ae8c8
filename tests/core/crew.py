"""A stage with members that are heard all the time: what a leader learns from them, and what it does about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmd.core.events import Assigned, Completed, Event, Failed, Failure
from swarmd.core.wire import Stop
from tests.core.history import offer
from tests.sim.stage import Stage, wish

if TYPE_CHECKING:
    from swarmd.core.leader import Leader
    from swarmd.core.state import Attempt

WHY = Failure("broken", "it broke")


def member_of(process: str, n: int = 0) -> str:
    return f"{process}/b/{n}"


class Crew(Stage):
    """One leader; each process has a member of `capacity` slots that offers the idempotent agent `a`."""

    leader: Leader

    def hire(self, *processes: str, capacity: int = 1, idempotent: bool = True, agents: str = "a") -> None:
        for process in processes:
            fact = offer(member_of(process), capacity)
            fact.agents = list(agents)
            fact.idempotent = ["a"] if idempotent else []
            self.member(process, (fact.member, fact))

    def start(self, boot: str = "L1") -> Leader:
        self.leader = self.leading(boot)
        self.leader.tick(self.now_ms)
        return self.leader

    def submit(self, task: str, agent: str = "a", **fields: Any) -> None:
        assert self.leader.submit(wish(agent, **fields), task, self.now_ms, False, None) is None
        self.decide(self.leader)

    def pass_time(self, delay_ms: int, step_ms: int = 100) -> list[Event]:
        """Time passes in steps, and everybody is heard."""
        events: list[Event] = []
        while delay_ms > 0:
            step = min(step_ms, delay_ms)
            delay_ms -= step
            self.now_ms += step
            for process in {member.writer: None for member in self.leader.state.members.values()}:
                self.beat(self.leader, process, 0)
            events += self.wait(0, self.leader)
        return events

    def attempts(self, task: str) -> dict[int, Attempt]:
        known = self.leader.state.tasks.get(task)
        return dict(known.attempts) if known is not None else {}

    def report(self, task: str, epoch: int = 0, *, failed: bool = False) -> None:
        """The member of an attempt, of the newest one unless told otherwise, says how it ended."""
        attempts = self.attempts(task)
        epoch = epoch or max(attempts)
        fact = Failed(epoch=epoch, failure=WHY) if failed else Completed(epoch=epoch)
        self.member(attempts[epoch].member.split("/")[0], (task, fact))
        self.decide(self.leader)

    def learn(self, runs: int = 30, took_ms: int = 100) -> None:
        """So many tasks of the usual duration, one after the other."""
        for _ in range(runs):
            name = f"usual-{self.leader.state.seq}"
            self.submit(name)
            self.pass_time(took_ms, took_ms)
            self.report(name)

    def stops(self) -> list[tuple[str, int]]:
        return [(item.task, item.epoch) for _, item in self.dispatched(self.leader) if isinstance(item, Stop)]


def hedges(events: list[Event]) -> list[tuple[str, int, str]]:
    """(task, epoch, member) of every second attempt among these events."""
    facts = [(event.subject, event.data) for event in events if isinstance(event.data, Assigned)]
    return [(task, fact.epoch, fact.member) for task, fact in facts if getattr(fact.why, "rule", "") == "hedge"]
