"""Generates `schemas/` from the code: what any language needs to read the log and to speak to a swarm.

One JSON Schema per event type (its whole CloudEvents envelope), one for the wire messages, one for a memory's, one for
the configuration, and an AsyncAPI 3 document that says on which subject each travels. A released version is never
edited: a changed schema fails `swarmd schemas --check` until its type has a successor.
"""

from __future__ import annotations

import json
import types
import typing
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import NODEFAULT, Raw, Struct, defstruct, field

from swarmd.config import Settings
from swarmd.core import events, memory_wire, program, wire
from swarmd.core.events import AUTHORITY, FACTS, Fact
from swarmd.core.memory import MEMORY_FACTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
WIRE: Final = (
    wire.Submission,
    wire.TaskQuery,
    wire.AttemptQuery,
    wire.RollQuery,
    wire.Roll,
    wire.InboxQuery,
    wire.Inbox,
    wire.Answered,
    wire.Signal,
    wire.Instruction,
    wire.Receipt,
    wire.Outcome,
    wire.TaskStatus,
    wire.SwarmStatus,
    wire.Feedback,
    wire.DurationsQuery,
    wire.Durations,
    wire.LoadQuery,
    wire.SwarmLoad,
    wire.Dispatch,
    wire.Heartbeat,
    wire.Beat,
    events.Schedule,
    wire.ScheduleQuery,
    wire.Schedules,
    wire.MemberQuery,
    wire.Members,
    wire.NodeStatus,
)
MEMORY: Final = (
    memory_wire.RememberRequest,
    memory_wire.RememberReply,
    memory_wire.RememberMany,
    memory_wire.RememberManyReply,
    memory_wire.UpdateRequest,
    memory_wire.RecallRequest,
    memory_wire.RecallReply,
    memory_wire.GetRequest,
    memory_wire.GetReply,
    memory_wire.ForgetRequest,
    memory_wire.RevokeRequest,
    memory_wire.RevokeReply,
    memory_wire.WatchRequest,
    memory_wire.UnwatchRequest,
    memory_wire.MatchesRequest,
    memory_wire.MatchesReply,
    memory_wire.LineageRequest,
    memory_wire.LineageReply,
    memory_wire.RebuildRequest,
    memory_wire.VerifyRequest,
    memory_wire.JobRequest,
    memory_wire.JobReply,
    memory_wire.ExportRequest,
    memory_wire.ExportReply,
    memory_wire.MemoryStats,
    memory_wire.Refusal,
)
#: Verb → (what it does, the request, the answer); admins' verbs are below `ctl` only, the others in three places.
MEMORY_VERBS: Final[dict[str, tuple[str, str, str]]] = {
    "remember": ("Keep a passage.", "RememberRequest", "RememberReply"),
    "remember_many": ("Keep many passages.", "RememberMany", "RememberManyReply"),
    "update": ("Let a passage say something else.", "UpdateRequest", "RememberReply"),
    "recall": ("Find passages.", "RecallRequest", "RecallReply"),
    "get": ("Passages by id.", "GetRequest", "GetReply"),
    "forget": ("Drop a passage.", "ForgetRequest", "RememberReply"),
    "watch": ("Watch a meaning.", "WatchRequest", "RememberReply"),
    "unwatch": ("End a watch.", "UnwatchRequest", "RememberReply"),
    "matches": ("What a watch has matched.", "MatchesRequest", "MatchesReply"),
    "stats": ("How the memory is doing (empty request).", "", "MemoryStats"),
    "revoke": ("Withdraw passages as faulty.", "RevokeRequest", "RevokeReply"),
    "lineage": ("Where a passage comes from, and what came of it.", "LineageRequest", "LineageReply"),
    "rebuild": ("Build the store anew, or a view of the past.", "RebuildRequest", "JobReply"),
    "verify": ("Compare the store with the log.", "VerifyRequest", "JobReply"),
    "job": ("How a rebuild or a verification is doing.", "JobRequest", "JobReply"),
    "export": ("A page of what is remembered.", "ExportRequest", "ExportReply"),
}


