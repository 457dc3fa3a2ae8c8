"""What the contract of vector stores is tried on: memories, vectors, and ways to open each kind of store."""

from __future__ import annotations

import math
import os
import signal
from array import array
from hashlib import blake2b
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.memory_fakes import FakeVectorStore, FakeVectorStores
from swarmd.adapters.milvus_store.connection import Place
from swarmd.adapters.milvus_store.stores import MilvusVectorStores
from swarmd.adapters.milvus_store.vector_store import MilvusVectorStore
from swarmd.core.memory import Memory
from swarmd.hash_embedder import HashEmbedder
from swarmd.ports import Hit, Pin, Row, VectorQuery

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from swarmd.adapters.milvus_server import MilvusServer

HAS_MILVUS = find_spec("milvus_lite") is not None and find_spec("pymilvus") is not None
needs_milvus = pytest.mark.skipif(not HAS_MILVUS, reason="the extra [memory] is not installed")

Store = FakeVectorStore | MilvusVectorStore
Stores = FakeVectorStores | MilvusVectorStores

EMBEDDER = HashEmbedder(64)
PIN = Pin(EMBEDDER.id, EMBEDDER.dimension)

FOX = Memory(id="fox", text="The quick brown fox jumps over the lazy dog.", source="fable.md", seq=1, since_ms=100)
LEASE = Memory(
    id="lease",
    text="A lease expires when the worker stops renewing it.",
    author="ada",
    task="t-1",
    swarm="main",
    step="s",
    space="swarm/main",
    seq=2,
    since_ms=200,
    labels={"kind": "rule", "lang": "en"},
)
BREAD = Memory(
    id="bread", text="Bread is baked from flour, water and salt.", seq=3, since_ms=300, labels={"kind": "recipe"}
)
BROKER = Memory(
    id="broker",
    text="The broker restarts on the same port after a crash.",
    author="bob",
    seq=4,
    since_ms=400,
    labels={"kind": "rule"},
)
ALL = [FOX, LEASE, BREAD, BROKER]


def vector(text: str) -> array[float]:
    return array("f", EMBEDDER.embed([text])[0])


def row(memory: Memory) -> Row:
    return Row(memory, vector(memory.text))


def rows(*memories: Memory) -> list[Row]:
    return [row(memory) for memory in memories]


def asked(text: str, k: int = 5, **more: object) -> VectorQuery:
    return VectorQuery(text=text, vector=vector(text), k=k, **more)  # type: ignore[arg-type]


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.memory.id for hit in hits]


async def recall(store: Store, text: str, k: int = 5, **more: object) -> list[str]:
    (hits,) = await store.search([asked(text, k, **more)])
    return ids(hits)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))


def prefix_for(name: str) -> str:
    return f"memory_{blake2b(name.encode(), digest_size=8).hexdigest()}"


def over(server: MilvusServer, directory: Path | None, name: str) -> MilvusVectorStores:
    return MilvusVectorStores(Place(server.uri, prefix_for(name), directory=directory))


async def kill(server: MilvusServer) -> None:
    """End the server as a crash would, and free its port for the next start."""
    if server.pid:
        os.kill(server.pid, signal.SIGKILL)
    await server.stop()
