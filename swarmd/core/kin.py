"""Many children in few bytes: a macro-task may have tens of thousands, and one message holds a megabyte.

Children are named by number, so a run of consecutive ones is a range: "~3..20000" are the children 3 to 20,000 of the
task that says so. (No child is called that: the names of tasks hold no dot, those of waits hold a `#`.) Steps that
stand side by side in a commit are a run of places; verdicts are triples of numbers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from swarmd.core.ids import child_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from swarmd.core.state import Place

#: Up to so many children and steps are told one by one, as a member of any language finds them simplest.
PLAIN_MAX: Final = 1_000
#: So many verdicts of children are told in one item.
TOLD_MAX: Final = 16_000
#: A shorter run is not worth a range.
RUN_MIN: Final = 3
_RANGE: Final = re.compile(r"~(\d{1,9})\.\.(\d{1,9})")

Run = tuple[int, int, int]  #: (sequence, index, how many from there on)
Verdict = tuple[int, int, int]  #: (number of the child, sequence, index)


def packed(task: str, names: Sequence[str]) -> list[str]:
    """`names` in their order, with runs of children of `task` as ranges."""
    if len(names) < RUN_MIN:
        return list(names)
    found: list[str] = []
    prefix, first, last = f"{task}~", 0, 0

    def close() -> None:
        if last - first + 1 >= RUN_MIN:
            found.append(f"~{first}..{last}")
        elif last:
            found.extend(child_id(task, n) for n in range(first, last + 1))

    for name in names:
        number = name.removeprefix(prefix)
        n = int(number) if number is not name and number.isascii() and number.isdigit() and number[0] != "0" else 0
        if n and last and n == last + 1:
            last = n
            continue
        close()
        first = last = n
        if not n:
            found.append(name)
    close()
    return found


def unpacked(task: str, names: Sequence[str], count_max: int) -> list[str] | None:
    """`names` with ranges written out; None when they are more than `count_max` children, who cannot all be."""
    found: list[str] = []
    left = count_max
    for name in names:
        span = _RANGE.fullmatch(name) if name[:1] == "~" else None
        if span is None:
            found.append(name)
            continue
        first, last = int(span[1]), int(span[2])
        left -= last - first + 1
        if left < 0 or last < first:
            return None
        found.extend(child_id(task, n) for n in range(first, last + 1))
    return found


def runs(places: Iterable[Place]) -> list[Run]:
    """Places in their order, those side by side as one run."""
    found: list[Run] = []
    for seq, index in places:
        if found and found[-1][0] == seq and found[-1][1] + found[-1][2] == index:
            found[-1] = (seq, found[-1][1], found[-1][2] + 1)
        else:
            found.append((seq, index, 1))
    return found


def places(spans: Iterable[Run]) -> Iterator[Place]:
    """The places of runs."""
    for seq, index, count in spans:
        for place in range(index, index + count):
            yield seq, place


def verdicts(children: Iterable[tuple[str, Place | None]]) -> list[Verdict]:
    """Where the verdicts of these children stand, of those that have one."""
    return [(int(name.rpartition("~")[2]), *place) for name, place in children if place is not None]
