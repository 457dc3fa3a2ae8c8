"""What people ask a leader for: the inbox, answers, signals, instructions, pauses. Parsed and checked here.

An answer is checked against the schema of its question before anything is decided, so that a wrong one changes
nothing and whoever gave it may try again. Must not know how people are reached.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, Raw

from swarmd import json_schema
from swarmd.core import commands
from swarmd.core.codec import too_deep
from swarmd.core.commands import INLINE_BYTES_MAX, INPUT_DEPTH_MAX
from swarmd.core.errors import UNREADABLE, Conflict, Fault, Rejected, SwarmdError
from swarmd.core.events import Awaited, Event, Fact, Paused, Question, Resolved, Signalled, Told, Unpaused
from swarmd.core.ids import check_task_id
from swarmd.core.wait_facts import MAILBOX_MAX
from swarmd.core.wire import Answered, Inbox, InboxItem, InboxQuery, Instruction, Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from swarmd.core.leader import Leader
    from swarmd.core.state import Place, Task
    from swarmd.ports import Received
    from swarmd.roles.reading import Reader

INBOX_MAX: Final = 500
NAME_CHARS_MAX: Final = 200
TEXT_CHARS_MAX: Final = 20_000
#: An inbox answer ends at about so many bytes: a caller that wants more asks for fewer at a time.
INBOX_BYTES_MAX: Final = 512 * 1024


class PeopleRequests:
    """The verbs of one leader. `reply` answers a request, `later` runs what must read the log first.

    `ask` stands for a caller who is told what the fold made of an event, and of which question it was an answer.
    """

    def __init__(
        self,
        leader: Leader,
        reader: Reader,
        reply: Callable[[str, object], None],
        later: Callable[[str, Coroutine[Any, Any, None]], None],
        ask: Callable[[str, str], object],
    ) -> None:
        self._leader, self._reader = leader, reader
        self._reply, self._later, self._ask = reply, later, ask
        self._checking = asyncio.Lock()

    def verbs(self) -> dict[str, Callable[[Received], None]]:
        """What `ctl` has for people."""
        return {
            "inbox": self._on_inbox,
            "answer": self._on_answer,
            "signal": self._on_signal,
            "tell": self._on_tell,
            "pause": self._on_pause,
            "resume": self._on_resume,
        }

    # --- the inbox ---

    def _on_inbox(self, message: Received) -> None:
        query = commands.parse_as(InboxQuery, message.payload or b"{}")
        self._leader.require_office()
        self._later(message.reply, self._list(message.reply, query))

    async def _list(self, reply: str, query: InboxQuery) -> None:
        state = self._leader.state
        found: list[tuple[str, str, str]] = []
        for question, (task_id, key) in state.questions.items():
            wait = state.tasks[task_id].awaited[key]
            if query.id in ("", question) and query.task in ("", task_id) and query.to in ("", wait.name):
                found.append((question, task_id, key))
        if query.id and not found and query.id in state.closed:
            raise await self.why_closed(query.id)
        inbox = Inbox([], state.seq, len(found))
        size = 0
        for question, task_id, key in found[: min(max(query.limit, 1), INBOX_MAX)]:
            try:
                item = await self._item(question, task_id, key)
            except Fault as error:
                if error.code != "log_unreadable" or query.id:
                    raise
                continue  # what a member asked without a question shall not hide what others ask
            size += len(msgspec.json.encode(item)) if item else 0
            if item is not None and (size < INBOX_BYTES_MAX or not inbox.requests):
                inbox.requests.append(item)
        self._reply(reply, inbox)

    async def _item(self, question: str, task_id: str, key: str) -> InboxItem | None:
        """One question in full; None when its task has ended while the log was read."""
        task = self._leader.state.tasks.get(task_id)
        if task is None:
            return None
        wait = task.awaited[key]
        asked, at = await self._question(wait.place)
        item = InboxItem(question, task_id, task.agent, "question", asked.prompt, asked.schema, at, labels=task.labels)
        item.to, item.until_ms, item.on_timeout = wait.name, wait.until_ms, asked.on_timeout
        if asked.on_timeout == "default":
            item.default = asked.default
        if asked.tool:
            item.kind = "approval" if asked.digest else "lost_call"
            item.tool, item.arguments, item.digest = asked.tool, asked.arguments, asked.digest
        return item

    async def _question(self, place: Place) -> tuple[Question, str]:
        event = await self._reader.event(place)
        fact = event.data
        if not isinstance(fact, Awaited) or fact.question is UNSET:
            raise Fault("log_unreadable", f"sequence {place[0]} holds no question at {place[1]}")
        return fact.question, event.time

    # --- answering ---

    def _on_answer(self, message: Received) -> None:
        answer = commands.parse_as(Answered, message.payload)
        _check_text("by", answer.by, NAME_CHARS_MAX)
        value = _read("answer", answer.value)
        self._leader.require_office()
        self._later(message.reply, self._answer(message.reply, answer, value))

    async def _answer(self, reply: str, answer: Answered, value: Any) -> None:
        state = self._leader.state
        found = state.questions.get(answer.id)
        if found is None:
            raise await self.why_closed(answer.id)
        task_id, key = found
        asked, _ = await self._question(state.tasks[task_id].awaited[key].place)
        wrong = await self._problems(value, msgspec.json.decode(asked.schema))
        if wrong:
            raise Rejected("invalid_answer", "; ".join(wrong))
        if answer.id not in state.questions:  # somebody was faster while the log was read
            raise await self.why_closed(answer.id)
        fact = Resolved(term=state.term, key=key, value=answer.value, by=answer.by)
        self._leader.propose(Event(task_id, fact), self._ask(reply, answer.id))

    async def _problems(self, value: Any, schema: Any) -> list[str]:
        """What is wrong with an answer. After a check that was given up the leader first does its other work."""
        async with self._checking:
            try:
                return json_schema.problems(value, schema)
            except Rejected:
                await asyncio.sleep(2 * json_schema.CHECK_S)
                raise

    async def why_closed(self, question: str) -> SwarmdError:
        """What to say to whoever answers too late: who was first."""
        place = self._leader.state.closed.get(question)
        if place is None:
            return Rejected("unknown_request", f"there is no open request {question}: `swarmd inbox` lists them")
        event = await self._reader.event(place)
        fact = event.data
        if not isinstance(fact, Resolved):
            return Conflict("closed", f"request {question} is closed: its task ended at {event.time}")
        if fact.timed_out:
            return Conflict("closed", f"request {question} is closed: its time was over at {event.time}")
        return Conflict("closed", f"request {question} is closed: {fact.by or 'somebody'} answered at {event.time}")

    # --- signals, instructions, pauses ---

    def _on_signal(self, message: Received) -> None:
        signal = commands.parse_as(Signal, message.payload)
        _check_text("name", signal.name, NAME_CHARS_MAX, least=1)
        _check_text("by", signal.by, NAME_CHARS_MAX)
        _read("signal", signal.value)
        if signal.task:
            self._leader.require_live(check_task_id(signal.task))
        if self._leader.refusing and signal.name not in self._leader.state.listeners:
            raise Rejected("store_full", f"nobody waits for it, and {self._leader.refusing}")
        fact = Signalled(term=0, name=signal.name, value=signal.value, task=signal.task, by=signal.by)
        self._propose(message, self._leader.state.swarm, fact)

    def _on_tell(self, message: Received) -> None:
        wanted = self._instruction(message)
        _check_text("text", wanted.text, TEXT_CHARS_MAX, least=1)
        if len(self._task(wanted.task).told) >= MAILBOX_MAX:
            raise Rejected("mailbox_full", f"task {wanted.task} was told {MAILBOX_MAX} things: that is all it takes")
        self._propose(message, wanted.task, Told(term=0, text=wanted.text, by=wanted.by))

    def _on_pause(self, message: Received) -> None:
        wanted = self._instruction(message)
        if self._task(wanted.task).paused:
            raise Rejected("already_paused", f"task {wanted.task} is paused already")
        self._propose(message, wanted.task, Paused(term=0, reason=wanted.reason[:500], by=wanted.by))

    def _on_resume(self, message: Received) -> None:
        wanted = self._instruction(message)
        if not self._task(wanted.task).paused:
            raise Rejected("not_paused", f"task {wanted.task} is not paused")
        self._propose(message, wanted.task, Unpaused(term=0, by=wanted.by))

    def _instruction(self, message: Received) -> Instruction:
        wanted = commands.parse_as(Instruction, message.payload)
        _check_text("by", wanted.by, NAME_CHARS_MAX)
        self._leader.require_live(check_task_id(wanted.task))
        return wanted

    def _task(self, task_id: str) -> Task:
        """A live task of the fold. Raises `Rejected("not_yet")` for one that is only proposed."""
        task = self._leader.state.tasks.get(task_id)
        if task is None:
            raise Rejected("not_yet", f"task {task_id} is not in the log yet: ask again")
        return task

    def _propose(self, message: Received, subject: str, fact: Fact) -> None:
        self._leader.require_office()
        fact.term = self._leader.state.term  # type: ignore[attr-defined]  # each of these facts has one
        self._leader.propose(Event(subject, fact), self._ask(message.reply, ""))


def _check_text(name: str, text: str, most: int, least: int = 0) -> None:
    if not least <= len(text) <= most:
        raise Rejected("bad_field", f"{name} has {least} to {most} characters, not {len(text)}")


def _read(what: str, value: Raw) -> Any:
    """The value that came with a request, which nobody has looked into yet. Raises `Rejected`.

    One that no reader of the log could read would be an event to us and nothing to them.
    """
    if len(value) > INLINE_BYTES_MAX:
        raise Rejected("too_large", f"the value of this {what} has {len(value)} bytes, over {INLINE_BYTES_MAX}")
    if too_deep(bytes(value), INPUT_DEPTH_MAX):
        raise Rejected("too_deep", f"the value of this {what} is nested deeper than {INPUT_DEPTH_MAX}")
    try:
        return msgspec.json.decode(value)
    except UNREADABLE as error:  # numbers beyond all bounds
        raise Rejected("bad_field", f"the value of this {what} cannot be read: {error}") from None
