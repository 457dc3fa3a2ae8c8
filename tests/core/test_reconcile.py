"""What should agree and does not, from folded states and answers alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.catalog import FoundTask, Gatherer, TaskRow
from swarmd.core.codec import Codec
from swarmd.core.events import Cancelled, Completed, Rated, Requeued, Reunited
from swarmd.core.ids import delegated_id
from swarmd.core.reconcile import (
    Difference,
    Row,
    attempts,
    delegated_from,
    gather,
    hive_against_child,
    lasting,
    log_against_catalog,
    log_against_members,
    processes,
)
from swarmd.core.snapshot import decode, encode
from swarmd.core.state import SwarmState
from swarmd.core.wire import Roll
from tests.core.history import CHILD, NODE, OTHER, History, offer


def a_hive(*tasks: str) -> History:
    """A swarm `s` whose tasks run in its child `kid` at epoch 1."""
    history = History().elected()
    history.commit(("delegate", "kid", "d1"), (CHILD, offer(CHILD, 10)))
    for task in tasks:
        history.submitted(task).assigned(task, member=CHILD)
    return history


def a_child(*tasks: str) -> History:
    history = History("kid").elected()
    for task in tasks:
        history.submitted(task)
    return history


def kinds(found: list[Difference]) -> list[tuple[str, str, str, int]]:
    return [(one.kind, one.subject, one.repair, one.epoch) for one in found]


NAMES = st.from_regex("[A-Za-z0-9_~:-]{1,20}", fullmatch=True)


@given(st.from_regex("[A-Za-z0-9_-]{1,8}", fullmatch=True), NAMES, st.integers(1, 10**9))
def test_the_id_in_the_child_tells_its_attempt(parent: str, task: str, epoch: int) -> None:
    assert delegated_from(parent, delegated_id(parent, task, epoch)) == (task, epoch)


def test_other_ids_tell_none() -> None:
    for name in ("t", "s:t", "s:t:", "s::1", "other:t:1", "s:t:01", "s:t:x", "s:t:²", "ss:t:1"):
        assert delegated_from("s", name) is None, name


def test_what_agrees_is_no_difference() -> None:
    hive, child = a_hive("a", "b"), a_child("s:a:1", "s:b:1", "mine", "other:a:1")
    assert hive_against_child(hive.state, child.state) == []


def test_an_attempt_whose_task_has_ended_in_the_child_is_owed() -> None:
    hive, child = a_hive("a"), a_child("s:a:1")
    child.lead("s:a:1", Cancelled(term=1))
    (found,) = hive_against_child(hive.state, child.state)
    assert (found.kind, found.subject, found.swarm, found.repair) == ("verdict_owed", "a", "s", "ask_again")
    assert "swarm kid ended it (cancelled)" in found.says


def test_an_attempt_that_the_child_does_not_know_never_arrived() -> None:
    found = hive_against_child(a_hive("a").state, a_child().state)
    assert kinds(found) == [("never_arrived", "a", "requeue", 1)]


def test_a_child_that_has_forgotten_tasks_cannot_tell() -> None:
    hive, child = a_hive("a"), a_child("x", "y")
    for task in ("x", "y"):
        child.lead(task, Cancelled(term=1))
    child.state.older_tombstones = {"x": child.state.tombstones.pop("x")}
    assert kinds(hive_against_child(hive.state, child.state)) == [("never_arrived", "a", "requeue", 1)]
    del child.state.tombstones["y"]
    assert kinds(hive_against_child(hive.state, child.state)) == [("forgotten", "a", "", 1)]


def test_a_task_of_the_child_for_an_attempt_that_is_over_is_an_orphan() -> None:
    hive = a_hive("a", "b", "c")
    hive.lead("a", Cancelled(term=1))
    hive.lead("b", Requeued(term=1, epoch=1, reason="undelivered"))
    hive.assigned("b", 2, CHILD)
    child = a_child("s:a:1", "s:b:1", "s:b:2", "s:c:1", "s:unknown:4")
    found = hive_against_child(hive.state, child.state)
    assert kinds(found) == [(("orphan"), name, "cancel", 0) for name in ("s:a:1", "s:b:1", "s:unknown:4")]
    assert {one.swarm for one in found} == {"kid"}
    says = [one.says for one in found]
    assert "which is cancelled" in says[0]
    assert "which is at attempt 2 now" in says[1]
    assert "which s does not know" in says[2]


def test_only_what_two_looks_show_lasts() -> None:
    one, other = (Difference("hive", "orphan", "kid", name, "a") for name in ("x", "y"))
    again = Difference("hive", "orphan", "kid", "x", "in other words")
    assert lasting([one, other], [again]) == [again]
    assert lasting([other], [again]) == []


def test_a_report_of_a_cut_counts_from_whoever_speaks_for_the_child_and_changes_nothing() -> None:
    hive = a_hive("a")
    report = Reunited(member=CHILD, way="child", cut_ms=9_000, tasks={"running": 1, "late": 1})
    before = encode(hive.state)
    hive.commit(("delegate", "kid", "d1"), (CHILD, report))
    assert hive.ignored() == {}
    hive.commit(("delegate", "other", "d2"), (CHILD, report))
    hive.work(CHILD, report)
    assert hive.ignored() == {"wrong_member": 2}
    hive.state.counters.ignored = {}
    for name in ("seq", "message_id", "writers"):
        setattr(hive.state, name, getattr(decode(before), name))
    assert encode(hive.state) == before


# --- members ---------------------------------------------------------------------------------------


def rolls(*running: tuple[str, int], age_ms: int = 5, reachable: bool = True) -> dict[str, Roll]:
    """What the first node's process says; the other one agrees with the log."""
    return {
        NODE: Roll([NODE], list(running), age_ms, 10, reachable, 9),
        OTHER: Roll([OTHER], [("u", 1)], 5, 10, True, 9),
    }


