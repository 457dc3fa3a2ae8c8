"""The hash embedder in batches says what the plain one says, whatever the texts and however many."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.hash_embedder import HashEmbedder

pytest.importorskip("numpy", reason="needs numpy (pip install 'swarmd[memory]')")
from swarmd.adapters import hash_batches
from swarmd.adapters.hash_batches import BATCH_TEXTS, HashBatches
from swarmd.core.errors import Rejected

PROSE = "A lease expires; the leader takes its task back, and the task runs again. Expiry is not failure. "
TEXTS = [
    "",
    " ",
    "the of and",
    "!!!",
    "deploy",
    "deploys deployed deploying",
    PROSE,
    PROSE * 70,
    "日本語 テスト",
    "\ud800",
]


def assert_alike(texts: list[str], dimension: int) -> None:
    plain, batches = HashEmbedder(dimension), HashBatches(dimension)
    assert (plain.id, plain.dimension) == (batches.id, batches.dimension)
    found, expected = batches.embed(texts), plain.embed(texts)
    assert len(found) == len(expected) == len(texts)
    for one, other in zip(found, expected, strict=True):
        assert len(one) == dimension
        assert one.tolist() == pytest.approx(other, abs=1e-7)
        assert math.sqrt(sum(x * x for x in one)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("dimension", [64, 384, 2_048, 2_049, 32_768])
def test_both_make_the_same_vectors(dimension: int) -> None:
    assert_alike(TEXTS, dimension)


def test_a_batch_may_be_empty_or_longer_than_one_goes() -> None:
    assert HashBatches(64).embed([]) == []
    assert_alike([f"task {number} of {PROSE[number % 80 :]}" for number in range(2 * BATCH_TEXTS + 1)], 96)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=6))
def test_any_texts_are_embedded_alike(texts: list[str]) -> None:
    assert_alike(texts, 64)


def test_terms_that_were_forgotten_are_found_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_batches, "TERMS_MAX", 3)
    assert_alike([PROSE, "one two three four five six seven", PROSE], 64)


def test_several_threads_may_ask_at_once() -> None:
    embedder, expected = HashBatches(64), HashEmbedder(64).embed(TEXTS)
    wrong = list[str]()

    def ask() -> None:
        for _ in range(20):
            for one, other in zip(embedder.embed(TEXTS), expected, strict=True):
                if one.tolist() != pytest.approx(other, abs=1e-7):
                    wrong.append("differs")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_dimension_that_is_none_is_refused() -> None:
    with pytest.raises(Rejected, match="between"):
        HashBatches(12)
