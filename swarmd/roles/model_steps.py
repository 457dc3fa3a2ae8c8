"""An agent's model calls: each is a step, its failed tries and the pauses between them are recorded too.

A try that fails is tried again after a pause, then the next model is asked; after a crash it goes on where it stood.
Must not know providers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw, Struct

from swarmd.core import subjects
from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.events import Failure, Stepped
from swarmd.core.model_retry import JITTER_BITS, model_order, next_delay, try_elsewhere, turned_away
from swarmd.core.turns import ModelReply, ModelRequest, Turn
from swarmd.roles.allowance import ONE_STEP, call_cost
from swarmd.roles.waits import Waits, awaited
from swarmd.structured import Structured, complete_structured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmd.ports import Model

#: Shorter pauses are kept by the process, longer ones by the log: they survive it, and take no slot.
DURABLE_PAUSE_MS: Final = 1_000
DELTA_MS: Final = 50


class Tried(Struct):
    """What is recorded of a failed try: the model, how long to wait, and whether another model is next.

    One that was only turned away, by our own limits, is no failure and uses up no retry.
    """

    model: str
    wait_ms: int = 0
    elsewhere: bool = False
    turned_away: bool = False


class Deltas:
    """Publishes what a model streams, a few times a second; what is lost is lost."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.more = asyncio.Event()
        self.ended = False

    def add(self, piece: str) -> None:
        self.pieces.append(piece)
        self.more.set()


