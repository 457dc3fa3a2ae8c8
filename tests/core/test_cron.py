"""Slots of cron expressions: each once, none left out, whatever the clocks do."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.errors import Rejected
from swarmd.cron import Cron

CRON = Cron()
#: The days on which clocks change in 2026: put forward, put back.
DAYS = {"Europe/Berlin": ("2026-03-29", "2026-10-25"), "America/New_York": ("2026-03-08", "2026-11-01")}


def ms(text: str) -> int:
    """Milliseconds since 1970 of a moment in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def slots(cron: str, zone: str, after: str, until: str) -> list[str]:
    """Every slot in UTC, as a leader finds them one after the other."""
    found: list[str] = []
    at = CRON.next(cron, zone, ms(after))
    while 0 < at <= ms(until):
        found.append(datetime.fromtimestamp(at / 1000, UTC).strftime("%d %H:%M"))
        at = CRON.next(cron, zone, at)
    return found


def test_an_ordinary_day() -> None:
    assert slots("30 2 * * *", "Europe/Berlin", "2026-06-01", "2026-06-03") == ["01 00:30", "02 00:30"]
    assert slots("0 9 * * MON-FRI", "America/New_York", "2026-07-03", "2026-07-06T23:00") == ["03 13:00", "06 13:00"]
    assert slots("*/30 * * * *", "UTC", "2026-06-01", "2026-06-01T01:00") == ["01 00:30", "01 01:00"]


def test_a_local_time_that_is_left_out_fires_when_the_gap_ends() -> None:
    """Berlin's clocks go from 2:00 to 3:00 at 01:00 UTC, New York's at 07:00 UTC."""
    berlin = slots("30 2 * * *", "Europe/Berlin", "2026-03-28", "2026-03-30T12:00")
    assert berlin == ["28 01:30", "29 01:00", "30 00:30"]
    york = slots("30 2 * * *", "America/New_York", "2026-03-07", "2026-03-09T12:00")
    assert york == ["07 07:30", "08 07:00", "09 06:30"]
    assert slots("*/10 2 * * *", "Europe/Berlin", "2026-03-29", "2026-03-29T12:00") == ["29 01:00"]
    assert slots("30 2,3 * * *", "Europe/Berlin", "2026-03-29", "2026-03-29T12:00") == ["29 01:00", "29 01:30"]


def test_a_local_time_that_is_shown_twice_fires_once() -> None:
    berlin = slots("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", "2026-10-26T12:00")
    assert berlin == ["25 00:30", "26 01:30"]
    york = slots("30 1 * * *", "America/New_York", "2026-10-31T12:00", "2026-11-02T12:00")
    assert york == ["01 05:30", "02 06:30"]
    assert slots("*/20 2 * * *", "Europe/Berlin", "2026-10-24T23:00", "2026-10-25T12:00") == [
        "25 00:00",
        "25 00:20",
        "25 00:40",
    ]
    # Begun while the hour is shown a second time: it has been, the next one is tomorrow's.
    assert slots("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10", "2026-10-26T12:00") == ["26 01:30"]


@pytest.mark.parametrize("zone", DAYS)
@pytest.mark.parametrize("which", [0, 1])
def test_every_half_hour_is_every_half_hour(zone: str, which: int) -> None:
    """With any hour, real time counts: no gap, no two at once."""
    day = DAYS[zone][which]
    start = ms(day)
    at, found = start, []
    for _ in range(60):
        at = CRON.next("*/30 * * * *", zone, at)
        found.append(at)
    assert found == [start + n * 1_800_000 for n in range(1, 61)]


