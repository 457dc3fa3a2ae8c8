"""The desk of a memory node: takes requests off the bus, knows by the subject who asks, and answers each once.

What only writes is done on the spot and answered from the fold; everything else has a task of its own. Both are
bounded: whoever comes too many is told to come again. Must not know what any verb does.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from swarmd.core import subjects
from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.events import Failure
from swarmd.core.ids import is_plain
from swarmd.core.memory_spaces import Caller, caller_of
from swarmd.core.memory_wire import ADMIN_VERBS, PUBLIC_VERBS, Refusal
from swarmd.ports import Bus, Clock, Meter, Probe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmd.ports import Received, Subscription

#: Requests that are being answered by tasks, long polls in waiting, and bytes of all requests at hand.
ASKED_MAX: Final = 2_000
POLLS_MAX: Final = 10_000
HELD_BYTES_MAX: Final = 64 * 1024 * 1024
#: Whatever takes longer is answered with an error, before whoever asked has given up.
ANSWER_MS: Final = 24_000
#: Tokens in a verb's place that are a memory's own subjects.
_OWN: Final = frozenset({"lease", "beat", "log", "event"})
_LONE: Final = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]..")

_encoder: Final = msgspec.json.Encoder()


class DeskPorts(Struct, frozen=True):
    """What a desk needs of the world."""

    bus: Bus
    clock: Clock
    probe: Probe
    meter: Meter


class Verb(Struct, frozen=True):
    """What can be asked: the form of a request (None: whatever it says is not read), and what is done about it.

    `at_once` gets the answer by a callback and must return at once; `by_and_by` is awaited in a task. `waits` marks
    what is no load while it waits.
    """

    request: Any
    at_once: Callable[[Caller, Any, Callable[[Any], None]], None] | None = None
    by_and_by: Callable[[Caller, Any], Awaitable[Any]] | None = None
    waits: bool = False


class Desk:
    """Construct, `run`, and `open` while requests shall be taken; `close`, then `idle`, to end in peace."""

    def __init__(self, memory: str, verbs: Mapping[str, Verb], ports: DeskPorts) -> None:
        self._memory, self._verbs, self._ports = memory, verbs, ports
        self._decoders = {name: msgspec.json.Decoder(verb.request) for name, verb in verbs.items() if verb.request}
        self._subscriptions: list[Subscription] = []
        self._outbox: list[tuple[str, bytes]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._asked = self._held = self._working = self._polls = 0
        self._counts: dict[tuple[str, str], int] = {}
        self._group: asyncio.TaskGroup

    @property
    def asked(self) -> int:
        """Requests that have no answer yet."""
        return self._asked

    async def run(self) -> None:
        """Answer until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            await self._send()

    async def open(self) -> None:
        """Take requests."""
        memory = self._memory
        for subject in (
            subjects.memory_verb(memory, "*"),
            subjects.memory_verb_of(memory, "*", "*"),
            subjects.memory_ctl(memory, "*"),
        ):
            self._subscriptions.append(await self._ports.bus.subscribe(subject, self._take))

    async def close(self) -> None:
        """Take no more."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.close()

    async def idle(self) -> None:
        """Wait until everybody who asked has an answer."""
        await self._idle.wait()

    def report(self) -> None:
        """Tell the meter what was answered since the last time."""
        counts, self._counts = self._counts, {}
        for (verb, outcome), count in counts.items():
            self._ports.meter.count("swarmd_memory_requests_total", self._memory, verb, outcome, by=count)

    # --- taking ---

    def _take(self, message: Received) -> None:
        """On the bus's read loop."""
        verb, refused = _verb_in(message.subject)
        if not verb or not _may_answer(message.reply):
            return
        size = len(message.payload)
        self._asked += 1
        self._held += size
        self._idle.clear()
        answer = partial(self._answer, message.reply, verb, size)
        try:
            if refused is not None:
                raise Rejected(*refused)
            if self._held > HELD_BYTES_MAX:
                raise Fault("busy", f"{self._held} bytes of requests are being answered: ask again")
            doing = self._verbs[verb]
            decoder = self._decoders.get(verb)
            wanted: Any = None if decoder is None else _decoded(decoder, message.payload)
            caller = caller_of(message.subject, getattr(wanted, "agent", ""), getattr(wanted, "task", ""))
            if doing.at_once is not None:
                doing.at_once(caller, wanted, answer)
            else:
                self._begin(verb, doing, (caller, wanted), answer)
        except SwarmdError as error:
            answer(Refusal(Failure(error.code, error.message)))

    def _begin(self, verb: str, doing: Verb, asked: tuple[Caller, Any], answer: Callable[[Any], None]) -> None:
        if doing.waits:
            if self._polls >= POLLS_MAX:
                raise Fault("busy", f"{POLLS_MAX} others wait for matches: ask again")
            self._polls += 1
        else:
            if self._working >= ASKED_MAX:
                raise Fault("busy", f"{ASKED_MAX} requests are being answered: ask again")
            self._working += 1
        self._group.create_task(self._do(verb, doing, asked, answer))

    async def _do(self, verb: str, doing: Verb, asked: tuple[Caller, Any], answer: Callable[[Any], None]) -> None:
        assert doing.by_and_by is not None
        started_ms = self._ports.clock.now_ms()
        try:
            async with asyncio.timeout(None if doing.waits else ANSWER_MS / 1000):
                answered = await doing.by_and_by(*asked)
            answer(answered)
        except TimeoutError:
            why = f"{verb} took longer than {ANSWER_MS} ms and may still be done: ask again, and look at `stats`"
            answer(Refusal(Failure("timeout", why)))
        except SwarmdError as error:
            answer(Refusal(Failure(error.code, error.message)))
        finally:
            if doing.waits:
                self._polls -= 1
            else:
                self._working -= 1
        if verb == "recall":
            took_ms = self._ports.clock.now_ms() - started_ms
            self._ports.meter.observe("swarmd_recall_seconds", took_ms / 1000, self._memory)

    # --- answering ---

    def _answer(self, reply: str, verb: str, size: int, answer: Any) -> None:
        error = getattr(answer, "error", None)
        outcome = (verb, error.code if isinstance(error, Failure) else "ok")
        self._counts[outcome] = self._counts.get(outcome, 0) + 1
        self._asked -= 1
        self._held -= size
        self._outbox.append((reply, _encoder.encode(answer)))
        self._wake.set()

    async def _send(self) -> None:
        """Publish answers, all that are ready one after the other; the connection writes them together."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outbox:
                outbox, self._outbox = self._outbox, []
                for reply, payload in outbox:
                    await self._publish(reply, payload)
            if not self._asked:
                self._idle.set()

    async def _publish(self, reply: str, payload: bytes) -> None:
        bus = self._ports.bus
        try:
            try:
                await bus.publish(reply, payload)
            except Rejected as error:  # more than the broker takes
                self._ports.probe.trouble("an answer of the memory", error)
                await bus.publish(reply, _encoder.encode(Refusal(Failure(error.code, f"the answer: {error.message}"))))
        except SwarmdError as error:
            self._ports.probe.trouble("an answer of the memory", error)


@lru_cache(maxsize=4096)
def _verb_in(subject: str) -> tuple[str, tuple[str, str] | None]:
    """The verb that a subject asks for ("": it is no request), and code and reason why it cannot be asked there."""
    tokens = subject.split(".")
    verb, place = tokens[-1], tokens[2:-1]
    if not place and verb in _OWN:
        return "", None
    if verb in PUBLIC_VERBS or (verb in ADMIN_VERBS and place == ["ctl"]):
        return verb, None
    if verb in ADMIN_VERBS:
        return verb, ("not_allowed", f"{verb} is for admins: ask on {subjects.memory_ctl(tokens[1], verb)}")
    verbs = PUBLIC_VERBS + (ADMIN_VERBS if place == ["ctl"] else ())
    return "unknown", ("unknown_verb", f"a memory has no verb {verb[:50]!r} here: there is {', '.join(verbs)}")


def _may_answer(reply: str) -> bool:
    """As `is_plain`, for inboxes whose last token alone is another each time."""
    inbox, _, token = reply.rpartition(".")
    return is_plain(inbox) and len(token) < 64 if inbox and token.isalnum() else is_plain(reply)


def _decoded(decoder: msgspec.json.Decoder[Any], payload: bytes) -> Any:
    """A request of a known form; raises `Rejected` naming what is wrong with it."""
    try:
        return decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise Rejected("bad_field", str(error)) from None
    except RecursionError:
        raise Rejected("too_deep", "the request is nested too deep") from None
    except UnicodeDecodeError as error:
        raise Rejected("not_unicode", f"the request is not UTF-8: {error}") from None
    except msgspec.DecodeError as error:
        if _LONE.search(payload):
            raise Rejected("not_unicode", "a text holds a lone surrogate: send valid Unicode") from None
        raise Rejected("bad_json", f"not JSON: {error}") from None
