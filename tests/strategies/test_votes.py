"""Votes: equal answers count as one, and a verdict is never overturned by those who are still to vote."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.strategies.votes import Ballot, Form, NoVote, Rule, canonical, settled, tally, verdict

CHOICES = ["guilty", "not guilty", "mistrial"]


@pytest.mark.parametrize(
    ("form", "one", "other"),
    [
        ("text", "  Forty   Two. ", "**forty two**"),
        ("text", "straße", "STRASSE"),
        ("number", "The answer is 42.", 42),
        ("number", "It is 1,234.50", "so: 1234.5"),
        ("number", "-0", 0),
        ("number", "2 of them, 1e3 in all", 1000.0),
        ("json", {"b": [1.0, {"c": None}], "a": "x"}, {"a": "x", "b": [1, {"c": None}]}),
        ("choice", "I say: NOT GUILTY!", "not guilty"),
        ("choice", "Guilty.", "guilty"),
    ],
)
def test_answers_that_mean_the_same(form: Form, one: Any, other: Any) -> None:
    choices = CHOICES if form == "choice" else []
    assert canonical(one, form, choices) == canonical(other, form, choices)


@pytest.mark.parametrize(
    ("form", "one", "other"),
    [("text", "yes", "no"), ("number", "1", "-1"), ("json", "1", 1), ("json", [1, 2], [2, 1]), ("text", "?", "!")],
)
def test_answers_that_differ(form: Form, one: Any, other: Any) -> None:
    assert canonical(one, form) != canonical(other, form)


@pytest.mark.parametrize(
    ("form", "answer", "words"),
    [
        ("text", "  ", "empty"),
        ("number", "none at all", "no number"),
        ("number", True, "no number"),
        ("number", "1e999999", "no sensible number"),
        ("choice", "perhaps", "none of them"),
        ("choice", "guilty or a mistrial", "more than one of them"),
    ],
)
def test_answers_in_no_form_say_why(form: Form, answer: Any, words: str) -> None:
    with pytest.raises(NoVote, match=words):
        canonical(answer, form, CHOICES)


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.sampled_from(get_args(Form)))
def test_what_is_canonical_stays_so(answer: Any, form: Form) -> None:
    try:
        once = canonical(answer, form, CHOICES)
    except NoVote:
        return
    if form != "json":  # that is JSON text, which as a text is another value
        assert canonical(once, form, CHOICES) == once


@given(st.lists(st.sampled_from("abc"), max_size=9))
def test_a_tally_counts_all_and_orders_equals_by_their_first_voter(votes: list[str]) -> None:
    counted = tally(dict(enumerate(votes)))
    assert sum(count for _, count in counted) == len(votes)
    keys = [(-count, votes.index(answer)) for answer, count in counted]
    assert keys == sorted(keys)


def decided(votes: list[str | None], order: list[int], rule: Rule, least: int, upto: int) -> Any:
    """The verdict once the first `upto` of `order` are in; None abstains."""
    seen = order[:upto]
    ballot = Ballot(
        len(votes), {n: str(votes[n]) for n in seen if votes[n] is not None}, sum(votes[n] is None for n in seen)
    )
    return verdict(ballot, rule, least)


@given(
    st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=7),
    st.sampled_from(get_args(Rule)),
    st.integers(1, 7),
    st.randoms(use_true_random=False),
)
def test_an_early_verdict_is_the_final_one(votes: list[str | None], rule: Rule, least: int, shuffle: Any) -> None:
    order = list(range(len(votes)))
    shuffle.shuffle(order)
    final = decided(votes, order, rule, min(least, len(votes)), len(votes))
    assert final.state != "open"
    for upto in range(len(votes)):
        early = decided(votes, order, rule, min(least, len(votes)), upto)
        if early.state != "open":
            assert (early.state, early.answer) == (final.state, final.answer)


@pytest.mark.parametrize("rule", get_args(Rule))
@pytest.mark.parametrize("voters", [1, 2, 3, 4, 5])
def test_a_vote_stops_as_soon_as_nothing_can_change_it(rule: Rule, voters: int) -> None:
    """Exhaustive: while the verdict is open, there are continuations that end differently."""
    for known in range(voters):
        for votes in itertools.product("ab", repeat=known):
            ballot = Ballot(voters, dict(enumerate(votes)))
            ends = set()
            for rest in itertools.product("abc", repeat=voters - known):
                whole = verdict(Ballot(voters, dict(enumerate([*votes, *rest]))), rule, 1)
                ends.add((whole.state, whole.answer))
            assert (verdict(ballot, rule, 1).state == "open") == (len(ends) > 1), (votes, ends)


def test_rules_for_a_vote_that_nobody_wins() -> None:
    even = Ballot(4, {0: "b", 1: "a", 2: "a", 3: "b"})
    assert verdict(even, "majority", 1).state == verdict(even, "plurality", 1).state == "split"
    assert settled(verdict(even, "plurality", 1), even, "first").answer == "b"
    assert settled(verdict(even, "plurality", 1), even, "fail").state == "split"
    early = Ballot(4, {0: "a", 1: "b", 2: "c"})
    assert verdict(early, "majority", 1).state == "split"
    assert settled(verdict(early, "majority", 1), early, "first").state == "open"


def test_too_few_votes_are_known_early() -> None:
    found = verdict(Ballot(5, {0: "a"}, abstained=2), "majority", 4)
    assert (found.state, found.why) == ("short", "1 of 5 voted, 4 are needed")
