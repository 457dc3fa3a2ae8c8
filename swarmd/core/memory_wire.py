"""What travels on a memory's subjects. Every answer may hold `error` instead of what it is about.

Who asks is told by the subject (`core/memory_spaces`), never by a request: only `agent`, `task` and `step` are said in
it, by the worker that runs the task.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import UNSET, Raw, Struct, UnsetType, field

from swarmd.core.events import Failure
from swarmd.core.memory import SHARED

#: Passages in one `remember_many`, ids in one `get`, matches in one answer, memories in one page of an export.
MANY_MAX: Final = 1_000
#: An answer's passages have no more bytes than this together: the broker takes 1 MiB in a message.
ANSWER_BYTES_MAX: Final = 900_000
#: So long one `matches` may wait for a match; ask again after that.
MATCH_WAIT_MS_MAX: Final = 30_000

#: What everybody may ask, below `memory.<M>` and `memory.<M>.of.<S>`; admins below `memory.<M>.ctl`, with more.
PUBLIC_VERBS: Final = (
    *("remember", "remember_many", "update", "recall", "get", "forget"),
    *("watch", "unwatch", "matches", "stats"),
)
ADMIN_VERBS: Final = ("revoke", "lineage", "rebuild", "verify", "job", "export")

Mode = Literal["hybrid", "dense", "lexical"]


class RememberRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What to remember. The same `id` with the same text again is answered like the first time.

    `space` is "shared", "swarm", "agent" or "task", or a space's full name. `vector` is given by those who embed
    themselves, with the id of what made it as `embedder`. `author` is the `agent`, unless it says otherwise. `swarm`
    is the caller's; only an admin may name another, to bring back what was exported.
    """

    text: str
    id: str = ""
    source: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    author: str = ""
    task: str = ""
    space: str = SHARED
    step: str = ""
    expires_at_ms: int = 0
    vector: list[float] | UnsetType = UNSET
    embedder: str = ""
    payload: Raw | UnsetType = UNSET
    agent: str = ""
    swarm: str = ""


