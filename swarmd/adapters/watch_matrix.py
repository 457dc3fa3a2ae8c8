"""The vectors of watches as one matrix in numpy: thousands of watches cost one product.

Job: hold unit vectors of float32 with their thresholds, and say which of them are near others. Rows lie next to each
other; the last one takes the place of one that goes. Must not know what is watched, or why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A text's cosine with itself may come out so much less than 1 in float32.
ROUNDING: Final = 1e-6
_CAPACITY: Final = 64


class NumpyWatchMatrix:
    """A `WatchMatrix` for vectors of `dimension` numbers."""

    def __init__(self, dimension: int) -> None:
        """Raises `Rejected("missing_extra")`."""
        try:
            import numpy
        except ModuleNotFoundError:
            raise Rejected("missing_extra", "watches need the package numpy: pip install 'swarmd[memory]'") from None
        self._numpy: Any = numpy
        self._dimension = dimension
        self._rows = numpy.zeros((_CAPACITY, dimension), numpy.float32)
        self._thresholds = numpy.zeros(_CAPACITY, numpy.float32)
        self._watchers: list[str] = []
        self._row_of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._watchers)

    def put(self, watcher: str, vector: Sequence[float], threshold: float) -> None:
        """Add a watch, or put it in place of the one of that name."""
        row = self._row_of.get(watcher)
        if row is None:
            row = self._row_of[watcher] = len(self._watchers)
            self._watchers.append(watcher)
            if row == len(self._rows):
                self._grow()
        self._rows[row] = vector
        self._thresholds[row] = max(-2.0, min(2.0, threshold)) - ROUNDING

    def remove(self, watcher: str) -> None:
        """Idempotent."""
        row = self._row_of.pop(watcher, None)
        if row is None:
            return
        last = self._watchers.pop()
        if last != watcher:
            self._watchers[row], self._row_of[last] = last, row
            self._rows[row] = self._rows[len(self._watchers)]
            self._thresholds[row] = self._thresholds[len(self._watchers)]

    def nearest(self, vectors: Sequence[Sequence[float]]) -> list[list[tuple[str, float]]]:
        """For each vector the watches whose cosine with it is at least their threshold, with that cosine."""
        found: list[list[tuple[str, float]]] = [[] for _ in vectors]
        count = len(self._watchers)
        if not count or not vectors:
            return found
        numpy = self._numpy
        asked = numpy.empty((len(vectors), self._dimension), numpy.float32)
        for at, vector in enumerate(vectors):
            asked[at] = vector
        with numpy.errstate(over="ignore", invalid="ignore"):  # of a vector that is none, NaN: near to nothing
            cosines = asked @ self._rows[:count].T
        for at, row in zip(
            *(axis.tolist() for axis in numpy.nonzero(cosines >= self._thresholds[:count])), strict=True
        ):
            found[at].append((self._watchers[row], float(cosines[at, row])))
        return found

    def _grow(self) -> None:
        numpy = self._numpy
        self._rows = numpy.concatenate([self._rows, numpy.zeros_like(self._rows)])
        self._thresholds = numpy.concatenate([self._thresholds, numpy.zeros_like(self._thresholds)])
