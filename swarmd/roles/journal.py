"""The journal of one attempt: what is recorded is looked up, what is not is done and then recorded.

The next step begins when the record's receipt is here. A recorded step is never done again, whoever resumes. The key
of a step is its name and occurrence. An attempt is suspended only with no step in flight, and once its outcome is
decided nothing is recorded any more. Must not know what the steps are.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw

from swarmd.core import kin
from swarmd.core.codec import Commit, too_deep
from swarmd.core.commands import INLINE_BYTES_MAX, INPUT_DEPTH_MAX
from swarmd.core.errors import Fault
from swarmd.core.events import NULL, Awaited, Dropped, Event, Fact, Failure, Sent, Spawned, Stepped, Suspended
from swarmd.core.ids import child_id
from swarmd.roles import failures
from swarmd.roles.allowance import ONE_STEP, Allowance
from swarmd.roles.attempt import AgentFailed, AttemptPorts, SuspendAttempt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from swarmd.core.events import Spending
    from swarmd.core.state import Place
    from swarmd.core.wire import Grant, Rest, Start

#: How long a wait keeps its slot before it gives it back and goes on suspended.
GRACE_MS: Final = 250
#: How long an attempt waits for the parts of its beginning that its start had no room for.
WHOLE_MS: Final = 30_000
#: How often the other branches of an agent get a turn before a step that is not recorded is held to be another, and
#: before an attempt in which no step is in flight is held to have nothing to do.
TURNS: Final = 5
#: The keys of the steps within which the current task acts, the outermost first.
_WITHIN: Final[ContextVar[tuple[str, ...]]] = ContextVar("within", default=())
#: The current task below those that it was started from, the attempt's own first.
_LINE: Final[ContextVar[tuple[asyncio.Task[Any], ...]]] = ContextVar("line", default=())
#: A step's name, its occurrence, and which part of the step it is: a try, a pause, the note that a call has begun, or
#: the key of a step within it.
_KEY: Final = re.compile(r"(.*?)#(\d+)(!.*)?", re.DOTALL)
Recorded = Stepped | Spawned | Awaited | Sent | Dropped


class Journal:
    """The recorded steps of an attempt and its waits; what agents call is built on it."""

    def __init__(self, start: Start, ports: AttemptPorts, renames: Mapping[str, str] | None = None) -> None:
        self.task, self.epoch, self.agent = start.task, start.epoch, start.agent
        self.labels, self.deadline_at_ms, self.priority = start.labels, start.deadline_at_ms, start.priority
        self.replayed = 0
        self.replayed_model_calls = 0
        self._start, self._ports = start, ports
        self._renames = renames or {}
        self._journal: dict[str, Recorded] = {}
        self._unread: dict[str, None] = {}
        self._spawned = 0
        self._parts: dict[str, list[str]] = {}
        self._main: asyncio.Task[Any] | None = None
        self._branched = False
        self._occurrences: dict[str, int] = {}
        self._resolved: dict[str, Place | None] = {**start.children, **start.resolved}
        # Most attempts are short, and there are thousands a second: what few of them need is made when they do.
        self._instructions: Sequence[Place] = start.told
        self._heard = 0
        self._in_flight: dict[str, None] = {}
        self._parked: dict[str, int] = {}
        self._waiting: tuple[list[list[str]], ...] = ()
        self._steps: Sequence[kin.Run] = start.steps
        self._complete = False
        self._seats: asyncio.Semaphore | None = None
        self._changed: asyncio.Event | None = None  # something is resolved, a step has ended, or the attempt is over
        self._over = self._suspending = self._pause_wanted = False
        self._groups: Sequence[list[str]] = ()
        self._failures: tuple[tuple[tuple[asyncio.Task[Any], ...], str, str, Exception], ...] = ()
        self._allowance = Allowance(start, ports.writer, ports.clock)
        if start.done:
            self.children_done(start.done)

    # --- reading ---

    async def load(self) -> Any:
        """Read the input and the recorded steps; return the input."""
        self._main = _line()[-1]
        if self._start.more:
            await self._whole()
        places = self._start.journal or list(kin.places(self._steps))
        if places:
            commits = await self._ports.reader.commits(seq for seq, _ in places)
            for seq, index in places:
                commit = commits[seq]
                event = commit.events[index] if isinstance(commit, Commit) else None
                if not isinstance(event, Event) or not isinstance(event.data, Recorded):
                    raise Fault("journal_unreadable", f"sequence {seq} holds no step at {index}")
                self._note_recorded(event.data)
        return await self._value(self._start.input, self._start.input_blob)

    async def _whole(self) -> None:
        """Wait for what the start had no room for."""
        try:
            async with asyncio.timeout(WHOLE_MS / 1000):
                await self._until(lambda: self._complete)
        except TimeoutError:
            why = f"what it begins with did not come within {WHOLE_MS // 1000} s"
            raise Fault("start_incomplete", why) from None

    def rest(self, part: Rest) -> None:
        """The leader says more of what this attempt begins with; a new leader says it all again."""
        if part.epoch != self.epoch or self._complete or not self._start.more:
            return
        if part.n == 0:
            self._steps = []
        self._steps = [*self._steps, *part.steps]
        self.children_done(part.done)
        self._complete = part.last
        self._stir()

    def _note_recorded(self, step: Recorded) -> None:
        """Keep a recorded step under the key that the agent's present version gives to it."""
        key, named = step.key, _KEY.fullmatch(step.key)
        if named is not None:
            name, occurrence, part = named.groups()
            whole = f"{self._renames.get(name, name)}#{occurrence}"
            key = whole + (part or "")
            while part:  # which may have parts of its own
                self._parts.setdefault(whole, []).append(key)
                named = _KEY.fullmatch(part[1:])
                if named is None:
                    break
                name, occurrence, part = named.groups()
                whole += f"!{name}#{occurrence}"
        self._journal[key] = step
        self._unread[key] = None
        if isinstance(step, Spawned):  # it may lie within a step that is not done again
            self._spawned = max(self._spawned, step.n)

    def _pass_over(self, key: str) -> None:
        """The step is recorded, or its parts were read: nobody asks for what is left of them."""
        for part in self._parts.pop(key, ()):
            self._unread.pop(part, None)

    async def _value(self, inline: Raw, blob: str) -> Any:
        return msgspec.json.decode(await self._ports.blobs.get(blob) if blob else inline)

    async def pack(self, value: Any) -> tuple[Raw, str]:
        """A value as inline JSON, or as the hash of a blob when it is large. Raises `AgentFailed` for no JSON."""
        try:
            payload = msgspec.json.encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            hint = "; is an `await` missing?" if inspect.iscoroutine(value) else ""
            raise AgentFailed("not_json", f"a result must be JSON: {error}{hint}", retryable=False) from None
        if too_deep(payload, INPUT_DEPTH_MAX):
            raise AgentFailed("too_deep", f"a result is nested deeper than {INPUT_DEPTH_MAX}", retryable=False)
        if len(payload) <= INLINE_BYTES_MAX:
            return Raw(payload), ""
        return NULL, await self._ports.blobs.put(payload)

    # --- steps ---

    def _key(self, name: str) -> str:
        self._check_open()
        within = _WITHIN.get()
        outer = f"{within[-1]}!" if within else ""
        own = name.removeprefix(outer)  # the parts of a step within a step are named by its whole key
        if not own or (len(own) > 200 and "!" not in own):
            raise AgentFailed("bad_step", "a step's name has 1 to 200 characters", retryable=False)
        name = outer + own  # a part of that step: nobody asks for it any more once that is recorded
        occurrence = self._occurrences[name] = self._occurrences.get(name, 0) + 1
        if not self._branched and self._main is not None and asyncio.current_task() is not self._main:
            self._branched = True
        return f"{name}#{occurrence}"

    async def _look_up(self, key: str, kind: str) -> Recorded | None:
        """What is recorded under `key`, of that kind; None when the step is to be done now.

        Raises `AgentFailed("journal_mismatch")` when the journal tells of another step here: the agent's code is not
        the one that wrote it, or does not do the same each time.
        """
        step = self._journal.get(key)
        if step is not None:
            self._unread.pop(key, None)
            was = _kind(step)
            if was != kind:
                raise AgentFailed("journal_mismatch", f"{kind} {key!r} was recorded as a {was}", retryable=False)
            self.replayed += 1
            self.replayed_model_calls += was == "model"
            self._ports.meter.count("swarmd_steps_resumed_total", was)
            return step
        for _ in range(TURNS):
            if not self._unread or self._branched or self._is_cut_off(key):
                break
            await asyncio.sleep(0)  # a branch that has only been started may want what is recorded
        if self._unread and not self._branched and not self._is_cut_off(key):
            self._mismatch(f"{kind} {key!r}")
        if self._failures:
            await self._note_failures()
        await self._gate()
        await self._afford(key, ONE_STEP)
        return None

    def _is_cut_off(self, key: str) -> bool:
        """Whether what the journal goes on with are parts of this step, which itself did not come to its end."""
        return next(iter(self._unread)) in self._parts.get(key, ())

    def _mismatch(self, found: str) -> None:
        expected = next(iter(self._unread))
        recorded = _kind(self._journal[expected])
        why = f"the journal goes on with {recorded} {expected!r}, the agent with {found}"
        hint = "is this the code that began the task? A changed agent needs a new version"
        raise AgentFailed("journal_mismatch", f"{why}: {hint}", retryable=False)

    def check_read(self) -> None:
        """The agent has ended: every recorded step must have been asked for. Raises `AgentFailed`.

        An agent of several branches may end when the first of them does.
        """
        if self._unread and not self._branched:
            self._mismatch("its end")

    @contextmanager
    def _acting(self, key: str) -> Iterator[None]:
        """A step is in flight: from before it acts until its receipt is here."""
        within = _WITHIN.get()
        self._in_flight[key] = None
        _WITHIN.set((*within, key))
        try:
            yield
        finally:
            _WITHIN.set(within)
            self._in_flight.pop(key, None)
            self._allowance.drop(key)
            self._stir()

    @contextmanager
    def _failing(self, key: str, kind: str) -> Iterator[None]:
        """Note what a step raises: it belongs into the journal if its agent goes on nonetheless."""
        line = _line()
        try:
            yield
        except Exception as error:
            self._failures = (*self._failures, (line, key, kind, error))
            raise

    async def _note_failures(self) -> None:
        """The agent goes on after failed steps of this branch: when it is resumed they must fail again, the same way.

        A failure that ends the attempt is not recorded: the next attempt does the step again. So a failure in a branch
        counts when one from which that was started goes on, not when another goes on beside it.
        """
        here = _line()[-1]

        def is_survived(line: tuple[asyncio.Task[Any], ...]) -> bool:
            return not line or (here in line and (here is line[-1] or line[-1].done()))

        mine = [noted for noted in self._failures if is_survived(noted[0])]
        self._failures = tuple(noted for noted in self._failures if noted not in mine)
        for _, key, kind, error in mine:
            failure, raised = failures.noted(error)
            await self._record(Stepped(epoch=self.epoch, key=key, kind=kind, failure=failure, result=raised))

    def hand_on(self, error: Exception) -> None:
        """Somebody outside has been told of a step's failure: any further step says that the agent survived it."""
        self._failures = tuple(((), *noted[1:]) if noted[-1] is error else noted for noted in self._failures)

    async def _result_of(self, step: Stepped) -> Any:
        """What a recorded step returned. Raises what it raised."""
        if isinstance(step.failure, Failure):
            raise failures.revived(step.failure, step.result)
        return await self._value(step.result, step.result_blob)

    async def _record(self, fact: Fact) -> None:
        self._check_open()  # while the step acted, the agent's function may have ended
        if not isinstance(fact, Stepped):
            _check_shape(fact)
        self._allowance.bill(fact)
        await self._ports.writer.store(Event(self.task, fact))

    async def _afford(self, key: str, need: Spending) -> None:
        """Hold back what the step may cost; while others hold what it needs, it has not begun."""
        await self._allowance.afford(key, need, self._until)
        if self._suspending:  # decided while a wish for more was stored
            raise SuspendAttempt
        self._check_open()

    async def _journaled(self, key: str, kind: str, act: Callable[[], Awaitable[Any]], tokens: Any = None) -> Any:
        """The recorded result under `key`, or `act`'s, recorded. Live and replayed results are equal JSON."""
        recorded = await self._look_up(key, kind)
        if isinstance(recorded, Stepped):
            self._pass_over(key)
            return await self._result_of(recorded)
        started = self._ports.clock.now_ms()
        with self._acting(key):
            with self._failing(key, kind):
                value = await act()
            inline, blob = await self.pack(value)
            step = Stepped(epoch=self.epoch, key=key, kind=kind, result=inline, result_blob=blob)
            step.duration_ms = self._ports.clock.now_ms() - started
            step.tokens = tokens(value) if tokens is not None else 0
            await self._record(step)
        self._ports.meter.count("swarmd_steps_total", kind)
        self._ports.meter.observe("swarmd_step_seconds", step.duration_ms / 1000, kind)
        return msgspec.json.decode(msgspec.json.encode(value) if blob else inline)

    # --- waiting ---

    async def _until_resolved(self, groups: list[list[str]]) -> None:
        """Wait until all of one group are resolved; after the grace, suspend as soon as no step is in flight.

        A step within which this is called cannot end before it does, so such a step holds up no suspension.
        """
        resolved = self._resolved

        def done() -> bool:
            return any(all(resolved.get(name) is not None for name in group) for group in groups)

        await self._park(done, groups, GRACE_MS)

    async def _gate(self) -> None:
        """A paused task begins no step: it is suspended here, until it is resumed."""
        if self._pause_wanted:
            await self._park(lambda: False, [], 0)

    async def _park(self, done: Callable[[], bool], groups: list[list[str]], grace_ms: int) -> None:
        if done():
            return
        within = _WITHIN.get()
        self._waiting = (*self._waiting, groups)
        try:
            try:
                async with asyncio.timeout(grace_ms / 1000):
                    return await self._until(done)
            except TimeoutError:
                self._park_steps(within, 1)
            self._stir()
            try:
                await self._until_stalled(done)
                if not done():
                    raise self._suspension()
            finally:
                self._park_steps(within, -1)
        finally:
            self._waiting = tuple(one for one in self._waiting if one is not groups)

    def _park_steps(self, keys: Sequence[str], by: int) -> None:
        """So many waits stand still within these steps."""
        for key in keys:
            self._parked[key] = self._parked.get(key, 0) + by

    async def _until_stalled(self, done: Callable[[], bool]) -> None:
        """Wait until no step is in flight, and none has begun some turns later: a branch may be between two steps."""

        def stalled() -> bool:
            return all(self._parked.get(key) for key in self._in_flight)

        turns = 0
        while turns < TURNS:
            await self._until(lambda: done() or stalled())
            if done():
                return
            await asyncio.sleep(0)
            turns = turns + 1 if stalled() else 0

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            if self._suspending:
                raise SuspendAttempt
            self._check_open()
            if self._changed is None:
                self._changed = asyncio.Event()
            self._changed.clear()
            await self._changed.wait()

    def _stir(self) -> None:
        """Whoever waits looks again."""
        if self._changed is not None:
            self._changed.set()

    def children_done(self, verdicts: Sequence[kin.Verdict]) -> None:
        """The leader says where the verdicts of these children stand."""
        for n, seq, index in verdicts:
            self._resolved[child_id(self.task, n)] = (seq, index)
        if verdicts:
            self._stir()

    def resolve(self, name: str, place: Place) -> None:
        """The leader says that a child has its verdict, or a wait its result, at `place`."""
        self._resolved[name] = place
        self._stir()

    def instruct(self, place: Place) -> None:
        """The leader says that there is an instruction at `place`."""
        if place not in self._instructions:
            self._instructions = [*self._instructions, place]

    def grant(self, item: Grant) -> None:
        """The leader answers a wish for more."""
        self._allowance.hear(item)
        self._stir()

    def ran_ms(self) -> int:
        """How long the attempt ran since its last report."""
        return self._allowance.ran_ms()

    def pause(self) -> None:
        """The leader says that the task shall go no further than the steps in flight."""
        self._pause_wanted = True

    # --- the end ---

    def close(self) -> None:
        """The agent's function has ended: what it left running records nothing, and waits for nothing."""
        self._over = True
        self._stir()

    def _check_open(self) -> None:
        if self._over:
            raise AgentFailed("attempt_over", "the attempt's outcome is decided: no step can follow", retryable=False)

    def _suspension(self) -> SuspendAttempt:
        """Decide that the attempt is suspended until any of its branches can go on; a paused one until it is told."""
        if not self._suspending:
            self._check_open()
            self._suspending = True
            self._groups = [] if self._pause_wanted else [group for groups in self._waiting for group in groups]
            self.close()
        return SuspendAttempt()

    @property
    def suspended(self) -> Suspended | None:
        """The event that frees this attempt's slot, once that is decided; what its agent does then is void."""
        if not self._suspending:
            return None
        return Suspended(epoch=self.epoch, waits=[kin.packed(self.task, group) for group in self._groups])


def _line() -> tuple[asyncio.Task[Any], ...]:
    """The current task as the last of its line: a task inherits what its starter knew of its own."""
    here, line = asyncio.current_task(), _LINE.get()
    assert here is not None
    if here not in line:
        line = (*line, here)
        _LINE.set(line)
    return line


def _check_shape(fact: Fact) -> None:
    """An event of another shape would be garbage to everyone who reads it. Raises `AgentFailed("bad_argument")`."""
    try:
        msgspec.json.decode(msgspec.json.encode(fact), type=type(fact))
    except UnicodeEncodeError:
        return  # the writer says which event
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        why = f"an argument of another type than its own: {error}"
        raise AgentFailed("bad_argument", why, retryable=False) from None


def _kind(step: Recorded) -> str:
    if isinstance(step, Stepped):
        return step.kind
    return step.kind if isinstance(step, Awaited) else type(step).__name__.lower()
