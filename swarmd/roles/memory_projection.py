"""The searchable projection of a memory's log: which store is in service, which is being built, and who may ask them.

Which generation is in service is told by the log alone (`Rebuilt`): a node serves the one that its fold knows, with
the embedder that it was built with, and follows when another takes over. Stores that the log does not tell of are
remains of work that was cut short, and are removed. Must not know which store or embedder it has, or who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct, structs

from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.memory import Rebuilt
from swarmd.core.memory_door import unit_vector
from swarmd.ports import Clock, Embeddings, Log, Meter, Probe, VectorStores
from swarmd.roles.memory_feed import Feed, FeedWorld
from swarmd.roles.memory_jobs import Jobs
from swarmd.roles.memory_vectors import Vectors, vectors_of

if TYPE_CHECKING:
    from array import array

    from swarmd.core.memory_wire import Job, RebuildRequest, VerifyRequest
    from swarmd.ports import Hit, Pin, VectorQuery
    from swarmd.roles.memory_log import MemoryLog

#: How long a recall waits for the store to be as new as it wants.
RECALL_WAIT_MS: Final = 20_000
RETRY_MS: Final = 2_000
#: How long recalls that are under way may go on in a store that was taken out of service.
LEAVE_MS: Final = 30_000
VIEWS_MAX: Final = 4


class ProjectionPorts(Struct, frozen=True):
    """What a projection needs of the world.

    `embeddings` makes those of a spec and a dimension (0: the spec's own), and raises `Rejected` for one that cannot
    work; `spec` is the configured one, for a memory that has none yet. `may_write` says that the lease is fresh.
    """

    log: Log
    stores: VectorStores
    embeddings: Callable[[str, int], Embeddings]
    spec: str
    may_write: Callable[[], bool]
    clock: Clock
    probe: Probe
    meter: Meter


class View(Struct, eq=False):
    """A store of what was remembered at sequence `seq`, at time `at_ms`."""

    seq: int
    at_ms: int
    feed: Feed


class Projection:
    """Construct; `run` while the lease is held, again and again if need be; `close` at the end."""

    def __init__(self, log: MemoryLog, ports: ProjectionPorts) -> None:
        self.log, self.ports = log, ports
        self.feed: Feed | None = None
        self._generation = 0
        self._why = "it is being opened"
        self._highest = 0
        self._views: dict[int, View] = {}
        self._made: dict[tuple[str, int], Embeddings] = {}
        self._candidates: dict[int, Feed] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[str] = set()
        self._is_serving, self._swept, self._adopts = False, False, True
        self._jobs = Jobs(self)
        self._group: asyncio.TaskGroup

    # --- life ---

    async def run(self) -> None:
        """Keep the store in service up with the log, and do the jobs that are asked for, until cancelled."""
        self._why, self._swept, self._adopts = "it is being opened", False, True
        try:
            async with asyncio.TaskGroup() as self._group:
                self._is_serving = True
                try:
                    await self._serve()
                finally:
                    self._is_serving = False
        finally:
            self._why = "another node serves it"
            self._jobs.cut()
            feeds = [*self._candidates.values(), *(view.feed for view in self._views.values())]
            feeds += [self.feed] if self.feed is not None else []
            self.feed, self._generation = None, 0
            self.log.moved()
            self._candidates, self._views, self._tasks = {}, {}, {}
            for feed in feeds:
                await feed.store.close()

    async def close(self) -> None:
        """Close the embedders. The stores are closed by the end of `run`."""
        made, self._made = self._made, {}
        for embeddings in made.values():
            await embeddings.close()

    async def _serve(self) -> None:
        """Have that generation in service which the log tells of, and remove what is neither that nor needed."""
        state = self.log.state
        await self._first_look()
        while True:
            rebuilt = state.rebuilt
            try:
                if rebuilt is None:
                    await self._begin()
                    continue
                if rebuilt.generation != self._generation:
                    await self._switch(rebuilt)
                await self._sweep()
            except SwarmdError as error:
                if rebuilt is None or rebuilt.generation != self._generation:
                    self._why = error.message
                self.ports.probe.trouble("memory projection", error)
                await self._pause(rebuilt)
                continue
            await self.log.until(lambda seen=rebuilt: state.rebuilt is not seen or not self._swept)  # type: ignore[misc]

    async def _pause(self, seen: Rebuilt | None) -> None:
        """Before another try, unless the log tells of another generation by then."""
        try:
            async with asyncio.timeout(RETRY_MS / 1000):
                await self.log.until(lambda: self.log.state.rebuilt is not seen)
        except TimeoutError:
            return

    async def _first_look(self) -> None:
        """Learn what a predecessor did last. No number is given twice: its last write could be in a store of ours."""
        while True:
            try:
                await self.log.folded(await self.log.last_seq())
                names = await self.ports.stores.names()
                break
            except Fault as error:
                self._why = error.message
                self.ports.probe.trouble("memory stores", error)
                await self.ports.clock.sleep(RETRY_MS)
        self._highest = max([self._highest, 0, *(_number(name, "g") for name in names)])

    async def _begin(self) -> None:
        """A memory's first generation: from here on its log says what it is embedded by."""
        spec = self.ports.spec
        embeddings = await self.embeddings(spec, 0)
        await self.log.commit((self.log.memory, self.rebuilt(self.next_generation(), spec, embeddings)))

    def rebuilt(self, generation: int, spec: str, embeddings: Embeddings) -> Rebuilt:
        """The fact that a generation is in service."""
        return Rebuilt(generation=generation, embedder=spec, embedder_id=embeddings.id, dimension=embeddings.dimension)

    async def _switch(self, rebuilt: Rebuilt) -> None:
        """Serve another generation: one that was built here, or whatever there is of it in its store."""
        generation = rebuilt.generation
        feed = self._candidates.pop(generation, None)
        if feed is None:
            embeddings = await self.embeddings(rebuilt.embedder, rebuilt.dimension)
            if (embeddings.id, embeddings.dimension) != (rebuilt.embedder_id, rebuilt.dimension):
                told = f"{embeddings.id} of {embeddings.dimension} dimensions"
                raise Rejected(
                    "embedder_changed",
                    f"the memory was embedded by {rebuilt.embedder_id} of {rebuilt.dimension} dimensions, and "
                    f"{rebuilt.embedder!r} is {told} now: rebuild it with an embedder that is there",
                )
            feed = self.start(f"g{generation}", self.vectors_of(rebuilt.embedder, embeddings))
        old, self.feed = self.feed, feed
        self._generation, self._why = generation, ""
        self._highest = max(self._highest, generation)
        ports = self.ports
        ports.probe.notice(f"generation {generation} of memory {self.log.memory} is in service: {rebuilt.embedder_id}")
        if rebuilt.embedder != ports.spec:
            ports.probe.notice(
                f"it embeds with {rebuilt.embedder!r} as its log says, not with {ports.spec!r} as configured: "
                f"'swarmd memory rebuild --embedder {ports.spec}' changes that"
            )
        self.log.moved()
        if old is not None:
            await self.end(old)

    async def _sweep(self) -> None:
        """Remove stores that are neither in service nor being built; at first, find the views that are whole."""
        self._swept, adopts, self._adopts = True, self._adopts, False
        try:
            for name in sorted(await self.ports.stores.names(), key=lambda name: _number(name, "asof_")):
                if name == f"g{self._generation}" or name in self._tasks or name in self._leaving:
                    continue
                seq = _number(name, "asof_")
                if seq in self._views and self._views[seq].feed.vectors.pin == self.pin:
                    continue
                if adopts and seq > 0 and await self._found(name, seq):
                    continue
                self._check_lease()
                self._views.pop(seq, None)
                self.ports.probe.notice(f"store {name} of memory {self.log.memory} is of no more use: it is removed")
                store = self.make(name, self._vectors()).store
                await store.drop()
                await store.close()
        except SwarmdError:
            self._swept, self._adopts = False, adopts
            raise

    async def _found(self, name: str, seq: int) -> bool:
        """Whether a view of an earlier life is whole, and made by the embedder in service."""
        feed, is_whole = self.make(name, self._vectors()), False
        try:
            if await feed.store.open() == seq:
                await self.add_view(seq, feed)
                is_whole = True
        except (Rejected, Fault) as error:
            if isinstance(error, Fault) and error.code != "memory_damaged":
                raise
            self.ports.probe.notice(f"view {name} cannot be used: {error.message}")
        finally:
            if not is_whole:
                await feed.store.close()
        return is_whole

    def _vectors(self) -> Vectors:
        assert self.feed is not None
        return self.feed.vectors

    # --- for jobs ---

    async def embeddings(self, spec: str, dimension: int) -> Embeddings:
        """The embeddings of a spec, the same for all who ask. Raises `Rejected`."""
        made = self._made.get((spec, dimension))
        if made is None:
            made = await asyncio.to_thread(self.ports.embeddings, spec, dimension)
            self._made[spec, dimension] = self._made[spec, made.dimension] = made
        return made

    def vectors_of(self, spec: str, embeddings: Embeddings) -> Vectors:
        """What makes the vectors of one store."""
        ports = self.ports
        return Vectors(self.log.memory, spec, embeddings, (ports.clock, ports.probe, ports.meter))

    def next_generation(self) -> int:
        """A number that no store has had."""
        self._highest += 1
        return self._highest

    def make(self, name: str, vectors: Vectors) -> Feed:
        """A feed of the store of that name, not running."""
        ports = self.ports
        world = FeedWorld(ports.may_write, ports.clock, ports.probe, ports.meter)
        return Feed(name, self.log, ports.stores.store(name, vectors.pin), vectors, world)

    def start(self, name: str, vectors: Vectors, generation: int = 0) -> Feed:
        """A running feed; with `generation` it stands ready to take over."""
        feed = self.make(name, vectors)
        if generation:
            self._candidates[generation] = feed
        self.follow(feed)
        return feed

    def follow(self, feed: Feed) -> asyncio.Task[None]:
        """Run a feed until it ends or `end` is called."""
        task = self._tasks[feed.name] = self._group.create_task(feed.run())
        return task

    async def end(self, feed: Feed) -> None:
        """Stop a feed, and let recalls that are under way in its store end; then the store is removed."""
        self._candidates = {number: held for number, held in self._candidates.items() if held is not feed}
        self._leaving.add(feed.name)
        task = self._tasks.pop(feed.name, None)
        if task is not None:
            task.cancel()
        self._group.create_task(self._leave(feed, task))

    async def _leave(self, feed: Feed, task: asyncio.Task[None] | None) -> None:
        try:
            if task is not None:
                await asyncio.wait([task])
            async with asyncio.timeout(LEAVE_MS / 1000):
                await self.log.until(lambda: not feed.searching)
        except TimeoutError:
            self.ports.probe.incident(f"recalls in store {feed.name} did not end within {LEAVE_MS} ms")
        finally:
            self._leaving.discard(feed.name)
            await feed.store.close()
        self._swept = False
        self.log.moved()

    def _check_lease(self) -> None:
        if not self.ports.may_write():
            raise Fault("lease_unsure", "the lease could not be renewed: another node may use the store")

    async def add_view(self, seq: int, feed: Feed) -> None:
        """Let recalls ask a view of the past that is whole; the oldest one goes when there are too many."""
        (record,) = await self.ports.log.read([seq])
        self._views[seq] = View(seq, record.at_ms, feed)
        self._tasks.pop(feed.name, None)
        while len(self._views) > VIEWS_MAX:
            oldest = self._views.pop(next(iter(self._views)))
            self.ports.probe.notice(f"the view of sequence {oldest.seq} of memory {self.log.memory} is removed")
            await self.end(oldest.feed)

    def spawn(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do a job while this node serves. Raises `Fault("memory_behind")`."""
        if not self._is_serving:
            raise Fault("memory_behind", self.trouble)
        self._group.create_task(work())

    # --- asked by the node ---

    @property
    def applied(self) -> int:
        """The sequence up to which the log is in the store in service."""
        return 0 if self.feed is None else self.feed.applied

    @property
    def trouble(self) -> str:
        """Why the store cannot be asked, or falls behind; "" when all is well."""
        return f"the vector store cannot be used: {self._why}" if self.feed is None or self._why else self.feed.trouble

    @property
    def pin(self) -> Pin | None:
        """What the vectors in service are made by; None while that is not known yet."""
        return None if self.feed is None else self.feed.vectors.pin

    @property
    def warm(self) -> bool:
        """Whether the store is open, at full speed, and holds what the log held when it was opened."""
        return self.feed is not None and self.feed.serves

    @property
    def generation(self) -> int:
        """The generation in service; 0 while there is none."""
        return self._generation

    @property
    def views(self) -> list[int]:
        """The sequences of which there is a view, oldest view first."""
        return list(self._views)

    @property
    def jobs(self) -> list[Job]:
        """The latest jobs, oldest first."""
        return self._jobs.latest

    async def vectors(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """Vectors of queries, as the store in service has them. Raises `Fault("memory_behind" | ...)`, `Rejected`."""
        while True:
            try:
                async with asyncio.timeout(RECALL_WAIT_MS / 1000):
                    feed = await self._served(lambda feed: True)
            except TimeoutError:
                raise Fault("memory_behind", self.trouble) from None
            found = await vectors_of(feed.vectors.embeddings, texts)
            if self.feed is feed or self.feed is None:
                return found

    def given(self, vector: Sequence[float], embedder: str) -> tuple[array[float], Pin]:
        """A vector that somebody made elsewhere, by `embedder` ("" for the one in service), as a query; and its pin.

        Raises `Rejected("embedder_mismatch" | "wrong_dimension" | "bad_vector")`, `Fault("memory_behind")`.
        """
        pin = self.pin
        if pin is None:
            raise Fault("memory_behind", f"{self.trouble}: ask again")
        if embedder not in ("", pin.embedder):
            why = f"this memory's vectors are made by {pin.embedder}, not by {embedder}: send a text instead"
            raise Rejected("embedder_mismatch", why)
        return unit_vector(vector, pin.dimension), pin

    async def search(
        self, query: VectorQuery, as_of: int = 0, at_least_seq: int = 0, pin: Pin | None = None
    ) -> tuple[list[Hit], int]:
        """Hits, best first, and the sequence that the store was applied up to. Waits for `at_least_seq`, bounded.

        `pin` is what the query's vector was made by. Raises `Fault("memory_behind")` saying why, `Fault("rebuilt")`
        when another embedder is in service by now, `Rejected("unknown_view")`, and what the store raises.
        """
        if as_of:
            return await self._search_view(query, as_of, pin)
        try:
            async with asyncio.timeout(RECALL_WAIT_MS / 1000):
                while True:
                    feed = await self._served(lambda feed: feed.serves and feed.applied >= at_least_seq)
                    _check_pin(query, pin, feed)
                    try:
                        return await self._ask(feed, query)
                    except Fault as error:
                        if error.code != "memory_lost":
                            raise
                        feed.lost()
        except TimeoutError:
            raise Fault("memory_behind", self._behind(at_least_seq)) from None

    async def _search_view(self, query: VectorQuery, as_of: int, pin: Pin | None) -> tuple[list[Hit], int]:
        view = self._views.get(as_of)
        if view is None:
            there = f"there is one of {', '.join(map(str, self._views))}" if self._views else "there is none"
            raise Rejected(
                "unknown_view",
                f"there is no view of sequence {as_of}, {there}: 'swarmd memory rebuild --as-of {as_of}' makes it",
            )
        _check_pin(query, pin, view.feed)
        try:
            return await self._ask(view.feed, structs.replace(query, now_ms=view.at_ms))
        except Fault as error:
            if error.code == "memory_lost" and self._views.get(as_of) is view:
                del self._views[as_of]
                self._swept = False
                self.ports.probe.incident(f"the view of sequence {as_of} of memory {self.log.memory} was lost")
            raise

    async def _ask(self, feed: Feed, query: VectorQuery) -> tuple[list[Hit], int]:
        seq = feed.applied
        feed.searching += 1
        try:
            (hits,) = await feed.store.search([query])
        finally:
            feed.searching -= 1
            if not feed.searching and feed is not self.feed:
                self.log.moved()
        return hits, seq

    async def _served(self, is_fit: Callable[[Feed], bool]) -> Feed:
        """Wait until the store in service is fit. Between that and whoever waits, it may be gone again."""
        while True:
            feed = self.feed
            if feed is not None and is_fit(feed):
                return feed
            await self.log.until(lambda: self.feed is not None and is_fit(self.feed))

    def _behind(self, at_least_seq: int) -> str:
        if self.trouble:
            return self.trouble
        wanted = max(at_least_seq, self.feed.target if self.feed is not None else 0)
        return f"the store has the log up to sequence {self.applied}, {wanted} is wanted: ask again"

    async def rebuild(self, request: RebuildRequest) -> Job:
        """Begin a rebuild or a view. Raises `Conflict("job_running")`, `Rejected("bad_rebuild" | "bad_as_of")`."""
        return await self._jobs.rebuild(request)

    async def verify(self, request: VerifyRequest) -> Job:
        """Begin a verification. Raises `Conflict("job_running")`, `Fault("memory_behind")`."""
        return await self._jobs.verify(request)

    def job(self, job_id: str) -> Job:
        """One of the latest jobs; the latest for "". Raises `Rejected("unknown_job")`."""
        return self._jobs.job(job_id)


def _check_pin(query: VectorQuery, pin: Pin | None, feed: Feed) -> None:
    """Raises `Fault("rebuilt")` where the query's vector and the store's were made by different embedders."""
    if query.vector is not None and pin not in (None, feed.vectors.pin):
        raise Fault("rebuilt", "the memory is embedded by another embedder since now: ask again")


def _number(name: str, prefix: str) -> int:
    """The number in the name of a store; -1 for one of another kind."""
    rest = name.removeprefix(prefix)
    return int(rest) if name.startswith(prefix) and rest.isascii() and rest.isdecimal() else -1
