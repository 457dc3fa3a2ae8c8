"""Load shared between swarms: what a child swarm has room for, and what is recalled from one that has none.

Pure. A parent hands a child what fits into its free slots and into those that its own attempts hold there, so that an
attempt that ends makes room at once, however old the last heartbeat is. Where the child's own clients have taken all
slots, a short line of the parent's attempts may wait among the child's own tasks, so that priority and age decide in
the child too; each of them that nobody has begun is recalled when another member of the parent could run it now.
Must not know how tasks are queued, nor how a delegate asks its child.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from swarmd.core.commands import LABEL_CHARS_MAX, LABELS_MAX
from swarmd.core.wire import Load, Recall, SwarmLoad

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from swarmd.core.health import Links
    from swarmd.core.leader import Leader
    from swarmd.core.state import Member, Pair, SwarmState, Task

#: Of the slots of a full child one in so many may have an attempt of the parent's in line for it.
LINE_SHARE: Final = 8
#: So many attempts are recalled at once; the next ones when these have come back or were refused.
RECALLS_MAX: Final = 64
#: A recall that came to nothing is tried again after so long.
AGAIN_MS: Final = 2_000
#: A delegate asks about so many attempts at once, and names so many that can be recalled.
ASKED_MAX: Final = 1_000
RECALLABLE_MAX: Final = 64
#: The label by which a task says through which swarms it came, eldest first, "/" between.
PATH_LABEL: Final = "hive.path"
#: The label by which a delegate says that its child contains its parent.
RING_LABEL: Final = "hive.ring"


def free_slots(member: Member, load: Load | None, taken: int = 0) -> int:
    """Slots of `member` for new work. `load` is a child swarm's (None: not known, or a node), `taken` not folded yet.

    A child in which nothing waits has the slots that its load says are the parent's, as far as the parent's attempts do
    not use them. Where something waits the next slot goes to that: then only what was free when the load was taken,
    less what was handed over since.
    """
    used = len(member.running) + taken
    room = member.capacity - used
    if load is not None and not load.queued:
        room = min(room, load.slots - used)
    elif load is not None:
        room = min(room, load.free - max(0, used - load.held))
    return max(0, room)


def line_slots(member: Member, load: Load | None, taken: int = 0) -> int:
    """How many more attempts may wait in a child that is full: for tasks for which no member has a free slot."""
    if load is None or not load.queued:
        return 0
    used = len(member.running) + taken
    in_line = load.waiting + max(0, used - load.held)
    return max(0, min(member.capacity - used, max(1, member.capacity // LINE_SHARE) - in_line))


def takes(load: Load | None, agent: str) -> bool:
    """Whether a child with free slots has one for this agent: its members need not offer all the same ones."""
    return load is None or agent not in load.full


def could_run(member: Member, task: Task, load: Load | None) -> bool:
    """Whether `member` offers the task's agent in its version, bears the labels it requires, and is to be trusted."""
    if task.agent not in member.agents or member.quarantined or not takes(load, task.agent):
        return False
    if task.version and task.version not in member.runs(task.agent):
        return False
    return member.bears(task.requires.items())


def path_of(labels: Mapping[str, str], swarm: str) -> list[str]:
    """The swarms through which a task with these labels came to a child of `swarm`, eldest first."""
    return [name for name in labels.get(PATH_LABEL, "").split("/") if name] + [swarm]


def labels_for(labels: Mapping[str, str], path: list[str]) -> dict[str, str]:
    """The labels of a task that is handed to a child, with the path that it took, as much of it as may be submitted."""
    while path and len("/".join(path)) > LABEL_CHARS_MAX:
        path = path[1:]
    passed = {name: value for name, value in labels.items() if name != PATH_LABEL}
    return {**passed, PATH_LABEL: "/".join(path)} if path and len(passed) < LABELS_MAX else passed


def swarm_load(leader: Leader, tasks: Iterable[str]) -> SwarmLoad:
    """What a swarm's delegate wants to know of it; of `tasks` those are named that nobody has begun."""
    state, links, taken = leader.state, leader.links, leader.placing.overlays
    load = Load()
    agents: set[str] = set()
    able: set[str] = set()
    below: set[str] = set()
    ready: list[Member] = []
    capacity = 0
    for member in state.members.values():
        if not links.reachable(member):
            continue
        its = links.load(member.id) if member.kind == "swarm" else None
        if member.kind == "swarm" and RING_LABEL not in member.labels:
            below.update((member.id.partition("/")[2], *(its.below if its else ())))
        if not member.capacity or member.quarantined:
            continue
        ready.append(member)
        capacity += member.capacity
        slots = free_slots(member, its, taken.get(member.id, 0))
        load.free += slots
        if not agents.issuperset(member.agents):  # thousands of members offer the same few
            agents.update(member.agents)
        if slots and not able.issuperset(member.agents):
            able.update(agent for agent in member.agents if takes(its, agent))
    if load.free:
        load.full = sorted(agents - able)
    if load.full or not load.free:
        waiting_for = leader.placing.waiting_for(ready)
        load.queued = sum(count for agent, count in waiting_for.items() if agent in agents and agent not in able)
    load.members, load.below = len(ready), sorted(below)
    waiting = [name for name in tasks if _is_untouched(state, name)]
    return SwarmLoad(state.swarm, sorted(agents), capacity, load, leader.refusing, waiting)


