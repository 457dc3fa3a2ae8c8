"""The offline model: honest, deterministic and extractive. It writes nothing; it chooses sentences.

Job: a `Model` that needs no network and no key. Whatever it answers is made of its input's own sentences.
How it reads a request: it looks at the last user turn only, under a plain-text convention that an LLM follows too.

    Question: how long is a lease?          <- in the first paragraph, or the last line; without it: summarise

    [1] docs/leases.md                      <- opens passage 1; the rest of the line names its source
    A lease lasts three heartbeats. ...

    [2] docs/health.md                      <- numbers rise, and a blank line stands before each
    ...

Passages are looked for if there is a question or if the turn opens with such a line; otherwise the whole turn is one
text, so instructions belong in the system turn (or before the first passage, where they are passed over).

Method: a summary is the sentences that rank highest by LexRank, chosen by maximal marginal relevance, in their
original order; an answer is the sentences that rank highest by BM25 for the question, with LexRank as a prior, best
first (papers: see `swarmd.ranking`). Each sentence has a line of its own, and ends in `[n]` if it is of passage n.
Tools on offer are ignored. Usage is estimated: characters / 4.
Must not know: agents, prompts, memory; it never pretends to be a language model.
"""

from __future__ import annotations

import asyncio
import math
import re
from typing import TYPE_CHECKING

from msgspec import Struct

from swarmd.core.errors import Rejected
from swarmd.core.turns import Finish, ModelReply, ModelRequest, Usage
from swarmd.ranking import bm25, centrality, diverse, lexrank, tf_idf
from swarmd.text import sentences, stems

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL_NAME = "offline:extractive"
OFFLINE_NOTICE = (
    "Made offline, without a language model: every sentence below was chosen from the sources by word statistics "
    "(LexRank and BM25), none was written. Set a model to get texts that are written."
)
NOTHING_ANSWERS = "Nothing in the given passages answers this."
NOTHING_TO_SUMMARISE = "The given text has no sentence to summarise."

CHARS_MAX = 2_000_000
# LexRank compares all pairs, so longer texts are thinned out first: the sentences nearest to the centroid of all
# (for a question: the best by BM25) stay.
GRAPH_SENTENCES_MAX = 400
SUMMARY_SENTENCES_MIN, SUMMARY_SENTENCES_MAX = 3, 8
ANSWER_SENTENCES_MAX = 4
# A sentence far below the best one answers something else.
ANSWER_SCORE_SHARE_MIN = 0.4
# LexRank weighs this much against BM25, both scaled to at most 1.
PRIOR_WEIGHT = 0.2
# Longer ones are lists or tables in disguise, shorter ones labels; they are taken only if there is nothing else.
SENTENCE_CHARS_MAX = 500
SENTENCE_STEMS_MIN = 4
# Shorter texts are ranked in a few milliseconds: not worth a thread.
INLINE_CHARS_MAX = 4_000

_QUESTION = re.compile(r"question:[ \t]*(\S.*)", re.IGNORECASE)
_STOPS = (".", "!", "?", "\u2026", "\u3002")
_PASSAGE = re.compile(r"\[(\d{1,6})\](?:[ \t]+\S.*)?$")


class Sentence(Struct, frozen=True):
    """A sentence of passage `passage` (0: of a text without passages); `index` is its place in the whole."""

    text: str
    stems: tuple[str, ...]
    passage: int
    index: int


class ExtractiveModel:
    """Implements `Model` by extraction; equal requests get equal replies, on every machine."""

    def __init__(self) -> None:
        self.name = MODEL_NAME

    async def complete(self, request: ModelRequest, on_delta: Callable[[str], None] | None = None) -> ModelReply:
        """Summarise or answer from the last user turn; `on_delta` gets the text line by line.

        Raises `Rejected("no_user_turn")`, and `Rejected("input_too_large")` above 2,000,000 characters.
        """
        user = next((turn.content for turn in reversed(request.turns) if turn.role == "user"), None)
        if user is None:
            raise Rejected("no_user_turn", "the offline model needs a user turn with the text to work on")
        if len(user) > CHARS_MAX:
            raise Rejected(
                "input_too_large",
                f"the user turn has {len(user)} characters, the offline model takes {CHARS_MAX}: split the text",
            )
        if len(user) <= INLINE_CHARS_MAX:
            text, finish = extract(user, request.max_output_tokens)
        else:  # ranking is pure computation: in a thread it does not hold up heartbeats
            text, finish = await asyncio.to_thread(extract, user, request.max_output_tokens)
        if on_delta is not None:
            for line in text.splitlines(keepends=True):
                on_delta(line)
        chars = sum(len(turn.content) for turn in request.turns)
        usage = Usage(math.ceil(chars / 4), math.ceil(len(text) / 4), estimated=True, cost_microusd=0)
        return ModelReply(text=text, finish=finish, model=MODEL_NAME, usage=usage)

    async def close(self) -> None:
        """Nothing is held."""


def extract(user: str, output_tokens_max: int | None = None) -> tuple[str, Finish]:
    """Answer or summarise one user turn (format: see the module). Pure; about 0.1 s for 100,000 characters."""
    question, passages = _read_turn(user)
    found = _sentences(passages)
    if question:
        chosen, nothing = _answer(question, found), NOTHING_ANSWERS
    else:
        chosen, nothing = _summary(found), NOTHING_TO_SUMMARISE
    if not chosen:
        return nothing, "stop"
    return _fit(chosen, output_tokens_max, is_ordered=not question)


