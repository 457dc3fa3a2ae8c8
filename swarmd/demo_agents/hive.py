"""The macro agent of the demo: `survey` runs in the hive's own workers and gives its work to the child swarms.

One `digest` for each document goes to the swarm `library`, then questions and themes to `desk`. It waits without a
slot, and its children are its steps. Must not know how many workers there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct, field

from swarmd.demo_agents.desk import Lookup
from swarmd.demo_agents.texts import Cited, Digest, plan, render
from swarmd.sdk import agent

if TYPE_CHECKING:
    from swarmd.core.wire import Outcome
    from swarmd.roles.attempt import Child
    from swarmd.roles.context import Context

LIBRARY: Final = "library"
DESK: Final = "desk"
#: So many documents are given out before the next ones are.
FAN_OUT: Final = 64


class Survey(Struct, forbid_unknown_fields=True):
    """The input of `survey`: `documents` maps names as reports show them to paths that the tools may read."""

    documents: dict[str, str]
    questions: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    made: str = ""


@agent
async def survey(ctx: Context, wanted: Any) -> dict[str, Any]:
    """A `Survey` in; {"markdown", "documents", "questions", "themes", "skipped", "model"} out."""
    from swarmd.roles.attempt import AgentFailed

    asked = msgspec.convert(wanted, Survey)
    skipped = dict(asked.skipped)
    digests = await _digests(ctx, asked, skipped)
    if not digests:
        raise AgentFailed("nothing_read", "none of the documents could be read", retryable=False)
    questions, subjects = plan(digests, asked.questions)
    seq = max(digest.seq for digest in digests)
    desk = [await ctx.spawn("answer", Lookup([question], ctx.task, seq), swarm=DESK) for question in questions]
    desk.append(await ctx.spawn("report", Lookup(subjects, ctx.task, seq), swarm=DESK))
    *answers, sections = [msgspec.convert(texts, list[Cited]) for texts in await ctx.gather(*desk)]
    models = sorted({digest.model for digest in digests})
    made = asked.made.format(model=", ".join(models))
    return {
        "markdown": render(digests, [one for some in answers for one in some], sections, skipped, made),
        "documents": len(digests),
        "passages": sum(digest.passages for digest in digests),
        "questions": questions,
        "themes": subjects,
        "skipped": skipped,
        "models": models,
    }


async def _digests(ctx: Context, asked: Survey, skipped: dict[str, str]) -> list[Digest]:
    """One child for each document, a bounded number of them at a time; what failed is noted in `skipped`."""
    digests: list[Digest] = []
    names = sorted(asked.documents)
    for start in range(0, len(names), FAN_OUT):
        some = names[start : start + FAN_OUT]
        children: list[Child] = []
        for name in some:
            wanted = {"name": name, "path": asked.documents[name], "survey": ctx.task}
            children.append(await ctx.spawn("digest", wanted, swarm=LIBRARY))
        for name, result in zip(some, await ctx.gather(*children, return_failures=True), strict=True):
            if isinstance(result, dict):
                digests.append(msgspec.convert(result, Digest))
            else:
                skipped[name] = _why(result)
    return digests


def _why(outcome: Outcome) -> str:
    error = outcome.error
    return f"{error.code}: {error.message}" if isinstance(error, msgspec.Struct) else outcome.state
