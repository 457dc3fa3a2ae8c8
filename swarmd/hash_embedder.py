"""An embedder that needs no model: signed feature hashing of stems and character trigrams.

Job: give similar texts near vectors, offline, the same in every process and on every machine.
Invariants: unit length, deterministic (a keyed hash of the features, never `hash()`), pure Python: numpy would save
nothing here, since almost all the time goes into finding the features, and it would weigh on the base install.
Limits: it knows spelling, not meaning. "car" and "automobile" are strangers to it; "deploy" and "deployment" are not.
Must not know: stores, logs, or what the vectors are for.

Method: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning" (ICML 2009): feature f adds its
weight to component h(f) with the sign s(f), so that collisions cancel on average and the inner product stays
unbiased. Weights are sublinear term frequencies, 1 + ln(tf) (Manning, Raghavan, Schütze 2008, section 6.4.1).
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from hashlib import blake2b
from math import log, sqrt
from typing import TYPE_CHECKING

from swarmd.core.errors import Rejected
from swarmd.text import stems, words

if TYPE_CHECKING:
    from collections.abc import Sequence

DIMENSION_MIN, DIMENSION_MAX = 64, 32_768
# One trigram says less than one word; a word has several of them.
_TRIGRAM_WEIGHT = 0.35
_WORDS_CACHED = 65_536


class HashEmbedder:
    """Texts to unit vectors of `dimension` floats by signed feature hashing; see the module for the method."""

    def __init__(self, dimension: int = 1024) -> None:
        if not DIMENSION_MIN <= dimension <= DIMENSION_MAX:
            raise Rejected("bad_dimension", f"dimension {dimension} is not between {DIMENSION_MIN} and {DIMENSION_MAX}")
        self.dimension = dimension
        self.id = f"hash-v1-{dimension}"

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text, in order. Never fails: a text without a word is embedded by its characters."""
        return [self._embed(text) for text in texts]

    def _embed(self, text: str) -> list[float]:
        # A text of stop words alone still has words; a text of signs alone is one word to us.
        terms = Counter(stems(text) or words(text) or [text.strip()])
        weights: dict[int, float] = {}
        trigrams: Counter[int] = Counter()
        for term, count in terms.items():
            feature, parts = _features(term)
            weights[feature] = 1.0 + log(count)
            for part in parts:
                trigrams[part] += count
        vector = [0.0] * self.dimension
        for feature, weight in weights.items():
            self._add(vector, feature, weight)
        for feature, count in trigrams.items():
            self._add(vector, feature, _TRIGRAM_WEIGHT * (1.0 + log(count)))
        norm = sqrt(sum(x * x for x in vector))
        if norm == 0.0:  # every feature met its opposite: possible, though only in theory
            vector[0] = norm = 1.0
        return [x / norm for x in vector]

    def _add(self, vector: list[float], feature: int, weight: float) -> None:
        # The lowest bit is the sign, the others the place: two independent hashes of one feature.
        vector[(feature >> 1) % self.dimension] += weight if feature & 1 else -weight


@lru_cache(maxsize=_WORDS_CACHED)
def _features(term: str) -> tuple[int, tuple[int, ...]]:
    """The hash of a term and those of its trigrams; the edges of the word count as characters."""
    padded = f"^{term}$"
    return _hash("w", term), tuple(_hash("t", padded[at : at + 3]) for at in range(len(padded) - 2))


def _hash(kind: str, feature: str) -> int:
    # surrogatepass: a lone surrogate is an odd character, not a reason to fail.
    digest = blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8, person=kind.encode()).digest()
    return int.from_bytes(digest, "little")
