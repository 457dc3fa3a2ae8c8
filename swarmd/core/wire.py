"""What travels on subjects but is not stored: dispatch, heartbeats, beacons, requests and outcomes.

All of it is JSON (docs/protocol.md). Unknown fields are refused where people or programs write the
message, and ignored where swarmd's own processes of different versions talk to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType, field

from swarmd.core.events import NULL, Budget, Failure, Limit, RetryPolicy, Schedule, Spending
from swarmd.core.state import Place, TaskState

# --- what clients write ----------------------------------------------------------------------------


class Submission(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A wish for a task, as any client writes it. Only `agent` is required.

    It begins at `not_before_ms` (milliseconds since 1970, 0: at once) and has `timeout_ms` from then on. Of the tasks
    with one `concurrency_key` only so many run at once as the settings allow, by default one.
    """

    agent: str
    input: Raw = NULL
    id: str = ""
    priority: int = 0
    timeout_ms: int = 0
    not_before_ms: int = 0
    tenant: str = ""
    retry: RetryPolicy = RetryPolicy()
    budget: Budget = Budget()
    labels: dict[str, str] = field(default_factory=dict)
    requires: dict[str, str] = field(default_factory=dict)
    reply: str = ""
    input_blob: str = ""
    concurrency_key: str = ""


