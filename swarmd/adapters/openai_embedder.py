"""An `Embedder` behind an OpenAI-compatible endpoint: POST {base_url}/embeddings, in batches.

Job: texts to unit vectors of one known length. Invariants: every vector is checked (number, length, finite, not zero)
and scaled to length 1, whatever the server says; the id names provider, model and length, so that a store refuses what
another one made. It blocks: whoever calls it does so in a thread. Must not know stores or memories.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct, field

from swarmd.adapters.chat_format import decode_body
from swarmd.adapters.openai_client import Endpoint, Refusal, exchange_errors, failure_of, package, refusal_within
from swarmd.core.errors import Fault, Rejected
from swarmd.core.model_profile import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import openai

BATCH: Final = 128
BATCH_CHARS: Final = 200_000
#: About 8,000 tokens, which the usual models take; what is longer is embedded by its beginning.
TEXT_CHARS_MAX: Final = 24_000
TEXT_CHARS_MIN: Final = 500
_TOO_MUCH: Final = ("bad_request", "context_too_long")


class _Vector(Struct):
    embedding: list[float]
    index: int = -1


class _Answer(Struct):
    data: list[_Vector] = field(default_factory=list)


class OpenAIEmbedder:
    """Safe for concurrent calls from several threads."""

    def __init__(self, model: str, endpoint: Endpoint, dimension: int = 0) -> None:
        """No I/O. Raises `Rejected("unknown_dimension" | "no_embeddings" | "bad_base_url" | "bad_api_key" | ...)`."""
        self._endpoint = endpoint.checked()
        self._model = model
        if not endpoint.profile.embeddings:
            raise Rejected("no_embeddings", f"provider {endpoint.provider!r} embeds no texts: name another, or hash")
        known = DIMENSIONS.get(model.partition(":")[0], 0)
        if not (dimension or known):
            raise Rejected(
                "unknown_dimension", f"the length of the vectors of {model!r} is not known: set embedder_dimension"
            )
        self.dimension = dimension or known
        self._asked_dimension = dimension if dimension and dimension != known and known else 0
        self.name = f"{endpoint.provider}:{model}"
        self.id = f"{self.name}-{self.dimension}"
        self._client: openai.OpenAI | None = None
        self._opening = threading.Lock()

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector per text, in order. Raises `Fault` where another try may help, `Rejected` where not."""
        vectors: list[list[float]] = []
        batch: list[str] = []
        for text in texts:
            shown = text[:TEXT_CHARS_MAX] if text.strip() else "(empty)"  # servers refuse an empty text
            if batch and (len(batch) >= BATCH or sum(map(len, batch)) + len(shown) > BATCH_CHARS):
                vectors += self._fitting(batch)
                batch = []
            batch.append(shown)
        return vectors + (self._fitting(batch) if batch else [])

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _fitting(self, batch: list[str]) -> list[list[float]]:
        """A batch that is refused is embedded text by text, and a text that is refused by an ever shorter beginning:

        one memory that a model finds too long must not keep the others out of the store.
        """
        try:
            return self._embed(batch)
        except Rejected as refused:
            if refused.code not in _TOO_MUCH or (len(batch) == 1 and len(batch[0]) <= TEXT_CHARS_MIN):
                raise
        if len(batch) > 1:
            return [vector for text in batch for vector in self._fitting([text])]
        return self._fitting([batch[0][: len(batch[0]) // 2]])

    def _embed(self, batch: list[str]) -> list[list[float]]:
        outcome = self._post(batch)
        if isinstance(outcome, dict) and outcome.get("error"):
            outcome = refusal_within(outcome)
        if isinstance(outcome, Refusal):
            raise outcome.translated(self.name)
        if isinstance(outcome, Fault):
            raise outcome
        try:
            found = msgspec.convert(outcome, _Answer).data
        except msgspec.ValidationError as error:
            raise Fault("bad_answer", f"{self.name}: the embeddings are malformed: {error}") from None
        if len(found) != len(batch):
            raise Fault("bad_answer", f"{self.name} answered {len(batch)} texts with {len(found)} vectors")
        if sorted(one.index for one in found) == list(range(len(found))):
            found.sort(key=lambda one: one.index)
        return [self._unit(one.embedding) for one in found]

    def _unit(self, vector: list[float]) -> list[float]:
        if len(vector) != self.dimension:
            raise Rejected(
                "wrong_dimension",
                f"{self.name} answers with vectors of length {len(vector)}, not {self.dimension}: set "
                f"embedder_dimension = {len(vector)}, and rebuild the memory if it was made with another",
            )
        norm = math.sqrt(sum(x * x for x in vector))
        if not math.isfinite(norm) or norm == 0.0:
            raise Fault("bad_answer", f"{self.name} answered with a vector that has no direction")
        return [x / norm for x in vector]

    def _post(self, batch: list[str]) -> Any:
        """The decoded body of a 200 answer, or what went wrong."""
        client = self._opened()
        extra: dict[str, Any] = {"dimensions": self._asked_dimension} if self._asked_dimension else {}
        try:
            raw = client.embeddings.with_raw_response.create(
                model=self._model, input=batch, encoding_format="float", **extra
            )
            return decode_body(self._endpoint.redacted(raw.http_response.content))
        except Fault as fault:
            return fault
        except exchange_errors() as error:
            return failure_of(error, self._endpoint, self.name)

    def _opened(self) -> openai.OpenAI:
        with self._opening:
            if self._client is None:
                library = package()
                self._client = library.OpenAI(**self._endpoint.options(library))
            return self._client
