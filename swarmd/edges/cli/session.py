"""One command's connection to a swarm, and how it asks and tells.

Must not know which command it serves.
"""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec import Struct

from swarmd.core import subjects
from swarmd.core.errors import Conflict, Rejected
from swarmd.core.events import Failure
from swarmd.core.wire import MemberQuery, Members, MemberStatus, SwarmStatus, TaskQuery
from swarmd.edges.cli.flags import settings_of, swarm_of, wants_json
from swarmd.edges.settings import nats_of, require_running, secrets_of
from swarmd.edges.wiring import Wire, connected

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Awaitable, Callable

    from swarmd.adapters.jetstream import JetStreamLog
    from swarmd.adapters.nats_connect import NatsSettings
    from swarmd.config import Settings

    Reach = Callable[[Settings], NatsSettings]

T = TypeVar("T")
ASK_TIMEOUT_MS: Final = 10_000
CONNECT_TIMEOUT_MS: Final = 2_000
#: The controls that JSON leaves as they are: some terminals take U+009B for the start of a command.
_CONTROLS: Final = re.compile("[\x7f-\x9f]")


class _Answer(Struct):
    """Any answer, as far as it may be an error."""

    error: Failure | msgspec.UnsetType = msgspec.UNSET


class Session:
    """A connected command."""

    def __init__(self, args: argparse.Namespace, settings: Settings, nats: NatsSettings, wire: Wire) -> None:
        self.args, self.settings, self.nats, self.wire = args, settings, nats, wire
        self.swarm = swarm_of(args)
        self.json = wants_json(args)

    def tell(self, value: Any, text: str) -> None:
        """Print one result: as JSON for machines, as `text` for people."""
        print(as_json(value) if self.json else text, flush=True)

    async def ask(self, subject: str, body: Any, answer: type[T], timeout_ms: int = ASK_TIMEOUT_MS) -> T:
        """One request; its answer, or the error in it as `Rejected` or `Conflict`."""
        payload = await self.wire.bus.request(subject, b"" if body is None else msgspec.json.encode(body), timeout_ms)
        failure = msgspec.json.decode(payload, type=_Answer).error if payload[:1] == b"{" else msgspec.UNSET
        if isinstance(failure, Failure):
            raise (Conflict if failure.code == "id_taken" else Rejected)(failure.code, failure.message)
        return msgspec.json.decode(payload, type=answer)

    async def ctl(self, verb: str, body: Any, answer: type[T], timeout_ms: int = ASK_TIMEOUT_MS) -> T:
        return await self.ask(subjects.ctl(self.swarm, verb), body, answer, timeout_ms)

    async def status(self) -> SwarmStatus:
        return await self.ctl("status", None, SwarmStatus)

    async def members(self) -> list[MemberStatus]:
        """All members, page by page: thousands do not fit into one answer."""
        found: list[MemberStatus] = []
        after = ""
        while True:
            page = await self.ctl("members", MemberQuery(after), Members)
            found += page.members
            after = page.after
            if not after:
                return found

    def query(self, task: str, **fields: Any) -> TaskQuery:
        from swarmd.core.ids import check_task_id

        return TaskQuery(check_task_id(task), **fields)

    def log(self) -> JetStreamLog:
        return self.wire.log(subjects.log_stream(self.swarm))


@asynccontextmanager
async def session(args: argparse.Namespace, reach: Reach | None = None) -> AsyncIterator[Session]:
    """Settings, quiet logs, one connection; `reach` says as whom, for what not everybody may do."""
    from swarmd.adapters.logs import configure_logs

    settings = settings_of(args)
    require_running(settings)
    nats = reach(settings) if reach is not None else nats_of(settings, connect_timeout_ms=CONNECT_TIMEOUT_MS)
    level = settings.log.level if hasattr(args, "log_level") else "warning"
    configure_logs(settings.log.format, level, secrets=secrets_of(settings, nats))
    async with connected(nats, "swarmd-cli") as wire:
        yield Session(args, settings, nats, wire)


def run(args: argparse.Namespace, act: Callable[[Session], Awaitable[int]], reach: Reach | None = None) -> int:
    """Run a command over a connection; the exit code."""

    async def whole() -> int:
        async with session(args, reach) as connection:
            return await act(connection)

    return asyncio.run(whole())


def as_json(value: Any) -> str:
    """One line of JSON; what a terminal might obey is written as escapes."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", msgspec.json.encode(value).decode())


def note(text: str) -> None:
    """Something for a person beside the result, and after what was printed of it: both may go to one place."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Columns aligned by their widest cell; control characters of strangers never reach the terminal."""
    from swarmd.roles.tool_calls import clean

    cells = [columns, *([clean(cell).replace("\n", " ") for cell in row] for row in rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)
