"""When a cron expression fires in a time zone, across changes of its clocks.

Five fields as Debian's cron reads them. With `*` for the hour an expression counts real time: every firing of an hour
that the clocks repeat, none of an hour that they leave out. With anything else for the hour it names times of a day:
each local time fires once, the first time it is shown; one that is left out fires when the gap ends, with all others of
the gap. Must not know schedules, tasks or the present time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIELDS: Final = "minute, hour, day of month, month, day of week"
_CHARS_MAX: Final = 200
#: About the year 9000: calendars end with 9999, and a search goes on for fifty years.
_AFTER_MS_MAX: Final = 222_000_000_000_000
#: The longest that clocks have ever been put forward is a day (Samoa, 2011).
_GAP_MINUTES_MAX: Final = 25 * 60


class Cron:
    """Slots of cron expressions, in milliseconds since 1970; implements `swarmd.core.schedules.Slots`."""

    def check(self, cron: str, zone: str) -> None:
        """Raise `Rejected("bad_cron" | "bad_zone")`, saying what to write instead."""
        _zone(zone)
        if len(cron) > _CHARS_MAX:
            raise Rejected("bad_cron", f"a cron expression has up to {_CHARS_MAX} characters, not {len(cron)}")
        if len(cron.split()) != 5:
            raise Rejected("bad_cron", f"cron {cron[:80]!r} must have five fields: {_FIELDS}")
        try:
            CronSim(cron, datetime(2026, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise Rejected("bad_cron", f"cron {cron[:80]!r} never fires or cannot be read: {error}") from None

    def next(self, cron: str, zone: str, after_ms: int) -> int:
        """The first slot after `after_ms`; 0 if there is none within fifty years."""
        for slot in self._slots(cron, zone, after_ms):
            if slot > after_ms:
                return slot
        return 0

    def before(self, cron: str, zone: str, now_ms: int, count: int) -> int:
        """A moment after which come about `count` slots up to `now_ms`, at least as many if there are so many."""
        local = _local(cron, zone, now_ms) + timedelta(seconds=1)
        earlier = takewhile(lambda at: at.year >= 1970, CronSim(cron, local, reverse=True))
        back = list(islice(earlier, count + 1))
        return max(0, _instant(back[-1], _zone(zone)) - 1) if back else 0

    def _slots(self, cron: str, zone: str, after_ms: int) -> Iterator[int]:
        if after_ms < _AFTER_MS_MAX:
            for at in CronSim(cron, _local(cron, zone, after_ms)):
                yield _instant(at, _zone(zone))


@lru_cache(maxsize=256)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # no such zone, a folder of zones, no name of a zone at all
        raise Rejected(
            "bad_zone", f"no time zone {name[:80]!r} is known: name one of IANA's, as Europe/Berlin"
        ) from None


def _local(cron: str, zone: str, at_ms: int) -> datetime:
    """Where the search begins: a moment for an expression in real time, what the clocks show for one by local times."""
    at = datetime.fromtimestamp(at_ms // 1000, _zone(zone))
    if cron.split()[1] == "*":
        return at
    # While the clocks repeat an hour, its times have been shown already: `next` passes over them.
    return at.replace(tzinfo=None)


def _instant(at: datetime, zone: ZoneInfo) -> int:
    """The moment at which clocks first show `at`, or at which the gap ends that it lies in."""
    if at.tzinfo is None:
        for _ in range(_GAP_MINUTES_MAX):
            shown = at.replace(tzinfo=zone)
            if shown.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == at:
                break
            at = at.replace(second=0) + timedelta(minutes=1)
        at = at.replace(tzinfo=zone)
    return int(at.timestamp()) * 1000
