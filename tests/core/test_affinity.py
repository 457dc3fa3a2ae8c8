"""Affinity: sketches tell like inputs from others, and a like task goes where its like was done."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.affinity import Affinity, likeness, sketch
from swarmd.core.events import Assigned, Completed, Why
from swarmd.core.policies import PlacementSettings
from swarmd.core.state import Member
from tests.core.history import offer
from tests.sim.stage import Stage, wish

words = st.lists(st.text("abcdefgh", min_size=2, max_size=6), min_size=1, max_size=60)


@given(words, words)
def test_likeness_is_a_share_that_does_not_depend_on_the_order(one: list[str], other: list[str]) -> None:
    first, second = (sketch(" ".join(text).encode()) for text in (one, other))
    assert likeness(first, first) == 1.0
    assert 0.0 <= likeness(first, second) == likeness(second, first) <= 1.0
    if not set(one) & set(other):
        assert likeness(first, second) == 0.0


def test_what_is_near_is_found_and_what_is_far_is_not() -> None:
    affinity = Affinity()
    cook, smith = (Member(name, "node", "worker", "w", "b", ["a"], 1) for name in ("cook", "smith"))
    affinity.did_well("cook", "a", b'"boil the potatoes and fry the onions in butter"')
    affinity.did_well("smith", "a", b'"heat the iron and strike it on the anvil"')
    assert affinity.best([cook, smith], "a", b'"fry potatoes with onions and butter"') is cook
    assert affinity.best([cook, smith], "a", b'"strike the hot iron"') is smith
    assert affinity.best([cook, smith], "b", b'"strike the hot iron"') is None
    assert affinity.best([cook, smith], "a", b'"compute primes"') is None
    affinity.gone(cook)
    assert affinity.best([cook, smith], "a", b'"fry potatoes with onions and butter"') is not cook


def test_a_task_goes_where_its_like_was_done_well() -> None:
    stage = Stage()
    stage.placement = PlacementSettings(affinity=True)
    leader = stage.leading()
    names = ["w/b/0", "v/b/0", "u/b/0"]
    for name in names:
        stage.member(name[0], (name, offer(name)))
    for n, text in enumerate(("iron anvil hammer", "onion potato butter", "verse rhyme meter")):
        assert leader.submit(wish(value=f'"{text}"'.encode()), f"t{n}", stage.now_ms, False, None) is None
        stage.decide(leader)
    homes = {n: leader.state.tasks[f"t{n}"].attempts[1].member for n in range(3)}
    assert len(set(homes.values())) == 3
    for n, home in homes.items():
        stage.member(home[0], (f"t{n}", Completed(epoch=1)))
    for n, text in enumerate(("hammer iron", "butter onion", "meter verse")):
        assert leader.submit(wish(value=f'"{text}"'.encode()), f"u{n}", stage.now_ms, False, None) is None
        decided = [event.data for event in stage.decide(leader) if isinstance(event.data, Assigned)]
        assert [fact.why.rule for fact in decided if isinstance(fact.why, Why)] == ["fit"]
        assert leader.state.tasks[f"u{n}"].attempts[1].member == homes[n]
