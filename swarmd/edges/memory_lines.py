"""Memories as lines of JSON: as an import reads them. Must not know who asks the memory, or how."""

from __future__ import annotations

import asyncio
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from swarmd.core.errors import UNREADABLE, Rejected
from swarmd.core.memory_wire import RememberRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: A text of 32 KiB, escaped, with its payload and a long vector.
LINE_BYTES_MAX: Final = 1024 * 1024
CHUNK_BYTES: Final = 256 * 1024


class _Line(RememberRequest, forbid_unknown_fields=True):
    """A memory to remember; what only an export says of it is read and dropped: a log gives its own."""

    seq: int = 0
    since_ms: int = 0
    score: float = 0.0
    similarity: float | UnsetType = UNSET


_decoder: Final = msgspec.json.Decoder(_Line)
_encoder: Final = msgspec.json.Encoder(order="deterministic")
_FIELDS: Final = RememberRequest.__struct_fields__


class Chunks(Protocol):
    """A file that is read as far as it has come, such as a pipe."""

    def read1(self, size: int, /) -> bytes: ...


def read(line: bytes) -> RememberRequest:
    """What to remember. Raises `Rejected("bad_line")`.

    A line without an id gets one that is made of all it says, so that importing it again makes no double.
    """
    try:
        found = _decoder.decode(line)
    except UNREADABLE as error:
        raise Rejected("bad_line", _in_words(line, error)) from None
    if not found.text.strip():
        raise Rejected("bad_line", "its text is empty")
    request = RememberRequest(**{name: getattr(found, name) for name in _FIELDS})
    if not request.id:
        request.id = f"line-{blake2b(_encoder.encode(request), digest_size=16).hexdigest()}"
    return request


def _in_words(line: bytes, error: BaseException) -> str:
    if line[:1] != b"{":
        return 'it is no JSON object: each line is one, as {"text": "…"}'
    return str(error)


async def lines(file: Chunks) -> AsyncIterator[tuple[int, bytes | None, int]]:
    """(number, line, bytes read so far) of each line that is not blank; None for one over `LINE_BYTES_MAX`.

    Reads on a thread, and no more than is asked for.
    """
    number, size, rest, overlong = 0, 0, b"", False
    while chunk := await asyncio.to_thread(file.read1, CHUNK_BYTES):
        size += len(chunk)
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            number += 1
            if overlong or len(line) > LINE_BYTES_MAX:
                overlong = False
                yield number, None, size
            elif line and not line.isspace():
                yield number, line, size
        if len(rest) > LINE_BYTES_MAX:
            rest, overlong = b"", True
    if overlong:
        yield number + 1, None, size
    elif rest and not rest.isspace():
        yield number + 1, rest, size
