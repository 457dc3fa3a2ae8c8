"""The stores of one memory in one Milvus: a collection for each generation and each view of the past.

Must not know: which of them is in service, or why.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from swarmd.adapters.milvus_store.connection import TIMEOUT_S, Connection, Place, files_of
from swarmd.adapters.milvus_store.schema import digest
from swarmd.adapters.milvus_store.vector_store import MilvusVectorStore
from swarmd.core.errors import Fault, Rejected

if TYPE_CHECKING:
    from swarmd.ports import Pin

# Begins with a letter, so that no name of ours is part of the name of another memory's collection: where that goes
# on, the creation time of its log does.
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,60}")


def collection_for(memory: str) -> str:
    """How collections of a memory of any name begin; different names never meet in one collection."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", memory)[:100]
    return f"memory_{plain}" if plain == memory else f"memory_{plain}_{digest(memory)[:12]}"


class MilvusVectorStores:
    """`VectorStores` of one memory log; give `Place.prefix` the memory's name and the creation time of its log."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._connection = Connection(place, "")

    def store(self, name: str, pin: Pin) -> MilvusVectorStore:
        """Raises `Rejected("bad_collection")`."""
        if not _NAME.fullmatch(name):
            raise Rejected("bad_collection", f"store {name[:100]!r}: use lower case letters, digits and _")
        return MilvusVectorStore(self.place, name, pin)

    async def names(self) -> list[str]:
        """Those that exist, readable or not. Raises `Fault`."""
        collections = await asyncio.to_thread(self._collections)
        prefix = f"{self.place.prefix}_"
        found = (name.removeprefix(prefix) for name in collections if name.startswith(prefix))
        return sorted(name for name in found if _NAME.fullmatch(name))

    def _collections(self) -> list[str]:
        try:
            return self._connection.call(lambda client: list(client.list_collections(timeout=TIMEOUT_S)))
        except Fault:
            directory = self.place.directory
            if directory is None:
                raise
            # One damaged collection keeps an embedded Milvus from telling of any.
            self._connection.check_alive()
            files = files_of(directory)
            return [path.name for path in files.iterdir()] if files.exists() else []

    async def close(self) -> None:
        await asyncio.to_thread(self._connection.close)
