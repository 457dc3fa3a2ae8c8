"""The hash embedder in batches, with numpy: the same vectors, about seven times as fast.

Job: whoever fills a store of 100,000 memories waits for the embedder first. Invariants: features, weights and places
are those of `swarmd.hash_embedder`, and so is the id; vectors differ by the rounding to float32 only, in which they are
stored, so that stores made by one serve the other. Safe for calls from several threads. Must not know: stores, or what
the vectors are for.
Method: all features of a batch go into one array, keyed by their text and places; one sort brings together those that
meet, and their counts and weights become one number each, which is added up at its places.
"""

from __future__ import annotations

from array import array
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from swarmd.hash_embedder import DIMENSION, WORD_CHARS_KEPT, HashEmbedder, features_of, terms_of

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Texts at a time: their keys fit into 32 bits for up to 2,048 dimensions, which sort faster.
BATCH_TEXTS: Final = 128
#: Terms are at hand with their features, about 0.5 KB each; when there are more, all are found anew.
TERMS_MAX: Final = 65_536


class HashBatches:
    """An `Embedder`; `HashEmbedder` says what its vectors are."""

    def __init__(self, dimension: int = DIMENSION) -> None:
        """Raises `Rejected("bad_dimension")`."""
        plain = HashEmbedder(dimension)
        self.id, self.dimension = plain.id, plain.dimension
        self._bits = (2 * dimension - 1).bit_length()
        self._key = "int32" if 2 * self._bits + BATCH_TEXTS.bit_length() <= 31 else "int64"
        self._terms: dict[str, tuple[bytes, bytes, int]] = {}

    def embed(self, texts: Sequence[str]) -> list[array[float]]:
        """One vector per text, in order, of float32. Never fails, as `HashEmbedder`."""
        found, size = list["array[float]"](), 4 * self.dimension
        for first in range(0, len(texts), BATCH_TEXTS):
            vectors = self._embedded(texts[first : first + BATCH_TEXTS]).astype("float32").tobytes()
            found += [array("f", vectors[at : at + size]) for at in range(0, len(vectors), size)]
        return found

    def _embedded(self, texts: Sequence[str]) -> Any:
        import numpy as np

        places, weights = list[bytes](), list[bytes]()
        sizes, counts, terms = list[int](), list[int](), list[int]()
        known = self._terms
        for text in texts:
            counted = Counter(terms_of(text))
            terms.append(len(counted))
            counts += counted.values()
            for term in counted:
                at, weight, size = known.get(term) or self._learnt(term)
                places.append(at)
                weights.append(weight)
                sizes.append(size)
        rows = np.repeat(np.arange(len(texts), dtype=self._key) << 2 * self._bits, terms)
        keys = np.frombuffer(b"".join(places), self._key) + np.repeat(rows, sizes)
        order = np.argsort(keys)
        keys = keys[order]
        is_first = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
        firsts = np.flatnonzero(is_first)
        counted_at = np.add.reduceat(np.repeat(counts, sizes)[order], firsts)
        heaviest = np.maximum.reduceat(np.frombuffer(b"".join(weights))[order], firsts)
        return self._summed(keys[firsts], heaviest * (1.0 + np.log(counted_at)), len(texts))

    def _summed(self, keys: Any, values: Any, texts: int) -> Any:
        """Unit vectors of what counts so much at these keys; in the second half of twice the length, negative."""
        import numpy as np

        width, mask = 2 * self.dimension, (1 << self._bits) - 1
        start = (keys >> 2 * self._bits).astype("int64") * width
        flat = np.zeros(texts * width)
        for place in (keys >> self._bits & mask, keys & mask):
            flat += np.bincount(start + place, values, texts * width)
        signed = flat.reshape(texts, width)
        vectors = signed[:, : self.dimension] - signed[:, self.dimension :]
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        vectors[norms == 0.0, 0] = 1.0  # every feature met its opposite
        norms[norms == 0.0] = 1.0
        return vectors / norms[:, None]

    def _learnt(self, term: str) -> tuple[bytes, bytes, int]:
        """A term's features as bytes of arrays, which are joined faster than arrays: places, weights, how many."""
        import numpy as np

        features = features_of(term, self.dimension)
        places = np.array([first << self._bits | second for (first, second), _ in features], self._key)
        known = places.tobytes(), np.array([weight for _, weight in features]).tobytes(), len(features)
        if len(term) <= WORD_CHARS_KEPT:
            if len(self._terms) >= TERMS_MAX:
                self._terms = {}
            self._terms[term] = known
        return known


def embed_aside(dimension: int, texts: list[str]) -> bytes:
    """The vectors of texts one after another, for a process that does nothing else: it keeps its terms for the next."""
    return b"".join(vector.tobytes() for vector in _kept(dimension).embed(texts))


@cache
def _kept(dimension: int) -> HashBatches:
    return HashBatches(dimension)
