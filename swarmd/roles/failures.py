"""A step's failure as it stands in the journal, and the exception that it is again when the agent is resumed. Pure."""

from __future__ import annotations

import sys
from typing import Any, Final

import msgspec
from msgspec import Raw

from swarmd.core.errors import SwarmdError
from swarmd.core.events import Failure
from swarmd.roles.attempt import AgentFailed

MESSAGE_CHARS_MAX: Final = 2_000


def noted(error: Exception) -> tuple[Failure, Raw]:
    """The failure, and what is needed beside it to raise the same again."""
    kind = type(error)
    code = error.code if isinstance(error, SwarmdError | AgentFailed) else kind.__name__
    raised = {"raised": f"{kind.__module__}:{kind.__qualname__}", "retryable": getattr(error, "retryable", True)}
    return Failure(_text(code), _text(_said(error))[:MESSAGE_CHARS_MAX]), Raw(msgspec.json.encode(raised))


def revived(failure: Failure, raised: Raw) -> Exception:
    """An exception of the same class with the same text; `AgentFailed` when there is no such class any more."""
    note: Any = msgspec.json.decode(raised)
    name = note.get("raised", "") if isinstance(note, dict) else ""
    retryable = note.get("retryable", True) if isinstance(note, dict) else True
    kind = _class_named(name)
    if kind is None or issubclass(kind, AgentFailed):
        return AgentFailed(failure.code, failure.message, retryable=retryable)
    if issubclass(kind, SwarmdError):
        return kind(failure.code, failure.message)
    # Its own `__init__` may want what nobody knows any more; its class is what an `except` looks at.
    return Exception.__new__(kind, failure.message)


def _class_named(name: str) -> type[Exception] | None:
    """The exception class `module:Class`, if its module is loaded: nothing is imported on a journal's word."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _said(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # a stranger's `__str__`
        return type(error).__name__


def _text(said: object) -> str:
    """An event holds UTF-8."""
    return str(said).encode("utf-8", "replace").decode()
