"""Generated workloads: each is made of a seed, so that every policy is given exactly the same work.

Rates follow from the load: the work that arrives, as a share of what all members together can do. The first tenth of
the jobs is not counted, nor are the first graphs: queues fill and durations are learned meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from swarmd.core.errors import Rejected
from swarmd.core.events import RetryPolicy
from swarmd.edges.simulate.chance import Chance
from swarmd.edges.simulate.shapes import Graph, Job, MemberShape, Straggling, Workload

if TYPE_CHECKING:
    from collections.abc import Callable

MEAN_MS: Final = 1_000.0
WARM_UP: Final = 0.1
GRAPH_TASKS: Final = 120
GRAPH_SLOTS: Final = 6
#: The mean durations of the agents of a graph.
GRAPH_AGENTS_MS: Final = {"extract": 300.0, "search": 600.0, "read": 1_000.0, "write": 2_000.0, "check": 800.0}
GRAPHS_LEARNING: Final = 2
FLOODED_TENANTS: Final = ("ada", "ben", "cleo")


class Wanted:
    """What a generator is asked for; it draws from `chance`."""

    def __init__(self, name: str, seed: int, tasks: int, members: int, slots: int) -> None:
        self.name, self.seed, self.tasks, self.members, self.slots = name, seed, tasks, members, slots
        self.chance = Chance(seed, name)

    def nodes(self, **shape: float) -> list[MemberShape]:
        """Members that are all alike."""
        return [MemberShape(self.slots, **shape) for _ in range(self.members)]  # type: ignore[arg-type]

    def some(self, share: float) -> list[int]:
        """This share of the members, at least one, drawn by chance: names must not tell who is slow."""
        return self.chance.sample(range(self.members), max(1, round(share * self.members)))

    def workload(self, members: list[MemberShape], jobs: list[Job]) -> Workload:
        jobs = sorted(jobs, key=lambda job: job.at_ms)
        return Workload(self.name, self.seed, members, jobs, warm_up=round(len(jobs) * WARM_UP))

    def poisson(self, members: list[MemberShape], load: float, work_ms: Callable[[], float]) -> list[Job]:
        """Jobs that arrive independently of one another, so often that the members are busy to this share."""
        works = [max(1, round(work_ms())) for _ in range(self.tasks)]
        gap_ms, at_ms, jobs = MEAN_MS / (load * _power(members)), 0.0, []
        for work in works:
            at_ms += self.chance.exponential(gap_ms)
            jobs.append(Job(round(at_ms), "work", work))
        return jobs


def _power(members: list[MemberShape]) -> float:
    """How many slots of speed 1 the members are worth."""
    return sum(member.slots * member.speed for member in members)


def _steady(wanted: Wanted) -> Workload:
    members, chance = wanted.nodes(), wanted.chance
    return wanted.workload(members, wanted.poisson(members, 0.85, lambda: chance.lognormal(MEAN_MS, 1.0)))


def _heavy(wanted: Wanted) -> Workload:
    members, chance = wanted.nodes(), wanted.chance
    return wanted.workload(members, wanted.poisson(members, 0.8, lambda: chance.pareto(MEAN_MS, 1.5, 300.0)))


def _slow_quarter(wanted: Wanted) -> Workload:
    members, chance = wanted.nodes(), wanted.chance
    for slow in wanted.some(0.25):
        members[slow] = MemberShape(wanted.slots, speed=0.25)
    return wanted.workload(members, wanted.poisson(members, 0.85, lambda: chance.lognormal(MEAN_MS, 1.0)))


def _stragglers(wanted: Wanted) -> Workload:
    members, calls = wanted.nodes(), Straggling(0.02, 20.0, MEAN_MS, 0.5)
    jobs = wanted.poisson(members, 0.45, lambda: MEAN_MS)
    workload = wanted.workload(members, jobs)
    workload.straggling, workload.idempotent = calls, ["work"]
    return workload


def _failing(wanted: Wanted) -> Workload:
    members, chance = wanted.nodes(), wanted.chance
    for bad in wanted.some(1 / 16):
        members[bad] = MemberShape(wanted.slots, failing=0.8, fails_after=0.1)
    jobs = wanted.poisson(members, 0.7, lambda: chance.lognormal(MEAN_MS, 1.0))
    workload = wanted.workload(members, jobs)
    workload.retry = RetryPolicy(attempts_max=30, backoff_ms=100, backoff_ms_max=1_000)
    return workload


def _bursts(wanted: Wanted) -> Workload:
    members, chance = wanted.nodes(), wanted.chance
    size = 2 * wanted.slots * wanted.members
    gap_ms, at_ms, jobs = size * MEAN_MS / (0.6 * _power(members)), 0.0, list[Job]()
    while len(jobs) < wanted.tasks:
        at_ms += chance.exponential(gap_ms)
        for _ in range(max(1, round(chance.exponential(size)))):
            jobs.append(Job(round(at_ms), "work", max(1, round(chance.lognormal(MEAN_MS, 1.0)))))
    return wanted.workload(members, jobs[: wanted.tasks])


def _mixed(wanted: Wanted) -> Workload:
    """Three agents that make up a third of the work each."""
    means = {"quick": MEAN_MS / 5, "usual": MEAN_MS, "long": MEAN_MS * 5}
    members = [MemberShape(wanted.slots, agents=tuple(means)) for _ in range(wanted.members)]
    chance, at_ms, jobs = wanted.chance, 0.0, []
    rates = {agent: 0.85 * _power(members) / 3 / mean for agent, mean in means.items()}
    for _ in range(wanted.tasks):
        at_ms += chance.exponential(1 / sum(rates.values()))
        pick = chance.uniform() * sum(rates.values())
        agent = next(agent for agent in means if (pick := pick - rates[agent]) < 0)
        jobs.append(Job(round(at_ms), agent, max(1, round(chance.lognormal(means[agent], 0.7)))))
    return wanted.workload(members, jobs)


def _tenants(wanted: Wanted) -> Workload:
    """One tenant has everything queued at once; now and then another tenant wants a single task, which is watched."""
    members, chance = wanted.nodes(), wanted.chance
    singles = max(10, wanted.tasks // 50)
    works = [max(1, round(chance.lognormal(MEAN_MS, 1.0))) for _ in range(wanted.tasks)]
    jobs = [Job(0, "work", work, "flood", watched=False) for work in works[singles:]]
    busy_ms = sum(works[singles:]) / _power(members)
    for number, work in enumerate(works[:singles]):
        at_ms = busy_ms * (0.05 + 0.9 * (number + chance.uniform()) / singles)
        jobs.append(Job(round(at_ms), "work", work, FLOODED_TENANTS[number % len(FLOODED_TENANTS)]))
    workload = wanted.workload(members, jobs)
    workload.warm_up = 0
    return workload


def _graphs(wanted: Wanted) -> Workload:
    """Macro-tasks of layered random graphs, one after the other; the first ones only teach durations."""
    members = [MemberShape(1, agents=tuple(GRAPH_AGENTS_MS)) for _ in range(GRAPH_SLOTS)]
    count = max(1, round(wanted.tasks / GRAPH_TASKS)) + GRAPHS_LEARNING
    graphs = [_graph(wanted.chance, GRAPH_TASKS) for _ in range(count)]
    return Workload(wanted.name, wanted.seed, members, graphs=graphs, warm_up=GRAPHS_LEARNING)


def _graph(chance: Chance, tasks: int) -> Graph:
    """Eight to sixteen layers of random width; each task waits for one to three of the layer before its own."""
    layers = 8 + chance.below(9)
    weights = [0.3 + chance.uniform() for _ in range(layers)]
    edges = [round(tasks * sum(weights[: n + 1]) / sum(weights)) for n in range(layers)]
    names, begin, before = list(GRAPH_AGENTS_MS), 0, list[int]()
    graph = Graph([], [], [])
    for end in edges:
        layer = list(range(begin, end))
        for _ in layer:
            agent = names[chance.below(len(names))]
            graph.agents.append(agent)
            graph.works_ms.append(max(1, round(chance.lognormal(GRAPH_AGENTS_MS[agent], 0.4))))
            graph.needs.append(sorted(chance.sample(before, min(len(before), 1 + chance.below(3)))))
        begin, before = end, layer or before
    return graph


GENERATORS: Final[dict[str, Callable[[Wanted], Workload]]] = {
    "steady": _steady,
    "heavy": _heavy,
    "slow-quarter": _slow_quarter,
    "stragglers": _stragglers,
    "failing": _failing,
    "bursts": _bursts,
    "mixed": _mixed,
    "tenants": _tenants,
    "dag": _graphs,
}


def generate(name: str, seed: int, tasks: int = 2_000, members: int = 16, slots: int = 1) -> Workload:
    """The workload `name` of this seed; `dag` has members of its own. Raises `Rejected("bad_usage")`."""
    generator = GENERATORS.get(name)
    if generator is None:
        raise Rejected("bad_usage", f"no workload {name!r}: choose one of {', '.join(GENERATORS)}")
    if min(tasks, members, slots) < 1:
        raise Rejected("bad_usage", "tasks, members and slots must be at least 1")
    return generator(Wanted(name, seed, tasks, members, slots))
