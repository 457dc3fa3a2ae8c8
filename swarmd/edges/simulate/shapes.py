"""What is simulated: members, jobs, graphs of tasks. Plain data; times are milliseconds since the beginning."""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field

from swarmd.core.events import RetryPolicy
from swarmd.edges.simulate.chance import Chance

#: The agent of macro-tasks: it starts each task of a graph when those before it have ended.
PLANNER: Final = "planner"


class MemberShape(Struct, frozen=True):
    """A worker node. Work takes 1 / `speed` times as long there; the share `failing` of its attempts fails.

    It fails after `fails_after` of the time that the attempt would have taken. It is there from `joins_ms` on, and
    takes nothing new after `leaves_ms` (0: never).
    """

    slots: int
    speed: float = 1.0
    failing: float = 0.0
    fails_after: float = 0.25
    agents: tuple[str, ...] = ("work",)
    labels: dict[str, str] = field(default_factory=dict)
    joins_ms: int = 0
    leaves_ms: int = 0


class Job(Struct, frozen=True):
    """A task that arrives. An attempt takes `work_ms` at speed 1; only `watched` ones count in the figures."""

    at_ms: int
    agent: str
    work_ms: int
    tenant: str = ""
    priority: int = 0
    watched: bool = True
    requires: dict[str, str] = field(default_factory=dict)
    concurrency_key: str = ""


class Graph(Struct, frozen=True):
    """A macro-task: tasks with their agents and durations at speed 1; `needs` are what each waits for, all earlier."""

    agents: list[str]
    works_ms: list[int]
    needs: list[list[int]]

    def users(self) -> list[list[int]]:
        """For each task those that wait for it."""
        found: list[list[int]] = [[] for _ in self.needs]
        for task, needed in enumerate(self.needs):
            for earlier in needed:
                found[earlier].append(task)
        return found

    def ways_ms(self, durations_ms: list[float]) -> list[float]:
        """From the start of each task to the end of the longest path that begins with it."""
        ways, users = list(durations_ms), self.users()
        for task in reversed(range(len(ways))):
            ways[task] += max((ways[user] for user in users[task]), default=0.0)
        return ways

    def bound_ms(self, slots: int) -> float:
        """No schedule on so many slots of speed 1 is shorter: the critical path, or all work spread evenly."""
        works = [float(work) for work in self.works_ms]
        return max(max(self.ways_ms(works)), sum(works) / slots)


class Straggling(Struct, frozen=True):
    """Calls whose duration is drawn anew for each attempt: log-normal, and a `share` of them `factor` times slower."""

    share: float
    factor: float
    mean_ms: float
    sigma: float

    def duration_ms(self, seed: int, job: int, epoch: int) -> float:
        """That of one attempt, the same under every policy."""
        chance = Chance(seed, "call", job, epoch)
        slow = chance.uniform() < self.share
        return chance.lognormal(self.mean_ms, self.sigma) * (self.factor if slow else 1.0)


class Workload(Struct):
    """What arrives, and who is there to do it: `jobs` by time, or `graphs` one after the other."""

    name: str
    seed: int
    members: list[MemberShape]
    jobs: list[Job] = field(default_factory=list)
    graphs: list[Graph] = field(default_factory=list)
    warm_up: int = 0
    idempotent: list[str] = field(default_factory=list)
    straggling: Straggling | None = None
    retry: RetryPolicy = RetryPolicy()

    def slots(self) -> int:
        """Those of all worker nodes."""
        return sum(member.slots for member in self.members)
