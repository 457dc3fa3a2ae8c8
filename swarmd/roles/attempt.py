"""What attempts are made of, in words that all their parts share: their ports, and how they end.

Must not know a journal or what an agent may call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from swarmd.core.events import Failure
from swarmd.core.model_retry import DEFAULT_LIMITS, RetryLimits
from swarmd.core.prices import Price
from swarmd.ports import Blobs, Bus, Clock, Entropy, Meter, Model, Tool
from swarmd.roles.reading import Reader
from swarmd.roles.tool_calls import ToolOutcome
from swarmd.roles.writer import LogWriter

if TYPE_CHECKING:
    from swarmd.core.wire import Outcome


class AttemptPorts(Struct, frozen=True):
    """What attempts need of their process. `models` and `tools` resolve names; unknown ones raise `Rejected`."""

    reader: Reader
    blobs: Blobs
    bus: Bus
    clock: Clock
    entropy: Entropy
    writer: LogWriter
    models: Callable[[str], Model]
    tools: Callable[[str], Tool]
    run_tool: Callable[..., Awaitable[ToolOutcome]]
    meter: Meter
    swarm: str = "main"
    memory: str = "shared"
    default_model: str = "offline:extractive"
    fallbacks: tuple[str, ...] = ()
    retry_limits: RetryLimits = DEFAULT_LIMITS
    prices: Mapping[str, Price] = {}


class AgentFailed(Exception):
    """Raised by an agent to fail its attempt with a code of its own; `retryable=False` gives up for good."""

    def __init__(self, code: str, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.code, self.message, self.retryable = code, message, retryable


class TimedOut(AgentFailed):
    """What was waited for did not come in time."""

    def __init__(self, message: str) -> None:
        super().__init__("timeout", message, retryable=False)


class ChildFailed(AgentFailed):
    """A child that was gathered has no output; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        error = outcome.error if isinstance(outcome.error, Failure) else Failure(outcome.state, outcome.state)
        super().__init__("child_failed", f"child {outcome.task}: {error.code}: {error.message}", retryable=False)
        self.outcome = outcome


class SuspendAttempt(BaseException):
    """Unwinds an agent whose wait outlasts its grace; a BaseException, so that agents do not swallow it."""


class Child(Struct, frozen=True):
    """A spawned child task."""

    task: str


class Answer(Struct, frozen=True):
    """What a person answered: `value` fits the question's schema; `timed_out` when it is the declared default."""

    value: Any
    by: str = ""
    at: str = ""
    timed_out: bool = False


class Decision(Struct, frozen=True):
    """What was decided on a tool call: "approve", "reject" or "edit", with the arguments that hold now."""

    decision: str
    arguments: dict[str, Any]
    reason: str = ""
    by: str = ""


class Message(Struct, frozen=True):
    """A message that another task sent."""

    sender: str
    value: Any