def _read_turn(user: str) -> tuple[str, list[tuple[int, str]]]:
    """Split a user turn into its question ("" for none) and its numbered passages."""
    lines = user.splitlines()
    question, at = _find_question(lines)
    if question:
        del lines[at]
    first = next((line for line in lines if line.strip()), "")
    if not question and not _PASSAGE.match(first):
        return "", [(0, user)]
    passages: list[tuple[int, list[str]]] = [(0, [])]
    after_blank = True
    for index, line in enumerate(lines):
        header = _PASSAGE.match(line) if after_blank or index == at else None
        if header and int(header[1]) > passages[-1][0]:
            passages.append((int(header[1]), []))
        else:
            passages[-1][1].append(line)
        after_blank = not line.strip()
    texts = [(number, "\n".join(body)) for number, body in passages]
    return question, texts[1:] or texts


def _find_question(lines: list[str]) -> tuple[str, int]:
    """The first `Question:` line of the first paragraph, else the last line if it is one, and its index."""
    filled = [index for index, line in enumerate(lines) if line.strip()]
    if not filled:
        return "", 0
    first = last = filled[0]
    while last + 1 < len(lines) and lines[last + 1].strip():
        last += 1
    for index in (*range(first, last + 1), filled[-1]):
        if match := _QUESTION.match(lines[index].strip()):
            return match[1].strip(), index
    return "", 0


def _sentences(passages: list[tuple[int, str]]) -> list[Sentence]:
    """All sentences in order; of those with equal words only the first."""
    found: list[Sentence] = []
    seen: set[tuple[str, ...]] = set()
    for number, text in passages:
        for sentence in sentences(text):
            terms = tuple(stems(sentence))
            if terms and terms not in seen:
                seen.add(terms)
                found.append(Sentence(sentence, terms, number, len(found)))
    return found


def _summary(found: list[Sentence]) -> list[Sentence]:
    """The sentences of a summary, most important first; the square root of their number, within bounds."""
    count = min(SUMMARY_SENTENCES_MAX, max(SUMMARY_SENTENCES_MIN, math.isqrt(len(found))))
    whole = [s for s in found if len(s.stems) >= SENTENCE_STEMS_MIN and len(s.text) <= SENTENCE_CHARS_MAX]
    ended = [s for s in whole if s.text.rstrip("\"')]*_\u201d\u2019\u00bb").endswith(_STOPS)]
    candidates = next((some for some in (ended, whole) if len(some) >= count), found)
    if len(candidates) > GRAPH_SENTENCES_MAX:
        scores = centrality(tf_idf([s.stems for s in candidates]))
        candidates = _best(candidates, scores, GRAPH_SENTENCES_MAX)
    vectors = tf_idf([s.stems for s in candidates])
    return [candidates[index] for index in diverse(lexrank(vectors), vectors, count)]


def _answer(question: str, found: list[Sentence]) -> list[Sentence]:
    """The sentences of an answer, best first; none if no sentence shares a stem with the question."""
    scores = bm25(stems(question), [s.stems for s in found])
    candidates = _best(found, scores, GRAPH_SENTENCES_MAX)
    vectors = tf_idf([s.stems for s in candidates])
    ranks = lexrank(vectors)
    top, rank_top = max(scores, default=0.0), max(ranks, default=0.0)
    pool = [index for index, s in enumerate(candidates) if scores[s.index] > ANSWER_SCORE_SHARE_MIN * top]
    if not top or not pool:
        return []
    merits = [scores[candidates[i].index] / top + PRIOR_WEIGHT * ranks[i] / rank_top for i in pool]
    order = diverse(merits, [vectors[index] for index in pool], ANSWER_SENTENCES_MAX)
    return [candidates[pool[index]] for index in order]


def _best(found: list[Sentence], scores: list[float], count: int) -> list[Sentence]:
    """The `count` best by score, in original order; `scores` runs parallel to `found`."""
    order = sorted(range(len(found)), key=lambda index: (-scores[index], index))[:count]
    return [found[index] for index in sorted(order)]


def _fit(chosen: list[Sentence], output_tokens_max: int | None, *, is_ordered: bool) -> tuple[str, Finish]:
    """Write down as many of the chosen as fit, best first; a best one that alone is too long is cut at a word."""
    room = math.inf if output_tokens_max is None else output_tokens_max * 4
    kept: list[Sentence] = []
    for sentence in chosen:
        size = len(_cited(sentence)) + bool(kept)
        if size <= room:
            kept.append(sentence)
            room -= size
    if not kept:
        limit = int(room)
        text = chosen[0].text[: limit + 1]
        return (text.rsplit(None, 1)[0] if len(text.split()) > 1 else text[:limit]).strip(), "length"
    if is_ordered:
        kept.sort(key=lambda sentence: sentence.index)
    return "\n".join(map(_cited, kept)), "stop" if len(kept) == len(chosen) else "length"


def _cited(sentence: Sentence) -> str:
    return f"{sentence.text} [{sentence.passage}]" if sentence.passage else sentence.text
