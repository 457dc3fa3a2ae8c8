"""Text to the token numbers of a BERT vocabulary.

Job: split as BERT's own tokenizer does: clean, lower, drop accents, part at white space, signs and CJK characters, then
take the longest piece of the vocabulary again and again (Wu et al., "Google's Neural Machine Translation System", 2016;
Devlin et al., "BERT", 2018). Invariants: pure and deterministic; never fails on any text; linear in its length.
Must not know: models, or files.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

UNKNOWN: Final = "[UNK]"
FIRST: Final = "[CLS]"
LAST: Final = "[SEP]"
PADDING: Final = "[PAD]"
_WORD_CHARS_MAX: Final = 100
#: A token is at least one character, and most are several: what is behind this is cut off anyway.
_CHARS_PER_TOKEN_MAX: Final = 64
_CJK: Final = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WordPiece:
    """A vocabulary, and whether it is lower case without accents (an "uncased" model)."""

    def __init__(self, vocabulary: Mapping[str, int], *, lower: bool = True) -> None:
        """Raises `Rejected("bad_model")` when one of BERT's own tokens is missing."""
        missing = [token for token in (UNKNOWN, FIRST, LAST, PADDING) if token not in vocabulary]
        if missing:
            raise Rejected("bad_model", f"the vocabulary has no {', '.join(missing)}: it is not that of a BERT model")
        self._vocabulary, self._lower = vocabulary, lower
        self._piece_chars_max = max(map(len, vocabulary))
        self.padding = vocabulary[PADDING]

    def numbers(self, text: str, tokens_max: int) -> list[int]:
        """The tokens of a text between the first and the last one; what is over `tokens_max` in all is cut off."""
        room, found = tokens_max - 2, list[int]()
        for word in self._words(text[: room * _CHARS_PER_TOKEN_MAX]):
            if len(found) >= room:
                break
            found += self._pieces(word)
        return [self._vocabulary[FIRST], *found[:room], self._vocabulary[LAST]]

    def _words(self, text: str) -> Iterator[str]:
        spaced = "".join(_spaced(text))
        for word in spaced.split():
            if self._lower:
                word = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
            start = 0
            for at, character in enumerate(word):
                if _is_sign(character):
                    if at > start:
                        yield word[start:at]
                    yield character
                    start = at + 1
            if start < len(word):
                yield word[start:]

    def _pieces(self, word: str) -> list[int]:
        """Greedy, longest first; a word that cannot be made of pieces is one unknown token."""
        if len(word) > _WORD_CHARS_MAX:
            return [self._vocabulary[UNKNOWN]]
        found, start = list[int](), 0
        while start < len(word):
            mark = "##" if start else ""
            for end in range(min(len(word), start + self._piece_chars_max), start, -1):
                number = self._vocabulary.get(mark + word[start:end])
                if number is not None:
                    found.append(number)
                    start = end
                    break
            else:
                return [self._vocabulary[UNKNOWN]]
        return found


def _spaced(text: str) -> Iterator[str]:
    """The characters of a text: controls dropped, white space plain, CJK characters words of their own."""
    for character in text:
        if character in "\t\n\r" or unicodedata.category(character) == "Zs":
            yield " "
        elif character in "\0\ufffd" or unicodedata.category(character)[0] == "C":
            continue
        elif any(first <= ord(character) <= last for first, last in _CJK):
            yield f" {character} "
        else:
            yield character


def _is_sign(character: str) -> bool:
    # All of ASCII that is no letter, digit or space counts, also "$" and "^", which Unicode calls symbols.
    if "!" <= character <= "~":
        return not character.isalnum()
    return unicodedata.category(character)[0] == "P"
