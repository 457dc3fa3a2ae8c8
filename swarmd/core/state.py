"""The state of a swarm: what the fold of its log has made true.

Live tasks in full, finished ones as tombstones for a window, members, the current leader and the
numbering of the log's writers. Plain structs: everything here goes into a snapshot as it is. They form a tree, so the
collector of cycles need not look at what there may be a million of (`gc=False`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from msgspec import Raw, Struct, field

from swarmd.core.budgets import Account, Reservation
from swarmd.core.events import Budget, RetryPolicy, Schedule, Submitted, WaitKind
from swarmd.core.experience import Learned, Pace

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Raised whenever `evolve` gives the same log another meaning: older snapshots are then not used.
FOLD_VERSION: Final = 6

TaskState = Literal[
    "queued",
    "assigned",
    "suspended",
    "paused",
    "delayed",
    "backoff",
    "completed",
    "dead",
    "cancelled",
    "expired",
]
#: A task that was running when members were lost so often is a suspect: no process gets two of them.
SUSPECT_LOSSES: Final = 2
TERMINAL: Final = frozenset({"completed", "dead", "cancelled", "expired"})
#: What a member runs of an agent of which it states no version.
FIRST_VERSION: Final = ["1"]
Place = tuple[int, int]  #: (sequence of the commit, index of the event in it)
Pair = tuple[str, int]  #: (task, epoch): an attempt


class Empty(dict[Any, Any]):
    """An empty dictionary for good: what a million tasks have in place of one each until they have something in it.

    Whoever adds the first entry puts a dictionary in its place.
    """

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("this dictionary is shared by all that have nothing: put one with the entry in its place")

    __setitem__ = setdefault = update = __ior__ = _refuse


EMPTY: Final = Empty()
#: What a submission is that says nothing more: the defaults of its task are the very same objects.
USUAL: Final = Submitted(term=0, agent="", digest="")


class Limits(Struct, frozen=True):
    """Bounds of a swarm; an event sets them, so that every replica obeys the same ones."""

    live_tasks_max: int = 1_000_000
    remembered_max: int = 250_000
    dead_max: int = 10_000
    losses_max: int = 5


class Attempt(Struct, omit_defaults=True, gc=False):
    """One try of a task: its member, its branch of the journal (step key → place, in order), what it may spend.

    It was assigned at `since_ms`, by the broker's clock; `begun` is whether it started from an empty journal.
    """

    epoch: int
    member: str
    journal: dict[str, Place] = EMPTY
    held: Reservation | None = None
    since_ms: int = 0
    begun: bool = True


class Wait(Struct, gc=False):
    """A wait of a task, at `place` in the log: open until it is `resolved` there.

    `name` is an event's, a sender's, or of whoever shall answer; `question` is the id by which a person answers.
    """

    kind: WaitKind
    place: Place
    until_ms: int = 0
    name: str = ""
    question: str = ""
    on_timeout: str = ""
    escalate_to: list[str] = field(default_factory=list)
    timeout_ms: int = 0
    level: int = 0
    resolved: Place | None = None


class Mail(Struct, frozen=True, gc=False):
    """A message that nobody has received yet."""

    place: Place
    sender: str


class Task(Struct, omit_defaults=True, gc=False):
    """A live task. `attempts` holds the live epochs: none while it waits, two when hedged.

    `since_ms` is when its submission was stored, a child's when its eldest ancestor's was. `victims` are the members
    that were lost while they ran it, `failed_by` is where its attempts failed ("*": at several).

    `waits` are the groups that a suspended task waits for, each with what is still unresolved of it. `awaited` are
    all its waits by step key, `told` the places of its instructions. What a task does not have is an empty tuple, or
    the shared `EMPTY`, until it does.
    """

    id: str
    agent: str
    digest: str
    submitted: Place
    input: Raw
    state: TaskState = "queued"
    epoch: int = 0
    failures: int = 0
    since_ms: int = 0
    rank_ms: int = 0
    concurrency_key: str = ""
    victims: tuple[str, ...] = ()
    failed_by: str = ""
    spent_tokens: int = 0
    spent_steps: int = 0
    spent_microusd: int = 0
    ran_ms: int = 0
    retry_after_ms: int = 0
    input_blob: str = ""
    priority: int = 0
    deadline_at_ms: int = 0
    tenant: str = ""
    parent: str = ""
    reply: str = ""
    packed: bool = False
    retry: RetryPolicy = USUAL.retry
    budget: Budget = USUAL.budget
    draws: tuple[str, ...] = ()
    labels: dict[str, str] = EMPTY
    requires: dict[str, str] = EMPTY
    attempts: dict[int, Attempt] = EMPTY
    journal: dict[str, Place] = EMPTY
    children: dict[str, Place | None] = EMPTY
    waits: tuple[dict[str, None], ...] = ()
    awaited: dict[str, Wait] = EMPTY
    mailbox: tuple[Mail, ...] = ()
    sent: dict[str, None] = EMPTY
    told: tuple[Place, ...] = ()
    paused: bool = False
    not_before_ms: int = 0
    version: str = ""

    @property
    def is_suspect(self) -> bool:
        """Whether it may be the reason that its members were lost."""
        return len(self.victims) >= SUSPECT_LOSSES


class Tombstone(Struct, frozen=True, omit_defaults=True, gc=False):
    """What is remembered of a finished task: enough to answer a repeated id, find its verdict, judge its member."""

    digest: str
    state: TaskState
    verdict: Place
    agent: str = ""
    member: str = ""
    rated: bool = False


class Member(Struct):
    """A worker node or a child swarm. `running` are its live attempts, task → epoch.

    `paces` say how it does at each agent; `quarantined` why it gets no work but probes, "" if it is like any other.
    """

    id: str
    kind: Literal["node", "swarm"]
    role: str
    writer: str
    boot: str
    agents: list[str]
    capacity: int
    node: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)
    versions: dict[str, list[str]] = field(default_factory=dict)
    idempotent: list[str] = field(default_factory=list)
    paces: dict[str, Pace] = field(default_factory=dict)
    quarantined: str = ""

    def runs(self, agent: str) -> list[str]:
        """The versions of `agent` that this member can run, the one for new tasks first."""
        return self.versions.get(agent) or FIRST_VERSION

    def bears(self, labels: Iterable[tuple[str, str]]) -> bool:
        """Whether it has all of these labels."""
        return all(self.labels.get(name) == value for name, value in labels)


class Use(Struct):
    """What a tenant has: live tasks, and slots that run them."""

    live: int = 0
    slots: int = 0


class WriterWindow(Struct):
    """Which commit numbers of one writer's boot are folded: all up to `high` but the holes in `missing`."""

    high: int = 0
    missing: list[int] = field(default_factory=list)
    last_seq: int = 0


