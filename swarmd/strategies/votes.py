"""Votes: when two answers are the same, and when a vote is decided.

Job: bring answers to one form, count them, and say as early as it is certain which one wins.
A majority is an answer of more than half of all voters; who fails or answers in no known form abstains.
Pure. Must not know who votes or how.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import Struct

from swarmd.strategies.templates import as_text, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

Form = Literal["json", "text", "number", "choice"]
Rule = Literal["majority", "plurality"]
Tie = Literal["fail", "first", "none"]

_NUMBER: Final = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
_EXPONENT_MAX: Final = 300


class NoVote(ValueError):
    """An answer that is in no form that can be counted."""


def canonical(answer: Any, form: Form, choices: Sequence[str] = ()) -> str:
    """The one text that stands for all answers that mean the same. Raises `NoVote`.

    json: equal JSON, whatever the order of its keys, 1.0 like 1. text: letter case, spaces, and signs around it do not
    count. number: the last number in it. choice: the only one of `choices` that it names.
    """
    match form:
        case "json":
            return _json(answer)
        case "text":
            return _text(answer)
        case "number":
            return _number(answer)
        case "choice":
            return _choice(answer, choices)


def _json(answer: Any) -> str:
    return msgspec.json.encode(_plain(answer), order="deterministic").decode()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _text(answer: Any) -> str:
    text = " ".join(unicodedata.normalize("NFKC", as_text(answer)).casefold().split())
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())  # folding can undo the normal form
    bare = text.strip("".join(sign for sign in set(text) if not sign.isalnum()))
    if not bare and not text:
        raise NoVote("it is empty")
    return bare or text


def _number(answer: Any) -> str:
    if isinstance(answer, bool) or answer is None:
        raise NoVote(f"{shown(answer)} is no number")
    found = [match[0] for match in _NUMBER.finditer(as_text(answer)) if any(sign.isdigit() for sign in match[0])]
    if not found:
        raise NoVote(f"there is no number in {shown(answer)!r}")
    try:
        number = Decimal(found[-1].replace(",", ""))
    except InvalidOperation:
        raise NoVote(f"{found[-1]!r} is no number") from None
    if abs(number.adjusted()) > _EXPONENT_MAX:
        raise NoVote(f"{found[-1]!r} is no sensible number")
    return f"{number.normalize():f}" if number else "0"


def _choice(answer: Any, choices: Sequence[str]) -> str:
    text = _text(answer)
    for choice in choices:
        if _text(choice) == text:
            return choice
    named = [choice for choice in choices if re.search(rf"(?<!\w){re.escape(_text(choice))}(?!\w)", text)]
    # "not guilty" names "guilty" too: the longer one is meant
    named = [c for c in named if not any(c != other and _text(c) in _text(other) for other in named)]
    if len(named) != 1:
        what = f"more than one of them ({', '.join(named)})" if named else "none of them"
        raise NoVote(f"{shown(answer)!r} names {what}; the choices are {', '.join(choices)}")
    return named[0]


class Ballot(Struct, frozen=True):
    """What is counted: `votes` by voter's number (canonical answers), of `voters` in all; `abstained` are out."""

    voters: int
    votes: Mapping[int, str]
    abstained: int = 0

    @property
    def outstanding(self) -> int:
        return self.voters - len(self.votes) - self.abstained


class Verdict(Struct, frozen=True):
    """`open`: more votes are needed. `won` by `answer`. `split`: no answer can win. `short`: too few vote."""

    state: Literal["open", "won", "split", "short"]
    answer: str = ""
    why: str = ""


def tally(votes: Mapping[int, str]) -> list[tuple[str, int]]:
    """Answers with their votes, most first; equal ones in the order of their first voter."""
    counts: dict[str, int] = {}
    for voter in sorted(votes):
        counts[votes[voter]] = counts.get(votes[voter], 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])


def verdict(ballot: Ballot, rule: Rule, votes_min: int) -> Verdict:
    """Whether the vote is decided, whatever those who are outstanding will say.

    majority: more than half of all voters. plurality: more votes than any other answer. Both need `votes_min` votes.
    """
    counted, outstanding = len(ballot.votes), ballot.outstanding
    if counted + outstanding < votes_min:
        return Verdict("short", why=f"{counted} of {ballot.voters} voted, {votes_min} are needed")
    ranked = tally(ballot.votes)
    first, first_count = ranked[0] if ranked else ("", 0)
    second_count = ranked[1][1] if len(ranked) > 1 else 0
    enough = ballot.voters // 2 + 1 if rule == "majority" else second_count + outstanding + 1
    if first_count >= enough and counted >= votes_min:
        return Verdict("won", first)
    undecided = rule == "plurality" or counted < votes_min or first_count + outstanding >= enough
    if outstanding and undecided:
        return Verdict("open")
    return Verdict("split", why=f"no answer has a {rule} of {ballot.voters}: {_said(ranked)}")


def settled(found: Verdict, ballot: Ballot, tie: Tie) -> Verdict:
    """A split vote under the declared rule: `first` of those with most votes by voter's number, once all have voted."""
    if found.state != "split" or tie != "first":
        return found
    return Verdict("open") if ballot.outstanding else Verdict("won", tally(ballot.votes)[0][0])


def _said(ranked: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{shown(answer, 60)!r} {count}" for answer, count in ranked[:5]) or "nobody voted"
