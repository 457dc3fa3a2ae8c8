"""The agent of the demo's `library`: reads one document, summarises it and remembers it, passage by passage.

Everything is a step: whoever resumes reads no page and asks no model a second time. Must not know which model answers.
"""

from __future__ import annotations

import asyncio
import re
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from swarmd.demo_agents.prompts import SUMMARISE, request
from swarmd.demo_agents.texts import Digest, headings, headline, terms
from swarmd.sdk import agent
from swarmd.text import paragraphs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from swarmd.roles.context import Context

PASSAGE_CHARS: Final = 1_200
#: A part of a long document that is summarised by one model call; the summaries of the parts are summarised again.
PART_CHARS: Final = 12_000
PARTS_MAX: Final = 12
REMEMBERED_AT_ONCE: Final = 16
LINES_A_PAGE: Final = 400

_READ_ERROR = re.compile(r"error: (not_found|not_text|not_a_file|too_large|outside_roots|bad_path|io_error): ")
_CUT = re.compile(r"^\[\.\.\. \d+ bytes cut \.\.\.\]$", re.MULTILINE)


@agent
async def digest(ctx: Context, wanted: Any) -> Digest:
    """{"name", "path", "survey"} in: one document read, summarised and remembered; its `Digest` out."""
    name, survey = str(wanted["name"]), str(wanted["survey"])
    text = await _read(ctx, str(wanted["path"]))
    titles = headings(text)
    summary, model = await _summarise(ctx, text)
    labels = {"survey": survey, "document": name}
    passages = paragraphs(text, PASSAGE_CHARS)
    remembered = [await ctx.remember(summary, source=name, labels={**labels, "kind": "summary"})]
    for start in range(0, len(passages), REMEMBERED_AT_ONCE):
        some = passages[start : start + REMEMBERED_AT_ONCE]
        remembered += await asyncio.gather(*(ctx.remember(p, source=name, labels=labels) for p in some))
    return Digest(
        name=name,
        title=titles[0] if titles else name,
        headline=headline(summary),
        summary=summary,
        passages=len(passages),
        characters=len(text),
        model=model,
        seq=max(reply.seq for reply in remembered),
        headings=titles,
        terms=terms(text, titles),
    )


async def _read(ctx: Context, path: str) -> str:
    """A whole document through the tool, in pages when it is longer than the tool hands out at once."""
    text = await ctx.tool("read_file", {"path": path})
    _check_read(text, path)
    if not _CUT.search(text):
        return text
    pages: list[str] = []
    async for page in _pages(ctx, path):
        pages.append(page)
    return "".join(pages)


async def _pages(ctx: Context, path: str) -> AsyncIterator[str]:
    first, lines = 1, LINES_A_PAGE
    while True:
        page = await ctx.tool("read_file", {"path": path, "first_line": first, "lines": lines})
        if page.startswith("error: bad_arguments: "):
            return  # past the end
        _check_read(page, path)
        if _CUT.search(page) and lines > 1:
            lines = max(1, lines // 4)
            continue
        yield page
        first += lines


def _check_read(text: str, path: str) -> None:
    from swarmd.roles.attempt import AgentFailed

    failure = _READ_ERROR.match(text)
    if failure:
        raise AgentFailed("unreadable", f"{path}: {text.removeprefix('error: ')[:500]}", retryable=False)
    if not text.strip():
        raise AgentFailed("empty", f"{path} holds no text", retryable=False)


async def _summarise(ctx: Context, text: str) -> tuple[str, str]:
    """(summary, model that made it); a long text in parts first, each a step of its own."""
    parts = list(islice(paragraphs(text, PART_CHARS), PARTS_MAX))
    replies = [await ctx.model(request(SUMMARISE, part)) for part in parts]
    if len(replies) == 1:
        return replies[0].text, replies[0].model
    whole = await ctx.model(request(SUMMARISE, "\n\n".join(reply.text for reply in replies)))
    return whole.text, whole.model