@pytest.mark.parametrize("zone", [*DAYS, "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu"])
@pytest.mark.parametrize("cron", ["0 0 * * *", "30 2 * * *", "59 23 * * *", "15 1,2,3 * * *", "0 */2 * * *"])
def test_slots_are_in_order_and_the_same_wherever_the_search_begins(zone: str, cron: str) -> None:
    chain: list[int] = []
    at = ms("2026-01-01")
    while at < ms("2027-01-01"):
        following = CRON.next(cron, zone, at)
        assert following > at
        at = following
        chain.append(at)
    for begin in range(ms("2026-03-28T20:00"), ms("2026-03-30"), 600_000):
        assert CRON.next(cron, zone, begin) == min(slot for slot in chain if slot > begin)
    for begin in range(ms("2026-10-24T20:00"), ms("2026-10-26"), 600_000):
        assert CRON.next(cron, zone, begin) == min(slot for slot in chain if slot > begin)


@pytest.mark.parametrize("zone", DAYS)
@pytest.mark.parametrize("cron", ["30 2 * * *", "*/30 * * * *", "0 9 1 * *"])
def test_going_back_finds_enough_and_not_much_more(zone: str, cron: str) -> None:
    for day in (*DAYS[zone], "2026-06-15"):
        now = ms(f"{day}T18:00")
        for count in (1, 5):
            start = CRON.before(cron, zone, now, count)
            found, at = 0, CRON.next(cron, zone, start)
            while at <= now:
                found, at = found + 1, CRON.next(cron, zone, at)
            assert count <= found <= count + 3


@pytest.mark.parametrize("cron", ["0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6 *"])
def test_an_expression_that_never_fires_is_refused(cron: str) -> None:
    with pytest.raises(Rejected, match="never fires") as caught:
        CRON.check(cron, "UTC")
    assert caught.value.code == "bad_cron"


@pytest.mark.parametrize(
    "cron",
    [
        "",
        "* * * *",
        "1" * 5_000 + " * * * *",
        "\u00b2 * * * *",
        "* * * * \u00b2L",
        "* * * * * *",
        "61 * * * *",
        "a b c d e",
        "*/0 * * * *",
        "@daily",
    ],
)
def test_what_is_no_expression_is_refused(cron: str) -> None:
    with pytest.raises(Rejected) as caught:
        CRON.check(cron, "UTC")
    assert caught.value.code == "bad_cron"


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "../etc/passwd", "/etc/passwd", "Europe", "\x00"])
def test_what_is_no_zone_is_refused(zone: str) -> None:
    with pytest.raises(Rejected, match="IANA") as caught:
        CRON.check("* * * * *", zone)
    assert caught.value.code == "bad_zone"


def test_leap_days_and_rare_weekdays_come() -> None:
    assert slots("0 0 29 2 *", "UTC", "2026-01-01", "2033-01-01") == ["29 00:00"] * 2
    assert CRON.next("0 0 * 2 MON#5", "UTC", ms("2026-01-01")) == ms("2044-02-29")


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "59 23 * 2 MON#5", "0 0 1 1 *"])
def test_rare_slots_end_with_the_calendar_in_both_directions(cron: str) -> None:
    assert CRON.before(cron, "Pacific/Apia", ms("2027-01-01"), 1_000) < ms("1995-01-01")
    for late in ("8990-01-01", "9500-01-01", "9999-12-31T23:59:59"):
        slot = CRON.next(cron, "Pacific/Apia", ms(late))
        assert slot == 0 or slot > ms(late)
    assert CRON.next(cron, "UTC", ms("9999-12-31T23:59:59")) == 0


fields = st.text("0123456789*/,-#LWSUNMO", min_size=1, max_size=6)


@given(
    st.lists(
        fields | st.sampled_from(["*", "*/5", "1-5", "L", "LW", "MON#5", "FRI", "5L", "31"]), min_size=5, max_size=5
    )
)
@settings(deadline=None, max_examples=300)
def test_whatever_is_no_refusal_has_slots_in_order(parts: list[str]) -> None:
    cron = " ".join(parts)
    try:
        CRON.check(cron, "Europe/Berlin")
    except Rejected:
        return
    now = ms("2026-03-28T20:00")
    first = CRON.next(cron, "Europe/Berlin", now)
    assert first == 0 or now < first < CRON.next(cron, "Europe/Berlin", first)
    assert CRON.before(cron, "Europe/Berlin", now, 3) <= now
