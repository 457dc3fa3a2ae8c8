"""What the log teaches about agents and members: how long attempts take, who is slow, who fails, who is praised.

Part of the fold, so that a new leader knows what the old one knew and a back-test learns as the original did.
Durations are differences of the times at which the broker stored `assigned` and the report: one clock, the same for
every reader. They decide nothing about what is true, only about what the leader proposes.
"""

from __future__ import annotations

from math import exp, log
from typing import Final

from msgspec import Struct, field

#: Weight of a new observation in a member's averages, once there are enough; before, the plain mean.
MEMBER_WEIGHT: Final = 0.1
AGENT_WEIGHT: Final = 0.01
#: Durations are counted in buckets that are this much wider each (about 19 %); old counts are halved at `COUNT_MAX`.
BUCKETS_PER_E: Final = 5.77
COUNT_MAX: Final = 1_000
#: What was seen of a member long ago weighs half as much after so many milliseconds without news.
FADE_MS: Final = 30_000
#: After so many observations an average is believed.
SURE: Final = 5


class Pace(Struct):
    """How a member does at one agent: `slow` is the mean logarithm of its durations over the agent's typical ones.

    `failing` is the share of its attempts that failed, `score` the mean of judgements, each decayed;
    `at_ms` is the last news.
    """

    runs: int = 0
    slow: float = 0.0
    ended: int = 0
    failing: float = 0.0
    rated: int = 0
    score: float = 0.0
    at_ms: int = 0

    def slowness(self, now_ms: int) -> float:
        """How many times longer than others it takes, drawn to 1 while it is unknown or out of date."""
        if self.runs < 2:
            return 1.0
        return exp(self.slow * self._faded(now_ms) * min(1.0, self.runs / SURE))

    def cost(self, now_ms: int) -> float:
        """What a result of this member costs in time of the typical one: its slowness, its failures, its bad marks."""
        failing = self.failing * self._faded(now_ms) * min(1.0, self.ended / SURE)
        marks = 1.0 - 0.5 * self.score * min(1.0, self.rated / SURE)
        return self.slowness(now_ms) * marks / (1.0 - min(0.9, failing))

    def _faded(self, now_ms: int) -> float:
        return float(0.5 ** (max(0, now_ms - self.at_ms) / FADE_MS))


class Learned(Struct):
    """How long attempts of an agent take, from start to result: decayed means and counts by logarithmic bucket."""

    runs: int = 0
    mean_ms: float = 0.0
    log_ms: float = 0.0
    counts: dict[int, int] = field(default_factory=dict)
    total: int = 0

    def quantile(self, share: float) -> int:
        """The duration in milliseconds that this share of attempts does not exceed; 0 when nothing is known."""
        if not self.total:
            return 0
        wanted, seen = share * self.total, 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return round(exp((bucket + 1) / BUCKETS_PER_E))
        return 0


def ran(learned: Learned, pace: Pace, duration_ms: int, at_ms: int) -> None:
    """An attempt ran from its beginning to a result in `duration_ms`."""
    logarithm = log(duration_ms) if duration_ms > 1 else 0.0
    bucket = int(logarithm * BUCKETS_PER_E)
    learned.runs += 1
    weight = max(AGENT_WEIGHT, 1 / learned.runs)
    learned.mean_ms += weight * (duration_ms - learned.mean_ms)
    counts = learned.counts
    counts[bucket] = counts.get(bucket, 0) + 1
    learned.total += 1
    if learned.total >= COUNT_MAX:
        learned.counts = {known: count // 2 for known, count in counts.items() if count > 1}
        learned.total = sum(learned.counts.values())
    pace.runs += 1
    pace.slow += (
        max(MEMBER_WEIGHT, 1 / pace.runs) * (logarithm - learned.log_ms - pace.slow) if learned.runs > 1 else 0.0
    )
    learned.log_ms += weight * (logarithm - learned.log_ms)
    pace.at_ms = at_ms


def ended(pace: Pace, failed: bool, at_ms: int) -> None:
    """An attempt ended, with a failure or without."""
    pace.ended += 1
    pace.failing += max(MEMBER_WEIGHT, 1 / pace.ended) * (failed - pace.failing)
    pace.at_ms = at_ms


def rated(pace: Pace, score: float) -> None:
    """Somebody judged what it did."""
    pace.rated += 1
    pace.score += max(MEMBER_WEIGHT, 1 / pace.rated) * (score - pace.score)
