"""Schedules as a client asks for them: one brought in force, one removed, all of them. Must not know who asks."""

from __future__ import annotations

from typing import Any

from swarmd.core.wire import Receipt, ScheduleStatus
from swarmd.core.wire import Schedules as Listing
from swarmd.edges.people import People


class Planning(People):
    """Methods of `Client`; beside these, whatever people say to a swarm."""

    async def schedule(self, name: str, agent: str, wanted: Any = None, **options: Any) -> None:
        """Bring a schedule in force, or change it; `options` are the fields of `Schedule` (every_ms, cron, zone, …).

        Raises `Rejected`: "bad_schedule", "bad_cron", "bad_zone", "declared" and those of a submission.
        """
        await self._ask("schedule", {"id": name, "agent": agent, "input": wanted, **options}, Receipt)

    async def feedback(self, task: str, score: float, comment: str = "", by: str = "") -> None:
        """Judge a finished task from -1 (bad) to 1 (good); placement learns from it.

        Raises `Rejected`: "not_finished", "unknown_task", "bad_field".
        """
        await self._ask("feedback", {"task": task, "score": score, "comment": comment, "by": by}, Receipt)

    async def unschedule(self, name: str) -> None:
        """Remove a schedule; tasks that it has made live on. Raises `Rejected` ("unknown_schedule", "declared")."""
        await self._ask("unschedule", {"schedule": name}, Receipt)

    async def schedules(self) -> list[ScheduleStatus]:
        """Every schedule, by id, with its next slot and its last."""
        return (await self._ask("schedules", {}, Listing)).schedules
