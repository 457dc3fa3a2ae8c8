"""Reconciling a swarm: look twice, keep what lasts, heal by events, look again.

Healing asks whoever owns the state: a leader cancels or requeues, an observer makes its catalog and snapshots anew from
the log, a memory node puts its store right. Nothing is ever written past them, so healing twice does nothing the second
time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field

from swarmd.core import reconcile, subjects
from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.ids import check_name
from swarmd.core.reconcile import Difference
from swarmd.core.wire import AttemptQuery, RollQuery, TaskQuery
from swarmd.edges.reconcile_sources import Catalogued, Children, Fold, Members, Remembered, Saved, Source, ask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from swarmd.adapters.nats_bus import NatsBus
    from swarmd.adapters.nats_connect import NatsSettings

SOURCES: Final = ("hive", "members", "catalog", "snapshots", "memory")
#: Between two looks: by then what was on its way has arrived.
SETTLE_S: Final = 2.0
ROUNDS_MAX: Final = 3
PAUSE_S: Final = 0.5
REBUILD_S: Final = 120.0
#: Answers of a leader that say that there is nothing left to heal.
_MOVED_ON: Final = ("finished", "unknown_task", "not_running", "too_late", "unknown_member")


class Report(Struct):
    """What a reconciliation came to. `skipped` says by source what could not be looked at, and why.

    `reunions` are the last reports of child swarms that were cut off.
    """

    swarm: str
    seq: int
    differences: list[Difference]
    repaired: list[Difference] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    reunions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.differences


class Wish(Struct, frozen=True):
    """What to reconcile: a swarm and the memory beside it, which sources (none: all), and whether to heal."""

    swarm: str
    only: Sequence[str] = ()
    repair: bool = False
    settle_s: float = SETTLE_S
    memory: str = "shared"


class Reconciler:
    """One run over open connections. `buses` are those of children on brokers of their own, by name."""

    def __init__(
        self, bus: NatsBus, nats: NatsSettings, wish: Wish, buses: Mapping[str, NatsBus], told: Callable[[str], None]
    ) -> None:
        self._bus, self._wish, self._buses, self._told = bus, wish, buses, told
        swarm = check_name("swarm", wish.swarm)
        chosen = wish.only or SOURCES
        for name in chosen:
            if name not in SOURCES:
                raise Rejected("bad_usage", f"--only {name!r}: there are {', '.join(SOURCES)}")
        self._fold = Fold(bus, swarm, told, rows_wanted="catalog" in chosen)
        self._children = Children(self._fold, self._reach, told)
        self._catalog = Catalogued(self._fold)
        self._memory = Remembered(bus, wish.memory, told)
        of_swarm = (self._children, Members(self._fold), self._catalog, Saved(nats, swarm))
        every: tuple[Source, ...] = (*of_swarm, self._memory)
        self._sources = [source for source in every if source.name in chosen]
        self._skipped: dict[str, str] = {}

    def _reach(self, child: str) -> NatsBus:
        return self._buses.get(child, self._bus)

    async def run(self) -> Report:
        """Look, and heal if that is wished. Raises `Rejected("no_stream")` for a swarm that has no log here."""
        await self._fold.advance()
        differences, repaired = await self._differences(), list[Difference]()
        for _ in range(ROUNDS_MAX if self._wish.repair else 0):
            wanted = [difference for difference in differences if difference.repair]
            if not wanted:
                break
            await self._heal(wanted)
            left = await self._differences()
            gone = {one.key for one in differences} - {one.key for one in left}
            repaired += [one for one in wanted if one.key in gone]
            differences = left
        unseen = {f"hive/{child}": why for child, why in self._children.unseen.items()}
        reunions = sorted(self._fold.reunions.values(), key=lambda one: int(one["seq"]))
        return Report(self._wish.swarm, self._fold.state.seq, differences, repaired, self._skipped | unseen, reunions)

    # --- looking ---

    async def _differences(self) -> list[Difference]:
        """What two looks in a row show."""
        first = [(source, await self._look(source)) for source in self._sources]
        if not any(found for _, found in first):
            return []
        self._told(f"{sum(len(found) for _, found in first)} at first sight; looking again")
        await asyncio.sleep(self._wish.settle_s)
        lasting: list[Difference] = []
        for source, found in first:
            if found:
                lasting += reconcile.lasting(found, await self._look(source))
        return lasting

    async def _look(self, source: Source) -> list[Difference]:
        self._told(f"looking at {source.name}")
        try:
            found = await source.look()
        except SwarmdError as error:
            self._skipped[source.name] = error.message
            return []
        self._skipped.pop(source.name, None)
        return found

    # --- healing ---

    async def _heal(self, differences: Sequence[Difference]) -> None:
        """Ask for what heals each of them, once."""
        done: set[str] = set()
        for difference in differences:
            try:
                if difference.repair not in ("rebuild", "verify"):
                    await self._ask_for(difference)
                elif difference.repair not in done:
                    done.add(difference.repair)
                    await self._refill(difference.repair, any(one.source == "snapshots" for one in differences))
            except SwarmdError as error:
                if error.code not in _MOVED_ON:
                    self._told(f"{difference.subject} could not be healed: {error.message} ({error.code})")

    async def _ask_for(self, difference: Difference) -> None:
        swarm, task, epoch = difference.swarm, difference.subject, difference.epoch
        if difference.repair == "cancel":
            self._told(f"cancelling {task} in swarm {swarm}")
            reason = f"its attempt in swarm {self._wish.swarm} is over"
            await ask(self._reach(swarm), subjects.ctl(swarm, "cancel"), TaskQuery(task, reason=reason))
        elif difference.repair == "requeue":
            self._told(f"requeueing attempt {epoch} of {task}")
            await ask(self._bus, subjects.ctl(swarm, "requeue"), AttemptQuery(task, epoch))
        else:
            member = reconcile.attempts(self._fold.state).get((task, epoch))
            if member is not None:
                self._told(f"asking {member} what it runs")
                await ask(self._bus, subjects.ctl(swarm, "roll"), RollQuery(member))

    async def _refill(self, repair: str, snapshots_too: bool) -> None:
        """Heal all that a projection has wrong."""
        await (self._memory.repair() if repair == "verify" else self._rebuild(snapshots_too))

    async def _rebuild(self, snapshots_too: bool) -> None:
        """Have the observers fold the log anew, and then replace both snapshots."""
        swarm = self._wish.swarm
        self._told("an observer makes its catalog anew from the log")
        await ask(self._bus, subjects.tend(swarm, "rebuild"), None)
        try:
            async with asyncio.timeout(REBUILD_S):
                await self._until_rebuilt()
        except TimeoutError:
            raise Fault("not_rebuilt", f"the catalog was not made anew within {REBUILD_S:.0f} s") from None
        for _ in range(2 if snapshots_too else 0):  # two are kept
            await ask(self._bus, subjects.tend(swarm, "snapshot"), None)

    async def _until_rebuilt(self) -> None:
        while True:
            try:
                return await self._catalog.wait_for(self._fold.state.seq)
            except (Fault, Rejected):  # nobody answers meanwhile, or not from the end of the log yet
                await asyncio.sleep(PAUSE_S)
