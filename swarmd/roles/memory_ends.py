"""How memories end without their author: revoked by an operator, or expired.

A revocation is a series of events, each by itself: it goes on where it was cut off when the same is asked again, and
says every task that has read what it is about, also of what was withdrawn before. Both go in slices, so that a hundred
thousand memories hold nobody up. Must not know the bus or the store.
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from swarmd.core import memory_door
from swarmd.core.errors import Rejected, SwarmdError
from swarmd.core.events import Event
from swarmd.core.memory import Forgotten, Revoked, version_of
from swarmd.core.memory_lineage import meets, reader_of
from swarmd.core.memory_wire import RevokeReply, RevokeRequest

if TYPE_CHECKING:
    from swarmd.core.codec import Commit
    from swarmd.core.memory_fold import Known
    from swarmd.core.memory_wire import Reader
    from swarmd.ports import Clock, Probe
    from swarmd.roles.memory_log import MemoryLog
    from swarmd.roles.memory_writes import Writes

#: Memories looked at, and events handed in, before others get their turn.
SLICE: Final = 2_000
EVENTS: Final = 500
#: One request withdraws for so long; what is left then is asked for again.
REVOKE_MS: Final = 5_000
#: Memories that an answer names, in all and for each reader; readers in a page.
NAMED_MAX: Final = 100
NAMED_BY_READER: Final = 10
READERS_MAX: Final = 500
SWEEP_MS: Final = 500


class _Share(Struct):
    """What a task has read of them: some names, since when, how many."""

    memories: list[str]
    seq: int
    count: int = 0


class Ends:
    """Revokes, and sweeps out what has expired."""

    def __init__(self, log: MemoryLog, writes: Writes, clock: Clock, probe: Probe) -> None:
        self._log, self._writes, self._clock, self._probe = log, writes, clock, probe
        self._expiring: list[tuple[int, str]] = []
        log.listeners.append(self._note_expiry)

    # --- revoking ---

    async def revoke(self, wanted: RevokeRequest) -> RevokeReply:
        """Withdraw what meets the conditions, for a while. Raises `Rejected`, `Fault`."""
        memories = await self._meant(wanted)
        state = self._log.state
        left = [memory for memory in memories if not state.known[memory].gone_seq]
        withdrawn = len(left)
        if not wanted.dry and left:
            left = await self._withdraw(left, wanted.reason)
        known = state.known
        shown = [memory for memory in memories if known[memory].revoked or (wanted.dry and not known[memory].gone_seq)]
        readers, following = await self._readers(memories, wanted.after)
        if not wanted.dry and withdrawn > len(left):
            self._probe.notice(f"{withdrawn - len(left)} memories were revoked, {len(left)} are left to be")
        return RevokeReply(
            wanted.id,
            state.seq,
            len(shown),
            shown[:NAMED_MAX],
            readers,
            left=len(left),
            next=following,
        )

    async def _meant(self, wanted: RevokeRequest) -> list[str]:
        """The memories that a revocation is about, whatever became of them, in the order of the log."""
        memory_door.check_field(wanted.reason, "reason")
        if wanted.id:
            if wanted.id not in self._log.state.known:
                raise Rejected("unknown_memory", f"no memory {wanted.id[:200]} was ever remembered here")
            if not meets(self._log.state.known[wanted.id], wanted):
                raise Rejected("bad_revoke", f"memory {wanted.id[:200]} does not meet the other conditions given")
            return [wanted.id]
        if not (wanted.author or wanted.task or wanted.swarm or wanted.space or wanted.since_ms > 0):
            raise Rejected("bad_revoke", "say what to revoke: an id, or an author, task, swarm, space or time")
        everything = list(self._log.state.known.items())
        found: list[str] = []
        for start in range(0, len(everything), SLICE):
            found += [memory for memory, known in everything[start : start + SLICE] if meets(known, wanted)]
            await asyncio.sleep(0)
        return found

    async def _withdraw(self, memories: list[str], reason: str) -> list[str]:
        """Revoke these in their order, for as long as one request may; those that are left."""
        until_ms = self._clock.now_ms() + REVOKE_MS
        known = self._log.state.known
        for start in range(0, len(memories), EVENTS):
            if self._clock.now_ms() > until_ms:
                break
            events = [
                (memory, Revoked(reason=reason))
                for memory in memories[start : start + EVENTS]
                if not known[memory].gone_seq
            ]
            await self._log.commit(*events)
        return [memory for memory in memories if not known[memory].gone_seq]

    async def _readers(self, memories: list[str], after: str) -> tuple[list[Reader], str]:
        """A page of the tasks that read any of these, after the reader `after`; and the last one, if there are more."""
        state, shares = self._log.state, dict[str, _Share]()
        for start in range(0, len(memories), SLICE):
            for memory in memories[start : start + SLICE]:
                for task, seq in (state.known[memory].readers or {}).items():
                    share = shares.get(task)
                    if share is None:
                        share = shares[task] = _Share([], seq)
                    share.count += 1
                    share.seq = min(share.seq, seq)
                    if len(share.memories) < NAMED_BY_READER:
                        share.memories.append(memory)
            await asyncio.sleep(0)
        order = sorted(task for task in shares if task > after)
        page = order[:READERS_MAX]
        readers = [reader_of(task, (s := shares[task]).memories, s.seq, s.count) for task in page]
        return readers, page[-1] if len(order) > len(page) else ""

    # --- expiry ---

    def _note_expiry(self, commit: Commit) -> None:
        for event in commit.events:
            if not isinstance(event, Event):
                continue
            version = version_of(event.data)
            if version is not None and version.expires_at_ms > 0:
                heappush(self._expiring, (version.expires_at_ms, event.subject))

    async def sweep(self) -> None:
        """Have it in the log that memories have expired, soon after they did; until cancelled."""
        while True:
            await self._clock.sleep(SWEEP_MS)
            due, looked_at = self._take_due()
            while not due and looked_at == SLICE:  # a long log has many that ended otherwise before they expired
                await asyncio.sleep(0)
                due, looked_at = self._take_due()
            if not due:
                continue
            try:
                await self._log.commit(*((memory, Forgotten(reason="expired")) for _, memory in due))
            except SwarmdError as error:  # a full log: they are shown to nobody meanwhile
                self._probe.trouble("expiry", error)
            finally:
                for entry in due:  # those that the log did not accept, or that this node had no time for
                    if _is_due(self._log.state.known.get(entry[1]), entry[0]):
                        heappush(self._expiring, entry)

    def _take_due(self) -> tuple[list[tuple[int, str]], int]:
        """Some of what has expired by now and is not gone, but for what is just being changed; and of how many."""
        now_ms, due, later = self._clock.now_ms(), list[tuple[int, str]](), list[tuple[int, str]]()
        looked_at = 0
        while looked_at < SLICE:
            if not self._expiring or self._expiring[0][0] > now_ms or len(due) == EVENTS:
                break
            entry = heappop(self._expiring)
            looked_at += 1
            if self._writes.is_changing(entry[1]):
                later.append(entry)
            elif _is_due(self._log.state.known.get(entry[1]), entry[0]):
                due.append(entry)
        for entry in later:
            heappush(self._expiring, entry)
        return due, looked_at


def _is_due(known: Known | None, expires_at_ms: int) -> bool:
    return known is not None and not known.gone_seq and known.expires_at_ms == expires_at_ms
