"""Tells when the event loop of a process stands still, and where: an agent that blocks looks like a dead worker.

A thread of its own looks at the age of the loop's last tick. Must not know what runs on the loop.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

LOOK_S: Final = 0.5
FRAMES_SHOWN: Final = 4


class StallWatch:
    """Watches the loop of the thread that makes it; `age_s` is the time since its last tick."""

    def __init__(self, age_s: Callable[[], float], stalled_s: float) -> None:
        self._age_s, self._stalled_s = age_s, stalled_s
        self._watched = threading.get_ident()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        told = False
        while not self._end.wait(LOOK_S):
            stalled = self._age_s() > self._stalled_s
            if stalled and not told:
                log.warning("the event loop has stood still for %.1f s, in: %s", self._age_s(), self._where())
            elif told and not stalled:
                log.warning("the event loop goes on")
            told = stalled

    def _where(self) -> str:
        """The innermost calls of the watched thread, as they are now."""
        frame = sys._current_frames().get(self._watched)
        calls = traceback.extract_stack(frame)[-FRAMES_SHOWN:] if frame is not None else []
        return " > ".join(f"{call.name} ({call.filename}:{call.lineno})" for call in calls) or "nowhere"
