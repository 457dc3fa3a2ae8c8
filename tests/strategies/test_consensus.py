"""consensus over a scripted context: what each rule makes of several swarms' results."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.errors import Rejected
from swarmd.strategies import agreed, consensus
from tests.strategies.scripted import ScriptedContext

SWARMS = ["north", "south", "east"]


def fails(given: Any) -> Any:
    raise Rejected("broken", "it broke")


def says(**answers: Any) -> dict[str, Any]:
    """Agents `work@swarm` that give these answers; one that is `fails` fails."""

    def function(answer: Any) -> Any:
        return answer if answer is fails else lambda given: answer

    return {f"work@{swarm}": function(answer) for swarm, answer in answers.items()}


def job(**fields: Any) -> dict[str, Any]:
    return {"agent": "work", "input": "q", "swarms": SWARMS} | fields


async def refused(ctx: Any, wanted: Any, code: str) -> str:
    with pytest.raises(Rejected) as caught:
        await consensus(ctx, wanted)
    assert caught.value.code == code, caught.value.message
    return caught.value.message


async def test_the_first_result_counts_and_the_others_are_cancelled() -> None:
    slow = {"work@north": 9.0, "work@south": 2.0, "work@east": 1.0}
    ctx: Any = ScriptedContext(says(north=1, south=2, east=fails), seconds=lambda agent, given: slow[agent])
    done = await consensus(ctx, job(rule="first"))
    assert done == {
        "answer": 2,
        "rule": "first",
        "by": ["south"],
        "failed": {"east": "broken: it broke"},
        "cancelled": ["north"],
        "conflict": False,
    }
    assert ctx.cancelled == ["t~1"]
    assert [agent for agent, _ in ctx.spawned] == ["work@north", "work@south", "work@east"]


async def test_a_quorum_agrees_by_equal_json() -> None:
    same = {"north": {"b": 1.0, "a": [1]}, "south": {"a": [1], "b": 1}}
    ctx: Any = ScriptedContext(says(**same, east="x"), seconds=lambda agent, given: 9.0 if "east" in agent else 1.0)
    done = await consensus(ctx, job())
    assert (done["answer"], done["by"], done["cancelled"], done["conflict"]) == (
        {"b": 1.0, "a": [1]},
        ["north", "south"],
        ["east"],
        False,
    )
    assert ctx.conflicts == []


async def test_a_disagreement_is_recorded_with_who_said_what() -> None:
    ctx: Any = ScriptedContext(says(north="a", south="b", east="b", west=fails))
    done = await consensus(ctx, job(swarms=[*SWARMS, "west"], enough=2))
    assert (done["answer"], done["by"], done["conflict"]) == ("b", ["south", "east"], True)
    assert ctx.conflicts == [
        {
            "rule": "quorum",
            "said": [{"swarms": ["south", "east"], "result": "b"}, {"swarms": ["north"], "result": "a"}],
            "failed": {},
        }
    ]


async def test_a_quorum_that_cannot_be_fails_with_the_conflict_recorded() -> None:
    ctx: Any = ScriptedContext(says(north="a", south="b", east=fails))
    message = await refused(ctx, job(), "no_agreement")
    assert message.startswith('2 swarms must agree: north said "a"; south said "b"')
    ctx = ScriptedContext(says(north="a", south="b", east="c"))
    await refused(ctx, job(enough=3), "no_agreement")
    assert ctx.cancelled == ["t~3"]
    assert [len(conflict["said"]) for conflict in ctx.conflicts] == [2]


async def test_a_large_result_is_told_of_by_its_hash() -> None:
    ctx: Any = ScriptedContext(says(north="x" * 10_000, south="y", east="y"))
    assert (await consensus(ctx, job()))["answer"] == "y"
    (conflict,) = ctx.conflicts
    assert set(conflict["said"][1]) == {"swarms", "sha256", "bytes", "begins"}


async def test_an_agent_merges_all_results_in_their_declared_order() -> None:
    slow = {"work@north": 5.0, "work@south": 1.0, "work@east": 3.0, "join": 1.0}
    agents = says(north="n", south="s", east=fails) | {"join": lambda given: {"all": given}}
    ctx: Any = ScriptedContext(agents, seconds=lambda agent, given: slow[agent])
    done = await consensus(ctx, job(rule="merge", merge={"agent": "join", "take": "all"}))
    assert done["answer"] == {"results": {"north": "n", "south": "s"}, "failed": {"east": "broken: it broke"}}
    assert (done["by"], done["conflict"], done["cancelled"]) == (["north", "south"], True, [])


async def test_a_function_merges_what_is_enough() -> None:
    slow = {"work@north": 9.0, "work@south": 1.0, "work@east": 3.0}
    ctx: Any = ScriptedContext(says(north=1, south=2, east=3), seconds=lambda agent, given: slow[agent])
    done = await agreed(ctx, job(rule="merge", enough=2), lambda results: sum(results.values()))
    assert (done["answer"], done["by"], done["cancelled"]) == (5, ["south", "east"], ["north"])
    assert ctx.steps == ["merge"]


async def test_too_few_results_are_none() -> None:
    ctx: Any = ScriptedContext(says(north=fails, south=fails, east=1), seconds=lambda a, g: 9.0 if "east" in a else 1.0)
    with pytest.raises(Rejected, match="at least 2 must give a result: north failed"):
        await agreed(ctx, job(rule="merge", enough=2), dict)
    assert ctx.cancelled == ["t~3"]
    ctx = ScriptedContext(says(north=fails, south=fails, east=fails))
    assert "at least 1 must give a result" in await refused(ctx, job(rule="first"), "no_result")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"swarms": []}, "there are 0 swarms"),
        ({"swarms": ["a", "a"]}, "a swarm is named twice"),
        ({"enough": 4}, "there are only 3 swarms"),
        ({"rule": "first", "enough": 1}, "leave `enough` out"),
        ({"rule": "merge"}, "the rule merge needs an agent"),
        ({"merge": "join"}, "the rule merge needs an agent"),
        ({"rule": "coin"}, "Invalid enum value"),
        ({"agent": {"model": "m"}}, "agent must name an agent"),
    ],
)
async def test_bad_input(fields: dict[str, Any], words: str) -> None:
    assert words in await refused(ScriptedContext(says(north=1)), job(**fields), "bad_input")


async def test_a_swarm_has_a_name() -> None:
    await refused(ScriptedContext(), job(swarms=["no.dots"]), "bad_name")


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["a", "b", fails]), min_size=1, max_size=5),
    st.sampled_from(["first", "quorum", "merge"]),
    st.permutations(range(5)),
)
async def test_a_resumed_consensus_ends_the_same(answers: list[Any], rule: str, order: list[int]) -> None:
    swarms = [f"s{n}" for n in range(len(answers))]
    agents = says(**dict(zip(swarms, answers, strict=True)))
    wanted = job(swarms=swarms, rule=rule)

    async def ended(ctx: Any) -> Any:
        try:
            return await agreed(ctx, wanted, (lambda results: results) if rule == "merge" else None)
        except Rejected as error:
            return error.message

    ctx = ScriptedContext(agents, seconds=lambda agent, given: float(order[int(agent[-1])]))
    first = await ended(ctx)
    resumed = ScriptedContext(agents, verdicts=ctx.verdicts)
    assert await ended(resumed) == first
    assert (resumed.cancelled, resumed.conflicts) == (ctx.cancelled, ctx.conflicts)
