"""One attempt of a task: its journal, and the context through which an agent's function acts.

Every step is looked up before it is done and recorded after: the next one begins when the record's receipt
is here. A recorded step is never done again, whoever resumes. The key of a step is its name and occurrence.
An attempt is suspended only with no step in flight, and once its outcome is decided nothing is recorded any more.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from swarmd.core import subjects
from swarmd.core.codec import Codec, Commit, too_deep
from swarmd.core.commands import INLINE_BYTES_MAX, INPUT_DEPTH_MAX
from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import NULL, Event, Fact, Failure, Spawned, Stepped, Suspended
from swarmd.core.ids import check_name, child_id
from swarmd.core.memory import RecalledPassage, RecallReply, RecallRequest, RememberReply, RememberRequest
from swarmd.core.outcomes import outcome_at
from swarmd.core.turns import ModelReply, ModelRequest, Turn
from swarmd.ports import Blobs, Bus, Clock, Log, Meter, Model, Tool
from swarmd.roles.tool_calls import ToolOutcome
from swarmd.roles.writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from swarmd.core.state import Place
    from swarmd.core.wire import Outcome, Start

T = TypeVar("T")
#: How long `gather` keeps its slot before it gives it back and waits suspended.
GRACE_MS: Final = 250
MEMORY_TIMEOUT_MS: Final = 30_000
#: The keys of the steps within which the current task acts, the outermost first.
_WITHIN: Final[ContextVar[tuple[str, ...]]] = ContextVar("within", default=())


class AttemptPorts(Struct, frozen=True):
    """What attempts need of their process. `models` and `tools` resolve names; unknown ones raise `Rejected`."""

    log: Log
    blobs: Blobs
    bus: Bus
    clock: Clock
    writer: LogWriter
    models: Callable[[str], Model]
    tools: Callable[[str], Tool]
    run_tool: Callable[[Tool, dict[str, Any]], Awaitable[ToolOutcome]]
    meter: Meter
    memory: str = "shared"


class AgentFailed(Exception):
    """Raised by an agent to fail its attempt with a code of its own; `retryable=False` gives up for good."""

    def __init__(self, code: str, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.code, self.message, self.retryable = code, message, retryable


class ChildFailed(AgentFailed):
    """A child that was gathered has no output; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        error = outcome.error if isinstance(outcome.error, Failure) else Failure(outcome.state, outcome.state)
        super().__init__("child_failed", f"child {outcome.task}: {error.code}: {error.message}", retryable=False)
        self.outcome = outcome