class TaskQuery(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Names a task; `timeout_ms` is how long `ctl.result` may wait for its verdict."""

    task: str
    timeout_ms: int = 0
    reason: str = ""


class AttemptQuery(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Names a live attempt of a task, which shall be taken from its member."""

    task: str
    epoch: int


class RollQuery(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Names a member: what does its process run?"""

    member: str


class Roll(Struct, omit_defaults=True):
    """What the process of a member listed as running, `age_ms` ago (-1: nothing yet), for all of its `members`.

    `heard_ms` is the age of its last heartbeat, `seq` how far the leader has folded.
    """

    members: list[str]
    running: list[tuple[str, int]]
    age_ms: int
    heard_ms: int
    reachable: bool
    seq: int


class Feedback(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Somebody's judgement of a finished task, from -1 (bad) to 1 (good)."""

    task: str
    score: float
    comment: str = ""
    by: str = ""


class LoadQuery(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Asks a swarm what it could run, and which of these tasks nobody has begun."""

    tasks: list[str] = field(default_factory=list)


class DurationsQuery(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Which agents are asked about."""

    agents: list[str]


class Durations(Struct, omit_defaults=True):
    """The mean milliseconds of an attempt, by agent, as of log sequence `seq`; without those that never ended one."""

    durations: dict[str, int]
    seq: int


class MemberQuery(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A page of a swarm's members: at most `limit`, those behind the member `after` ("": from the first)."""

    after: str = ""
    limit: int = 500


class InboxQuery(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Which open questions to list: all, one, those of a task, or those for somebody."""

    id: str = ""
    task: str = ""
    to: str = ""
    limit: int = 100


class InboxItem(Struct, omit_defaults=True):
    """A question to a person. `schema` is the JSON Schema of its answer, `until_ms` when it is too late (0: never).

    An approval is of a call that `tool` is to make with `arguments`; a lost call is one that a crash cut off.
    """

    id: str
    task: str
    agent: str
    kind: Literal["question", "approval", "lost_call"]
    prompt: str
    schema: Raw
    asked_at: str
    to: str = ""
    until_ms: int = 0
    on_timeout: str = "fail"
    default: Raw | UnsetType = UNSET
    tool: str = ""
    arguments: Raw | UnsetType = UNSET
    digest: str = ""
    labels: dict[str, str] = field(default_factory=dict)


class Inbox(Struct, omit_defaults=True):
    """Open questions, oldest first, as of log sequence `seq`; `total` counts those that match."""

    requests: list[InboxItem]
    seq: int
    total: int = 0


class Answered(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Somebody's answer to the question `id`."""

    id: str
    value: Raw = NULL
    by: str = ""


class Signal(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An event by name, for every task that waits for it or for one."""

    name: str
    value: Raw = NULL
    task: str = ""
    by: str = ""


class ScheduleQuery(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Which schedule to remove."""

    schedule: str


class ScheduleStatus(Struct, omit_defaults=True):
    """A schedule, when it fires next and fired last (milliseconds since 1970, 0: never), how often it has.

    `skipped` counts the slots that were left out since the task before still lived.
    """

    id: str
    agent: str
    schedule: Schedule
    next_ms: int = 0
    last_ms: int = 0
    last_task: str = ""
    fired: int = 0
    skipped: int = 0


class Schedules(Struct, omit_defaults=True):
    """Every schedule of a swarm, by id, as of log sequence `seq`."""

    schedules: list[ScheduleStatus]
    seq: int


class Instruction(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Something to tell a running task, or why it is paused."""

    task: str
    text: str = ""
    reason: str = ""
    by: str = ""


class Receipt(Struct, omit_defaults=True):
    """The answer to a submission: `task` when it was accepted (`known`: some time before), `error` when it was not."""

    task: str = ""
    error: Failure | UnsetType = UNSET
    known: bool = False


class Outcome(Struct, omit_defaults=True):
    """A task's verdict for its client, or its state so far while `final` is false.

    `spent` is what it and its children cost; a verdict that is told again later comes without.
    """

    task: str
    state: TaskState
    output: Raw | UnsetType = UNSET
    output_blob: str = ""
    error: Failure | UnsetType = UNSET
    attempts: int = 0
    seq: int = 0
    final: bool = True
    spent: Spending | UnsetType = UNSET


class AccountStatus(Struct, omit_defaults=True):
    """Whose spending is limited: `swarm`, `tenant:NAME` or `task:ID`. `reserved` is granted and not spent yet."""

    account: str
    limit: Limit
    spent: Spending = Spending()
    reserved: Spending = Spending()


class TaskStatus(Struct, omit_defaults=True):
    """A task as the fold sees it; `waiting_for` says in words why it does not run."""

    task: str
    state: TaskState
    agent: str = ""
    member: str = ""
    epoch: int = 0
    failures: int = 0
    steps: int = 0
    children: int = 0
    waiting_for: str = ""
    seq: int = 0
    spent: Spending = Spending()
    budgets: list[AccountStatus] = field(default_factory=list)
    victims: list[str] = field(default_factory=list)


class Load(Struct, omit_defaults=True):
    """What a child swarm has to do besides what it was given: tasks that wait for a slot, and slots that are free.

    `latency_ms` is how long it took to answer its delegate, `members` how many of its own can be reached. Of the
    parent's attempts `held` were there when it answered and `waiting` of those had no slot; `slots` are those that
    the parent may use: the free ones, and those that its attempts hold. Of the agents in `full` none has a free slot,
    though others have (all are without when `free` is 0). `below` names the child and the swarms that it contains.
    """

    queued: int = 0
    free: int = 0
    latency_ms: int = 0
    members: int = 0
    slots: int = 0
    held: int = 0
    waiting: int = 0
    full: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)


class MemberStatus(Struct, omit_defaults=True):
    """A member as the leader sees it; `heard_ms` is the age of its last heartbeat, `phi` how odd that silence is.

    `slowness` is how many times longer than the typical member it takes, by agent; `load` is a child swarm's own.
    """

    member: str
    kind: str
    node: str
    agents: list[str]
    capacity: int
    running: int
    heard_ms: int
    reachable: bool
    phi: float = 0.0
    quarantined: str = ""
    slowness: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    load: Load | None = None


class SwarmLoad(Struct, omit_defaults=True):
    """What a swarm can run and has to do; of the tasks asked about, `waiting` are those that nobody has begun."""

    swarm: str
    agents: list[str]
    capacity: int
    load: Load
    refusing: str = ""
    waiting: list[str] = field(default_factory=list)


class Members(Struct, omit_defaults=True):
    """A page of the members by id, as of log sequence `seq`; the next one begins behind `after` ("": there is none)."""

    members: list[MemberStatus]
    seq: int
    total: int
    after: str = ""


class Crew(Struct, omit_defaults=True):
    """How many members there are, how many can be reached, how many of those offer slots (`working`) and how many.

    `used` counts attempts, those of silent members too.
    """

    members: int = 0
    reachable: int = 0
    working: int = 0
    slots: int = 0
    used: int = 0


class NodeAttempt(Struct):
    """An attempt that a worker node runs, and for how long."""

    task: str
    epoch: int
    agent: str
    ran_ms: int


class NodeStatus(Struct, omit_defaults=True):
    """A worker node as it sees itself: who it is, what it offers, how much it runs.

    `attempts` counts what it runs, `running` names the oldest hundred of it, in the answer to `status` only. `draining`
    is whether it was told to take no new work; `capacity` is what it offers when it is not.
    """

    node: str
    member: str
    agents: list[str]
    capacity: int
    attempts: int
    uptime_ms: int
    draining: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    running: list[NodeAttempt] = field(default_factory=list)


class TenantStatus(Struct, omit_defaults=True):
    """What a tenant ("": tasks without one) has: live tasks, slots that run them, and its weight."""

    tenant: str
    live: int = 0
    slots: int = 0
    weight: float = 1.0


class NextSlot(Struct, omit_defaults=True):
    """When a schedule fires next (milliseconds since 1970, 0: never)."""

    id: str
    agent: str
    next_ms: int = 0


class SwarmStatus(Struct, omit_defaults=True):
    """A swarm at one sequence of its log.

    `members` are the first few hundred, `crew` counts all of them, and `offers` those who offer an agent and can be
    reached, by agent. `keys` are slots in use by concurrency key, `durations` the mean milliseconds of an attempt, by
    agent.
    """

    swarm: str
    seq: int
    term: int
    leader: str
    tasks: dict[str, int]
    counters: dict[str, Any]
    members: list[MemberStatus]
    waiting: dict[str, int]
    refusing: str = ""
    budgets: list[AccountStatus] = field(default_factory=list)
    schedules: list[NextSlot] = field(default_factory=list)
    tenants: list[TenantStatus] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=dict)
    durations: dict[str, int] = field(default_factory=dict)
    crew: Crew = field(default_factory=Crew)
    offers: dict[str, Crew] = field(default_factory=dict)


# --- leader to members -----------------------------------------------------------------------------


class Start(Struct, omit_defaults=True, tag_field="op", tag="start"):
    """Run this attempt. `journal`, `children`, `resolved` waits and what it was `told` are places in the log.

    A task of more than a thousand steps has them as runs in `steps` (sequence, index, how many from there on) instead
    of `journal`; one of more than a thousand children has the verdicts of those that have one in `done` (number,
    sequence, index) instead of `children`. With `more` both follow in `rest` items: it begins when the last is there.

    Read them before resuming. `grant` is what it may spend before it asks for more.
    """

    task: str
    epoch: int
    member: str
    agent: str
    input: Raw = NULL
    input_blob: str = ""
    journal: Sequence[Place] = ()
    children: dict[str, Place | None] = field(default_factory=dict)
    deadline_at_ms: int = 0
    grant: Budget = Budget()
    tenant: str = ""
    priority: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    resolved: dict[str, Place] = field(default_factory=dict)
    told: Sequence[Place] = ()
    version: str = "1"
    steps: Sequence[tuple[int, int, int]] = ()
    done: Sequence[tuple[int, int, int]] = ()
    more: bool = False


class Rest(Struct, omit_defaults=True, tag_field="op", tag="rest"):
    """More of the `start` of this attempt, part `n` from 0 on: further `steps` and `done`, up to the `last`."""

    task: str
    epoch: int
    n: int = 0
    steps: Sequence[tuple[int, int, int]] = ()
    done: Sequence[tuple[int, int, int]] = ()
    last: bool = False


class Stop(Struct, tag_field="op", tag="stop"):
    """This attempt has no right to go on."""

    task: str
    epoch: int


class ChildDone(Struct, tag_field="op", tag="child_done"):
    """A child of this running attempt has its verdict at `place`."""

    task: str
    child: str
    place: Place


class ChildrenDone(Struct, tag_field="op", tag="children_done"):
    """Children of this running attempt have their verdicts: (number, sequence, index) each."""

    task: str
    places: Sequence[tuple[int, int, int]]


class WaitDone(Struct, tag_field="op", tag="wait_done"):
    """A wait of this running attempt is resolved by what stands at `place`."""

    task: str
    key: str
    place: Place


class Instruct(Struct, tag_field="op", tag="instruct"):
    """This running attempt has an instruction at `place`."""

    task: str
    place: Place


class Grant(Struct, tag_field="op", tag="grant"):
    """The answer to wish `n` of this attempt: it may spend `total` since it began, or no more, as `refused` says."""

    task: str
    epoch: int
    n: int
    total: Budget = Budget()
    refused: str = ""


class Pause(Struct, tag_field="op", tag="pause"):
    """This attempt shall be suspended at its next step."""

    task: str


class Recall(Struct, tag_field="op", tag="recall"):
    """Give this attempt back if nobody has begun it in the child swarm: it can run elsewhere."""

    task: str
    epoch: int


class Replaced(Struct, tag_field="op", tag="replaced"):
    """Another process speaks for this child swarm now: two would take it from each other for ever."""

    member: str


class Report(Struct, tag_field="op", tag="report"):
    """List every running attempt in a heartbeat, now."""


class Rejoin(Struct, tag_field="op", tag="rejoin"):
    """The log does not know your members: join again."""


Item = (
    Start
    | Rest
    | Stop
    | ChildDone
    | ChildrenDone
    | WaitDone
    | Instruct
    | Grant
    | Pause
    | Recall
    | Replaced
    | Report
    | Rejoin
)


class Dispatch(Struct):
    """Numbered from 1 per term and process, acknowledged by heartbeats; `seq` is the leader's fold."""

    term: int
    n: int
    seq: int
    items: list[Item]


class Beat(Struct):
    """The leader's beacon: who leads, and how far its fold is.

    `workers` is how many worker processes it would have (-1: it does not say).
    """

    term: int
    seq: int
    leader: str
    workers: int = -1


# --- members to leader -----------------------------------------------------------------------------


class Heartbeat(Struct, omit_defaults=True):
    """A process is alive: `ack` is the last dispatch it took in `term`, `seq` its writer's last receipt.

    `running` counts attempts per member; `listed` names them all, when asked to. An attempt is
    listed until its last report is acknowledged. `load` says of child swarms what else they have to do, and
    `recallable` are attempts that wait there and that nobody has begun, some of them if they are many.
    """

    role: str
    writer: str
    boot: str
    term: int
    ack: int
    seq: int
    running: dict[str, int]
    listed: list[tuple[str, int]] | None = None
    load: dict[str, Load] = field(default_factory=dict)
    recallable: list[tuple[str, int]] = field(default_factory=list)


class StoreHealth(Struct, omit_defaults=True):
    """Bytes of a store against its limit; `advice` says what to do when it is full."""

    store: str
    bytes: int
    bytes_max: int
    advice: str = "archive or raise its limit"
