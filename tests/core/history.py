"""Given a history: facts written to a log as real bytes, numbered and folded like any others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Raw

from swarmd.core import ids, subjects
from swarmd.core.codec import Codec, Packer, Record, message_id
from swarmd.core.events import TYPES, Assigned, Elected, Event, Fact, MemberJoined, Submitted
from swarmd.core.evolve import apply
from swarmd.core.state import SwarmState

if TYPE_CHECKING:
    from swarmd.core import effects as fx

NODE: Final = ids.node_member("w1", "b1", 0)
OTHER: Final = ids.node_member("w2", "b2", 0)
CHILD: Final = ids.swarm_member("kid")


def payload_of(*events: tuple[str, Fact]) -> bytes:
    """A commit's bytes as a log writer makes them."""
    packer = Packer()
    for subject, fact in events:
        packer.add(Event(subject, fact, TYPES[type(fact)]))
    return packer.payload()


class History:
    """A swarm's log and its fold. `lead`, `work` and `other` write as the usual leader and members."""

    def __init__(self, swarm: str = "s") -> None:
        self.state = SwarmState(swarm)
        self.records: list[Record] = []
        self.codec = Codec()
        self.at_ms = 0  #: by the broker's clock
        self._n: dict[tuple[str, str, str], int] = {}

    def commit(
        self, origin: tuple[str, str, str], *events: tuple[str, Fact], n: int = 0, seen: int | None = None
    ) -> list[fx.Effect]:
        """Store and fold one commit of (role, writer, boot); return its effects."""
        self._n[origin] = number = n or self._n.get(origin, 0) + 1
        role, writer, boot = origin
        return self.store(subjects.log("s", role, writer), message_id(boot, number), payload_of(*events), seen)

    def store(self, subject: str, key: str, payload: bytes, seen: int | None = None) -> list[fx.Effect]:
        seq = len(self.records) + 1
        self.records.append(Record(seq, subject, key, payload, seq - 1 if seen is None else seen, self.at_ms))
        return apply(self.state, self.codec.decode(self.records[-1]))

    def lead(self, subject: str, *facts: Fact) -> list[fx.Effect]:
        return self.commit(("orchestrator", "o1", "L1"), *((subject, fact) for fact in facts))

    def work(self, subject: str, *facts: Fact) -> list[fx.Effect]:
        return self.commit(("worker", "w1", "b1"), *((subject, fact) for fact in facts))

    def other(self, subject: str, *facts: Fact) -> list[fx.Effect]:
        return self.commit(("worker", "w2", "b2"), *((subject, fact) for fact in facts))

    def ignored(self) -> dict[str, int]:
        return dict(self.state.counters.ignored)

    # --- usual beginnings ---

    def elected(self, term: int = 1) -> History:
        self.lead("s", Elected(term=term))
        return self

    def joined(self) -> History:
        """A leader and two nodes of two slots."""
        self.elected()
        self.work(NODE, offer(NODE))
        self.other(OTHER, offer(OTHER))
        return self

    def submitted(self, task: str = "t", **fields: object) -> History:
        self.lead(task, submission(**fields))
        return self

    def assigned(self, task: str = "t", epoch: int = 1, member: str = NODE) -> History:
        self.lead(task, Assigned(term=1, epoch=epoch, member=member))
        return self

    def running(self, task: str = "t", **fields: object) -> History:
        """A leader, two nodes, and a task that the first of them runs at epoch 1."""
        return self.joined().submitted(task, **fields).assigned(task)


def offer(member: str, capacity: int = 2) -> MemberJoined:
    kind = "swarm" if member.startswith("swarm/") else "node"
    return MemberJoined(member=member, kind=kind, agents=["a"], capacity=capacity)  # type: ignore[arg-type]


def submission(**fields: object) -> Submitted:
    given: dict[str, object] = {"term": 1, "agent": "a", "digest": "d", "input": Raw(b'"x"')}
    return Submitted(**(given | fields))  # type: ignore[arg-type]
