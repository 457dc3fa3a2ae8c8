"""A state as bytes and back: JSON with the fold's version and a digest.

A snapshot that is damaged or was made by another fold is refused; its reader then folds the log instead.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
from msgspec import Raw, Struct

from swarmd.core.errors import Rejected
from swarmd.core.state import FOLD_VERSION, SwarmState


class _Sealed(Struct):
    fold_version: int
    digest: str
    state: Raw


_decoder: Final = msgspec.json.Decoder(SwarmState)


def encode(state: SwarmState) -> bytes:
    """The whole state, sealed."""
    body = msgspec.json.encode(state)
    return msgspec.json.encode(_Sealed(FOLD_VERSION, hashlib.sha256(body).hexdigest(), Raw(body)))


def decode(payload: bytes) -> SwarmState:
    """The state in a snapshot. Raises `Rejected("bad_snapshot")` when it cannot be trusted."""
    try:
        sealed = msgspec.json.decode(payload, type=_Sealed)
        if sealed.fold_version != FOLD_VERSION:
            raise Rejected("bad_snapshot", f"made by fold version {sealed.fold_version}, this is {FOLD_VERSION}")
        if hashlib.sha256(sealed.state).hexdigest() != sealed.digest:
            raise Rejected("bad_snapshot", "its digest does not match its content")
        return _decoder.decode(sealed.state)
    except msgspec.MsgspecError as error:
        raise Rejected("bad_snapshot", f"not readable: {error}") from None
