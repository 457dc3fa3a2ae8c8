"""Hosts a program agent: any executable that speaks JSON lines, made durable by the journal of its attempt.

Job: start one process per attempt, answer what it asks (`swarmd.core.program`), end it. The program asks before each
step and does it only when it is told to; after a crash or a suspension a new process asks the same again and is given
what is recorded, which makes it quick. One process per attempt, not a pool: what a program keeps in its memory cannot
leak from one task to the next, an attempt ends by ending a process, and a suspended task holds nothing.
Invariants: whatever the program does or fails to do, the attempt ends, with one clear failure; the process and what it
has started are gone before the attempt's outcome is reported. Must not know how processes are made.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, Raw

from swarmd.core.errors import UNREADABLE, Fault, Rejected
from swarmd.core.events import Failure
from swarmd.core.program import (
    PROTOCOL,
    Answer,
    Asked,
    Begin,
    Call,
    Done,
    Execute,
    Fail,
    ProgramSpec,
    Ready,
    Recorded,
    Refusal,
    Settled,
    StepAsked,
    StepDone,
    Told,
)
from swarmd.core.tool_text import capped, clean
from swarmd.reuse import declared
from swarmd.roles.attempt import AgentFailed
from swarmd.roles.program_verbs import Verbs
from swarmd.sdk import Agent

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from swarmd.ports import Program, Programs
    from swarmd.roles.context import Context

log = logging.getLogger(__name__)

#: Steps and calls that one program may have under way at once.
REQUESTS_MAX: Final = 256
SHOWN_BYTES_MAX: Final = 300
MESSAGE_BYTES_MAX: Final = 1_500

_asked: Final = msgspec.json.Decoder(Asked)


def program_agent(name: str, spec: ProgramSpec, programs: Programs) -> Agent:
    """An agent for a worker from the declaration of an executable."""

    async def run(ctx: Context, wanted: Any) -> Any:
        words = _Words(name, ctx.task, spec.log_lines_max)
        process = await programs.start(spec, words.hear)
        gently = False
        try:
            output = await _Conversation(ctx, spec, process).hold(name, wanted)
            gently = True  # it has said its last: it may put its things in order
        except (Fault, Rejected) as error:  # these quote the program
            error.message = capped(clean(error.message), MESSAGE_BYTES_MAX)[0]
            raise
        except AgentFailed:
            gently = True
            raise
        finally:
            await process.end(gently=gently)
            words.close()
        return output

    reuse = declared(spec, "\0".join(spec.command))
    return Agent(name, run, spec.version, spec.migrates, spec.idempotent, reuse)


class _Words:
    """What a program says on stderr, as bounded lines of our log."""

    def __init__(self, name: str, task: str, lines_max: int) -> None:
        self._name, self._task, self._left = name, task, lines_max
        self._unheard = 0

    def hear(self, words: bytes) -> None:
        if not self._left:
            self._unheard += 1
            return
        self._left -= 1
        log.info("%s: %s", self._name, clean(words.decode("utf-8", "replace")), extra={"task": self._task})

    def close(self) -> None:
        if self._unheard:
            log.info("%s said %d more lines", self._name, self._unheard, extra={"task": self._task})


class _Ended(Exception):
    """The program has said `done` or `fail`: unwinds whatever is still under way."""

    def __init__(self, last: Done | Fail) -> None:
        super().__init__()
        self.last = last


class _Conversation:
    """Everything between a program's start and its last word."""

    def __init__(self, ctx: Context, spec: ProgramSpec, process: Program) -> None:
        self._ctx, self._spec, self._process = ctx, spec, process
        self._verbs = Verbs(ctx)
        self._occurrences: Counter[str] = Counter()
        self._open: set[int] = set()
        self._executing: dict[int, asyncio.Future[StepDone]] = {}
        self._heard = 0
        self._patience = asyncio.timeout(None)
        self._refused = ""

    async def hold(self, name: str, wanted: Any) -> Any:
        """The program's output. Raises its failure, what it did wrong, or what the context raises."""
        ctx = self._ctx
        begin = Begin(
            PROTOCOL, ctx.task, ctx.epoch, name, Raw(msgspec.json.encode(wanted)), dict(ctx.labels), ctx.deadline_at_ms
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tell(begin))
                while True:
                    self._take(await self._next(), group)
        except BaseExceptionGroup as group_error:
            errors = list(_leaves(group_error))
            last = next((error.last for error in errors if isinstance(error, _Ended)), None)
            if last is None:
                raise errors[0] from None
        if isinstance(last, Fail):
            raise AgentFailed(last.code, _shown(last.message, MESSAGE_BYTES_MAX), retryable=last.retryable)
        return msgspec.json.decode(last.output)

    # --- reading ---

    async def _next(self) -> Asked:
        """What the program says next. Raises `Fault` for silence, `Rejected` for what is no message."""
        try:
            async with asyncio.timeout(None) as self._patience:
                self._be_patient()
                line = await self._process.receive()
        except TimeoutError:
            raise self._silence() from None
        except Fault as fault:
            if self._refused:  # most programs end at an error that they do not expect
                fault.message += f"; the last error that it was told: {self._refused}"
            raise
        self._heard += 1
        try:
            asked: Asked = _asked.decode(line)
            if isinstance(asked, StepDone | Done):  # kept raw: it must be JSON to its end
                msgspec.json.decode(line)
            return asked
        except UNREADABLE as error:
            said = _shown(line.decode("utf-8", "replace"), SHOWN_BYTES_MAX)
            why = f"line {self._heard} of the program's stdout is no message: {error}: {said!r}"
            raise Rejected("program_garbage", f"{why}; what is meant for people goes to stderr") from None

    def _be_patient(self) -> None:
        """Its time runs while it is the program's turn: not while it waits for an answer of ours."""
        limit_ms = self._spec.silence_timeout_ms if self._heard else self._spec.start_timeout_ms
        waits_for_us = len(self._open) > len(self._executing)
        when = None if waits_for_us or not limit_ms else asyncio.get_running_loop().time() + limit_ms / 1000
        if not self._patience.expired():
            self._patience.reschedule(when)

    def _silence(self) -> Fault:
        if not self._heard:
            why = f"the program said nothing within {self._spec.start_timeout_ms} ms of its start"
            return Fault("program_start_slow", f"{why}: it can say `ready` before it is")
        why = f"the program said nothing for {self._spec.silence_timeout_ms} ms while it was its turn"
        return Fault("program_silent", f"{why}: it can say `ready` while it works")

    def _take(self, asked: Asked, group: asyncio.TaskGroup) -> None:
        match asked:
            case Ready():
                pass
            case StepAsked(id):
                self._begin(id, self._step(asked), group)
            case Call(id):
                self._begin(id, self._call(asked), group)
            case StepDone(id):
                result = self._executing.pop(id, None)
                if result is None:
                    raise Rejected("program_protocol", f"a result came for {id}, which is no step to be executed")
                if (asked.value is UNSET) == (asked.error is UNSET):
                    raise Rejected("program_protocol", f"the result of {id} needs either `value` or `error`")
                result.set_result(asked)
            case Done() | Fail():
                raise _Ended(asked)

    def _begin(self, id: int, act: Coroutine[Any, Any, None], group: asyncio.TaskGroup) -> None:
        """Answer in the background: tasks begin in the order of the lines, so keys of steps are the same each time."""
        if id in self._open:
            act.close()
            raise Rejected("program_protocol", f"{id} is under way already: each request needs an id of its own")
        if len(self._open) >= REQUESTS_MAX:
            act.close()
            raise Rejected("program_protocol", f"more than {REQUESTS_MAX} requests are under way at once")
        self._open.add(id)
        group.create_task(act)

    # --- answering ---

    async def _tell(self, told: Told) -> None:
        await self._process.send(msgspec.json.encode(told))

    async def _reply(self, id: int, told: Told) -> None:
        """The last word on a request: its id is free again, and it is the program's turn."""
        await self._tell(told)
        self._open.discard(id)
        self._be_patient()

    async def _refuse(self, id: int, error: AgentFailed | Rejected | Fault) -> None:
        """Tell the program what failed. That its code does not match the journal is no news that it can act on."""
        if error.code == "journal_mismatch":
            raise error
        self._refused = f"{error.code}: {error}"
        self._ctx.hand_on(error)
        await self._reply(id, Refusal(id, Failure(error.code, str(error))))

    async def _step(self, asked: StepAsked) -> None:
        id, executed = asked.id, False
        self._occurrences[asked.name] += 1
        key = f"{self._ctx.task}~{asked.name}~{self._occurrences[asked.name]}"

        async def execute() -> Any:
            nonlocal executed
            executed = True
            result = self._executing[id] = asyncio.get_running_loop().create_future()
            await self._tell(Execute(id, key))
            self._be_patient()
            done = await result
            if done.error is not UNSET:
                raise AgentFailed(done.error.code, _shown(done.error.message, MESSAGE_BYTES_MAX))
            return msgspec.json.decode(done.value)

        try:
            value = await self._ctx.step(asked.name, execute)
        except (AgentFailed, Rejected, Fault) as error:
            await self._refuse(id, error)
        else:
            await self._reply(id, Settled(id) if executed else Recorded(id, Raw(msgspec.json.encode(value))))

    async def _call(self, asked: Call) -> None:
        try:
            value = await self._verbs.perform(asked.verb, asked.args)
        except (AgentFailed, Rejected, Fault) as error:
            await self._refuse(asked.id, error)
        else:
            await self._reply(asked.id, Answer(asked.id, Raw(msgspec.json.encode(value))))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _shown(text: str, bytes_max: int) -> str:
    return capped(clean(text), bytes_max)[0]