class RememberMany(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Up to `MANY_MAX` passages in one request: each is accepted or refused by itself."""

    memories: list[RememberRequest]


class UpdateRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a memory says from now on; what is left out stays. `if_seq` refuses when another version is current.

    The same `step` of a task is answered like the first time, as is the same again that names its `if_seq`.
    """

    id: str
    text: str | UnsetType = UNSET
    source: str | UnsetType = UNSET
    labels: dict[str, str] | UnsetType = UNSET
    expires_at_ms: int | UnsetType = UNSET
    vector: list[float] | UnsetType = UNSET
    embedder: str = ""
    payload: Raw | UnsetType = UNSET
    author: str = ""
    task: str = ""
    step: str = ""
    if_seq: int = 0
    agent: str = ""


class RecallRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What to recall: by words, by meaning, or by both.

    `text` or `vector` (for "lexical", text). `filter` is an expression of `core/memory_filter`; `labels` a short form
    of one. `spaces` are those to look into: all that the caller may read, unless given. `min_similarity` is a cosine.
    `diversity` from 0 (only the best) to 1 (only what differs). `at_least_seq` waits until the store is as new as that
    (read your own writes). `as_of` asks the view that a rebuild made of that sequence.
    """

    text: str = ""
    k: int = 5
    labels: dict[str, str] = field(default_factory=dict)
    at_least_seq: int = 0
    vector: list[float] | UnsetType = UNSET
    embedder: str = ""
    mode: Mode = "hybrid"
    filter: str = ""
    spaces: list[str] = field(default_factory=list)
    min_similarity: float = -1.0
    diversity: float = 0.0
    as_of: int = 0
    agent: str = ""
    task: str = ""
    step: str = ""
    how: Literal["recall", "reuse"] = "recall"


class GetRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Memories by id, read from the log: also while there is no store. Those that are not there are left out."""

    ids: list[str]
    agent: str = ""
    task: str = ""
    step: str = ""


class ForgetRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Drop a memory: its author's task or agent may, and admins."""

    id: str
    reason: str = ""
    agent: str = ""
    task: str = ""


class RevokeRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Withdraw as faulty what is given by `id`, or all of which a version meets every other condition given.

    `dry` only lists. It may take several requests: ask the same again while the answer has `left`, then with its
    `next` as `after`.
    """

    id: str = ""
    author: str = ""
    task: str = ""
    swarm: str = ""
    space: str = ""
    since_ms: int = 0
    reason: str = ""
    dry: bool = False
    after: str = ""


class WatchRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Watch a meaning under the name `watcher`. The same again changes nothing; something else replaces it."""

    watcher: str
    text: str = ""
    vector: list[float] | UnsetType = UNSET
    embedder: str = ""
    threshold: float = 0.3
    filter: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    spaces: list[str] = field(default_factory=list)
    expires_at_ms: int = 0
    agent: str = ""
    task: str = ""


class UnwatchRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    watcher: str
    agent: str = ""
    task: str = ""


class MatchesRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a watch has matched after `after`: the `seq` of the last match seen, which drops all up to it.

    Waits up to `wait_ms` for the first one; with `at_least_seq` until everything up to that sequence is matched.
    """

    watcher: str
    after: int = 0
    wait_ms: int = 0
    at_least_seq: int = 0
    max: int = 100
    agent: str = ""
    task: str = ""
    step: str = ""


class LineageRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Where a memory comes from and what came of it or, with `swarm`, the same of a task.

    `depth` is how many tasks to follow: back to what the author's task had read, on to what readers wrote afterwards.
    """

    id: str
    swarm: str = ""
    depth: int = 1


class RebuildRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Build the store anew beside the old one and switch; `as_of_*` builds a view of the past instead.

    `embedder` is a spec as in the configuration; "" keeps the present one.
    """

    as_of_seq: int = 0
    as_of_ms: int = 0
    embedder: str = ""


class VerifyRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    repair: bool = False


class JobRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """How a job is doing; "" asks for the latest one."""

    id: str = ""


class ExportRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The memories that are there, in the order of the log, from after sequence `after`: about `max` of them.

    With `index`, from after that place within the commit at `after`, as the page before says.
    """

    after: int = 0
    max: int = 500
    index: int | UnsetType = UNSET


class RememberReply(Struct, omit_defaults=True):
    """`id` and log sequence of a remembered passage, or `error`."""

    id: str = ""
    seq: int = 0
    error: Failure | UnsetType = UNSET


class RememberManyReply(Struct, omit_defaults=True):
    """One reply for each passage, in order."""

    replies: list[RememberReply] = field(default_factory=list)
    error: Failure | UnsetType = UNSET


class RecalledPassage(Struct, omit_defaults=True):
    """One recalled passage; `score` orders, it does not measure. `similarity` is a cosine, where one is known."""

    id: str
    text: str
    score: float = 0.0
    source: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    author: str = ""
    task: str = ""
    seq: int = 0
    similarity: float | UnsetType = UNSET
    space: str = SHARED
    swarm: str = ""
    since_ms: int = 0
    expires_at_ms: int = 0
    payload: Raw | UnsetType = UNSET


class RecallReply(Struct, omit_defaults=True):
    """Passages, best first, and the sequence up to which the store had been folded.

    The `cut` worst are left out where all together are too large for an answer.
    """

    passages: list[RecalledPassage] = field(default_factory=list)
    seq: int = 0
    error: Failure | UnsetType = UNSET
    cut: int = 0


class GetReply(Struct, omit_defaults=True):
    """Those that are there, in the order asked; `rest` are ids for which the answer has no room: ask again."""

    memories: list[RecalledPassage] = field(default_factory=list)
    seq: int = 0
    error: Failure | UnsetType = UNSET
    rest: list[str] = field(default_factory=list)


class Reader(Struct, omit_defaults=True):
    """A task that read memories: some of them, `count` of how many, and the first sequence of the log that says so."""

    swarm: str
    task: str
    memories: list[str] = field(default_factory=list)
    seq: int = 0
    count: int = 0


class RevokeReply(Struct, omit_defaults=True):
    """What meets the conditions, and every task that has read any of it, whatever became of it since.

    `count` of them are withdrawn (with `dry`: would be), by now or earlier, and `revoked` names some; `left` are yet to
    be withdrawn: ask the same again. `readers` come in pages: the next one is after `next`.
    """

    id: str = ""
    seq: int = 0
    count: int = 0
    revoked: list[str] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    error: Failure | UnsetType = UNSET
    left: int = 0
    next: str = ""


class Match(Struct, omit_defaults=True):
    """A match: `seq` is its number, by which a watcher resumes; later matches have greater ones, no two the same.

    It is the sequence of the log that tells of it, or more where one commit tells of several.
    """

    seq: int
    memory: RecalledPassage


class MatchesReply(Struct, omit_defaults=True):
    """Matches in order. `seq`: everything up to there is matched; `missed` are those no longer kept."""

    matches: list[Match] = field(default_factory=list)
    seq: int = 0
    missed: int = 0
    error: Failure | UnsetType = UNSET


class Ancestry(Struct, omit_defaults=True):
    """A memory in a lineage: who made it, its versions' sequences, how it ended, and the tasks that read it.

    `hops` is how many tasks lie between it and what was asked for: negative for where that came from.
    """

    id: str
    author: str = ""
    swarm: str = ""
    task: str = ""
    step: str = ""
    space: str = SHARED
    since_ms: int = 0
    versions: list[int] = field(default_factory=list)
    gone_seq: int = 0
    readers: list[Reader] = field(default_factory=list)
    hops: int = 0
    revoked: bool = False


class Trace(Struct, omit_defaults=True):
    """A task in a lineage: what it wrote and read, as far as that belongs to it; `hops` as in `Ancestry`."""

    swarm: str
    task: str
    hops: int = 0
    wrote: list[str] = field(default_factory=list)
    read: list[str] = field(default_factory=list)


class LineageReply(Struct, omit_defaults=True):
    """A graph: memories, and the tasks between them, from what was asked for outwards; `cut` says that it goes on."""

    memories: list[Ancestry] = field(default_factory=list)
    tasks: list[Trace] = field(default_factory=list)
    cut: bool = False
    error: Failure | UnsetType = UNSET


class Job(Struct, omit_defaults=True):
    """A rebuild or a verification: `done` of `total` log sequences or rows, and what came of it.

    `state` is running, done or failed. A verification counts rows that were missing, left over, or said something
    else; `repaired` how many of them were put right.
    """

    id: str
    kind: Literal["rebuild", "view", "verify"]
    state: Literal["running", "done", "failed"] = "running"
    done: int = 0
    total: int = 0
    rows: int = 0
    missing: int = 0
    extra: int = 0
    differing: int = 0
    repaired: int = 0
    examples: list[str] = field(default_factory=list)
    as_of: int = 0
    error: Failure | UnsetType = UNSET


class JobReply(Struct, omit_defaults=True):
    job: Job | UnsetType = UNSET
    error: Failure | UnsetType = UNSET


class ExportedMemory(RecalledPassage, omit_defaults=True):
    """All that a memory says: enough to remember it again."""

    step: str = ""
    vector: list[float] | UnsetType = UNSET
    embedder: str = ""


class ExportReply(Struct, omit_defaults=True):
    """A page; the next one starts after `next`, and `next` 0 says that this was the last.

    Where the page has no room for the rest of the commit at `next`, `index` says how far it is in.
    """

    memories: list[ExportedMemory] = field(default_factory=list)
    next: int = 0
    error: Failure | UnsetType = UNSET
    index: int | UnsetType = UNSET


class Refusal(Struct):
    """The answer to what cannot be answered otherwise."""

    error: Failure


class MemoryStats(Struct, omit_defaults=True):
    """A memory at log sequence `seq`, its store at `applied`; `trouble` says why there is no store to ask.

    `matched` is how far watches are served; `warm` whether the store answers at full speed. `spaces` are those that the
    caller may read; jobs and views are told to admins.
    """

    memory: str
    seq: int
    applied: int
    memories: int
    dropped: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    garbage: int = 0
    trouble: str = ""
    embedder: str = ""
    dimension: int = 0
    generation: int = 0
    warm: bool = False
    watches: int = 0
    matched: int = 0
    spaces: dict[str, int] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    views: list[int] = field(default_factory=list)
