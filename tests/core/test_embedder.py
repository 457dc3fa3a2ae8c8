"""The hashing embedder: unit length, the same everywhere, and near where texts are alike."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from hashlib import blake2b
from math import isclose, sqrt

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swarmd.common_words import WEIGHTS, weight_of
from swarmd.core.errors import Rejected
from swarmd.hash_embedder import WORD_CHARS_KEPT, HashEmbedder, features_of
from swarmd.synonyms import by_stem, groups_of
from swarmd.text import STOP_WORDS, _stems, stem

EMBEDDER = HashEmbedder(256)


def nearness(one: str, other: str) -> float:
    a, b = HashEmbedder().embed([one, other])
    return sum(x * y for x, y in zip(a, b, strict=True))


@given(st.text(max_size=300))
@example("")
@example("?!")
@example("\ud800")
@example("the of and")
@example("東京タワー")
def test_every_text_has_a_unit_vector(text: str) -> None:
    (vector,) = EMBEDDER.embed([text])
    assert len(vector) == EMBEDDER.dimension
    assert isclose(sqrt(sum(x * x for x in vector)), 1.0, rel_tol=1e-9)
    assert EMBEDDER.embed([text]) == [vector]


def test_vectors_do_not_depend_on_their_batch() -> None:
    texts = ["one lease", "two leases", "", "a broker that was restarted"]
    assert EMBEDDER.embed(texts) == [EMBEDDER.embed([text])[0] for text in texts]
    assert EMBEDDER.embed([]) == []


def test_another_process_makes_the_same_vectors() -> None:
    text = "Straße, 東京, don't: the lease of a worker expires after 30.5 seconds"
    program = (
        "import sys; from swarmd.hash_embedder import HashEmbedder;"
        "sys.stdout.write(repr(HashEmbedder(256).embed([sys.argv[1]])[0]))"
    )
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONUTF8": "1"}
        done = subprocess.run(
            [sys.executable, "-c", program, text], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout == repr(EMBEDDER.embed([text])[0])


@pytest.mark.parametrize(
    ("query", "similar", "unrelated"),
    [
        ("how do leases expire", "A lease that is not renewed expires.", "Bread is baked from flour and water."),
        ("deployment of services", "Deploying the service to a cluster", "A history of medieval painting"),
        ("restarting the broker", "The broker restarts on the same port", "Whales are mammals that live in the sea"),
    ],
)
def test_similar_texts_are_nearer_than_unrelated_ones(query: str, similar: str, unrelated: str) -> None:
    assert nearness(query, similar) > nearness(query, unrelated) + 0.1


def test_synonyms_are_a_little_alike() -> None:
    assert nearness("remove the picture", "delete this image") > nearness("remove the picture", "translate it") + 0.2
    assert nearness("boss", "manager") > 0.1


def test_a_common_word_tells_less_than_a_rare_one() -> None:
    assert weight_of("return") < weight_of("server") < weight_of("quarantin") == 1.0
    text = "the file with the lease"
    assert nearness(text, "a lease") > nearness(text, "a file")


def test_the_tables_hold_what_they_should() -> None:
    assert all(0.5 <= weight < 1.0 for weight in WEIGHTS.values())
    assert all(len(numbers) == len(set(numbers)) for numbers in by_stem().values())
    assert not {word for word in WEIGHTS if word in STOP_WORDS}
    sizes = Counter(number for numbers in by_stem().values() for number in numbers)
    assert set(sizes) == set(range(len(sizes)))
    assert min(sizes.values()) >= 2


def test_repetition_counts_less_than_variety() -> None:
    once, often = "lease broker", "lease lease lease lease lease lease broker"
    assert nearness(once, often) > 0.8


def test_spelling_carries_over_to_unseen_forms() -> None:
    assert nearness("tokenizer", "tokenizers") > nearness("tokenizer", "orchestra") + 0.2


def test_the_id_names_method_and_dimension() -> None:
    assert HashEmbedder().id == "hash-v2-384"
    assert EMBEDDER.id == "hash-v2-256"


def test_the_vectors_of_an_id_never_change() -> None:
    """Stores hold vectors of this id: whoever changes weights, groups or hashes gives the embedder another one."""
    text = "Delete what is stale: the broker's lease expired, and 東京 is offline"
    (vector,) = HashEmbedder().embed([text])
    numbers = ",".join(f"{x:.6f}" for x in vector)
    assert blake2b(numbers.replace("-0.000000", "0.000000").encode(), digest_size=8).hexdigest() == "3883ec66ab2a7288"
    tables = repr([(word, weight_of(word), groups_of(word)) for word in sorted({*WEIGHTS, *by_stem()})])
    assert blake2b(tables.encode(), digest_size=8).hexdigest() == "e211b0a0f1f7f973"


@pytest.mark.parametrize("dimension", [0, -1, 63, 32_769])
def test_an_impossible_dimension_is_refused(dimension: int) -> None:
    with pytest.raises(Rejected, match="dimension"):
        HashEmbedder(dimension)


def test_what_is_too_long_for_a_word_is_not_kept() -> None:
    before = features_of("word", 64)
    assert features_of("word", 64) is before
    features_of("w" * (WORD_CHARS_KEPT + 1), 64)
    assert stem("w" * 5_000) == "w" * 5_000
    assert not any(len(word) > WORD_CHARS_KEPT for word in _stems)
    text = "long" * 100 + " and short"
    assert HashEmbedder(64).embed([text]) == HashEmbedder(64).embed([text])
    assert not any(len(word) > WORD_CHARS_KEPT for word in _stems)
    assert features_of("l" * 1_000, 64) is not features_of("l" * 1_000, 64)
