"""Words, stems, sentences and passages of plain text and Markdown.

Job: the one place that decides what a word or a sentence is, so that recall, ranking and summaries agree.
Invariants: pure and deterministic; text is only ever dropped or re-spaced, never rewritten, so whatever
`sentences` returns can be found again in its source; linear in the length of its input.
Limits: stop words, abbreviations and stemming are English; other languages are split by Unicode rules alone.
Must not know: models, stores, or what a text is wanted for.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

STOP_WORDS = frozenset(
    """a about above after again against all also am an and any are aren't as at be because been before being below
    between both but by can can't cannot could couldn't did didn't do does doesn't doing don't down during each either
    etc few for from further had hadn't has hasn't have haven't having he her here hers herself him himself his how i
    if in into is isn't it it's its itself just let's may me might more most must mustn't my myself no nor not of off
    on once only or other ought our ours ourselves out over own per rather same shall she should shouldn't so some
    such than that that's the their theirs them themselves then there there's these they they're this those through
    to too under until up upon us very via was wasn't we we're were weren't what what's when where whether which while
    who whom whose why will with within without won't would wouldn't yet you you're your yours yourself
    yourselves""".split()
)

# Never the end of a sentence, whatever follows.
_ABBREVIATIONS = frozenset(
    """al approx cap capt ch cf col dept dr ed eds e.g eg eq eqs esp est fig figs gen gov hon i.e ie incl lt mr mrs ms
    mt nr op p pp prof rep rev sec sen sgt st tab v viz vol vols vs""".split()
)
# The end of a sentence only if the next word is a usual sentence opener.
_AMBIGUOUS = frozenset("a.m co corp etc inc jr ltd no p.m ph.d sr u.k u.n u.s u.s.a".split())

# CJK has no spaces: one character is one word there.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\d+(?:[.,]\d+)+|[{_CJK}]|[^\W_{_CJK}]+(?:'[^\W_{_CJK}]+)*")
_DECIMAL = re.compile(r"[0-9][.,][0-9]")
_ASCII_WORDS = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}
_CJK_STOPS = "\u3002\uff01\uff1f"
_OPENING = "\"'\u201c\u2018\u00ab"
_CLOSING = "\"'\u201d\u2019\u00bb"
_END = re.compile(rf"[.!?\u2026]+[{_CLOSING})\]*_]*(?=\s)|[{_CJK_STOPS}]+[\u201d\u2019\u300d\u300f\uff09]*")
_LAST_WORD = re.compile(r"[\w.]*\Z")
_NEXT_WORD = re.compile(rf"[\s{_OPENING}(\[*_]*([^\W_]+)")

_FENCE = re.compile(r"\s*(?:[-*+]\s+|\d{1,9}[.)]\s+|>\s*)*(`{3,}(?=[^`]*$)|~{3,})")
_HEADING = re.compile(r" {0,3}#{1,6}(?:\s|$)")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-{2,})\s*$")
_RULE = re.compile(r"\s{0,3}([-*_=])(?:\s*\1){2,}\s*$")
_LIST_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,9}[.)])\s+(?:\[[ xX]\]\s+)?")
_QUOTE = re.compile(r"\s{0,3}(?:>\s?)+")
_TABLE_ROW = re.compile(r"\s*\|.*\|\s*$")
_TABLE_RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)+\|?\s*$")
_LINK_TARGET = re.compile(r" {0,3}\[[^\]\[]+\]:\s+\S")

_CODE_SPAN = re.compile(r"(``[^`\n]+``|`[^`\n]+`)")
_URL = r"[^()\s]*(?:\([^()\s]*\)[^()\s]*)*(?:\s+\"[^\"\n]*\")?"
_IMAGE = re.compile(rf"!\[[^\[\]]*\](?:\({_URL}\)|\[[^\[\]]*\])")
_LINK = re.compile(rf"\[([^\[\]]*)\](?:\(<?{_URL}>?\)|\[[^\[\]]*\])")
_STRONG = re.compile(r"(\*\*|__)(?=\S)([^*_\n]+)(?<=\S)\1")
_EMPHASIS = re.compile(r"(?<![\w*])([*_])(?=[^\s*_])([^*_\n]+)(?<=\S)\1(?![\w*])")
_TAG = re.compile(
    r"</?(?:a|b|i|u|p|br|hr|em|h[1-6]|li|ol|ul|td|th|tr|img|div|kbd|sub|sup|pre|code|span|table|thead|tbody|strong"
    r"|center|picture|source|details|summary)\b[^<>]*>",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """The words of a text in order, case-folded; numbers such as 2.15 and contractions stay whole."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    elif "'" not in text and not _DECIMAL.search(text):
        return text.translate(_ASCII_WORDS).split()  # the same in half the time: each word is letters and digits
    return _WORD.findall(text.casefold())


