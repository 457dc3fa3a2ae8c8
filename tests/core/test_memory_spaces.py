"""Who may see and change which memories, over every caller and space that can be drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.errors import Rejected
from swarmd.core.memory_spaces import (
    ADMIN,
    CLIENT,
    Caller,
    caller_of,
    may_drop,
    may_read,
    may_update,
    own,
    readable,
    space_for_writing,
    spaces_for_reading,
)

SWARMS = st.sampled_from(["main", "other"])
AGENTS = st.sampled_from(["", "desk", "lamp"])
TASKS = st.sampled_from(["", "t1", "t1~1", "t1~1~2", "t2"])
MEMBERS = st.builds(Caller, st.just("member"), SWARMS, AGENTS, TASKS)
CALLERS = st.one_of(st.just(CLIENT), st.just(ADMIN), MEMBERS)
SPACES = st.one_of(
    st.just("shared"),
    SWARMS.map("swarm/{}".format),
    st.builds("swarm/{}/agent/{}".format, SWARMS, st.sampled_from(["desk", "lamp"])),
    st.builds("swarm/{}/task/{}".format, SWARMS, st.sampled_from(["t1", "t1~1", "t1~1~2", "t2"])),
)
WANTED = st.one_of(
    SPACES, st.sampled_from(["swarm", "agent", "task", "", "swarm/", "swarm/main/agent/", "x", "a/b/c/d"])
)


def written(caller: Caller, wanted: str) -> str:
    """The space that is written, or why not."""
    try:
        return space_for_writing(caller, wanted)
    except Rejected as error:
        return error.code


@given(CALLERS, WANTED)
def test_who_may_write_a_space_may_read_it(caller: Caller, wanted: str) -> None:
    space = written(caller, wanted)
    if space not in ("unknown_space", "not_allowed"):
        assert may_read(caller, space)
        assert spaces_for_reading(caller, [wanted]) == [space]


@given(CALLERS, SPACES)
def test_nobody_sees_another_swarms_part(caller: Caller, space: str) -> None:
    is_foreign = space != "shared" and space.split("/")[1] != caller.swarm
    if caller.kind != "admin" and is_foreign:
        assert not may_read(caller, space)
        assert written(caller, space) == "not_allowed"
        with pytest.raises(Rejected, match="ask as an admin"):
            spaces_for_reading(caller, [space])


@given(CALLERS, st.lists(SPACES, max_size=4))
def test_what_is_named_is_what_is_searched_or_it_is_refused(caller: Caller, wanted: list[str]) -> None:
    try:
        spaces = spaces_for_reading(caller, wanted)
    except Rejected:
        assert any(not may_read(caller, space) for space in wanted)
        return
    assert all(may_read(caller, space) for space in spaces)
    if wanted:
        assert spaces == list(dict.fromkeys(wanted))
    elif caller.kind == "admin":
        assert spaces == []  # all there are
    else:
        assert spaces == readable(caller)


@given(MEMBERS)
def test_a_task_reads_what_those_above_it_wrote_and_not_what_those_below_did(caller: Caller) -> None:
    assert set(own(caller)) <= set(readable(caller))
    for space in readable(caller):
        parts = space.split("/")
        if len(parts) == 4 and parts[2] == "task":
            assert f"{caller.task}~".startswith(f"{parts[3]}~")
    assert f"swarm/{caller.swarm}/task/{caller.task}~9" not in readable(caller)


@given(CALLERS, SPACES, SWARMS, AGENTS, TASKS)
def test_who_may_drop_a_memory_is_of_its_swarm_and_its_author(
    caller: Caller, space: str, swarm: str, author: str, task: str
) -> None:
    if caller.kind == "admin":
        assert may_drop(caller, swarm, author, task)
        assert may_update(caller, space, swarm, author, task)
        return
    if may_drop(caller, swarm, author, task):
        assert caller.swarm == swarm
        assert caller.agent == author != "" or caller.task == task != ""
    if may_update(caller, space, swarm, author, task):
        assert space in own(caller)
        assert space != "shared" or may_drop(caller, swarm, author, task)
    assert not may_drop(CLIENT, "", author, task)


def test_the_subject_says_who_asks() -> None:
    assert caller_of("memory.shared.recall", "desk", "t1") == CLIENT  # whatever it says of itself
    assert caller_of("memory.shared.ctl.recall", "desk", "t1") == ADMIN
    member = caller_of("memory.shared.of.main.recall", "desk", "t1")
    assert member == Caller("member", "main", "desk", "t1")
    assert (member.reader, CLIENT.reader, ADMIN.reader) == ("main/t1", "", "")
    for subject, agent, task in (
        ("memory.shared.of.ma$in.recall", "", ""),
        ("memory.shared.of.main.recall", "de/sk", ""),
        ("memory.shared.of.main.recall", "", "t 1"),
    ):
        with pytest.raises(Rejected):
            caller_of(subject, agent, task)
