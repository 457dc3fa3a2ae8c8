"""The requests that a leader answers on `ctl.<verb>`: parsed here, decided by the machine, answered when folded.

Handlers run on the read loop and return at once; replies queue in `replies` until the orchestrator sends them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from swarmd.core import commands
from swarmd.core.errors import UNREADABLE, Conflict, Fault, Rejected, SwarmdError
from swarmd.core.events import Failure
from swarmd.core.ids import is_plain, uuid7
from swarmd.core.outcomes import outcome_at
from swarmd.core.status import members_page, swarm_status, task_status
from swarmd.core.wire import MemberQuery, Outcome, Receipt
from swarmd.roles.hive_requests import HiveRequests
from swarmd.roles.people_requests import PeopleRequests
from swarmd.roles.placement_requests import PlacementRequests
from swarmd.roles.reading import Reader
from swarmd.roles.reconcile_requests import ReconcileRequests
from swarmd.roles.schedule_requests import ScheduleRequests

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from swarmd.core.leader import Leader
    from swarmd.core.state import Tombstone
    from swarmd.ports import Clock, Entropy, Log, Received

RESULT_WAIT_MS_MAX = 3_600_000


class _BatchAsk:
    """A batch submission that waits until the fold has accepted each of its tasks."""

    def __init__(self, reply: str, size: int, batch: bool) -> None:
        self.reply = reply
        self.receipts: list[Receipt | None] = [None] * size
        self.left = size
        self.batch = batch


class _ResultAsk:
    """A request that waits for a verdict, until `timer` gives it up, or for what the fold makes of an event.

    `question` is what it answers, if it does.
    """

    def __init__(self, reply: str, question: str = "") -> None:
        self.reply, self.question = reply, question
        self.timer: asyncio.TimerHandle | None = None


class Requests:
    """Serves one leader; `changed` is called when there is something to write or to send."""

    group: asyncio.TaskGroup

    def __init__(self, leader: Leader, log: Log, clock: Clock, entropy: Entropy, changed: Callable[[], None]) -> None:
        self._leader, self._clock, self._entropy = leader, clock, entropy
        self._reader = Reader(log)
        self._people = PeopleRequests(leader, self._reader, self._reply, self._later, _ResultAsk)
        self._changed = changed
        self.replies: list[tuple[str, bytes]] = []
        self._verbs: dict[str, Callable[[Received], None]] = {
            "submit": self._on_submit,
            "result": self._on_result,
            "status": self._on_status,
            "members": self._on_members,
            "cancel": self._on_cancel,
            "redrive": self._on_redrive,
            **self._people.verbs(),
            **PlacementRequests(leader, self._reply, _ResultAsk).verbs(),
            **ScheduleRequests(leader, clock, self._reply, _ResultAsk).verbs(),
            **HiveRequests(leader, self._reply, _ResultAsk).verbs(),
            **ReconcileRequests(leader, clock, self._reply, _ResultAsk).verbs(),
        }

    def answer(self, ask: object, answer: Receipt | Outcome) -> None:
        """The leader has an answer for one of our asks."""
        if isinstance(ask, _ResultAsk):
            if ask.timer is not None:
                ask.timer.cancel()  # it may have an hour to go, and there may be thousands a second
            late = isinstance(answer.error, Failure) and answer.error.code == "too_late"
            if late and ask.question:
                self._later(ask.reply, self._too_late(ask.question))
            else:
                self._reply(ask.reply, answer)
        elif isinstance(ask, tuple) and isinstance(answer, Receipt):
            batch, place = ask
            self._fill(batch, place, answer)

    def _fill(self, batch: _BatchAsk, place: int, receipt: Receipt) -> None:
        batch.receipts[place] = receipt
        batch.left -= 1
        if batch.left == 0:
            self._reply(batch.reply, batch.receipts if batch.batch else batch.receipts[0])

    def _reply(self, reply: str, answer: object) -> None:
        if reply and is_plain(reply):
            self.replies.append((reply, msgspec.json.encode(answer)))
            self._changed()

    def _reply_error(self, reply: str, error: SwarmdError) -> None:
        self._reply(reply, Receipt(error=Failure(error.code, error.message)))

    async def outcome_at(self, task_id: str, buried: Tombstone) -> Outcome:
        """A verdict of a task that has ended, read back from the log."""
        commits = await self._reader.commits([buried.verdict[0]])
        dead = self._leader.state.dead.get(task_id)
        victims = dead.victims if dead is not None else ()
        return outcome_at(commits[buried.verdict[0]], task_id, buried.verdict, buried.state, victims)

    def _later(self, reply: str, work: Coroutine[Any, Any, None]) -> None:
        """What must wait for the log is done beside the read loop; what is wrong with it is answered."""

        async def run() -> None:
            try:
                await work
            except SwarmdError as error:
                self._reply_error(reply, error)
            except UNREADABLE as error:  # a member of any language wrote it, and no reader of events looks into it
                self._reply_error(reply, Fault("log_unreadable", f"what the log holds of it cannot be read: {error}"))
            self._changed()

        self.group.create_task(run())

    async def _too_late(self, question: str) -> None:
        """Somebody was first: say who."""
        raise await self._people.why_closed(question)

    def take(self, message: Received) -> None:
        """Serve one request on `ctl.<verb>`; what is wrong with it is answered, never raised."""
        verb = message.subject.rpartition(".")[2]
        handle = self._verbs.get(verb)
        if handle is None:
            self._reply_error(message.reply, Rejected("unknown_verb", f"ctl has {', '.join(self._verbs)}, not {verb}"))
            return
        try:
            handle(message)
        except (Rejected, Conflict) as error:
            self._reply_error(message.reply, error)
        self._changed()

    def _on_submit(self, message: Received) -> None:
        now = self._clock.now_ms()
        try:
            submissions, is_batch = commands.parse_submissions(message.payload)
        except Rejected as error:
            self._leader.refuse(self._mint(now), error)
            raise
        batch = _BatchAsk(message.reply, len(submissions), is_batch)
        for place, submission in enumerate(submissions):
            task_id = submission.id or self._mint(now)
            try:
                commands.check(submission)
                known = self._leader.submit(submission, task_id, now, is_batch, (batch, place))
            except (Rejected, Conflict) as error:
                if error.code.startswith(("bad_", "too_")):
                    self._leader.refuse(task_id if submission.id else self._mint(now), error)
                known = Receipt(error=Failure(error.code, error.message))
            if known is not None:
                self._fill(batch, place, known)

    def _mint(self, now_ms: int) -> str:
        return uuid7(now_ms, self._entropy.bits(74))

    def _on_result(self, message: Received) -> None:
        query = commands.parse_query(message.payload)
        ask = _ResultAsk(message.reply)
        buried = self._leader.await_outcome(query.task, ask)
        if buried is not None:
            self.group.create_task(self._tell_outcome(message.reply, query.task, buried))
            return
        wait_ms = min(query.timeout_ms or RESULT_WAIT_MS_MAX, RESULT_WAIT_MS_MAX)
        ask.timer = asyncio.get_running_loop().call_later(wait_ms / 1000, self._give_up, query.task, ask)

    def _give_up(self, task_id: str, ask: _ResultAsk) -> None:
        so_far = self._leader.give_up(task_id, ask)
        if so_far is not None:
            self._reply(ask.reply, so_far)

    async def _tell_outcome(self, reply: str, task_id: str, buried: Tombstone) -> None:
        try:
            self._reply(reply, await self.outcome_at(task_id, buried))
        except Fault as error:
            self._reply_error(reply, error)

    def _on_status(self, message: Received) -> None:
        now = self._clock.now_ms()
        if not message.payload.strip():
            self._reply(message.reply, swarm_status(self._leader, now))
            return
        query = commands.parse_query(message.payload)
        self._reply(message.reply, task_status(self._leader, query.task))

    def _on_members(self, message: Received) -> None:
        empty = not message.payload.strip()
        query = MemberQuery() if empty else commands.parse_as(MemberQuery, message.payload)
        self._reply(message.reply, members_page(self._leader, query, self._clock.now_ms()))

    def _on_cancel(self, message: Received) -> None:
        query = commands.parse_query(message.payload)
        self._leader.cancel(query.task, query.reason, _ResultAsk(message.reply))

    def _on_redrive(self, message: Received) -> None:
        query = commands.parse_query(message.payload)
        self._leader.redrive(query.task, _ResultAsk(message.reply))
