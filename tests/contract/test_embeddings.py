"""From a spec to embeddings: each kind opens, each bad one says what to write instead."""

from __future__ import annotations

import pytest

from swarmd import config
from swarmd.adapters.fakes import FakeClock
from swarmd.core.errors import Rejected
from swarmd.edges.embeddings import blocking_embedder, embedder_of
from swarmd.hash_embedder import HashEmbedder

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