def test_lists_are_compared_with_the_log() -> None:
    history = History().running("t").submitted("u").assigned("u", member=OTHER)
    state = history.state
    assert attempts(state) == {("t", 1): NODE, ("u", 1): OTHER}
    assert log_against_members(state, rolls(("t", 1))) == []
    assert kinds(log_against_members(state, rolls())) == [("not_listed", "t", "ask_again", 1)]
    found = log_against_members(state, rolls(("t", 1), ("t", 3), ("x", 1)))
    assert kinds(found) == [("not_running", "t", "ask_again", 3), ("not_running", "x", "ask_again", 1)]


def test_an_attempt_may_be_listed_by_another_process_of_its_member() -> None:
    history = History().running("t").submitted("u").assigned("u", member=OTHER)
    assert log_against_members(history.state, rolls(("t", 1), ("u", 1))) == []


def test_who_is_silent_or_gave_no_list_is_not_held_to_it() -> None:
    state = History().running("t").submitted("u").assigned("u", member=OTHER).state
    assert log_against_members(state, rolls(age_ms=-1)) == []
    assert kinds(log_against_members(state, rolls(reachable=False))) == [("silent", NODE, "", 0)]
    idle = History().joined().state
    assert log_against_members(idle, {NODE: Roll([NODE], [], -1, -1, False, 9)}) == []


def test_each_process_is_asked_once() -> None:
    state = History().joined().state
    assert processes(state.members.values()) == [NODE, OTHER]


# --- the catalog -----------------------------------------------------------------------------------


def changed(task: str, *seqs: int, fresh: bool = True, state: str = "queued") -> TaskRow:
    places = [(seq, 0) for seq in seqs]
    return TaskRow(task, fresh, state, "a", "", "", {}, 0, 0, "", "", None, places)


def test_rows_grow_with_the_log() -> None:
    rows: dict[str, Row] = {}
    gather(rows, [changed("t", 3, 5)])
    gather(rows, [changed("t", fresh=False, state="paused")])
    assert rows == {"t": Row("paused", 0, 5, None)}
    gather(rows, [changed("t", 4)])
    assert rows["t"].last_seq == 4


def test_rows_are_the_same_however_often_they_are_taken() -> None:
    history = History().running("t")
    history.work("t", Completed(epoch=1))
    history.lead("t", Rated(term=1, score=-0.5))  # of a finished task: it changes no row
    often, once = dict[str, Row](), dict[str, Row]()
    busy, idle, codec = Gatherer(SwarmState("s")), Gatherer(SwarmState("s")), Codec()
    for record in history.records:
        busy.fold(codec.decode(record))
        gather(often, busy.take())
        idle.fold(codec.decode(record))
    gather(once, idle.take())
    assert often == once
    assert history.ignored() == {}


def listed(task: str, last_seq: int, state: str = "queued") -> FoundTask:
    return FoundTask(task, state, "a", last_seq=last_seq)


def test_the_catalog_is_compared_up_to_a_sequence() -> None:
    rows: dict[str, Row] = {}
    gather(rows, [changed("same", 1), changed("gone", 2), changed("other", 3), changed("later", 4)])
    shown = [
        listed("same", 1),
        listed("other", 3, "dead"),
        listed("later", 9, "dead"),
        listed("new", 8),
        listed("odd", 2),
    ]
    found = log_against_catalog("s", rows, shown, 5)
    assert sorted((one.kind, one.subject) for one in found) == [
        ("extra_row", "odd"),
        ("missing_row", "gone"),
        ("other_row", "other"),
    ]
    assert {one.repair for one in found} == {"rebuild"}
