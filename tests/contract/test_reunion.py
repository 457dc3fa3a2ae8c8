"""What a delegate reports when a way that was cut is back: each attempt under the word for what became of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.fakes import FakeClock
from swarmd.core.errors import Fault
from swarmd.core.events import Reunited
from swarmd.core.ids import delegated_id
from swarmd.roles.reunion import CUT_MS, LOOK_MS, SETTLE_MS, Reunion

if TYPE_CHECKING:
    from swarmd.core.events import Event


class Child:
    """What the child says of its tasks; it is away once more for as many questions as `faults`."""

    name = "east"

    def __init__(self, states: dict[str, str] | None = None, faults: int = 0) -> None:
        self.states, self.faults = states or {}, faults

    async def state_of(self, task: str) -> str:
        if self.faults:
            self.faults -= 1
            raise Fault("timeout", "away")
        return self.states.get(task, "unknown")


class Writer:
    """Keeps what is stored."""

    def __init__(self) -> None:
        self.stored: list[Event] = []

    async def store(self, event: Event) -> None:
        self.stored.append(event)


class Scene:
    """One delegate's notes, on a clock that is moved by hand."""

    def __init__(self, child: Child) -> None:
        self.clock, self.writer = FakeClock(), Writer()
        unshaped: Any = child
        self.notes = Reunion(unshaped, self.clock, lambda key: delegated_id("hive", *key))

    async def reports(self) -> list[Reunited]:
        """What is reported when enough time has passed for everything."""
        unshaped: Any = self.writer
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self.notes.run(unshaped))
            for _ in range(2 * SETTLE_MS // LOOK_MS):
                for _ in range(20):
                    await asyncio.sleep(0)
                await self.clock.advance(LOOK_MS)
            running.cancel()
        assert {event.subject for event in self.writer.stored} <= {"swarm:east"}
        return [event.data for event in self.writer.stored if isinstance(event.data, Reunited)]


def named(*tasks: str) -> list[str]:
    return [delegated_id("hive", task, 1) for task in tasks]


async def test_a_child_that_is_back_says_what_became_of_each_attempt() -> None:
    late, busy = named("late", "busy")
    scene = Scene(Child({late: "completed", busy: "assigned"}, faults=2))
    for task in ("late", "busy", "lost", "unwanted", "done"):
        scene.notes.began((task, 1))
    await scene.clock.advance(CUT_MS)
    for task in ("unwanted", "done"):
        scene.notes.left((task, 1))
        scene.notes.stopping((task, 1))
    scene.notes.heard("child")
    scene.notes.stopped(("unwanted", 1), "")
    scene.notes.stopped(("done", 1), "finished")
    (report,) = await scene.reports()
    assert (report.member, report.way, report.cut_ms) == ("swarm/east", "child", CUT_MS)
    assert report.examples == {
        "late": ["late"],
        "going_on": ["busy"],
        "unknown": ["lost"],
        "stopped": ["unwanted"],
        "too_late": ["done"],
    }
    assert report.tasks == {"running": 5, **{kind: 1 for kind in report.examples}}


async def test_a_parent_that_is_back_hears_what_ended_meanwhile_and_what_goes_on() -> None:
    scene = Scene(Child())
    for task in ("ended", "busy"):
        scene.notes.began((task, 1))
    await scene.clock.advance(CUT_MS - 1)
    scene.notes.ended(("ended", 1))
    scene.notes.left(("ended", 1))
    await scene.clock.advance(1)
    scene.notes.heard("parent")
    (report,) = await scene.reports()
    assert (report.way, report.examples) == ("parent", {"late": ["ended"], "going_on": ["busy"]})


@pytest.mark.parametrize("way", ["child", "parent"])
async def test_a_short_silence_is_no_cut(way: Any) -> None:
    scene = Scene(Child())
    for _ in range(3):
        await scene.clock.advance(CUT_MS - 1)
        scene.notes.heard(way)
    assert await scene.reports() == []
