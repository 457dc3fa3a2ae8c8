"""What the log teaches about agents and members: how long attempts take, who is slow, who fails, who is praised.

Part of the fold, so that a new leader knows what the old one knew and a back-test learns as the original did.
Durations are differences of the times at which the broker stored `assigned` and the report: one clock, the same for
every reader. They decide nothing about what is true, only about what the leader proposes.
"""

from __future__ import annotations

from math import exp, log, sqrt
from typing import Final

from msgspec import Struct, field

#: Weight of a new observation in a member's averages, once there are enough; before, the plain mean.
MEMBER_WEIGHT: Final = 0.05
AGENT_WEIGHT: Final = 0.01
MEMBER_MANY, AGENT_MANY = round(1 / MEMBER_WEIGHT), round(1 / AGENT_WEIGHT)
#: So many independent observations are as good as an average with `MEMBER_WEIGHT`.
MEMBER_RUNS_MAX: Final = 2 / MEMBER_WEIGHT - 1
#: Durations are counted in buckets that are this much wider each (about 19 %); old counts are halved at `COUNT_MAX`.
BUCKETS_PER_E: Final = 5.77
COUNT_MAX: Final = 1_000
#: What was seen of a member weighs half as much after so many mean durations without news, but not before a minute.
FADE_RUNS: Final = 60
FADE_MS: Final = 60_000
#: A duration that is longer than four times the expected one counts as if it were off by no more standard deviations.
FAR, BOUND = log(4), 2.5
#: The logarithm of 10 ms: shorter attempts are alike, since it is the way to the member that they differ by.
SHORT: Final = log(10)
#: After so many observations an average is believed.
SURE: Final = 5


class Pace(Struct, gc=False):
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

    def slowness(self) -> float:
        """How many times longer than the typical member it takes; 1 while that is unknown."""
        return exp(self.slow) if self.runs >= SURE else 1.0

    def log_cost(self, learned: Learned, now_ms: int) -> float:
        """The logarithm of what a result of this member costs, in time of the typical one.

        Its slowness, the attempts that it takes, its marks; drawn to 0 as that gets out of date.
        """
        failing = min(0.9, self.failing * min(1.0, self.ended / SURE))
        marks = 0.5 * self.score * min(1.0, self.rated / SURE)
        fade_ms = max(FADE_MS, FADE_RUNS * learned.mean_ms)
        faded = 0.5 ** (max(0, now_ms - self.at_ms) / fade_ms)
        return float((self.slow - log((1.0 - failing) * (1.0 + marks))) * faded)


class Learned(Struct, gc=False):
    """How long attempts of an agent take, from start to result: decayed means and counts by logarithmic bucket.

    `log_ms` and `log_var` are mean and variance of the logarithm of a duration on a typical member.
    """

    runs: int = 0
    mean_ms: float = 0.0
    log_ms: float = 0.0
    log_var: float = 0.0
    counts: dict[int, int] = field(default_factory=dict)
    total: int = 0

    def doubt(self, runs: int) -> float:
        """The standard error of the mean logarithm of so many durations of one member."""
        return sqrt(self.log_var / min(max(runs, 1), MEMBER_RUNS_MAX))

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
    """An attempt ran from its beginning to a result in `duration_ms`, and so ended without a failure.

    It runs once a task: what is read or written twice shows.
    """
    pace.ended = attempts = pace.ended + 1
    if pace.failing:
        pace.failing -= (MEMBER_WEIGHT if attempts > MEMBER_MANY else 1 / attempts) * pace.failing
    pace.at_ms = at_ms
    logarithm = log(duration_ms) if duration_ms > 1 else 0.0
    bucket = int(logarithm * BUCKETS_PER_E)
    counts = learned.counts
    counts[bucket] = counts.get(bucket, 0) + 1
    learned.total = total = learned.total + 1
    if total >= COUNT_MAX:
        learned.counts = {known: count // 2 for known, count in counts.items() if count > 1}
        learned.total = sum(learned.counts.values())
    learned.runs = runs = learned.runs + 1
    weight = AGENT_WEIGHT if runs > AGENT_MANY else 1 / runs
    mean_ms, log_ms = learned.mean_ms, learned.log_ms
    learned.mean_ms = mean_ms + weight * (duration_ms - mean_ms)
    pace.runs = own = pace.runs + 1
    off = max(logarithm, SHORT) - log_ms
    if runs > 1:
        slow, log_var = pace.slow, learned.log_var
        around = off - slow  # what the member is known to be off by is not chance
        learned.log_var = log_var + weight * (around * around - log_var)
        if around > FAR:  # one task that is a hundred times as long says little about who did it
            around = min(around, max(FAR, BOUND * sqrt(log_var)))
        pace.slow = slow + (MEMBER_WEIGHT if own > MEMBER_MANY else 1 / own) * around
    learned.log_ms = log_ms + weight * off


def ended(pace: Pace, failed: bool, at_ms: int) -> None:
    """An attempt ended, with a failure or without, and says nothing about how long one takes."""
    pace.ended += 1
    pace.failing += max(MEMBER_WEIGHT, 1 / pace.ended) * (failed - pace.failing)
    pace.at_ms = at_ms


def rated(pace: Pace, score: float) -> None:
    """Somebody judged what it did."""
    pace.rated += 1
    pace.score += max(MEMBER_WEIGHT, 1 / pace.rated) * (score - pace.score)
