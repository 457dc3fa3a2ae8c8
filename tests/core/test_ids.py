"""Names and ids: sortable by time, safe as one token of a subject, never ambiguous."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core import ids, subjects
from swarmd.core.codec import parse_origin
from swarmd.core.errors import Rejected

times = st.integers(0, 2**48 - 1)
bits = st.integers(0, 2**74 - 1)
names = st.from_regex(ids.NAME_PATTERN, fullmatch=True).filter(lambda name: "\n" not in name)


@given(times, bits, times, bits)
def test_uuid7_sorts_by_time_and_is_one(first: int, some: int, second: int, other: int) -> None:
    one, two = ids.uuid7(first, some), ids.uuid7(second, other)
    if first < second:
        assert one < two
    assert ids.is_uuid7(one)
    assert (uuid.UUID(one).version, uuid.UUID(one).variant) == (7, uuid.RFC_4122)
    assert one.startswith(ids.uuid7_prefix(first))
    assert (one == two) == ((first, some) == (second, other))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zzzzzzzz-zzzz-7zzz-zzzz-zzzzzzzzzzzz",
        "0199C82C-C283-7667-9CD0-6050922631C6",
        "0199c82c-c283-4667-9cd0-6050922631c6",
    ],
)
def test_what_only_looks_like_a_uuid7_is_none(text: str) -> None:
    assert not ids.is_uuid7(text)


@given(st.text(max_size=70))
def test_a_name_that_passes_is_one_safe_token(text: str) -> None:
    if passes(text):
        assert re.fullmatch(r"[A-Za-z0-9_~:-]+", text)


def passes(text: str) -> bool:
    try:
        ids.check_task_id(text)
    except Rejected:
        return False
    return True


@pytest.mark.parametrize("text", ["", "a b", "a.b", "a*", "a>", "a\n", "\n", "a\r\nPUB x", "ä", "a" * 201, "a\0"])
def test_no_dot_space_wildcard_or_line_end_in_an_id(text: str) -> None:
    with pytest.raises(Rejected, match="must be"):
        ids.check_task_id(text)


@given(names, st.integers(0, 9), st.integers(0, 9))
def test_derived_ids_are_ids(name: str, n: int, epoch: int) -> None:
    for derived in (ids.child_id(name, n), ids.delegated_id(name, name, epoch), ids.intake_id(name, n)):
        assert ids.check_task_id(derived) == derived
    assert ids.child_id(name, n) != ids.delegated_id(name, name, epoch)


@given(names, names, names)
def test_subjects_are_made_of_safe_tokens(swarm: str, writer: str, boot: str) -> None:
    assert parse_origin(subjects.log(swarm, "worker", writer)) == ("worker", writer)
    for subject in (
        subjects.dispatch(swarm, "worker", writer, boot),
        subjects.health(swarm, writer, boot),
        subjects.event(swarm, "t", "completed"),
        subjects.memory_log("m", "memory", writer),
    ):
        assert all(re.fullmatch(r"[A-Za-z0-9_~:-]+", token) for token in subject.split("."))


@pytest.mark.parametrize("subject", ["my.inbox", "_INBOX.abc.1", "a"])
def test_a_plain_reply_passes(subject: str) -> None:
    assert ids.check_reply(subject) == subject


@pytest.mark.parametrize(
    "subject",
    [
        "swarm.s.log.worker.w",
        "memory.m.log",
        "$JS.API",
        "a..b",
        "a.*",
        ">",
        "a b",
        "a\r\nPUB b",
        "a\tb",
        ".",
        "",
        "a." * 200 + "b",
    ],
)
def test_a_reply_that_would_write_into_the_swarm_is_refused(subject: str) -> None:
    with pytest.raises(Rejected) as refusal:
        ids.check_reply(subject)
    assert refusal.value.code == "bad_reply"
