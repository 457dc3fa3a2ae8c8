"""How log lines look: text for people, JSON lines for machines, both on stderr and without secrets.

Job: configure the standard `logging` once per process. Fields that name what a line is about (`FIELDS`) travel by
`extra={"task": ..., "seq": ...}`. Invariant: no configured secret is ever written, wherever it came from, even inside
a traceback. Must not know who logs.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable

FIELDS = ("role", "swarm", "member", "task", "seq", "term", "epoch")
HIDDEN = "[hidden]"
SECRET_CHARS_MIN = 6
"""Shorter values would blank out ordinary words."""

Format = Literal["text", "json"]

#: Libraries that tell of each request at level info, addresses and session ids included.
CHATTY: Final = ("httpx", "httpx2", "mcp")


def configure_logs(
    format: Format = "text",
    level: str = "info",
    *,
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
    **fields: str,
) -> None:
    """Send all logging to stderr (or `stream`); `fields` are added to every line, such as role="worker".

    Raises `Rejected("bad_log_setting")`. Calling it again replaces what the last call set.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise Rejected("bad_log_setting", f"log level {level!r} is none of debug, info, warning, error")
    if format not in ("text", "json"):
        raise Rejected("bad_log_setting", f"log format {format!r} is none of text, json")
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise Rejected("bad_log_setting", f"no log field {unknown[0]!r}; there are {', '.join(FIELDS)}")
    writer = logging.StreamHandler(stream or sys.stderr)
    writer.setFormatter((_JsonLines if format == "json" else _TextLines)(fields, secrets))
    root = logging.getLogger()
    for old in root.handlers[:]:
        if getattr(old, "swarmd", False):
            root.removeHandler(old)
    writer.swarmd = True  # type: ignore[attr-defined]  # so that only ours is replaced
    root.addHandler(writer)
    root.setLevel(number)
    for name in CHATTY:
        logging.getLogger(name).setLevel(number if number == logging.DEBUG else max(number, logging.WARNING))
    logging.captureWarnings(True)


class _Lines(logging.Formatter):
    """What both forms share: the parts of a line, each with its secrets hidden before it is laid out."""

    def __init__(self, fields: dict[str, str], secrets: Iterable[str]) -> None:
        super().__init__()
        self._fields = fields
        plain = {secret for secret in secrets if len(secret) >= SECRET_CHARS_MIN}
        # A secret with quotes or backslashes looks different once it was shown by repr or as JSON.
        shown = {repr(secret)[1:-1] for secret in plain} | {json.dumps(secret)[1:-1] for secret in plain}
        shown |= {json.dumps(secret, ensure_ascii=False)[1:-1] for secret in plain}
        self._secrets = sorted(plain | shown, key=len, reverse=True)

    def hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text

    def message(self, record: logging.LogRecord) -> str:
        return self.hide(record.getMessage())

    def about(self, record: logging.LogRecord) -> dict[str, Any]:
        own = {name: getattr(record, name) for name in FIELDS if getattr(record, name, None) not in (None, "")}
        hidden = {name: value if isinstance(value, int) else self.hide(str(value)) for name, value in own.items()}
        return {**self._fields, **hidden}

    def trace(self, record: logging.LogRecord) -> str:
        parts = [self.formatException(record.exc_info)] if record.exc_info else []
        return self.hide("\n".join([*parts, *([record.stack_info] if record.stack_info else [])]))


class _TextLines(_Lines):
    """`12:30:01.250 INFO    swarmd.roles.worker: took a task [member=… task=… seq=…]`, in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        when = _when(record).strftime("%H:%M:%S.%f")[:-3]
        about = " ".join(f"{name}={value}" for name, value in self.about(record).items())
        line = f"{when} {record.levelname:<7} {record.name}: {self.message(record)}{f' [{about}]' if about else ''}"
        trace = self.trace(record)
        return f"{line}\n{trace}" if trace else line


class _JsonLines(_Lines):
    """One object per line: `time`, `level`, `logger`, `message`, the fields, and `error` with the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _when(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.message(record),
            **self.about(record),
        }
        trace = self.trace(record)
        if trace:
            line["error"] = trace
        return json.dumps(line, ensure_ascii=False)


def _when(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, tz=UTC)
