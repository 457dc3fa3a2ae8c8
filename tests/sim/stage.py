"""A small stage for scenarios: real leaders over one log, time by hand, and every message in plain sight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Raw

from swarmd.core.leader import Leader
from swarmd.core.office import LeaderSettings
from swarmd.core.policies import PlacementSettings
from swarmd.core.state import Limits, SwarmState
from swarmd.core.wire import Heartbeat, Start, Submission
from tests.core.history import History

if TYPE_CHECKING:
    from swarmd.core import effects as fx
    from swarmd.core.events import Event, Fact, Limit
    from swarmd.core.keys import KeyPolicy
    from swarmd.core.placement import TenantPolicy
    from swarmd.core.wire import Item

LEASE_MS = 1_000


class Stage:
    """One log, some orchestrators. Nothing happens that a scenario does not say."""

    def __init__(self, **limits: int) -> None:
        self.history = History()
        self.now_ms = 10_000
        self.limits = Limits(**limits)
        self.budgets: dict[str, Limit] = {}
        self.tenants: dict[str, TenantPolicy] = {}
        self.keys: dict[str, KeyPolicy] = {}
        self.placement = PlacementSettings()
        self.leaders: list[Leader] = []
        self.items: list[tuple[str, Item]] = []

    # --- orchestrators ---

    def orchestrator(self, boot: str) -> Leader:
        """An orchestrator that has folded everything so far."""
        settings = LeaderSettings(
            self.limits,
            lease_ms=LEASE_MS,
            resend_ms=100,
            settle_ms=50,
            stall_ms=10**6,
            budgets=self.budgets,
            placement=self.placement,
            tenants=self.tenants,
            keys=self.keys,
        )
        leader = Leader(SwarmState("s"), f"o-{boot}", boot, settings)
        self.leaders.append(leader)
        self.fold(leader)
        return leader

    def leading(self, boot: str = "L1") -> Leader:
        """An orchestrator that has won an election and stored its limits."""
        leader = self.orchestrator(boot)
        self.write(leader, [leader.campaign()])
        self.decide(leader)
        return leader

    def fold(self, leader: Leader) -> None:
        for record in self.history.records[leader.state.seq :]:
            leader.fold(self.history.codec.decode(record), self.now_ms)

    def write(self, leader: Leader, events: list[Event], *, n: int = 0, seen: int | None = None) -> None:
        """Store `events` as one commit of `leader`; everybody folds it."""
        origin = ("orchestrator", leader.writer, leader.boot)
        self.history.at_ms = self.now_ms
        self.history.commit(origin, *((event.subject, event.data) for event in events), n=n, seen=seen)
        self.all_fold()

    def all_fold(self) -> None:
        for leader in self.leaders:
            self.fold(leader)

    def decide(self, leader: Leader) -> list[Event]:
        """Let `leader` decide, store that, fold it, until it has nothing more; return all its events."""
        decided: list[Event] = []
        for _ in range(20):
            events = leader.decide()
            if not events:
                break
            decided += events
            self.write(leader, events)
        return decided

    def wait(self, delay_ms: int, leader: Leader) -> list[Event]:
        """Time passes and `leader` notices."""
        self.now_ms += delay_ms
        leader.tick(self.now_ms)
        return self.decide(leader)

    # --- members and clients ---

    def member(self, name: str, *facts: tuple[str, Fact], role: str = "worker", boot: str = "b") -> list[fx.Effect]:
        """A commit of member process `name`; everybody folds it."""
        self.history.at_ms = self.now_ms
        effects = self.history.commit((role, name, boot), *facts)
        self.all_fold()
        return effects

    def beat(
        self, leader: Leader, name: str, ack: int, listed: list[tuple[str, int]] | None = None, **given: Any
    ) -> None:
        """A heartbeat of member process `name` in the leader's term, as new as the log."""
        running = given.get("running", {})
        role, boot = given.get("role", "worker"), given.get("boot", "b")
        term, seq = given.get("term", leader.state.term), given.get("seq", leader.state.seq)
        leader.heartbeat(Heartbeat(role, name, boot, term, ack, seq, running, listed), self.now_ms)

    def dispatched(self, leader: Leader) -> list[tuple[str, Item]]:
        """What the leader sends now: (boot of the process, item)."""
        batches = leader.links.flush(leader.state.seq, self.now_ms)
        return [(f"{writer}/{boot}", item) for (_, writer, boot), batch in batches for item in batch.items]

    def started(self, leader: Leader) -> list[tuple[str, int, str]]:
        """(task, epoch, member) of every attempt that the leader hands over now."""
        items = [item for _, item in self.dispatched(leader)]
        return [(item.task, item.epoch, item.member) for item in items if isinstance(item, Start)]


def wish(agent: str = "a", value: bytes = b"1", **fields: Any) -> Submission:
    return Submission(agent, Raw(value), **fields)
