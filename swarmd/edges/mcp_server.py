"""swarmd as an MCP server: the requests of a client, as tools that any MCP client can call.

Job: describe the tools, check their arguments, carry each out over one connection to one swarm, and answer with JSON.
Invariants: whatever is wrong is told as the result of the call, in the words of the error and with its code; nothing
here decides, the swarm does; an approval of a tool call is given only where the operator allows it, since who drives an
MCP client may be a model. Must not know transports, settings or the command line.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct, field

import swarmd
from swarmd.core import subjects
from swarmd.core.errors import Conflict, Fault, Rejected
from swarmd.core.events import Failure
from swarmd.core.ids import check_task_id
from swarmd.core.memory_wire import Mode, RecallReply, RecallRequest, RememberReply, RememberRequest
from swarmd.core.wire import Outcome, Receipt, SwarmStatus, TaskQuery, TaskStatus

if TYPE_CHECKING:
    from mcp.server import Server

    from swarmd.edges.client import Client

T = TypeVar("T")
#: `(subject, body, type of the answer)`: one request; raises what the answer says is wrong.
Ask = Callable[[str, Any, Any], Awaitable[Any]]

#: An output above this is handed out in part: whoever reads it is probably a model.
OUTPUT_BYTES_MAX: Final = 256 * 1024
HEAD_CHARS: Final = 8_000
INSTRUCTIONS: Final = """\
This server drives a swarm of durable agents. submit gives an agent a task and returns its id at once; result waits for
the outcome. A task survives crashes and disconnects: ask again, do not submit again. status without a task lists the
agents there are. What agents ask of people is in inbox."""

TaskId = Annotated[str, Meta(min_length=1, max_length=200, description="the task's id, as submit returned it")]
Wait = Annotated[float, Meta(ge=0, le=300, description="how many seconds to wait for the outcome")]


class Submit(Struct, forbid_unknown_fields=True):
    """Give an agent a task. Returns the task's id at once, or with wait_s its outcome if it has one by then."""

    agent: Annotated[str, Meta(min_length=1, max_length=64, description="which agent; status lists them")]
    input: Annotated[Any, Meta(description="what it is given: any JSON")] = None
    wait_s: Wait = 0
    id: Annotated[str, Meta(max_length=200, description="an id of your own: the same id again is the same task")] = ""
    timeout_s: Annotated[float, Meta(ge=0, description="give the task up after so many seconds; 0: never")] = 0
    labels: dict[str, str] = field(default_factory=dict)


class Result(Struct, forbid_unknown_fields=True):
    """Wait for a task's outcome. While it has none, `final` is false and the answer says what the task waits for."""

    task: TaskId
    wait_s: Wait = 30


class Status(Struct, forbid_unknown_fields=True):
    """How the swarm is and which agents it offers, or how one task is."""

    task: Annotated[str, Meta(max_length=200, description="a task's id; left out: the whole swarm")] = ""


class Tasks(Struct, forbid_unknown_fields=True):
    """List tasks, the newest first, finished ones too."""

    state: Annotated[str, Meta(description="queued, assigned, suspended, backoff, completed, dead, …")] = ""
    agent: str = ""
    text: Annotated[str, Meta(description="words that the input holds")] = ""
    limit: Annotated[int, Meta(ge=1, le=200)] = 20
    before: Annotated[int, Meta(ge=0, description="`next` of the answer before, to go on")] = 0


class Cancel(Struct, forbid_unknown_fields=True):
    """Cancel a task and its children."""

    task: TaskId
    reason: str = ""


class Recall(Struct, forbid_unknown_fields=True):
    """Find passages in the shared memory, the best first."""

    text: Annotated[str, Meta(min_length=1, description="a question or a topic")]
    k: Annotated[int, Meta(ge=1, le=50)] = 5
    labels: dict[str, str] = field(default_factory=dict)
    filter: Annotated[str, Meta(description='such as author = "desk" and since >= 2026-01-31')] = ""
    mode: Annotated[Mode, Meta(description="by words and meaning, by meaning, or by words")] = "hybrid"
    min_similarity: Annotated[float, Meta(ge=-1, le=1, description="the least cosine; -1: any")] = -1.0
    at_least_seq: Annotated[int, Meta(ge=0, description="`seq` of what was remembered, to find it")] = 0


class Remember(Struct, forbid_unknown_fields=True):
    """Keep a passage in the shared memory, for every agent to recall."""

    text: Annotated[str, Meta(min_length=1)]
    source: Annotated[str, Meta(description="where it comes from")] = ""
    labels: dict[str, str] = field(default_factory=dict)
    payload: Annotated[Any, Meta(description="any JSON that comes along, and is not searched")] = None


