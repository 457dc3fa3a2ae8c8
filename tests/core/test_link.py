"""Dispatch over a bus that loses, repeats and reorders: every item arrives once, in order."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from swarmd.core.link import BATCH_BYTES_MAX, Receiver, Sender, read_dispatch
from swarmd.core.wire import Dispatch, Item, Report, Start, Stop


@given(st.data())
@settings(deadline=None)
def test_items_arrive_exactly_once_in_order(data: st.DataObject) -> None:
    sender, receiver = Sender(1, 0), Receiver()
    wanted = [Stop(f"t{n}", 1) for n in range(data.draw(st.integers(0, 12)))]
    unsent, flying, got = list(wanted), list[Dispatch](), list[Item]()
    for now_ms in range(0, 200, 10):
        for _ in range(data.draw(st.integers(0, 2))):
            if unsent:
                sender.items.append(unsent.pop(0))
        batch = sender.batch(7, now_ms)
        flying += [batch] if batch is not None else []
        flying += sender.overdue(now_ms, 30)
        for dispatch in data.draw(st.permutations(flying)):
            fate = data.draw(st.sampled_from(["arrives", "arrives and stays", "stays", "is lost"]))
            if fate.startswith("arrives"):
                got += receiver.take(dispatch)
            if not fate.endswith("stays"):
                flying.remove(dispatch)
        if data.draw(st.booleans()):
            sender.acknowledge(receiver.ack)
    sender.items += unsent
    for now_ms in (1_000, 2_000):  # the bus is well again
        batch = sender.batch(7, now_ms)
        for dispatch in sender.overdue(now_ms + 500, 30) or ([batch] if batch else []):
            got += receiver.take(dispatch)
        sender.acknowledge(receiver.ack)
    assert got == wanted
    assert sender.in_flight() == []


def test_a_new_term_begins_anew_and_an_old_leader_is_not_heard() -> None:
    receiver = Receiver()
    old, new = Sender(1, 0), Sender(2, 0)
    old.items, new.items = [Stop("a", 1)], [Stop("b", 1)]
    first, second = old.batch(1, 0), new.batch(1, 0)
    assert first is not None
    assert second is not None
    assert receiver.take(first) == [Stop("a", 1)]
    assert receiver.take(second) == [Stop("b", 1)]
    assert receiver.take(first) == []
    assert (receiver.term, receiver.ack) == (2, 1)


def test_a_sender_that_lost_count_goes_on_from_what_was_taken() -> None:
    """The leader forgot a silent process and knows it again: nothing queued since may pass for taken."""
    receiver = Receiver()
    receiver.term, receiver.ack = 1, 7
    sender = Sender(1, 0)
    sender.items = [Stop("a", 1)]
    lost = sender.batch(1, 0)
    assert lost is not None
    assert receiver.take(lost) == []
    sender.acknowledge(receiver.ack)
    again = sender.batch(1, 10)
    assert again is not None
    assert receiver.take(again) == [Stop("a", 1)]


def test_batches_fit_into_a_message_and_a_large_item_travels_alone() -> None:
    sender = Sender(1, 0)
    large = Raw(b'"' + b"x" * (BATCH_BYTES_MAX // 3) + b'"')
    huge = Raw(b'"' + b"x" * BATCH_BYTES_MAX + b'"')
    sender.items = [Start(f"t{n}", 1, "m", "a", large) for n in range(5)]
    sender.items += [Start("h", 1, "m", "a", huge), Stop("s", 1)]
    sizes = []
    while (batch := sender.batch(1, 0)) is not None:
        sizes.append(len(batch.items))
    assert sizes == [2, 2, 1, 1, 1]


def test_items_of_a_later_version_are_left_out_and_the_rest_is_taken() -> None:
    items = [Stop("a", 1), {"op": "levitate", "height": {"m": 3}}, Report()]
    payload = msgspec.json.encode({"term": 2, "n": 1, "seq": 9, "items": items, "mood": "good"})
    dispatch, unknown = read_dispatch(payload)
    assert (dispatch, unknown) == (Dispatch(2, 1, 9, [Stop("a", 1), Report()]), ["levitate"])
    assert Receiver().take(dispatch) == [Stop("a", 1), Report()]


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b'{"term":1,"n":1,"seq":1,"items":[{"op":"stop"}]}', b'{"term":1,"n":1,"seq":1,"items":[{}]}'],
)
def test_a_dispatch_that_is_broken_is_not_read(payload: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        read_dispatch(payload)
