"""Commands that move memories in and out: import, export. A file has one JSON object in each line."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from swarmd.edges.cli import flags
from swarmd.edges.cli.memory_asking import reach

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from swarmd.edges.cli.progress import Progress
    from swarmd.edges.cli.session import Session
    from swarmd.edges.memory_client import MemoryClient
    from swarmd.edges.memory_import import Imported

#: What an export that is not finished is called.
PART: Final = ".part"
TAIL_BYTES: Final = 64 * 1024


def add(group: flags.Commands) -> None:
    """Their parsers."""
    taken = group.add("import", _import, "remember the lines of a JSONL file", "swarmd memory import facts.jsonl")
    taken.add_argument("file", metavar="FILE", help='one {"text": …} in each line; - for stdin')
    taken.add_argument("--skip-bad", action="store_true", help="leave out lines that are refused, and go on")
    taken.add_argument("--update", action="store_true", help="change memories whose id holds another text")
    reach(taken)
    export = group.add(
        "export", _export, "write every memory as a line of JSON (admin)", "swarmd memory export all.jsonl --data data"
    )
    export.add_argument("file", metavar="FILE", nargs="?", default="-", help="where to (default: stdout)")
    export.add_argument("--after", type=int, default=0, metavar="SEQ", help="only what is newer than that sequence")
    export.add_argument("--resume", action="store_true", help="go on with an export of FILE that was interrupted")
    reach(export, admin=False)


# --- import ----------------------------------------------------------------------------------------


def _import(args: argparse.Namespace) -> int:
    from swarmd.edges.cli import memory_asking as asking

    with _opened(args.file) as (file, size):

        async def act(session: Session, client: MemoryClient) -> int:
            return await _import_over(session, client, file, size)

        return asking.ask(args, act, patience_ms=asking.LONG_PATIENCE_MS)


@contextmanager
def _opened(name: str) -> Iterator[tuple[Any, int]]:
    """A file and its size, 0 where it has none. Raises `Rejected("bad_usage")`."""
    from swarmd.core.errors import Rejected

    if name == "-":
        yield sys.stdin.buffer, 0
        return
    try:
        file = open(name, "rb")
    except OSError as error:
        raise Rejected("bad_usage", f"cannot read {name}: {error.strerror}") from None
    with file:
        yield file, os.fstat(file.fileno()).st_size


async def _import_over(session: Session, client: MemoryClient, file: Any, size: int) -> int:
    from swarmd.core.errors import Rejected
    from swarmd.edges.cli.progress import progress
    from swarmd.edges.cli.session import note
    from swarmd.edges.memory_import import Import

    args = session.args
    with progress("importing", "memories", quiet=session.json) as bar:

        def moved(came_to: Imported, read: int) -> None:
            bar.at(read, size, came_to.remembered + came_to.updated)

        run = Import(client, skip_bad=args.skip_bad, update=args.update, told=note, moved=moved)
        try:
            came_to = await run.run(file)
        except Rejected as error:
            if error.code == "bad_line":
                raise Rejected("bad_usage", f"{args.file}, {error.message}") from None
            raise
        finally:
            if not session.json:
                note(_came_to(run.came_to))
    session.tell(came_to, f"{came_to.remembered + came_to.updated} memories of {args.file} are remembered")
    return flags.OK


def _came_to(came_to: Imported) -> str:
    changed = f", {came_to.updated} changed" if came_to.updated else ""
    left = f", {came_to.skipped} left out" if came_to.skipped else ""
    return f"{came_to.remembered} of {came_to.lines} lines are in{changed}{left}; the same again makes no double"


# --- export ----------------------------------------------------------------------------------------


def _export(args: argparse.Namespace) -> int:
    from swarmd.core.errors import Rejected
    from swarmd.edges.cli import memory_asking as asking

    asking.within("--after", args.after, 0, asking.SEQ_MAX)
    if args.resume and (args.file == "-" or args.after):
        raise Rejected("bad_usage", "--resume takes the name of a file, and finds out itself after which sequence")
    with _target(args) as (file, after):

        async def act(session: Session, client: MemoryClient) -> int:
            from swarmd.edges.cli.progress import progress
            from swarmd.edges.cli.session import note

            quiet = session.json or (args.file == "-" and sys.stdout.isatty())
            try:
                with progress("exporting", "memories", quiet=quiet) as bar:
                    count, last = await _write(client, file, after, bar)
            except BaseException:
                if args.file != "-":
                    note(f"{args.file}{PART} holds what was written so far: --resume goes on with it")
                raise
            if args.file != "-":
                _finish(file, args.file)
            _tell(session, count, last)
            return flags.OK

        return asking.ask(args, act, admin=True, patience_ms=asking.LONG_PATIENCE_MS)


@contextmanager
def _target(args: argparse.Namespace) -> Iterator[tuple[TextIO, int]]:
    """Where to write, and after which sequence to begin. Raises `Rejected("bad_usage")`."""
    from swarmd.core.errors import Rejected

    if args.file == "-":
        yield sys.stdout, args.after
        return
    part = Path(args.file + PART)
    try:
        after = _cut(part) if args.resume else args.after
        file = part.open("a" if args.resume else "w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise Rejected("bad_usage", f"cannot write {part}: {error.strerror}") from None
    with file:
        yield file, after


def _cut(part: Path) -> int:
    """Cut the last commit off an unfinished export, which may not be in it whole; the sequence to go on after."""
    from swarmd.core.errors import Rejected
    from swarmd.edges.memory_lines import LINE_BYTES_MAX

    with part.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        tail = TAIL_BYTES
        while True:
            start = max(0, size - tail)
            file.seek(start)
            *lines, broken = file.read().split(b"\n")
            whole = lines[1:] if start else lines  # the first piece of a tail may be half a line
            last = _seq_in(whole[-1], part) if whole else 1
            kept = len(whole)
            while kept and _seq_in(whole[kept - 1], part) == last:
                kept -= 1
            if kept or start == 0:
                break
            if not whole and tail > 2 * LINE_BYTES_MAX:
                raise Rejected("bad_usage", f"{part} has no whole line near its end: export without --resume")
            tail *= 4
        file.truncate(size - len(broken) - sum(len(line) + 1 for line in whole[kept:]))
    return max(0, last - 1)


def _seq_in(line: bytes, part: Path) -> int:
    """The sequence of a line's memory. Raises `Rejected("bad_usage")`."""
    import msgspec

    from swarmd.core.errors import UNREADABLE, Rejected
    from swarmd.core.memory_wire import ExportedMemory

    try:
        return msgspec.json.decode(line, type=ExportedMemory).seq
    except UNREADABLE:
        raise Rejected("bad_usage", f"{part} does not end in a memory: export without --resume") from None


async def _write(client: MemoryClient, file: TextIO, after: int, bar: Progress) -> tuple[int, int]:
    """How many were written, and the sequence of the last one."""
    from swarmd.edges.cli.session import as_json

    total = 0 if after else (await client.stats()).memories
    count, last = 0, after
    async for memory in client.export(after):
        file.write(as_json(memory) + "\n")
        count, last = count + 1, memory.seq
        bar.at(count, max(total, count) if total else 0, count)
    file.flush()
    return count, last


def _finish(file: TextIO, name: str) -> None:
    """The whole export under its own name, once it is on the disk."""
    os.fsync(file.fileno())
    os.replace(name + PART, name)


def _tell(session: Session, count: int, last: int) -> None:
    from swarmd.edges.cli.session import as_json, note

    name = session.args.file
    if name == "-":
        note(f"{count} memories, up to sequence {last}")
    elif session.json:
        print(as_json({"file": name, "memories": count, "seq": last}))
    else:
        print(f"{name} has {count} memories, up to sequence {last}")
