"""Every event of a swarm's log, as facts in a CloudEvents envelope.

A fact says what happened, in the past tense; the envelope says to which task (`subject`), by whom (`source`) and when
(information only: no transition reads it). `FACTS` maps each CloudEvents type to its fact; a released type is never
changed, only succeeded by a `.v2` with an upcast in `codec.py`. Leader facts carry the `term` they were decided in, a
member's reports the `epoch` of their attempt. They are trees: collecting cycles need not look at them (`gc=False`).
"""

from __future__ import annotations

from typing import Any, Final, Literal

from msgspec import UNSET, Raw, Struct, UnsetType, field

NULL: Final = Raw(b"null")


class RetryPolicy(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Failed attempts are repeated until there were `attempts_max`, after a delay doubling from `backoff_ms`."""

    attempts_max: int = 3
    backoff_ms: int = 200
    backoff_ms_max: int = 30_000


class Budget(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """What a task and its children together may spend over all attempts; what is left out has no limit.

    Cost is in millionths of a US dollar, `wall_ms` the time for which attempts run, added up.
    """

    tokens: int | None = None
    cost_microusd: int | None = None
    steps: int | None = None
    wall_ms: int | None = None


class Limit(Budget, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a tenant or a swarm may spend: for good, or on each day (UTC)."""

    period: Literal["total", "day"] = "total"


class Spending(Struct, frozen=True, omit_defaults=True, gc=False):
    """What something cost, in the measures of a budget."""

    tokens: int = 0
    cost_microusd: int = 0
    steps: int = 0
    wall_ms: int = 0


class Failure(Struct, omit_defaults=True, gc=False):
    """Why something failed: a stable `code` for machines, a `message` for people."""

    code: str
    message: str


class Fact(Struct, omit_defaults=True, kw_only=True, gc=False):
    """Base of all facts."""


class Question(Struct, omit_defaults=True, gc=False):
    """What a person is asked. `schema` is the JSON Schema of an answer; `digest` binds an approval to `arguments`.

    One with a `tool` and no `digest` is about a call of it that a crash cut off.

    When nobody answers in time the wait fails, ends with `default`, or goes to the next of `escalate_to`, each of
    whom has `timeout_ms`.
    """

    prompt: str
    schema: Raw = Raw(b"{}")
    on_timeout: Literal["fail", "default", "reject", "escalate"] = "fail"
    default: Raw = NULL
    escalate_to: list[str] = field(default_factory=list)
    timeout_ms: int = 0
    tool: str = ""
    arguments: Raw = NULL
    digest: str = ""


class Schedule(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Tasks at points in time, its slots: each `every_ms`, or whenever `cron` says so in the time zone `zone`.

    The first slot of an interval is at `not_before_ms` if that is given, else an interval after now. A slot that is
    older than `grace_ms` when it could fire is `missed`: it is left out ("skip"), one stands for all ("once"), or
    each fires ("all"). `overlap` "skip" leaves a slot out while the task before it lives. `declared` marks those of
    the settings. Tasks have `timeout_ms` from when they are made, and labels `schedule` and `slot_ms`.
    """

    id: str
    agent: str
    input: Raw = NULL
    every_ms: int = 0
    cron: str = ""
    zone: str = "UTC"
    not_before_ms: int = 0
    until_ms: int = 0
    missed: Literal["skip", "once", "all"] = "once"
    grace_ms: int = 60_000
    overlap: Literal["allow", "skip"] = "allow"
    priority: int = 0
    tenant: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    requires: dict[str, str] = field(default_factory=dict)
    budget: Budget = Budget()
    retry: RetryPolicy = RetryPolicy()
    timeout_ms: int = 0
    declared: bool = False


WaitKind = Literal["timer", "event", "message", "human"]


class Why(Struct, frozen=True, omit_defaults=True, gc=False):
    """Why an attempt was given to its member, so that a replay can explain it.

    `rule`: "load" (least loaded of `free` members that could take it), "speed" (others were free, and slower), "fit"
    (it did well at tasks like this), "only" (none but it could), "probe" (a quarantined member is tried), "hedge" (the
    attempt before it is slower than it should be). `waited_ms` is how long the task was queued, `expected_ms` how long
    the leader thinks that it runs there (0: nothing is known).
    """

    rule: Literal["load", "speed", "fit", "only", "probe", "hedge"] = "load"
    free: int = 0
    waited_ms: int = 0
    expected_ms: int = 0


# --- by the leader ---------------------------------------------------------------------------------


class Elected(Fact):
    """A new leader: the first stored event of a term higher than the current one wins it."""

    term: int


class Configured(Fact):
    """The limits that the fold obeys from here on."""

    term: int
    live_tasks_max: int
    remembered_max: int
    dead_max: int
    losses_max: int


class Submitted(Fact):
    """A task is wanted. `digest` identifies agent and input, so that a repeated id can be told from a reused one."""

    term: int
    agent: str
    digest: str
    input: Raw = NULL
    input_blob: str = ""
    priority: int = 0
    deadline_at_ms: int = 0
    not_before_ms: int = 0
    tenant: str = ""
    retry: RetryPolicy = RetryPolicy()
    budget: Budget = Budget()
    labels: dict[str, str] = field(default_factory=dict)
    requires: dict[str, str] = field(default_factory=dict)
    reply: str = ""
    packed: bool = False
    intake_seq: int = 0
    concurrency_key: str = ""


class Refused(Fact):
    """A submission was turned away; `subject` is its id, or that of its place in the intake."""

    term: int
    failure: Failure
    reply: str = ""
    intake_seq: int = 0


class Assigned(Fact):
    """An attempt is given to a member. `grant` is what it may spend unasked, as far as the fold finds it left.

    While another attempt of the task is live this one hedges it: the first result counts.
    """

    term: int
    epoch: int
    member: str
    grant: Budget = Budget()
    why: Why | UnsetType = UNSET


class Budgeted(Fact):
    """What the swarm and its tenants may spend from here on; a later `day` (UTC, since 1970) begins daily limits anew.

    `limits` has an entry "swarm" and one "tenant:NAME" for each tenant with a limit.
    """

    term: int
    limits: dict[str, Limit] = field(default_factory=dict)
    day: int = 0


class Granted(Fact):
    """The answer to wish `n` of an attempt: it may spend `total` since its beginning, or no more, as `refused` says.

    The fold grants at least what was wanted, or nothing.
    """

    term: int
    epoch: int
    n: int
    total: Budget = Budget()
    refused: str = ""


class Requeued(Fact):
    """An attempt never reached its member, its back-off is over, or its time has come: the task waits for a slot."""

    term: int
    epoch: int
    reason: Literal["undelivered", "retry", "due"]


class Cancelled(Fact):
    term: int
    reason: str = ""


class Recalled(Fact):
    """A task that nobody has begun is given up here, since it is to be placed elsewhere: its end, if it is so."""

    term: int
    reason: str = ""


class Rated(Fact):
    """Somebody's judgement of a finished task, from -1 (bad) to 1 (good); placement learns from it."""

    term: int
    score: float
    comment: str = ""
    by: str = ""


class Quarantined(Fact):
    """A member gets no work but single probes, since too much of what it was given failed."""

    term: int
    member: str
    reason: str = ""


class Readmitted(Fact):
    """A quarantined member did well at its probes and is like any other again."""

    term: int
    member: str


class Expired(Fact):
    """The deadline passed before a verdict."""

    term: int


class Redriven(Fact):
    """A dead task gets a fresh set of attempts; its journal stays."""

    term: int


class MemberLost(Fact):
    """The lease of a member lapsed; its attempts are void and their tasks wait again."""

    term: int
    member: str


class Settled(Fact):
    """What the leader owed is done: outcomes of verdicts up to `told`, raw submissions up to `intake`."""

    term: int
    told: int
    intake: int


class Resolved(Fact):
    """What a wait was for is here: an answer, or its time (`timed_out`). The first one that is accepted holds."""

    term: int
    key: str
    value: Raw = NULL
    by: str = ""
    timed_out: bool = False


class Escalated(Fact):
    """Nobody answered in time: the question goes to `to`, who has until `until_ms`."""

    term: int
    key: str
    level: int
    to: str
    until_ms: int = 0


class Signalled(Fact):
    """An event from outside, by name: every task that waits for it goes on, or only `task`."""

    term: int
    name: str
    value: Raw = NULL
    task: str = ""
    by: str = ""


class Told(Fact):
    """An instruction to a task; its agent reads it at its next step."""

    term: int
    text: str
    by: str = ""


class Paused(Fact):
    """The task goes no further than the step it is in, until it is resumed."""

    term: int
    reason: str = ""
    by: str = ""


class Unpaused(Fact):
    """A paused task goes on."""

    term: int
    by: str = ""


class Scheduled(Fact):
    """A schedule is in force, for slots after `from_ms`; one of the same id is replaced."""

    term: int
    schedule: Schedule
    from_ms: int


class Unscheduled(Fact):
    """A schedule is no more; its tasks live on."""

    term: int


class Fired(Fact):
    """A slot has come: the fold makes its task, unless it overlaps. Slots that are not after the last one are void."""

    term: int
    slot_ms: int
    deadline_at_ms: int = 0


# --- by members ------------------------------------------------------------------------------------


class MemberJoined(Fact):
    """A member offers itself, or changes its offer; capacity 0 is a draining member.

    `versions` are those of each agent that the member can run, the one it gives to new tasks first; agents without
    an entry have version "1". `idempotent` are the agents of which two attempts may run at once.
    """

    member: str
    kind: Literal["node", "swarm"]
    agents: list[str]
    capacity: int
    node: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    versions: dict[str, list[str]] = field(default_factory=dict)
    idempotent: list[str] = field(default_factory=list)


class MemberLeft(Fact):
    """A member is gone by its own will, with no attempt left."""

    member: str


class Reunited(Fact):
    """A child swarm and its parent hear of each other again; what came of it, for people. It changes nothing.

    `way` was cut, to the "child" or the "parent" of a delegate. `tasks` counts attempts: `running` then; `late`: ended
    meanwhile; `going_on`; `unknown` to the child; `stopped` so late; `too_late` to stop. `examples` names some of each.
    """

    member: str
    way: Literal["child", "parent"]
    cut_ms: int
    tasks: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)


class Stepped(Fact):
    """One step of an attempt is done; its result is never computed or paid for again.

    `ran_ms` is for how long the attempt has run since its last report; steps side by side share that time.
    """

    epoch: int
    key: str
    kind: str
    result: Raw = NULL
    result_blob: str = ""
    failure: Failure | UnsetType = UNSET
    tokens: int = 0
    duration_ms: int = 0
    cost_microusd: int = 0
    ran_ms: int = 0


class GrantWanted(Fact):
    """An attempt has used up its grant: it needs `total` since its beginning for what it wants to do next.

    Wishes are numbered from 1; an attempt has one open wish at most.
    """

    epoch: int
    n: int
    total: Budget = Budget()


class Spawned(Fact):
    """A step that wants a child task; the fold creates it from the folded parent.

    It may rank behind its parent, never before; a `budget` of its own is spent from its parent's as well. `rank_ms` is
    how long the parent's work will take from the start of this child on, as far as it knows: of siblings the one with
    the longest way ahead goes first.
    """

    epoch: int
    key: str
    n: int
    agent: str
    input: Raw = NULL
    input_blob: str = ""
    requires: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    priority: int | None = None
    budget: Budget | UnsetType = UNSET
    concurrency_key: str = ""
    rank_ms: int = 0


class Awaited(Fact):
    """A step whose result comes from elsewhere: a point in time, an event, a message, a person.

    It ends at `until_ms` without one (0: never). `name` is the event's, the message's sender ("": any), or whoever
    shall answer. `earlier` lets an event count that was signalled before.
    """

    epoch: int
    key: str
    kind: WaitKind
    until_ms: int = 0
    name: str = ""
    earlier: bool = False
    question: Question | UnsetType = UNSET


class Sent(Fact):
    """A step that sends a message: to `task:ID`, `agent:NAME`, `member:ID` or `family`, as the fold finds them."""

    epoch: int
    key: str
    to: str
    body: Raw = NULL
    body_blob: str = ""


class Dropped(Fact):
    """A step that cancels children; runs of them may be ranges (kin.py)."""

    epoch: int
    key: str
    children: list[str]
    reason: str = ""


class Suspended(Fact):
    """The attempt waits: its slot is free, its epoch is over.

    Each of `waits` is a group of children and keys of waits, with runs of children as ranges (kin.py). The task goes on
    when all of any one group are resolved, at once if there is none.
    """

    epoch: int
    waits: list[list[str]]
    spent: Spending = Spending()


class Returned(Fact):
    """The attempt is handed back unfinished and unfailed (a draining member)."""

    epoch: int
    reason: str = ""
    spent: Spending = Spending()


class Completed(Fact):
    """The attempt has its result. `spent` is, here and in all last reports, what no step has reported."""

    epoch: int
    output: Raw = NULL
    output_blob: str = ""
    spent: Spending = Spending()


class Failed(Fact):
    """The attempt failed; whether the task retries or dies follows from its retry policy."""

    epoch: int
    failure: Failure
    retryable: bool = True
    retry_after_ms: int = 0
    spent: Spending = Spending()


class Event(Struct, omit_defaults=True, tag_field="specversion", tag="1.0", gc=False):
    """A CloudEvents 1.0 JSON envelope. Core fills `subject` and `data`; the log writer fills the rest."""

    subject: str
    data: Fact
    type: str = ""
    id: str = ""
    source: str = ""
    time: str = ""
    traceparent: str = ""


FACTS: Final[dict[str, type[Fact]]] = {
    "swarmd.swarm.elected.v1": Elected,
    "swarmd.swarm.configured.v1": Configured,
    "swarmd.swarm.settled.v1": Settled,
    "swarmd.swarm.budgeted.v1": Budgeted,
    "swarmd.task.submitted.v1": Submitted,
    "swarmd.task.rejected.v1": Refused,
    "swarmd.task.assigned.v1": Assigned,
    "swarmd.task.granted.v1": Granted,
    "swarmd.task.requeued.v1": Requeued,
    "swarmd.task.cancelled.v1": Cancelled,
    "swarmd.task.expired.v1": Expired,
    "swarmd.task.recalled.v1": Recalled,
    "swarmd.task.rated.v1": Rated,
    "swarmd.task.redriven.v1": Redriven,
    "swarmd.task.resolved.v1": Resolved,
    "swarmd.task.escalated.v1": Escalated,
    "swarmd.task.told.v1": Told,
    "swarmd.task.paused.v1": Paused,
    "swarmd.task.unpaused.v1": Unpaused,
    "swarmd.swarm.signalled.v1": Signalled,
    "swarmd.schedule.scheduled.v1": Scheduled,
    "swarmd.schedule.unscheduled.v1": Unscheduled,
    "swarmd.schedule.fired.v1": Fired,
    "swarmd.task.step.v1": Stepped,
    "swarmd.task.grant_wanted.v1": GrantWanted,
    "swarmd.task.awaited.v1": Awaited,
    "swarmd.task.sent.v1": Sent,
    "swarmd.task.dropped.v1": Dropped,
    "swarmd.task.spawned.v1": Spawned,
    "swarmd.task.suspended.v1": Suspended,
    "swarmd.task.returned.v1": Returned,
    "swarmd.task.completed.v1": Completed,
    "swarmd.task.failed.v1": Failed,
    "swarmd.member.joined.v1": MemberJoined,
    "swarmd.member.left.v1": MemberLeft,
    "swarmd.member.lost.v1": MemberLost,
    "swarmd.member.reunited.v1": Reunited,
    "swarmd.member.quarantined.v1": Quarantined,
    "swarmd.member.readmitted.v1": Readmitted,
}
TYPES: Final[dict[type[Fact], str]] = {fact: name for name, fact in FACTS.items()}

MEMBER_ROLES: Final = frozenset({"worker", "delegate"})
LEADER_ROLES: Final = frozenset({"orchestrator"})
_MEMBER_FACTS: Final = (
    *(MemberJoined, MemberLeft, Reunited, Stepped, GrantWanted, Spawned, Awaited, Sent, Dropped),
    *(Suspended, Returned, Completed, Failed),
)
#: Which role may write which fact. The subject says the role, and the broker's permissions guarantee it.
AUTHORITY: Final[dict[type[Fact], frozenset[str]]] = {
    fact: MEMBER_ROLES if fact in _MEMBER_FACTS else LEADER_ROLES for fact in TYPES
}


def fields_of(event: Event) -> dict[str, Any]:
    """The fact as a plain dictionary, for tables and templates."""
    return {name: getattr(event.data, name) for name in event.data.__struct_fields__}
