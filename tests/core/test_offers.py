"""Members that advertise nonsense are given nothing, and the status says what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

from swarmd.core.events import MemberJoined
from swarmd.core.ids import node_member
from swarmd.core.status import swarm_status
from tests.sim.stage import Stage, wish

NODE = node_member("w", "b", 0)


def offered(stage: Stage, **fields: Any) -> None:
    fact = MemberJoined(**{"member": NODE, "kind": "node", "agents": ["a"], "capacity": 2, **fields})
    stage.member("w", (NODE, fact))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"capacity": 10**15}, "at most 100000 attempts"),
        ({"agents": ["a", "no name"]}, "agent 'no name' must be 1 to 64 of"),
        ({"agents": ["a", *map(str, range(1_000))]}, "offers 1001 agents"),
        ({"labels": {str(n): "" for n in range(33)}}, "33 labels"),
        ({"labels": {"": "x"}}, "label ''"),
        ({"labels": {"region": "x" * 257}}, "label 'region'"),
        ({"versions": {"a": []}}, "versions of agent 'a'"),
    ],
)
def test_nonsense_gets_nothing_until_it_makes_sense(fields: dict[str, Any], words: str) -> None:
    stage = Stage()
    leader = stage.leading()
    offered(stage, **fields)
    leader.submit(wish(), "t", stage.now_ms, False, "client")
    stage.decide(leader)
    assert leader.state.tasks["t"].attempts == {}
    (member,) = swarm_status(leader, stage.now_ms).members
    assert words in member.quarantined
    assert not member.reachable
    offered(stage)
    stage.decide(leader)
    assert list(leader.state.tasks["t"].attempts) == [1]
    (member,) = swarm_status(leader, stage.now_ms).members
    assert (member.quarantined, member.reachable) == ("", True)


def test_a_negative_capacity_is_none() -> None:
    stage = Stage()
    leader = stage.leading()
    offered(stage, capacity=-5)
    (member,) = swarm_status(leader, stage.now_ms).members
    assert (member.capacity, member.quarantined) == (0, "")