class Inbox(Struct, forbid_unknown_fields=True):
    """List what agents ask of people: questions and approvals that are open, each with the schema of its answer."""

    task: str = ""
    to: Annotated[str, Meta(description="only what is addressed to this person or group")] = ""


class AnswerRequest(Struct, forbid_unknown_fields=True):
    """Answer an open request of the inbox; the value must fit the request's schema. The first valid answer wins."""

    id: Annotated[str, Meta(min_length=1, description="the request's id, as inbox shows it")]
    value: Any


class Signal(Struct, forbid_unknown_fields=True):
    """Wake tasks that wait for an event of this name."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    value: Any = None
    task: Annotated[str, Meta(max_length=200, description="wake this task only")] = ""


class Tell(Struct, forbid_unknown_fields=True):
    """Give a running agent an instruction, which it reads at its next step."""

    task: TaskId
    text: Annotated[str, Meta(min_length=1)]


#: Name of the tool → its arguments, and whether it only looks.
TOOLS: Final[dict[str, tuple[type[Struct], bool]]] = {
    "submit": (Submit, False),
    "status": (Status, True),
    "result": (Result, True),
    "tasks": (Tasks, True),
    "cancel": (Cancel, False),
    "recall": (Recall, True),
    "remember": (Remember, False),
    "inbox": (Inbox, True),
    "answer": (AnswerRequest, False),
    "signal": (Signal, False),
    "tell": (Tell, False),
}


class SwarmTools:
    """The tools over one client; `by` is written into the log as who answers and tells."""

    def __init__(self, client: Client, ask: Ask, swarm: str, memory: str, by: str) -> None:
        self._client, self._ask = client, ask
        self._swarm, self._memory, self._by = swarm, memory, by
        #: Whether answers to approvals are passed on.
        self.may_approve = False

    async def call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out one call. Raises `Rejected`, `Conflict` or `Fault`."""
        if name not in TOOLS:
            raise Rejected("unknown_tool", f"there is no tool {name!r:.80}: there are {', '.join(TOOLS)}")
        try:
            wanted = msgspec.convert(arguments, TOOLS[name][0])
        except msgspec.ValidationError as error:
            raise Rejected("bad_arguments", str(error)) from None
        found: dict[str, Any] = await getattr(self, f"_{name}")(wanted)
        return found

    async def _submit(self, wanted: Submit) -> dict[str, Any]:
        options = {"id": wanted.id, "timeout_ms": round(wanted.timeout_s * 1000), "labels": wanted.labels}
        handle = await self._client.submit(wanted.agent, wanted.input, **options)
        if not wanted.wait_s:
            return {"task": handle.task}
        return await self._outcome(handle.task, wanted.wait_s)

    async def _result(self, wanted: Result) -> dict[str, Any]:
        await self._task_status(wanted.task)  # an unknown task is an error, not a wait
        return await self._outcome(wanted.task, wanted.wait_s)

    async def _outcome(self, task: str, wait_s: float) -> dict[str, Any]:
        try:
            outcome = await self._client.outcome(task, max(1, round(wait_s * 1000)))
        except Fault as fault:
            if fault.code != "timeout":
                raise
            status = await self._task_status(task)
            return {"task": task, "state": status.state, "final": False, "waiting_for": status.waiting_for}
        return await self._told(outcome)

    async def _told(self, outcome: Outcome) -> dict[str, Any]:
        found: dict[str, Any] = {"task": outcome.task, "state": outcome.state, "final": True}
        if isinstance(outcome.error, Failure):
            found["error"] = msgspec.to_builtins(outcome.error)
        if outcome.state != "completed":
            return found
        output = await self._client.output_of(outcome)
        if len(output) <= OUTPUT_BYTES_MAX:
            return found | {"output": msgspec.json.decode(output)}
        head = output[: 4 * HEAD_CHARS].decode("utf-8", "ignore")[:HEAD_CHARS]
        return found | {"output_bytes": len(output), "output_begins": head}

    async def _task_status(self, task: str) -> TaskStatus:
        query = TaskQuery(check_task_id(task))
        found: TaskStatus = await self._ask(subjects.ctl(self._swarm, "status"), query, TaskStatus)
        return found

    async def _status(self, wanted: Status) -> dict[str, Any]:
        if wanted.task:
            return _plain(await self._task_status(wanted.task))
        status: SwarmStatus = await self._ask(subjects.ctl(self._swarm, "status"), None, SwarmStatus)
        return _plain(status) | {"agents": sorted(status.offers)}

    async def _tasks(self, wanted: Tasks) -> dict[str, Any]:
        asked = {name: value for name, value in msgspec.to_builtins(wanted).items() if value != ""}
        try:
            found: dict[str, Any] = await self._ask(subjects.find(self._swarm, "tasks"), asked, dict[str, Any])
        except Fault as fault:
            if fault.code == "no_responders":
                raise Fault(
                    "no_observer", f"no observer serves swarm {self._swarm}, so tasks cannot be listed"
                ) from None
            raise
        return found

    async def _cancel(self, wanted: Cancel) -> dict[str, Any]:
        query = TaskQuery(check_task_id(wanted.task), reason=wanted.reason)
        receipt: Receipt = await self._ask(subjects.ctl(self._swarm, "cancel"), query, Receipt)
        return {"task": receipt.task}

    async def _recall(self, wanted: Recall) -> dict[str, Any]:
        request = RecallRequest(wanted.text, wanted.k, wanted.labels, wanted.at_least_seq)
        request.filter, request.mode, request.min_similarity = wanted.filter, wanted.mode, wanted.min_similarity
        return _plain(await self._of_memory("recall", request, RecallReply))

    async def _remember(self, wanted: Remember) -> dict[str, Any]:
        request = RememberRequest(wanted.text, source=wanted.source, labels=wanted.labels, author=self._by)
        if wanted.payload is not None:
            request.payload = msgspec.Raw(msgspec.json.encode(wanted.payload))
        return _plain(await self._of_memory("remember", request, RememberReply))

    async def _of_memory(self, verb: str, request: Struct, answer: type[T]) -> T:
        try:
            found: T = await self._ask(subjects.memory_verb(self._memory, verb), request, answer)
        except Fault as fault:
            if fault.code == "no_responders":
                raise Fault("no_memory", f"no memory node serves the memory {self._memory}") from None
            raise
        return found

    async def _inbox(self, wanted: Inbox) -> dict[str, Any]:
        return _plain(await self._client.inbox(task=wanted.task, to=wanted.to))

    async def _answer(self, wanted: AnswerRequest) -> dict[str, Any]:
        asked = await self._client.request(wanted.id)
        if asked.kind != "question" and not self.may_approve:
            how = "a person answers it with `swarmd inbox`, or the operator starts this server with --approve"
            raise Rejected(
                "forbidden", f"request {asked.id} decides on a call of a tool, which is not done here: {how}"
            )
        return {"task": await self._client.answer(asked.id, wanted.value, by=self._by)}

    async def _signal(self, wanted: Signal) -> dict[str, Any]:
        await self._client.signal(wanted.name, wanted.value, task=wanted.task)
        return {"signalled": wanted.name}

    async def _tell(self, wanted: Tell) -> dict[str, Any]:
        await self._client.tell(wanted.task, wanted.text, by=self._by)
        return {"told": wanted.task}


