"""Requests to one Milvus: blocking, bounded, and with failures in our words.

Job: connect, send, load what a restarted server has not loaded, translate errors by their codes.
Must not know: rows, queries, when anything is sent. Called from threads.
"""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec import Struct

from swarmd.adapters.milvus_store.words import full
from swarmd.core.errors import Fault, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

TIMEOUT_S: Final = 30.0
"""Of every request."""
CONNECT_S: Final = 10.0
FREE_BYTES_MIN: Final = 4 * 1024 * 1024
"""Where a write failed with less room than this, it is the room that is missing: Milvus Lite does not say."""
_NOT_LOADED: Final = 101
_NOT_FOUND: Final = 100
# Otherwise channels to one address share their connection and its back-off: a new client of a server that has just come
# back would be refused for a second without a try.
_GRPC: Final = {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.min_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
    # pymilvus pings an idle connection each 10 s; servers of grpc call that too much, and hang up.
    "grpc.keepalive_time_ms": 300_000,
}


class Place(Struct, frozen=True):
    """A Milvus (a URI, or the path of a Milvus Lite file ending in .db) and what of it is ours.

    Collections are named `prefix`_NAME. `directory`, for an embedded Milvus, is where this node keeps the lexical side,
    on the disk that Milvus writes to; without one, words are indexed by the Milvus server.
    """

    uri: str
    prefix: str
    token: str = ""
    directory: Path | None = None


class Connection:
    """A client of a `Place`, made by the first request; loads `collection` again where a server has lost that."""

    def __init__(self, place: Place, collection: str) -> None:
        self.place = place
        self.collection = collection
        self.loads = 0
        """How often a server was found without the collection in its memory: it was restarted since."""
        self._client: Any = None
        self._is_closed = False
        self._lock = threading.RLock()

    def call(self, request: Callable[[Any], Result]) -> Result:
        """One request; a collection that a restarted server has not loaded is loaded, and the request repeated once.

        Raises `Fault("memory_unavailable" | "memory_lost" | "memory_full")`, `Rejected("no_pymilvus")`.
        """
        try:
            return self._once(request)
        except _NotLoaded:
            with self._lock:
                self._once(lambda client: client.load_collection(self.collection, timeout=TIMEOUT_S))
                self.loads += 1
            return self._once(request)

    def open(self) -> None:
        """Let requests pass, after a `close`."""
        self._is_closed = False

    def check_alive(self) -> None:
        """Raises `Fault` unless the server answers what has to do with no collection."""
        self.call(lambda client: client.get_server_version(timeout=TIMEOUT_S))

    def remove_files(self) -> None:
        """Remove what a dropped collection has left on the disk of an embedded Milvus: it could not be made again.

        Raises `Fault("memory_unavailable")`.
        """
        directory = self.place.directory
        left = None if directory is None else files_of(directory) / self.collection
        if left is not None and left.exists():
            try:
                shutil.rmtree(left)
            except OSError as error:
                raise Fault("memory_unavailable", f"{left} cannot be removed: {error}") from error

    def close(self) -> None:
        """Idempotent; later requests, and those under way, raise `Fault("memory_closed")`."""
        with self._lock:
            self._is_closed = True
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _once(self, request: Callable[[Any], Result]) -> Result:
        require_pymilvus()
        import grpc  # type: ignore[import-untyped,unused-ignore]
        from pymilvus import MilvusClient, MilvusException

        try:
            with self._lock:
                if self._is_closed:
                    raise Fault("memory_closed", "the memory store is not open")
                if self._client is None:
                    self._client = MilvusClient(
                        uri=self.place.uri,
                        token=self.place.token,
                        timeout=CONNECT_S,
                        dedicated=True,
                        grpc_options=_GRPC,
                    )
                client = self._client
            return request(client)
        except MilvusException as error:
            if error.code == _NOT_LOADED:
                raise _NotLoaded("memory_unavailable", error.message, retry_after_ms=500) from error
            if error.code == _NOT_FOUND:
                raise Fault("memory_lost", f"the collection is gone; fill it from the log: {error.message}") from error
            raise self._failed(error.message, error) from error
        except grpc.RpcError as error:
            raise self._failed(str(error), error) from error
        except ValueError as error:  # what grpc raises for a closed channel
            if not self._is_closed:
                raise
            raise Fault("memory_closed", "the memory store was closed meanwhile") from error

    def _failed(self, why: str, error: Exception) -> Fault:
        directory = self.place.directory
        if directory is not None and directory.exists() and shutil.disk_usage(directory).free < FREE_BYTES_MIN:
            return full(directory, error)
        return Fault("memory_unavailable", f"Milvus failed: {why}", retry_after_ms=500)


def files_of(directory: Path) -> Path:
    """Where an embedded Milvus has its collections, each in a folder of its name."""
    return directory / "rows" / "collections"


class _NotLoaded(Fault):
    """The collection is there, but not in the server's memory."""


def require_pymilvus() -> None:
    """Raises `Rejected("no_pymilvus")`. The first call takes a second."""
    try:
        import pymilvus  # noqa: F401
    except ImportError as error:
        raise Rejected("no_pymilvus", "pymilvus is not installed: run `pip install 'swarmd[memory]'`") from error
    # It prints a traceback for every failed request; ours are raised as faults and logged by their receivers.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
