"""A schedule as somebody declares it, with moments instead of milliseconds. Must not know files or budgets."""

from __future__ import annotations

import typing
from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from swarmd.core.events import Budget, RetryPolicy, Schedule

Natural = typing.Annotated[int, msgspec.Meta(ge=0)]
Moment = typing.Annotated[datetime, msgspec.Meta(tz=True)]


class ScheduleSpec(Struct, frozen=True):
    """Tasks at points in time: each `every_ms`, or by `cron` in the time zone `zone`; see `Schedule`."""

    agent: str
    input: Any = None
    every_ms: Natural = 0
    cron: str = ""
    zone: str = "UTC"
    not_before: Moment | None = None
    until: Moment | None = None
    missed: Literal["skip", "once", "all"] = "once"
    grace_ms: Natural = 60_000
    overlap: Literal["allow", "skip"] = "allow"
    priority: int = 0
    tenant: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    requires: dict[str, str] = field(default_factory=dict)
    retry: RetryPolicy = RetryPolicy()
    timeout_ms: Natural = 0

    def schedule(self, name: str, budget: Budget) -> Schedule:
        """The same as it stands in the log."""
        return Schedule(
            name,
            self.agent,
            msgspec.Raw(msgspec.json.encode(self.input)),
            every_ms=self.every_ms,
            cron=self.cron,
            zone=self.zone,
            not_before_ms=_ms(self.not_before),
            until_ms=_ms(self.until),
            missed=self.missed,
            grace_ms=self.grace_ms,
            overlap=self.overlap,
            priority=self.priority,
            tenant=self.tenant,
            labels=self.labels,
            requires=self.requires,
            budget=budget,
            retry=self.retry,
            timeout_ms=self.timeout_ms,
            declared=True,
        )


def _ms(moment: datetime | None) -> int:
    return round(moment.timestamp() * 1000) if moment else 0