class SuspendAttempt(BaseException):
    """Unwinds an agent whose wait outlasts its grace; a BaseException, so that agents do not swallow it."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits


class Child(Struct, frozen=True):
    """A spawned child task."""

    task: str


class Context:
    """What an agent acts through. `task`, `epoch`, `labels` and `deadline_at_ms` tell where it is."""

    def __init__(self, start: Start, ports: AttemptPorts, default_model: str) -> None:
        self.task, self.epoch, self.agent = start.task, start.epoch, start.agent
        self.labels, self.deadline_at_ms = start.labels, start.deadline_at_ms
        self.replayed = 0
        self.replayed_model_calls = 0
        self._start, self._ports, self._default_model = start, ports, default_model
        self._journal: dict[str, Stepped | Spawned] = {}
        self._occurrences: dict[str, int] = {}
        self._spawned = 0
        self._children: dict[str, Place | None] = dict(start.children)
        self._in_flight: set[str] = set()
        self._parked: Counter[str] = Counter()
        self._changed = asyncio.Event()  # a child or a step has ended, or the attempt is over
        self._over = False
        self._waits: list[str] = []
        self._tokens_left, self._steps_left = start.granted_tokens, start.granted_steps

    # --- the journal ---

    async def load(self) -> Any:
        """Read the input and the recorded steps; return the input."""
        places = self._start.journal
        if places:
            codec = Codec()
            seqs = sorted({seq for seq, _ in places})
            records = await self._ports.log.read(seqs)
            commits = {record.seq: codec.decode(record) for record in records}
            for seq, index in places:
                commit = commits[seq]
                event = commit.events[index] if isinstance(commit, Commit) else None
                if not isinstance(event, Event) or not isinstance(event.data, Stepped | Spawned):
                    raise Fault("journal_unreadable", f"sequence {seq} holds no step at {index}")
                self._journal[event.data.key] = event.data
        return await self._value(self._start.input, self._start.input_blob)

    async def _value(self, inline: Raw, blob: str) -> Any:
        return msgspec.json.decode(await self._ports.blobs.get(blob) if blob else inline)

    async def pack(self, value: Any) -> tuple[Raw, str]:
        """A value as inline JSON, or as the hash of a blob when it is large. Raises `AgentFailed` for no JSON."""
        try:
            payload = msgspec.json.encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise AgentFailed("not_json", f"a result must be JSON: {error}", retryable=False) from None
        if too_deep(payload, INPUT_DEPTH_MAX):
            raise AgentFailed("too_deep", f"a result is nested deeper than {INPUT_DEPTH_MAX}", retryable=False)
        if len(payload) <= INLINE_BYTES_MAX:
            return Raw(payload), ""
        return NULL, await self._ports.blobs.put(payload)

    def _key(self, name: str) -> str:
        self._check_open()
        if not name or len(name) > 200:
            raise AgentFailed("bad_step", "a step's name has 1 to 200 characters", retryable=False)
        occurrence = self._occurrences[name] = self._occurrences.get(name, 0) + 1
        return f"{name}#{occurrence}"

    def _recorded(self, key: str, kind: str) -> Stepped | None:
        step = self._journal.get(key)
        if step is None:
            return None
        if not isinstance(step, Stepped) or step.kind != kind:
            was = step.kind if isinstance(step, Stepped) else "spawn"
            raise AgentFailed("journal_mismatch", f"{kind} {key!r} was recorded as a {was}", retryable=False)
        self.replayed += 1
        self.replayed_model_calls += step.kind == "model"
        self._ports.meter.count("swarmd_steps_resumed_total", step.kind)
        return step

    @contextmanager
    def _acting(self, key: str) -> Iterator[None]:
        """A step is in flight: from before it acts until its receipt is here."""
        within = _WITHIN.get()
        self._in_flight.add(key)
        _WITHIN.set((*within, key))
        try:
            yield
        finally:
            _WITHIN.set(within)
            self._in_flight.discard(key)
            self._changed.set()

    async def _record(self, fact: Fact) -> None:
        self._check_open()  # while the step acted, the agent's function may have ended
        await self._ports.writer.store(Event(self.task, fact))

    def _spend_step(self) -> None:
        if self._steps_left < 0:
            raise AgentFailed("budget_exhausted", "no steps are left in this task's budget", retryable=False)
        if self._steps_left:
            self._steps_left = self._steps_left - 1 or -1

    async def _journaled(self, key: str, kind: str, act: Callable[[], Awaitable[Any]], tokens: Any = None) -> Any:
        """The recorded result under `key`, or `act`'s, recorded. Live and replayed results are equal JSON."""
        recorded = self._recorded(key, kind)
        if recorded is not None:
            if isinstance(recorded.failure, Failure):
                raise Rejected(recorded.failure.code, recorded.failure.message)
            return await self._value(recorded.result, recorded.result_blob)
        self._spend_step()
        started = self._ports.clock.now_ms()
        with self._acting(key):
            value = await act()
            inline, blob = await self.pack(value)
            step = Stepped(epoch=self.epoch, key=key, kind=kind, result=inline, result_blob=blob)
            step.duration_ms = self._ports.clock.now_ms() - started
            step.tokens = tokens(value) if tokens is not None else 0
            await self._record(step)
        self._ports.meter.count("swarmd_steps_total", kind)
        self._ports.meter.observe("swarmd_step_seconds", step.duration_ms / 1000, kind)
        return msgspec.json.decode(msgspec.json.encode(value) if blob else inline)

    # --- what agents call ---

    async def step(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do something once: call `function` (async, or sync in a thread), record its JSON result, return it."""

        async def act() -> Any:
            if inspect.iscoroutinefunction(function):
                return await function(*args, **kwargs)
            result = await asyncio.to_thread(_call, function, args, kwargs)
            return await result if inspect.isawaitable(result) else result

        return await self._journaled(self._key(name), "step", act)

    async def model(
        self, prompt: str | Sequence[Turn] | ModelRequest, *, model: str = "", name: str = "model"
    ) -> ModelReply:
        """One model call, as a step. `prompt` is a text, turns, or a whole request; `model` is `provider:model`."""
        request = _as_request(prompt)
        chosen = self._ports.models(model or self._default_model)

        async def act() -> Any:
            if self._tokens_left < 0:
                raise AgentFailed("budget_exhausted", "no tokens are left in this task's budget", retryable=False)
            reply = await self._complete(chosen, request)
            if self._tokens_left:
                self._tokens_left = max(0, self._tokens_left - _tokens(reply)) or -1
            return reply

        return msgspec.convert(await self._journaled(self._key(name), "model", act, _tokens), ModelReply)

    async def _complete(self, model: Model, request: ModelRequest) -> ModelReply:
        """Call a model and count what it cost."""
        meter = self._ports.meter
        try:
            reply = await model.complete(request)
        except (Fault, Rejected) as error:
            meter.count("swarmd_model_calls_total", model.name, error.code)
            raise
        meter.count("swarmd_model_calls_total", model.name, "ok")
        meter.count("swarmd_model_tokens_total", model.name, "input", by=reply.usage.input_tokens)
        meter.count("swarmd_model_tokens_total", model.name, "output", by=reply.usage.output_tokens)
        return reply

    async def tool(self, name: str, arguments: Mapping[str, Any], *, key: str = "") -> str:
        """Call a tool, as a step; a failing tool returns its error as text, for a model to act on."""
        tool = self._ports.tools(name)

        async def act() -> Any:
            outcome = await self._ports.run_tool(tool, dict(arguments))
            self._ports.meter.count("swarmd_tool_calls_total", name, "error" if outcome.error else "ok")
            return f"error: {outcome.error}" if outcome.error else outcome.text

        return str(await self._journaled(self._key(key or f"tool:{name}"), "tool", act))

    async def recall(
        self, text: str, *, k: int = 5, labels: Mapping[str, str] | None = None, at_least_seq: int = 0
    ) -> list[RecalledPassage]:
        """The `k` nearest shared memories, best first, as a step."""
        request = RecallRequest(text, k, dict(labels or {}), at_least_seq)

        async def act() -> Any:
            answer = await self._memory("recall", msgspec.json.encode(request))
            reply = msgspec.json.decode(answer, type=RecallReply)
            if isinstance(reply.error, Failure):
                raise Rejected(reply.error.code, reply.error.message)
            return reply.passages

        return msgspec.convert(await self._journaled(self._key("recall"), "recall", act), list[RecalledPassage])

    async def remember(self, text: str, *, source: str = "", labels: Mapping[str, str] | None = None) -> RememberReply:
        """Put a passage into shared memory, as a step; a repeat after a crash does not double it."""
        key = self._key("remember")
        memory_id = f"{self.task}~{key}".replace("#", "~")
        request = RememberRequest(text, memory_id, source, dict(labels or {}), self.agent, self.task)

        async def act() -> Any:
            answer = await self._memory("remember", msgspec.json.encode(request))
            reply = msgspec.json.decode(answer, type=RememberReply)
            if isinstance(reply.error, Failure):
                raise Rejected(reply.error.code, reply.error.message)
            return reply

        return msgspec.convert(await self._journaled(key, "remember", act), RememberReply)

    async def _memory(self, verb: str, payload: bytes) -> bytes:
        subject = subjects.memory_verb(self._ports.memory, verb)
        return await self._ports.bus.request(subject, payload, MEMORY_TIMEOUT_MS)

    # --- children ---

    async def spawn(
        self, agent: str, wanted: Any = None, *, swarm: str = "", labels: Mapping[str, str] | None = None
    ) -> Child:
        """Want a child task, as a step; `swarm` names a child swarm of this one that shall run it."""
        check_name("agent", agent)
        self._spawned += 1
        number = self._spawned
        key = self._key("spawn")
        child = Child(child_id(self.task, number))
        recorded = self._journal.get(key)
        if recorded is not None:
            if not isinstance(recorded, Spawned) or recorded.agent != agent:
                was = f"a spawn of {recorded.agent!r}" if isinstance(recorded, Spawned) else f"a {recorded.kind}"
                why = f"spawn {key!r} of {agent!r} was recorded as {was}"
                raise AgentFailed("journal_mismatch", why, retryable=False)
            self.replayed += 1
            return child
        self._spend_step()
        requires = {"swarm": check_name("swarm", swarm)} if swarm else {}
        try:  # an event of another shape would be garbage to everyone who reads it
            marks = msgspec.convert(dict(labels or {}), dict[str, str])
        except msgspec.ValidationError as error:
            raise AgentFailed("bad_labels", f"labels are texts by name: {error}", retryable=False) from None
        fact = Spawned(epoch=self.epoch, key=key, n=number, agent=agent, requires=requires, labels=marks)
        self._children[child.task] = None
        with self._acting(key):
            fact.input, fact.input_blob = await self.pack(wanted)
            await self._record(fact)
        return child

    async def gather(self, *children: Child, return_failures: bool = False) -> list[Any]:
        """The children's outputs, in order. Waits without a slot when they take longer than a moment.

        Raises `ChildFailed` for the first child without an output, or with `return_failures` returns
        an `Outcome` in its place.
        """
        self._check_open()
        tasks = [child.task for child in children]
        await self._await_children(tasks)
        outcomes = await asyncio.gather(*(self._child_outcome(task) for task in tasks))
        outputs: list[Any] = []
        for outcome in outcomes:
            if outcome.state == "completed" and isinstance(outcome.output, Raw):
                outputs.append(await self._value(outcome.output, outcome.output_blob))
            elif return_failures:
                outputs.append(outcome)
            else:
                raise ChildFailed(outcome)
        return outputs

    async def _await_children(self, tasks: list[str]) -> None:
        """Wait for the verdicts; after the grace, suspend as soon as no step is in flight.

        A step within which this is called cannot end before it does, so such a step holds up no suspension.
        """

        def done() -> bool:
            return all(self._children.get(task) is not None for task in tasks)

        try:
            async with asyncio.timeout(GRACE_MS / 1000):
                return await self._until(done, tasks)
        except TimeoutError:
            within = _WITHIN.get()
        self._parked.update(within)
        self._changed.set()
        try:
            await self._until(lambda: done() or all(self._parked[key] for key in self._in_flight), tasks)
        finally:
            self._parked.subtract(within)
        if not done():
            raise self._suspension(tasks)

    async def _until(self, holds: Callable[[], bool], tasks: list[str]) -> None:
        while not holds():
            if self._waits:
                raise self._suspension(tasks)
            self._check_open()
            self._changed.clear()
            await self._changed.wait()

    async def _child_outcome(self, task: str) -> Outcome:
        place = self._children[task]
        assert place is not None
        (record,) = await self._ports.log.read([place[0]])
        return outcome_at(Codec().decode(record), task, place)

    def child_done(self, child: str, place: Place) -> None:
        """The leader says that a child has its verdict at `place`."""
        self._children[child] = place
        self._changed.set()

    # --- the end ---

    def close(self) -> None:
        """The agent's function has ended: what it left running records nothing, and waits for nothing."""
        self._over = True
        self._changed.set()

    def _check_open(self) -> None:
        if self._over:
            raise AgentFailed("attempt_over", "the attempt's outcome is decided: no step can follow", retryable=False)

    def _suspension(self, tasks: list[str]) -> SuspendAttempt:
        """Decide that the attempt is suspended, or join in that; the fold waits for all of these children."""
        self._waits.extend(tasks)
        self.close()
        return SuspendAttempt(tasks)

    @property
    def suspended(self) -> Suspended | None:
        """The event that frees this attempt's slot, once that is decided; what its agent does then is void."""
        return Suspended(epoch=self.epoch, waits=[list(self._waits)]) if self._waits else None


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a step's function in its thread. No future takes a `StopIteration`: whoever waited would wait for ever."""
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        raise RuntimeError("the step raised StopIteration") from error


def _as_request(prompt: str | Sequence[Turn] | ModelRequest) -> ModelRequest:
    if isinstance(prompt, ModelRequest):
        return prompt
    return ModelRequest([Turn("user", prompt)] if isinstance(prompt, str) else list(prompt))


def _tokens(reply: ModelReply) -> int:
    return reply.usage.input_tokens + reply.usage.output_tokens
