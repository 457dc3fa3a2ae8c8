"""Embedders by a spec: `hash`, `hash:DIMENSION`, `model:DIRECTORY`, or `provider:model`.

Job: the one door from a name to what makes vectors, for the memory node, for a rebuild with another embedder, and for
measurements. Every spec that cannot work is refused here, with what to write instead.
Must not know: stores, memories, who asks.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

import msgspec

from swarmd.adapters.bert_embedder import BertEmbedder
from swarmd.adapters.hash_batches import HashBatches, embed_aside
from swarmd.adapters.models import open_embedder
from swarmd.cached_embedder import CachedEmbedder, EmbedLimits
from swarmd.core.errors import Rejected
from swarmd.core.model_limits import Rate
from swarmd.edges.settings import model_settings
from swarmd.hash_embedder import DIMENSION, HashEmbedder

if TYPE_CHECKING:
    from swarmd.config import Settings
    from swarmd.ports import Clock, Embedder, Embeddings

FORMS: Final = "'hash', 'hash:DIMENSION', 'model:DIRECTORY' or 'provider:model'"
#: Batches under way at once. What computes here has one; an endpoint is waited for, so several pay.
ENDPOINT_LANES: Final = 4
ASIDE_BATCH_TEXTS: Final = 512
_LOCAL: Final = ("hash", "model")


def embedder_of(spec: str, settings: Settings, clock: Clock, dimension: int = 0) -> Embeddings:
    """The embeddings of a spec, "" for the configured one; batched, cached and paced as `[memory]` says.

    No network yet; a model directory is read. `dimension` is that of a `provider:model` that is not known. Raises as
    `blocking_embedder`.
    """
    embedder = blocking_embedder(spec, settings, dimension)
    table = settings.memory
    limits = EmbedLimits(
        cache_bytes=table.embedder_cache_bytes,
        rate=Rate(table.embedder_requests_per_minute, table.embedder_tokens_per_minute),
    )
    if (spec or table.embedder).partition(":")[0] not in _LOCAL:
        limits = msgspec.structs.replace(limits, lanes=ENDPOINT_LANES)
    elif isinstance(embedder, HashBatches):
        # One for whoever asks, one for whoever fills a store: its batches are made in a process of their own.
        limits = msgspec.structs.replace(limits, lanes=2, batch_texts=ASIDE_BATCH_TEXTS)
        return CachedEmbedder(embedder, clock, limits, embed_aside)
    return CachedEmbedder(embedder, clock, limits)


def blocking_embedder(spec: str, settings: Settings, dimension: int = 0) -> Embedder:
    """The embedder of a spec as it is: without batches, cache or pace, and blocking.

    Raises `Rejected("bad_embedder" | "bad_dimension" | "bad_model" | "missing_extra" | "unknown_model" |
    "unknown_dimension" | "missing_api_key" | ...)`, each with what to do instead.
    """
    configured = settings.memory.embedder
    spec = spec or configured
    kind, colon, rest = spec.partition(":")
    if kind == "hash" and not colon:
        return _hash_embedder(dimension or DIMENSION)
    if not rest or not kind or rest != rest.strip():
        raise Rejected("bad_embedder", f"an embedder is {FORMS}, not {spec!r}")
    if kind == "hash":
        return _hash(rest)
    if kind == "model":
        return BertEmbedder(rest)
    if spec == configured:
        dimension = dimension or settings.memory.embedder_dimension
    return open_embedder(model_settings(settings)(spec), dimension)


def _hash(number: str) -> Embedder:
    if not (number.isascii() and number.isdigit() and len(number) <= 6):
        raise Rejected("bad_embedder", f"hash:DIMENSION takes a number, such as hash:384, not {number!r}")
    return _hash_embedder(int(number))


def _hash_embedder(dimension: int) -> Embedder:
    """In batches where numpy is there; the vectors are the same."""
    is_there = importlib.util.find_spec("numpy") is not None
    return HashBatches(dimension) if is_there else HashEmbedder(dimension)
