"""How odd a silence is: a phi-accrual failure detector for one source of heartbeats.

N. Hayashibara, X. Défago, R. Yared, T. Katayama, "The φ Accrual Failure Detector", SRDS 2004. Instead of saying
"dead" after a fixed time it says how unlikely it is, by the intervals seen so far, that the next heartbeat is still
to come: phi = -log10(P(an interval is longer than this silence)). Phi 1 is wrong once in 10 times, phi 8 once in 10^8.
Two additions that implementations of it have found necessary: the deviation has a floor, since a source that was
punctual for a while would otherwise be suspected for nothing, and a pause is forgiven that any process may make.

Pure: time is handed in. It must not know who sends the heartbeats, nor what follows from a suspicion.
"""

from __future__ import annotations

import math
from array import array
from typing import Final

from msgspec import Struct

#: So many of the last intervals count; of four a second that is the last half a minute.
WINDOW: Final = 120
#: What phi is when the probability is too small to be told from nothing.
PHI_MAX: Final = 300.0
_ROOT_OF_TWO: Final = math.sqrt(2.0)


class DetectorSettings(Struct, frozen=True):
    """`interval_ms`: what to expect before anything is known. `pause_ms` is forgiven on top of the usual interval.

    No deviation is taken to be below `deviation_ms`, and no interval to be above `interval_ms_max`.
    """

    interval_ms: int = 250
    pause_ms: int = 1_000
    deviation_ms: int = 100
    interval_ms_max: int = 6_000


class Detector:
    """One source of heartbeats, first heard of at `now_ms`. Its sums are integers, so they never drift."""

    def __init__(self, settings: DetectorSettings, now_ms: int) -> None:
        self._settings = settings
        self.heard_at_ms = now_ms
        self._excused = True
        self._intervals = array("I")  # a ring: with thousands of links each byte counts
        self._next = self._sum = self._squares = 0

    def heard(self, now_ms: int) -> None:
        """A heartbeat. The interval before it counts, unless somebody else was at fault for a part of it."""
        interval = max(0, min(now_ms - self.heard_at_ms, self._settings.interval_ms_max))
        self.heard_at_ms = now_ms
        if self._excused:
            self._excused = False
            return
        if len(self._intervals) < WINDOW:
            self._intervals.append(interval)
        else:
            former = self._intervals[self._next]
            self._sum -= former
            self._squares -= former * former
            self._intervals[self._next] = interval
            self._next = (self._next + 1) % WINDOW
        self._sum += interval
        self._squares += interval * interval

    def excuse(self, at_ms: int) -> None:
        """The silence until now was not the source's: count it from `at_ms`, and learn nothing from this interval."""
        self.heard_at_ms = at_ms
        self._excused = True

    def silence_ms(self, now_ms: int) -> int:
        return max(0, now_ms - self.heard_at_ms)

    def usual(self) -> tuple[float, float]:
        """Mean and standard deviation of the intervals in milliseconds, as far as they are known."""
        settings, count = self._settings, len(self._intervals)
        if count == 0:
            return float(settings.interval_ms), max(settings.interval_ms / 4, float(settings.deviation_ms))
        mean = self._sum / count
        spread = max(0, self._squares * count - self._sum * self._sum)
        return mean, max(math.sqrt(spread) / count, float(settings.deviation_ms))

    def phi(self, now_ms: int) -> float:
        """How odd the present silence is; 0 for a silence no longer than usual, up to `PHI_MAX`."""
        mean, deviation = self.usual()
        beyond = self.silence_ms(now_ms) - self._settings.pause_ms - mean
        if beyond <= 0:
            return 0.0  # the formula gives up to 0.3 here, for a silence that means nothing
        later = 0.5 * math.erfc(beyond / (deviation * _ROOT_OF_TWO))
        return min(-math.log10(later), PHI_MAX) if later > 0.0 else PHI_MAX