def _is_untouched(state: SwarmState, name: str) -> bool:
    task = state.tasks.get(name)
    return task is not None and task.state == "queued" and not task.epoch


class Handed:
    """What a parent's delegate has handed to its child, by the ids that it has there: a view as old as the last look.

    An attempt that has begun never waits without having begun again, so only the others are asked about.
    """

    def __init__(self) -> None:
        self._accepted: dict[str, bool] = {}  #: whether it is known to have begun
        self._waiting: frozenset[str] = frozenset()

    def accepted(self, name: str) -> None:
        """The child's fold has the task."""
        self._accepted.setdefault(name, False)

    def ended(self, name: str) -> None:
        """The task has its verdict, or is no longer this delegate's."""
        self._accepted.pop(name, None)

    def look(self) -> list[str]:
        """A look at the child begins: about which tasks to ask, the latest first."""
        unknown = [name for name, begun in self._accepted.items() if not begun]
        return unknown[: -ASKED_MAX - 1 : -1]

    def told(self, asked: Iterable[str], answer: SwarmLoad) -> Load:
        """What the child answered, as its parent shall know it.

        What came or ended since it answered is counted as it is now: that is as near as one can get, and short tasks
        come and go all the time.
        """
        waiting = self._waiting = frozenset(answer.waiting)
        for name in asked:
            if name in self._accepted and name not in waiting:
                self._accepted[name] = True
        load = answer.load
        load.waiting = sum(name in self._accepted for name in waiting)
        load.held = len(self._accepted)
        load.slots = load.free + load.held - load.waiting
        load.below = [answer.swarm, *load.below]
        return load

    def recallable(self) -> list[str]:
        """Tasks that nobody had begun at the last look, some of them if they are many."""
        return [name for name in self._accepted if name in self._waiting][:RECALLABLE_MAX]


class Sharing:
    """Which attempts one leader in one office recalls from its child swarms."""

    def __init__(self, state: SwarmState, links: Links) -> None:
        self._state, self._links = state, links
        self._asked: dict[Pair, tuple[str, int]] = {}  #: for which member, and when

    def due(self, taken: Mapping[str, int], now_ms: int) -> list[tuple[Member, Recall]]:
        """Recalls to send, each to the child that has the attempt; a free slot elsewhere is meant for one of them.

        `taken` are slots held by placements that are not folded yet, by member.
        """
        links, state = self._links, self._state
        if not links.recallable:
            return []
        self._forget(now_ms)
        wanted = self._candidates()
        if not wanted:
            return []
        free = self._free(taken)
        found: list[tuple[Member, Recall]] = []
        for source, (task_id, epoch) in wanted:
            if len(self._asked) >= RECALLS_MAX or not free:
                break
            target = self._target(state.tasks[task_id], source, free)
            if target is None:
                continue
            free[target] -= 1
            if not free[target]:
                del free[target]
            self._asked[task_id, epoch] = (target, now_ms)
            found.append((source, Recall(task_id, epoch)))
        return found

    def _forget(self, now_ms: int) -> None:
        """Those that have come back, and those that did not for so long that they may be asked for again."""
        tasks = self._state.tasks
        for pair, (_, at_ms) in list(self._asked.items()):
            task = tasks.get(pair[0])
            if task is None or pair[1] not in task.attempts or now_ms - at_ms > AGAIN_MS:
                del self._asked[pair]

    def _candidates(self) -> list[tuple[Member, Pair]]:
        """Attempts that wait in child swarms, the most urgent first, as far as they are live and not asked for."""
        found: list[tuple[int, tuple[int, int], Member, Pair]] = []
        for member_id, pairs in self._links.recallable.items():
            member = self._state.members.get(member_id)
            if member is None or not self._links.reachable(member):
                continue
            for pair in pairs:
                if member.running.get(pair[0]) == pair[1] and pair not in self._asked:
                    task = self._state.tasks[pair[0]]
                    if len(task.attempts) == 1:
                        found.append((-task.priority, task.submitted, member, pair))
        found.sort(key=lambda one: (one[0], one[1], one[3]))
        return [(member, pair) for _, _, member, pair in found]

    def _free(self, taken: Mapping[str, int]) -> dict[str, int]:
        """Free slots by member that no recalled attempt is on its way to."""
        links, free = self._links, dict[str, int]()
        for member in self._state.members.values():
            if member.capacity and links.reachable(member):
                free[member.id] = free_slots(member, links.load(member.id), taken.get(member.id, 0))
        for target, _ in self._asked.values():
            if target in free:
                free[target] -= 1
        return {name: slots for name, slots in free.items() if slots > 0}

    def _target(self, task: Task, source: Member, free: Mapping[str, int]) -> str | None:
        """The other member with the most free slots that could run the task."""
        members, links = self._state.members, self._links
        able = [
            (-slots, name)
            for name, slots in free.items()
            if name != source.id and could_run(members[name], task, links.load(name))
        ]
        return min(able)[1] if able else None
