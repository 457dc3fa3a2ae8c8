"""One memory as one caller asks it: on which subject, how large a request may be, and how often it is asked again.

Must not know what is asked for.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec import UNSET

from swarmd.adapters.system import SystemClock, SystemEntropy
from swarmd.core import subjects
from swarmd.core.errors import Fault, Rejected
from swarmd.core.ids import check_name
from swarmd.core.memory_wire import ADMIN_VERBS
from swarmd.memory_answers import NOT_DONE, check, read
from swarmd.roles.memory_steps import vector_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.adapters.nats_bus import NatsBus

T = TypeVar("T")

#: A recall waits up to 20 s for the store; its answer is on its way then.
ASK_MS: Final = 25_000
#: So long a request is repeated while nobody answers: by then another node serves, or the same one runs again.
PATIENCE_MS: Final = 30_000
PAUSE_S, PAUSE_S_MAX = 0.1, 1.0
#: Room in a message for what the broker adds.
SPARE_BYTES: Final = 1_024
#: These leave open whether anything was done.
_UNSURE: Final = frozenset({"timeout", "disconnected", "not_accepted", "no_receipt"})


class MemoryLink:
    """Who asks which memory. `told` gets a line when nobody answers and it is waited for."""

    def __init__(
        self,
        bus: NatsBus,
        memory: str = "shared",
        *,
        swarm: str = "",
        admin: bool = False,
        patience_ms: int = PATIENCE_MS,
        told: Callable[[str], None] | None = None,
    ) -> None:
        if swarm and admin:
            raise Rejected("bad_usage", "ask as a member of a swarm or as an admin, not as both")
        self.memory, self._bus, self._admin = check_name("memory", memory), bus, admin
        self._swarm = check_name("swarm", swarm) if swarm else ""
        self._patience_s, self._told = patience_ms / 1000, told or (lambda text: None)
        self._clock, self._entropy = SystemClock(), SystemEntropy()

    @property
    def payload_max(self) -> int:
        """Bytes that the broker takes in one message."""
        return int(self._bus.client.max_payload)

    def _subject(self, verb: str) -> str:
        if self._admin:
            return subjects.memory_ctl(self.memory, verb)
        if self._swarm:
            return subjects.memory_verb_of(self.memory, self._swarm, verb)
        return subjects.memory_verb(self.memory, verb)

    async def _ask(self, verb: str, body: Any, answer: type[T], *, wait_ms: int = 0, repeat: bool = True) -> T:
        payload = encoded(body)
        return read(await self._ask_raw(verb, payload, wait_ms=wait_ms, repeat=repeat), answer)

    async def _ask_raw(self, verb: str, payload: bytes, *, wait_ms: int = 0, repeat: bool = True) -> bytes:
        """One answer that is no error, asked for again while nobody answers."""
        if verb in ADMIN_VERBS and not self._admin:
            why = f"{verb} is for admins: connect with admin=True, as a user who may ask as one"
            raise Rejected("not_allowed", why)  # the broker would only drop it, and nobody ever answer
        limit = self.payload_max - SPARE_BYTES
        if len(payload) > limit:
            raise Rejected("too_large", f"{verb}: {len(payload)} bytes; the broker takes {limit} in a message")
        loop = asyncio.get_running_loop()
        gives_up_at, pause_s = loop.time() + self._patience_s, PAUSE_S
        subject, waits = self._subject(verb), False
        while True:
            try:
                reply = await self._bus.request(subject, payload, wait_ms or ASK_MS)
                check(reply)
                return reply
            except Fault as fault:
                again = fault.code in NOT_DONE or (repeat and fault.code in _UNSURE)
                if not again or loop.time() + pause_s > gives_up_at:
                    raise self._in_words(fault, subject) from None
                if not waits:
                    self._told(f"memory {self.memory} does not answer ({fault.code}): asking again")
                    waits = True
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_S_MAX)

    def _in_words(self, fault: Fault, subject: str) -> Fault:
        if fault.code == "no_responders":
            why = f"nobody serves memory {self.memory}: is its node running, and is this its name?"
            return Fault("no_responders", why)
        if fault.code == "timeout" and (self._admin or self._swarm):
            return Fault("timeout", f"{fault.message}: may this user ask there? the broker drops what is not allowed")
        return fault


def encoded(body: Any) -> bytes:
    """A request for the wire, on which there is no NaN. Raises `Rejected("bad_vector")`."""
    vector = getattr(body, "vector", UNSET)
    if vector is not UNSET and not (type(vector) is list and _is_finite(vector)):
        body = msgspec.structs.replace(body, vector=vector_of(vector))
    return msgspec.json.encode(body)


def _is_finite(vector: list[Any]) -> bool:
    """Whether all surely are finite: by their sum, a tenth of the time of looking at each."""
    try:
        return math.isfinite(sum(vector))
    except TypeError:
        return True  # no numbers: the node says which
