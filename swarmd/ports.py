"""The boundaries of a role, as Protocols. Adapters and fakes implement them; core knows none of them.

Every await here is bounded by its implementation: it returns or raises `Rejected` or `Fault`, it never hangs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct

from swarmd.core.memory import Memory
from swarmd.core.memory_filter import Filter

if TYPE_CHECKING:
    from swarmd.core.catalog import FindQuery, FoundTask, TaskRow
    from swarmd.core.codec import Record
    from swarmd.core.model_limits import Rate, Slice
    from swarmd.core.program import ProgramSpec
    from swarmd.core.turns import ModelReply, ModelRequest, ToolSpec


class Model(Protocol):
    """One LLM, or the offline extractive model."""

    name: str

    async def complete(self, request: ModelRequest, on_delta: Callable[[str], None] | None = None) -> ModelReply:
        """Make one call and return a validated reply; `on_delta` gets pieces of its text as they come.

        Raises `Fault` where another try may help (after `retry_after_ms`, if that is said), `Rejected` where it will
        not. What was handed to `on_delta` before a failure is void: the next try begins anew.
        """
        ...

    async def close(self) -> None: ...


SideEffects = Literal["none", "idempotent", "at_most_once"]
"""What calling a tool twice does. `none`: it only looks. `idempotent`: it acts, and two calls with the same key act as
one. `at_most_once`: a second call would act again, so a call whose outcome is unknown is never repeated."""


class ToolPolicy(Struct, frozen=True):
    """How a tool is called, beyond its own limits; what an operator declares goes before what its author did.

    With `approval` somebody must approve each call (`approver`: who is asked, "" anybody; within `timeout_s`, None for
    ever; then `on_timeout`, which never approves; `escalate_to` are asked in turn). `retries` follow a `Fault` only,
    `backoff_ms` apart and doubling. `concurrency` is the number of calls at once in one process.
    """

    approval: bool = False
    approver: str = ""
    timeout_s: float | None = None
    on_timeout: Literal["fail", "reject", "escalate"] = "fail"
    escalate_to: tuple[str, ...] = ()
    retries: int = 0
    backoff_ms: int = 500
    concurrency: int = 16


class ToolOutput(Struct):
    """Text that a tool has cut itself, because handing it over whole would cost too much."""

    text: str
    cut_bytes: int = 0


class RateLedger(Protocol):
    """What a provider allows in a minute, shared by all who call it."""

    async def lease(self, provider: str, rate: Rate, need: Slice, wish: Slice) -> tuple[Slice, int]:
        """At least `need` and up to `wish` and 0, or nothing and how many milliseconds to wait. Raises `Fault`."""
        ...


class Tool(Protocol):
    """A function that a model may call. Its limits and `policy` are enforced by the caller (`roles/tool_calls`)."""

    @property
    def spec(self) -> ToolSpec: ...

    @property
    def timeout_ms(self) -> int: ...

    @property
    def output_bytes_max(self) -> int: ...

    @property
    def side_effects(self) -> SideEffects: ...

    @property
    def policy(self) -> ToolPolicy: ...

    async def call(self, arguments: dict[str, Any], key: str = "") -> str | ToolOutput:
        """Return text for the model. Raises `Rejected` for bad arguments, `Fault` for a failing world.

        `key` is the step's idempotency key: the same for each repeat of one call, and for no other call.
        """
        ...


class Program(Protocol):
    """One running process of a program agent: lines in, lines out, and an end that leaves nothing of it behind."""

    async def send(self, line: bytes) -> None:
        """Write one line (without its newline). Raises `Fault("program_deaf")`; an ended process takes nothing."""
        ...

    async def receive(self) -> bytes:
        """The next line, without its newline. Waits for as long as the process lives.

        Raises `Fault("program_exited")`, `Rejected("program_line_too_long")`.
        """
        ...

    async def end(self, *, gently: bool = False) -> None:
        """End the process and what it has started; `gently` lets it end by itself first. Idempotent."""
        ...


class Programs(Protocol):
    """Starts processes of program agents; `on_words` is called with each line that one says on stderr."""

    async def start(self, spec: ProgramSpec, on_words: Callable[[bytes], None]) -> Program:
        """Raises `Fault("program_not_started")`."""
        ...


class Embedder(Protocol):
    """Text to a unit vector. Two stores built with different `id`s must never be mixed."""

    id: str
    dimension: int

    def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]: ...


class Embeddings(Protocol):
    """An `Embedder` for an event loop: many callers, one pace. The `id` is that of what makes the vectors."""

    id: str
    dimension: int

    async def vectors(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """One unit vector per text, in order, as `array('f')`: shared with other callers, so never changed by them.

        `numpy.frombuffer(vector, "float32")` is a view of one. Raises `Fault` where another try may help (after
        `retry_after_ms`, if that is said), `Rejected` where it will not.
        """
        ...

    async def close(self) -> None: ...


class Row(Struct):
    """A memory with its vector (unit length, float32), as it goes into a store."""

    memory: Memory
    vector: Sequence[float]


class Hit(Struct, omit_defaults=True):
    """A recalled memory; `score` is a fused rank score: only its order means something.

    `similarity` is the cosine of its vector and the query's, NaN where the query has no vector.
    """

    memory: Memory
    score: float
    similarity: float = float("nan")


class VectorQuery(Struct, omit_defaults=True):
    """What to recall: the nearest `k` by words (`text`), by `vector`, or by both, that `where` lets through.

    `now_ms` is the time by which memories expire. `diversity` 0 takes the best, up to 1 what differs most among them.
    """

    text: str = ""
    vector: Sequence[float] | None = None
    k: int = 5
    where: Filter | None = None
    now_ms: int = 0
    min_similarity: float = -1.0
    diversity: float = 0.0


class Pin(Struct, frozen=True):
    """What the vectors of a store are made by, and their length: a store of another pin is refused."""

    embedder: str
    dimension: int


class HeldRow(Struct):
    """What a store holds of a memory, for a comparison with the log: which version, and whether it says the same.

    `digest` is `passages.digest_of` of the memory.
    """

    id: str
    seq: int
    digest: bytes


class VectorStore(Protocol):
    """The searchable projection of a memory log. One caller writes; upserts are idempotent by memory id."""

    async def open(self) -> int:
        """Open or create; return the sequence up to which the log is applied (0 when empty).

        Returns when the store is warm: its first search is as fast as its later ones.
        """
        ...

    async def apply(self, rows: Sequence[Row], forgotten: Sequence[str], upto: int, *, fresh: bool = False) -> None:
        """Upsert and delete, then record that the log is applied up to sequence `upto`.

        `fresh` says that none of the rows' ids can be in the store: they are inserted, which is faster.
        """
        ...

    async def search(self, queries: Sequence[VectorQuery]) -> list[list[Hit]]: ...

    def held(self) -> AsyncIterator[list[HeldRow]]:
        """Every memory that the store holds, in pages, each once."""
        ...

    async def count(self) -> int: ...

    async def drop(self) -> None:
        """Delete everything; `open` then starts a new store, to be filled from the log."""
        ...

    async def close(self) -> None: ...


class VectorStores(Protocol):
    """The stores of one memory log: one for each generation, and one for each view of the past."""

    def store(self, name: str, pin: Pin) -> VectorStore:
        """The store of that name ("g1", "asof_120"); nothing happens until it is opened."""
        ...

    async def names(self) -> list[str]:
        """Those that exist. Raises `Fault`."""
        ...

    async def close(self) -> None: ...


class WatchMatrix(Protocol):
    """The vectors of watches, all of one dimension, each with its threshold: compared with vectors in one product."""

    def put(self, watcher: str, vector: Sequence[float], threshold: float) -> None:
        """Add a watch, or put it in place of the one of that name. `vector` has unit length."""
        ...

    def remove(self, watcher: str) -> None:
        """Idempotent."""
        ...

    def nearest(self, vectors: Sequence[Sequence[float]]) -> list[list[tuple[str, float]]]:
        """For each vector the watches whose cosine with it is at least their threshold, with that cosine."""
        ...


class Mark(Struct, frozen=True):
    """How far a projection is: the last sequence it holds, and the message found there."""

    seq: int = 0
    message_id: str = ""


class Catalog(Protocol):
    """The read model of tasks. One caller writes; what it holds can be dropped and gathered from the log again."""

    async def open(self, source: str) -> Mark:
        """How far it is with the log `source`; a damaged catalog or one of another log starts empty."""
        ...

    async def apply(self, rows: Sequence[TaskRow], mark: Mark) -> None:
        """Store rows and mark together: after a crash either both are there or neither."""
        ...

    async def find(self, query: FindQuery) -> tuple[list[FoundTask], int]:
        """Tasks, newest first, and where to go on (0: nowhere). Raises `Rejected("bad_query")`."""
        ...

    async def task(self, task: str) -> FoundTask | None: ...

    async def size(self) -> tuple[int, int]:
        """Bytes held and their limit (0: none)."""
        ...

    async def drop(self) -> None: ...

    async def close(self) -> None: ...


class Received(Struct):
    """A message of the bus."""

    subject: str
    payload: bytes
    reply: str = ""


class Subscription(Protocol):
    async def close(self) -> None: ...


class Bus(Protocol):
    """Subjects: at most once, may lose, repeat and reorder. Only the log is believed."""

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None: ...

    async def request(self, subject: str, payload: bytes, timeout_ms: int) -> bytes:
        """One answer, or `Fault("no_responders" | "timeout" | "disconnected")`."""
        ...

    async def subscribe(self, subject: str, on_message: Callable[[Received], None], queue: str = "") -> Subscription:
        """`on_message` runs on the read loop: it must return at once."""
        ...


class Stored(Struct):
    """The broker's receipt. Stored is not accepted: only the fold accepts."""

    seq: int
    duplicate: bool = False


