"""A simulated orchestrator: the real `Leader` in a shell that mirrors the role's rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from swarmd.core import commands, ids, snapshot, subjects
from swarmd.core.codec import Garbage, Record, read_back
from swarmd.core.errors import Conflict, Rejected
from swarmd.core.events import Assigned, Event, Fact, Failure, Paused, Resolved, Signalled, Submitted, Told, Unpaused
from swarmd.core.leader import Leader
from swarmd.core.office import LeaderSettings, start_of
from swarmd.core.outcomes import outcome_at
from swarmd.core.state import Attempt, Limits, Place, SwarmState
from swarmd.core.wire import (
    Answered,
    Beat,
    Feedback,
    Heartbeat,
    Instruction,
    Outcome,
    Receipt,
    Signal,
    Submission,
    TaskQuery,
)
from swarmd.cron import Cron
from tests.sim.bus import Bus
from tests.sim.checks import Oracle
from tests.sim.log import SimLog, Writer
from tests.sim.world import Process, World

if TYPE_CHECKING:
    from collections.abc import Callable

TICK_MS: Final = 40
LEASE_TTL_MS: Final = 700
_beats: Final = msgspec.json.Decoder(Heartbeat)


class Settings(Struct, frozen=True):
    """What all parts of one simulated swarm share."""

    swarm: str
    leader: LeaderSettings
    broken: str = ""


class Said(Struct, frozen=True):
    """An answer to a question by somebody, who will hear whether it is the one that counts."""

    task: str
    key: str
    by: str


class Swarm:
    """The things outside every process: broker, intake, lease, stored snapshots, and the observer."""

    def __init__(self, world: World, settings: Settings) -> None:
        self.world, self.settings = world, settings
        self.swarm = settings.swarm
        self.oracle = Oracle(settings.swarm, settings.leader)
        self.log = SimLog(world, settings.swarm, self.oracle.stored)
        self.bus = Bus(world)
        self.intake: list[bytes] = []
        self.lease: tuple[str, int] = ("", 0)
        self.snapshots: list[bytes] = []


class Orchestrator(Process):
    """Leads or stands by; forgets everything in a crash and starts from a snapshot or from the log's beginning."""

    def __init__(self, swarm: Swarm, name: str) -> None:
        super().__init__(swarm.world, name)
        self._swarm = swarm
        self.leader: Leader
        self._writer: Writer
        self._campaign_at_ms = 0
        self._reading = False
        #: How far its clock is ahead of everybody else's; it may change at any time.
        self.ahead_ms = 0

    @property
    def now_ms(self) -> int:
        """The time by its own clock."""
        return self.world.now_ms + self.ahead_ms

    def boot(self) -> None:
        swarm, world = self._swarm, self.world
        boot = f"{world.bits(64):016x}"
        state = SwarmState(swarm.swarm)
        if swarm.snapshots and world.chance.random() < 0.6:
            state = snapshot.decode(world.chance.choice(swarm.snapshots))
        self.leader = Leader(state, self.name, boot, swarm.settings.leader, Cron())
        self._writer = Writer(self, swarm.log, "orchestrator", self.name, boot)
        self._writer.dropped = self.leader.dropped
        self._campaign_at_ms = 0
        self._reading = False
        swarm.log.follow(self, self._read_on)
        listen: list[tuple[str, Callable[[bytes, str], None]]] = [
            (subjects.ctl(swarm.swarm, "submit"), self._on_submit),
            (subjects.ctl(swarm.swarm, "result"), self._on_result),
            (subjects.ctl(swarm.swarm, "cancel"), self._on_cancel),
            (subjects.ctl(swarm.swarm, "redrive"), self._on_redrive),
            (subjects.ctl(swarm.swarm, "answer"), self._on_answer),
            (subjects.ctl(swarm.swarm, "signal"), self._on_signal),
            (subjects.ctl(swarm.swarm, "feedback"), self._on_feedback),
            *((subjects.ctl(swarm.swarm, verb), self._on_instruction) for verb in ("tell", "pause", "resume")),
            ("health", self._on_heartbeat),
        ]
        for subject, receive in listen:
            swarm.bus.subscribe(self, subject, receive)
        self._read_on()
        self._tick()

    # --- the log ---

    def _read_on(self) -> None:
        log, leader = self._swarm.log, self.leader
        if log.down or self.name in self.world.cut:
            self.later(200, self._read_on)
            return
        for record in log.records[leader.state.seq :]:
            sent = self._writer.sent.get(record.message_id)
            commit = self._swarm.oracle.codec.decode(record) if sent is None else read_back(record, sent)
            leader.fold(commit, self.now_ms)
            if isinstance(commit, Garbage):
                continue
            self._writer.seen = max(self._writer.seen, record.seq)
            if not leader.leading and record.seq % 40 == 0:
                self._swarm.snapshots.append(snapshot.encode(leader.state))
        self._send()

    def _tick(self) -> None:
        self.later(TICK_MS + self.world.chance.randint(0, 10), self._tick)
        now_ms, leader = self.now_ms, self.leader
        self._hold_lease()
        leader.tick(now_ms)
        if leader.leading:
            self._probe()
            self._take_intake()
            beat = Beat(leader.state.term, leader.state.seq, self.name)
            self._swarm.bus.publish(self, "beat", msgspec.json.encode(beat))
        self._send()

    def _probe(self) -> None:
        """The broker tells at once whether anybody listens to a silent process' dispatch."""
        swarm, leader = self._swarm, self.leader
        for key in leader.links.to_probe(self.now_ms):
            if not (swarm.log.down or swarm.bus.listens(self, subjects.dispatch(swarm.swarm, *key))):
                leader.unheard(key, self.now_ms)

    def _hold_lease(self) -> None:
        """The lease is a hint: whoever holds it campaigns; the log's term decides."""
        swarm, now_ms = self._swarm, self.world.now_ms
        if self.name in self.world.cut or swarm.log.down:
            return
        holder, until_ms = swarm.lease
        if holder in ("", self.name) or until_ms <= now_ms:
            swarm.lease = (self.name, now_ms + LEASE_TTL_MS)
        hasty = self.world.maybe(self.world.faults.two_leaders, 0.02)
        if (swarm.lease[0] == self.name or hasty) and not self.leader.leading and now_ms >= self._campaign_at_ms:
            self._campaign_at_ms = now_ms + 600
            self._writer.append([self.leader.campaign()])

    def _take_intake(self) -> None:
        swarm, leader = self._swarm, self.leader
        if self.name in self.world.cut or swarm.log.down:
            return
        for seq in range(leader.intake_read + 1, len(swarm.intake) + 1):
            task_id = ids.intake_id("sim", seq)
            raw = commands.parse_raw(swarm.intake[seq - 1])
            named = raw[0].id if isinstance(raw[0], Submission) else ""
            leader.intake(seq, named or task_id, raw, self.now_ms)

    def _send(self) -> None:
        """Whatever the leader wants stored, dispatched, answered and told."""
        swarm, leader, now_ms = self._swarm, self.leader, self.now_ms
        while self._writer.free:
            events = leader.decide()
            if not events:
                break
            self._writer.append(events, self._stored(events))
        batches = leader.links.flush(leader.state.seq, now_ms) + leader.links.overdue(now_ms)
        for (role, writer, boot), dispatch in batches:
            if leader.leading:
                subject = subjects.dispatch(swarm.swarm, role, writer, boot)
                swarm.bus.publish(self, subject, msgspec.json.encode(dispatch))
        answers, leader.answers = leader.answers, []
        for ask, answer in answers:
            self._answer(ask, answer)
        outcomes, leader.outcomes = leader.outcomes, {}
        for (reply, _), told in outcomes.items():
            for outcome in told:
                self._answer(reply, outcome)
        if leader.owed and not self._reading:
            self._reading = True
            owed = leader.owed[0]
            self._outcome_at(owed.task, owed.buried.verdict, lambda outcome: self._pay(outcome, owed.reply))

    def _pay(self, outcome: Outcome, reply: str) -> None:
        self._reading = False
        if self.leader.owed and self.leader.owed[0].task == outcome.task:
            self.leader.owed.pop(0)
            self._answer(reply, outcome)
            self._send()

    def _stored(self, events: list[Event]) -> Callable[[int], None] | None:
        """With the rule 'stored is not accepted' broken, the receipt is taken for acceptance."""
        if self._swarm.settings.broken != "stored":
            return None

        def believe(_: int) -> None:
            leader = self.leader
            for event in events:
                task = leader.state.tasks.get(event.subject)
                if isinstance(event.data, Submitted):
                    for ask in leader.door.proposed.get(event.subject, ("", []))[1]:
                        self._answer(ask, Receipt(event.subject))
                elif isinstance(event.data, Assigned) and task and event.data.member in leader.state.members:
                    member = leader.state.members[event.data.member]
                    attempt = Attempt(event.data.epoch, event.data.member, dict(task.journal))
                    leader.links.send(member, start_of(task, attempt))

        return believe

    # --- requests ---

    def _answer(self, reply: str | Said, answer: Receipt | Outcome) -> None:
        oracle = self._swarm.oracle
        if isinstance(reply, Said):
            if isinstance(answer, Receipt):
                oracle.told_answer(reply.task, reply.key, reply.by, answer)
            return
        if isinstance(answer, Outcome):
            oracle.told_outcome(answer)
        elif answer.task:
            oracle.told_accepted(answer.task)
        self._swarm.bus.publish(self, reply, msgspec.json.encode(answer))

    def _on_submit(self, payload: bytes, reply: str) -> None:
        leader = self.leader
        if not leader.leading:
            return
        try:
            submissions, packed = commands.parse_submissions(payload)
            submission = commands.check(submissions[0])
            receipt = leader.submit(submission, submission.id, self.now_ms, packed, reply)
        except (Rejected, Conflict) as error:
            receipt = Receipt(error=Failure(error.code, error.message))
        if receipt is not None:
            self._answer(reply, receipt)
        self._send()

    def _on_result(self, payload: bytes, reply: str) -> None:
        query = msgspec.json.decode(payload, type=TaskQuery)
        try:
            buried = self.leader.await_outcome(query.task, reply)
            place = None if buried is None else buried.verdict
        except Rejected as error:
            place = self._swarm.oracle.find(query.task, self.leader.state.seq) if error.code == "unknown_task" else None
        if place is not None:
            self._outcome_at(query.task, place, lambda outcome: self._answer(reply, outcome))

    def _on_cancel(self, payload: bytes, reply: str) -> None:
        self._command(lambda query: self.leader.cancel(query.task, "wanted"), payload)

    def _on_redrive(self, payload: bytes, reply: str) -> None:
        self._command(lambda query: self.leader.redrive(query.task), payload)

    def _command(self, command: Callable[[TaskQuery], None], payload: bytes) -> None:
        try:
            command(msgspec.json.decode(payload, type=TaskQuery))
        except Rejected:
            return
        self._send()

    def _on_answer(self, payload: bytes, reply: str) -> None:
        said, state = msgspec.json.decode(payload, type=Answered), self.leader.state
        task, key = state.questions.get(said.id, ("", ""))
        if task:
            fact = Resolved(term=state.term, key=key, value=said.value, by=said.by)
            self._propose(task, fact, Said(task, key, said.by))

    def _on_signal(self, payload: bytes, reply: str) -> None:
        signal = msgspec.json.decode(payload, type=Signal)
        fact = Signalled(term=self.leader.state.term, name=signal.name, value=signal.value, task=signal.task)
        self._propose(self._swarm.swarm, fact)

    def _on_feedback(self, payload: bytes, reply: str) -> None:
        try:
            self.leader.rate(msgspec.json.decode(payload, type=Feedback))
        except Rejected:
            return
        self._send()

    def _on_instruction(self, payload: bytes, reply: str) -> None:
        wanted, term = msgspec.json.decode(payload, type=Instruction), self.leader.state.term
        fact: Fact = Told(term=term, text=wanted.text)
        if reply != "tell":
            fact = Paused(term=term) if reply == "pause" else Unpaused(term=term)
        self._propose(wanted.task, fact)

    def _propose(self, subject: str, fact: Fact, ask: Said | None = None) -> None:
        try:
            self.leader.propose(Event(subject, fact), ask)
        except Rejected:
            return
        self._send()

    def _on_heartbeat(self, payload: bytes, reply: str) -> None:
        if self.leader.leading:
            self.leader.heartbeat(_beats.decode(payload), self.now_ms)
            self._send()

    def _outcome_at(self, task_id: str, place: Place, then: Callable[[Outcome], None]) -> None:
        """Read a verdict back from the log, as it is done long after the end."""

        def found(records: list[Record]) -> None:
            then(outcome_at(self._swarm.oracle.codec.decode(records[0]), task_id, place))

        self._swarm.log.read(self, [place[0]], found)


def limits(short_memory: bool) -> Limits:
    return Limits(remembered_max=12 if short_memory else 100_000, dead_max=50, losses_max=25)
