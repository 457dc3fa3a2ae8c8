"""What a task costs its leader, by part: the real machine on made submissions, without a broker.

Everything is done that an orchestrator does for a task of three events, in the batches of a client that submits 256 at
a time; what the network and the event loop cost is not in it (`bench throughput` measures that). CPU time is taken
around each part. The fold is timed by a second state beside the leader's, which folds the same commits; what the leader
takes beyond that is what it does about them. Must not know how anything is printed.
"""

from __future__ import annotations

from time import process_time
from typing import Final

import msgspec

from swarmd.core import commands
from swarmd.core.codec import Codec, Commit, Garbage, Record, read_back
from swarmd.core.events import Event
from swarmd.core.evolve import apply
from swarmd.core.leader import Leader
from swarmd.core.link import read_dispatch
from swarmd.core.office import LeaderSettings
from swarmd.core.state import SwarmState
from swarmd.core.wire import Heartbeat, Start
from swarmd.edges.bench_records import EPOCH_MS, SWARM, Writer, completed, joined, leader, task_id, wanted, workers

BATCH: Final = 256
#: What the clock moves from one batch to the next; at 20,000 tasks a second it is about that.
ROUND_MS: Final = 13
#: The parts, in the order in which a task meets them, and what each of them is.
PARTS: Final = {
    "request": "a client's request is read and checked",
    "decide": "submissions, placements and what is due become events",
    "encode": "the leader's events are packed into a commit",
    "read_back": "the leader's own commit comes back from the log",
    "decode": "what members report is decoded",
    "fold": "commits change the state",
    "effects": "what follows: the queue, timers, starts, outcomes",
    "dispatch": "starts are packed and encoded for the members",
    "answer": "receipts and outcomes are encoded for the client",
}


class Office:
    """One leader with its members, and the CPU seconds of each part."""

    def __init__(self) -> None:
        self._writer, self._crew = leader(), workers()
        self._leader = Leader(SwarmState(SWARM), self._writer.name, self._writer.boot, LeaderSettings())
        self._shadow, self._codec = SwarmState(SWARM), Codec()
        self._now, self._seq, self._number = EPOCH_MS, 0, 0
        self.cpu_s = dict.fromkeys(PARTS, 0.0)
        self.ended = 0
        self._store(self._writer, [self._leader.campaign()])
        for worker in self._crew:
            self._store(worker, [Event(member, joined(member)) for member in worker.nodes()])
        self._write()
        self._hand_out()
        self.cpu_s = dict.fromkeys(PARTS, 0.0)

    def batch(self, size: int) -> None:
        """Take `size` tasks from their submission to their outcome."""
        self._now += ROUND_MS
        request = msgspec.json.encode([wanted(self._number + n) for n in range(size)])
        names = [task_id(self._now, self._number + n) for n in range(size)]  # clients make them
        started = process_time()
        submissions = [commands.check(one) for one in commands.parse_submissions(request)[0]]
        asked = process_time()
        for n, one in enumerate(submissions):
            self._leader.submit(one, names[n], self._now, True, ("batch", n))
        self._leader.tick(self._now)
        self.cpu_s["request"] += asked - started
        self.cpu_s["decide"] += process_time() - asked
        self._number += size
        while self._write():
            self._hand_out()

    def _write(self) -> bool:
        """Store what the leader has decided; whether there was anything."""
        started = process_time()
        events = self._leader.decide()
        self.cpu_s["decide"] += process_time() - started
        if events:
            self._store(self._writer, events)
        return bool(events)

    def _store(self, writer: Writer, events: list[Event]) -> None:
        """A commit is packed, stored, and read by the leader."""
        self._seq += 1
        own = writer is self._writer
        started = process_time()
        payload = writer.pack(events, self._now)
        if own:
            self.cpu_s["encode"] += process_time() - started
        record = writer.record(self._seq, payload, self._now)
        started = process_time()
        commit = self._read(record, events if own else None)
        read = process_time()
        apply(self._shadow, commit, [])
        folded = process_time()
        self._leader.fold(commit, self._now)
        done = process_time()
        self.cpu_s["read_back" if own else "decode"] += read - started
        self.cpu_s["fold"] += folded - read
        self.cpu_s["effects"] += done - folded - (folded - read)

    def _read(self, record: Record, events: list[Event] | None) -> Commit | Garbage:
        return self._codec.decode(record) if events is None else read_back(record, events)

    def _hand_out(self) -> None:
        """Dispatch, let the members do their work at once, fold their reports and answer the client."""
        started = process_time()
        batches = [
            (key, batch.n, msgspec.json.encode(batch)) for key, batch in self._leader.links.flush(self._seq, self._now)
        ]
        self.cpu_s["dispatch"] += process_time() - started
        by_name = {worker.name: worker for worker in self._crew}
        for (role, name, boot), n, payload in batches:
            starts = [item for item in read_dispatch(payload)[0].items if isinstance(item, Start)]
            if starts:
                self._store(by_name[name], [Event(start.task, completed()) for start in starts])
            running = dict.fromkeys(by_name[name].nodes(), 0)
            beat = Heartbeat(role, name, boot, self._leader.state.term, n, self._seq, running, listed=[])
            self._leader.heartbeat(beat, self._now)
        self._answer()

    def _answer(self) -> None:
        started = process_time()
        answers, self._leader.answers = self._leader.answers, []
        outcomes, self._leader.outcomes = self._leader.outcomes, {}
        told = [msgspec.json.encode([receipt for _, receipt in answers])]
        told += [msgspec.json.encode(group) for group in outcomes.values()]
        self.cpu_s["answer"] += process_time() - started
        self.ended += sum(len(group) for group in outcomes.values())


def measure(tasks: int) -> dict[str, float]:
    """CPU microseconds per task of each of `PARTS`, in batches of 256."""
    office = Office()
    for start in range(0, tasks, BATCH):
        office.batch(min(BATCH, tasks - start))
    assert office.ended == tasks, f"{office.ended} of {tasks} tasks ended"
    return {part: round(cpu_s / office.ended * 1e6, 2) for part, cpu_s in office.cpu_s.items()}
