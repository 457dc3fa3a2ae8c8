"""What a delegate notes while one of its ways is cut, to its child or to its parent, and reports when that is back.

The work goes on meanwhile wherever it is; ids and epochs see to it that nothing is lost or done twice. This is for
people: how long it was, and what each side did that the other learnt of late. The report is an event in the parent's
log. Must not know how attempts are run.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct, field

from swarmd.core.errors import Fault, Rejected
from swarmd.core.events import Event, Reunited
from swarmd.core.ids import member_subject, swarm_member
from swarmd.core.state import Pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from swarmd.ports import Clock
    from swarmd.roles.child import ChildSwarm
    from swarmd.roles.writer import LogWriter

log = logging.getLogger(__name__)

#: A silence as long as this is a cut: a swarm that changes its leader is silent for less.
CUT_MS: Final = 5_000
#: So long after its return a parent has said what shall stop.
SETTLE_MS: Final = 2_000
LOOK_MS: Final = 500
#: How many tasks are asked for at once, and named in a report.
ASKED_MAX: Final = 64
EXAMPLES_MAX: Final = 20
Way = Literal["child", "parent"]


class _Silence(Struct):
    """What happened on one way since the other end was last heard."""

    heard_ms: int
    ended: set[Pair] = field(default_factory=set)
    stops: set[Pair] = field(default_factory=set)


class _Cut(Struct):
    """A silence that was a cut, as it was when it ended."""

    way: Way
    cut_ms: int
    under_way: set[Pair]
    ended: set[Pair]
    stops: set[Pair]


class Reunion:
    """One delegate's notes. `named` is the id of an attempt's task in the child."""

    def __init__(self, child: ChildSwarm, clock: Clock, named: Callable[[Pair], str], cut_ms: int = CUT_MS) -> None:
        self._child, self._clock, self._named, self._cut_ms = child, clock, named, cut_ms
        now = clock.now_ms()
        self._silences: dict[Way, _Silence] = {"child": _Silence(now), "parent": _Silence(now)}
        self._under_way: set[Pair] = set()
        self._stopping: set[Pair] = set()
        self._answers: dict[Pair, str] = {}
        self._cuts: asyncio.Queue[_Cut] = asyncio.Queue()
        self._settling = 0

    # --- what happens ---

    def heard(self, way: Way) -> None:
        """The other end of this way has said something."""
        now, silence = self._clock.now_ms(), self._silences[way]
        cut_ms = now - silence.heard_ms
        silence.heard_ms = now
        if cut_ms >= self._cut_ms:
            under_way = self._under_way | silence.ended
            self._cuts.put_nowait(_Cut(way, cut_ms, under_way, silence.ended, silence.stops))
            self._settling += 1
            log.warning("the way to the %s of swarm %s was cut for %d ms and is back", way, self._child.name, cut_ms)
            silence.ended, silence.stops = set(), set()
        else:
            silence.ended.clear()
            silence.stops.clear()

    def began(self, key: Pair) -> None:
        """An attempt is with the child, as far as it can be reached."""
        self._under_way.add(key)

    def ended(self, key: Pair) -> None:
        """The child's verdict on an attempt is here, and is to be handed in."""
        self.heard("child")
        self._silences["parent"].ended.add(key)

    def left(self, key: Pair) -> None:
        """The delegate is no longer busy with an attempt."""
        self._under_way.discard(key)

    def stopping(self, key: Pair) -> None:
        """The parent wants an attempt stopped, and the child is asked to."""
        self._silences["child"].stops.add(key)
        self._stopping.add(key)

    def stopped(self, key: Pair, answer: str) -> None:
        """The child has answered: "", or why there was nothing to stop."""
        self.heard("child")
        self._stopping.discard(key)
        if self._settling:
            self._answers[key] = answer

    # --- the report ---

    async def run(self, writer: LogWriter) -> None:
        """Report each cut when it is over, until cancelled."""
        while True:
            report = await self._report(await self._cuts.get())
            said = ", ".join(f"{name} {count}" for name, count in report.tasks.items() if count)
            words = "swarm %s and its parent are reconciled (the way to the %s was cut for %d ms): %s"
            log.warning(words, self._child.name, report.way, report.cut_ms, said or "no task was concerned")
            try:
                await writer.store(Event(member_subject(report.member), report))
            except Rejected as error:
                log.warning("the report was not stored: %s", error.message)
            self._settling -= 1
            if not self._settling:
                self._answers.clear()

    async def _report(self, cut: _Cut) -> Reunited:
        """What differs, once both sides have said what there is to say."""
        states = await self._states(cut.under_way - cut.ended) if cut.way == "child" else {}
        if cut.way == "parent":
            await self._clock.sleep(SETTLE_MS)
        while cut.stops & self._stopping or (cut.way == "parent" and cut.ended & self._stopping):
            await self._clock.sleep(LOOK_MS)
        kinds: dict[str, list[str]] = {
            "late": [task for task, _ in sorted(cut.ended)],
            "going_on": [task for task, _ in sorted(self._under_way & cut.under_way)] if cut.way == "parent" else [],
            "unknown": [],
            "stopped": [],
            "too_late": [],
        }
        for key, state in sorted(states.items()):
            kinds[_kind_of(state)].append(key[0])
        for key in sorted(cut.stops | cut.ended):
            answer = self._answers.get(key)
            if answer in ("", "finished"):
                kinds["too_late" if answer else "stopped"].append(key[0])
        report = Reunited(member=swarm_member(self._child.name), way=cut.way, cut_ms=cut.cut_ms)
        report.tasks = {
            "running": len(cut.under_way | cut.stops),
            **{name: len(tasks) for name, tasks in kinds.items()},
        }
        report.examples = {name: tasks[:EXAMPLES_MAX] for name, tasks in kinds.items() if tasks}
        return report

    async def _states(self, keys: Iterable[Pair]) -> dict[Pair, str]:
        """What the child says of its tasks; asked again while it is away once more."""
        found: dict[Pair, str] = {}
        places = asyncio.Semaphore(ASKED_MAX)

        async def ask(key: Pair) -> None:
            async with places:
                while True:
                    try:
                        found[key] = await self._child.state_of(self._named(key))
                        return
                    except Fault:
                        await self._clock.sleep(LOOK_MS)

        async with asyncio.TaskGroup() as group:
            for key in keys:
                group.create_task(ask(key))
        return found


def _kind_of(state: str) -> str:
    if state == "unknown":
        return "unknown"
    return "late" if state in ("completed", "dead", "cancelled", "expired") else "going_on"
