"""The three kinds of failure that are not bugs.

`Rejected` answers the caller: the input is wrong or the state forbids it, and repeating will not help.
`Conflict` says somebody else was first: reload and decide again, a bounded number of times.
`Fault` says a part outside this process failed: back off and try again, a bounded number of times.
Anything else that is raised is a bug and may crash the role.
"""

from __future__ import annotations

from typing import Final

from msgspec import MsgspecError

#: What decoding may raise on bytes that somebody else wrote: no JSON or another shape, no UTF-8, nested too deep.
UNREADABLE: Final = (MsgspecError, UnicodeDecodeError, RecursionError)


class SwarmdError(Exception):
    """Base of every error that swarmd raises on purpose; `code` is stable and meant for machines."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Rejected(SwarmdError):
    """The caller's input or the current state forbids it; `message` says what to do instead."""


class Conflict(SwarmdError):
    """Another writer was first: reload, decide again."""


class Fault(SwarmdError):
    """A part outside this process failed or stayed silent; worth another try after `retry_after_ms`."""

    def __init__(self, code: str, message: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(code, message)
        self.retry_after_ms = retry_after_ms
