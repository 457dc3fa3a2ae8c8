"""The codec: every fact survives the log, old events still load, and no bytes can stop a reader."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from swarmd.core import snapshot, subjects
from swarmd.core.codec import DEPTH_MAX, Codec, Commit, Garbage, Packer, Record, message_id, parse_origin, too_deep
from swarmd.core.errors import Rejected
from swarmd.core.events import FACTS, TYPES, Completed, Event, Fact, Stepped, fields_of
from swarmd.core.evolve import apply
from swarmd.core.state import FOLD_VERSION, SwarmState
from tests.core.facts import any_facts
from tests.core.history import History, payload_of

SUBJECT = subjects.log("s", "worker", "w1")


def decoded(payload: bytes, key: str = "b1.1", subject: str = SUBJECT) -> Commit | Garbage:
    return Codec().decode(Record(7, subject, key, payload, 3))


def events_of(payload: bytes) -> list[Any]:
    commit = decoded(payload)
    assert isinstance(commit, Commit)
    return commit.events


@given(st.lists(any_facts, min_size=1, max_size=4))
@settings(deadline=None)
def test_every_fact_survives_the_log(facts: list[Fact]) -> None:
    commit = decoded(payload_of(*(("t", fact) for fact in facts)))
    assert isinstance(commit, Commit)
    assert (commit.seq, commit.role, commit.writer, commit.boot, commit.n, commit.seen) == (
        7,
        "worker",
        "w1",
        "b1",
        1,
        3,
    )
    for event, fact in zip(commit.events, facts, strict=True):
        assert isinstance(event, Event)
        assert event.type == TYPES[type(fact)]
        assert msgspec.json.encode(event.data) == msgspec.json.encode(fact)


def test_the_envelope_is_cloudevents() -> None:
    packer = Packer()
    packer.add(Event("t", Completed(epoch=1), TYPES[Completed], "b1.1.0", "/worker/w1", "2026-01-01T00:00:00Z"))
    (event,) = msgspec.json.decode(packer.payload())
    assert event == {
        "specversion": "1.0",
        "subject": "t",
        "data": {"epoch": 1},
        "type": "swarmd.task.completed.v1",
        "id": "b1.1.0",
        "source": "/worker/w1",
        "time": "2026-01-01T00:00:00Z",
    }


@given(st.binary(max_size=80), st.text(max_size=20), st.text(max_size=20))
@example(b'[{"type":"\xff","subject":"t","data":1}]', "b1.1", SUBJECT)
@example(b"[" * 100_000, "b1.1", SUBJECT)
@example(b'[{"type":"x","subject":"t","data":' + b"[" * 5_000 + b"]" * 5_000 + b"}]", "b1.1", SUBJECT)
@example(b"[]", "b1." + "9" * 5_000, SUBJECT)
@example(b"[]", "b1.²", SUBJECT)
@example(b"[]", "b1.1", "swarm.s.log.worker")
@settings(deadline=None)
def test_no_bytes_raise(payload: bytes, key: str, subject: str) -> None:
    state = SwarmState("s")
    for where in (subject, SUBJECT):
        for name in (key, "b1.1"):
            commit = decoded(payload, name, where)
            assert commit.seq == 7
            apply(state, commit)
    snapshot.decode(snapshot.encode(state))


@given(st.binary(max_size=40), any_facts)
@settings(deadline=None)
def test_garbage_is_counted_with_its_place_and_spares_its_neighbours(junk: bytes, fact: Fact) -> None:
    good = payload_of(("t", fact))[1:-1]
    text = msgspec.json.encode(junk)
    events = events_of(b"[" + text + b"," + good + b',{"type":"what.v9","subject":"t","data":{}}]')
    assert [type(event) for event in events] == [Garbage, Event, Garbage]
    assert [(e.seq, e.index) for e in events if isinstance(e, Garbage)] == [(7, 0), (7, 2)]


def read_slowly(record: Record, codec: Codec) -> Commit | Garbage:
    """What a record says, each of its events looked at by itself: the rule, whose result the fast way must have."""
    if too_deep(record.payload):
        return Garbage(record.seq, -1, "deep", record.message_id)
    events = codec._one_by_one(record)
    try:
        empty = msgspec.json.decode(record.payload) == []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        empty = False
    if not events and not empty:
        return Garbage(record.seq, -1, "unreadable", record.message_id)
    return Commit(record.seq, "worker", "w1", "b1", 1, record.seen, record.message_id, events, record.at_ms)


def told(commit: Commit | Garbage) -> Any:
    """A commit in values that can be compared; of garbage its place counts, its reason is for people."""
    if isinstance(commit, Garbage):
        return commit.seq, commit.index, commit.message_id
    events = [told_event(event) for event in commit.events]
    return commit.seq, commit.role, commit.writer, commit.boot, commit.n, commit.seen, commit.at_ms, events


def told_event(event: Event | Garbage) -> Any:
    if isinstance(event, Garbage):
        return event.seq, event.index
    fact = [bytes(value) if isinstance(value, Raw) else repr(value) for value in fields_of(event).values()]
    kept = (event.subject, event.type, event.id, event.source, event.time, event.traceparent)
    return type(event.data), [re.sub("0x[0-9a-f]+", "", str(value)) for value in fact], kept


#: What somebody might put between the bytes of a commit to be read otherwise than it was meant.
HOSTILE = [
    *(b'"specversion":"1.0",', b'"specversion":"0.3",', b'"specversion":1,', b'"specversion":null,'),
    *(b'"type":"swarmd.task.completed.v1",', b'"type":"swarmd.task.step.v1",', b'"type":"old.v1",', b'"type":7,'),
    *(b'"t\\u0079pe":"swarmd.task.failed.v1",', b'"subject":"u",', b'"subject":null,', b'"time":5,', b'"id":"again",'),
    *(
        b'"data":{"epoch":1},',
        b'"data":[],',
        b'"data":1e400,',
        b'"data":{"epoch":1,"epoch":2},',
        b'"unknown":{"a":[1]},',
    ),
    *(b'"epoch":2,', b'"epoch":"x",', b'"epoch":99999999999999999999,', b'"extra":[[{}]],', b'"output":"\\ud800",'),
    *(b"[" * 125, b"]" * 125, b'{"a":' * 126, b"}" * 126, b"{}", b"[]", b",", b"null", b'"', b"\\", b"\xff", b"\x00"),
    b'{"type":"swarmd.task.completed.v1","subject":"t","data":{"epoch":1,"output":' + b"[" * 125 + b"]" * 125 + b"}},",
    b'{"type":"swarmd.task.completed.v1","subject":"t","data":{"epoch":1,"more":' + b"[" * 126 + b"]" * 126 + b"}},",
]


@given(st.lists(any_facts, min_size=1, max_size=3), st.data())
@settings(deadline=None, max_examples=300)
def test_the_fast_way_reads_what_the_slow_one_reads_whoever_wrote_it(facts: list[Fact], data: st.DataObject) -> None:
    lifted = {"old.v1": lambda old: ("swarmd.task.completed.v1", {"epoch": old["epoch"]})}
    codec, payload = Codec(FACTS, lifted), payload_of(*(("t", fact) for fact in facts))
    for junk in data.draw(st.lists(st.sampled_from(HOSTILE) | st.binary(max_size=3), max_size=3)):
        marks = [at for at, byte in enumerate(payload) if byte in b"{}[],:"]
        at = data.draw(st.sampled_from([at + 1 for at in marks] or [0]))
        payload = payload[:at] + junk + payload[at + data.draw(st.sampled_from([0, 0, 0, 1, 5])) :]
    record = Record(7, SUBJECT, "b1.1", payload, 3, 99)
    assert told(codec.decode(record)) == told(read_slowly(record, codec))


@pytest.mark.parametrize("junk", HOSTILE)
@pytest.mark.parametrize("mark", [b"[{", b'"data":{', b'"data":', b"}}", b"}]"])
def test_no_known_trick_makes_the_two_ways_differ(junk: bytes, mark: bytes) -> None:
    codec = Codec(FACTS, {"old.v1": lambda old: ("swarmd.task.completed.v1", {"epoch": old["epoch"]})})
    payload = payload_of(("t", Completed(epoch=1, output=Raw(b'{"a":1}'))), ("u", Completed(epoch=2)))
    for place in (payload.index(mark) + len(mark), payload.index(mark)):
        record = Record(7, SUBJECT, "b1.1", payload[:place] + junk + payload[place:], 3, 99)
        assert told(codec.decode(record)) == told(read_slowly(record, codec))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not a CloudEvents JSON batch"),
        (b"{}", "not a CloudEvents JSON batch"),
        (b"[1,", "not a CloudEvents JSON batch"),
        (b"[" + b"[" * 200 + b"]" * 200 + b"]", "nested deeper"),
    ],
)
def test_a_message_that_is_no_commit_is_named_by_its_sequence(payload: bytes, reason: str) -> None:
    garbage = decoded(payload)
    assert isinstance(garbage, Garbage)
    assert (garbage.seq, garbage.index, garbage.message_id) == (7, -1, "b1.1")
    assert reason in garbage.reason


@given(st.integers(1, 400), st.integers(0, 60))
@settings(deadline=None)
def test_the_limit_of_depth_does_not_depend_on_the_stack(depth: int, frames: int) -> None:
    value = b"[" * depth + b'"[[[{"' + b"]" * depth
    payload = payload_of(("t", Completed(epoch=1, output=Raw(value))))

    def deeper(left: int) -> Commit | Garbage:
        return deeper(left - 1) if left else decoded(payload)

    assert isinstance(deeper(frames), Garbage) == (depth + 3 > DEPTH_MAX)
    assert too_deep(value) == (depth > DEPTH_MAX)


def test_a_large_flat_commit_is_not_taken_for_a_deep_one() -> None:
    results = Raw(msgspec.json.encode([{"n": n, "of": [n]} for n in range(300)]))
    events = events_of(payload_of(*(("t", Stepped(epoch=1, key=f"k{n}", kind="s", result=results)) for n in range(50))))
    assert len(events) == 50


def test_old_events_still_load_through_an_upcast() -> None:
    def v0(data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return "swarmd.task.finished.v1", {"attempt": data["try"], "value": data["result"]}

    def v1(data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return "swarmd.task.completed.v1", {"epoch": data["attempt"], "output": data["value"]}

    codec = Codec(FACTS, {"swarmd.task.ended.v1": v0, "swarmd.task.finished.v1": v1})
    old = b'[{"type":"swarmd.task.ended.v1","subject":"t","data":{"try":2,"result":[1]},"traceparent":"00-1","id":"i"}]'
    commit = codec.decode(Record(1, SUBJECT, message_id("b1", 1), old, 0))
    assert isinstance(commit, Commit)
    (event,) = commit.events
    assert isinstance(event, Event)
    assert isinstance(event.data, Completed)
    assert (event.data.epoch, bytes(event.data.output), event.traceparent, event.id) == (2, b"[1]", "00-1", "i")


@pytest.mark.parametrize("data", [b"{}", b"[]", b"1", b'{"try":"x","result":1}'])
def test_an_upcast_that_fails_makes_garbage(data: bytes) -> None:
    codec = Codec(FACTS, {"old.v1": lambda old: ("swarmd.task.completed.v1", {"epoch": old["try"]})})
    payload = b'[{"type":"old.v1","subject":"t","data":' + data + b"}]"
    commit = codec.decode(Record(1, SUBJECT, "b.1", payload, 0))
    assert isinstance(commit, Commit)
    assert isinstance(commit.events[0], Garbage)


def test_upcasts_that_turn_in_circles_make_garbage() -> None:
    codec = Codec(FACTS, {"a": lambda data: ("b", data), "b": lambda data: ("a", data)})
    commit = codec.decode(Record(1, SUBJECT, "b.1", b'[{"type":"a","subject":"t","data":{}}]', 0))
    assert isinstance(commit, Commit)
    assert isinstance(commit.events[0], Garbage)
    assert "never end" in commit.events[0].reason


def test_the_origin_is_the_subject() -> None:
    assert parse_origin("swarm.s.log.worker.w1") == ("worker", "w1")
    assert parse_origin("memory.m.log.memory.x") == ("memory", "x")
    for subject in ("swarm.s.log.worker", "swarm.s.log.worker.w1.x", "other.s.log.worker.w1", "swarm.s.ctl.worker.w1"):
        assert parse_origin(subject) is None


def test_a_snapshot_is_refused_when_damaged_or_of_another_fold() -> None:
    history = History().running()
    sound = snapshot.encode(history.state)
    assert snapshot.decode(sound) == history.state
    damaged = [
        b"",
        b"{",
        sound[:-9],
        sound.replace(b'"t"', b'"u"'),
        sound.replace(b'"fold_version":%d' % FOLD_VERSION, b'"fold_version":0'),
    ]
    for payload in [*damaged, b'{"fold_version":"\xff"}', b"[" * 100_000]:
        with pytest.raises(Rejected) as refusal:
            snapshot.decode(payload)
        assert refusal.value.code == "bad_snapshot"
