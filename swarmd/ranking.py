"""Rank short texts by their words alone: TF-IDF, LexRank, BM25 and maximal marginal relevance.

Job: the arithmetic behind extractive summaries and answers. Every text arrives as its list of stems.
Invariants: pure and deterministic; ties go to the text that came first; no score is NaN.
Must not know: where the texts came from or what becomes of the ranking.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Vector: TypeAlias = Mapping[str, float]
"""Weights by stem, of unit length (or empty)."""

# Weaker ties than this say no more than that both texts are in one language (Erkan & Radev found 0.1 to work best).
_SIMILARITY_MIN = 0.1
# Among fewer texts than this each word is rare, so likes share little: every tie counts.
_TEXTS_FEW = 10
_ROUNDS_MAX = 100
_DRIFT_MAX = 1e-6


def tf_idf(texts: Sequence[Sequence[str]]) -> list[Vector]:
    """One unit vector per text: term count times log((1 + N) / document frequency).

    The 1 keeps a term that every text holds above zero: two equal texts alone are still alike.
    """
    frequencies = Counter(term for text in texts for term in set(text))
    vectors: list[Vector] = []
    for text in texts:
        weights = {
            term: count * math.log((1 + len(texts)) / frequencies[term]) for term, count in Counter(text).items()
        }
        length = math.sqrt(sum(weight * weight for weight in weights.values()))
        vectors.append({term: weight / length for term, weight in weights.items()})
    return vectors


def cosine(one: Vector, other: Vector) -> float:
    """The cosine of two unit vectors: 0 with no word in common, 1 when equal."""
    if len(one) > len(other):
        one, other = other, one
    return sum(weight * other[term] for term, weight in one.items() if term in other)


def centrality(vectors: Sequence[Vector]) -> list[float]:
    """How near each text is to the centroid of all: linear, for thinning out before `lexrank`, which is quadratic."""
    centroid: dict[str, float] = defaultdict(float)
    for vector in vectors:
        for term, weight in vector.items():
            centroid[term] += weight / len(vectors)
    return [cosine(vector, centroid) for vector in vectors]


def lexrank(vectors: Sequence[Vector], damping: float = 0.85) -> list[float]:
    """Continuous LexRank (Erkan & Radev 2004, JAIR 22): the stationary distribution of a walk over similar texts.

    From a text the walk moves on to another with probability proportional to their cosine, or, with probability
    1 - `damping`, to any. A text like no other has no way out but that jump. The scores sum to 1.
    Quadratic in the number of texts: 400 take about a third of a second.
    """
    count = len(vectors)
    if not count:
        return []
    neighbours = _similar(vectors)
    shares = [[(other, weight / total) for other, weight in row] for row, total in neighbours]
    ranks = [1.0 / count] * count
    for _ in range(_ROUNDS_MAX):
        stranded = sum(rank for rank, row in zip(ranks, shares, strict=True) if not row)
        following = [(1.0 - damping + damping * stranded) / count] * count
        for rank, row in zip(ranks, shares, strict=True):
            flow = damping * rank
            for other, share in row:
                following[other] += flow * share
        drift = sum(abs(after - before) for after, before in zip(following, ranks, strict=True))
        ranks = following
        if drift < _DRIFT_MAX:
            break
    return ranks


def _similar(vectors: Sequence[Vector]) -> list[tuple[list[tuple[int, float]], float]]:
    """For each text its similar texts with their cosines, and the sum of those; by inverted lists, not by pairs."""
    postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
    rows: list[list[tuple[int, float]]] = [[] for _ in vectors]
    least = _SIMILARITY_MIN if len(vectors) >= _TEXTS_FEW else 0.0
    for index, vector in enumerate(vectors):
        products: dict[int, float] = defaultdict(float)
        for term, weight in vector.items():
            for other, other_weight in postings[term]:
                products[other] += weight * other_weight
            postings[term].append((index, weight))
        for other, product in products.items():
            if product >= least:
                rows[index].append((other, product))
                rows[other].append((index, product))
    return [(row, sum(weight for _, weight in row)) for row in rows]


def bm25(query: Sequence[str], texts: Sequence[Sequence[str]], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """BM25 (Robertson & Zaragoza 2009, FnTIR 3:4) of each text for a query, both as stems.

    Above 0 exactly where a text holds a term of the query: the inverse document frequency is log(1 + ...), which
    cannot turn negative for frequent terms.
    """
    wanted = dict.fromkeys(query)
    if not texts:
        return []
    counts = [Counter(term for term in text if term in wanted) for text in texts]
    frequencies = Counter(term for count in counts for term in count)
    mean_length = sum(len(text) for text in texts) / len(texts) or 1.0
    idf = {term: math.log(1 + (len(texts) - found + 0.5) / (found + 0.5)) for term, found in frequencies.items()}
    scores = []
    for text, count in zip(texts, counts, strict=True):
        norm = k1 * (1 - b + b * len(text) / mean_length)
        scores.append(sum(idf[term] * found * (k1 + 1) / (found + norm) for term, found in count.items()))
    return scores


def diverse(scores: Sequence[float], vectors: Sequence[Vector], count: int, relevance: float = 0.7) -> list[int]:
    """The first `count` texts by maximal marginal relevance (Carbonell & Goldstein 1998), best first.

    Each next text has the highest `relevance` * score - (1 - `relevance`) * likeness to the nearest one already
    taken; scores are scaled to at most 1 first.
    """
    top = max(scores, default=0.0) or 1.0
    likeness = [0.0] * len(scores)
    left = list(range(len(scores)))
    taken: list[int] = []
    while left and len(taken) < count:
        marginal = {index: relevance * scores[index] / top - (1 - relevance) * likeness[index] for index in left}
        best = max(left, key=marginal.__getitem__)
        left.remove(best)
        taken.append(best)
        for index in left:
            likeness[index] = max(likeness[index], cosine(vectors[best], vectors[index]))
    return taken
