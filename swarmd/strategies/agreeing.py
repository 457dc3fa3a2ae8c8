"""consensus: the same task is worked by several child swarms on purpose, and a declared rule reconciles what they say.

Whoever is not needed any more is cancelled. Where results differ, who said what is a step of its own in the journal, of
kind `conflict`. Must not know what the task is about, nor how a swarm works it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from swarmd.core.errors import Rejected
from swarmd.core.ids import check_name
from swarmd.core.wire import Outcome
from swarmd.sdk import agent
from swarmd.strategies.asking import AnyCall, Call, agent_call, failure_of, input_for, read, taken
from swarmd.strategies.votes import canonical, tally

if TYPE_CHECKING:
    from swarmd.roles.attempt import Child
    from swarmd.roles.context import Context

SWARMS_MAX: Final = 100
#: A result of more bytes is told of in a conflict by its hash and its beginning.
TOLD_BYTES_MAX: Final = 4_096
EXAMPLE: Final = '{"agent": "price", "input": "order-4711", "swarms": ["north", "south", "east"], "rule": "quorum"}'
Rule = Literal["first", "quorum", "merge"]
#: What makes one result of those of several swarms, by the swarm's name.
Merge = Callable[[Mapping[str, Any]], Any]


class Consensus(Struct, frozen=True, forbid_unknown_fields=True):
    """`agent` works `input` once in each of `swarms`. The `rule` says what holds.

    first: the first result. quorum: a result that `enough` swarms gave (0: more than half), equal as JSON. merge: what
    the agent `merge` makes of all results, or of the first `enough` (0: of all that there will be).
    """

    agent: AnyCall
    input: Any
    swarms: list[str]
    rule: Rule = "quorum"
    enough: Annotated[int, Meta(ge=0, le=SWARMS_MAX)] = 0
    merge: AnyCall | None = None


class Poll(Struct):
    """What the swarms have said so far, in the order of their verdicts. `forms` are answers as they are compared."""

    swarms: int
    answers: dict[str, Any] = {}
    forms: dict[str, str] = {}
    failed: dict[str, str] = {}

    @property
    def outstanding(self) -> int:
        return self.swarms - len(self.answers) - len(self.failed)

    def ranked(self) -> list[tuple[str, int]]:
        """The different answers with how many gave each, most first."""
        return tally(dict(enumerate(self.forms.values())))


@agent
async def consensus(ctx: Context, wanted: Any) -> dict[str, Any]:
    """A `Consensus` in; {"answer", "rule", "by", "failed", "cancelled", "conflict"} out.

    `by` are the swarms whose results the answer is, `conflict` whether results differed. Raises `Rejected`:
    `bad_input`, `no_agreement`, `no_result`.
    """
    return await agreed(ctx, wanted)


async def agreed(ctx: Context, wanted: Any, merge: Merge | None = None) -> dict[str, Any]:
    """`consensus` with a function of your own for the rule merge; it may be async, and runs as a step."""
    job = read(Consensus, wanted, EXAMPLE)
    call = agent_call(job.agent, "agent", ("input", "swarm"))
    merger = _checked(job, merge)
    children: dict[str, Child] = {}
    for swarm in job.swarms:
        given = input_for(call, {"input": job.input, "swarm": swarm}, job.input)
        children[swarm] = await ctx.spawn(call.agent, given, swarm=swarm)
    poll, waiting = Poll(len(children)), dict(children)
    while not settled(job, poll):
        ((child, result), *_) = await ctx.first(*waiting.values())
        swarm = next(name for name, one in waiting.items() if one.task == child.task)
        del waiting[swarm]
        _count(poll, swarm, taken(call, child, result))
    if waiting:
        await ctx.cancel(*waiting.values(), reason=f"the rule {job.rule} is met or cannot be")
    differ = len(set(poll.forms.values())) > 1
    if differ:
        await ctx.conflict(told(job.rule, poll))
    answer, by = await _answer(ctx, job, poll, merger, merge)
    done = {"answer": answer, "rule": job.rule, "by": by, "failed": poll.failed}
    return done | {"cancelled": list(waiting), "conflict": differ}


def _checked(job: Consensus, merge: Merge | None) -> Call | None:
    """Raise `Rejected("bad_input")` for what cannot be run; the call that merges, if one does."""
    if not job.swarms or len(job.swarms) > SWARMS_MAX:
        raise Rejected(
            "bad_input", f"there are {len(job.swarms)} swarms: give 1 to {SWARMS_MAX}; for example {EXAMPLE}"
        )
    for swarm in job.swarms:
        check_name("swarm", swarm)
    if len(set(job.swarms)) < len(job.swarms):
        raise Rejected("bad_input", "a swarm is named twice: it would agree with itself")
    if job.enough > len(job.swarms):
        raise Rejected("bad_input", f"enough is {job.enough}, but there are only {len(job.swarms)} swarms")
    if job.enough and job.rule == "first":
        raise Rejected("bad_input", "for the rule first one result is enough: leave `enough` out")
    if (job.rule == "merge") != (job.merge is not None or merge is not None):
        raise Rejected(
            "bad_input", "the rule merge needs an agent `merge` (or a function, from Python), and only that one"
        )
    return None if job.merge is None else agent_call(job.merge, "merge", ("results", "failed", "input"))


def _count(poll: Poll, swarm: str, answer: Any) -> None:
    if isinstance(answer, Outcome):
        poll.failed[swarm] = failure_of(answer)
    else:
        poll.answers[swarm], poll.forms[swarm] = answer, canonical(answer, "json")


def needed(job: Consensus) -> int:
    """How many results the rule needs: equal ones for a quorum."""
    if job.rule == "quorum":
        return job.enough or len(job.swarms) // 2 + 1
    return job.enough or 1


def settled(job: Consensus, poll: Poll) -> bool:
    """Whether nothing that is outstanding can change what follows."""
    if not poll.outstanding:
        return True
    need = needed(job)
    if job.rule == "quorum":
        most = max((count for _, count in poll.ranked()), default=0)
        return most >= need or most + poll.outstanding < need
    if job.rule == "merge" and not job.enough:
        return False
    return len(poll.answers) >= need or len(poll.answers) + poll.outstanding < need


async def _answer(
    ctx: Context, job: Consensus, poll: Poll, merger: Call | None, merge: Merge | None
) -> tuple[Any, list[str]]:
    """The answer and whose it is. Raises `Rejected("no_agreement" | "no_result")`."""
    need, ranked = needed(job), poll.ranked()
    if job.rule == "quorum":
        if not ranked or ranked[0][1] < need:
            raise Rejected("no_agreement", f"{need} swarms must agree: {_said(poll)}")
        by = [swarm for swarm in job.swarms if poll.forms.get(swarm) == ranked[0][0]]
        return poll.answers[by[0]], by
    if len(poll.answers) < need:
        raise Rejected("no_result", f"at least {need} must give a result: {_said(poll)}")
    if job.rule == "first":
        by = list(poll.answers)[:1]
        return poll.answers[by[0]], by
    results = {swarm: poll.answers[swarm] for swarm in job.swarms if swarm in poll.answers}
    by = list(results)
    if merger is None:
        assert merge is not None
        return await ctx.step("merge", merge, results), by
    values = {"results": results, "failed": poll.failed, "input": job.input}
    child = await ctx.spawn(merger.agent, input_for(merger, values, {"results": results, "failed": poll.failed}))
    (result,) = await ctx.gather(child)
    merged = taken(merger, child, result)
    if isinstance(merged, Outcome):
        raise Rejected("no_result", f"the merged result cannot be used: {failure_of(merged)}")
    return merged, by


def told(rule: Rule, poll: Poll) -> dict[str, Any]:
    """A conflict, as it is recorded: each different result, and which swarms gave it."""
    said = []
    for form, _ in poll.ranked():
        by = [swarm for swarm, own in poll.forms.items() if own == form]
        said.append({"swarms": by, **_quoted(form, poll.answers[by[0]])})
    return {"rule": rule, "said": said, "failed": poll.failed}


def _quoted(form: str, answer: Any) -> dict[str, Any]:
    payload = form.encode()
    if len(payload) <= TOLD_BYTES_MAX:
        return {"result": answer}
    return {"sha256": hashlib.sha256(payload).hexdigest(), "bytes": len(payload), "begins": form[:200]}


def _said(poll: Poll) -> str:
    groups = [
        f"{', '.join(s for s, own in poll.forms.items() if own == form)} said {form[:60]}" for form, _ in poll.ranked()
    ]
    groups += [f"{swarm} failed ({why[:100]})" for swarm, why in poll.failed.items()]
    return "; ".join(groups) or "nobody answered"
