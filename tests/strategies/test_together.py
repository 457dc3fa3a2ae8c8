"""quorum, debate, blackboard and router over a scripted context."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.errors import Rejected
from swarmd.strategies import blackboard, debate, quorum, routed, router
from tests.strategies.scripted import ScriptedContext


def fails(given: Any) -> Any:
    raise Rejected("broken", "it broke")


AGENTS: dict[str, Any] = {
    "yes": lambda given: "Yes.",
    "no": lambda given: "no",
    "fail": fails,
    "box": lambda given: {"vote": "YES!", "saw": given},
    "echo": lambda given: given,
}


async def refused(agent: Any, wanted: Any, code: str, ctx: ScriptedContext | None = None) -> str:
    with pytest.raises(Rejected) as caught:
        await agent(ctx or ScriptedContext(AGENTS), wanted)
    assert caught.value.code == code, caught.value.message
    return caught.value.message


# --- quorum ----------------------------------------------------------------------------------------


async def test_a_majority_ends_the_vote_and_the_rest_is_cancelled() -> None:
    slow = {"no": 50.0, "yes": 1.0, "box": 2.0}
    ctx: Any = ScriptedContext(AGENTS, seconds=lambda agent, given: slow[agent])
    voters = ["no", "yes", {"agent": "box", "take": "vote", "input": {"q": {"from": "question"}}}, "yes", "no"]
    done = await quorum(ctx, {"question": "spam?", "voters": voters})
    assert done == {
        "answer": "Yes.",
        "canonical": "yes",
        "won": True,
        "counts": {"yes": 3},
        "voters": 5,
        "voted": 3,
        "abstained": {},
        "cancelled": 2,
    }
    assert ctx.now == 2
    assert ctx.cancelled == ["t~1", "t~5"]
    assert ctx.spawned[2] == ("box", {"q": "spam?"})


async def test_voters_are_taken_in_turn_and_failures_abstain() -> None:
    ctx: Any = ScriptedContext(AGENTS)
    done = await quorum(ctx, {"question": "q", "voters": ["yes", "fail", "yes"], "n": 5})
    assert [agent for agent, _ in ctx.spawned] == ["yes", "fail", "yes", "yes", "fail"]
    assert (done["answer"], done["abstained"], done["cancelled"]) == ("Yes.", {"1": "broken: it broke"}, 1)


async def test_votes_that_nobody_wins_end_as_declared() -> None:
    job = {"question": "q", "voters": ["yes", "no"]}
    assert "no answer has a majority of 2: 'yes' 1, 'no' 1" in await refused(quorum, job, "no_majority")
    ctx: Any = ScriptedContext(AGENTS)
    assert (await quorum(ctx, {**job, "tie": "first"}))["answer"] == "Yes."
    ctx = ScriptedContext(AGENTS)
    done = await quorum(ctx, {**job, "tie": "none", "rule": "plurality"})
    assert (done["answer"], done["won"], done["counts"]) == (None, False, {"yes": 1, "no": 1})


async def test_too_few_votes_are_no_quorum() -> None:
    ctx: Any = ScriptedContext(AGENTS, seconds=lambda agent, given: 1.0 if agent == "fail" else 9.0)
    message = await refused(quorum, {"question": "q", "voters": ["fail", "fail", "yes"]}, "no_quorum", ctx)
    assert message == "0 of 3 voted, 2 are needed"
    assert ctx.cancelled == ["t~3"]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"question": "q", "voters": []}, "there are no voters"),
        ({"question": "q", "voters": ["a"], "n": 101}, r"<= 100 - at `$.n`"),
        ({"question": "q", "voters": ["a"] * 101}, "101 voters, at most 100"),
        ({"question": "q", "voters": ["a"], "votes_min": 2}, "votes_min is 2, but there are only 1"),
        ({"question": "q", "voters": ["a"], "form": "choice"}, 'choices belong to form "choice"'),
        ({"question": "q", "voters": ["a"], "choices": ["x"]}, 'choices belong to form "choice"'),
        ({"question": "q", "voters": ["a"], "tie": "coin"}, "Invalid enum value 'coin'"),
        ({"question": "q", "voters": [{"model": "m"}]}, "voter 0 must name an agent"),
        ({"voters": ["a"]}, "missing required field `question`"),
    ],
)
async def test_bad_input_of_quorum(wanted: Any, words: str) -> None:
    assert words in await refused(quorum, wanted, "bad_input")


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from(["yes", "no", "fail"]), min_size=1, max_size=7), st.sampled_from(["majority", "plurality"])
)
async def test_a_resumed_vote_ends_the_same(voters: list[str], rule: str) -> None:
    job = {"question": "q", "voters": voters, "rule": rule, "tie": "none", "votes_min": 1}

    async def ended(ctx: Any) -> Any:
        try:
            return await quorum(ctx, job)
        except Rejected as error:
            return error.message

    ctx = ScriptedContext(AGENTS, seconds=lambda agent, given: len(agent))
    first = await ended(ctx)
    resumed = ScriptedContext(AGENTS, verdicts=ctx.verdicts)
    assert await ended(resumed) == first
    assert resumed.cancelled == ctx.cancelled


# --- debate ----------------------------------------------------------------------------------------


async def test_debaters_who_agree_need_no_judge() -> None:
    ctx: Any = ScriptedContext(AGENTS)
    done = await debate(ctx, {"question": "q?", "debaters": ["yes", {"agent": "box", "take": "vote"}]})
    assert (done["answer"], done["agreed"], done["rounds"]) == ("Yes.", True, 1)
    assert ctx.requests == []


async def test_they_read_each_other_and_may_come_round() -> None:
    convinced = lambda given: "yes" if "Yes." in given["others"] else "no"  # noqa: E731
    ctx: Any = ScriptedContext(AGENTS | {"open": convinced})
    done = await debate(ctx, {"question": "q?", "debaters": ["yes", "open"], "rounds": 5})
    assert (done["answer"], done["agreed"], done["rounds"]) == ("Yes.", True, 2)
    assert ctx.spawned[3] == ("open", {"question": "q?", "round": 2, "own": "no", "others": ["Yes."]})


async def test_a_judge_decides_between_those_who_do_not_agree() -> None:
    job = {"question": "q?", "debaters": ["yes", "no", "fail"], "rounds": 2}
    ctx: Any = ScriptedContext(AGENTS, ["yes, because"])
    done = await debate(ctx, job)
    assert done == {
        "answer": "yes, because",
        "agreed": False,
        "rounds": 2,
        "answers": {"0": "Yes.", "1": "no"},
        "failed": {"2": "broken: it broke"},
    }
    assert "[1] debater 0\nYes.\n\n[2] debater 1\nno" in ctx.requests[0].turns[1].content
    ctx = ScriptedContext(AGENTS | {"judge": lambda given: {"verdict": given["answers"][1]["answer"]}})
    done = await debate(ctx, {**job, "judge": {"agent": "judge", "take": "verdict"}})
    assert done["answer"] == "no"


@pytest.mark.parametrize(
    ("wanted", "code", "words"),
    [
        ({"question": "q", "debaters": ["a"]}, "bad_input", "there are 1 debaters: give 2 to 20"),
        ({"question": " ", "debaters": ["a", "b"]}, "bad_input", "the question is empty"),
        ({"question": "q", "debaters": ["a", "b"], "rounds": 0}, "bad_input", "`int` >= 1 - at `$.rounds`"),
        ({"question": "q", "debaters": ["yes", "fail"]}, "no_debate", "1: broken: it broke"),
    ],
)
async def test_bad_input_of_debate(wanted: Any, code: str, words: str) -> None:
    message = await refused(debate, wanted, code)
    assert words.removeprefix("1: ") in message


# --- blackboard ------------------------------------------------------------------------------------


def speaks(*notes: Any) -> Any:
    """A contributor that says one of these each round, by its number."""
    return lambda given: notes[min(given["round"], len(notes)) - 1]


async def test_contributors_see_the_board_and_it_ends_when_nothing_new_is_added() -> None:
    follows = lambda given: ["It rained."] if "The road is wet." in given["notes"] else []  # noqa: E731
    agents = {"eye": speaks("The road is wet.", "the road is WET"), "mind": follows}
    ctx: Any = ScriptedContext(agents)
    job = {"goal": "Why is the road wet?", "contributors": [{"agent": "eye"}, {"agent": "mind", "about": "road"}]}
    done = await blackboard(ctx, job)
    assert done == {
        "result": None,
        "ended": "nothing_new",
        "rounds": 3,
        "board": "t",
        "notes": ["The road is wet.", "It rained."],
        "failed": {},
    }
    assert ctx.memories == [
        ("The road is wet.", {"board": "t", "round": "1"}),
        ("It rained.", {"board": "t", "round": "2"}),
    ]


async def test_a_control_ends_it_and_rounds_are_bounded() -> None:
    contributors = [{"agent": "n"}]
    job = {"goal": "count", "contributors": contributors, "control": {}, "rounds_max": 3}
    agents = {"n": lambda given: f"note {given['round']}"}
    ctx: Any = ScriptedContext(agents, ['{"done": false}', "hm", '{"done": true, "result": "two"}'])
    done = await blackboard(ctx, job)
    assert (done["ended"], done["rounds"], done["result"]) == ("done", 2, "two")
    assert "- note 1\n- note 2" in ctx.requests[-1].turns[1].content
    ctx = ScriptedContext(agents, ['{"done": false}'] * 3 + ["in short"])
    done = await blackboard(ctx, {**job, "conclude": {}})
    assert (done["ended"], done["rounds"], done["result"]) == ("rounds_max", 3, "in short")
    assert "Question: count\n\n[1] note 1\nnote 1" in ctx.requests[-1].turns[1].content


async def test_a_shared_board_counts_what_others_have_said() -> None:
    ctx: Any = ScriptedContext({"n": speaks("known already")})
    ctx.memories.append(("Known, already", {"board": "b"}))
    ctx.memories.append(("known already", {"board": "other"}))
    done = await blackboard(ctx, {"goal": "g", "contributors": [{"agent": "n"}], "board": "b"})
    assert (done["ended"], done["rounds"], done["notes"]) == ("nothing_new", 2, ["known already"])
    ctx.memories[0] = ("KNOWN already.", {"board": "c"})
    done = await blackboard(ctx, {"goal": "g", "contributors": [{"agent": "n"}], "board": "c"})
    assert (done["ended"], done["rounds"], done["notes"]) == ("nothing_new", 1, [])


async def test_a_contributor_is_shown_the_nearest_of_what_has_come_whoever_wrote_it() -> None:
    shown: list[list[str]] = []

    def reads(given: Any) -> Any:
        shown.append(given["notes"])
        if given["round"] == 1:
            ctx.memories.append(("Another run saw a wet road.", {"board": "b"}))
            ctx.memories.append(("A wet road, elsewhere.", {"board": "c"}))
        if given["round"] == 2:
            ctx.watches.clear()  # expired
            ctx.memories.append(("The road was wet at noon.", {"board": "b"}))
        if given["round"] == 3:
            ctx.missed = 1
            ctx.memories.append(("A road.", {"board": "b"}))
        return f"Nothing, {given['round']}."

    ctx: Any = ScriptedContext({"n": reads})
    ctx.memories.append(("The wet road dried.", {"board": "b"}))
    contributors = [{"agent": "n", "about": "wet road"}, {"agent": "n", "about": "wet road"}]
    job = {"goal": "g", "contributors": contributors, "board": "b", "k": 2, "threshold": 0.2, "rounds_max": 4}
    await blackboard(ctx, job)
    assert (
        shown[::2]
        == shown[1::2]
        == [
            ["The wet road dried."],
            ["The wet road dried.", "Another run saw a wet road."],
            ["The wet road dried.", "The road was wet at noon."],
            ["The wet road dried.", "The road was wet at noon."],
        ]
    )
    assert ctx.watches == {}


async def test_a_failing_contributor_is_told_and_if_all_fail_it_ends() -> None:
    agents = {"n": speaks({"a": 1}, None), "fail": fails}
    ctx: Any = ScriptedContext(agents)
    done = await blackboard(ctx, {"goal": "g", "contributors": [{"agent": "n"}, {"agent": "fail"}]})
    assert done["notes"] == ['{"a":1}']
    assert done["failed"] == {"1.1 fail": "broken: it broke", "2.1 fail": "broken: it broke"}
    message = await refused(
        blackboard, {"goal": "g", "contributors": [{"agent": "fail"}]}, "no_contribution", ScriptedContext(agents)
    )
    assert message == "round 1: all contributors failed: broken: it broke"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"goal": "g", "contributors": []}, "give a goal and contributors"),
        ({"goal": " ", "contributors": [{"agent": "a"}]}, "give a goal and contributors"),
        ({"goal": "g", "contributors": ["a"]}, "Expected `object`, got `str` - at `$.contributors[0]`"),
        ({"goal": "g", "contributors": [{"agent": "a"}], "rounds_max": 0}, "$.rounds_max"),
        ({"goal": "g", "contributors": [{"agent": "a"}], "k": 101}, "$.k"),
        ({"goal": "g", "contributors": [{"agent": "a"}], "threshold": 1.5}, "$.threshold"),
    ],
)
async def test_bad_input_of_blackboard(wanted: Any, words: str) -> None:
    assert words in await refused(blackboard, wanted, "bad_input")


# --- router ----------------------------------------------------------------------------------------

ROUTES = [
    {
        "agent": "billing",
        "examples": ["I was charged twice on my invoice", "refund my payment", "wrong price on the bill"],
    },
    {
        "agent": "technical",
        "examples": ["the app crashes when it starts", "error message after login", "cannot connect"],
    },
]
DESK: dict[str, Any] = {
    name: (lambda given, name=name: f"{name}: {given}") for name in ("billing", "technical", "desk")
}


@pytest.mark.parametrize(
    ("text", "agent"),
    [
        ("You charged my invoice two times", "billing"),
        ("please refund the payments", "billing"),
        ("after the update the app is crashing", "technical"),
        ("I get an error at the login", "technical"),
        ("Which opening hours do you have on Sunday?", "desk"),
    ],
)
async def test_an_input_goes_where_its_like_goes(text: str, agent: str) -> None:
    ctx: Any = ScriptedContext(DESK)
    done = await router(ctx, {"input": text, "routes": ROUTES, "fallback": "desk"})
    assert (done["agent"], done["by_fallback"]) == (agent, agent == "desk")
    assert done["result"] == f"{agent}: {text}"
    assert ctx.steps == ["route"]


async def test_part_of_the_input_is_compared_and_all_of_it_is_passed_on() -> None:
    ctx: Any = ScriptedContext(DESK)
    given = {"from": "a@b", "body": {"text": "refund my payment"}}
    done = await router(ctx, {"input": given, "routes": ROUTES, "text": "body.text"})
    assert (done["agent"], done["score"]) == ("billing", 1.0)
    assert ctx.spawned == [("billing", given)]


async def test_another_embedder_and_a_tie() -> None:
    ctx: Any = ScriptedContext(DESK)
    done = await routed(ctx, {"input": "x", "routes": ROUTES}, lambda texts: [[1.0, 0.0] for _ in texts])
    assert (done["agent"], done["scores"]) == ("billing", {"billing": 1.0, "technical": 1.0})


async def test_without_a_fallback_nothing_like_it_is_refused() -> None:
    message = await refused(router, {"input": "opening hours on Sunday", "routes": ROUTES}, "no_route")
    assert "as like it as 0.2, and there is no fallback: billing " in message


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"input": "x", "routes": []}, "there are 0 routes"),
        ({"input": "x", "routes": [{"agent": "a", "examples": []}]}, "'a' needs examples"),
        ({"input": "x", "routes": [{"agent": "a", "examples": [" "]}]}, "'a' needs examples"),
        ({"input": {"a": 1}, "routes": ROUTES}, "no text to compare"),
        ({"input": " ", "routes": ROUTES}, "no text to compare"),
        ({"input": "x", "routes": ROUTES, "threshold": 2}, "$.threshold"),
        ({"routes": ROUTES}, "missing required field `input`"),
    ],
)
async def test_bad_input_of_router(wanted: Any, words: str) -> None:
    assert words in await refused(router, wanted, "bad_input")


async def test_examples_of_the_errors_are_inputs_that_are_taken() -> None:
    """What an error shows as an example must itself be sound."""
    from swarmd.strategies import boards, debating, mapping, orchestrating, routing, voting
    from swarmd.strategies.asking import read

    kinds: list[tuple[Any, str]] = [
        (boards.Board, boards.EXAMPLE),
        (debating.Debate, debating.EXAMPLE),
        (mapping.MapReduce, mapping.EXAMPLE),
        (orchestrating.Job, orchestrating.EXAMPLE),
        (routing.Routing, routing.EXAMPLE),
        (voting.Vote, voting.EXAMPLE),
    ]
    for kind, example in kinds:
        assert read(kind, json.loads(example), "")