@cache
def _stemmer() -> tuple[Any, threading.Lock]:
    import snowballstemmer  # only where words are ranked: others need not load it

    return snowballstemmer.stemmer("english"), threading.Lock()


@lru_cache(maxsize=4_096)
def stem(word: str) -> str:
    """The Snowball English ("Porter2") stem of one case-folded word."""
    stemmer, lock = _stemmer()
    with lock:  # the stemmer keeps the word it works on as its own state
        return str(stemmer.stemWord(word))


class _Stems(dict[str, str]):
    """Stems by word, "" for stop words; begun anew when there are too many."""

    def __missing__(self, word: str) -> str:
        if len(self) >= _STEMS_MAX:
            self.clear()
        if len(word) > _WORD_CHARS_KEPT:
            return stem.__wrapped__(word)
        self[word] = found = "" if word in STOP_WORDS else stem(word)
        return found


_STEMS_MAX = 65_536
_WORD_CHARS_KEPT = 64  # what is longer is hardly a word: it may have 32 kB, and will not come again
_stems = _Stems()


def stems(text: str) -> list[str]:
    """The stems of a text in order, stop words dropped: what ranking and recall compare."""
    known = _stems
    return [found for word in words(text) if (found := known[word])]


def sentences(text: str) -> list[str]:
    """The sentences of plain text or Markdown, in order, each on one line.

    Dropped: fenced code, tables, headings, rules, images, front matter, comments, lines without a word. A list item
    ends its sentence. Links are reduced to their text, emphasis and code spans to what they enclose.
    """
    found = []
    for block in _prose_blocks(text):
        start = 0
        for end in (*_boundaries(block), len(block)):
            sentence = block[start:end].strip()
            start = end
            if _WORD.search(sentence.casefold()):
                found.append(sentence)
    return found


