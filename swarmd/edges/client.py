"""The Client of the SDK: submit tasks, await their outcomes.

`submit` returns once the fold has accepted the task, so a returned handle is a promise that survives
anything. Outcomes are pushed; after silence or a reconnect the client asks again, so none is missed.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw, Struct

from swarmd.adapters.nats_blobs import NatsBlobs
from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import ConnectionEvents, NatsSettings, connect, disconnect
from swarmd.adapters.system import SystemClock, SystemEntropy
from swarmd.core import subjects
from swarmd.core.commands import INLINE_BYTES_MAX
from swarmd.core.errors import UNREADABLE, Conflict, Fault, Rejected
from swarmd.core.events import Failure
from swarmd.core.ids import uuid7
from swarmd.core.wire import Outcome, Receipt, Submission, TaskQuery
from swarmd.edges.planning import Planning

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from swarmd.ports import Received

#: One request carries up to so many submissions and bytes.
BATCH_TASKS: Final = 512
BATCH_BYTES: Final = 384 * 1024
ACCEPT_TIMEOUT_MS: Final = 60_000
#: After so long without any outcome the client asks for the oldest ones it waits for.
SILENCE_MS: Final = 3_000
ASKED_AT_ONCE: Final = 64
#: Tasks whose outcomes are kept for whoever may still ask.
WAITING_MAX: Final = 200_000

_receipts: Final = msgspec.json.Decoder(list[Receipt])
_outcomes: Final = msgspec.json.Decoder(list[Outcome])


class TaskFailed(Exception):
    """A task ended without an output; `outcome` says how."""

    def __init__(self, outcome: Outcome) -> None:
        error = outcome.error if isinstance(outcome.error, Failure) else Failure(outcome.state, "")
        super().__init__(f"task {outcome.task} is {outcome.state}: {error.code}: {error.message}")
        self.outcome = outcome


class Handle(Struct, frozen=True):
    """An accepted task."""

    task: str


class Client(Planning):
    """A connection to one swarm. Use `async with Client.connect(url, swarm="main") as client`.

    Tasks and outcomes are served here, schedules in `Planning`, what people say to a swarm in `People`.
    """

    def __init__(self, bus: NatsBus, swarm: str) -> None:
        super().__init__(bus, swarm)
        self._blobs = NatsBlobs(bus, swarm)
        self._clock, self._entropy = SystemClock(), SystemEntropy()
        self._inbox = bus.inbox()
        self._waiting: dict[str, asyncio.Future[Outcome]] = {}
        self._heard_ms = 0
        self._again: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._group: asyncio.TaskGroup

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, url: str | NatsSettings = "nats://127.0.0.1:4222", *, swarm: str = "main", name: str = "swarmd-client"
    ) -> AsyncIterator[Client]:
        """Connect to a broker; raises `Rejected` or `Fault` with what to do when that fails."""
        settings = url if isinstance(url, NatsSettings) else NatsSettings(url=url)
        clients: list[Client] = []

        async def on_reconnect() -> None:
            for client in clients:
                client.reconnected()

        connection = await connect(settings, name, ConnectionEvents(on_reconnect=on_reconnect))
        try:
            async with cls.over(NatsBus(connection), swarm) as client:
                clients.append(client)
                yield client
        finally:
            await disconnect(connection)

    @classmethod
    @asynccontextmanager
    async def over(cls, bus: NatsBus, swarm: str) -> AsyncIterator[Client]:
        """A client on an existing connection."""
        client = cls(bus, swarm)
        # Within the roles' own account outcomes keep the prefix that the broker takes off for clients.
        plain = await bus.subscribe(f"{client._inbox}", client._on_outcomes)
        prefixed = await bus.subscribe(f"swarm.{swarm}.reply.{client._inbox}", client._on_outcomes)
        alone: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as client._group:
                watch = client._group.create_task(client._watch())
                try:
                    yield client
                finally:
                    watch.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) > 1:
                raise
            alone = group.exceptions[0]
        finally:
            await plain.close()
            await prefixed.close()
        if alone is not None:
            raise alone  # the caller's own, as it was raised within `async with`

    def reconnected(self) -> None:
        """The connection is a new one: what was asked over the old one may never be answered, so ask again now."""
        self._heard_ms = 0
        self._again.set_result(None)
        self._again = asyncio.get_running_loop().create_future()

    # --- submitting ---

    async def submit(self, agent: str, wanted: Any = None, **options: Any) -> Handle:
        """Submit one task; `options` are the fields of `Submission` (id, priority, timeout_ms, retry, …).

        Raises `Rejected` or `Conflict` when it is refused, `Fault` when nobody accepted it in time.
        """
        submission = Submission(agent=agent, input=Raw(msgspec.json.encode(wanted)), **options)
        (receipt,) = await self.submit_many([submission])
        if isinstance(receipt, Handle):
            return receipt
        raise receipt

    async def submit_many(self, submissions: Iterable[Submission]) -> list[Handle | Rejected | Conflict]:
        """Submit tasks, packed; a refused one has its error in its place."""
        results: list[Handle | Rejected | Conflict] = []
        batch: list[Submission] = []
        size = 0
        for submission in submissions:
            batch.append(await self._prepare(submission))
            size += len(submission.input) + 200
            if len(batch) >= BATCH_TASKS or size >= BATCH_BYTES:
                results += await self._submit_batch(batch)
                batch, size = [], 0
        if batch:
            results += await self._submit_batch(batch)
        return results

    async def _prepare(self, submission: Submission) -> Submission:
        name = submission.id or uuid7(self._clock.now_ms(), self._entropy.bits(74))
        submission = msgspec.structs.replace(submission, id=name, reply=self._inbox)
        if len(submission.input) > INLINE_BYTES_MAX:
            submission.input_blob = await self._blobs.put(bytes(submission.input))
            submission.input = Raw(b"null")
        if len(self._waiting) >= WAITING_MAX:
            self._forget()
        if submission.id not in self._waiting:
            self._waiting[submission.id] = asyncio.get_running_loop().create_future()
        return submission

    def _forget(self) -> None:
        """Drop outcomes that nobody has asked for, oldest first: whoever still wants one is told by the swarm."""
        old = list(islice(self._waiting.items(), WAITING_MAX // 8))
        for task, future in old:
            if future.done():
                del self._waiting[task]

    async def _submit_batch(self, batch: list[Submission]) -> list[Handle | Rejected | Conflict]:
        """Repeat under the same ids until a leader has answered for all of them."""
        results: dict[str, Handle | Rejected | Conflict] = {}
        pause_s = 0.1
        try:
            async with asyncio.timeout(ACCEPT_TIMEOUT_MS / 1000):
                while True:
                    left = [submission for submission in batch if submission.id not in results]
                    for submission, receipt in zip(left, await self._ask_batch(left), strict=False):
                        if receipt.task:
                            results[submission.id] = Handle(receipt.task)
                            if receipt.known:  # its outcome may have been pushed long ago
                                self._group.create_task(self._ask_outcome(receipt.task))
                        elif isinstance(receipt.error, Failure) and receipt.error.code != "not_leader":
                            results[submission.id] = _refusal(receipt.error)
                            self._waiting.pop(submission.id, None)
                    if len(results) == len(batch):
                        return [results[submission.id] for submission in batch]
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, 1.0)
        except TimeoutError:
            raise Fault("not_accepted", f"swarm {self._swarm} accepted nothing within {ACCEPT_TIMEOUT_MS} ms") from None

    async def _ask_batch(self, batch: list[Submission]) -> Sequence[Receipt]:
        asking = self._group.create_task(self._request_submit(msgspec.json.encode(batch)))
        first: list[asyncio.Future[Any]] = [asking, self._again]
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            answer = asking.result() if asking.done() else b""
        finally:
            asking.cancel()
        if not answer:
            return []
        if answer[:1] == b"[":
            return _receipts.decode(answer)
        refused = msgspec.json.decode(answer, type=Receipt)
        return [refused] * len(batch)

    async def _request_submit(self, payload: bytes) -> bytes:
        try:
            return await self._bus.request(subjects.ctl(self._swarm, "submit"), payload, 5_000)
        except Fault:
            return b""
        except Rejected as error:
            return msgspec.json.encode(Receipt(error=Failure(error.code, error.message)))

    # --- outcomes ---

    async def outcome(self, task: Handle | str, timeout_ms: int = 0) -> Outcome:
        """A task's verdict, whatever it is. Raises `Fault("timeout")` after `timeout_ms` (0: it waits for ever)."""
        task_id = task if isinstance(task, str) else task.task
        future = self._waiting.get(task_id)
        if future is None:
            future = self._waiting[task_id] = asyncio.get_running_loop().create_future()
            self._group.create_task(self._ask_outcome(task_id))
        try:
            async with asyncio.timeout(timeout_ms / 1000 if timeout_ms else None):
                outcome = await asyncio.shield(future)
        except TimeoutError:
            raise Fault("timeout", f"task {task_id} has no verdict after {timeout_ms} ms") from None
        self._waiting.pop(task_id, None)
        return outcome

    async def result(self, task: Handle | str, timeout_ms: int = 0) -> Any:
        """A task's output. Raises `TaskFailed` when it has none."""
        outcome = await self.outcome(task, timeout_ms)
        if outcome.state != "completed" or not isinstance(outcome.output, Raw):
            raise TaskFailed(outcome)
        return msgspec.json.decode(await self.output_of(outcome))

    async def output_of(self, outcome: Outcome) -> bytes:
        """A completed task's output as JSON bytes, fetched when it is a blob."""
        if outcome.output_blob:
            return await self._blobs.get(outcome.output_blob)
        return bytes(outcome.output) if isinstance(outcome.output, Raw) else b"null"

    async def run(self, agent: str, wanted: Any = None, **options: Any) -> Any:
        """Submit a task and return its output."""
        return await self.result(await self.submit(agent, wanted, **options))

    def _on_outcomes(self, message: Received) -> None:
        payload = message.payload
        try:
            outcomes = _outcomes.decode(payload if payload[:1] == b"[" else b"[" + payload + b"]")
        except UNREADABLE:
            return  # whoever knows the inbox can write to it: what is missing is asked for
        for outcome in outcomes:
            self._settle(outcome)

    def _settle(self, outcome: Outcome) -> None:
        self._heard_ms = self._clock.now_ms()
        future = self._waiting.get(outcome.task)
        if future is not None and not future.done():
            future.set_result(outcome)

    async def _watch(self) -> None:
        """After silence, ask: an outcome that was pushed while the connection was down is not pushed twice."""
        start = 0
        while True:
            await asyncio.sleep(SILENCE_MS / 2000)
            if self._clock.now_ms() - self._heard_ms < SILENCE_MS:
                continue
            open_ones = [task for task, future in self._waiting.items() if not future.done()]
            start = start % len(open_ones) if open_ones else 0
            due, start = open_ones[start : start + ASKED_AT_ONCE], start + ASKED_AT_ONCE
            await asyncio.gather(*(self._ask_outcome(task) for task in due))

    async def _ask_outcome(self, task_id: str) -> None:
        query = msgspec.json.encode(TaskQuery(task_id, timeout_ms=1_000))
        try:
            answer = await self._bus.request(subjects.ctl(self._swarm, "result"), query, 5_000)
            outcome = msgspec.json.decode(answer, type=Outcome)
        except (Fault, *UNREADABLE):
            return  # nobody leads just now, or the task is not known yet: the next round asks again
        if outcome.final:
            self._settle(outcome)


def _refusal(failure: Failure) -> Rejected | Conflict:
    kind = Conflict if failure.code == "id_taken" else Rejected
    return kind(failure.code, failure.message)
