"""Probe on the metrics and logs of a process."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarmd.adapters.telemetry import Telemetry

log = logging.getLogger("swarmd")


class TelemetryProbe:
    """Counts into `telemetry`; incidents and troubles go to the log as well."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry

    def committed(self, events: int, size: int, took_ms: float) -> None:
        self.telemetry.observe("swarmd_log_append_seconds", took_ms / 1000)
        self.telemetry.observe("swarmd_commit_events", events)
        self.telemetry.observe("swarmd_commit_bytes", size)

    def folded(self, seq: int, events: int) -> None:
        self.telemetry.gauge("swarmd_fold_sequence", seq)
        self.telemetry.count("swarmd_events_folded_total", by=events)

    def trouble(self, where: str, error: Exception) -> None:
        log.warning("%s: %s; trying again", where, error)

    def notice(self, what: str) -> None:
        log.info("%s", what)

    def incident(self, what: str) -> None:
        log.warning("%s", what)
