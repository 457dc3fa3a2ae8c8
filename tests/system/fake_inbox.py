"""A swarm's `ctl` as far as people are concerned, played on a bare broker: requests, answers, and what it was told."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect, disconnect
from swarmd.adapters.nats_server import NatsServer
from swarmd.json_schema import problems

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from swarmd.ports import Received

SWARM = "main"
DIGEST = "5f2c" * 16
ARGUMENTS: dict[str, Any] = {"path": "/srv/notes.txt", "lines": 12}
TOOL_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "lines": {"type": "integer", "minimum": 1}},
    "required": ["path", "lines"],
    "additionalProperties": False,
}


def question(id: str, schema: dict[str, Any], prompt: str = "What now?", **more: Any) -> dict[str, Any]:
    """An open question as `ctl.inbox` lists it."""
    place = {"task": "t1", "agent": "clerk", "to": "", "until_ms": 0, "on_timeout": "fail"}
    return {"id": id, "kind": "question", "prompt": prompt, "schema": schema, "labels": {}, **place, **more}


def approval(id: str, **more: Any) -> dict[str, Any]:
    """An open approval of a call of `erase`."""
    schema = {
        "type": "object",
        "properties": {
            "decision": {"enum": ["approve", "reject", "edit"]},
            "digest": {"const": DIGEST},
            "reason": {"type": "string", "minLength": 1},
            "arguments": TOOL_SCHEMA,
        },
        "required": ["decision", "digest"],
        "additionalProperties": False,
    }
    asked = {"kind": "approval", "tool": "erase", "arguments": ARGUMENTS, "digest": DIGEST}
    return {**question(id, schema, "May erase be called?"), **asked, **more}


class FakeInbox:
    """Holds open requests; the first valid answer closes one."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus
        self.open: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, dict[str, Any]] = {}
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.queue: asyncio.Queue[Received] = asyncio.Queue()

    def ask(self, *items: dict[str, Any]) -> None:
        self.open.update({item["id"]: item for item in items})

    async def serve(self) -> None:
        while True:
            message = await self.queue.get()
            verb = message.subject.rpartition(".")[2]
            body = msgspec.json.decode(message.payload or b"{}")
            await self._bus.publish(message.reply, msgspec.json.encode(self._reply(verb, body)))

    def _reply(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        if verb == "inbox":
            names = [name for name in ("id", "task", "to") if body.get(name)]
            found = [item for item in self.open.values() if all(item[name] == body[name] for name in names)]
            return {"requests": found[: body.get("limit", 100)], "seq": 1, "total": len(found)}
        if verb != "answer":
            self.told.append((verb, body))
            return {"task": body.get("task", "")}
        if body["id"] in self.answers:
            return _error("closed", f"request {body['id']} was answered by {self.answers[body['id']]['by']}")
        if body["id"] not in self.open:
            return _error("unknown_request", f"there is no request {body['id']}")
        wrong = problems(body["value"], self.open[body["id"]]["schema"])
        if wrong:
            return _error("invalid_answer", "; ".join(wrong))
        self.answers[body["id"]] = body
        return {"task": self.open.pop(body["id"])["task"]}


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


@asynccontextmanager
async def fake_inbox(folder: Path) -> AsyncIterator[tuple[FakeInbox, NatsSettings]]:
    """The fake on a broker of its own, and how to reach that."""
    server = NatsServer(folder / "nats", 0)
    async with AsyncExitStack() as held:
        await server.start()
        held.push_async_callback(server.stop)
        nats = NatsSettings(url=server.url)
        connection = await connect(nats, "fake")
        held.push_async_callback(disconnect, connection)
        bus = NatsBus(connection)
        inbox = FakeInbox(bus)
        await bus.subscribe(f"swarm.{SWARM}.ctl.*", inbox.queue.put_nowait)
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(inbox.serve())
            yield inbox, nats
            serving.cancel()