class Log(Protocol):
    """One log stream: append commits, read them by sequence, follow them from a sequence on."""

    async def append(self, subject: str, payload: bytes, message_id: str, seen: int) -> Stored:
        """Store one commit; repeats after a lost receipt with the same message id.

        Raises `Rejected("log_full" | "too_large")`, or `Fault` when the broker stayed silent for too long.
        """
        ...

    async def read(self, seqs: Sequence[int]) -> list[Record]:
        """The records at these sequences, in the order asked; a missing one raises `Fault("missing_sequence")`."""
        ...

    async def last_seq(self) -> int: ...

    async def follow(self, after: int, on_records: Callable[[list[Record]], Awaitable[None]]) -> None:
        """Deliver every record after sequence `after`, in order and without gaps, until cancelled.

        Survives broker restarts. Raises `Fault("gap")` when the stream no longer holds what comes next.
        """
        ...


class Intake(Protocol):
    """The stream of raw submissions: followed like a log, emptied once the log has taken them over."""

    async def follow(self, after: int, on_records: Callable[[list[Record]], Awaitable[None]]) -> None: ...

    async def purge(self, upto: int) -> None: ...


class Lease(Protocol):
    """Who should lead: a hint with a time to live. The term in the log is the fence."""

    async def look(self) -> int:
        """A mark of the lease as it is held now; 0 when nobody holds it."""
        ...

    async def acquire(self, mark: int = 0) -> bool:
        """Take it if nobody holds it, or if it still has the `mark` of a holder that is known to be gone."""
        ...

    async def renew(self) -> bool: ...

    async def release(self) -> None: ...


