"""What a program agent and its host say to each other: JSON objects, one per line, tagged by `op`.

The program asks (`Asked`), the host answers (`Told`); docs/protocol.md describes it, `schemas/program.json` is made of
these structs. `ARGUMENTS` holds what each verb of a call takes. Pure data: knows no process and no pipe.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from swarmd.core.events import NULL, Failure

PROTOCOL: Final = 1
Milliseconds = Annotated[int, Meta(ge=1)]
Id = Annotated[int, Meta(ge=1, le=2**53 - 1)]
Seconds = Annotated[float, Meta(ge=0, le=10 * 365 * 86_400)]
Ids = Annotated[list[str], Meta(min_length=1)]


class ProgramSpec(Struct, frozen=True):
    """A program agent's executable and its limits; `env` names the variables that it gets besides the plain ones.

    `start_timeout_ms` ends with its first line; `silence_timeout_ms` is how long it may say nothing while it is its
    turn (0: for ever); `stop_timeout_ms` is how long it may take to end before it is killed. `version`, `migrates`,
    `idempotent` and `reuse_…` are those of every agent.
    """

    command: Annotated[tuple[str, ...], Meta(min_length=1)]
    cwd: str = ""
    env: tuple[str, ...] = ()
    start_timeout_ms: Milliseconds = 10_000
    silence_timeout_ms: Annotated[int, Meta(ge=0)] = 600_000
    stop_timeout_ms: Milliseconds = 2_000
    line_bytes_max: Annotated[int, Meta(ge=1_024)] = 1024 * 1024
    log_lines_max: Annotated[int, Meta(ge=0)] = 1_000
    version: str = "1"
    migrates: dict[str, dict[str, str]] = field(default_factory=dict)
    idempotent: bool = False
    reuse_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.0
    reuse_scope: Literal["agent", "swarm", "shared"] = "agent"
    reuse_expires_s: Annotated[float, Meta(ge=0)] = 0.0


# --- host to program -------------------------------------------------------------------------------


class Begin(Struct, omit_defaults=True, tag_field="op", tag="start"):
    """The first line: run this attempt. `protocol` is the version of what follows."""

    protocol: int
    task: str
    epoch: int
    agent: str
    input: Raw = NULL
    labels: dict[str, str] = field(default_factory=dict)
    deadline_at_ms: int = 0


class Recorded(Struct, tag_field="op", tag="recorded"):
    """The step was done before: this is its result. Do not execute it."""

    id: int
    result: Raw


class Execute(Struct, tag_field="op", tag="execute"):
    """Do the step, then send its `result`. `key` is the same whenever this step of this task is executed again."""

    id: int
    key: str


class Settled(Struct, tag_field="op", tag="ok"):
    """The result of this step is stored: it will never be executed again."""

    id: int


class Answer(Struct, tag_field="op", tag="answer"):
    """What a call returned."""

    id: int
    value: Raw


class Refusal(Struct, tag_field="op", tag="error"):
    """A step or call failed and has no result; go on without it, or end with `fail`."""

    id: int
    error: Failure


Told = Begin | Recorded | Execute | Settled | Answer | Refusal

# --- program to host -------------------------------------------------------------------------------


class ProgramFailure(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Why something failed; `retryable` false gives the task up for good."""

    code: str = "agent_error"
    message: str = ""
    retryable: bool = True


class Ready(Struct, forbid_unknown_fields=True, tag_field="op", tag="ready"):
    """Optional, at any time: the program is alive. Counts as its first line, and as a sign of life."""


class StepAsked(Struct, forbid_unknown_fields=True, tag_field="op", tag="step"):
    """About to do the step `name`: is it recorded?"""

    id: Id
    name: Annotated[str, Meta(min_length=1, max_length=200)]


class StepDone(Struct, forbid_unknown_fields=True, tag_field="op", tag="result"):
    """What came of a step that the host said to execute: a `value`, or an `error`."""

    id: Id
    value: Raw | UnsetType = UNSET
    error: ProgramFailure | UnsetType = UNSET


class Call(Struct, forbid_unknown_fields=True, tag_field="op", tag="call"):
    """Do something for the program, as a recorded step where it changes or depends on the world."""

    id: Id
    verb: str
    args: Raw = Raw(b"{}")


class Done(Struct, forbid_unknown_fields=True, tag_field="op", tag="done"):
    """The attempt succeeded, with this output. Nothing follows."""

    output: Raw = NULL


class Fail(ProgramFailure, forbid_unknown_fields=True, omit_defaults=True, tag_field="op", tag="fail"):
    """The attempt failed. Nothing follows."""


Asked = Ready | StepAsked | StepDone | Call | Done | Fail

# --- what the verbs take ---------------------------------------------------------------------------