def paragraphs(text: str, chars_max: int) -> list[str]:
    """Split a document into passages of at most `chars_max` characters, for memory.

    Every passage is a slice of the text, in order, and together they hold all of it but white space. Passages end
    at headings and blank lines where they can, else at sentences, else at words.
    """
    if chars_max < 1:
        raise ValueError("chars_max must be at least 1")
    passages: list[str] = []
    start = end = 0  # the passage being gathered is text[start:end]
    for first, last in _blocks(text):
        is_new_section = bool(_HEADING.match(text, first)) and end - start >= chars_max // 4
        if end > start and (is_new_section or last - start > chars_max):
            passages.append(text[start:end])
            start = end = first
        if end == start:
            start = first
        if last - start <= chars_max:
            end = last
            continue
        for cut_start, cut_end in _cuts(text, first, last, chars_max):
            passages.append(text[cut_start:cut_end])
        start = end = last
    if end > start:
        passages.append(text[start:end])
    return passages


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Offsets of the runs of lines between blank lines, without white space at either end; fenced code is one run.

    A heading opens a run of its own so that `paragraphs` can see it.
    """
    start = end = offset = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        fence, was_fenced = _fence_after(fence, line), bool(fence)
        is_break = not was_fenced and (not bare or bool(_HEADING.match(line)))
        if is_break and end > start:
            yield start, end
            start = end
        if bare:
            if end <= start:
                start = offset + len(line) - len(line.lstrip()) if not _HEADING.match(line) else offset
            end = offset + len(line.rstrip())
        offset += len(line)
    if end > start:
        yield start, end


def _cuts(text: str, first: int, last: int, chars_max: int) -> Iterator[tuple[int, int]]:
    """Cut one block that is too long: greedily at its sentences, then at white space, then anywhere."""
    ends = [first + end for end in _boundaries(text[first:last])] + [last]
    at = 0
    while first < last:
        while first < last and text[first].isspace():
            first += 1
        limit = first + chars_max
        best = first
        while at < len(ends) and ends[at] <= limit:
            best, at = ends[at], at + 1
        if best <= first:
            best = min(limit, last)
            spaces = [text.rfind(space, first + 1, best + 1) for space in (" ", "\n")] if best < last else []
            best = max([best] if not spaces or max(spaces) <= first else spaces)
        cut = text[first:best].rstrip()
        if cut:
            yield first, first + len(cut)
        first = best


def _boundaries(block: str) -> Iterator[int]:
    """Offsets at which a sentence of the block ends, but for the last one."""
    for match in _END.finditer(block):
        end = match.end()
        if match[0][0] in _CJK_STOPS or not _is_inner(block, match):
            if end < len(block):
                yield end


def _is_inner(block: str, match: re.Match[str]) -> bool:
    """Whether this full stop belongs to an abbreviation, an initial or an unfinished sentence."""
    following = _NEXT_WORD.match(block, match.end())
    opener = following[1] if following else ""
    if opener[:1].islower():
        return True
    if not match[0].startswith(".") or match[0].startswith(".."):
        return False
    before = _LAST_WORD.search(block, max(0, match.start() - 40), match.start())
    word = before[0].lstrip("._").casefold() if before else ""
    if word in _ABBREVIATIONS:
        return True
    is_initial = bool(before) and len(word) == 1 and block[match.start() - 1].isupper()
    if is_initial and len(opener) == 1:  # J. A. Doe
        return True
    if is_initial or word in _AMBIGUOUS:
        return opener.isdigit() or opener.casefold() not in STOP_WORDS
    return False


def _fence_after(fence: str, line: str) -> str:
    """The fence that is open after this line: "" outside code, else the run of marks that opened it."""
    if fence:
        bare = line.strip().lstrip("> ")
        return "" if len(bare) >= len(fence) and not bare.strip(fence[0]) else fence
    match = _FENCE.match(line.rstrip())
    return match[1] if match else ""


def _without_comments(text: str) -> str:
    """Drop HTML comments and YAML front matter. Not a regular expression: unclosed comments would cost n²."""
    if text.startswith("---\n"):
        close = text.find("\n---\n", 3)
        text = text[close + 5 :] if 0 < close < 4_000 else text
    kept, start = [], 0
    while (opened := text.find("<!--", start)) >= 0 and (closed := text.find("-->", opened + 4)) >= 0:
        kept.append(text[start:opened])
        start = closed + 3
    return "".join([*kept, text[start:]])


def _prose_blocks(text: str) -> Iterator[str]:
    """Paragraphs and list items as single lines of plain text; everything that is not prose is left out."""
    block: list[str] = []
    fence, in_table = "", False
    lines = _without_comments(text).splitlines()
    for index, raw in enumerate(lines):
        fence, was_fenced = _fence_after(fence, raw), bool(fence)
        line = raw[quote.end() :] if (quote := _QUOTE.match(raw)) else raw
        below = lines[index + 1] if index + 1 < len(lines) else ""
        in_table = "|" in line and (in_table or bool(_TABLE_RULE.match(below)) or bool(_TABLE_ROW.match(line)))
        if _UNDERLINE.match(line) and len(block) == 1 and not _END.search(block[0] + " "):
            block = []  # it underlined a heading
        is_break = bool(fence or was_fenced or in_table or not line.strip() or _HEADING.match(line))
        is_break = is_break or bool(_RULE.match(line) or _UNDERLINE.match(line) or _LINK_TARGET.match(line))
        item = None if is_break else _LIST_ITEM.match(line)
        if (is_break or item) and block:
            yield _plain(block)
            block = []
        if not is_break:
            block.append(line[item.end() :] if item else line)
    if block:
        yield _plain(block)


def _plain(lines: list[str]) -> str:
    """Join wrapped lines and strip inline Markdown; code spans keep what they enclose untouched."""
    parts = _CODE_SPAN.split(_IMAGE.sub("", " ".join(line.strip() for line in lines)))
    for index, part in enumerate(parts):
        if index % 2:
            parts[index] = part.strip("`")
        else:
            parts[index] = part.replace("\t", " ")
    text = _LINK.sub(r"\1", "".join(_shield(part, index % 2) for index, part in enumerate(parts)))
    text = _EMPHASIS.sub(r"\2", _STRONG.sub(r"\2", _TAG.sub("", text)))
    return " ".join(_unshield(text).split())


# Inside code spans the marks of Markdown are text: they are moved to private characters while it is stripped.
_SHIELD = {ord(mark): 0xF0000 + ord(mark) for mark in "*_[]()<>!"}
_UNSHIELD = {private: mark for mark, private in _SHIELD.items()}


def _shield(part: str, is_code: int) -> str:
    return part.translate(_SHIELD) if is_code else part


def _unshield(text: str) -> str:
    return text.translate(_UNSHIELD)
