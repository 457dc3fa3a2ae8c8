"""What should agree and does not: a swarm's log against its children's logs, its members' lists and its catalog.

Pure: folded states and answers in, differences out. Each side moves on while the other is read, so what one look finds
may be on its way; only what two looks in a row show is a difference (`lasting`). Must not know how anything is read,
nor how it is healed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from swarmd.core.ids import delegated_id, swarm_member
from swarmd.core.state import Place, tombstone

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from swarmd.core.catalog import FoundTask, TaskRow
    from swarmd.core.state import Member, Pair, SwarmState
    from swarmd.core.wire import Roll

#: Whom to ask to heal a difference: the child's leader, the swarm's leader, its observers, the memory's node; "" is up
#: to people.
Repair = Literal["", "cancel", "requeue", "ask_again", "rebuild", "verify"]


class Difference(Struct, frozen=True, omit_defaults=True):
    """One thing that does not agree. `swarm` is the one in which it is to be healed, `subject` a task or a member.

    `says` is what it means, in words; `repair` is how `--repair` heals it.
    """

    source: str
    kind: str
    swarm: str
    subject: str
    says: str
    epoch: int = 0
    repair: Repair = ""

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What makes it the same difference in another look."""
        return (self.source, self.kind, self.swarm, self.subject, self.epoch)


def lasting(earlier: Iterable[Difference], later: Iterable[Difference]) -> list[Difference]:
    """Those of `later` that were there before."""
    known = {difference.key for difference in earlier}
    return [difference for difference in later if difference.key in known]


def attempts(state: SwarmState) -> dict[Pair, str]:
    """Every live attempt and its member."""
    return {(task.id, epoch): one.member for task in state.tasks.values() for epoch, one in task.attempts.items()}


def delegated_from(parent: str, task: str) -> Pair | None:
    """Of which attempt of the swarm `parent` this is the task in a child, if of any."""
    name, _, number = task.removeprefix(f"{parent}:").rpartition(":")
    if not name or not number.isascii() or not number.isdecimal() or len(number) > 15:
        return None
    pair = (name, int(number))
    return pair if delegated_id(parent, *pair) == task else None


# --- a hive and its child --------------------------------------------------------------------------


def hive_against_child(hive: SwarmState, child: SwarmState) -> list[Difference]:
    """Attempts that the hive has with the child, against the child's tasks that a delegate made for it."""
    member, found = swarm_member(child.swarm), list[Difference]()
    running = {pair for pair, where in attempts(hive).items() if where == member}
    for task, epoch in sorted(running):
        difference = _attempt_in_child(hive, child, (task, epoch))
        if difference is not None:
            found.append(difference)
    for name in sorted(child.tasks):
        pair = delegated_from(hive.swarm, name)
        if pair is not None and pair not in running:
            why = _why_over(hive, pair)
            says = f"it runs for attempt {pair[1]} of {hive.swarm}'s task {pair[0]}, {why}: nobody wants its result"
            found.append(Difference("hive", "orphan", child.swarm, name, says, repair="cancel"))
    return found


def _attempt_in_child(hive: SwarmState, child: SwarmState, pair: Pair) -> Difference | None:
    task, epoch = pair
    name = delegated_id(hive.swarm, task, epoch)
    if name in child.tasks:
        return None
    buried = tombstone(child, name)
    if buried is not None:
        says = f"swarm {child.swarm} ended it ({buried.state}) and the verdict is not handed in: does its delegate run?"
        return Difference("hive", "verdict_owed", hive.swarm, task, says, epoch, "ask_again")
    if _has_forgotten(child):
        says = f"swarm {child.swarm} does not know it, and has forgotten tasks: whether it ran cannot be told from here"
        return Difference("hive", "forgotten", hive.swarm, task, says, epoch)
    says = f"swarm {child.swarm} does not know it: it never arrived there"
    return Difference("hive", "never_arrived", hive.swarm, task, says, epoch, "requeue")


def _has_forgotten(state: SwarmState) -> bool:
    """Whether tasks may have ended of which there is no tombstone any more: never before there are two generations."""
    counted = state.counters
    ended = counted.completed + counted.dead + counted.cancelled + counted.expired
    return bool(state.older_tombstones) and ended > len(state.tombstones) + len(state.older_tombstones)