class ProgramTurn(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ModelArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One model call; `prompt` is a text or turns, `schema` the JSON Schema that the answer must satisfy."""

    prompt: str | list[ProgramTurn]
    model: str = ""
    name: str = "model"
    schema: dict[str, Any] | None = None


class ToolArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One tool call; `key` names the step."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    key: str = ""


class RecallArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The `k` nearest memories, by `text` or by a `vector`; the rest is as in a `RecallRequest`."""

    text: str = ""
    k: int = 5
    labels: dict[str, str] = field(default_factory=dict)
    at_least_seq: int = 0
    vector: list[float] | None = None
    filter: str = ""
    spaces: list[str] = field(default_factory=list)
    mode: Literal["hybrid", "dense", "lexical"] = "hybrid"
    min_similarity: float = -1.0
    diversity: float = 0.0
    as_of: int = 0


class RememberArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Put a passage into a space of the memory; `payload` is any JSON that comes along."""

    text: str
    source: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    space: str = "shared"
    vector: list[float] | None = None
    payload: Any = UNSET
    expires_in_ms: Annotated[int, Meta(ge=0)] = 0


class UpdateMemoryArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Let a memory say something else; what is left out stays. `if_seq` refuses when another version is present."""

    memory: str
    text: str | UnsetType = UNSET
    source: str | UnsetType = UNSET
    labels: dict[str, str] | UnsetType = UNSET
    vector: list[float] | None = None
    payload: Any = UNSET
    expires_in_ms: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    if_seq: int = 0


class ForgetMemoryArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Drop a memory of this agent or task."""

    memory: str
    reason: str = ""


class GetMemoriesArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Memories by id, as they are now."""

    ids: Ids


class WatchArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """From now on keep for `matches` what comes at least that near; the name is this task's own."""

    name: str
    text: str = ""
    threshold: float = 0.3
    labels: dict[str, str] = field(default_factory=dict)
    vector: list[float] | None = None
    filter: str = ""
    spaces: list[str] = field(default_factory=list)
    expires_in_ms: Annotated[int, Meta(ge=0)] = 0


class MatchesArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a watch has matched since the last call, each once, in order."""

    name: str
    wait_s: Annotated[float, Meta(ge=0, le=3_600)] = 0.0
    at_least_seq: int = 0
    max: int = 100


class UnwatchArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """End a watch."""

    name: str


class SpawnArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Want a child task; answered with its id."""

    agent: str
    input: Raw = NULL
    swarm: str = ""
    labels: dict[str, str] = field(default_factory=dict)


class GatherArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Wait for these children, by their ids."""

    children: list[str]
    return_failures: bool = False


class FirstArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Wait for the first `count` verdicts among these children."""

    children: Ids
    count: int = 1


class CancelArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Cancel these children."""

    children: Ids
    reason: str = ""


class SleepArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    seconds: Seconds


class WaitEventArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Wait for a signal of this name; `earlier` takes one that came before, too."""

    name: str
    timeout_s: Seconds | None = None
    earlier: bool = False


class AskArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Ask a person; `schema` is the JSON Schema of the answer."""

    prompt: str
    schema: dict[str, Any] | None = None
    to: str = ""
    timeout_s: Seconds | None = None
    on_timeout: Literal["fail", "default", "escalate"] = "fail"
    default: Any = None
    escalate_to: list[str] = field(default_factory=list)


class ApproveArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Ask a person whether `tool` may be called with these arguments."""

    tool: str
    arguments: dict[str, Any]
    schema: dict[str, Any] | None = None
    to: str = ""
    timeout_s: Seconds | None = None
    on_timeout: Literal["fail", "reject", "escalate"] = "reject"
    escalate_to: list[str] = field(default_factory=list)


class SendArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Send a message to a task."""

    to: str
    value: Any = None


class BroadcastArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Send a message to every live task of `agent`; without it to parent, siblings and children."""

    value: Any = None
    agent: str = ""


class ReceiveArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Wait for the next message, of any sender or of this one."""

    sender: str = ""
    timeout_s: Seconds | None = None


class ToldArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Instructions (`swarmd tell`) that this task has not seen yet."""


class DeltaArguments(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Show progress to whoever watches; not recorded, may be lost."""

    text: str


Arguments = (
    ModelArguments
    | ToolArguments
    | RecallArguments
    | RememberArguments
    | UpdateMemoryArguments
    | ForgetMemoryArguments
    | GetMemoriesArguments
    | WatchArguments
    | MatchesArguments
    | UnwatchArguments
    | SpawnArguments
    | GatherArguments
    | FirstArguments
    | CancelArguments
    | SleepArguments
    | WaitEventArguments
    | AskArguments
    | ApproveArguments
    | SendArguments
    | BroadcastArguments
    | ReceiveArguments
    | ToldArguments
    | DeltaArguments
)
#: What each verb of a `call` takes.
ARGUMENTS: Final[dict[str, type[Arguments]]] = {
    "model": ModelArguments,
    "tool": ToolArguments,
    "recall": RecallArguments,
    "remember": RememberArguments,
    "update_memory": UpdateMemoryArguments,
    "forget_memory": ForgetMemoryArguments,
    "get_memories": GetMemoriesArguments,
    "watch": WatchArguments,
    "matches": MatchesArguments,
    "unwatch": UnwatchArguments,
    "spawn": SpawnArguments,
    "gather": GatherArguments,
    "first": FirstArguments,
    "cancel": CancelArguments,
    "sleep": SleepArguments,
    "wait_event": WaitEventArguments,
    "ask": AskArguments,
    "approve": ApproveArguments,
    "send": SendArguments,
    "broadcast": BroadcastArguments,
    "receive": ReceiveArguments,
    "told": ToldArguments,
    "delta": DeltaArguments,
}
