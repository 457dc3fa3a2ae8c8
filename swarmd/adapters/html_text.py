"""The readable text of an HTML page.

Job: title and blocks as plain lines. Why not `html.parser`: many of its versions take time quadratic in the length
of a broken page (measured: 14 s for 40 kB of "<a "), and pages come from strangers.
Invariants: pure; linear in the length of the page, whatever it holds; never raises.
Must not know: where the page came from.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# A quoted value may hold ">", but a tag never reaches past the next "<": that keeps the whole linear.
_TAG = re.compile(r"""<(/?)([a-zA-Z][^\s/<>]*)(?:[^<>"']|"[^"<]*"|'[^'<]*')*+>""")
_LOOSE_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/<>]*)[^<>]*(?:>|(?=<)|\Z)")
_RAW = {name: re.compile(rf"</{name}\b", re.IGNORECASE) for name in ("script", "style", "noscript", "template", "svg")}
_SKIPPED = frozenset("nav select button textarea iframe object math".split())
_INLINE = frozenset(
    "a abbr b bdi bdo big cite code data del dfn em font i ins kbd label mark q s samp small span strong sub sup time "
    "tt u var wbr".split()
)


def readable(page: str) -> str:
    """One line per block element; scripts, styles, menus, forms and comments are left out."""
    blocks = "".join(_pieces(page)).split("\n")
    lines = (" ".join(block.split()) for block in blocks)
    return "\n".join(line for line in lines if line)


def _pieces(page: str) -> Iterator[str]:
    """Texts, and a newline wherever a block begins or ends. A skipped element that is left open hides the rest."""
    skipping, depth = "", 0  # the element that is left out, and how many of its kind are open
    at = 0
    while at < len(page):
        opened = page.find("<", at)
        text = page[at : opened if opened >= 0 else len(page)]
        if text and not skipping:
            yield html.unescape(text).replace("\n", " ")
        if opened < 0:
            return
        if page.startswith(("<!", "<?"), opened):
            at = _after_declaration(page, opened)
            continue
        tag = _TAG.match(page, opened) or _LOOSE_TAG.match(page, opened)
        if not tag:  # a bare "<"
            if not skipping:
                yield "<"
            at = opened + 1
            continue
        closes, name = bool(tag[1]), tag[2].lower()
        at = tag.end()
        if not closes and name in _RAW and not tag[0].endswith("/>"):
            end = _RAW[name].search(page, at)
            at = end.start() if end else len(page)
        elif name in _SKIPPED and skipping in ("", name) and not tag[0].endswith("/>"):
            depth = max(depth - 1, 0) if closes else depth + 1
            skipping = name if depth else ""
        if name not in _INLINE:
            yield "\n"


def _after_declaration(page: str, opened: int) -> int:
    """Where a comment, a doctype or the like ends: at the end of the page if it is left open, as browsers have it."""
    mark = "-->" if page.startswith("<!--", opened) else ">"
    end = page.find(mark, opened + 2)
    return end + len(mark) if end >= 0 else len(page)
