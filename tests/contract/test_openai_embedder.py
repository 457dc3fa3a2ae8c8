"""Embeddings of an endpoint: checked, scaled, in order; against an independent server and a hostile one."""

from __future__ import annotations

import asyncio
import importlib.util
import math
from typing import Any

import pytest

from swarmd.adapters.models import ModelSettings, open_embedder
from swarmd.adapters.openai_client import Endpoint
from swarmd.adapters.openai_embedder import BATCH, OpenAIEmbedder
from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.model_profile import Profile
from tests.contract.scripted_http import Asked, http, serving

if importlib.util.find_spec("openai") is None:
    pytest.skip("needs openai: pip install 'swarmd[models]'", allow_module_level=True)
HAS_LLMOCK = importlib.util.find_spec("llmock") is not None
KEY = "sk-canary-0123456789"


def embedder(url: str, dimension: int = 2, model: str = "m", **settings: Any) -> OpenAIEmbedder:
    return OpenAIEmbedder(model, Endpoint("local", f"{url}/v1", KEY, **settings), dimension)


async def outcome(answer: Any, texts: list[str]) -> list[list[float]] | SwarmdError:
    async with serving(answer) as server:
        made = embedder(server.url, timeout_ms=2_000)
        try:
            return await asyncio.to_thread(made.embed, texts)
        except SwarmdError as error:
            return error
        finally:
            made.close()


def by_length(asked: Asked) -> bytes:
    """Each text's length as a vector, in reverse order with their indices."""
    vectors = [{"index": at, "embedding": [float(len(text)), 0.0]} for at, text in enumerate(asked.json()["input"])]
    return http({"data": vectors[::-1]})


async def test_vectors_come_in_order_in_batches_and_of_unit_length() -> None:
    def answer(asked: Asked) -> bytes:
        sizes.append(len(asked.json()["input"]))
        vectors = [{"index": at, "embedding": [3.0, float(text)]} for at, text in enumerate(asked.json()["input"])]
        return http({"data": vectors[::-1]})

    sizes: list[int] = []
    vectors = await outcome(answer, [str(number) for number in range(BATCH + 3)])
    assert isinstance(vectors, list)
    assert sizes == [BATCH, 3]
    assert [round(3 * y / x) for x, y in vectors] == list(range(BATCH + 3))
    assert all(math.isclose(math.hypot(*vector), 1.0) for vector in vectors)


async def test_a_text_that_is_too_long_is_embedded_by_its_beginning() -> None:
    def answer(asked: Asked) -> bytes:
        texts = asked.json()["input"]
        if max(map(len, texts)) > 1_000:
            return http({"error": {"message": "too many tokens"}}, 400)
        return by_length(asked)

    assert await outcome(answer, ["a", "b" * 3_000, "c"]) == [[1.0, 0.0]] * 3
    refused = await outcome(http({"error": {"message": "no"}}, 400), ["b" * 3_000])
    assert isinstance(refused, Rejected)


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        ({"data": []}, Fault, "bad_answer"),
        ({"data": [{"embedding": "AAAA"}]}, Fault, "bad_answer"),
        ({"data": [{"embedding": [0.0, 0.0]}]}, Fault, "bad_answer"),
        ({"data": [{"embedding": [1.0, 2.0, 3.0]}]}, Rejected, "wrong_dimension"),
        ({"error": {"message": "busy", "code": 503}}, Fault, "model_unavailable"),
        ("<html>", Fault, "bad_answer"),
        ("[" * 100_000, Fault, "bad_answer"),
        ('{"data": ' + "[" * 5_000 + "]" * 5_000 + "}", Fault, "bad_answer"),
    ],
)
async def test_what_is_no_vector_is_an_error(body: Any, kind: type, code: str) -> None:
    result = await outcome(http(body), ["x"])
    assert isinstance(result, kind)
    assert isinstance(result, SwarmdError)
    assert result.code == code


async def test_statuses_silence_and_empty_texts() -> None:
    limited = await outcome(http({"error": {"message": f"slow {KEY}"}}, 429, retry_after="1"), ["x"])
    assert isinstance(limited, Fault)
    assert (limited.code, limited.retry_after_ms, KEY in limited.message) == ("rate_limited", 1_000, False)
    assert await outcome(by_length, ["", "  "]) == [[1.0, 0.0], [1.0, 0.0]]


def test_what_cannot_work_is_refused_at_once() -> None:
    for code, dimension, profile in [
        ("unknown_dimension", 0, Profile()),
        ("no_embeddings", 2, Profile(embeddings=False)),
    ]:
        with pytest.raises(Rejected) as caught:
            embedder("http://x", dimension, profile=profile)
        assert caught.value.code == code
    known = open_embedder(ModelSettings("openai:text-embedding-3-small"), environ={"OPENAI_API_KEY": KEY})
    assert (known.id, known.dimension) == ("openai:text-embedding-3-small-1536", 1536)


@pytest.mark.skipif(not HAS_LLMOCK, reason="needs llmock: pip install 'swarmd[models,test]'")
async def test_against_an_independent_server(llmock: Any) -> None:
    made = OpenAIEmbedder("text-embedding-3-small", Endpoint("openai", llmock.base_url(), KEY))
    one, same, other = await asyncio.to_thread(made.embed, ["a log", "a log", "a cat"])
    made.close()
    assert len(one) == 1536
    assert one == same
    assert one != other
