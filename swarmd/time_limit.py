"""A limit on the processor time of an ordinary call that may take for ever, such as a match of a regular expression.

Why a signal: such a call holds the interpreter and never returns to the event loop, so that no timeout of the loop and
no thread could end it. What runs in Python looks for signals, and so does `re` while it matches. Signals come to the
main thread alone: elsewhere there is no limit.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator


class TimeIsUp(BaseException):
    """The call took longer than it may; a BaseException, so that no library between swallows it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeIsUp` in what is called within once the process has computed for so many seconds. Not nested."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _end)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _end(number: int, frame: object) -> NoReturn:
    raise TimeIsUp
