"""swarmd: swarms of agents on one event log. Importing it does nothing; each name below is loaded when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swarmd.core.errors import Fault, Rejected
    from swarmd.core.events import Budget
    from swarmd.core.turns import ModelReply, ModelRequest, Turn
    from swarmd.core.wire import Submission
    from swarmd.edges.client import Client, Handle, TaskFailed
    from swarmd.edges.memory_client import MemoryClient
    from swarmd.reuse import Reuse
    from swarmd.roles.attempt import AgentFailed, Answer, ChildFailed, Decision, Message, TimedOut
    from swarmd.roles.context import Context
    from swarmd.sdk import Agent, agent
    from swarmd.sdk_tools import tool

    __version__: str

__all__ = [
    "Agent",
    "AgentFailed",
    "Answer",
    "Budget",
    "ChildFailed",
    "Client",
    "Context",
    "Decision",
    "Fault",
    "Handle",
    "MemoryClient",
    "Message",
    "ModelReply",
    "ModelRequest",
    "Rejected",
    "Reuse",
    "Submission",
    "TaskFailed",
    "TimedOut",
    "Turn",
    "__version__",
    "agent",
    "tool",
]

_HOMES = {
    "Agent": "swarmd.sdk",
    "AgentFailed": "swarmd.roles.attempt",
    "Answer": "swarmd.roles.attempt",
    "Budget": "swarmd.core.events",
    "ChildFailed": "swarmd.roles.attempt",
    "Client": "swarmd.edges.client",
    "Context": "swarmd.roles.context",
    "Decision": "swarmd.roles.attempt",
    "Fault": "swarmd.core.errors",
    "Handle": "swarmd.edges.client",
    "MemoryClient": "swarmd.edges.memory_client",
    "Message": "swarmd.roles.attempt",
    "ModelReply": "swarmd.core.turns",
    "ModelRequest": "swarmd.core.turns",
    "Rejected": "swarmd.core.errors",
    "Reuse": "swarmd.reuse",
    "Submission": "swarmd.core.wire",
    "TaskFailed": "swarmd.edges.client",
    "TimedOut": "swarmd.roles.attempt",
    "Turn": "swarmd.core.turns",
    "agent": "swarmd.sdk",
    "tool": "swarmd.sdk_tools",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("swarmd")
    if name not in _HOMES:
        raise AttributeError(f"module 'swarmd' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
