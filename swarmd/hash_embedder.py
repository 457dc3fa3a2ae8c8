"""An embedder that needs no model: signed feature hashing of stems, their character n-grams and groups of synonyms.

Job: give similar texts near vectors, offline, the same in every process and on every machine.
Invariants: unit length, deterministic (a keyed hash of the features, never `hash()`), pure Python, since numpy would
weigh on the base install: where it is there, `adapters/hash_batches.py` makes the same vectors from the same features.
Limits: it knows spelling, and of meaning what `synonyms.py` says: "deploy" is like "deployment" and a little like
"release"; what no group names is a stranger. `swarmd bench retrieval` measures what that is worth.
Must not know: stores, logs, or what the vectors are for.

Method: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning" (ICML 2009): feature f adds its weight
to a component by its hash, with a sign, so that collisions cancel on average and the inner product stays unbiased.
Each feature has two such places, which halves the harm of a collision. A feature counts 1 + ln(its frequency)
(Manning, Raghavan, Schütze 2008, section 6.4.1), n-grams that several words share included, and less for common words
(`common_words.py`). ADR 0025 has the measurements that chose all this.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from hashlib import blake2b
from math import log, sqrt
from typing import TYPE_CHECKING, Final

from swarmd.common_words import weight_of
from swarmd.core.errors import Rejected
from swarmd.synonyms import groups_of
from swarmd.text import stems, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DIMENSION: Final = 384
DIMENSION_MIN, DIMENSION_MAX = 64, 32_768
_GRAM_SIZES: Final = (3, 4)
# One n-gram says less than one word; a word has several of them.
_GRAM_WEIGHT: Final = 0.3
_GROUP_WEIGHT: Final = 0.8
# Words are forgotten before n-grams: of these there are few, and each is in many words.
_WORDS_CACHED: Final = 16_384
#: What is longer is hardly a word and will hardly come again; one of 32 kB would hold 13 MB for its features.
WORD_CHARS_KEPT: Final = 64
_GRAMS_CACHED: Final = 65_536
_COUNTS: Final = (0.0, *(1.0 + log(count) for count in range(1, 64)))

#: Two places in a vector of twice the length: in its second half a feature counts negative.
_Places = tuple[int, int]


class HashEmbedder:
    """Texts to unit vectors of `dimension` floats by signed feature hashing; see the module for the method."""

    def __init__(self, dimension: int = DIMENSION) -> None:
        if not DIMENSION_MIN <= dimension <= DIMENSION_MAX:
            raise Rejected("bad_dimension", f"dimension {dimension} is not between {DIMENSION_MIN} and {DIMENSION_MAX}")
        self.dimension = dimension
        self.id = f"hash-v2-{dimension}"

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text, in order. Never fails: a text without a word is embedded by its characters."""
        return [self._embed(text) for text in texts]

    def _embed(self, text: str) -> list[float]:
        terms = Counter(terms_of(text))
        counts: dict[_Places, int] = {}
        weights: dict[_Places, float] = {}
        for term, count in terms.items():
            for places, weight in features_of(term, self.dimension):
                if places not in counts:
                    counts[places], weights[places] = count, weight
                else:
                    counts[places] += count
                    if weight > weights[places]:
                        weights[places] = weight
        signed = [0.0] * (2 * self.dimension)
        for places, count in counts.items():
            weight = weights[places] * (_COUNTS[count] if count < 64 else 1.0 + log(count))
            signed[places[0]] += weight
            signed[places[1]] += weight
        vector = [plus - minus for plus, minus in zip(signed[: self.dimension], signed[self.dimension :], strict=True)]
        norm = sqrt(sum([x * x for x in vector]))
        if norm == 0.0:  # every feature met its opposite: possible, though only in theory
            vector[0] = norm = 1.0
        return [x / norm for x in vector]


def terms_of(text: str) -> list[str]:
    """What of a text counts. One of stop words alone still has words; one of signs alone is one word to us."""
    return stems(text) or words(text) or [text.strip()]


def features_of(term: str, dimension: int) -> tuple[tuple[_Places, float], ...]:
    """Where a term counts, and with what weight: itself, its n-grams, its groups. Of places that meet, the more

    weight holds, and their counts add up.
    """
    return _kept(term, dimension) if len(term) <= WORD_CHARS_KEPT else tuple(_found(term, dimension))


@lru_cache(maxsize=_WORDS_CACHED)
def _kept(term: str, dimension: int) -> tuple[tuple[_Places, float], ...]:
    return tuple(_found(term, dimension))


def _found(term: str, dimension: int) -> Iterator[tuple[_Places, float]]:
    weight = weight_of(term)
    yield _hashed("w", term, dimension), weight
    padded = f"^{term}$"  # the edges of the word count as characters
    for size in _GRAM_SIZES:
        for at in range(len(padded) - size + 1):
            yield _gram(padded[at : at + size], dimension), _GRAM_WEIGHT * weight
    groups = groups_of(term)
    for group in groups:
        yield _hashed("g", str(group), dimension), _GROUP_WEIGHT * weight / sqrt(len(groups))


@lru_cache(maxsize=_GRAMS_CACHED)
def _gram(gram: str, dimension: int) -> _Places:
    return _hashed("t", gram, dimension)


def _hashed(kind: str, feature: str, dimension: int) -> _Places:
    # surrogatepass: a lone surrogate is an odd character, not a reason to fail.
    digest = blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=16, person=kind.encode()).digest()
    half = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    return half[0] % (2 * dimension), half[1] % (2 * dimension)
