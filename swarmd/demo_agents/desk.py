"""The agents of the demo's `desk`: answer questions and report on themes from recalled passages, with their sources.

Must not know who remembered the passages, nor which model answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from swarmd.demo_agents.prompts import ANSWER, REPORT, request
from swarmd.demo_agents.texts import Cited, passages_prompt
from swarmd.sdk import agent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swarmd.core.memory_wire import RecalledPassage
    from swarmd.roles.context import Context

RECALLED: Final = 8


class Lookup(Struct, forbid_unknown_fields=True):
    """The input of `answer` and `report`: what to ask, and where: one survey's memories, as new as `seq`."""

    subjects: list[str]
    survey: str
    seq: int = 0


@agent
async def answer(ctx: Context, wanted: Any) -> list[Cited]:
    """A `Lookup` of questions in, an answer with its sources for each out."""
    return await _look_up(ctx, wanted, lambda question: ANSWER, is_question=True)


@agent
async def report(ctx: Context, wanted: Any) -> list[Cited]:
    """A `Lookup` of themes in, a section with its sources for each out."""
    return await _look_up(ctx, wanted, lambda theme: REPORT.format(theme=theme), is_question=False)


async def _look_up(ctx: Context, wanted: Any, instructions: Callable[[str], str], *, is_question: bool) -> list[Cited]:
    lookup = msgspec.convert(wanted, Lookup)
    texts: list[Cited] = []
    for subject in lookup.subjects:
        found = await ctx.recall(subject, k=RECALLED, labels={"survey": lookup.survey}, at_least_seq=lookup.seq)
        if not found:
            texts.append(Cited(subject, "The documents hold nothing on this."))
            continue
        prompt = passages_prompt([(p.source, p.text) for p in found], subject if is_question else "")
        reply = await ctx.model(request(instructions(subject), prompt))
        texts.append(Cited(subject, reply.text, _sources(found)))
    return texts


def _sources(found: Sequence[RecalledPassage]) -> list[str]:
    return [passage.source for passage in found]
