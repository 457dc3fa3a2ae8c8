"""An agent's use of a memory: recall, remember, update, forget. Each is a step, asked once and recorded.

Who asks is filled in here: swarm, agent and task of the attempt, and the key of the step. A request is repeated while
nobody surely has it, within a bound; what is remembered bears an id made of task and step, so that a step which is done
again after a crash changes nothing. Must not know what a memory is kept in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar, Unpack

import msgspec
from msgspec import UNSET, Raw, UnsetType

from swarmd import memory_answers
from swarmd.core import subjects
from swarmd.core.errors import Conflict, Fault, Rejected
from swarmd.core.memory import SHARED
from swarmd.core.memory_wire import (
    ForgetRequest,
    GetReply,
    GetRequest,
    Mode,
    RecalledPassage,
    RecallReply,
    RecallRequest,
    RememberReply,
    RememberRequest,
    UpdateRequest,
)
from swarmd.roles.attempt import AgentFailed
from swarmd.roles.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

T = TypeVar("T")

#: How long one request may take: a recall waits up to 20 s for its store.
MEMORY_TIMEOUT_MS: Final = 30_000
#: How long a request that nobody has is repeated: as long as one memory node takes to follow another, and some more.
NOBODY_MS: Final = 10_000
PAUSE_MS: Final = 100
PAUSE_MS_MAX: Final = 1_000
STEP_BYTES_MAX: Final = 1_024


class Recalled(RecalledPassage, omit_defaults=True):
    """A memory as an agent sees it: `payload` is the JSON that came along, None without any."""

    payload: Any = None


class Recalling(TypedDict, total=False):
    """How to recall, beyond words; the fields of `RecallRequest`."""

    vector: Sequence[float] | None
    filter: str
    spaces: Sequence[str]
    mode: Mode
    min_similarity: float
    diversity: float
    as_of: int


class Keeping(TypedDict, total=False):
    """What comes along with a memory, and for how long it is kept (0: for ever)."""

    vector: Sequence[float] | None
    payload: Any
    expires_in_ms: int


class Updating(Keeping, total=False):
    """With `if_seq` another version that is present refuses the update (`stale_update`)."""

    if_seq: int


class MemorySteps(Journal):
    """The context's side of memory."""

    #: Put beside each filter of a recall: what this attempt leaves out.
    _left_out = ""

    async def recall(
        self,
        text: str = "",
        *,
        k: int = 5,
        labels: Mapping[str, str] | None = None,
        at_least_seq: int = 0,
        **how: Unpack[Recalling],
    ) -> list[Recalled]:
        """The `k` nearest memories that this agent may see, best first, as a step.

        Raises `Rejected` for what is wrong with the request, `Fault` while the memory cannot answer.
        """
        check_words("recall", how, Recalling)
        key = self._key("recall")
        request = RecallRequest(text, k, dict(labels or {}), at_least_seq, vector_of(how.get("vector")))
        request.filter = _both(how.get("filter", ""), self._left_out)
        request.spaces, request.mode = list(how.get("spaces", ())), how.get("mode", "hybrid")
        request.min_similarity, request.diversity = how.get("min_similarity", -1.0), how.get("diversity", 0.0)
        request.as_of = how.get("as_of", 0)

        async def act() -> Any:
            return (await self._asked("recall", self._signed(request, key), RecallReply)).passages

        return msgspec.convert(await self._journaled(key, "recall", act), list[Recalled])

    async def remember(
        self,
        text: str,
        *,
        source: str = "",
        labels: Mapping[str, str] | None = None,
        space: str = SHARED,
        **what: Unpack[Keeping],
    ) -> RememberReply:
        """Put a passage into a space of the memory, as a step; a repeat after a crash does not double it."""
        check_words("remember", what, Keeping)
        key = self._key("remember")
        request = RememberRequest(text, self._memory_id(key), source, dict(labels or {}), self.agent, self.task, space)
        request.agent, request.step, request.vector = self.agent, part_of(key), vector_of(what.get("vector"))
        request.payload = _raw(what.get("payload", UNSET))

        async def act() -> Any:
            request.expires_at_ms = self._expiry(what.get("expires_in_ms", 0))
            return await self._asked("remember", request, RememberReply)

        return msgspec.convert(await self._journaled(key, "remember", act), RememberReply)

    async def update_memory(
        self,
        memory: str,
        *,
        text: str | UnsetType = UNSET,
        source: str | UnsetType = UNSET,
        labels: Mapping[str, str] | UnsetType = UNSET,
        **what: Unpack[Updating],
    ) -> RememberReply:
        """Let a memory say something else from now on, as a step; what is left out stays as it is."""
        check_words("update_memory", what, Updating)
        key = self._key("update_memory")
        request = self._signed(UpdateRequest(memory, text, source, author=self.agent), key)
        request.labels = UNSET if isinstance(labels, UnsetType) else dict(labels)
        request.vector, request.if_seq = vector_of(what.get("vector")), what.get("if_seq", 0)
        request.payload = _raw(what.get("payload", UNSET))

        async def act() -> Any:
            if "expires_in_ms" in what:
                request.expires_at_ms = self._expiry(what["expires_in_ms"])
            return await self._asked("update", request, RememberReply)

        return msgspec.convert(await self._journaled(key, "update_memory", act), RememberReply)

    async def forget_memory(self, memory: str, *, reason: str = "") -> RememberReply:
        """Drop a memory that this agent or task has remembered, as a step."""
        key = self._key("forget_memory")
        request = ForgetRequest(memory, reason, self.agent, self.task)

        async def act() -> Any:
            return await self._asked("forget", request, RememberReply)

        return msgspec.convert(await self._journaled(key, "forget_memory", act), RememberReply)

    async def get_memories(self, *ids: str) -> list[Recalled]:
        """Memories by id as they are now, as a step; those that are gone are left out."""
        key = self._key("get_memories")
        request = self._signed(GetRequest(list(ids)), key)

        async def act() -> Any:
            found: list[RecalledPassage] = []
            while True:
                reply = await self._asked("get", request, GetReply)
                found += reply.memories
                if not reply.rest:
                    return found
                request.ids = reply.rest  # one answer had no room for all

        return msgspec.convert(await self._journaled(key, "get_memories", act), list[Recalled])

    # --- asking ---

    def _memory_id(self, key: str) -> str:
        """The id of what this step remembers: the same whenever it is done again."""
        return f"{self.task}~{key}".replace("#", "~")

    def _expiry(self, in_ms: int) -> int:
        if in_ms < 0:
            raise Rejected("bad_expiry", f"expires_in_ms is {in_ms}: milliseconds from now, 0 for never")
        return self._ports.clock.now_ms() + in_ms if in_ms else 0

    def _signed(self, request: T, key: str) -> T:
        """The request, with who asks."""
        signed: Any = request
        signed.agent, signed.task, signed.step = self.agent, self.task, part_of(key)
        return request

    async def _asked(
        self,
        verb: str,
        request: Any,
        answer: type[T],
        timeout_ms: int = MEMORY_TIMEOUT_MS,
        patience_ms: int = NOBODY_MS,
    ) -> T:
        """One answer. Raises `Rejected` or `Fault`; while surely nobody has the request it is made again."""
        subject = subjects.memory_verb_of(self._ports.memory, self._ports.swarm, verb)
        clock, pause_ms = self._ports.clock, PAUSE_MS
        gives_up_ms = clock.now_ms() + patience_ms
        payload = msgspec.json.encode(request)
        while True:
            try:
                return memory_answers.read(await self._ports.bus.request(subject, payload, timeout_ms), answer)
            except Conflict as conflict:
                raise Rejected(conflict.code, conflict.message) from None
            except Fault as fault:
                if fault.code not in memory_answers.NOT_DONE or clock.now_ms() + pause_ms > gives_up_ms:
                    raise
            await clock.sleep(pause_ms)
            pause_ms = min(2 * pause_ms, PAUSE_MS_MAX)


def part_of(key: str) -> str:
    """A step's key, as far as a memory keeps it."""
    return key.encode()[:STEP_BYTES_MAX].decode("utf-8", "ignore")


def check_words(call: str, given: Mapping[str, Any], known: type) -> None:
    """Refuse a misspelt argument, as Python does where there are no optional ones."""
    unknown = given.keys() - known.__annotations__.keys()
    if unknown:
        raise TypeError(f"{call}() got an unexpected keyword argument {min(unknown)!r}")


def _both(one: str, other: str) -> str:
    return f"({one}) and {other}" if one and other else one or other


def vector_of(given: Sequence[float] | None) -> list[float] | UnsetType:
    """Numbers for the wire, on which there is no NaN. Raises `Rejected("bad_vector")`."""
    if given is None:
        return UNSET
    vector = [float(number) for number in given]
    if not all(map(math.isfinite, vector)):
        raise Rejected("bad_vector", "every number of a vector must be finite")
    return vector


def _raw(payload: Any) -> Raw | UnsetType:
    try:
        return UNSET if payload is UNSET else Raw(msgspec.json.encode(payload))
    except (TypeError, ValueError, RecursionError) as error:
        raise AgentFailed("not_json", f"a payload must be JSON: {error}", retryable=False) from None
