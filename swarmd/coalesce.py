"""Many concurrent calls, few requests: whatever is asked within a short window is answered by one call.

Job: gather the items of concurrent callers, hand them to one function, give every caller the answers to its own.
Invariants: at most one batch is in flight; no task of its own: one of the callers leads, and when it is cancelled
another takes over; a failed batch fails exactly the callers that were in it.
Must not know: what the items are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Caller(Struct, Generic[Item, Answer], eq=False):
    items: Sequence[Item]
    answers: asyncio.Future[list[Answer] | None]  # None: you lead now


class Coalescer(Generic[Item, Answer]):
    """Batches calls of `answer`, which gets at most `items_max` items (or one caller's) and answers each in order."""

    def __init__(
        self, answer: Callable[[list[Item]], Awaitable[list[Answer]]], *, window_ms: float, items_max: int
    ) -> None:
        self._answer = answer
        self._window_s = window_ms / 1000
        self._items_max = items_max
        self._waiting: list[_Caller[Item, Answer]] = []
        self._has_leader = False

    async def ask(self, items: Sequence[Item]) -> list[Answer]:
        """The answers to these items, in order; raises what the batch raised."""
        if not items:
            return []
        loop = asyncio.get_running_loop()
        me: _Caller[Item, Answer] = _Caller(items, loop.create_future())
        self._waiting.append(me)
        if not self._has_leader:
            self._has_leader = True
            me.answers.set_result(None)
        try:
            while (answers := await me.answers) is None:
                me.answers = loop.create_future()
                await self._lead(me)
            return answers
        finally:
            self._leave(me)

    def _leave(self, me: _Caller[Item, Answer]) -> None:
        """A caller that goes, answered or cancelled, takes its items along and never the leadership."""
        if me in self._waiting:
            self._waiting.remove(me)
        was_named = me.answers.done() and not me.answers.cancelled() and me.answers.exception() is None
        if was_named and me.answers.result() is None:
            self._name_leader()

    def _name_leader(self) -> None:
        for caller in self._waiting:
            if not caller.answers.done():
                caller.answers.set_result(None)
                return
        self._has_leader = False

    async def _lead(self, me: _Caller[Item, Answer]) -> None:
        """Wait for company, ask for everybody, name the next leader if somebody came meanwhile."""
        batch: list[_Caller[Item, Answer]] = []
        try:
            await asyncio.sleep(self._window_s)
            batch = self._take(me)
            answers = await self._answer([item for caller in batch for item in caller.items])
            at = 0
            for caller in batch:
                if not caller.answers.done():
                    caller.answers.set_result(answers[at : at + len(caller.items)])
                at += len(caller.items)
        except asyncio.CancelledError:
            # Only the leader was cancelled: the others go back to the head of the queue.
            self._waiting[:0] = [caller for caller in batch if caller is not me and not caller.answers.done()]
            raise
        except Exception as error:
            for caller in batch:
                if not caller.answers.done():
                    caller.answers.set_exception(error)
        finally:
            if me in self._waiting:
                self._waiting.remove(me)
            self._name_leader()

    def _take(self, me: _Caller[Item, Answer]) -> list[_Caller[Item, Answer]]:
        """The leader and as many others, in order of arrival, as fit into one batch."""
        batch, size = [me], len(me.items)
        for caller in self._waiting:
            if caller is me or caller.answers.done():
                continue
            if size + len(caller.items) > self._items_max:
                break
            batch.append(caller)
            size += len(caller.items)
        self._waiting = [caller for caller in self._waiting if caller not in batch]
        return batch
