"""What the commands about a memory share: who asks, and flags checked before anything is sent.

Bad flags are `Rejected("bad_usage")`, in the words of whoever checks them. Must not know what is done with them.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from swarmd.edges.cli import flags

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Iterator

    from swarmd.edges.cli.session import Session
    from swarmd.edges.memory_client import MemoryClient

    Act = Callable[[Session, MemoryClient], Awaitable[int]]

#: So long a command waits for a node that is being started again; what runs for long waits longer.
PATIENCE_MS: Final = 10_000
LONG_PATIENCE_MS: Final = 60_000
ADMITTED_MS: Final = 5_000
SHARED: Final = "shared"
SEQ_MAX: Final = 2**63 - 1
_OR_SPAN: Final = "a span as 2h or 30d, or "


def reach(parser: argparse.ArgumentParser, *, admin: bool = True) -> None:
    """Which memory is asked and, where there is a choice, as whom."""
    parser.add_argument("--memory", metavar="NAME", help="the memory (default: shared)")
    if admin:
        parser.add_argument("--admin", action="store_true", help="ask as an admin, who sees every space")


def narrowed(parser: argparse.ArgumentParser) -> None:
    """Among which memories is looked."""
    parser.add_argument("--filter", default="", metavar="EXPR", help="""such as 'author = "ada" and has labels.kind'""")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="may be repeated")
    parser.add_argument(
        "--space", action="append", default=[], metavar="SPACE", help="shared, or in full, as swarm/main; may repeat"
    )


def said_of_it(parser: argparse.ArgumentParser) -> None:
    """What is said of a text that is remembered."""
    parser.add_argument("--author", default="", help="who says it")
    parser.add_argument("--source", default=None, help="where it is from")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="may be repeated")
    parser.add_argument("--expires", default="", metavar="TIME", help="after 2h, 30d, …, or at 2026-12-01T08:00")
    parser.add_argument("--payload", default=None, metavar="JSON", help="comes along, is not searched")


def ask(args: argparse.Namespace, act: Act, *, admin: bool = False, patience_ms: int = PATIENCE_MS) -> int:
    """Run a command on a connection, as a client or as an admin; the exit code."""
    from swarmd.core.ids import check_name
    from swarmd.edges.cli.session import note, run
    from swarmd.edges.memory_client import MemoryClient
    from swarmd.edges.settings import admin_of

    admin = admin or getattr(args, "admin", False)
    if args.memory is not None:
        with usage("--memory"):
            check_name("memory", args.memory)

    async def whole(session: Session) -> int:
        name = session.settings.memory.name
        client = MemoryClient(session.wire.bus, name, admin=admin, patience_ms=patience_ms, told=note)
        if admin:
            await _admitted(session, name)
        return await act(session, client)

    return run(args, whole, admin_of if admin else None)


async def _admitted(session: Session, memory: str) -> None:
    """The broker drops what a user may not ask, in silence: say so before a long wait."""
    from swarmd.core import subjects
    from swarmd.core.errors import Fault, Rejected

    try:
        await session.wire.bus.request(subjects.memory_ctl(memory, "stats"), b"{}", ADMITTED_MS)
    except Fault as fault:
        if fault.code == "no_responders":  # it will be waited for
            return
        if fault.code != "timeout" or session.nats.user == "admin":
            raise
        how = "use --data DIR of a running `swarmd up`, or --user-file DATA/users/admin.json"
        raise Rejected("not_allowed", f"memory {memory} did not answer: only an admin may ask this; {how}") from None


@contextmanager
def usage(flag: str = "") -> Iterator[None]:
    """What is rejected within was typed wrong."""
    from swarmd.core.errors import Rejected

    try:
        yield
    except Rejected as error:
        if error.code == "bad_usage":
            raise
        raise Rejected("bad_usage", f"{flag}: {error.message}" if flag else error.message) from None


# --- texts -----------------------------------------------------------------------------------------


def text_of(args: argparse.Namespace, *, needed: bool = True) -> str | None:
    """The text: an argument, a file or stdin, without newlines at its end. None when there is none and none needed."""
    from swarmd.core.errors import Rejected

    if args.file is not None and args.text is not None:
        raise Rejected("bad_usage", "give the text as an argument or with --file, not both")
    if args.file is None and args.text == "-":
        args.file, args.text = "-", None
    if args.file is None:
        if args.text is None and not needed:
            return None
        text = _decoded((args.text or "").encode("utf-8", "surrogateescape"))
    else:
        text = _decoded(_read(args.file))
    text = text.rstrip("\r\n")
    if not text.strip():
        raise Rejected("bad_usage", "the text is empty: give one as an argument, with --file FILE, or - for stdin")
    return text


def _read(name: str) -> bytes:
    """A file or stdin, and no more of it than can be used."""
    from swarmd.core.errors import Rejected
    from swarmd.core.memory import TEXT_BYTES_MAX

    try:
        if name == "-":
            found = sys.stdin.buffer.read(TEXT_BYTES_MAX + 64)
        else:
            with open(name, "rb") as file:
                found = file.read(TEXT_BYTES_MAX + 64)
    except OSError as error:
        raise Rejected("bad_usage", f"cannot read {name}: {error.strerror}") from None
    if len(found.rstrip(b"\r\n")) > TEXT_BYTES_MAX:
        raise Rejected("bad_usage", f"the text has more than {TEXT_BYTES_MAX} bytes: remember it in parts")
    return found


def _decoded(text: bytes) -> str:
    from swarmd.core.errors import Rejected
    from swarmd.core.memory import TEXT_BYTES_MAX

    if len(text.rstrip(b"\r\n")) > TEXT_BYTES_MAX:
        raise Rejected("bad_usage", f"the text has {len(text)} bytes, at most {TEXT_BYTES_MAX} are taken")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise Rejected("bad_usage", f"the text is not UTF-8, at byte {error.start + 1}") from None


def payload_of(text: str) -> Any:
    """`--payload` as JSON that is passed on as it is."""
    from msgspec import Raw

    from swarmd.core.memory_door import check_payload

    payload = Raw(text.encode("utf-8", "surrogateescape"))
    with usage("--payload"):
        check_payload(payload)
    return payload


# --- spaces, filters, times, numbers ---------------------------------------------------------------


def space_of(name: str) -> str:
    """A space by its full name."""
    from swarmd.core.memory_spaces import Caller, space_for_writing

    with usage("--space"):
        return space_for_writing(Caller("admin"), name)


def spaces_of(args: argparse.Namespace) -> list[str]:
    return [space_of(name) for name in args.space]


def needs_admin(*spaces: str) -> bool:
    """Whether clients may not look there: they see the shared space only."""
    return any(space != SHARED for space in spaces)


def filter_of(args: argparse.Namespace, author: str = "") -> str:
    """`--filter`, with `--author` as a part of it."""
    import json

    from swarmd.core.memory_filter import parse

    parts = [f"({args.filter})" if author else args.filter] if args.filter else []
    with usage("--filter"):
        if args.filter:
            parse(args.filter)
    parts += [f"author = {json.dumps(author, ensure_ascii=False)}"] if author else []
    return " and ".join(parts)


def expires_ms(text: str) -> int:
    """`--expires`: milliseconds since 1970, 0 for never."""
    from swarmd.adapters.system import SystemClock
    from swarmd.edges.cli.times import duration_ms, is_duration, moment_ms

    if not text:
        return 0
    now = SystemClock().now_ms()
    at = now + duration_ms("--expires", text) if is_duration(text) else moment_ms("--expires", text, _OR_SPAN)
    if at <= now:
        from swarmd.core.errors import Rejected

        raise Rejected("bad_usage", f"--expires {text}: that is over already")
    return at


def ago_ms(flag: str, text: str) -> int:
    """`2h` as the moment two hours ago, or a moment: milliseconds since 1970."""
    from swarmd.adapters.system import SystemClock
    from swarmd.edges.cli.times import duration_ms, is_duration, moment_ms

    if is_duration(text):
        return max(1, SystemClock().now_ms() - duration_ms(flag, text))
    return moment_ms(flag, text, _OR_SPAN)


def within(flag: str, value: float, least: float, most: float) -> None:
    """Raises `Rejected("bad_usage")` unless a number is within its bounds (NaN never is)."""
    from swarmd.core.errors import Rejected

    if not least <= value <= most:
        bounds = f"{least:g} or more" if most == SEQ_MAX else f"{least:g} to {most:g}"
        raise Rejected("bad_usage", f"{flag} {value:g}: it takes {bounds}")


def labels_of(pairs: list[str]) -> dict[str, str]:
    """`--label`, which a memory could have."""
    from swarmd.core.memory_door import check_labels

    labels = flags.labels_of(pairs)
    with usage("--label"):
        check_labels(labels)
    return labels
