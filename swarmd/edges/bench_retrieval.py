"""`swarmd bench retrieval`: how often the right passage is found, by words, by vectors and by both.

The set (`retrieval.jsonl`) is frozen: passages of this project's documents and docstrings as they once were, and
questions of three kinds: `asked` were written by hand as a user would ask, `heading` are the headings of sections,
`docstring` first sentences, whose rest is the passage. Everything runs offline; an embedder that is not there is
named as absent. Figures are the same on every machine, but for the times.
"""

from __future__ import annotations

import asyncio
import heapq
import importlib.util
import math
import operator
import os
import statistics
from collections import Counter
from importlib import resources
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.edges.bench import progress
from swarmd.edges.embeddings import blocking_embedder
from swarmd.hash_embedder import DIMENSION
from swarmd.passages import candidates, fuse
from swarmd.text import STOP_WORDS, stems, words

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from swarmd.ports import Embedder

DEPTHS: Final = (1, 5, 10)
EMBEDDERS: Final = ("hash:256", f"hash:{DIMENSION}", "hash:1024")
#: What a model of one's own would be, so that its absence is said.
ABSENT: Final = {
    "model:DIRECTORY": "no directory was named; add one with --embedder model:DIRECTORY",
    "provider:model": "no endpoint was named; add one with --embedder provider:model, and --config for its provider",
}
#: Texts of so many words are timed.
TIMED_WORDS: Final = 50
TIMED_TEXTS: Final = 300
_SET: Final = "retrieval.jsonl"
# Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009); the usual constants.
_K1: Final = 1.2
_B: Final = 0.75


class Passage(Struct, forbid_unknown_fields=True):
    """What may be found."""

    id: str
    text: str


class Question(Struct, forbid_unknown_fields=True):
    """What is asked, and which passages answer it."""

    kind: str
    query: str
    answers: list[str]


