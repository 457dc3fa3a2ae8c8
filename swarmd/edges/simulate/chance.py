"""Seeded chance: the same seed gives the same numbers on every machine and in every version of Python.

The generator is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014). A generator
can be made for any key, so that what happens to one attempt does not depend on the order in which others ran.
"""

from __future__ import annotations

from math import cos, exp, log, pi, sqrt
from typing import TYPE_CHECKING, Final, TypeVar
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")
_MASK: Final = (1 << 64) - 1
_STEP: Final = 0x9E3779B97F4A7C15


def _mixed(value: int) -> int:
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31


class Chance:
    """A stream of numbers that the key alone determines."""

    def __init__(self, *key: int | str) -> None:
        state = 0
        for part in key:
            number = crc32(part.encode()) if isinstance(part, str) else part
            state = _mixed((state + number + _STEP) & _MASK)
        self._state = state

    def uniform(self) -> float:
        """From 0 to 1, neither included."""
        self._state = (self._state + _STEP) & _MASK
        return ((_mixed(self._state) >> 11) + 0.5) / (1 << 53)

    def below(self, limit: int) -> int:
        """An integer from 0 to `limit` - 1."""
        return int(self.uniform() * limit)

    def exponential(self, mean: float) -> float:
        """The time to the next of events that come at random."""
        return -mean * log(self.uniform())

    def lognormal(self, mean: float, sigma: float) -> float:
        """Log-normal with this mean; `sigma` is the deviation of the logarithm."""
        if not sigma:
            return mean
        normal = sqrt(-2 * log(self.uniform())) * cos(2 * pi * self.uniform())
        return mean * exp(sigma * normal - sigma * sigma / 2)

    def pareto(self, mean: float, shape: float, ratio: float) -> float:
        """Pareto, bounded at `ratio` times its least value, with this mean; `shape` is not 1."""
        cut = 1 - ratio**-shape
        least = mean * cut * (shape - 1) / (shape * (1 - ratio ** (1 - shape)))
        return float(least * (1 - self.uniform() * cut) ** (-1 / shape))

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """So many different ones of `items`, in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]
