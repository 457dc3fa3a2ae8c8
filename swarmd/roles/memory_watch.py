"""Semantic subscriptions: watches are kept in the log, matched against each new version, fetched by long polls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from swarmd.ports import Clock, Meter, Probe, WatchMatrix

if TYPE_CHECKING:
    from swarmd.core.memory_spaces import Caller
    from swarmd.core.memory_wire import MatchesReply, MatchesRequest, UnwatchRequest, WatchRequest
    from swarmd.roles.memory_log import MemoryLog
    from swarmd.roles.memory_projection import Projection


class WatchPorts(Struct, frozen=True):
    """What watches need of the world; `matrix` makes an empty one for vectors of a dimension."""

    matrix: Callable[[int], WatchMatrix]
    clock: Clock
    probe: Probe
    meter: Meter


class Watches:
    """Construct; `run` while the lease is held; `drain` answers whoever still waits for a match."""

    def __init__(self, log: MemoryLog, projection: Projection, ports: WatchPorts) -> None:
        self._log, self._projection, self._ports = log, projection, ports

    async def run(self) -> None:
        """Match what the log tells, in its order, until cancelled."""
        raise NotImplementedError

    def drain(self) -> None:
        """Answer every poll in waiting at once, and each one that still comes."""
        raise NotImplementedError

    @property
    def matched(self) -> int:
        """The sequence up to which everything is matched."""
        raise NotImplementedError

    async def watch(self, caller: Caller, request: WatchRequest) -> int:
        """The sequence since which the watch holds. Raises `Rejected`, `Conflict("watcher_taken")`, `Fault`."""
        raise NotImplementedError

    async def unwatch(self, caller: Caller, request: UnwatchRequest) -> int:
        """End a watch; the sequence of the log then. Raises `Rejected("unknown_watch" | "not_allowed")`."""
        raise NotImplementedError

    async def matches(self, caller: Caller, request: MatchesRequest) -> MatchesReply:
        """Matches after `request.after`, waited for up to `wait_ms`: a wait is no load. Raises `Rejected`, `Fault`."""
        raise NotImplementedError