def _memory_channels() -> dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    """For clients, for members of a swarm, and for admins: the subject says who asks."""
    found: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {}
    for verb, (what, request, answer) in MEMORY_VERBS.items():
        name = verb.title().replace("_", "")
        sent, answers = (request,) if request else (), (answer, "Refusal")
        places = {f"memoryCtl{name}": "ctl."}
        if verb in memory_wire.PUBLIC_VERBS:
            places = {f"memory{name}": "", f"memoryOf{name}": "of.{swarm}."} | places
        for channel, place in places.items():
            found[channel] = (f"memory.{{memory}}.{place}{verb}", what, sent, answers)
    return found


#: What a program agent and its host say to each other, and what its calls take.
PROGRAM: Final = (
    *typing.get_args(program.Told),
    *typing.get_args(program.Asked),
    *typing.get_args(program.Arguments),
)
#: Channel → (address, what it is, messages published there, their answers).
CHANNELS: Final[dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]]] = {
    "submit": ("swarm.{swarm}.submit", "A raw submission, stored by the broker.", ("Submission",), ()),
    "ctlSubmit": ("swarm.{swarm}.ctl.submit", "Submit one task or an array of them.", ("Submission",), ("Receipt",)),
    "ctlResult": ("swarm.{swarm}.ctl.result", "Wait for a verdict.", ("TaskQuery",), ("Outcome", "Receipt")),
    "ctlStatus": (
        "swarm.{swarm}.ctl.status",
        "The swarm (empty request), or one task.",
        ("TaskQuery",),
        ("SwarmStatus", "TaskStatus", "Receipt"),
    ),
    "ctlCancel": ("swarm.{swarm}.ctl.cancel", "Cancel a task.", ("TaskQuery",), ("Receipt",)),
    "ctlInbox": ("swarm.{swarm}.ctl.inbox", "Open questions to people.", ("InboxQuery",), ("Inbox", "Receipt")),
    "ctlAnswer": ("swarm.{swarm}.ctl.answer", "Answer a question.", ("Answered",), ("Receipt",)),
    "ctlSignal": ("swarm.{swarm}.ctl.signal", "Tell tasks of an event.", ("Signal",), ("Receipt",)),
    "ctlTell": ("swarm.{swarm}.ctl.tell", "Give a task an instruction.", ("Instruction",), ("Receipt",)),
    "ctlPause": ("swarm.{swarm}.ctl.pause", "Stop a task at its next step.", ("Instruction",), ("Receipt",)),
    "ctlResume": ("swarm.{swarm}.ctl.resume", "Let a paused task go on.", ("Instruction",), ("Receipt",)),
    "ctlRequeue": ("swarm.{swarm}.ctl.requeue", "Take an attempt from its member.", ("AttemptQuery",), ("Receipt",)),
    "ctlRoll": ("swarm.{swarm}.ctl.roll", "What a member's process runs.", ("RollQuery",), ("Roll", "Receipt")),
    "ctlRedrive": ("swarm.{swarm}.ctl.redrive", "Give a dead task new attempts.", ("TaskQuery",), ("Receipt",)),
    "ctlLoad": (
        "swarm.{swarm}.ctl.load",
        "What the swarm has room for, and which tasks nobody has begun.",
        ("LoadQuery",),
        ("SwarmLoad", "Receipt"),
    ),
    "ctlRecall": ("swarm.{swarm}.ctl.recall", "Give up a task that nobody has begun.", ("TaskQuery",), ("Receipt",)),
    "ctlFeedback": ("swarm.{swarm}.ctl.feedback", "Judge a finished task.", ("Feedback",), ("Receipt",)),
    "ctlDurations": (
        "swarm.{swarm}.ctl.durations",
        "How long attempts of agents take.",
        ("DurationsQuery",),
        ("Durations", "Receipt"),
    ),
    "dispatch": ("swarm.{swarm}.dispatch.{role}.{writer}.{boot}", "Attempts for a process.", ("Dispatch",), ()),
    "health": ("swarm.{swarm}.health.{writer}.{boot}", "A process is alive.", ("Heartbeat",), ()),
    "beat": ("swarm.{swarm}.beat", "The leader's beacon.", ("Beat",), ()),
    "reply": ("{reply}", "Where a submission wants its outcome.", ("Outcome",), ()),
    **_memory_channels(),
    "ctlSchedule": (
        "swarm.{swarm}.ctl.schedule",
        "Bring a schedule in force, or change it.",
        ("Schedule",),
        ("Receipt",),
    ),
    "ctlUnschedule": ("swarm.{swarm}.ctl.unschedule", "Remove a schedule.", ("ScheduleQuery",), ("Receipt",)),
    "ctlMembers": (
        "swarm.{swarm}.ctl.members",
        "A page of the members (empty request: the first).",
        ("MemberQuery",),
        ("Members", "Receipt"),
    ),
    **{
        f"node{verb.capitalize()}": (f"swarm.{{swarm}}.node.{{node}}.{verb}", what, (), ("NodeStatus", "Receipt"))
        for verb, what in (
            ("ping", "Is this worker node alive? (empty request)"),
            ("status", "What a worker node runs (empty request)."),
            ("drain", "A worker node shall take no new work (empty request)."),
            ("resume", "A drained worker node shall take work again (empty request)."),
        )
    },
    "ctlSchedules": ("swarm.{swarm}.ctl.schedules", "Every schedule (empty request).", (), ("Schedules",)),
}


