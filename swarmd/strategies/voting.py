"""quorum: several voters answer the same question, and the answer that most agree on wins.

It stops as soon as the outcome is certain and cancels the voters that are left.
Must not know what is voted on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta, Struct, field

from swarmd.core.errors import Rejected
from swarmd.core.wire import Outcome
from swarmd.sdk import agent
from swarmd.strategies.asking import AnyCall, Call, agent_call, failure_of, input_for, read, taken
from swarmd.strategies.votes import Ballot, Form, NoVote, Rule, Tie, Verdict, canonical, settled, tally, verdict

if TYPE_CHECKING:
    from swarmd.roles.attempt import Child
    from swarmd.roles.context import Context

VOTERS_MAX: Final = 100
EXAMPLE: Final = (
    '{"question": "is it spam? …", "voters": ["judge"], "n": 5, "form": "choice", "choices": ["yes", "no"]}'
)


class Vote(Struct, frozen=True, forbid_unknown_fields=True):
    """`n` voters (0: each of `voters` once), taken from `voters` in turn, are given `question`.

    `form` says when answers are equal (see `votes.canonical`), `rule` when one wins, `votes_min` how many must have
    voted (0: more than half). `tie` is for a vote that nobody wins: it fails, the `first` voter of those with most
    votes decides, or the answer is null (`none`).
    """

    question: Any
    voters: list[AnyCall]
    n: Annotated[int, Meta(ge=0, le=VOTERS_MAX)] = 0
    form: Form = "text"
    choices: list[str] = field(default_factory=list)
    rule: Rule = "majority"
    votes_min: Annotated[int, Meta(ge=0, le=VOTERS_MAX)] = 0
    tie: Tie = "fail"


@agent
async def quorum(ctx: Context, wanted: Any) -> dict[str, Any]:
    """A `Vote` in; {"answer", "canonical", "won", "counts", "voters", "voted", "abstained", "cancelled"} out.

    `answer` is the winning answer as its first voter gave it. Raises `Rejected`: `bad_input`, `no_quorum`,
    `no_majority`.
    """
    vote = read(Vote, wanted, EXAMPLE)
    calls = voters_of(vote)
    votes_min = vote.votes_min or len(calls) // 2 + 1
    children: list[Child] = []
    for call in calls:
        children.append(await ctx.spawn(call.agent, input_for(call, {"question": vote.question}, vote.question)))
    waiting = {child.task: number for number, child in enumerate(children)}
    votes: dict[int, str] = {}
    answers: dict[int, Any] = {}
    abstained: dict[int, str] = {}
    while True:
        ballot = Ballot(len(calls), votes, len(abstained))
        found = settled(verdict(ballot, vote.rule, votes_min), ballot, vote.tie)
        if found.state != "open":
            break
        ((child, result), *_) = await ctx.first(*(children[number] for number in waiting.values()))
        number = waiting.pop(child.task)
        answer = taken(calls[number], child, result)
        try:
            votes[number] = counted(answer, vote)
            answers[number] = answer
        except NoVote as error:
            abstained[number] = str(error)
    if waiting:
        await ctx.cancel(*(children[number] for number in waiting.values()), reason="the vote is decided")
    return outcome_of(vote, found, votes, answers) | {
        "voters": len(calls),
        "voted": len(votes),
        "abstained": {str(number): why for number, why in sorted(abstained.items())},
        "cancelled": len(waiting),
    }


def voters_of(vote: Vote) -> list[Call]:
    """Who votes, in order. Raises `Rejected("bad_input")`."""
    if not vote.voters:
        raise Rejected("bad_input", f"there are no voters; an example: {EXAMPLE}")
    if len(vote.voters) > VOTERS_MAX:
        raise Rejected("bad_input", f"there are {len(vote.voters)} voters, at most {VOTERS_MAX} are allowed")
    if (vote.form == "choice") != bool(vote.choices):
        raise Rejected("bad_input", 'choices belong to form "choice", and only there')
    calls = [agent_call(voter, f"voter {n}", ("question",)) for n, voter in enumerate(vote.voters)]
    count = vote.n or len(calls)
    if vote.votes_min > count:
        raise Rejected("bad_input", f"votes_min is {vote.votes_min}, but there are only {count} voters")
    return [calls[number % len(calls)] for number in range(count)]


def counted(answer: Any, vote: Vote) -> str:
    """The answer as it is counted. Raises `NoVote` for a failure, and for an answer in no form."""
    if isinstance(answer, Outcome):
        raise NoVote(failure_of(answer))
    return canonical(answer, vote.form, vote.choices)


def outcome_of(vote: Vote, found: Verdict, votes: dict[int, str], answers: dict[int, Any]) -> dict[str, Any]:
    """What the vote came to. Raises `Rejected("no_quorum" | "no_majority")`."""
    if found.state == "short":
        raise Rejected("no_quorum", found.why)
    if found.state == "split" and vote.tie == "fail":
        raise Rejected("no_majority", found.why)
    counts = dict(tally(votes))
    if found.state != "won":
        return {"answer": None, "canonical": "", "won": False, "counts": counts}
    first = min(number for number, answer in votes.items() if answer == found.answer)
    return {"answer": answers[first], "canonical": found.answer, "won": True, "counts": counts}