class Bm25:
    """Passages by the words of a query, best first; ties go to the earlier passage."""

    def __init__(self, texts: Sequence[str], split: Callable[[str], list[str]]) -> None:
        self._split = split
        bags = [Counter(split(text)) for text in texts]
        sizes = [sum(bag.values()) for bag in bags]
        mean = max(1.0, statistics.fmean(sizes)) if sizes else 1.0
        found = Counter(word for bag in bags for word in bag)
        self._weights: dict[str, list[tuple[int, float]]] = {}
        for at, (bag, size) in enumerate(zip(bags, sizes, strict=True)):
            for word, count in bag.items():
                rarity = math.log(1 + (len(bags) - found[word] + 0.5) / (found[word] + 0.5))
                weight = rarity * count * (_K1 + 1) / (count + _K1 * (1 - _B + _B * size / mean))
                self._weights.setdefault(word, []).append((at, weight))

    def best(self, query: str, k: int) -> list[int]:
        """At most `k` places of passages that share a word with the query."""
        scores: dict[int, float] = {}
        for word in dict.fromkeys(self._split(query)):
            for at, weight in self._weights.get(word, ()):
                scores[at] = scores.get(at, 0.0) + weight
        return [at for at, _ in heapq.nsmallest(k, scores.items(), key=lambda item: (-item[1], item[0]))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench retrieval`."""
    parser.add_argument(
        "--embedder", action="append", default=[], metavar="SPEC", help="measure this one too, as model:DIR; repeatable"
    )


async def run(args: argparse.Namespace) -> int:
    """Measure and print; one JSON object with `--json`."""
    from swarmd.edges.cli.flags import settings_of

    settings = settings_of(args)
    # A wrong spec is an error; an endpoint that does not answer is an absent row.
    wanted = [(spec, blocking_embedder(spec, settings)) for spec in dict.fromkeys((*EMBEDDERS, *args.embedder))]
    load = os.getloadavg()[0]
    result = await asyncio.to_thread(measure, wanted)
    result |= {"cpus": os.cpu_count(), "load_before": round(load, 2)}
    if getattr(args, "json", False):
        print(msgspec.json.encode(result).decode())
    else:
        _print(result)
    return 0


def read_set() -> tuple[list[Passage], list[Question]]:
    """The frozen set. Raises `Fault("bench")` when it is damaged."""
    lines = resources.files("swarmd.edges").joinpath(_SET).read_bytes().splitlines()
    try:
        read = msgspec.json.Decoder(Passage), msgspec.json.Decoder(Question)
        passages = [read[0].decode(line) for line in lines if line.startswith(b'{"id"')]
        questions = [read[1].decode(line) for line in lines if line.startswith(b'{"kind"')]
    except msgspec.MsgspecError as error:
        raise Fault("bench", f"{_SET} cannot be read: {error}") from None
    known = {passage.id for passage in passages}
    if len(passages) + len(questions) != len(lines) or not all(known.issuperset(one.answers) for one in questions):
        raise Fault("bench", f"{_SET} is damaged: lines of neither kind, or answers that are not there")
    return passages, questions


def measure(wanted: Sequence[tuple[str, Embedder]]) -> dict[str, Any]:
    """Recall of each way by kind of question: the share whose answer is among the first 1, 5 and 10."""
    passages, questions = read_set()
    texts, queries = [passage.text for passage in passages], [question.query for question in questions]
    places = {passage.id: at for at, passage in enumerate(passages)}
    answers = [{places[answer] for answer in question.answers} for question in questions]
    kinds = [question.kind for question in questions]
    depth = candidates(max(DEPTHS))
    rows: list[dict[str, Any]] = []
    named = {_kind(spec) for spec, _ in wanted}
    absent = [{"embedder": spec, "why": why} for spec, why in ABSENT.items() if _kind(spec) not in named]

    def row(way: str, name: str, found: list[list[int]], **more: Any) -> None:
        rows.append({"way": way, "name": name} | recalls(kinds, answers, found) | more)

    lexical: list[list[int]] = []
    for name, split in {"bm25, no stems": _unstemmed, "bm25, stems": stems}.items():
        index = Bm25(texts, split)
        lexical = [index.best(query, depth) for query in queries]
        row("lexical", name, lexical)
    for spec, embedder in wanted:
        try:
            dense = _nearest(embedder, texts, queries, depth)
            cost = _ms_per_text(embedder, texts)
        except Rejected as error:
            raise Rejected(error.code, f"{spec}: {error.message}") from None
        except SwarmdError as error:
            absent.append({"embedder": spec, "why": error.message})
            continue
        row("dense", spec, dense, embedder=embedder.id, ms_per_text=round(cost, 3))
        row("hybrid", f"bm25, stems + {spec}", [_fused(pair) for pair in zip(lexical, dense, strict=True)])
        progress(f"{spec}: recall@10 {rows[-2]['all'][-1]:.3f}, with words {rows[-1]['all'][-1]:.3f}")
    return {"rows": rows, "absent": absent, "depths": list(DEPTHS)} | {
        "passages": len(passages),
        "questions": dict(Counter(kinds)),
        "timed_words": TIMED_WORDS,
    }


def recalls(kinds: Sequence[str], answers: Sequence[set[int]], found: Sequence[list[int]]) -> dict[str, list[float]]:
    """By kind, and for `all`: the share of questions with an answer among the first of each depth."""
    hits: dict[str, list[list[bool]]] = {"all": []}
    for kind, right, ranking in zip(kinds, answers, found, strict=True):
        hit = [not right.isdisjoint(ranking[:depth]) for depth in DEPTHS]
        hits["all"].append(hit)
        hits.setdefault(kind, []).append(hit)
    return {
        kind: [round(statistics.fmean(column), 3) for column in zip(*some, strict=True)] for kind, some in hits.items()
    }


def _kind(spec: str) -> str:
    return first if (first := spec.partition(":")[0]) in ("hash", "model") else "provider"


def _unstemmed(text: str) -> list[str]:
    return [word for word in words(text) if word not in STOP_WORDS]


def _nearest(embedder: Embedder, texts: Sequence[str], queries: Sequence[str], depth: int) -> list[list[int]]:
    """The places of the nearest passages of each query by cosine, ties to the earlier one."""
    passages = embedder.embed(texts)
    return [
        heapq.nsmallest(depth, range(len(passages)), key=lambda at: (-scores[at], at))
        for scores in _cosines(passages, embedder.embed(queries))
    ]


def _cosines(passages: Sequence[Sequence[float]], queries: Sequence[Sequence[float]]) -> Iterator[list[float]]:
    """With numpy where it is installed; without it this takes most of a minute."""
    if importlib.util.find_spec("numpy") is not None:
        import numpy

        yield from (numpy.array(queries) @ numpy.array(passages).T).tolist()
        return
    for query in queries:
        yield [sum(map(operator.mul, query, passage)) for passage in passages]


def _fused(pair: tuple[list[int], list[int]]) -> list[int]:
    """As a store fuses them; keys of one length sort as their places do."""
    rankings = [[f"{at:06}" for at in ranking] for ranking in pair]
    return [int(key) for key, _ in fuse(rankings, max(DEPTHS))]


def _ms_per_text(embedder: Embedder, texts: Sequence[str]) -> float:
    """In the quickest of several batches of texts of `TIMED_WORDS` words each: what else runs here must not show."""
    pool = " ".join(texts).split()
    starts = range(0, min(len(pool), TIMED_TEXTS * TIMED_WORDS) - TIMED_WORDS, TIMED_WORDS)
    timed = [" ".join(pool[start : start + TIMED_WORDS]) for start in starts]
    samples = []
    for first in range(0, len(timed), 20):
        started = perf_counter()
        embedder.embed(timed[first : first + 20])
        samples.append((perf_counter() - started) * 1000 / len(timed[first : first + 20]))
    return min(samples)


def _print(result: dict[str, Any]) -> None:
    kinds = ["all", *result["questions"]]
    heads = "".join(f"{kind:>20}" for kind in kinds)
    print(f"{'recall@' + '/'.join(map(str, DEPTHS)):36}{heads}{'ms/text':>10}")
    for row in result["rows"]:
        cells = "".join(f"{' '.join(f'{share:.3f}' for share in row[kind]):>20}" for kind in kinds)
        print(f"{row['way'] + ': ' + row['name']:36}{cells}{row.get('ms_per_text', ''):>10}")
    for one in result["absent"]:
        print(f"absent: {one['embedder']}: {one['why']}")