def documents() -> dict[str, Any]:
    """Every document by its path below `schemas/`."""
    found: dict[str, Any] = {}
    for name, fact in {**FACTS, **MEMORY_FACTS}.items():
        found[f"events/{name}.json"] = event_schema(name, fact)
    found["wire.json"] = _collection("What travels on a swarm's subjects", WIRE)
    found["memory.json"] = _collection("What travels on a memory's subjects", MEMORY)
    found["program.json"] = _collection("What a program agent and its host say, a line each", PROGRAM)
    found["config.schema.json"] = {"$schema": DIALECT, "title": "swarm.toml", **msgspec.json.schema(Settings)}
    found["asyncapi.json"] = asyncapi()
    return found


@cache
def describable(struct: Any) -> Any:
    """The same struct with plain defaults: a default of raw JSON, which cannot be shown, becomes its value."""
    changed: list[tuple[str, Any, Any]] = []
    for known in msgspec.structs.fields(struct):
        wanted = _describable_type(known.type)
        if isinstance(known.default, Raw):
            changed.append((known.name, Any, msgspec.json.decode(known.default)))
        elif wanted != known.type:
            default = field(default_factory=known.default_factory) if known.default is NODEFAULT else known.default
            changed.append((known.name, wanted, field() if known.required else default))
    if not changed:
        return struct
    frozen = struct.__struct_config__.frozen
    return defstruct(
        struct.__name__, changed, bases=(struct,), namespace={"__doc__": struct.__doc__}, frozen=frozen, kw_only=True
    )


def _describable_type(wanted: Any) -> Any:
    """`wanted` with every struct in it made describable."""
    if isinstance(wanted, type) and issubclass(wanted, Struct):
        return describable(wanted)
    inner = typing.get_args(wanted)
    if not inner or typing.get_origin(wanted) is typing.Literal:
        return wanted
    plain = tuple(_describable_type(part) for part in inner)
    if plain == inner:
        return wanted
    origin = typing.get_origin(wanted)
    return typing.Union[plain] if origin in (typing.Union, types.UnionType) else origin[plain]  # noqa: UP007


def _components(structs: Iterable[Any], template: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    tops, parts = msgspec.json.schema_components([describable(one) for one in structs], ref_template=template)
    return list(tops), dict(sorted(parts.items()))


def event_schema(name: str, fact: type[Fact]) -> dict[str, Any]:
    """One event: the CloudEvents 1.0 envelope around its data."""
    (data,), parts = _components([fact], "#/$defs/{name}")
    text = {"type": "string"}
    schema: dict[str, Any] = {
        "$schema": DIALECT,
        "$id": f"urn:swarmd:event:{name}",
        "title": name,
        "description": (fact.__doc__ or "").strip().split("\n")[0],
        "type": "object",
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {**text, "description": "boot, number of the commit and place in it: unique per source"},
            "source": {**text, "description": "/<swarm>/<role>/<writer>"},
            "type": {"const": name},
            "subject": {**text, "description": "the task, member or swarm that it is about"},
            "time": {**text, "format": "date-time", "description": "information only: no transition reads it"},
            "traceparent": text,
            "data": data,
        },
        "required": ["specversion", "id", "source", "type", "subject", "data"],
        "$defs": parts,
    }
    roles = AUTHORITY.get(fact)
    if roles is not None:
        schema["x-written-by"] = sorted(roles)
    return schema


