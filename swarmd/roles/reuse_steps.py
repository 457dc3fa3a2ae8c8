"""Semantic reuse: the result of an earlier task with much the same input, instead of another run. Steps of a worker.

Before the agent begins, one step looks for such a result; after it has succeeded, another keeps what it returned. Both
are recorded, so a resumed task goes the way that it has begun. Whether an agent reuses may change under tasks that are
under way: those that have begun without go on without, and those that have begun with it are not held to it.
Invariants: a failure is never kept; a memory that cannot answer costs a bounded wait and no task.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw

from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import Stepped
from swarmd.core.memory_wire import RecalledPassage, RecallReply, RecallRequest, RememberReply, RememberRequest
from swarmd.reuse import source_of, text_of
from swarmd.roles.memory_steps import MemorySteps

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from swarmd.reuse import Reuse

log = logging.getLogger(__name__)

LOOK: Final = "reuse"
KEEP: Final = "reuse_kept"
#: How long a task waits for a memory that may save it its work, or keep it for others.
REUSE_WAIT_MS: Final = 2_000
#: Cosines of float32 vectors are that exact.
EXACT: Final = 1e-6
#: Larger results are not kept: a memory holds 64 KiB beside the text.
RESULT_BYTES_MAX: Final = 48 * 1024


class ReuseSteps(MemorySteps):
    """The worker's side of reuse."""

    async def reused(self, reuse: Reuse | None, version: str, wanted: Any, run: Callable[[], Awaitable[Any]]) -> Any:
        """The output: that of an earlier task whose input was alike, or what `run` returns, which is then kept."""
        text = text_of(reuse, wanted) if reuse is not None else ""
        if reuse is None or not text or not self._may_reuse():
            self._drop_reuse()
            return await run()
        source = source_of(reuse, text, f"{self.agent}@{version}", self._ports.default_model)
        self._left_out = f'step != "{KEEP}#1"'  # for whoever recalls they are no knowledge
        look, keep = self._key(LOOK), self._key(KEEP)  # the first of their names, whatever the agent's steps are called
        found = await self._journaled(look, LOOK, lambda: self._look(reuse, text, source))
        if found.get("memory"):
            return found["output"]
        output = await run()
        await self._keep(keep, reuse, RememberRequest(text, source=source), output)
        return output

    def _may_reuse(self) -> bool:
        """Not a task that has begun without."""
        first = self._journal.get(f"{LOOK}#1")
        return not self._journal or (isinstance(first, Stepped) and first.kind == LOOK)

    def _drop_reuse(self) -> None:
        """A task that has begun with reuse goes on without."""
        first = self._journal.get(f"{LOOK}#1")
        if isinstance(first, Stepped) and first.kind == LOOK:
            for name in (LOOK, KEEP):
                self._unread.pop(f"{name}#1", None)
                self._occurrences[name] = 1  # the agent's own steps of that name were counted from 2

    async def _look(self, reuse: Reuse, text: str, source: str) -> dict[str, Any]:
        """The nearest result, or why there is none; how that went is counted."""
        swarm = self._ports.swarm
        where = f'source = "{source}" and author = "{self.agent}" and step = "{KEEP}#1"'
        request = RecallRequest(text, 1, mode="dense", spaces=[reuse.scope], how="reuse")
        request.filter = where + (' and swarm != ""' if reuse.scope == "shared" else f' and swarm = "{swarm}"')
        request.min_similarity = reuse.threshold - EXACT
        try:
            reply = await self._asked("recall", self._signed(request, f"{LOOK}#1"), RecallReply, REUSE_WAIT_MS, 0)
        except (Rejected, Fault) as error:
            log.warning("no result is reused by %s: %s", self.agent, error, extra={"task": self.task})
            self._count("unavailable")
            return {"why": error.code}
        for passage in reply.passages:
            similarity = passage.similarity if isinstance(passage.similarity, float) else -1.0
            result = _result_in(passage) if self._fits(passage, reuse, source) else {}
            if "output" in result and similarity >= reuse.threshold - EXACT:
                self._count("hit")
                made_by = f"{passage.swarm}/{passage.task}"
                where_it_is = {"memory": passage.id, "seq": passage.seq, "similarity": round(similarity, 6)}
                return {**where_it_is, "task": made_by, "output": result["output"]}
        self._count("miss")
        return {}

    def _fits(self, passage: RecalledPassage, reuse: Reuse, source: str) -> bool:
        """Whether a swarm's worker kept it as a result of this agent: anybody may write into some spaces."""
        if (passage.source, passage.author) != (source, self.agent):
            return False
        return bool(passage.swarm) if reuse.scope == "shared" else passage.swarm == self._ports.swarm

    async def _keep(self, key: str, reuse: Reuse, request: RememberRequest, output: Any) -> None:
        """Keep a result for tasks to come, unless it is too large. One that is no JSON is the worker's to refuse."""
        try:
            request.payload = Raw(msgspec.json.encode({"output": output}))
        except (TypeError, ValueError, RecursionError):
            return
        if len(request.payload) > RESULT_BYTES_MAX:
            self._count("too_large")
            return
        request.id, request.space, request.author = self._memory_id(key), reuse.scope, self.agent
        request = self._signed(request, key)

        async def act() -> Any:
            request.expires_at_ms = self._expiry(round(reuse.expires_s * 1000))
            try:
                return await self._asked("remember", request, RememberReply, REUSE_WAIT_MS, 0)
            except (Rejected, Fault) as error:
                log.warning("a result of %s is not kept: %s", self.agent, error, extra={"task": self.task})
                self._count("not_kept")
                return {"why": error.code}

        await self._journaled(key, "remember", act)

    def _count(self, how: str) -> None:
        self._ports.meter.count("swarmd_reuse_total", self.agent, how)


def _result_in(passage: RecalledPassage) -> dict[str, Any]:
    """The JSON object that came along with a memory."""
    payload = msgspec.json.decode(passage.payload) if isinstance(passage.payload, Raw) else None
    return payload if isinstance(payload, dict) else {}
