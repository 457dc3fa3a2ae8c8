"""An agent's use of the shared memory: recall and remember, each a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.events import Failure
from swarmd.core.memory_wire import RecalledPassage, RecallReply, RecallRequest, RememberReply, RememberRequest
from swarmd.roles.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Mapping

MEMORY_TIMEOUT_MS: Final = 30_000


class MemorySteps(Journal):
    """The context's side of memory."""

    async def recall(
        self, text: str, *, k: int = 5, labels: Mapping[str, str] | None = None, at_least_seq: int = 0
    ) -> list[RecalledPassage]:
        """The `k` nearest shared memories, best first, as a step."""
        request = RecallRequest(text, k, dict(labels or {}), at_least_seq)

        async def act() -> Any:
            answer = await self._memory("recall", msgspec.json.encode(request))
            reply = msgspec.json.decode(answer, type=RecallReply)
            if isinstance(reply.error, Failure):
                raise Rejected(reply.error.code, reply.error.message)
            return reply.passages

        return msgspec.convert(await self._journaled(self._key("recall"), "recall", act), list[RecalledPassage])

    async def remember(self, text: str, *, source: str = "", labels: Mapping[str, str] | None = None) -> RememberReply:
        """Put a passage into shared memory, as a step; a repeat after a crash does not double it."""
        key = self._key("remember")
        memory_id = f"{self.task}~{key}".replace("#", "~")
        request = RememberRequest(text, memory_id, source, dict(labels or {}), self.agent, self.task)

        async def act() -> Any:
            answer = await self._memory("remember", msgspec.json.encode(request))
            reply = msgspec.json.decode(answer, type=RememberReply)
            if isinstance(reply.error, Failure):
                raise Rejected(reply.error.code, reply.error.message)
            return reply

        return msgspec.convert(await self._journaled(key, "remember", act), RememberReply)

    async def _memory(self, verb: str, payload: bytes) -> bytes:
        subject = subjects.memory_verb(self._ports.memory, verb)
        return await self._ports.bus.request(subject, payload, MEMORY_TIMEOUT_MS)
