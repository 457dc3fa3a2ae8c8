"""The catalog's rows, made of what the fold accepted: where each task's events are, and how it ended.

A `Gatherer` folds a log like everyone else and remembers which tasks were touched since it was last emptied,
so that a task which comes and goes between two looks costs one row. Nothing here knows a database.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from swarmd.core import effects as fx
from swarmd.core import evolve
from swarmd.core.codec import Commit, Garbage
from swarmd.core.events import Event, Failure
from swarmd.core.state import TERMINAL, Place, SwarmState, Task

#: So many characters of an input's own texts can be found by words.
TEXT_MAX: Final = 4_000
FIND_MAX: Final = 1_000
#: The index of a place that belongs to no event of the task itself: another task's or member's event moved it.
INDIRECT: Final = -1

FindState = Literal[
    "",
    "live",
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


class TaskRow(Struct):
    """What the catalog is told of one task; `history` are the places that are new since it was last told.

    `fresh` rows begin a task, others continue one. `text` is for search and comes with a fresh row only.
    """

    id: str
    fresh: bool
    state: str
    agent: str
    tenant: str
    parent: str
    labels: dict[str, str]
    attempts: int
    tokens: int
    submitted_at: str
    ended_at: str
    verdict: Place | None
    history: list[Place]
    text: str = ""


class FindQuery(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Which tasks to find, newest first: all that is given must hold. `before` is a former answer's `next`."""

    state: FindState = ""
    agent: str = ""
    tenant: str = ""
    text: str = ""
    limit: int = 50
    before: int = 0


class FoundTask(Struct, omit_defaults=True):
    """A task as the catalog knows it. Times are those of the events, for people; `history` are places in the log."""

    id: str
    state: str
    agent: str
    tenant: str = ""
    parent: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    attempts: int = 0
    tokens: int = 0
    submitted_at: str = ""
    ended_at: str = ""
    first_seq: int = 0
    last_seq: int = 0
    verdict: Place | None = None
    history: list[Place] = field(default_factory=list)


class FindReply(Struct, omit_defaults=True):
    """Tasks as of log sequence `seq`; `next` continues the list, 0 when it is at its end."""

    tasks: list[FoundTask] = field(default_factory=list)
    seq: int = 0
    next: int = 0
    error: Failure | UnsetType = UNSET


class _Touched(Struct):
    """A task that changed since the last look."""

    task: Task
    fresh: bool = False
    submitted_at: str = ""
    ended_at: str = ""
    verdict: Place | None = None
    history: list[Place] = field(default_factory=list)


class Gatherer:
    """Folds commits into `state` and gathers the rows that they change."""

    def __init__(self, state: SwarmState) -> None:
        self.state = state
        self._touched: dict[str, _Touched] = {}

    def __len__(self) -> int:
        return len(self._touched)

    def __contains__(self, task: str) -> bool:
        return task in self._touched

    def fold(self, commit: Commit | Garbage) -> tuple[list[fx.Effect], list[int]]:
        """Fold one commit; its effects, and the indexes of its events that changed nothing."""
        refused: list[int] = []
        effects = evolve.apply(self.state, commit, refused)
        if isinstance(commit, Commit) and len(refused) < len(commit.events):
            self._gather(commit, effects, frozenset(refused))
        return effects, refused

    def take(self) -> list[TaskRow]:
        """What changed since the last call, in the order of the first change."""
        rows = [_row(touched) for touched in self._touched.values()]
        self._touched = {}
        return rows

    def _gather(self, commit: Commit, effects: list[fx.Effect], refused: frozenset[int]) -> None:
        seq, ended = commit.seq, set[str]()
        for effect in effects:
            if isinstance(effect, fx.Ended):
                ended.add(effect.task.id)
                self._end(effect, commit)
            elif isinstance(effect, fx.Queued | fx.Delayed | fx.Parked | fx.Started):
                self._touch(effect.task, commit)
        for index, event in enumerate(commit.events):
            if isinstance(event, Event) and index not in refused:
                touched = self._touched.get(event.subject)
                task = self.state.tasks.get(event.subject)
                if touched is None and task is not None:
                    touched = self._touch(task, commit)
                # What is said of a task after its end (a judgement) is not its history: rows must not depend on
                # how often they are taken.
                if touched is not None and (task is not None or event.subject in ended):
                    touched.history.append((seq, index))
        for effect in effects:
            if isinstance(effect, fx.Queued | fx.Ended):
                touched = self._touched[effect.task.id]
                if not touched.history or touched.history[-1][0] != seq:
                    touched.history.append((seq, INDIRECT))

    def _touch(self, task: Task, commit: Commit) -> _Touched:
        touched = self._touched.get(task.id)
        begins = task.submitted[0] == commit.seq
        if touched is None or (begins and touched.task is not task):
            touched = self._touched[task.id] = _Touched(task)
        touched.task = task
        if begins and not touched.fresh:
            touched.fresh, touched.submitted_at = True, _time(commit, task.submitted[1])
            made_by = commit.events[task.submitted[1]]
            if isinstance(made_by, Event) and made_by.subject != task.id:
                touched.history.append(task.submitted)
        if task.state not in TERMINAL:
            touched.ended_at, touched.verdict = "", None
        return touched

    def _end(self, ended: fx.Ended, commit: Commit) -> None:
        touched = self._touch(ended.task, commit)
        touched.verdict, touched.ended_at = ended.place, _time(commit, ended.place[1])


def _time(commit: Commit, index: int) -> str:
    event = commit.events[index]
    return event.time if isinstance(event, Event) else ""


def _row(touched: _Touched) -> TaskRow:
    task = touched.task
    return TaskRow(
        task.id,
        touched.fresh,
        task.state,
        task.agent,
        task.tenant,
        task.parent,
        task.labels,
        task.epoch,
        task.spent_tokens,
        touched.submitted_at,
        touched.ended_at,
        touched.verdict,
        touched.history,
        texts(bytes(task.input)) if touched.fresh else "",
    )


def texts(payload: bytes) -> str:
    """The texts in a JSON value, bounded, keys left out: what a person would search for."""
    if len(payload) <= 2 or payload == b"null":
        return ""
    try:
        value = msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""  # a log may hold what no door of today lets in
    found: list[str] = []
    left = TEXT_MAX
    pending: list[Any] = [value]
    while pending and left > 0:
        value = pending.pop()
        if isinstance(value, str):
            found.append(value[:left])
            left -= len(value) + 1
        elif isinstance(value, dict):
            pending.extend(reversed(value.values()))
        elif isinstance(value, list):
            pending.extend(reversed(value))
    return " ".join(found)
