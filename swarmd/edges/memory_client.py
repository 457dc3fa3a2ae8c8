"""The client of a memory: remember, recall, watch, and what operators do with it.

Who asks is told by the subject: a client, a member of a swarm (`swarm=`), or an admin, whose verbs nobody else has.
Invariants: what may be done twice is asked again while nobody answers, within a bound; a request that the broker would
refuse for its size is never sent. Must not know how anything is shown, nor what files look like.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from swarmd.adapters.broker_users import read_credentials
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect, disconnect
from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import Failure
from swarmd.core.ids import uuid7
from swarmd.core.memory_wire import (
    MANY_MAX,
    ExportedMemory,
    ExportReply,
    ExportRequest,
    ForgetRequest,
    GetReply,
    GetRequest,
    Job,
    JobReply,
    JobRequest,
    LineageReply,
    LineageRequest,
    Match,
    MatchesReply,
    MatchesRequest,
    MemoryStats,
    RebuildRequest,
    RecalledPassage,
    RecallReply,
    RecallRequest,
    RememberReply,
    RememberRequest,
    RevokeReply,
    RevokeRequest,
    UnwatchRequest,
    UpdateRequest,
    VerifyRequest,
    WatchRequest,
)
from swarmd.edges.memory_batches import Outcome, pour
from swarmd.edges.memory_link import SPARE_BYTES, MemoryLink
from swarmd.memory_answers import error_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

#: One look for matches: short, so that a node that died with it is noticed soon.
POLL_MS, POLL_GRACE_MS = 3_000, 2_000
#: Between two looks at a job.
JOB_S: Final = 0.25


class MemoryClient(MemoryLink):
    """Asks one memory. Use `async with MemoryClient.connect(url) as memory`, or make one over an open connection.

    Errors are `Rejected`, `Conflict` or `Fault` with the node's code and message. `told` gets a line when nobody
    answers and it is waited for, and when matches were missed.
    """

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        url: str | NatsSettings = "nats://127.0.0.1:4222",
        memory: str = "shared",
        *,
        user_file: str | Path = "",
        **who: Any,
    ) -> AsyncIterator[MemoryClient]:
        """Connect to a broker; `who` are the other arguments of the constructor. Raises `Rejected` or `Fault`.

        `user_file` is one that `up` made, such as `DATA/users/admin.json`: who may ask as a member or an admin.
        """
        settings = url if isinstance(url, NatsSettings) else NatsSettings(url=url)
        if user_file:
            own = read_credentials(Path(user_file))
            rights = {"user": own.user, "password": own.password, "inbox_prefix": own.inbox_prefix}
            settings = msgspec.structs.replace(settings, **rights)
        connection = await connect(settings, "swarmd-memory-client")
        try:
            yield cls(NatsBus(connection), memory, **who)
        finally:
            await disconnect(connection)

    # --- remembering ---

    async def remember(self, text: str, **fields: Any) -> RememberReply:
        """Remember a text; `fields` are those of `RememberRequest` (id, labels, space, author, expires_at_ms, …).

        Without an `id` it gets one here, so that asking again makes no double.
        """
        return await self._ask("remember", self._named(RememberRequest(text, **fields)), RememberReply)

    async def remember_many(
        self, memories: Iterable[RememberRequest | dict[str, Any]], *, at_once: int = 4
    ) -> list[Outcome]:
        """Remember many in few requests, given as `{"text": …}` and what `remember` takes besides.

        A refused one has its error in its place.
        """
        outcomes: list[Outcome] = []

        async def each() -> AsyncIterator[RememberRequest]:
            for memory in memories:
                yield RememberRequest(**memory) if isinstance(memory, dict) else memory

        await self.pour(each(), lambda memory, outcome: outcomes.append(outcome), at_once=at_once)
        return outcomes

    async def pour(
        self,
        memories: AsyncIterator[RememberRequest],
        settled: Callable[[RememberRequest, Outcome], None],
        *,
        at_once: int = 4,
    ) -> None:
        """As `remember_many`, for more than fit into this process: `settled` is called for each, in their order.

        What `settled` raises ends it.
        """
        named = (self._named(memory) async for memory in memories)
        await pour(named, self._ask_raw, settled, limits=(self.payload_max - SPARE_BYTES, at_once))

    async def update(self, id: str, **fields: Any) -> RememberReply:
        """Let a memory say something else; `fields` are those of `UpdateRequest`, and what is left out stays.

        Without `if_seq` only repeated while it surely was not done. Raises `Conflict("stale_update")` where `if_seq` is
        not current.
        """
        wanted = UpdateRequest(id, **fields)
        return await self._ask("update", wanted, RememberReply, repeat=wanted.if_seq > 0)

    async def forget(self, id: str, reason: str = "", **fields: Any) -> RememberReply:
        """Drop a memory, as its author or as an admin."""
        return await self._ask("forget", ForgetRequest(id, reason, **fields), RememberReply)

    def _named(self, memory: RememberRequest) -> RememberRequest:
        if memory.id:
            return memory
        return msgspec.structs.replace(memory, id=uuid7(self._clock.now_ms(), self._entropy.bits(74)))

    # --- recalling ---

    async def recall(self, text: str = "", **fields: Any) -> RecallReply:
        """What is nearest to `text`; `fields` are those of `RecallRequest` (k, filter, spaces, mode, as_of, …)."""
        return await self._ask("recall", RecallRequest(text, **fields), RecallReply)

    async def get(self, ids: Sequence[str], **fields: Any) -> list[RecalledPassage]:
        """Memories by id, as the log has them; those that are not there, or not for the caller, are left out."""
        if isinstance(ids, str):
            raise Rejected("bad_ids", f"give a list of ids, as [{ids!r}]")  # its letters would be looked for
        found: list[RecalledPassage] = []
        left = list(ids)
        while left:
            asked, left = left[:MANY_MAX], left[MANY_MAX:]
            reply = await self._ask("get", GetRequest(asked, **fields), GetReply)
            found += reply.memories
            left = reply.rest + left
        return found

    async def stats(self) -> MemoryStats:
        return await self._ask("stats", {}, MemoryStats)

    # --- watching ---

    async def watch(self, watcher: str, text: str = "", **fields: Any) -> RememberReply:
        """Watch a meaning under the name `watcher`; `fields` are those of `WatchRequest` (threshold, filter, …)."""
        return await self._ask("watch", WatchRequest(watcher, text, **fields), RememberReply)

    async def unwatch(self, watcher: str, **fields: Any) -> RememberReply:
        return await self._ask("unwatch", UnwatchRequest(watcher, **fields), RememberReply)

    async def matches(self, watcher: str, after: int = 0, **fields: Any) -> AsyncIterator[Match]:
        """Each match of a watch once, in order, for as long as it is iterated; `after` is the `seq` of one, to go on.

        Asking for the next one says that those before it are done with. `fields` are `agent`, `task` and `step`.
        """
        while True:
            query = MatchesRequest(watcher, after, POLL_MS, **fields)
            reply = await self._ask("matches", query, MatchesReply, wait_ms=POLL_MS + POLL_GRACE_MS)
            if reply.missed:
                self._told(f"{reply.missed} matches of {watcher} are no longer kept: fetch them sooner")
            for match in reply.matches:
                if match.seq > after:
                    yield match
                    after = match.seq

    # --- operators ---

    async def lineage(self, id: str, swarm: str = "", depth: int = 1) -> LineageReply:
        """Where a memory comes from and what came of it; with `swarm`, the same of its task `id`."""
        return await self._ask("lineage", LineageRequest(id, swarm, depth), LineageReply)

    async def revoke(self, **conditions: Any) -> RevokeReply:
        """Withdraw memories as faulty; `conditions` are the fields of `RevokeRequest`, `dry` only lists.

        Asks until all are withdrawn and every task that has read any of them is known.
        """
        asked = RevokeRequest(**conditions)
        whole = await self._ask("revoke", asked, RevokeReply)
        while whole.left and not asked.dry:
            whole = await self._ask("revoke", asked, RevokeReply)
        page = whole
        while page.next:
            page = await self._ask("revoke", msgspec.structs.replace(asked, after=page.next), RevokeReply)
            whole.readers += page.readers
        return whole

    async def rebuild(self, *, on_progress: Callable[[Job], None] | None = None, **fields: Any) -> Job:
        """Build the store anew and wait for it; `fields` are those of `RebuildRequest`. Raises what made it fail."""
        return await self._run_job("rebuild", RebuildRequest(**fields), on_progress)

    async def verify(self, *, repair: bool = False, on_progress: Callable[[Job], None] | None = None) -> Job:
        """Compare the store with the log, and wait for it."""
        return await self._run_job("verify", VerifyRequest(repair), on_progress)

    async def export(self, after: int = 0) -> AsyncIterator[ExportedMemory]:
        """Every memory that is there, in the order of the log, from after sequence `after`."""
        asked = ExportRequest(after)
        while True:
            page = await self._ask("export", asked, ExportReply)
            for memory in page.memories:
                yield memory
            if not page.next:
                return
            asked.after, asked.index = page.next, page.index

    async def _run_job(self, verb: str, body: Any, on_progress: Callable[[Job], None] | None) -> Job:
        job = _job_in(await self._ask(verb, body, JobReply, repeat=False))
        while True:
            if on_progress is not None:
                on_progress(job)
            if isinstance(job.error, Failure):
                raise error_of(job.error)
            if job.state != "running":
                return job
            await asyncio.sleep(JOB_S)
            try:
                job = _job_in(await self._ask("job", JobRequest(job.id), JobReply))
            except Rejected as error:
                if error.code != "unknown_job":
                    raise
                why = f"another node serves memory {self.memory} now: begin the {verb} again"
                raise Fault("job_lost", why) from None


def _job_in(reply: JobReply) -> Job:
    if isinstance(reply.job, Job):
        return reply.job
    raise Fault("bad_reply", "the memory node answered without a job")
