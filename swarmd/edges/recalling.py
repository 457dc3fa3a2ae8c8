"""Tasks that have read what was revoked, run anew: like cars with a faulty part, they are called back.

Job: find the root of each reader (a child is a part of its parent's work, a delegated task of another swarm's), read
back how it was submitted, cancel it if it still lives, and submit it again. Invariants: the new id is made of the old
one and the revocation, so that whoever does this twice makes no task twice; what cannot be run anew is told with the
reason, and nothing that somebody else has cancelled comes back. Must not know who asks, nor how a memory is revoked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from swarmd.adapters.jetstream import JetStreamLog
from swarmd.core import subjects
from swarmd.core.codec import Codec, Commit
from swarmd.core.commands import LABEL_CHARS_MAX, LABELS_MAX
from swarmd.core.errors import UNREADABLE, Conflict, Fault, Rejected
from swarmd.core.events import Cancelled, Event, Failure, Fired, Submitted
from swarmd.core.sharing import PATH_LABEL
from swarmd.core.wire import Receipt, ScheduleStatus, Submission, TaskQuery
from swarmd.edges.client import Client, Handle
from swarmd.roles.observer import FoundOne

if TYPE_CHECKING:
    from collections.abc import Iterable

    from swarmd.adapters.nats_bus import NatsBus
    from swarmd.core.catalog import FoundTask
    from swarmd.core.memory_wire import Reader
    from swarmd.core.state import Place

T = TypeVar("T")

ASK_MS: Final = 10_000
AT_ONCE: Final = 16
#: A family that is deeper was not made by swarmd.
ANCESTORS_MAX: Final = 1_000
LABEL: Final = "redriven_from"
ENDED: Final = ("completed", "dead")
_ID_CHARS_MAX: Final = 200

Told = Callable[[int, int], None]


class Redriven(Struct):
    """A task of `swarm` that was run anew as `new`, or `why` it was not; `readers` are those that it stands for.

    `cancelled` says that it was still at work.
    """

    swarm: str
    task: str
    readers: list[str] = field(default_factory=list)
    new: str = ""
    cancelled: bool = False
    why: str = ""


class _Answer(Struct):
    """Any answer, as far as it may be an error."""

    error: Failure | UnsetType | None = UNSET


async def redrive_readers(bus: NatsBus, readers: Iterable[Reader], seq: int, told: Told) -> list[Redriven]:
    """Run the tasks of these `readers` anew, each root once; `seq` is that of the revocation.

    `told(done, of)` is called as it goes on. Raises nothing that concerns a single task: that is its `why`.
    """
    async with AsyncExitStack() as stack:
        recall = _Recall(bus, seq, stack)
        listed = list(readers)
        done = 0

        def tick(one: Any) -> Any:
            nonlocal done
            done += 1
            told(done, 2 * len(listed))
            return one

        roots = await _each(listed, lambda reader: recall.root(reader.swarm, reader.task), tick)
        whole: dict[tuple[str, str], Redriven] = {}
        for reader, root in zip(listed, roots, strict=True):
            known = whole.setdefault((root.swarm, root.task), root)
            known.readers.append(f"{reader.swarm}/{reader.task}")
        done = 2 * len(listed) - len(whole)
        return await _each(list(whole.values()), recall.redrive, tick)


async def _each(items: list[T], act: Callable[[T], Any], tick: Callable[[Any], Any]) -> list[Any]:
    """`act` on all items, some at once; the results in their order."""
    results: list[Any] = [None] * len(items)
    left = iter(enumerate(items))

    async def some() -> None:
        for index, item in left:
            results[index] = tick(await act(item))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(AT_ONCE, len(items))):
            group.create_task(some())
    return results


def id_anew(task: str, seq: int) -> str:
    """The id of the task that stands in for another after the revocation at `seq`: always the same."""
    whole = f"{task}:again-{seq}"
    if len(whole) <= _ID_CHARS_MAX:
        return whole
    return f"again-{seq}-{blake2b(task.encode(), digest_size=16).hexdigest()}"


class _Recall:
    """One revocation's readers."""

    def __init__(self, bus: NatsBus, seq: int, stack: AsyncExitStack) -> None:
        self._bus, self._seq, self._stack = bus, seq, stack
        self._codec = Codec()
        self._clients: dict[str, Client] = {}
        self._opening = asyncio.Lock()
        self._reason = f"memories that it has read were revoked at sequence {seq}"

    # --- finding ---

    async def root(self, swarm: str, task: str) -> Redriven:
        """The eldest ancestor of a task, through the swarms that handed it on."""
        try:
            for _ in range(ANCESTORS_MAX):
                found = await self._found(swarm, task)
                if found.parent:
                    task = found.parent
                    continue
                above = found.labels.get(PATH_LABEL, "").rpartition("/")[2]
                if not above or not task.startswith(f"{above}:"):
                    return Redriven(swarm, task)
                swarm, task = above, task[len(above) + 1 :].rpartition(":")[0]
        except (Rejected, Fault) as error:
            return Redriven(swarm, task, why=error.message)
        return Redriven(swarm, task, why=f"it has more than {ANCESTORS_MAX} ancestors")

    async def _found(self, swarm: str, task: str) -> FoundTask:
        try:
            answer = await self._ask(subjects.find(swarm, "task"), TaskQuery(task), FoundOne)
        except Fault as fault:
            if fault.code == "no_responders":
                why = f"no observer serves swarm {swarm}, which would find it: `swarmd run observer`"
                raise Fault("no_observer", why) from None
            raise
        if answer.task is None:
            raise Rejected("unknown_task", f"no task {task} is known in swarm {swarm}")
        return answer.task

    # --- running anew ---

    async def redrive(self, root: Redriven) -> Redriven:
        """Cancel a root that lives, and submit it again."""
        if root.why:
            return root
        try:
            found = await self._found(root.swarm, root.task)
            if found.state not in ENDED and found.verdict is None:
                root.cancelled = await self._cancel(root)
            elif found.state not in ENDED and not await self._is_ours(root.swarm, found.verdict):
                root.why = f"it is {found.state}: nobody waits for what it would say"
                return root
            root.new = await self._submit(root, await self._submission(root, found))
        except (Rejected, Conflict, Fault) as error:
            root.why = error.message
        return root

    async def _is_ours(self, swarm: str, verdict: Place | None) -> bool:
        """Whether it was this very recall that cancelled a task: it was cut off before it submitted the next."""
        event = await self._event(swarm, verdict) if verdict is not None else None
        return event is not None and isinstance(event.data, Cancelled) and event.data.reason == self._reason

    async def _cancel(self, root: Redriven) -> bool:
        query = TaskQuery(root.task, reason=self._reason)
        try:
            await self._ask(subjects.ctl(root.swarm, "cancel"), query, Receipt)
        except Rejected as rejected:  # it has ended meanwhile
            if rejected.code not in ("finished", "too_late", "unknown_task"):
                raise
            return False
        return True

    async def _submission(self, root: Redriven, found: FoundTask) -> Submission:
        """How it was submitted, under its new id. Raises `Rejected` or `Fault` when that cannot be told."""
        event = await self._event(root.swarm, found.history[0]) if found.history else None
        if event is not None and isinstance(event.data, Fired):
            wanted = await self._scheduled(root.swarm, event.subject, event.data)
        elif event is not None and isinstance(event.data, Submitted):
            wanted = _as_submitted(event, event.data)
        else:
            raise Rejected("not_submitted", "the log does not tell how it was submitted")
        wanted.id = id_anew(root.task, self._seq)
        if len(wanted.labels) < LABELS_MAX:
            wanted.labels = {**wanted.labels, LABEL: root.task[:LABEL_CHARS_MAX]}
        return wanted

    async def _scheduled(self, swarm: str, name: str, fired: Fired) -> Submission:
        """What a schedule makes for this slot, as it stands now."""
        client = await self._client(swarm)
        status = next((one for one in await client.schedules() if one.id == name), None)
        if status is None:
            raise Rejected("unknown_schedule", f"schedule {name}, which made it, is no more")
        return _of_schedule(status, fired.slot_ms)

    async def _submit(self, root: Redriven, wanted: Submission) -> str:
        client = await self._client(root.swarm)
        (receipt,) = await client.submit_many([wanted])
        if isinstance(receipt, Handle):
            return receipt.task
        raise receipt

    # --- asking ---

    async def _client(self, swarm: str) -> Client:
        async with self._opening:
            if swarm not in self._clients:
                self._clients[swarm] = await self._stack.enter_async_context(Client.over(self._bus, swarm))
        return self._clients[swarm]

    async def _event(self, swarm: str, place: Place) -> Event | None:
        seq, index = place
        (record,) = await JetStreamLog(self._bus, subjects.log_stream(swarm)).read([seq])
        commit = self._codec.decode(record)
        event = commit.events[index] if isinstance(commit, Commit) and 0 <= index < len(commit.events) else None
        return event if isinstance(event, Event) else None

    async def _ask(self, subject: str, body: Any, answer: type[T]) -> T:
        payload = await self._bus.request(subject, msgspec.json.encode(body), ASK_MS)
        try:
            error = msgspec.json.decode(payload, type=_Answer).error
            if isinstance(error, Failure):
                raise Rejected(error.code, error.message)
            return msgspec.json.decode(payload, type=answer)
        except UNREADABLE as unreadable:
            raise Fault("bad_answer", f"what answered on {subject} cannot be read: {unreadable}") from None


def _as_submitted(event: Event, fact: Submitted) -> Submission:
    """The same wish again, to begin at once, with as much time as it had then."""
    timeout_ms = 0
    if fact.deadline_at_ms:
        begun_ms = fact.not_before_ms or round(datetime.fromisoformat(event.time).timestamp() * 1000)
        timeout_ms = max(1_000, fact.deadline_at_ms - begun_ms)
    return Submission(
        fact.agent,
        fact.input,
        priority=fact.priority,
        timeout_ms=timeout_ms,
        tenant=fact.tenant,
        retry=fact.retry,
        budget=fact.budget,
        labels=fact.labels,
        requires=fact.requires,
        input_blob=fact.input_blob,
        concurrency_key=fact.concurrency_key,
    )


def _of_schedule(status: ScheduleStatus, slot_ms: int) -> Submission:
    plan = status.schedule
    return Submission(
        plan.agent,
        plan.input,
        priority=plan.priority,
        timeout_ms=plan.timeout_ms,
        tenant=plan.tenant,
        retry=plan.retry,
        budget=plan.budget,
        labels={**plan.labels, "schedule": status.id, "slot_ms": str(slot_ms)},
        requires=plan.requires,
    )
