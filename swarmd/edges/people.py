"""What people ask of a swarm and tell it: the inbox and its answers, signals, instructions, pause and resume.

Job: the requests on `ctl`, as methods; `Client`, the command line and the page are built on it. Invariants: an answer
is repeated only while it surely has not arrived, so nobody is told that they were too late by their own first try. Must
not know who asks.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Struct, field

from swarmd.core import subjects
from swarmd.core.errors import UNREADABLE, Conflict, Fault, Rejected
from swarmd.core.events import Failure
from swarmd.core.wire import Receipt

if TYPE_CHECKING:
    from swarmd.ports import Bus

T = TypeVar("T")
ASK_TIMEOUT_MS: Final = 10_000
#: Requests that one listing holds unless more are asked for.
LISTED: Final = 100
#: So often a request is made while nobody leads, as when one leader follows another: for five seconds.
TRIES: Final = 25
PAUSE_S: Final = 0.2
#: Codes that say that somebody else was first, not that the input is wrong.
CONFLICTS: Final = frozenset({"closed", "id_taken"})


class InboxItem(Struct, omit_defaults=True):
    """An open request to people, as `core.wire.InboxItem` with its JSON read. `schema` is that of its answer.

    For an approval it says what `tool` is to be called with which `arguments`; `digest` is their hash, which the answer
    repeats so that nobody approves what they have not seen. `until_ms` is a time in milliseconds of Unix, 0 for none.
    """

    id: str
    task: str = ""
    agent: str = ""
    kind: str = "question"
    prompt: str = ""
    schema: dict[str, Any] = field(default_factory=dict)
    default: Any = UNSET
    to: str = ""
    until_ms: int = 0
    on_timeout: str = "fail"
    asked_at: str = ""
    tool: str = ""
    arguments: Any = UNSET
    digest: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def is_approval(self) -> bool:
        return self.kind == "approval"


class Inbox(Struct):
    """Open requests, the oldest first, as of log sequence `seq`; `total` counts those that were not listed too."""

    requests: list[InboxItem] = field(default_factory=list)
    seq: int = 0
    total: int = 0


class People:
    """What people say to one swarm, over any bus that may use its `ctl`."""

    def __init__(self, bus: Bus, swarm: str) -> None:
        self._bus, self._swarm = bus, swarm

    async def inbox(self, *, task: str = "", to: str = "", id: str = "", limit: int = LISTED) -> Inbox:
        """Open requests; only those of a task, to somebody, or the one with this id."""
        named = {name: value for name, value in (("task", task), ("to", to), ("id", id)) if value}
        found = await self._ask("inbox", {**named, "limit": limit}, Inbox)
        found.total = max(found.total, len(found.requests))
        return found

    async def request(self, id: str) -> InboxItem:
        """One open request by its id, or by that of the task if it asks just one thing.

        Raises `Rejected("unknown_request" | "bad_usage")`.
        """
        for item in (await self.inbox(id=id)).requests:
            if item.id == id:
                return item
        of_task = (await self.inbox(task=id)).requests
        if len(of_task) == 1:
            return of_task[0]
        if of_task:
            ids = ", ".join(item.id for item in of_task)
            raise Rejected("bad_usage", f"task {id} asks several things: name one of the requests {ids}")
        why = f"no open request has the id {id}, and no task {id} asks anything"
        raise Rejected("unknown_request", f"{why}: `swarmd inbox` lists what is open")

    async def answer(self, id: str, value: Any, *, by: str) -> str:
        """Answer a request; the task that goes on. `by` is written into the log as who answered.

        Raises `Rejected("invalid_answer" | "unknown_request")` (the first names the field), `Conflict("closed")` when
        somebody else was first or the time was over, `Fault` when nobody said in time whether it was taken.
        """
        body = {"id": id, "value": value, "by": by}
        return (await self._ask("answer", body, Receipt)).task

    async def signal(self, name: str, value: Any = None, *, task: str = "", by: str = "") -> None:
        """Wake what waits with `ctx.wait_event(name)`: one task, or without `task` all of the swarm."""
        await self._ask("signal", {"name": name, "value": value, "task": task, "by": by}, Receipt)

    async def tell(self, task: str, text: str, *, by: str = "") -> None:
        """Give a running agent an instruction: it reads it at its next step."""
        await self._ask("tell", {"task": task, "text": text, "by": by}, Receipt)

    async def pause(self, task: str, reason: str = "", *, by: str = "") -> None:
        """Let a task rest after the step it is in, until `resume`."""
        await self._ask("pause", {"task": task, "reason": reason, "by": by}, Receipt)

    async def resume(self, task: str, *, by: str = "") -> None:
        """Let a paused task go on."""
        await self._ask("resume", {"task": task, "by": by}, Receipt)

    async def _ask(self, verb: str, body: dict[str, Any], answer: type[T]) -> T:
        """One request, again while nobody leads: then it was not read, so repeating it cannot do it twice."""
        payload = msgspec.json.encode(body)
        for _ in range(TRIES - 1):
            try:
                reply = await self._bus.request(subjects.ctl(self._swarm, verb), payload, ASK_TIMEOUT_MS)
                return _read(reply, answer)
            except (Fault, Rejected) as error:
                if error.code not in ("no_responders", "not_leader"):
                    raise
            await asyncio.sleep(PAUSE_S)
        return _read(await self._bus.request(subjects.ctl(self._swarm, verb), payload, ASK_TIMEOUT_MS), answer)


def _read(reply: bytes, answer: type[T]) -> T:
    """The answer in a reply, or the error in it."""
    try:
        taken = msgspec.json.decode(reply, type=Receipt)
        if isinstance(taken.error, Failure):
            kind = Conflict if taken.error.code in CONFLICTS else Rejected
            raise kind(taken.error.code, taken.error.message)
        return msgspec.json.decode(reply, type=answer)
    except UNREADABLE as error:
        raise Fault("bad_reply", f"the swarm answered what this version cannot read: {error}") from None
