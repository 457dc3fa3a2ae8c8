"""Many memories in few requests: packed below the broker's limit, several on their way at once, settled in order.

Must not know where memories come from, nor how a request is repeated.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct, field

from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.events import Failure
from swarmd.core.memory_wire import MANY_MAX, RememberManyReply, RememberReply, RememberRequest
from swarmd.edges.memory_link import encoded
from swarmd.memory_answers import error_of, read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

Outcome = RememberReply | SwarmdError
"""Where a memory is, or why it is not."""

#: More in one request makes it slower, not faster.
BATCH_BYTES: Final = 384 * 1024
_HEAD, _TAIL = b'{"memories":[', b"]}"


class Ask(Protocol):
    """One request; its answer, which is no error."""

    def __call__(self, verb: str, payload: bytes) -> Awaitable[bytes]: ...


class _Batch(Struct):
    memories: list[RememberRequest] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    refused: SwarmdError | None = None


async def pour(
    memories: AsyncIterator[RememberRequest],
    ask: Ask,
    settled: Callable[[RememberRequest, Outcome], None],
    *,
    limits: tuple[int, int],
) -> None:
    """Send all of them; `limits` are the bytes in a request and the requests on their way at once.

    `settled` is called for each, in order. What it raises, or the source does, ends it; what was on its way then may
    have been remembered.
    """
    bytes_max, at_once = min(BATCH_BYTES, limits[0]), limits[1]
    flying: deque[tuple[_Batch, asyncio.Task[list[Outcome]]]] = deque()
    failed: BaseException | None = None

    async def land() -> None:
        batch, task = flying.popleft()
        for memory, outcome in zip(batch.memories, await task, strict=True):
            settled(memory, outcome)

    async with asyncio.TaskGroup() as group:
        try:
            async for batch in _packed(memories, bytes_max):
                if len(flying) >= at_once:
                    await land()
                flying.append((batch, group.create_task(_send(batch, ask))))
            while flying:
                await land()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # out of here as it is, not in a group of one
            failed = error
            for _, task in flying:
                task.cancel()
    if failed is not None:
        raise failed


async def _packed(memories: AsyncIterator[RememberRequest], bytes_max: int) -> AsyncIterator[_Batch]:
    batch = _Batch(size=len(_HEAD) + len(_TAIL))
    async for memory in memories:
        try:
            part = encoded(memory)
        except Rejected as error:
            yield batch
            batch = _Batch(size=len(_HEAD) + len(_TAIL))
            yield _Batch([memory], refused=error)
            continue
        size = len(part) + 1
        if len(_HEAD) + size + len(_TAIL) > bytes_max:
            yield batch
            batch = _Batch(size=len(_HEAD) + len(_TAIL))
            why = f"memory {memory.id}: a request takes {bytes_max} bytes, this one would have {len(part)}"
            yield _Batch([memory], refused=Rejected("too_large", why))
            continue
        if len(batch.memories) >= MANY_MAX or batch.size + size > bytes_max:
            yield batch
            batch = _Batch(size=len(_HEAD) + len(_TAIL))
        batch.memories.append(memory)
        batch.parts.append(part)
        batch.size += size
    yield batch


async def _send(batch: _Batch, ask: Ask) -> list[Outcome]:
    if batch.refused is not None or not batch.memories:
        return [batch.refused] if batch.refused is not None else []
    try:
        reply = await ask("remember_many", _HEAD + b",".join(batch.parts) + _TAIL)
        replies = read(reply, RememberManyReply).replies
    except SwarmdError as error:
        return [error] * len(batch.memories)
    if len(replies) != len(batch.memories):
        why = f"the memory node answered {len(replies)} times for {len(batch.memories)} memories"
        return [Fault("bad_reply", why)] * len(batch.memories)
    return [_outcome(reply) for reply in replies]


def _outcome(reply: RememberReply) -> Outcome:
    return error_of(reply.error) if isinstance(reply.error, Failure) else reply
