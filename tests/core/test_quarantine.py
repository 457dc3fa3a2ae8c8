"""Who is set apart among thousands: the same members as if each were compared with every other one, in linear time."""

from __future__ import annotations

from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from swarmd.core import quarantine
from swarmd.core.events import Quarantined, Readmitted
from swarmd.core.experience import Pace
from swarmd.core.quarantine import ENDED_MIN, FAILING_MIN, Wards
from swarmd.core.state import Member, SwarmState

AGENTS = ("a", "b")
paces = st.dictionaries(
    st.sampled_from(AGENTS),
    st.builds(
        lambda ended, failing: Pace(ended=ended, failing=failing),
        st.integers(0, 12),
        st.integers(0, 10).map(lambda n: n / 10),
    ),
)
crowds = st.lists(
    st.tuples(st.sets(st.sampled_from(AGENTS)), st.integers(0, 2), st.sampled_from(["", "", "", "bad"]), paces),
    max_size=12,
)


def swarm(crowd: list[tuple[set[str], int, str, dict[str, Pace]]]) -> SwarmState:
    state = SwarmState("s")
    for n, (agents, capacity, quarantined, known) in enumerate(crowd):
        member = Member(f"w/b/{n}", "node", "worker", "w", "b", sorted(agents), capacity, paces=known)
        member.quarantined = quarantined
        state.members[member.id] = member
    return state


def offering(state: SwarmState, agent: str) -> list[Member]:
    return [member for member in state.members.values() if member.capacity and agent in member.agents]


def left(state: SwarmState, agent: str, without: set[str]) -> bool:
    """Whether at least half of those that offer the agent would be left."""
    well = [member for member in offering(state, agent) if not member.quarantined and member.id not in without]
    return 2 * len(well) >= len(offering(state, agent))


def one_by_one(state: SwarmState) -> list[str]:
    """The rule as it is said: each member against all others that are well."""
    apart: list[str] = []
    for member in state.members.values():
        if member.quarantined:
            continue
        for agent, pace in member.paces.items():
            if pace.ended < ENDED_MIN or pace.failing < FAILING_MIN:
                continue
            well = [m for m in offering(state, agent) if m is not member and not m.quarantined and m.id not in apart]
            known = [m.paces[agent].failing for m in well if agent in m.paces and m.paces[agent].ended]
            if not known or sum(known) / len(known) * 2 > pace.failing + quarantine.ROUNDING:
                continue
            if all(left(state, one, {member.id, *apart}) for one in member.agents):
                apart.append(member.id)
                break
    return apart


@given(crowds)
def test_sums_find_whom_comparisons_find(crowd: list[tuple[set[str], int, str, dict[str, Pace]]]) -> None:
    state = swarm(crowd)
    found = [event.data for event in Wards(state).due(10_000)]
    assume(not any(isinstance(fact, Readmitted) for fact in found))  # who is needed comes back, and others may go
    assert [fact.member for fact in found if isinstance(fact, Quarantined)] == one_by_one(state)


def test_a_look_at_an_agent_that_fails_everywhere_counts_its_members_once() -> None:
    crowd = [({"a"}, 1, "", {"a": Pace(ended=50, failing=0.9)}) for _ in range(3_000)]
    state = swarm(crowd)
    wards, looked = Wards(state), 0

    class Counted(dict[str, Member]):
        def values(self) -> Any:
            nonlocal looked
            looked += 1
            return super().values()

    state.members = Counted(state.members)
    assert wards.due(10_000) == []
    assert looked == 2  # who is looked at, and whom they are compared with