def _why_over(hive: SwarmState, pair: Pair) -> str:
    task = hive.tasks.get(pair[0])
    if task is not None:
        return f"which is at attempt {task.epoch} now" if pair[1] != task.epoch else f"which is {task.state} now"
    buried = tombstone(hive, pair[0])
    return f"which is {buried.state}" if buried is not None else f"which {hive.swarm} does not know"


# --- the log and the members -----------------------------------------------------------------------


def log_against_members(state: SwarmState, rolls: Mapping[str, Roll]) -> list[Difference]:
    """Live attempts against what processes list. `rolls` are by any one member of each process."""
    found = list[Difference]()
    running = attempts(state)
    for asked, roll in sorted(rolls.items()):
        members = [state.members[name] for name in {asked, *roll.members} if name in state.members]
        mine = {pair for pair, where in running.items() if where in {member.id for member in members}}
        if not roll.reachable:
            if mine:
                found.append(_silent(state, asked, roll, len(mine)))
            continue
        if roll.age_ms < 0:
            continue
        listed = set(roll.running)
        for task, epoch in sorted(mine - listed):
            says = f"the log has it with {running[task, epoch]}, whose process does not run it"
            found.append(Difference("members", "not_listed", state.swarm, task, says, epoch, "ask_again"))
        for task, epoch in sorted(pair for pair in listed if pair not in running):
            says = f"the process of {asked} runs it, and it has no right to: the log has no such live attempt"
            found.append(Difference("members", "not_running", state.swarm, task, says, epoch, "ask_again"))
    return found


def _silent(state: SwarmState, asked: str, roll: Roll, count: int) -> Difference:
    heard = f"for {roll.heard_ms} ms" if roll.heard_ms >= 0 else "since its leader began"
    says = f"not heard {heard}, with {count} attempts: whether they run cannot be told until it is back"
    return Difference("members", "silent", state.swarm, asked, says)


def processes(members: Iterable[Member]) -> list[str]:
    """One member of each process."""
    first: dict[tuple[str, str, str], str] = {}
    for member in members:
        first.setdefault((member.role, member.writer, member.boot), member.id)
    return list(first.values())


# --- the log and the catalog -----------------------------------------------------------------------


class Row(Struct, frozen=True):
    """What the log says of a task, as far as a list of the catalog says it too."""

    state: str
    attempts: int
    last_seq: int
    verdict: Place | None


def gather(rows: dict[str, Row], changed: Iterable[TaskRow]) -> None:
    """Bring `rows` up to what a log's gatherer has found since it was last asked."""
    for row in changed:
        known = rows.get(row.id)
        last_seq = max([known.last_seq if known and not row.fresh else 0, *(seq for seq, _ in row.history)])
        rows[row.id] = Row(row.state, row.attempts, last_seq, row.verdict)


def log_against_catalog(
    swarm: str, rows: Mapping[str, Row], listed: Sequence[FoundTask], upto: int
) -> list[Difference]:
    """The log's tasks up to sequence `upto` against all that the catalog lists; what moved on since is left out."""
    found, seen = list[Difference](), set[str]()
    for task in listed:
        seen.add(task.id)
        row = rows.get(task.id)
        if task.last_seq > upto:
            continue
        if row is None:
            found.append(_row_differs(swarm, task.id, "extra_row", "the catalog has it, the log does not"))
            continue
        shown = Row(task.state, task.attempts, task.last_seq, task.verdict)
        if shown != row:
            says = f"the log has {_said(row)}, the catalog {_said(shown)}"
            found.append(_row_differs(swarm, task.id, "other_row", says))
    for name in rows:
        if name not in seen:
            found.append(_row_differs(swarm, name, "missing_row", "the log has it, the catalog does not"))
    return found


def _row_differs(swarm: str, task: str, kind: str, says: str) -> Difference:
    return Difference("catalog", kind, swarm, task, says, repair="rebuild")


def _said(row: Row) -> str:
    verdict = f", verdict at {row.verdict[0]}.{row.verdict[1]}" if row.verdict else ""
    return f"{row.state} after {row.attempts} attempts{verdict}, last touched at {row.last_seq}"
