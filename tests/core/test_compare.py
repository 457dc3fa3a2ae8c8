"""Two states side by side: every difference is named, equal ones have none."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from swarmd.core import compare, snapshot
from swarmd.core.state import Attempt, Member, SwarmState, Task, Tombstone
from swarmd.core.wire import MemberStatus, SwarmStatus

NAMES = ("the log", "the snapshot")


def state() -> SwarmState:
    made = SwarmState("main", seq=9, message_id="b.9", term=2, leader_writer="orch")
    task = Task("t1", "echo", "d", (3, 0), Raw(b'{"a":1}'), state="assigned", epoch=1)
    task.attempts = {1: Attempt(1, "w/b/0", {"s#1": (4, 0)})}
    made.tasks = {"t1": task, "t2": Task("t2", "echo", "d", (3, 1), Raw(b"null"))}
    made.members["w/b/0"] = Member("w/b/0", "node", "worker", "w", "b", ["echo"], 4, running={"t1": 1})
    made.tombstones = {"t8": Tombstone("d", "completed", (1, 0)), "t9": Tombstone("d", "dead", (2, 0))}
    return made


def test_equal_states_have_no_differences_nor_does_a_snapshot() -> None:
    assert compare.differences(state(), state(), NAMES) == []
    assert compare.differences(state(), snapshot.decode(snapshot.encode(state())), NAMES) == []


def test_each_difference_is_named_by_its_place() -> None:
    other = state()
    other.seq = 10
    other.tasks["t1"].attempts[1].journal["s#1"] = (5, 0)
    del other.tasks["t2"]
    other.tasks["t3"] = Task("t3", "echo", "d", (3, 1), Raw(b"null"))
    other.tombstones = dict(reversed(other.tombstones.items()))
    assert compare.differences(state(), other, NAMES) == [
        "seq: the log has 9, the snapshot has 10",
        "tasks.t1.attempts.1.journal.s#1: the log has [4,0], the snapshot has [5,0]",
        "tasks.t2: only the log has it",
        "tasks.t3: only the snapshot has it",
        "tombstones: the same entries in another order",
    ]


def test_there_is_an_end_to_it() -> None:
    other = state()
    other.tombstones = {f"x{n}": Tombstone("d", "dead", (1, n)) for n in range(1_000)}
    found = compare.differences(state(), other, NAMES)
    assert len(found) == compare.DIFFERENCES_MAX + 1
    assert found[-1] == "and more"


def test_a_leaders_report_is_held_against_the_log() -> None:
    mine = state()
    counters = msgspec.to_builtins(mine.counters)
    member = MemberStatus("w/b/0", "node", "", ["echo"], 4, 1, 10, True)
    status = SwarmStatus("main", 9, 2, "orch", {"assigned": 1, "queued": 1}, counters, [member], {})
    assert compare.status_differences(mine, status, "the leader") == []
    status.tasks = {"assigned": 2}
    status.counters = counters | {"completed": 1}
    member.running = 2
    assert compare.status_differences(mine, status, "the leader") == [
        "tasks.assigned: the log has 1, the leader has 2",
        "tasks.queued: only the log has it",
        "counters.completed: the log has 0, the leader has 1",
        "members.w/b/0.running: the log has 1, the leader has 2",
    ]


def test_a_large_state_comes_in_slices_and_back_whole() -> None:
    made = state()
    for number in range(25):
        made.dead[f"d{number}"] = Task(f"d{number}", "echo", "d", (1, number), Raw(b"[1, 2]"))
    parts = list(snapshot.slices(made, items_max=10))
    assert len(parts) > len(list(snapshot.slices(made)))
    assert snapshot.decode(snapshot.seal(b"".join(parts))) == made
