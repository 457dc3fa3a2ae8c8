"""A child swarm as its delegate sees it: look, submit, await, recall and cancel, over the child's own subjects.

Submissions of one moment travel together. Outcomes are pushed to one reply subject that stays the same over the
delegate's lives; what was missed is asked for. A look tells what the child has room for, and which of the tasks that
it was handed nobody has begun. Must not know the parent swarm.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from swarmd.coalesce import Coalescer
from swarmd.core import subjects
from swarmd.core.commands import BATCH_MAX
from swarmd.core.errors import UNREADABLE, Conflict, Fault, Rejected
from swarmd.core.events import Failure
from swarmd.core.sharing import Handed
from swarmd.core.wire import LoadQuery, Outcome, Receipt, Submission, SwarmLoad, TaskQuery

if TYPE_CHECKING:
    from swarmd.ports import Bus, Received, Subscription

log = logging.getLogger(__name__)

REQUEST_MS: Final = 5_000
LOOK_MS_MAX: Final = 1_000
#: Pushed outcomes of short tasks come before this; for longer ones the child is asked, `POLL_MS` at a time.
FIRST_ASK_MS: Final = 500
POLL_MS: Final = 5_000
PAUSE_MS, PAUSE_MS_MAX = 100, 2_000
_BATCH_BYTES: Final = 512 * 1024

_outcomes: Final = msgspec.json.Decoder(list[Outcome])
_receipts: Final = msgspec.json.Decoder(list[Receipt])


class _Answer(Struct):
    """What `ctl` answers about one task: an outcome, or an error without a state."""

    task: str = ""
    state: str = ""
    error: Failure | None = None


class ChildSwarm:
    """One child swarm. `reply` is a plain subject that only delegates may read, the same in every life."""

    def __init__(self, name: str, bus: Bus, reply: str) -> None:
        self.name, self._bus, self._reply = name, bus, reply
        self._waiting: dict[str, asyncio.Future[Outcome]] = {}
        self._submits: Coalescer[Submission, Receipt] = Coalescer(self._submit_all, window_ms=1, items_max=BATCH_MAX)
        self._subscriptions: list[Subscription] = []
        self._handed = Handed()

    async def open(self) -> None:
        """Listen for outcomes. Orchestrators put a prefix before replies, so that clients cannot aim them."""
        for subject in (self._reply, f"swarm.{self.name}.reply.{self._reply}"):
            self._subscriptions.append(await self._bus.subscribe(subject, self._on_outcomes))

    async def close(self) -> None:
        for subscription in self._subscriptions:
            await subscription.close()

    async def look(self) -> SwarmLoad:
        """What the child can run and has to do, as its parent shall know it. Raises `Fault` when nobody leads it."""
        asked, loop = self._handed.look(), asyncio.get_running_loop()
        payload, began = msgspec.json.encode(LoadQuery(asked)), loop.time()
        answer = await self._bus.request(subjects.ctl(self.name, "load"), payload, LOOK_MS_MAX)
        try:
            seen = msgspec.json.decode(answer, type=SwarmLoad)
        except UNREADABLE as error:
            raise Fault("no_load", f"swarm {self.name} does not say what it has room for: {error}") from None
        seen.load = self._handed.told(asked, seen)
        seen.load.latency_ms = round((loop.time() - began) * 1000)
        return seen

    def recallable(self) -> list[str]:
        """Tasks that nobody had begun at the last look."""
        return self._handed.recallable()

    async def run(self, submission: Submission) -> Outcome:
        """Submit, wait for the verdict and return it; as often as it takes, since the id makes it one task.

        Raises `Rejected` or `Conflict` when the child refuses.
        """
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting[submission.id] = outcome
        try:
            while True:
                await self._submit(submission)
                self._handed.accepted(submission.id)
                verdict = await self._await(submission.id, outcome)
                if verdict is not None:
                    return verdict
        finally:
            del self._waiting[submission.id]
            self._handed.ended(submission.id)

    async def recall(self, task: str, reason: str) -> None:
        """Ask once for a task that nobody has begun; its outcome says whether it was given up."""
        payload = msgspec.json.encode(TaskQuery(task, reason=reason))
        try:
            answer = await self._bus.request(subjects.ctl(self.name, "recall"), payload, REQUEST_MS)
            error = msgspec.json.decode(answer, type=_Answer).error
        except (Fault, *UNREADABLE) as fault:
            log.info("swarm %s did not answer the recall of %s: %s", self.name, task, fault)
            return
        if error is not None:
            log.debug("swarm %s keeps %s: %s", self.name, task, error.message)

    async def cancel(self, task: str, reason: str) -> str:
        """Cancel a task; returns once the child has answered: "", or "finished", or "unknown_task"."""
        payload = msgspec.json.encode(TaskQuery(task, reason=reason))
        pause_ms = PAUSE_MS
        while True:
            try:
                answer = msgspec.json.decode(
                    await self._bus.request(subjects.ctl(self.name, "cancel"), payload, REQUEST_MS), type=_Answer
                )
                if answer.error is None:
                    return ""
                if answer.error.code in ("finished", "unknown_task"):
                    return answer.error.code
                log.warning("swarm %s did not cancel %s: %s", self.name, task, answer.error.message)
            except Fault as error:
                log.info("swarm %s cannot be asked to cancel %s: %s", self.name, task, error.message)
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, PAUSE_MS_MAX)

    async def state_of(self, task: str) -> str:
        """The state of a task in the child, "unknown" if it has none such. Raises `Fault` when nobody answers."""
        query = msgspec.json.encode(TaskQuery(task))
        try:
            answer = await self._bus.request(subjects.ctl(self.name, "status"), query, REQUEST_MS)
            told = msgspec.json.decode(answer, type=_Answer)
        except UNREADABLE as error:
            raise Fault("bad_answer", f"swarm {self.name} gave no state of {task}: {error}") from None
        if told.error is not None and told.error.code != "unknown_task":
            raise Fault(told.error.code, told.error.message)
        return told.state or "unknown"

    # --- submitting ---

    async def _submit(self, submission: Submission) -> None:
        """Repeat until the child's fold has accepted the task, or refuses it."""
        submission.reply = self._reply
        pause_ms = PAUSE_MS
        while True:
            try:
                (receipt,) = await self._submits.ask([submission])
                if not isinstance(receipt.error, Failure):
                    return
                if receipt.error.code != "not_leader":
                    kind = Conflict if receipt.error.code == "id_taken" else Rejected
                    raise kind(receipt.error.code, receipt.error.message)
            except Fault as error:
                log.info("swarm %s does not answer: %s", self.name, error.message, extra={"task": submission.id})
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, PAUSE_MS_MAX)

    async def _submit_all(self, submissions: list[Submission]) -> list[Receipt]:
        receipts: list[Receipt] = []
        batch: list[bytes] = []
        size = 0
        for submission in submissions:
            part = msgspec.json.encode(submission)
            if batch and size + len(part) > _BATCH_BYTES:
                receipts += await self._submit_batch(batch)
                batch, size = [], 0
            batch.append(part)
            size += len(part) + 1
        return receipts + await self._submit_batch(batch)

    async def _submit_batch(self, batch: list[bytes]) -> list[Receipt]:
        answer = await self._bus.request(subjects.ctl(self.name, "submit"), b"[" + b",".join(batch) + b"]", REQUEST_MS)
        try:
            if answer[:1] != b"[":  # one refusal for the whole request
                return [msgspec.json.decode(answer, type=Receipt)] * len(batch)
            receipts = _receipts.decode(answer)
        except UNREADABLE as error:
            raise Fault("bad_answer", f"swarm {self.name} answered a submission with: {error}") from None
        if len(receipts) != len(batch):
            raise Fault("bad_answer", f"swarm {self.name} gave {len(receipts)} receipts for {len(batch)} tasks")
        return receipts

    # --- outcomes ---

    async def _await(self, task: str, outcome: asyncio.Future[Outcome]) -> Outcome | None:
        """The verdict, pushed or asked for; None when the child does not know the task (any more)."""
        if not (await asyncio.wait([outcome], timeout=FIRST_ASK_MS / 1000))[0]:
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(self._ask(task))
                waited: list[asyncio.Future[Any]] = [outcome, asking]
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                asking.cancel()
        return outcome.result() if outcome.done() else None

    async def _ask(self, task: str) -> None:
        """Ask until the verdict is settled, or the child says that it does not know the task."""
        query = msgspec.json.encode(TaskQuery(task, timeout_ms=POLL_MS))
        while True:
            try:
                answer = await self._bus.request(subjects.ctl(self.name, "result"), query, POLL_MS + REQUEST_MS)
                told = msgspec.json.decode(answer, type=_Answer)
                if told.error is not None and not told.state:
                    if told.error.code == "unknown_task":
                        return
                    raise Fault(told.error.code, told.error.message)
                outcome = msgspec.json.decode(answer, type=Outcome)
                self._settle(outcome)
                if outcome.final:
                    return
            except (Fault, *UNREADABLE) as error:
                log.info("no verdict on %s yet: %s", task, error)
                await asyncio.sleep(FIRST_ASK_MS / 1000)

    def _on_outcomes(self, message: Received) -> None:
        payload = message.payload
        try:
            outcomes = _outcomes.decode(payload if payload[:1] == b"[" else b"[" + payload + b"]")
        except UNREADABLE:
            log.warning("outcomes of swarm %s could not be read", self.name, exc_info=True)
            return
        for outcome in outcomes:
            self._settle(outcome)

    def _settle(self, outcome: Outcome) -> None:
        future = self._waiting.get(outcome.task)
        if outcome.final and future is not None and not future.done():
            self._handed.ended(outcome.task)
            future.set_result(outcome)
