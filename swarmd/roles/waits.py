"""What an agent may wait for: a time, an event, a message, a person. Each wait is a step, and suspends after a grace.

A wait is recorded when it begins and resolved by an event of somebody else. Must not know who answers, or how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

import msgspec
from msgspec import UNSET, Raw

from swarmd import json_schema
from swarmd.core.events import Awaited, Event, Question, Resolved, Sent, Signalled, Told, WaitKind
from swarmd.core.ids import check_task_id
from swarmd.roles.approvals import answer_schema, digest_of
from swarmd.roles.attempt import AgentFailed, Answer, Decision, Message, TimedOut
from swarmd.roles.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Unpack

    from swarmd.core.state import Place

TEXT_SCHEMA: Final = {"type": "string"}
PROMPT_CHARS_MAX: Final = 100_000
WAIT_S_MAX: Final = 10 * 366 * 86_400


class Asking(TypedDict, total=False):
    """How a person is asked: who (`to`, "": anybody), for an answer of which `schema`, for how long.

    When nobody answers within `timeout_s`, the attempt fails, goes on with `default`, or asks the next of
    `escalate_to` (each has `timeout_s`, and after the last it fails).
    """

    schema: Mapping[str, Any] | None
    to: str
    timeout_s: float | None
    on_timeout: Literal["fail", "default", "escalate"]
    default: Any
    escalate_to: Sequence[str]


class Approving(TypedDict, total=False):
    """How an approval is asked for: as `Asking`, but `schema` is that of the arguments, and it never ends in a yes."""

    schema: Mapping[str, Any] | None
    to: str
    timeout_s: float | None
    on_timeout: Literal["fail", "reject", "escalate"]
    escalate_to: Sequence[str]


class Waits(Journal):
    """The context's side of waiting."""

    async def _wait(self, name: str, fact: Awaited, timeout_s: float | None) -> Event:
        """Begin a wait, or find it begun; return the event that resolved it."""
        key = self._key(name)
        recorded = await self._look_up(key, fact.kind)
        if recorded is None:
            fact.key, fact.epoch = key, self.epoch
            if timeout_s is not None:
                fact.until_ms = self._ports.clock.now_ms() + _ms(timeout_s)
            self._resolved.setdefault(key, None)
            with self._acting(key):
                await self._record(fact)
        else:
            key = recorded.key  # as the log has it, whatever the agent's present version calls it
        await self._until_resolved([[key]])
        place = self._resolved[key]
        assert place is not None
        return await self._ports.reader.event(place)

    async def sleep(self, seconds: float) -> None:
        """Go on after `seconds`, counted from the first time that this step was reached; it survives everything."""
        await self._wait("sleep", awaited("timer"), 0.0 if seconds < 0 else seconds)

    async def wait_event(self, name: str, *, timeout_s: float | None = None, earlier: bool = False) -> Any:
        """The value of the next event `name` (`swarmd signal`), or with `earlier` of the last one that there was.

        Raises `TimedOut`.
        """
        if not 1 <= len(name) <= 200:
            raise AgentFailed("bad_event", "an event's name has 1 to 200 characters", retryable=False)
        event = await self._wait(f"event:{name[:150]}", awaited("event", name=name, earlier=earlier), timeout_s)
        if isinstance(event.data, Signalled):
            return msgspec.json.decode(event.data.value)
        raise TimedOut(f"no event {name!r} within {timeout_s} s")

    # --- people ---

    async def ask(self, prompt: str, **how: Unpack[Asking]) -> Answer:
        """Ask a person (`Asking` says how); the answer fits the JSON Schema `schema`, a text without one.

        Raises `TimedOut` when nobody answers in time and there is no default.
        """
        _check_how("ask", how, Asking)
        return await self._ask_as("ask", Question(prompt), **how)

    async def _ask_as(self, name: str, question: Question, **how: Unpack[Asking]) -> Answer:
        on_timeout, timeout_s, default = how.get("on_timeout", "fail"), how.get("timeout_s"), how.get("default")
        question.on_timeout, question.escalate_to = on_timeout, list(how.get("escalate_to", ()))
        schema = how.get("schema")
        question.schema = _schema(dict(TEXT_SCHEMA if schema is None else schema))
        if on_timeout == "default":
            _check_default(default, question.schema)
            question.default = Raw(msgspec.json.encode(default))
        _check_question(question, timeout_s)
        event = await self._ask(name, question, how.get("to", ""), timeout_s)
        fact = event.data
        assert isinstance(fact, Resolved)
        if not fact.timed_out:
            return Answer(msgspec.json.decode(fact.value), fact.by, event.time)
        if on_timeout == "default":
            return Answer(default, timed_out=True, at=event.time)
        raise TimedOut(f"nobody answered within {timeout_s} s: {question.prompt[:200]}")

    async def approve(self, tool: str, arguments: Mapping[str, Any], **how: Unpack[Approving]) -> Decision:
        """Have a person approve, reject or edit a call of `tool` (`Approving` says how).

        The answer holds for these very arguments: it names their hash. Without an answer in time the call is
        rejected, or the attempt fails; it is never approved.
        """
        _check_how("approve", how, Approving)
        on_timeout, timeout_s, given = how.get("on_timeout", "reject"), how.get("timeout_s"), dict(arguments)
        payload, digest = digest_of(tool, given)
        escalate_to = list(how.get("escalate_to", ()))
        question = Question(f"May {self.agent} call {tool}?", on_timeout=on_timeout, escalate_to=escalate_to)
        question.tool, question.arguments, question.digest = tool, Raw(payload), digest
        question.schema = _schema(answer_schema(digest, how.get("schema")))
        _check_question(question, timeout_s)
        event = await self._ask(f"approve:{tool[:150]}", question, how.get("to", ""), timeout_s)
        fact = event.data
        assert isinstance(fact, Resolved)
        if fact.timed_out and on_timeout == "fail":
            raise TimedOut(f"nobody decided on the call of {tool} within {timeout_s} s")
        if fact.timed_out:
            return Decision("reject", given, f"nobody decided within {timeout_s} s")
        answer = msgspec.json.decode(fact.value)
        return Decision(answer["decision"], answer.get("arguments", given), answer.get("reason", ""), fact.by)

    async def _ask(self, name: str, question: Question, to: str, timeout_s: float | None) -> Event:
        question.timeout_ms = _ms(timeout_s) if timeout_s else 0
        return await self._wait(name, awaited("human", name=to, question=question), timeout_s)

    # --- messages ---

    async def send(self, to: str, value: Any) -> None:
        """Send a message to the task `to`; it lies in its mailbox until it is received. A step."""
        await self._send(f"task:{check_task_id(to)}", value)

    async def broadcast(self, value: Any, *, agent: str = "", member: str = "") -> None:
        """Send a message to every task of an agent that has begun, to all on a member, or to the task's family.

        The family are its parent, siblings and children.
        """
        to = f"agent:{agent}" if agent else f"member:{member}" if member else "family"
        await self._send(to, value)

    async def _send(self, to: str, value: Any) -> None:
        key = self._key("send")
        if await self._look_up(key, "sent") is None:
            with self._acting(key):
                body, blob = await self.pack(value)
                await self._record(Sent(epoch=self.epoch, key=key, to=to, body=body, body_blob=blob))

    async def receive(self, *, sender: str = "", timeout_s: float | None = None) -> Message:
        """The oldest message of the task `sender` (of anyone without one) that was not received yet.

        Raises `TimedOut`.
        """
        event = await self._wait("receive", awaited("message", name=sender), timeout_s)
        if isinstance(event.data, Sent):
            return Message(event.subject, await self._value(event.data.body, event.data.body_blob))
        raise TimedOut(f"no message within {timeout_s} s")

    # --- instructions ---

    async def told(self) -> list[str]:
        """What `swarmd tell` said to this task since the last call; a step when there is something."""
        key = self._key("told")
        if key not in self._journal and (self._unread or not self._new_instructions()):
            return []
        places = self._new_instructions()

        async def act() -> list[str]:
            facts = [(await self._ports.reader.event(place)).data for place in places]
            return [fact.text for fact in facts if isinstance(fact, Told)]

        texts: list[str] = await self._journaled(key, "told", act)
        self._heard += len(texts)
        return texts

    def _new_instructions(self) -> Sequence[Place]:
        return self._instructions[self._heard :]