class Planned(Struct):
    """A schedule in force: what its slots count from, the last one (`slot_ms`), and the last that made a `task`."""

    schedule: Schedule
    anchor_ms: int
    slot_ms: int
    fired_ms: int = 0
    task: str = ""
    fired: int = 0
    skipped: int = 0


class Untold(Struct, gc=False):
    """An outcome owed to a `reply` subject until a `Settled` event discharges it."""

    task: str
    reply: str
    packed: bool
    seq: int


class Counters(Struct):
    """What the fold turned away, by reason, and what it has counted since the log began."""

    submitted: int = 0
    completed: int = 0
    dead: int = 0
    cancelled: int = 0
    expired: int = 0
    refused: int = 0
    steps: int = 0
    tokens: int = 0
    cost_microusd: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    garbage: int = 0
    gaps: int = 0


class SwarmState(Struct):
    """Everything the log of one swarm says, up to and including sequence `seq`.

    `idle` are the tasks that have begun and that no member runs now. `questions` are the open ones, id → task and key;
    `closed` says of late ones where they were closed. `listeners` are open waits for events, name → task → keys;
    `signals` the last event of each name. `accounts` are those with a limit (budgets.py), `wishes` the attempts that
    wait for a grant, in order; `releases` counts what may let one be met. `keys` are the slots in use by concurrency
    key, `learned` says of each agent how long its attempts take (experience.py).
    """

    swarm: str
    seq: int = 0
    message_id: str = ""
    term: int = 0
    leader_writer: str = ""
    leader_boot: str = ""
    limits: Limits = Limits()
    tasks: dict[str, Task] = field(default_factory=dict)
    dead: dict[str, Task] = field(default_factory=dict)
    tombstones: dict[str, Tombstone] = field(default_factory=dict)
    older_tombstones: dict[str, Tombstone] = field(default_factory=dict)
    youngest: str = ""
    older_youngest: str = ""
    forgotten: str = ""
    members: dict[str, Member] = field(default_factory=dict)
    writers: dict[str, WriterWindow] = field(default_factory=dict)
    untold: list[Untold] = field(default_factory=list)
    intake_seq: int = 0
    idle: dict[str, None] = field(default_factory=dict)
    questions: dict[str, tuple[str, str]] = field(default_factory=dict)
    closed: dict[str, Place] = field(default_factory=dict)
    listeners: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    signals: dict[str, Place] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    wishes: dict[str, tuple[str, int]] = field(default_factory=dict)
    budget_day: int = 0
    releases: int = 0
    tenants: dict[str, Use] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    learned: dict[str, Learned] = field(default_factory=dict)
    schedules: dict[str, Planned] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)


def tombstone(state: SwarmState, task: str) -> Tombstone | None:
    """The tombstone of a finished task, while it is remembered."""
    return state.tombstones.get(task) or state.older_tombstones.get(task)


def live_attempt(task: Task) -> Attempt | None:
    """The newest live attempt of a task."""
    return task.attempts[max(task.attempts)] if task.attempts else None
