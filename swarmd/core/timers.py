"""What time will make necessary, as one heap: no scan of tasks ever looks for it. Time is handed in."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmd.core.state import Task

Kind = Literal["deadline", "retry", "due", "wait"]


class Timer(Struct, frozen=True):
    """Something that is due for a task; `epoch` is the attempt that a retry follows, `key` names a wait."""

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

    def _add(self, at_ms: int, timer: Timer) -> None:
        self._count += 1
        heapq.heappush(self._heap, (at_ms, self._count, timer))

    def due(self, now_ms: int) -> Iterator[Timer]:
        """Timers up to now, oldest first; each is gone once it was yielded."""
        while self._heap and self._heap[0][0] <= now_ms:
            yield heapq.heappop(self._heap)[2]
