"""The memory projection in Milvus: `stores` opens it, `schema` says what is in it, `words` are beside it."""

from __future__ import annotations

from swarmd.adapters.milvus_store.connection import Place
from swarmd.adapters.milvus_store.stores import MilvusVectorStores, collection_for
from swarmd.adapters.milvus_store.vector_store import MilvusVectorStore

__all__ = ["MilvusVectorStore", "MilvusVectorStores", "Place", "collection_for"]
