"""Times on the command line: durations and moments as they are typed, moments as they are shown."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(ms|s|m|h|d)")


def is_duration(text: str) -> bool:
    """Whether it is written as a duration, not as a moment."""
    return _DURATION.fullmatch(text) is not None


def duration_ms(flag: str, text: str) -> int:
    """`90s`, `1.5h` in milliseconds. Raises `Rejected("bad_usage")`."""
    from swarmd.core.errors import Rejected

    found = _DURATION.fullmatch(text)
    if found is None:
        raise Rejected(
            "bad_usage", f"{flag} {text!r}: write a number and a unit of {', '.join(_UNITS)}, as 90s or 1.5h"
        )
    return round(float(found[1]) * _UNITS[found[2]])


def moment_ms(flag: str, text: str, besides: str = "") -> int:
    """A moment as ISO 8601, in this machine's time zone unless it names one. Raises `Rejected("bad_usage")`.

    `besides` says what else may be written there.
    """
    from datetime import datetime

    from swarmd.core.errors import Rejected

    try:
        return round(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
    except (ValueError, OverflowError):
        way = f"write {besides}a time as 2026-12-01T08:00 or …T08:00+01:00"
        raise Rejected("bad_usage", f"{flag} {text!r}: {way}") from None


def moment_text(at_ms: int) -> str:
    """A moment in UTC, to the second, "" for 0."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if at_ms else ""
