"""A state as bytes and back: JSON with the fold's version and a digest.

A snapshot that is damaged or was made by another fold is refused; its reader then folds the log instead.
"""

from __future__ import annotations

import hashlib
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw, Struct

from swarmd.core.errors import Rejected
from swarmd.core.state import FOLD_VERSION, SwarmState

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Sealed(Struct):
    fold_version: int
    digest: str
    state: Raw


_decoder: Final = msgspec.json.Decoder(SwarmState)


def slices(state: SwarmState, items_max: int = 2_000) -> Iterator[bytes]:
    """The state's JSON in parts, so that whoever encodes a large one can breathe between them.

    The state must not change before the last part.
    """
    opening = b"{"
    for name in state.__struct_fields__:
        value = getattr(state, name)
        yield opening + msgspec.json.encode(name) + b":"
        opening = b","
        if not isinstance(value, dict) or len(value) <= items_max:
            yield msgspec.json.encode(value)
            continue
        items, edge = iter(value.items()), b"{"
        while chunk := dict(islice(items, items_max)):
            yield edge + msgspec.json.encode(chunk)[1:-1]
            edge = b","
        yield b"}"
    yield b"}"


def seal(body: bytes) -> bytes:
    """A snapshot from the joined `slices` of a state."""
    return msgspec.json.encode(_Sealed(FOLD_VERSION, hashlib.sha256(body).hexdigest(), Raw(body)))


def encode(state: SwarmState) -> bytes:
    """The whole state, sealed."""
    return seal(b"".join(slices(state)))


def decode(payload: bytes) -> SwarmState:
    """The state in a snapshot. Raises `Rejected("bad_snapshot")` when it cannot be trusted."""
    try:
        sealed = msgspec.json.decode(payload, type=_Sealed)
        if sealed.fold_version != FOLD_VERSION:
            raise Rejected("bad_snapshot", f"made by fold version {sealed.fold_version}, this is {FOLD_VERSION}")
        if hashlib.sha256(sealed.state).hexdigest() != sealed.digest:
            raise Rejected("bad_snapshot", "its digest does not match its content")
        return _decoder.decode(sealed.state)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("bad_snapshot", f"not readable: {error}") from None
