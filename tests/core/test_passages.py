"""Fusing rankings by rank."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmd.passages import K_MAX, candidates, fuse

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
