"""The memory projection in Milvus: `store` speaks to it, `rows` says what is in it."""

from __future__ import annotations

from swarmd.adapters.milvus_store.rows import collection_for
from swarmd.adapters.milvus_store.store import MilvusStore

__all__ = ["MilvusStore", "collection_for"]
