"""Fusing rankings by rank, spreading them, and what tells one memory from another."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.errors import Rejected
from swarmd.core.memory import Memory
from swarmd.passages import K_MAX, candidates, check_memory, check_vector, digest_of, diverse, fuse

rankings = st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True), max_size=3)


def test_what_both_rankings_like_comes_first() -> None:
    fused = fuse([["a", "b", "c"], ["d", "b"]], 4)
    assert [key for key, _ in fused] == ["b", "a", "d", "c"]
    assert fused[1][1] == 1 / 61
    assert fused[0][1] == 1 / 62 + 1 / 62


@given(rankings, st.integers(1, 8))
def test_fusion_is_ordered_bounded_and_forgets_nothing_better(lists: list[list[str]], k: int) -> None:
    fused, whole = fuse(lists, k), fuse(lists, 100)
    assert fused == whole[:k]
    assert {key for key, _ in whole} == {key for ranking in lists for key in ranking}
    assert [score for _, score in whole] == sorted((score for _, score in whole), reverse=True)
    assert fuse(lists[::-1], 100) == whole or len(lists) > 2  # sums of three floats may differ by their order


@given(st.integers(1, K_MAX))
def test_candidates_are_at_least_as_many_as_wanted(k: int) -> None:
    assert candidates(k) >= k


ANGLES = [0.0, 0.01, 0.02, 1.2, 2.4]


def likeness(index: int) -> list[float]:
    return [math.cos(ANGLES[index] - angle) for angle in ANGLES]


def test_diversity_takes_the_best_first_and_then_what_differs() -> None:
    scores = [1.0, 0.9, 0.8, 0.3, 0.1]
    assert diverse(scores, likeness, 5, 0.0) == [0, 1, 2, 3, 4]
    assert diverse(scores, likeness, 3, 0.5) == [0, 4, 1]
    assert diverse(scores, likeness, 2, 1.0) == [0, 4]
    assert diverse([], likeness, 3, 0.5) == []


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5), st.integers(1, 7), st.floats(0, 1))
def test_diversity_only_reorders_and_cuts(scores: list[float], count: int, diversity: float) -> None:
    order = diverse(scores, likeness, count, diversity)
    assert len(order) == len(set(order)) == min(count, 5)
    assert scores[order[0]] == max(scores) or diversity == 1 or max(scores) == min(scores) or diversity > 0.99


def test_digests_tell_memories_apart_by_every_field_and_not_by_the_order_of_labels() -> None:
    one = Memory(id="a", text="t", labels={"x": "1", "y": "2"})
    assert digest_of(one) == digest_of(msgspec.structs.replace(one, labels={"y": "2", "x": "1"}))
    changes = {"id": "b", "text": "u", "source": "s", "labels": {"x": "1"}, "author": "a", "task": "t", "seq": 1}
    changes |= {"space": "swarm/a", "swarm": "a", "step": "s", "since_ms": 1, "expires_at_ms": 1}
    others = [msgspec.structs.replace(one, **{name: value}) for name, value in changes.items()]
    others.append(msgspec.structs.replace(one, payload=msgspec.Raw(b"1")))
    assert len({digest_of(memory) for memory in [one, *others]}) == len(others) + 1


def test_limits_of_memories_and_vectors() -> None:
    check_memory(Memory(id="a", text="t", payload=msgspec.Raw(b'{"a": 1}')))
    check_vector([0.0, 3.0], 2)
    for vector, code in (([1.0], "wrong_dimension"), ([0.0, 0.0], "bad_vector"), ([math.nan, 1.0], "bad_vector")):
        with pytest.raises(Rejected) as caught:
            check_vector(vector, 2)
        assert caught.value.code == code
