"""What members did well of late, so that a task can go to one that has done its like (warm caches, loaded context).

A task is sketched by the smallest hashes of its input's words (bottom-k sketches: Broder 1997, Cohen and Kelley 2007):
the share of hashes that two sketches have in common estimates how much of their words is. Known to one leader in one
office only, since it decides nothing but which of several good members is asked.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterable

    from swarmd.core.state import Member

Sketch = frozenset[int]
#: Hashes in a sketch, bytes of input that are looked at, and tasks that are remembered of a member and agent.
HASHES: Final = 16
BYTES_MAX: Final = 4_096
REMEMBERED: Final = 16
#: Less than this in common is chance.
LIKE_MIN: Final = 0.25
_WORDS: Final = re.compile(rb"[^\W_]{2,}")


def sketch(text: bytes) -> Sketch:
    """The sketch of an input; empty for one without words."""
    return frozenset(sorted({crc32(word.lower()) for word in _WORDS.findall(text[:BYTES_MAX])})[:HASHES])


def likeness(one: Sketch, other: Sketch) -> float:
    """About which share of the words of both is in both, from 0 to 1."""
    if not one or not other:
        return 0.0
    smallest = sorted(one | other)[:HASHES]
    return sum(found in one and found in other for found in smallest) / len(smallest)


class Affinity:
    """What the members of one swarm did well, as one leader has seen it."""

    def __init__(self) -> None:
        self._done: dict[tuple[str, str], deque[Sketch]] = {}

    def did_well(self, member_id: str, agent: str, text: bytes) -> None:
        """A task of `agent` with this input was completed there."""
        done = self._done.setdefault((member_id, agent), deque(maxlen=REMEMBERED))
        found = sketch(text)
        if found:
            done.append(found)

    def gone(self, member: Member) -> None:
        """A member is no more."""
        for agent in member.agents:
            self._done.pop((member.id, agent), None)

    def best(self, members: Iterable[Member], agent: str, text: bytes) -> Member | None:
        """The member that has done what is most like this input, if any has done its like."""
        wanted = sketch(text)
        found, best = LIKE_MIN, None
        for member in members:
            for known in self._done.get((member.id, agent), ()):
                common = likeness(wanted, known)
                if common > found:
                    found, best = common, member
        return best