def _collection(title: str, structs: tuple[type[Any], ...]) -> dict[str, Any]:
    _, parts = _components(structs, "#/$defs/{name}")
    return {"$schema": DIALECT, "title": title, "$defs": parts}


def asyncapi() -> dict[str, Any]:
    """AsyncAPI 3: each subject as a channel, with what is sent there and what answers."""
    _, parts = _components([*WIRE, *MEMORY], "#/components/schemas/{name}")
    messages = {
        struct.__name__: {
            "name": struct.__name__,
            "contentType": "application/json",
            "payload": {"$ref": f"#/components/schemas/{struct.__name__}"},
        }
        for struct in (*WIRE, *MEMORY)
    }
    channels, operations = _channels(CHANNELS)
    channels["log"] = {
        "address": "swarm.{swarm}.log.{role}.{writer}",
        "description": "Commits: each message is a CloudEvents JSON batch (schemas/events/), stored in order.",
        "parameters": {name: {} for name in ("swarm", "role", "writer")},
        "messages": {"Commit": {"$ref": "#/components/messages/Commit"}},
    }
    events = [{"$ref": f"./events/{name}.json"} for name in FACTS]
    messages["Commit"] = {
        "name": "Commit",
        "contentType": "application/cloudevents-batch+json",
        "payload": {"type": "array", "items": {"anyOf": events}},
    }
    operations["readLog"] = {"action": "receive", "channel": {"$ref": "#/channels/log"}}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "swarmd",
            "version": "1",
            "description": "Swarms of agents on one event log; docs/protocol.md says it in words.",
        },
        "defaultContentType": "application/json",
        "servers": {"local": {"host": "127.0.0.1:4222", "protocol": "nats"}},
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": parts},
    }


def _channels(
    table: Mapping[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Channels and operations, with a channel of answers (an inbox that the caller names) for each request."""
    import re

    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for name, (address, description, sent, answers) in table.items():
        channels[name] = {
            "address": address,
            "description": description,
            "parameters": {parameter: {} for parameter in re.findall(r"\{(\w+)\}", address)},
            "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in sent},
        }
        operation: dict[str, Any] = {"action": "send", "channel": {"$ref": f"#/channels/{name}"}}
        if answers:
            channels[f"{name}Answer"] = {
                "address": None,
                "description": f"The inbox of a request to {address}.",
                "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in answers},
            }
            operation["reply"] = {"channel": {"$ref": f"#/channels/{name}Answer"}}
        operations[name] = operation
    return channels, operations


def _texts() -> dict[str, str]:
    return {path: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for path, document in documents().items()}


def write(folder: Path) -> list[str]:
    """Write what differs; the paths written."""
    written = []
    for path, text in _texts().items():
        file = folder / path
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        written.append(str(file))
    return written


def compare(folder: Path) -> list[str]:
    """How the files differ from the code, one line each; empty when they agree."""
    texts = _texts()
    found = []
    for path, text in texts.items():
        file = folder / path
        if not file.is_file():
            found.append(f"{file} is missing: run `swarmd schemas`")
        elif file.read_text(encoding="utf-8") != text:
            released = path.startswith("events/")
            hint = "a released event is not edited: add its successor" if released else "run `swarmd schemas`"
            found.append(f"{file} differs from the code: {hint}")
    for file in sorted(folder.rglob("*.json")):
        if file.relative_to(folder).as_posix() not in texts:
            found.append(f"{file} has no counterpart in the code")
    return found