class Blobs(Protocol):
    """Content-addressed payloads too large for the log; a reader checks the hash."""

    async def put(self, payload: bytes) -> str:
        """Store and return the SHA-256 in hex. Raises `Rejected("blobs_full")`."""
        ...

    async def get(self, digest: str) -> bytes:
        """Raises `Rejected("blob_missing" | "blob_corrupt")`."""
        ...


class Probe(Protocol):
    """What a role tells whoever measures it; never a reason to fail."""

    def committed(self, events: int, size: int, took_ms: float) -> None: ...

    def folded(self, seq: int, events: int) -> None: ...

    def trouble(self, where: str, error: Exception) -> None:
        """Something failed and will be tried again."""
        ...

    def notice(self, what: str) -> None:
        """Something worth a line in the log, and all is well."""
        ...

    def incident(self, what: str) -> None:
        """Something an operator must know."""
        ...


class Meter(Protocol):
    """Named metrics (docs/metrics.md lists them); labels in the order of their definition."""

    def count(self, name: str, *labels: str, by: float = 1) -> None: ...

    def gauge(self, name: str, value: float, *labels: str) -> None: ...

    def observe(self, name: str, value: float, *labels: str) -> None: ...


class Snapshots(Protocol):
    """The newest saved states of a swarm."""

    async def load(self) -> list[bytes]:
        """The saved states, newest first; damaged or missing ones are left out."""
        ...

    async def save(self, payload: bytes) -> None: ...


class Clock(Protocol):
    """Milliseconds since the Unix epoch that never run backwards within a process."""

    def now_ms(self) -> int: ...

    async def sleep(self, delay_ms: int) -> None: ...


class Entropy(Protocol):
    """Randomness, kept at one door so that tests can hold it."""

    def bits(self, count: int) -> int: ...


Labels = Mapping[str, str]
