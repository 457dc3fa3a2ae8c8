"""Pours lines into a memory: which line is bad is told by its number, and what is in already is not doubled.

Must not know what a line looks like in full, nor how its progress is shown.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from swarmd.core.errors import Conflict, Fault, Rejected, SwarmdError
from swarmd.edges import memory_lines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from swarmd.core.memory_wire import RememberRequest
    from swarmd.edges.memory_batches import Outcome
    from swarmd.edges.memory_client import MemoryClient

#: Of one memory's fields those that may change.
_CHANGES: Final = ("text", "source", "labels", "expires_at_ms", "vector", "embedder", "payload")
#: Bad lines that are told one by one; more are counted.
TOLD_MAX: Final = 20


class Imported(Struct):
    """What an import came to: lines that hold a memory, those that are remembered now, or changed, or left out."""

    lines: int = 0
    remembered: int = 0
    updated: int = 0
    skipped: int = 0


class Import:
    """One run. `skip_bad` goes on after a line that is refused; `update` changes a memory that holds another text.

    `moved` is told after each line how many memories are in, and how many bytes are read.
    """

    def __init__(
        self,
        client: MemoryClient,
        *,
        skip_bad: bool = False,
        update: bool = False,
        told: Callable[[str], None],
        moved: Callable[[Imported, int], None],
    ) -> None:
        self._client, self._skip_bad, self._update, self._told, self._moved = client, skip_bad, update, told, moved
        self.came_to = Imported()
        self._numbers: deque[int] = deque()
        self._changed: deque[tuple[int, RememberRequest]] = deque()
        self._failed: SwarmdError | None = None
        self._read = 0

    async def run(self, file: memory_lines.Chunks) -> Imported:
        """Remember every line. Raises `Rejected` or `Fault` that names the line; all lines before it are in then."""
        await self._client.pour(self._memories(file), self._settled)
        await self._change()
        if self._failed is not None:
            raise self._failed
        return self.came_to

    async def _memories(self, file: memory_lines.Chunks) -> AsyncIterator[RememberRequest]:
        """Until the first bad line: what comes before it is still sent."""
        async for number, line, self._read in memory_lines.lines(file):
            self.came_to.lines += 1
            await self._change()
            try:
                if line is None:
                    raise Rejected("bad_line", f"it has more than {memory_lines.LINE_BYTES_MAX} bytes")
                memory = memory_lines.read(line)
            except Rejected as error:
                self._refused(number, error)
                if self._failed is not None:
                    return
                continue
            self._numbers.append(number)
            yield memory

    def _settled(self, memory: RememberRequest, outcome: Outcome) -> None:
        number = self._numbers.popleft()
        if not isinstance(outcome, SwarmdError):
            self.came_to.remembered += 1
        elif self._update and outcome.code == "id_taken":
            self._changed.append((number, memory))
        else:
            self._refused(number, outcome)
            if self._failed is not None:
                raise self._failed
        self._moved(self.came_to, self._read)

    async def _change(self) -> None:
        """Update the memories that turned out to hold another text."""
        while self._changed:
            number, memory = self._changed.popleft()
            fields = {name: getattr(memory, name) for name in _CHANGES}
            try:
                await self._client.update(memory.id, **fields)
                self.came_to.updated += 1
            except SwarmdError as error:
                self._refused(number, error)
                if self._failed is not None:
                    raise self._failed from None

    def _refused(self, number: int, error: SwarmdError) -> None:
        """Count and tell a line that is left out; without `skip_bad`, and where others would fare alike, the end."""
        if not self._skip_bad or isinstance(error, Fault) or error.code == "log_full":
            kind = Conflict if isinstance(error, Conflict) else Fault if isinstance(error, Fault) else Rejected
            self._failed = kind(error.code, f"line {number}: {error.message}")
            return
        self.came_to.skipped += 1
        if self.came_to.skipped <= TOLD_MAX:
            self._told(f"line {number} is left out: {error.message} ({error.code})")
