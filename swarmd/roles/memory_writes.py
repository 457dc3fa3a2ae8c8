"""Remember, update and forget: wishes that become events of the memory's log, answered once its fold has judged them.

A remembered id is idempotent, and of many who give it at once all with the same text are answered alike. Changes of
one memory take their turn. Remembering takes no task of its own: ten thousand a second go this way.
Must not know the bus, nor whether there is a store.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec import UNSET, Raw, Struct, UnsetType

from swarmd.core import memory_door, memory_fold
from swarmd.core.errors import Conflict, Fault, Rejected, SwarmdError
from swarmd.core.events import Failure
from swarmd.core.ids import uuid7
from swarmd.core.memory import Forgotten, Memory, RememberedV2, Updated, Version
from swarmd.core.memory_spaces import may_drop, may_read, may_update, on_behalf, space_for_writing
from swarmd.core.memory_wire import MANY_MAX, RememberManyReply, RememberReply
from swarmd.passages import check_memory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from swarmd.core.memory_fold import Known
    from swarmd.core.memory_spaces import Caller
    from swarmd.core.memory_wire import ForgetRequest, RememberMany, RememberRequest, UpdateRequest
    from swarmd.ports import Clock, Entropy, Pin
    from swarmd.roles.memory_log import MemoryLog

    Told = Callable[[RememberReply], None]

#: An update that names no version is made anew so often, when others were first.
UPDATE_TRIES: Final = 16
REASON_MAX: Final = 500
#: So many labels of the longest cannot make a memory too large for a store.
FEW_LABELS: Final = 8
#: So long a wish may be on its way into the log before whoever waits is told that it is not sure.
UNSURE_MS: Final = 10_000


class _Wish(Struct, eq=False):
    """A new memory on its way into the log: its text and space, who waits to hear, and since when."""

    text: bytes
    space: str
    told: list[Told]
    since_ms: int


class Writes:
    """What a memory node does about what is to be written. `pin` says what the store's vectors are made by."""

    def __init__(self, log: MemoryLog, clock: Clock, entropy: Entropy, pin: Callable[[], Pin | None]) -> None:
        self._log, self._clock, self._entropy, self._pin = log, clock, entropy, pin
        self._wishes: dict[str, _Wish] = {}
        self._changing: set[str] = set()

    # --- remembering ---

    def remember(self, caller: Caller, wanted: RememberRequest, told: Told) -> None:
        """`told` is called once, at once or when the fold has accepted it, with where it is or what is wrong."""
        try:
            memory = wanted.id
            if memory:
                memory_door.check_field(memory, "id")
            else:
                memory = uuid7(self._clock.now_ms(), self._entropy.bits(74))
            space = space_for_writing(caller, wanted.space)
            memory_door.check_text(wanted.text)
            text = memory_fold.digest(wanted.text)
            seq = self._remembered(memory, text, space)
            if seq:
                told(RememberReply(memory, seq))
                return
            wish = self._wishes.get(memory)
            if wish is None:
                self._log.check_room()
                fact = self._fact(caller, wanted, memory, space)
                wish = self._wishes[memory] = _Wish(text, space, [told], self._clock.now_ms())
                self._log.offer(memory, fact, partial(self._folded, memory, wish))
            elif (wish.text, wish.space) == (text, space):
                wish.told.append(told)
            else:
                raise Conflict("id_taken", f"memory {memory[:200]} is being given another text: use another id")
        except SwarmdError as error:
            told(_refused(wanted.id, error))

    def remember_many(self, caller: Caller, wanted: RememberMany, told: Callable[[RememberManyReply], None]) -> None:
        """As `remember` for each; `told` is called when all are answered. Raises `Rejected("too_many")`."""
        left = len(wanted.memories)
        if left > MANY_MAX:
            raise Rejected("too_many", f"{left} passages in one request: at most {MANY_MAX} are taken")
        replies = [RememberReply()] * left
        if not left:
            told(RememberManyReply())

        def take(place: int, reply: RememberReply) -> None:
            nonlocal left
            replies[place] = reply
            left -= 1
            if not left:
                told(RememberManyReply(replies))

        for place, memory in enumerate(wanted.memories):
            try:
                self.remember(on_behalf(caller, memory.agent, memory.task), memory, partial(take, place))
            except Rejected as error:
                take(place, _refused(memory.id, error))

    def tell_late(self) -> None:
        """Answer whoever waits for a log that takes nothing: it goes on being tried, and may be asked for again."""
        now = self._clock.now_ms()
        for memory, wish in self._wishes.items():
            late_ms = now - wish.since_ms
            if late_ms < UNSURE_MS:  # those after it are younger
                break
            waiting, wish.told = wish.told, []
            why = f"the broker has given no receipt for {late_ms} ms: is its disk full? Ask again under the same id"
            for told in waiting:
                told(_refused(memory, Fault("no_receipt", why)))

    def _remembered(self, memory: str, text: bytes, space: str) -> int:
        seq = memory_fold.answer_remember(self._log.state, memory, text)
        if seq and self._log.state.known[memory].space != space:
            raise Conflict("id_taken", f"memory {memory[:200]} is in another space: use another id")
        return seq

    def _folded(self, memory: str, wish: _Wish, error: SwarmdError | None) -> None:
        del self._wishes[memory]
        try:
            if error is not None:
                raise error
            seq = self._remembered(memory, wish.text, wish.space)
            if not seq:
                raise _not_accepted()
            reply = RememberReply(memory, seq)
        except SwarmdError as refused:
            reply = _refused(memory, refused)
        for told in wish.told:
            told(reply)
        if self._changing:
            self._log.moved()

    def _fact(self, caller: Caller, wanted: RememberRequest, memory: str, space: str) -> RememberedV2:
        """What is to be logged, all checked. Raises `Rejected`, `Fault("memory_behind")`."""
        if wanted.swarm and wanted.swarm != caller.swarm and caller.kind != "admin":
            raise Rejected("not_allowed", "only an admin may say of which swarm a memory is: leave `swarm` out")
        author = wanted.author or wanted.agent
        _check_fields(wanted.source, author, wanted.task, wanted.step)
        if wanted.labels:
            memory_door.check_labels(wanted.labels)
        if wanted.expires_at_ms:
            memory_door.check_expiry(wanted.expires_at_ms, self._clock.now_ms())
        fact = RememberedV2(
            text=wanted.text,
            source=wanted.source,
            labels=wanted.labels,
            author=author,
            swarm=caller.swarm or wanted.swarm,
            task=wanted.task,
            step=wanted.step,
            expires_at_ms=wanted.expires_at_ms,
            payload=_checked_payload(wanted.payload),
            space=space,
        )
        if wanted.vector is not UNSET:
            fact.vector, fact.embedder = self._own_vector(wanted.vector, wanted.embedder)
        _check_whole(memory, fact, space)
        return fact

    def _own_vector(self, values: list[float] | UnsetType, embedder: str) -> tuple[bytes, str]:
        """A vector that the author made, and by what. Raises `Rejected`, `Fault("memory_behind")`."""
        assert not isinstance(values, UnsetType)
        memory_door.check_field(embedder, "embedder")
        pin = self._pin()
        if not embedder:
            if pin is None:
                why = "what vectors here are made by is not known yet: say which `embedder` made yours, or ask again"
                raise Fault("memory_behind", why)
            embedder = pin.embedder
        dimension = pin.dimension if pin is not None and pin.embedder == embedder else 0
        return memory_door.vector_bytes(memory_door.unit_vector(values, dimension)), embedder

    # --- changing ---

    async def update(self, caller: Caller, wanted: UpdateRequest) -> RememberReply:
        """Append a version made of the present one; made anew when somebody else was first and no version was named."""
        memory, state = wanted.id, self._log.state
        async with self._turn(memory):
            for _ in range(UPDATE_TRIES):
                known = memory_fold.present(state, memory)
                self._check_update(caller, memory, known)
                if seq := await self._made_before(caller, wanted, known):
                    return RememberReply(memory, seq)
                (held,) = await self._log.versions([known.place])
                fact = self._updated(caller, wanted, held, known)
                if _says(fact) == _says(held):
                    return RememberReply(memory, known.place[0])  # once more, after a crash
                if wanted.if_seq not in (0, known.place[0]):
                    why = f"memory {memory[:200]} is at sequence {known.place[0]} by now: read it and decide again"
                    raise Conflict("stale_update", why)
                self._log.check_room()
                seq = await self._log.commit((memory, fact))
                if known.place[0] == seq and not known.gone_seq:
                    return RememberReply(memory, seq)
        raise Fault("not_accepted", f"memory {memory[:200]} is changed all the time: send it again")

    def _check_update(self, caller: Caller, memory: str, known: Known) -> None:
        if not may_read(caller, known.space):
            raise _unknown(memory)
        if not may_update(caller, known.space, known.swarm, known.author, known.task):
            why = f"memory {memory[:200]} is not yours to change: ask as its author or as an admin"
            raise Rejected("not_allowed", why)

    async def _made_before(self, caller: Caller, wanted: UpdateRequest, known: Known) -> int:
        """Where this very update is in the log, whose answer got lost, also where others came after it; else 0."""
        edits = known.updates or []
        if caller.kind == "member" and wanted.task and wanted.step:
            who = (caller.swarm, wanted.task, wanted.step)
            return next((edit.seq for edit in edits if (edit.swarm, edit.task, edit.step) == who), 0)
        places = [known.first, *((edit.seq, edit.index) for edit in edits)]
        at = next((at for at, place in enumerate(places[:-2]) if place[0] == wanted.if_seq), -1)
        if at < 0:  # it names no version, or none that is older than the last but one
            return 0
        replaced, made = await self._log.versions(places[at : at + 2])
        return places[at + 1][0] if _says(self._updated(caller, wanted, replaced, known)) == _says(made) else 0

    def _updated(self, caller: Caller, wanted: UpdateRequest, held: Version, known: Known) -> Updated:
        """The next version. Raises `Rejected`, `Fault("memory_behind")`."""
        if wanted.text is not UNSET:
            memory_door.check_text(wanted.text)
        if wanted.labels is not UNSET:
            memory_door.check_labels(wanted.labels)
        author = wanted.author or wanted.agent
        source = held.source if isinstance(wanted.source, UnsetType) else wanted.source
        _check_fields(source, author, wanted.task, wanted.step)
        fact = Updated(
            text=held.text if isinstance(wanted.text, UnsetType) else wanted.text,
            source=source,
            labels=held.labels if isinstance(wanted.labels, UnsetType) else wanted.labels,
            author=author,
            swarm=caller.swarm,
            task=wanted.task,
            step=wanted.step,
            expires_at_ms=held.expires_at_ms if isinstance(wanted.expires_at_ms, UnsetType) else wanted.expires_at_ms,
            payload=held.payload if wanted.payload is UNSET else _checked_payload(wanted.payload),
            replaces=known.place[0],
        )
        if fact.expires_at_ms != held.expires_at_ms:
            memory_door.check_expiry(fact.expires_at_ms, self._clock.now_ms())
        if wanted.vector is not UNSET:
            fact.vector, fact.embedder = self._own_vector(wanted.vector, wanted.embedder)
        elif fact.text == held.text:  # of another text it says nothing
            fact.vector, fact.embedder = held.vector, held.embedder
        _check_whole(wanted.id, fact, known.space)
        return fact

    async def forget(self, caller: Caller, wanted: ForgetRequest) -> RememberReply:
        """Drop a memory as its author's task or agent, or as an admin."""
        memory, state = wanted.id, self._log.state
        async with self._turn(memory):
            seq = memory_fold.answer_forget(state, memory)
            known = state.known[memory]
            if not may_read(caller, known.space):
                raise _unknown(memory)
            if not may_drop(caller, known.swarm, known.author, known.task):
                why = f"memory {memory[:200]} is not yours to drop: ask as its author's agent or task, or as an admin"
                raise Rejected("not_allowed", why)
            if not seq:
                await self._log.commit((memory, Forgotten(reason=wanted.reason[:REASON_MAX])))
                seq = known.gone_seq
        if not seq:
            raise _not_accepted()
        return RememberReply(memory, seq)

    def is_changing(self, memory: str) -> bool:
        """Whether somebody is about to change it."""
        return memory in self._changing

    @asynccontextmanager
    async def _turn(self, memory: str) -> AsyncIterator[None]:
        """Nobody else changes this memory meanwhile, and nobody is about to remember it."""
        memory_door.check_field(memory, "id")
        changing, wishes = self._changing, self._wishes
        while memory in changing or memory in wishes:
            await self._log.until(lambda: memory not in changing and memory not in wishes)
        changing.add(memory)
        try:
            yield
        finally:
            changing.remove(memory)
            self._log.moved()