class ModelSteps(Waits):
    """The context's side of models."""

    async def model(
        self,
        prompt: str | Sequence[Turn] | ModelRequest,
        *,
        model: str | Sequence[str] = "",
        name: str = "model",
        schema: dict[str, Any] | None = None,
        stream: bool = False,
    ) -> ModelReply:
        """One model call, as a step. `prompt` is a text, turns, or a whole request.

        `model` is `provider:model`, or several to be asked in turn when one fails. With `schema` the reply's text is
        JSON that fits it: answers that do not are sent back, each as a step of its own. `stream` publishes the answer
        as it comes on the task's delta subject. Raises what the last model raised.
        """
        request = _as_request(prompt)
        if schema is None:
            return await self._model_step(name, request, model, stream)
        answered = await self._structured(name, msgspec.structs.replace(request, schema=schema), model, stream)
        return answered.reply if isinstance(answered, Structured) else answered

    async def model_value(
        self,
        prompt: str | Sequence[Turn] | ModelRequest,
        schema: dict[str, Any],
        *,
        model: str | Sequence[str] = "",
        name: str = "model",
    ) -> Any:
        """A model's answer as a value that fits the JSON Schema `schema`. Raises `Rejected("schema_mismatch")`."""
        request = msgspec.structs.replace(_as_request(prompt), schema=schema, tools=[])
        answered = await self._structured(name, request, model, False)
        if not isinstance(answered, Structured):
            raise Rejected("schema_mismatch", "the model called a tool where none was offered")
        return answered.value

    async def delta(self, text: str) -> None:
        """Tell whoever listens how it goes, on the task's delta subject. It is no step: not recorded, perhaps lost."""
        payload = msgspec.json.encode({"task": self.task, "epoch": self.epoch, "text": text})
        try:
            await self._ports.bus.publish(subjects.delta(self._ports.swarm, self.task), payload)
        except SwarmdError:
            return  # nobody may count on it

    async def _structured(
        self, name: str, request: ModelRequest, model: str | Sequence[str], stream: bool
    ) -> Structured | ModelReply:
        async def call(asked: ModelRequest) -> ModelReply:
            return await self._model_step(name, asked, model, stream)

        return await complete_structured(request, call)

    async def _model_step(
        self, name: str, request: ModelRequest, model: str | Sequence[str], stream: bool
    ) -> ModelReply:
        """One answer, with all its tries."""
        key = self._key(name)
        order = model_order(model, self._ports.default_model, self._ports.fallbacks)
        chosen = failures = tries = 0
        if key not in self._journal:
            while (tried := self._tried(f"{key}!{tries + 1}")) is not None:
                tries += 1
                chosen, failures = (chosen + 1, 0) if tried.elsewhere else (chosen, failures + (not tried.turned_away))
                await self._back_off(key, tried.wait_ms, replay=True)
            chosen = min(chosen, len(order) - 1)  # the list of models may have been cut meanwhile
        self._pass_over(key)
        recorded = await self._look_up(key, "model")
        if isinstance(recorded, Stepped):
            return msgspec.convert(await self._result_of(recorded), ModelReply)
        while True:
            await self._afford(key, call_cost(order[chosen], request, self._ports.prices))
            started = self._ports.clock.now_ms()
            with self._acting(key), self._failing(key, "model"):
                try:
                    reply = await self._call(order[chosen], request, stream)
                except (Fault, Rejected) as error:
                    tries, failures = tries + 1, failures + (not turned_away(error))
                    tried = self._next_try(error, failures, order[chosen], chosen + 1 < len(order))
                    if tried is None:
                        raise
                    await self._note_try(f"{key}!{tries}", tried, error, started)
                else:
                    return await self._note_reply(key, reply, started)
            if tried.elsewhere:
                chosen, failures = chosen + 1, 0
            await self._back_off(key, tried.wait_ms)

    def _tried(self, key: str) -> Tried | None:
        noted = self._journal.get(key)
        if not isinstance(noted, Stepped):
            return None
        self._unread.pop(key, None)
        return msgspec.json.decode(noted.result, type=Tried)

    def _next_try(self, error: Fault | Rejected, failures: int, model: str, more: bool) -> Tried | None:
        """Whether and how to go on after a failure."""
        wait_ms = next_delay(failures, error, self._ports.entropy.bits(JITTER_BITS), self._ports.retry_limits)
        if wait_ms is not None:
            return Tried(model, wait_ms, turned_away=turned_away(error))
        return Tried(model, 0, elsewhere=True) if more and try_elsewhere(error) else None

    async def _note_try(self, key: str, tried: Tried, error: Fault | Rejected, started_ms: int) -> None:
        await self._afford(key, ONE_STEP)
        step = Stepped(epoch=self.epoch, key=key, kind="model_error", failure=Failure(error.code, error.message[:2000]))
        step.result = Raw(msgspec.json.encode(tried))
        step.duration_ms = self._ports.clock.now_ms() - started_ms
        await self._record(step)

    async def _note_reply(self, key: str, reply: ModelReply, started_ms: int) -> ModelReply:
        inline, blob = await self.pack(reply)
        step = Stepped(
            epoch=self.epoch, key=key, kind="model", result=inline, result_blob=blob, tokens=tokens_of(reply)
        )
        step.duration_ms = self._ports.clock.now_ms() - started_ms
        step.cost_microusd = reply.usage.cost_microusd or 0
        await self._record(step)
        self._ports.meter.count("swarmd_steps_total", "model")
        self._ports.meter.observe("swarmd_step_seconds", step.duration_ms / 1000, "model")
        return reply

    async def _back_off(self, key: str, wait_ms: int, replay: bool = False) -> None:
        """Wait before the next try; a long wait is a timer in the log."""
        if wait_ms > DURABLE_PAUSE_MS:
            await self._wait(f"{key}!pause", awaited("timer"), wait_ms / 1000)
        elif wait_ms and not replay:
            await self._ports.clock.sleep(wait_ms)

    async def _call(self, name: str, request: ModelRequest, stream: bool) -> ModelReply:
        """One call of one model, counted."""
        model, meter = self._ports.models(name), self._ports.meter
        try:
            reply = await (self._streamed(model, request) if stream else model.complete(request))
        except (Fault, Rejected) as error:
            meter.count("swarmd_model_calls_total", name, error.code)
            raise
        meter.count("swarmd_model_calls_total", name, "ok")
        meter.count("swarmd_model_tokens_total", name, "input", by=reply.usage.input_tokens)
        meter.count("swarmd_model_tokens_total", name, "output", by=reply.usage.output_tokens)
        return reply

    async def _streamed(self, model: Model, request: ModelRequest) -> ModelReply:
        deltas, failed = Deltas(), list[BaseException]()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._publish(deltas))
                try:
                    return await model.complete(request, deltas.add)
                finally:
                    deltas.ended = True
                    deltas.more.set()
        except* (Fault, Rejected) as errors:
            failed = [errors.exceptions[0]]
        raise failed[0]

    async def _publish(self, deltas: Deltas) -> None:
        while not deltas.ended:
            await deltas.more.wait()
            deltas.more.clear()
            pieces, deltas.pieces = deltas.pieces, []
            if pieces:
                await self.delta("".join(pieces))
            if not deltas.ended:
                await self._ports.clock.sleep(DELTA_MS)
        if deltas.pieces:
            await self.delta("".join(deltas.pieces))


def _as_request(prompt: str | Sequence[Turn] | ModelRequest) -> ModelRequest:
    if isinstance(prompt, ModelRequest):
        return prompt
    return ModelRequest([Turn("user", prompt)] if isinstance(prompt, str) else list(prompt))


def tokens_of(reply: ModelReply) -> int:
    """What a reply costs a budget of tokens."""
    return reply.usage.input_tokens + reply.usage.output_tokens
