"""Memories for `swarmd bench memory`: as many as wanted, the same ones on every machine.

Words are drawn by Zipf's law, as bent as it is in large collections (Ferrer i Cancho and Solé, "Two regimes in the
frequency of words", 2001). The most frequent ones are those of English that mean nothing, the others are made of
syllables and endings, so that stemming, n-grams and posting lists have the work that they have with real texts.
Authors, tasks, labels and spaces are spread over the memories as in a busy swarm. Must not know who stores them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from swarmd.adapters.hash_batches import HashBatches
from swarmd.core.memory import SHARED
from swarmd.core.memory_wire import RememberRequest
from swarmd.edges.simulate.chance import Chance

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Sequence

DIMENSION: Final = 384
WORDS_MIN, WORDS_MAX = 30, 60
SENTENCE_WORDS: Final = 12
AGENTS, TASKS, PROJECTS = 50, 1_000, 20
QUERY_WORDS: Final = 8

_VOCABULARY: Final = 50_000
#: Frequencies fall as 1 / rank up to this rank, and as 1 / rank² beyond.
_BEND: Final = 6_000
#: Words are drawn from so many slots, of which each word has its share: two draws take 40 of 53 random bits.
_SLOT_BITS: Final = 20
_FREQUENT: Final = (
    "the of and to a in that is was it for as with his on be at by had not are but from or have an they which one you "
    "were all her she there would their we him been has when who will no more if out so up said what its about than "
    "into them can only other time new some could these two may first then do any like my now over such our man me even"
).split()
_ONSETS: Final = (*"bcdfghlmnprstvw", "br", "cl", "gr", "pl", "st")
_VOWELS: Final = (*"aeiouaeiou", "ea", "ou")
_CODAS: Final = ("", "", "", *"nrlt", "nd", "st")
_ENDINGS: Final = ("", "", "", "", "s", "ed", "ing", "er", "ly", "ion")
#: Frequent words are short (the law of brevity): so many of them have no more than two syllables.
_SHORT: Final = 5_000
_EMBEDDER: Final = HashBatches(DIMENSION)
#: Of ten memories seven are for everybody; the others for a swarm, an agent, and a task.
_SPACES: Final = (SHARED,) * 7 + ("swarm", "agent", "task")


class Query(Struct, frozen=True):
    """What is asked: some words of the memory number `source`, which should be found by them."""

    text: str
    source: int


class Texts:
    """Texts of 30 to 60 words; `seed` changes all of them."""

    def __init__(self, seed: int = 1) -> None:
        self._seed = seed
        self._slots = _slots(_words())

    def text(self, number: int) -> str:
        chance = Chance("memory", self._seed, number)
        count = WORDS_MIN + chance.below(WORDS_MAX - WORDS_MIN + 1)
        words = self._drawn(chance, count)
        sentences = [words[at : at + SENTENCE_WORDS] for at in range(0, count, SENTENCE_WORDS)]
        return " ".join(" ".join(sentence).capitalize() + "." for sentence in sentences)

    def request(self, number: int) -> RememberRequest:
        """The whole memory, as an agent of a swarm remembers it on behalf of a task."""
        return RememberRequest(
            text=self.text(number),
            id=name_of(number),
            source="bench",
            labels=labels_of(number),
            task=task_of(number),
            space=_SPACES[number % len(_SPACES)],
            agent=agent_of(number),
        )

    def query(self, source: int, number: int) -> Query:
        """Some words of the text of memory `source`; another `number` takes others."""
        chance = Chance("query", self._seed, source, number)
        words = [word for word in self.text(source).rstrip(".").lower().replace(".", "").split() if len(word) > 3]
        return Query(" ".join(chance.sample(words, min(QUERY_WORDS, len(words)))), source)

    def _drawn(self, chance: Chance, count: int) -> list[str]:
        slots, mask, words = self._slots, (1 << _SLOT_BITS) - 1, list[str]()
        while len(words) < count:
            bits = int(chance.uniform() * (1 << 2 * _SLOT_BITS))
            words += (slots[bits & mask], slots[bits >> _SLOT_BITS])
        return words[:count]


def name_of(number: int) -> str:
    """The id of a memory."""
    return f"memory-{number:07}"


def agent_of(number: int) -> str:
    return f"agent-{number % AGENTS}"


def task_of(number: int) -> str:
    return f"task-{number % TASKS}"


def labels_of(number: int) -> dict[str, str]:
    return {"project": f"p{number % PROJECTS}"}


def is_shared(number: int) -> bool:
    """Whether everybody may read this memory."""
    return _SPACES[number % len(_SPACES)] == SHARED


def vectors_of(texts: Sequence[str]) -> list[array[float]]:
    """As the memory node makes them; blocks."""
    return _EMBEDDER.embed(texts)


def lines(memories: Iterable[RememberRequest]) -> bytes:
    """As they are sent, one to a line."""
    return b"".join(msgspec.json.encode(memory) + b"\n" for memory in memories)


def _words() -> list[str]:
    """The vocabulary, the most frequent word first."""
    chance = Chance("vocabulary")
    words = dict.fromkeys(_FREQUENT)
    while len(words) < _VOCABULARY:
        syllables = 1 + chance.below(2 if len(words) < _SHORT else 3)
        stem = "".join(_one(chance, _ONSETS) + _one(chance, _VOWELS) + _one(chance, _CODAS) for _ in range(syllables))
        words[stem + _one(chance, _ENDINGS)] = None
    return list(words)


def _slots(words: list[str]) -> list[str]:
    """Each word as often as its frequency says, and at least once."""
    total = 1 << _SLOT_BITS
    shares = [min(1 / rank, _BEND / rank**2) for rank in range(1, len(words) + 1)]
    left = (total - len(words)) / sum(shares)
    slots = [word for word, share in zip(words, shares, strict=True) for _ in range(1 + int(left * share))]
    return slots + words[: total - len(slots)]


def _one(chance: Chance, items: tuple[str, ...]) -> str:
    return items[chance.below(len(items))]