def _check_fields(source: str, author: str, task: str, step: str) -> None:
    for name, value in (("source", source), ("author", author), ("task", task), ("step", step)):
        if value:
            memory_door.check_field(value, name)


def _says(version: Version) -> tuple[object, ...]:
    """All of a version but which one it replaces, and in which space."""
    return tuple(getattr(version, name) for name in Version.__struct_fields__)


def _checked_payload(payload: Raw | UnsetType) -> Raw | UnsetType:
    """A payload that can be kept; null is none."""
    if isinstance(payload, UnsetType) or bytes(payload) == b"null":
        return UNSET
    memory_door.check_payload(payload)
    return payload


def _check_whole(memory: str, fact: Version, space: str) -> None:
    """Each part may be sound and all together too large for a store. Raises `Rejected("too_large")`."""
    if len(fact.labels) <= FEW_LABELS and fact.payload is UNSET:
        return
    check_memory(
        Memory(
            memory,
            fact.text,
            fact.source,
            fact.labels,
            fact.author,
            fact.task,
            space=space,
            swarm=fact.swarm,
            step=fact.step,
            expires_at_ms=fact.expires_at_ms,
            payload=fact.payload,
        )
    )


def _refused(memory: str, error: SwarmdError) -> RememberReply:
    return RememberReply(memory, error=Failure(error.code, error.message))


def _not_accepted() -> Fault:
    return Fault("not_accepted", "the memory's log did not accept this: send it again")


def _unknown(memory: str) -> Rejected:
    """What a caller is told of a memory that it may not see."""
    return Rejected("unknown_memory", f"no memory {memory[:200]} was ever remembered here")
