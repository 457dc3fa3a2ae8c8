"""What time will make necessary, as one heap: no scan of tasks ever looks for it. Time is handed in."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from swarmd.core.events import Escalated, Expired, Requeued, Resolved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmd.core.events import Fact
    from swarmd.core.state import Task, Wait

Kind = Literal["deadline", "retry", "due", "wait", "late"]


class Timer(Struct, frozen=True):
    """Something that is due for a task; `epoch` is the attempt that is late or that a retry follows, `key` a wait."""

    kind: Kind
    task: str
    epoch: int = 0
    key: str = ""


class Timers:
    """Timers may be set twice and are never taken back: whoever acts on one looks at the task first."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        self._count = 0

    def deadline(self, task: Task) -> None:
        """The task's deadline, if it has one."""
        if task.deadline_at_ms:
            self._add(task.deadline_at_ms, Timer("deadline", task.id))

    def back_off(self, task: Task, now_ms: int) -> None:
        """The end of the back-off after the task's last failure: doubled with each, bounded by its policy."""
        policy = task.retry
        delay = min(policy.backoff_ms << min(max(task.failures - 1, 0), 20), policy.backoff_ms_max)
        self.retry(task, now_ms + max(delay, task.retry_after_ms))

    def begin(self, task: Task) -> None:
        """When a delayed task may begin."""
        self._add(task.not_before_ms, Timer("due", task.id))

    def wait(self, task: Task, key: str, until_ms: int) -> None:
        """The end of a wait, if it has one."""
        if until_ms:
            self._add(until_ms, Timer("wait", task.id, key=key))

    def retry(self, task: Task, at_ms: int) -> None:
        """Another attempt at `at_ms`."""
        self._add(at_ms, Timer("retry", task.id, task.epoch))

    def late(self, task: Task, epoch: int, at_ms: int) -> None:
        """An attempt that still runs at `at_ms` is late."""
        self._add(at_ms, Timer("late", task.id, epoch))

    def again(self, fact: Fact, task: Task, now_ms: int) -> None:
        """What was due did not come about: the fold did not take `fact`, or it could not be stored."""
        if isinstance(fact, Requeued):
            if fact.reason == "retry" and task.state == "backoff" and task.epoch == fact.epoch:
                self.retry(task, now_ms)
            elif fact.reason == "due" and task.state == "delayed":
                self.begin(task)
        elif isinstance(fact, Resolved | Escalated):
            wait = task.awaited.get(fact.key)
            if wait is not None and wait.resolved is None:
                self.wait(task, fact.key, wait.until_ms)
        elif isinstance(fact, Expired):
            self.deadline(task)

    def _add(self, at_ms: int, timer: Timer) -> None:
        self._count += 1
        heapq.heappush(self._heap, (at_ms, self._count, timer))

    def due(self, now_ms: int) -> Iterator[Timer]:
        """Timers up to now, oldest first; each is gone once it was yielded."""
        while self._heap and self._heap[0][0] <= now_ms:
            yield heapq.heappop(self._heap)[2]


def fact_due(timer: Timer, task: Task, term: int, now_ms: int) -> Fact | None:
    """What a timer that is due means for its task as it is now; None when the task has moved on."""
    match timer.kind:
        case "deadline" if 0 < task.deadline_at_ms <= now_ms:
            return Expired(term=term)
        case "retry" if task.state == "backoff" and task.epoch == timer.epoch:
            return Requeued(term=term, epoch=timer.epoch, reason="retry")
        case "due" if task.state == "delayed" and task.not_before_ms <= now_ms:
            return Requeued(term=term, epoch=task.epoch, reason="due")
        case "wait":
            return _end_of_wait(task.awaited.get(timer.key), timer.key, term, now_ms)
    return None


def _end_of_wait(wait: Wait | None, key: str, term: int, now_ms: int) -> Fact | None:
    """A wait's time is over: the next one is asked, or it ends without a result."""
    if wait is None or wait.resolved is not None or not 0 < wait.until_ms <= now_ms:
        return None
    if wait.on_timeout == "escalate" and wait.level < len(wait.escalate_to):
        until = now_ms + wait.timeout_ms if wait.timeout_ms else 0
        return Escalated(term=term, key=key, level=wait.level + 1, to=wait.escalate_to[wait.level], until_ms=until)
    return Resolved(term=term, key=key, by="time", timed_out=True)
