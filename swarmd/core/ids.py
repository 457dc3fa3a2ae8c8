"""Names and ids: what they may contain, and how they are made of each other.

Every id is safe as one token of a NATS subject. Nothing here draws random numbers: callers bring the bits.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from swarmd.core.errors import Rejected

NAME_PATTERN: Final = "^[A-Za-z0-9_-]{1,64}$"
TASK_ID_PATTERN: Final = "^[A-Za-z0-9_~:-]{1,200}$"
_NAME: Final = re.compile(NAME_PATTERN)
_TASK_ID: Final = re.compile(TASK_ID_PATTERN)
_UUID7: Final = re.compile("^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
match_uuid7: Final = _UUID7.fullmatch  #: for where a call more would show
_RESERVED_REPLY: Final = ("swarm", "memory")


@lru_cache(maxsize=4096)
def check_name(what: str, text: str) -> str:
    """Return `text` if it can name a swarm, an agent, a memory or a writer; raise `Rejected` otherwise."""
    if not _NAME.fullmatch(text):
        raise Rejected("bad_name", f"{what} {text[:80]!r} must be 1 to 64 of A-Z a-z 0-9 _ -")
    return text


def check_task_id(text: str) -> str:
    """Return `text` if it can be a task's id; raise `Rejected` otherwise."""
    if not _TASK_ID.fullmatch(text):
        raise Rejected("bad_id", f"task id {text[:80]!r} must be 1 to 200 of A-Z a-z 0-9 _ ~ : -")
    return text


@lru_cache(maxsize=4096)
def is_plain(subject: str) -> bool:
    """Whether whoever answers may publish on `subject`.

    An answer is published with the answerer's own permissions, so a caller must not be able to name one
    of swarmd's or the broker's own subjects.
    """
    tokens = subject.split(".")
    sound = all(token and token.isprintable() and not set(token) & set(" *>") for token in tokens)
    return sound and not tokens[0].startswith("$") and tokens[0] not in _RESERVED_REPLY and len(subject) <= 256


def check_reply(subject: str) -> str:
    """Return `subject` if outcomes may be published on it; raise `Rejected` otherwise."""
    if not is_plain(subject):
        raise Rejected(
            "bad_reply", f"reply {subject[:80]!r} must be a plain subject outside 'swarm', 'memory' and '$…'"
        )
    return subject


def uuid7(now_ms: int, bits: int) -> str:
    """A UUID version 7 (RFC 9562): 48 bits of time, 74 of the caller's random `bits`."""
    value = (now_ms & (1 << 48) - 1) << 80 | 0x7 << 76 | (bits >> 62 & 0xFFF) << 64 | 0b10 << 62 | bits & (1 << 62) - 1
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def is_uuid7(text: str) -> bool:
    """Whether `text` is an id as minted by `uuid7`; such ids sort by their time."""
    return len(text) == 36 and _UUID7.fullmatch(text) is not None


@lru_cache(maxsize=64)
def uuid7_prefix(now_ms: int) -> str:
    """How every id minted at that millisecond begins: its first 13 characters."""
    return uuid7(now_ms, 0)[:13]


def node_member(writer: str, boot: str, n: int) -> str:
    """A worker node's member id: the fold checks a report's writer and boot against it."""
    return f"{writer}/{boot}/{n}"


def swarm_member(child: str) -> str:
    """A child swarm's member id: the member is the swarm, whichever delegate process speaks for it."""
    return f"swarm/{child}"


def member_subject(member: str) -> str:
    """What a member's events are about: its id, which is no token of a subject, as one that is."""
    return member.replace("/", ":")


def child_id(parent: str, n: int) -> str:
    """The id of a task's n-th spawned child, the same in every attempt."""
    return f"{parent}~{n}"


def delegated_id(parent_swarm: str, task: str, epoch: int) -> str:
    """The id under which a parent swarm's attempt runs in a child swarm: one task per epoch."""
    return f"{parent_swarm}:{task}:{epoch}"


def slot_id(schedule: str, slot_ms: int) -> str:
    """The id of the task that a schedule makes for a slot: one task per slot."""
    return f"{schedule}:{slot_ms}"


def intake_id(incarnation: str, seq: int) -> str:
    """The id of a raw submission without one: derived from where it is stored, so a second reading agrees."""
    return f"raw-{incarnation}-{seq}"
