"""Remembers as fast as a memory node answers: one of the client processes of `swarmd bench memory`.

Run as `python -m swarmd.edges.bench_memory_pour URL MEMORY SWARM FILE`. FILE has one request to a line. It says
`{"ready": true}`, then does each order that it reads (`Order`, a line of JSON) and answers with `Poured`. Requests are
made beforehand and answers only looked at, so that a client takes as little of the machine as it can.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct, field

from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect
from swarmd.core import subjects
from swarmd.core.errors import Fault, SwarmdError
from swarmd.core.events import Failure
from swarmd.core.memory_wire import RememberManyReply, RememberReply
from swarmd.edges.role_process import loop_factory, tune_gc
from swarmd.memory_answers import error_of, read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmd.ports import Received

ANSWER_S: Final = 60.0


class Order(Struct):
    """Remember lines `first` to `last`, the latter not included, with so many requests on their way at once.

    With `batch` more than 1 they go as `remember_many` of so many each.
    """

    first: int
    last: int
    in_flight: int
    batch: int = 1


class Poured(Struct):
    """How many were acknowledged, how long each request took (ms), and the first error."""

    acknowledged: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    error: str = ""


class Pourer:
    """One connection. Each answer comes to a subject of its own, whose last token is the request's number."""

    def __init__(self, bus: NatsBus, memory: str, swarm: str, requests: Sequence[bytes]) -> None:
        self._bus, self._requests = bus, requests
        self._one = subjects.memory_verb_of(memory, swarm, "remember")
        self._many = subjects.memory_verb_of(memory, swarm, "remember_many")
        self._inbox = bus.inbox()
        self._sent: dict[int, float] = {}
        self._room = asyncio.Event()
        self._poured = Poured()
        self._batched = False

    async def open(self) -> None:
        await self._bus.subscribe(f"{self._inbox}.*", self._on_answer)

    async def pour(self, order: Order) -> Poured:
        """Until all are answered, or the first error."""
        self._poured, self._batched = Poured(), order.batch > 1
        for number in range(order.first, order.last, order.batch):
            payload = self._requests[number]
            if self._batched:
                together = self._requests[number : min(number + order.batch, order.last)]
                payload = b'{"memories":[' + b",".join(together) + b"]}"
            await self._until_fewer(order.in_flight)
            if self._poured.error:
                break
            self._sent[number] = perf_counter()
            await self._bus.publish(self._many if self._batched else self._one, payload, f"{self._inbox}.{number}")
        await self._until_fewer(1)
        return self._poured

    async def _until_fewer(self, count: int) -> None:
        while len(self._sent) >= count:
            self._room.clear()
            async with asyncio.timeout(ANSWER_S):
                await self._room.wait()

    def _on_answer(self, message: Received) -> None:
        sent = self._sent.pop(int(message.subject.rpartition(".")[2]), None)
        if sent is None:
            return
        poured = self._poured
        poured.latencies_ms.append((perf_counter() - sent) * 1000)
        self._room.set()
        if b'"error"' not in message.payload and not self._batched:
            poured.acknowledged += 1
            return
        try:
            poured.acknowledged += _acknowledged(message.payload, batched=self._batched)
        except SwarmdError as error:
            poured.error = poured.error or f"{error.code}: {error.message}"


def _acknowledged(payload: bytes, *, batched: bool) -> int:
    """How many memories an answer acknowledges. Raises what it says instead."""
    if not batched:
        read(payload, RememberReply)
        return 1
    replies = read(payload, RememberManyReply).replies
    for reply in replies:
        if isinstance(reply.error, Failure):
            raise error_of(reply.error)
    return len(replies)


async def main(url: str, memory: str, swarm: str, file: str) -> None:
    """Do what is ordered until the orders end."""
    requests = await asyncio.to_thread(lambda: Path(file).read_bytes().splitlines())
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    connection = await connect(NatsSettings(url=url), "bench-pourer")
    try:
        pourer = Pourer(NatsBus(connection), memory, swarm, requests)
        await pourer.open()
        tune_gc()
        print('{"ready": true}', flush=True)
        while line := await orders.readline():
            try:
                poured = await pourer.pour(msgspec.json.decode(line, type=Order))
            except TimeoutError:
                raise Fault("timeout", f"a request had no answer within {ANSWER_S:.0f} s") from None
            print(msgspec.json.encode(poured).decode(), flush=True)
    finally:
        await connection.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(*sys.argv[1:]))
