"""What takes long at a memory and goes on beside its service: rebuilds, views of the past, verifications.

One job at a time. A rebuild fills a new generation from the log's beginning while the old one is written and asked as
ever; when it has caught up a `Rebuilt` in the log says that recalls are answered from it. Whatever moment cuts a job
short, the log tells which generation is in service, and what else is there is removed. Must not know who asks.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal

from swarmd.core import memory_fold
from swarmd.core.errors import Conflict, Fault, Rejected, SwarmdError
from swarmd.core.events import Failure
from swarmd.core.memory_fold import MemoryState
from swarmd.core.memory_wire import Job
from swarmd.roles.memory_vectors import HARMLESS, vectors_of
from swarmd.roles.memory_verify import Verification

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from swarmd.core.codec import Commit, Garbage
    from swarmd.core.memory_wire import RebuildRequest, VerifyRequest
    from swarmd.ports import Embeddings
    from swarmd.roles.memory_feed import Feed
    from swarmd.roles.memory_log import MemoryLog
    from swarmd.roles.memory_projection import Projection

JOBS_KEPT: Final = 20
#: A new generation takes over when it is so near to the log's end, or as near as the one in service.
NEAR_COMMITS: Final = 64
#: A job that stands still for so long, in trouble, has failed.
STALLED_MS: Final = 120_000


class Jobs:
    """The jobs of one projection, the latest ones kept in memory."""

    def __init__(self, projection: Projection) -> None:
        self.latest: list[Job] = []
        self._projection = projection
        self._running: Job | None = None
        self._count = 0

    def job(self, job_id: str) -> Job:
        """One of the latest jobs; the latest for "". Raises `Rejected("unknown_job")`."""
        for job in reversed(self.latest):
            if job_id in ("", job.id):
                return job
        which = f"no job {job_id[:100]}" if job_id else "no job"
        raise Rejected("unknown_job", f"{which} was begun here since this node serves the memory")

    async def rebuild(self, request: RebuildRequest) -> Job:
        """Begin a rebuild or a view."""
        if request.as_of_seq and request.as_of_ms:
            raise Rejected("bad_rebuild", "a view is as of a sequence or as of a time, not both")
        is_view = bool(request.as_of_seq or request.as_of_ms)
        if is_view and request.embedder:
            raise Rejected("bad_rebuild", "a view of the past has the embedder in service: leave `embedder` out")
        job = self._reserve("view" if is_view else "rebuild")
        try:
            if is_view:
                self._serving()
                job.as_of = await self._sequence(request)
                return self._begin(job, lambda: self._view(job))
            spec, dimension = self._spec(request.embedder)
            embeddings = await self._projection.embeddings(spec, dimension)
            return self._begin(job, lambda: self._rebuild(job, spec, embeddings))
        except BaseException:
            self._give_up(job)
            raise

    async def verify(self, request: VerifyRequest) -> Job:
        """Begin a verification."""
        job = self._reserve("verify")
        try:
            feed = self._serving()
            return self._begin(job, lambda: Verification(self._projection.log, feed, job).run(request.repair))
        except BaseException:
            self._give_up(job)
            raise

    def _serving(self) -> Feed:
        """The store in service. Raises `Fault("memory_behind")` while there is none."""
        feed = self._projection.feed
        if feed is None:
            raise Fault("memory_behind", self._projection.trouble)
        return feed

    # --- one at a time ---

    def cut(self) -> None:
        """The node serves no longer: what was running is over."""
        if self._running is not None:
            self._fail(self._running, Failure("not_serving", "this node serves no longer: begin again"))
            self._running = None

    @staticmethod
    def _fail(job: Job, why: Failure) -> None:
        job.state, job.error = "failed", why

    def _reserve(self, kind: Literal["rebuild", "view", "verify"]) -> Job:
        if self._running is not None:
            raise Conflict("job_running", f"job {self._running.id} is running: wait for its end")
        self._count += 1
        job = self._running = Job(f"{kind}-{self._projection.ports.clock.now_ms()}-{self._count}", kind)
        return job

    def _give_up(self, job: Job) -> None:
        if self._running is job and job not in self.latest:
            self._running = None

    def _begin(self, job: Job, work: Callable[[], Coroutine[None, None, None]]) -> Job:
        self._projection.spawn(lambda: self._run(job, work))
        self.latest.append(job)
        del self.latest[:-JOBS_KEPT]
        return job

    async def _run(self, job: Job, work: Callable[[], Coroutine[None, None, None]]) -> None:
        probe, memory = self._projection.ports.probe, self._projection.log.memory
        try:
            await work()
            job.state = "done"
            probe.notice(f"job {job.id} of memory {memory} is done")
        except SwarmdError as error:
            self._fail(job, Failure(error.code, error.message))
            probe.incident(f"job {job.id} of memory {memory} failed: {error.message}")
        self._running = None

    # --- the kinds ---

    def _spec(self, wanted: str) -> tuple[str, int]:
        """Which embedder a rebuild takes, and its dimension where that is known."""
        rebuilt = self._projection.log.state.rebuilt
        if rebuilt is None or wanted not in ("", rebuilt.embedder):
            return wanted or self._projection.ports.spec, 0
        return rebuilt.embedder, rebuilt.dimension

    async def _rebuild(self, job: Job, spec: str, embeddings: Embeddings) -> None:
        projection = self._projection
        log = projection.log
        await vectors_of(embeddings, [HARMLESS])  # one that cannot be asked fails here, not after an hour
        generation = projection.next_generation()
        while log.state.rebuilt is not None and generation <= log.state.rebuilt.generation:
            generation = projection.next_generation()  # the log tells of one that could never be opened
        feed = projection.start(f"g{generation}", projection.vectors_of(spec, embeddings), generation)

        def is_near() -> bool:
            old = projection.feed
            near = log.seq - feed.applied <= NEAR_COMMITS
            return feed.serves and (near or (old is not None and old.serves and feed.applied >= old.applied))

        try:
            await self._filled(job, feed, is_near)
            await log.commit((log.memory, projection.rebuilt(generation, spec, embeddings)))
            if _tells_of_another(log, generation):
                raise Conflict("rebuild_lost", "the log did not accept the new generation: begin again")
        except SwarmdError:
            await projection.end(feed)
            raise
        await log.until(lambda: projection.feed is feed or _tells_of_another(log, generation))
        if projection.feed is not feed:
            await projection.end(feed)
            raise Conflict("rebuild_lost", "another generation took over meanwhile: begin again if it is still wanted")
        job.rows = feed.rows

    async def _filled(self, job: Job, feed: Feed, is_filled: Callable[[], bool]) -> None:
        """Wait until a feed is where it shall be. Raises `Fault("job_stalled")`."""
        log = self._projection.log
        while not is_filled():
            job.done, job.total, job.rows = feed.applied, job.as_of or log.seq, feed.rows
            before = (feed.applied, feed.is_open)

            def has_moved(before: tuple[int, bool] = before) -> bool:
                return is_filled() or (feed.applied, feed.is_open) != before

            try:
                async with asyncio.timeout(STALLED_MS / 1000):
                    await log.until(has_moved)
            except TimeoutError:
                if feed.trouble:
                    raise Fault("job_stalled", f"nothing was built for {STALLED_MS} ms: {feed.trouble}") from None
        job.done = job.total = job.as_of or log.seq
        job.rows = feed.rows

    async def _view(self, job: Job) -> None:
        projection = self._projection
        if job.as_of in projection.views:
            job.done = job.total = job.as_of
            return
        serving = self._serving()
        past = await fold_upto(projection.log, job.as_of)
        vectors = projection.vectors_of(serving.vectors.spec, serving.vectors.embeddings)
        feed = projection.make(f"asof_{job.as_of}", vectors).of_the_past(past)
        filling = projection.follow(feed)
        try:
            await self._filled(job, feed, lambda: feed.serves)
            await asyncio.wait([filling])
            await projection.add_view(job.as_of, feed)
        except SwarmdError:
            await projection.end(feed)
            raise

    async def _sequence(self, request: RebuildRequest) -> int:
        """The sequence that a view is of: the last one up to the time. Raises `Rejected("bad_as_of")`, `Fault`."""
        log, records = self._projection.log, self._projection.ports.log
        last = log.seq
        if not request.as_of_ms:
            if not 0 < request.as_of_seq <= last:
                raise Rejected("bad_as_of", f"the log goes from sequence 1 to {last}, {request.as_of_seq} is not in it")
            return request.as_of_seq
        first, beyond = 0, last + 1  # what is at `first` is early enough, what is at `beyond` is not
        while beyond - first > 1:
            middle = (first + beyond) // 2
            (record,) = await records.read([middle])
            if record.at_ms <= request.as_of_ms:
                first = middle
            else:
                beyond = middle
        if not first:
            raise Rejected("bad_as_of", f"the log has nothing that is as old as {request.as_of_ms} ms since 1970")
        return first


def _tells_of_another(log: MemoryLog, generation: int) -> bool:
    """Whether another generation than this one is in service by the log."""
    rebuilt = log.state.rebuilt
    return rebuilt is None or rebuilt.generation != generation


async def fold_upto(log: MemoryLog, upto: int) -> MemoryState:
    """What the memory's log said up to a sequence that is folded already."""
    past = MemoryState(log.memory)

    async def on_commits(commits: list[Commit | Garbage]) -> None:
        for commit in commits:
            memory_fold.apply(past, commit)
            await asyncio.sleep(0)

    await log.follow(0, on_commits, upto)
    return past
