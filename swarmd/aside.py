"""Calls of ordinary functions beside the event loop: in a thread that may be left, in a process that may be killed.

Why no shared thread pool: a call that hangs would hold one of its few threads for ever, and an ordinary pool thread
holds up the end of the process. Why one process pool per seat: killing a hung call breaks its pool, and no other call
shall break with it.
Must not know: tools, models, limits.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future, ProcessPoolExecutor

T = TypeVar("T")


class ProcessDied(Exception):
    """The process that made a call ended before it answered: killed, out of memory, or crashed."""


async def in_thread(work: Callable[[], T], ended: Callable[[], None] = lambda: None) -> T:
    """Call `work` in a thread of its own and return its result or raise its error.

    Whoever is cancelled meanwhile leaves the thread to itself; it does not hold up the end of the process. `ended` is
    called in the thread when `work` has really ended.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    context = copy_context()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():  # nobody waits any more
            return
        if isinstance(error, StopIteration | KeyboardInterrupt):
            # No future takes the one: whoever waited would wait for ever. The other is no signal, yet would end us.
            error = RuntimeError(f"{type(error).__name__}: {error}")
        if error is None:
            answer.set_result(result)  # type: ignore[arg-type]
        else:
            answer.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = context.run(work)
        except BaseException as caught:  # goes to whoever waits, where it is judged
            error = caught
        finally:
            ended()
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True, name="aside").start()
    return await answer


class Processes:
    """Processes that are kept between calls: one call each at a time, started when none is idle."""

    def __init__(self) -> None:
        self._idle: list[_Process] = []

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of a module (results and errors are pickled). A cancelled call's process is killed.

        Raises `ProcessDied`, or what the function raises.
        """
        process = self._idle.pop() if self._idle else _Process()
        is_whole = False
        try:
            result = await process.call(function, *args)
            is_whole = True
            return result
        finally:
            if is_whole:
                self._idle.append(process)
            else:
                process.kill()

    def close(self) -> None:
        """End the idle processes."""
        while self._idle:
            self._idle.pop().kill()


class _Process:
    """One process, in a pool of its own."""

    def __init__(self) -> None:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        # Spawned, not forked: a fork of a process with threads may inherit a lock that is never released.
        context = multiprocessing.get_context("spawn")
        self._pool: ProcessPoolExecutor = ProcessPoolExecutor(1, context, initializer=_settle_in)
        self._pid: Future[int] = self._pool.submit(os.getpid)

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        from concurrent.futures.process import BrokenProcessPool

        try:
            answer = asyncio.wrap_future(self._pool.submit(function, *args))
            answer.add_done_callback(_noted)
            return await asyncio.shield(answer)
        except BrokenProcessPool:
            raise ProcessDied("the process ended in the middle of the call") from None

    def kill(self) -> None:
        self._pid.add_done_callback(_kill)  # at once, or as soon as the process is there
        self._pool.shutdown(wait=False, cancel_futures=False)


def _noted(answer: asyncio.Future[Any]) -> None:
    """What becomes of a call that was left is nobody's concern."""
    if not answer.cancelled():
        answer.exception()


def _kill(pid: Future[int]) -> None:
    if not pid.cancelled() and pid.exception() is None:
        with suppress(ProcessLookupError):
            os.kill(pid.result(), signal.SIGKILL)


def _settle_in() -> None:
    """First act of a new process: it ends with its parent, and what it prints is no result of the daemon's."""
    import multiprocessing

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which then ends this one
    sys.stdout.flush()
    os.dup2(2, 1)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
