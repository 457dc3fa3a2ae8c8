"""A memory node's answers: what is in them, and which kind of error an error is. Must not know how it was asked."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from swarmd.core.errors import UNREADABLE, Conflict, Fault, Rejected, SwarmdError
from swarmd.core.events import Failure

T = TypeVar("T")

#: Somebody else was first.
CONFLICTS: Final = frozenset({"id_taken", "stale_update", "job_running", "rebuild_lost", "watcher_taken"})
#: Whoever asked was told that nothing was done: the same may be asked again at once.
NOT_DONE: Final = frozenset({"no_responders", "busy"})
#: Another try may help.
FAULTS: Final = frozenset(
    "busy not_accepted not_serving rebuilt memory_behind memory_unavailable memory_lost memory_closed memory_full "
    "memory_damaged memory_not_loaded store_refuses milvus_server_died bad_answer embedder_busy embedder_refuses "
    "rate_wait job_stalled lease_unsure log_unreadable missing_sequence gap no_receipt no_responders timeout "
    "disconnected broker_error".split()
)


class _Answer(Struct):
    """Any answer, as far as it may be an error."""

    error: Failure | UnsetType = UNSET


def check(reply: bytes) -> None:
    """Raises the error in an answer."""
    try:
        failure = msgspec.json.decode(reply, type=_Answer).error
    except UNREADABLE as error:
        raise _unreadable(error) from None
    if isinstance(failure, Failure):
        raise error_of(failure)


def read(reply: bytes, answer: type[T]) -> T:
    """What is in an answer. Raises the error in it, or `Fault("bad_reply")`."""
    check(reply)
    try:
        return msgspec.json.decode(reply, type=answer)
    except UNREADABLE as error:
        raise _unreadable(error) from None


def error_of(failure: Failure) -> SwarmdError:
    """A failure of the wire as what is raised for it."""
    kind = Conflict if failure.code in CONFLICTS else Fault if failure.code in FAULTS else Rejected
    return kind(failure.code, failure.message)


def _unreadable(error: BaseException) -> Fault:
    return Fault("bad_reply", f"the memory node answered what this version cannot read: {error}")
