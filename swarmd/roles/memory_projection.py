"""The searchable projection of a memory's log, as its node asks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from swarmd.ports import Clock, Embeddings, Meter, Probe, VectorStores

if TYPE_CHECKING:
    from swarmd.core.memory_wire import Job, RebuildRequest, VerifyRequest
    from swarmd.ports import Hit, Pin, VectorQuery
    from swarmd.roles.memory_log import MemoryLog


class ProjectionPorts(Struct, frozen=True):
    """What a projection needs of the world.

    `embeddings` makes those of a spec and a dimension (0: the spec's own), and raises `Rejected` for one that cannot
    work; `spec` is the configured one, for a memory that has none yet. `may_write` says that the lease is fresh.
    """

    stores: VectorStores
    embeddings: Callable[[str, int], Embeddings]
    spec: str
    may_write: Callable[[], bool]
    clock: Clock
    probe: Probe
    meter: Meter


class Projection:
    """Construct; `run` while the lease is held, again and again if need be; `close` at the end."""

    def __init__(self, log: MemoryLog, ports: ProjectionPorts) -> None:
        self._log, self._ports = log, ports

    async def run(self) -> None:
        """Keep the store in service up with the log, and do the jobs that are asked for, until cancelled."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    @property
    def applied(self) -> int:
        """The sequence up to which the log is in the store in service."""
        raise NotImplementedError

    @property
    def trouble(self) -> str:
        """Why the store cannot be asked, or falls behind; "" when all is well."""
        raise NotImplementedError

    @property
    def pin(self) -> Pin | None:
        """What the vectors in service are made by; None while that is not known yet."""
        raise NotImplementedError

    @property
    def warm(self) -> bool:
        """Whether the store is open, at full speed, and holds what the log held when it was opened."""
        raise NotImplementedError

    @property
    def generation(self) -> int:
        raise NotImplementedError

    @property
    def views(self) -> list[int]:
        """The sequences of which there is a view, oldest view first."""
        raise NotImplementedError

    @property
    def jobs(self) -> list[Job]:
        """The latest jobs, oldest first."""
        raise NotImplementedError

    async def vectors(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """Vectors of queries, as the store in service has them. Raises `Fault("memory_behind" | ...)`, `Rejected`."""
        raise NotImplementedError

    async def search(self, query: VectorQuery, as_of: int = 0, at_least_seq: int = 0) -> tuple[list[Hit], int]:
        """Hits, best first, and the sequence that the store was applied up to. Waits for `at_least_seq`, bounded.

        Raises `Fault("memory_behind")` saying why, `Rejected("unknown_view")`, and what the store raises.
        """
        raise NotImplementedError

    async def rebuild(self, request: RebuildRequest) -> Job:
        """Begin a rebuild or a view. Raises `Conflict("job_running")`, `Rejected("bad_rebuild" | "bad_as_of")`."""
        raise NotImplementedError

    async def verify(self, request: VerifyRequest) -> Job:
        """Begin a verification. Raises `Conflict("job_running")`, `Fault("memory_behind")`."""
        raise NotImplementedError

    def job(self, job_id: str) -> Job:
        """One of the latest jobs; the latest for "". Raises `Rejected("unknown_job")`."""
        raise NotImplementedError
