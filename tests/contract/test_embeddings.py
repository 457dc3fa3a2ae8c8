"""From a spec to embeddings: each kind opens, each bad one says what to write instead."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from swarmd import config
from swarmd.adapters.fakes import FakeClock
from swarmd.adapters.hash_batches import HashBatches
from swarmd.cached_embedder import ASIDE_TEXTS_MIN, CachedEmbedder, EmbedLimits
from swarmd.core.errors import Rejected
from swarmd.edges.embeddings import blocking_embedder, embedder_of
from swarmd.hash_embedder import HashEmbedder
from tests.contract.aside_tools import embed_by_pid, embed_never

if TYPE_CHECKING:
    from collections.abc import Sequence

MINE = '[memory]\nembedder = "mine:e"\nembedder_dimension = 3\n[provider.mine]\nbase_url = "http://127.0.0.1:9/v1"'
BARE = config.load("", {})


async def test_without_a_word_texts_are_hashed() -> None:
    made = embedder_of("", BARE, FakeClock())
    assert made.id == HashEmbedder().id
    (vector,) = await made.vectors(["a lease expires"])
    assert len(vector) == made.dimension
    await made.close()


def test_the_configured_embedder_is_the_default_and_a_spec_goes_before_it() -> None:
    pytest.importorskip("openai")
    settings = config.load(MINE, {})
    assert embedder_of("", settings, FakeClock()).id == "mine:e-3"
    assert embedder_of("mine:other", settings, FakeClock(), 5).id == "mine:other-5"
    assert embedder_of("hash:128", settings, FakeClock()).id == HashEmbedder(128).id
    with pytest.raises(Rejected, match="embedder_dimension"):
        blocking_embedder("mine:other", settings)


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ("minilm", "bad_embedder", "provider:model"),
        ("hash:", "bad_embedder", "hash:DIMENSION"),
        (":x", "bad_embedder", "model:DIRECTORY"),
        ("hash:many", "bad_embedder", "hash:384"),
        ("hash:-4", "bad_embedder", "hash:384"),
        ("hash:12", "bad_dimension", "between"),
        ("nobody:model", "unknown_model", "nobody:model"),
        ("openai: ", "bad_embedder", "provider:model"),
        ("model:" + "a" * 5_000, "bad_model", "cannot be opened"),
        ("model:~nobody-of-that-name/model", "bad_model", "cannot be opened"),
        ("model:/a\0b", "bad_model", "no directory"),
    ],
)
def test_a_bad_spec_says_what_to_write_instead(spec: str, code: str, words: str) -> None:
    with pytest.raises(Rejected, match=words) as caught:
        blocking_embedder(spec, BARE)
    assert caught.value.code == code


async def test_large_batches_are_hashed_in_a_process_beside_with_the_same_vectors() -> None:
    pytest.importorskip("numpy")
    texts = [f"lease {number} expires" for number in range(ASIDE_TEXTS_MIN)]
    aside, here = embedder_of("hash", BARE, FakeClock()), CachedEmbedder(HashBatches(), FakeClock())
    assert await aside.vectors(texts) == await here.vectors(texts)
    for each in (aside, here):
        await each.close()


async def test_another_process_makes_large_batches_alone() -> None:
    class Here(HashEmbedder):
        def embed(self, texts: Sequence[str]) -> list[list[float]]:
            return [[float(os.getpid()), 1.0]] * len(texts)

    embedder = Here(64)
    embedder.dimension = 2
    made = CachedEmbedder(embedder, FakeClock(), EmbedLimits(batch_texts=ASIDE_TEXTS_MIN), embed_by_pid)
    few = await made.vectors(["one", "two"])
    many = await made.vectors([str(number) for number in range(ASIDE_TEXTS_MIN)])
    assert {vector[0] for vector in few} == {float(os.getpid())}
    (pid,) = {vector[0] for vector in many}
    assert pid != os.getpid()
    await made.close()


async def test_a_process_that_ends_is_done_without() -> None:
    limits = EmbedLimits(batch_texts=ASIDE_TEXTS_MIN)
    embedder = HashEmbedder(64)
    made = CachedEmbedder(embedder, FakeClock(), limits, embed_never)
    texts = [f"text {number}" for number in range(ASIDE_TEXTS_MIN)]
    assert len(await made.vectors(texts)) == ASIDE_TEXTS_MIN
    await made.close()
