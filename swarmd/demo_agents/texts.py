"""What a survey of documents is made of, as pure text work: headings, themes, questions, citations, the report.

Job: everything about a survey that needs neither a model nor a memory, so that it can be read and tested alone.
How themes are found: a theme is a pair of neighbouring content words, or one word, that stands in some heading: what
authors name in headings is what they write about (a heading that several documents share belongs to a form). Each
is weighed by the number of documents that hold it times the logarithm of its count (in headings it counts twice), a
pair three times that; what stands in nearly every document, or in one only, says little and is left out (after Salton
& Buckley, "Term-weighting approaches in automatic text retrieval", 1988). Questions are the documents' own headings
that are questions, then one for each of the heaviest themes; the next themes are those of the report.
Must not know: agents, tasks, how the texts were made.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from swarmd.text import STOP_WORDS, sentences, stem, words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

QUESTIONS_MAX: Final = 5
THEMES_MAX: Final = 5
TERMS_MAX: Final = 200
HEADINGS_MAX: Final = 60
#: A theme that stands in a larger share of the documents (but at least this many) separates nothing.
SHARE_MAX, SPREAD_MIN = 0.8, 4
#: Pairs are rarer than words and say more.
PAIR_WEIGHT: Final = 3
_HASHED = re.compile(r"^ {0,3}#{1,6}[ \t]+(.*?)[ \t#]*$", re.MULTILINE)
_UNDERLINED = re.compile(r"^(\S.{2,100})\n([=\-~^*\"'`#+])\2{2,}[ \t]*$", re.MULTILINE)
_FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*(\.\. |:[\w -]+:).*$", re.MULTILINE)  # of reStructuredText
_MARKUP = re.compile(r"[*`_]+|:[a-z]+:(?=`)|\[(.*?)\]\([^)]*\)")
_CITATION = re.compile(r"\[(\d{1,6})\]")


class Digest(Struct, omit_defaults=True):
    """What is kept of one document: `terms` are themes with their counts, those in headings count twice."""

    name: str
    title: str
    headline: str
    summary: str
    passages: int
    characters: int
    model: str
    seq: int = 0
    headings: list[str] = field(default_factory=list)
    terms: dict[str, int] = field(default_factory=dict)


class Cited(Struct, omit_defaults=True):
    """A text whose `[n]` point into `sources` (names of documents, from 1)."""

    heading: str
    text: str
    sources: list[str] = field(default_factory=list)


def headings(text: str) -> list[str]:
    """The headings of Markdown or reStructuredText outside fenced code, in order, markup removed."""
    text = _FENCED.sub("", text)
    found = [(m.start(), m[1]) for m in _HASHED.finditer(text)]
    found += [(m.start(), m[1]) for m in _UNDERLINED.finditer(text) if not set(m[1]) <= set("=-~^*\"'`#+ ")]
    plain = (_MARKUP.sub(lambda m: m[1] or "", heading).strip() for _, heading in sorted(found))
    return [heading for heading in plain if words(heading)][:HEADINGS_MAX]


def headline(summary: str, chars_max: int = 160) -> str:
    """The first sentence of a summary on one line, cut at a word."""
    line = " ".join((sentences(summary) or [summary])[0].split())
    return line if len(line) <= chars_max else line[:chars_max].rsplit(" ", 1)[0] + " …"


def terms(text: str, titles: Sequence[str]) -> dict[str, int]:
    """The themes of a document with their counts; those in headings count twice."""
    counts: Counter[str] = Counter()
    for weight, lines in ((1, sentences(_DIRECTIVE.sub("", text))), (2, titles)):
        for line in lines:
            for theme in _themes(line):
                counts[theme] += weight
    best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return dict(best[:TERMS_MAX])


def _themes(line: str) -> list[str]:
    """Content words and pairs of neighbouring ones."""
    found: list[str] = []
    before = ""
    for word in words(line):
        if word in STOP_WORDS or len(word) < 3 or not word.isalpha():
            before = ""
            continue
        found.append(word)
        if before and stem(before) != stem(word):
            found.append(f"{before} {word}")
        before = word
    return found


def themes(digests: Sequence[Digest], count: int) -> list[str]:
    """The heaviest themes over all documents, no two of which share a stem."""
    spread: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for digest in digests:
        for theme, times in digest.terms.items():
            spread[theme] += 1
            total[theme] += times
    named = {stem(word) for heading in _own_headings(digests) for word in words(heading)}
    least = 1 if len(digests) < SPREAD_MIN else 2
    most = max(SPREAD_MIN, SHARE_MAX * len(digests))
    scored = [
        (spread[theme] * math.log1p(times) * (PAIR_WEIGHT if " " in theme else 1), theme)
        for theme, times in total.items()
        if least <= spread[theme] <= most and named.issuperset(map(stem, theme.split()))
    ]
    chosen: list[str] = []
    taken: set[str] = set()
    for _, theme in sorted(scored, key=lambda item: (-item[0], item[1])):
        own = {stem(word) for word in theme.split()}
        if not own & taken:
            chosen.append(theme)
            taken |= own
        if len(chosen) == count:
            break
    return chosen


def _own_headings(digests: Sequence[Digest]) -> list[str]:
    """Headings that say what a document is about: one that many share ("Context", "Status") is part of a form."""
    shared = Counter(heading.casefold() for digest in digests for heading in set(digest.headings))
    return [h for digest in digests for h in digest.headings if shared[h.casefold()] < SPREAD_MIN]


def plan(digests: Sequence[Digest], given: Sequence[str]) -> tuple[list[str], list[str]]:
    """(questions to answer, themes to report on). Given questions are taken as they are."""
    found = themes(digests, QUESTIONS_MAX + THEMES_MAX)
    if given:
        return list(given), found[:THEMES_MAX]
    own = [heading for heading in _own_headings(digests) if heading.endswith("?")]
    asked = list(dict.fromkeys(own))[: QUESTIONS_MAX // 2]
    wanted = QUESTIONS_MAX - len(asked)
    return [*asked, *(f"What about {theme}?" for theme in found[:wanted])], found[wanted:][:THEMES_MAX]


def passages_prompt(passages: Sequence[tuple[str, str]], question: str = "") -> str:
    """(source, text) pairs as the numbered passages that models are asked about, the question first."""
    numbered = [f"[{n}] {source}\n{text}" for n, (source, text) in enumerate(passages, 1)]
    return "\n\n".join([f"Question: {question}", *numbered] if question else numbered)


class Sources:
    """Numbers documents in the order in which they are first cited."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def number(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name) + 1

    def renumbered(self, cited: Cited) -> str:
        """The text with its citations pointing here; those that point nowhere are dropped."""

        def point(match: re.Match[str]) -> str:
            n = int(match[1])
            return f"[{self.number(cited.sources[n - 1])}]" if 1 <= n <= len(cited.sources) else ""

        return _CITATION.sub(point, cited.text).strip()


def render(
    digests: Sequence[Digest],
    answers: Sequence[Cited],
    sections: Sequence[Cited],
    skipped: Mapping[str, str],
    made: str,
) -> str:
    """The report as Markdown; `made` says how it was made, `skipped` maps documents to why they are not in it."""
    sources = Sources()
    lines = [f"# Survey of {len(digests)} documents", "", made, "", "## Questions and answers", ""]
    for answer in answers:
        lines += [f"### {answer.heading}", "", sources.renumbered(answer), ""]
    lines += ["## Across the documents", ""]
    for section in sections:
        lines += [f"### {section.heading[:1].upper()}{section.heading[1:]}", "", sources.renumbered(section), ""]
    lines += ["## Sources", ""]
    lines += [f"{n}. {name}" for n, name in enumerate(sources.names, 1)]
    lines += ["", "## Documents", "", "| Document | Characters | In one line |", "|---|---:|---|"]
    lines += [f"| {_cell(d.name)} | {d.characters:,} | {_cell(d.headline)} |" for d in digests]
    if skipped:
        lines += ["", "## Not read", ""]
        lines += [f"- {name}: {why}" for name, why in sorted(skipped.items())]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