def _plain(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return found


def parameters(arguments: type[Struct]) -> dict[str, Any]:
    """The JSON Schema of a tool's arguments, an object without references."""
    _, components = msgspec.json.schema_components([arguments])
    schema = components[arguments.__name__]
    return {key: value for key, value in schema.items() if key not in ("title", "description")}


def server_of(tools: SwarmTools) -> Server[Any]:
    """The MCP server over these tools, for any of the SDK's transports."""
    from mcp.server import Server
    from mcp_types import (
        CallToolRequestParams,
        CallToolResult,
        ListToolsResult,
        PaginatedRequestParams,
        TextContent,
        Tool,
        ToolAnnotations,
    )

    async def listed(_: Any, __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(
            tools=[
                Tool(
                    name=name,
                    description=" ".join((arguments.__doc__ or "").split()),
                    input_schema=parameters(arguments),
                    annotations=ToolAnnotations(read_only_hint=looks, destructive_hint=name == "cancel"),
                )
                for name, (arguments, looks) in TOOLS.items()
            ]
        )

    async def called(_: Any, params: CallToolRequestParams) -> CallToolResult:
        try:
            found = await tools.call(params.name, params.arguments or {})
        except (Rejected, Conflict, Fault) as error:
            return CallToolResult(content=[TextContent(text=f"{error.code}: {error.message}")], is_error=True)
        text = msgspec.json.encode(found).decode()
        return CallToolResult(content=[TextContent(text=text)], structured_content=found)

    return Server(
        "swarmd", version=swarmd.__version__, instructions=INSTRUCTIONS, on_list_tools=listed, on_call_tool=called
    )
