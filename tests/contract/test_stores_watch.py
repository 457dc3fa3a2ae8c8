"""How full the stores are, as an operator is told of it: one warning each time a store passes 80 %."""

from __future__ import annotations

from swarmd.adapters.fakes import FakeClock
from swarmd.adapters.probe import TelemetryProbe
from swarmd.adapters.telemetry import Telemetry
from swarmd.core.leader import Leader
from swarmd.core.office import LeaderSettings
from swarmd.core.state import SwarmState
from swarmd.core.wire import StoreHealth
from swarmd.roles.stores import StoreWatch


class Heard(TelemetryProbe):
    """A probe that keeps what an operator must know."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__(telemetry)
        self.incidents: list[str] = []

    def incident(self, what: str) -> None:
        self.incidents.append(what)


def test_a_burst_between_two_looks_does_not_swallow_the_warning() -> None:
    """What was written since the last look counts towards refusing; the warning comes with the next look."""
    telemetry = Telemetry("orchestrator", "main")
    heard = Heard(telemetry)
    leader = Leader(SwarmState("main"), "o1", "b", LeaderSettings())
    watch = StoreWatch(leader, FakeClock(), heard, telemetry)
    watch.seen(StoreHealth("log", 10, 100))
    watch.grown("log", 75)
    watch.seen(StoreHealth("log", 86, 100))
    assert heard.incidents == ["log is 86% full (86 of 100 bytes)"]
    watch.seen(StoreHealth("log", 88, 100))
    assert len(heard.incidents) == 1
    watch.seen(StoreHealth("log", 20, 100))
    watch.seen(StoreHealth("log", 81, 100))
    assert len(heard.incidents) == 2