def awaited(kind: WaitKind, *, name: str = "", earlier: bool = False, question: Question | None = None) -> Awaited:
    asked = UNSET if question is None else question
    return Awaited(epoch=0, key="", kind=kind, name=name, earlier=earlier, question=asked)


def _ms(seconds: float) -> int:
    """How long a wait lasts in milliseconds, at least one. Raises `AgentFailed("bad_argument")`; NaN is no time."""
    if not seconds <= WAIT_S_MAX:
        why = f"a wait lasts at most {WAIT_S_MAX} s (ten years), not {seconds}"
        raise AgentFailed("bad_argument", why, retryable=False)
    return max(1, round(seconds * 1000))


def _schema(schema: dict[str, Any]) -> Raw:
    return Raw(msgspec.json.encode(json_schema.check_schema(schema)))


def _check_how(name: str, how: Mapping[str, Any], known: type[Asking] | type[Approving]) -> None:
    """Nobody's type checker may have looked: a mistyped `timeout_s` would be a wait without an end."""
    words = known.__annotations__
    for word in how:
        if word not in words:
            why = f"ctx.{name} takes {', '.join(words)}; there is no {word!r}"
            raise AgentFailed("bad_argument", why, retryable=False)


def _check_default(default: Any, schema: Raw) -> None:
    wrong = json_schema.problems(default, msgspec.json.decode(schema))
    if wrong:
        raise AgentFailed("bad_question", f"the default does not fit the schema: {'; '.join(wrong)}", retryable=False)


def _check_question(question: Question, timeout_s: float | None) -> None:
    why = ""
    if not question.prompt or len(question.prompt) > PROMPT_CHARS_MAX:
        why = f"a prompt has 1 to {PROMPT_CHARS_MAX} characters"
    elif question.on_timeout not in ("fail", "default", "reject", "escalate"):
        why = f"on_timeout is fail, default, reject or escalate, not {question.on_timeout!r}"
    elif question.on_timeout == "escalate" and (not question.escalate_to or not timeout_s):
        why = "on_timeout='escalate' needs escalate_to and timeout_s"
    elif timeout_s is not None and timeout_s <= 0:
        why = "timeout_s must be above 0"
    if why:
        raise AgentFailed("bad_question", why, retryable=False)
