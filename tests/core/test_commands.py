"""What clients may write, and with which code anything else is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from swarmd.core import commands
from swarmd.core.commands import BATCH_MAX, INLINE_BYTES_MAX, INPUT_DEPTH_MAX, MESSAGE_BYTES_MAX
from swarmd.core.errors import Rejected
from swarmd.core.wire import Submission


def test_a_submission_is_read_checked_and_made_a_fact() -> None:
    payload = b'{"agent":"summarise","input":{"n": 1},"timeout_ms":500,"retry":{"attempts_max":2}}'
    (submission,), packed = commands.parse_submissions(payload)
    fact = commands.to_fact(commands.check(submission), commands.digest(submission), 3, 1_000, packed)
    assert not packed
    assert (fact.term, fact.agent, fact.deadline_at_ms, fact.retry.attempts_max) == (3, "summarise", 1_500, 2)
    assert bytes(fact.input) == b'{"n": 1}'


def test_a_batch_is_a_batch_even_of_one() -> None:
    assert commands.parse_submissions(b' [{"agent":"a"}]')[1]


BAD_BYTES = [
    (b"", "bad_json"),
    (b"{", "bad_json"),
    (b'{"agent":"\xff"}', "bad_json"),
    (b'{"agent":"a","input":"\xff"}', "bad_json"),
    (b'[{"agent":"a","input":{"\xff":1}}]', "bad_json"),
    (b"null", "bad_field"),
    (b"{}", "bad_field"),
    (b'{"agent":1}', "bad_field"),
    (b'{"agent":"a","colour":1}', "bad_field"),
    (b'{"agent":"a","priority":1.5}', "bad_field"),
    (b"[]", "bad_batch"),
    (b"[" + b",".join([b'{"agent":"a"}'] * (BATCH_MAX + 1)) + b"]", "bad_batch"),
    (b'{"agent":"a","input":"' + b"x" * MESSAGE_BYTES_MAX + b'"}', "too_large"),
    (b'{"agent":"a","input":"' + b"x" * INLINE_BYTES_MAX + b'"}', "too_large"),
    (b'{"agent":"a b"}', "bad_name"),
    (b'{"agent":""}', "bad_name"),
    (b'{"agent":"a","id":"a.b"}', "bad_id"),
    (b'{"agent":"a","id":"a\\n"}', "bad_id"),
    (b'{"agent":"a","reply":"swarm.s.submit"}', "bad_reply"),
    (b'{"agent":"a","priority":1001}', "bad_field"),
    (b'{"agent":"a","timeout_ms":-1}', "bad_field"),
    (b'{"agent":"a","retry":{"attempts_max":0}}', "bad_field"),
    (b'{"agent":"a","retry":{"backoff_ms":9,"backoff_ms_max":8}}', "bad_field"),
    (b'{"agent":"a","budget":{"tokens":-1}}', "bad_field"),
    (b'{"agent":"a","tenant":"' + b"x" * 65 + b'"}', "bad_field"),
    (msgspec.json.encode({"agent": "a", "labels": {str(n): "" for n in range(33)}}), "bad_field"),
    (b'{"agent":"a","input":' + b"[" * 150 + b"]" * 150 + b"}", "too_deep"),
    (b'{"agent":"a","input":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "too_deep"),
    (b'{"agent":"a","input":[1e999]}', "bad_field"),
    (b'{"agent":"a","input":' + b"1" * 5_000 + b"}", "bad_field"),
]


@pytest.mark.parametrize(("payload", "code"), BAD_BYTES, ids=lambda value: str(value)[:40])
def test_bad_input_is_refused_with_a_code(payload: bytes, code: str) -> None:
    with pytest.raises(Rejected) as refusal:
        read(payload)
    assert refusal.value.code == code
    assert refusal.value.message


def read(payload: bytes) -> list[Submission]:
    return [commands.check(submission) for submission in commands.parse_submissions(payload)[0]]


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_no_bytes_raise_anything_else(payload: bytes) -> None:
    for reader in (read, commands.parse_query):
        try:
            reader(payload)
        except Rejected as refusal:
            code = refusal.code
        else:
            code = "none"
        assert code in {"none", "bad_json", "bad_field", "bad_batch", "bad_name", "bad_id", "bad_reply"}


def test_an_input_may_be_as_deep_as_is_said() -> None:
    deep = b"[" * INPUT_DEPTH_MAX + b"1" * 200 + b"]" * INPUT_DEPTH_MAX
    assert commands.check(Submission("a", Raw(deep))).agent == "a"


def test_equal_wishes_have_equal_digests_and_others_do_not() -> None:
    one = commands.digest(Submission("a", Raw(b"1"), priority=3))
    assert one == commands.digest(Submission("a", Raw(b"1"), id="x"))
    others = [Submission("b", Raw(b"1")), Submission("a", Raw(b"2")), Submission("a", Raw(b"1"), input_blob="f")]
    assert one not in [commands.digest(other) for other in others]
