"""The door of a swarm: from a sound submission to a `Submitted` or `Refused` event, and to whoever asked.

A proposal not folded yet is an overlay. Who asked is answered when the fold has accepted it; a raw
submission has nobody to ask again, so it is proposed until it is a task or a refusal in the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.core import commands
from swarmd.core.errors import Conflict, Rejected
from swarmd.core.events import Event, Failure, Refused, Submitted
from swarmd.core.ids import is_uuid7, uuid7_prefix
from swarmd.core.office import AHEAD_MS_MAX, id_taken, too_old
from swarmd.core.state import SwarmState, Task, Tombstone, tombstone
from swarmd.core.wire import Receipt, Submission

if TYPE_CHECKING:
    from swarmd.core.asks import Ask
    from swarmd.core.office import LeaderSettings
    from swarmd.core.placing import Placing


class Door:
    """Serves one leader in one office. `events` is where its decisions go, `again` those to make once more."""

    def __init__(self, state: SwarmState, placing: Placing, settings: LeaderSettings) -> None:
        self._state, self._placing = state, placing
        self._live_tasks_max, self._tenants = settings.limits.live_tasks_max, settings.tenants
        self.proposed: dict[str, tuple[str, list[Ask]]] = {}
        self._entering: dict[str, set[str]] = {}
        self.events: list[Event] = []
        self.again: list[Event] = []
        self.answers: list[tuple[Ask, Receipt]] = []
        self.intake_read = state.intake_seq
        self._intake_folded: set[int] = set()

    # --- what comes in ---

    def submit(
        self, submission: Submission, task_id: str, now_ms: int, packed: bool, ask: Ask, refusing: str
    ) -> Receipt | None:
        """Decide on a checked submission. None: the answer to `ask` follows once the fold has accepted it.

        Raises `Rejected` ("swarm_full", "tenant_full", "store_full", "id_too_old") or `Conflict` ("id_taken").
        """
        content = commands.digest(submission)
        if not self._is_new(task_id, content, ask, now_ms):
            return None if task_id in self.proposed else Receipt(task_id, known=True)
        self._check_room(submission.tenant, refusing)
        self._enter(submission.tenant, task_id, content, [] if ask is None else [ask])
        fact = commands.to_fact(submission, content, self._state.term, now_ms, packed)
        self.events.append(Event(task_id, fact))
        if not fact.not_before_ms:
            self._placing.propose(task_id, fact)
        return None

    def intake(
        self, seq: int, task_id: str, raw: tuple[Submission | Rejected, str], now_ms: int, refusing: str
    ) -> None:
        """What `parse_raw` made of the intake's message at `seq`: it becomes a task or a refusal, never nothing."""
        submission, reply = raw
        self.intake_read = max(self.intake_read, seq)
        if isinstance(submission, Rejected):
            self.refuse(task_id, submission, reply, seq)
            return
        try:
            content = commands.digest(submission)
            if not self._is_new(task_id, content, None, now_ms):
                if task_id not in self.proposed:
                    self._intake_folded.add(seq)
                    return
            else:
                self._check_room(submission.tenant, refusing)
                self._enter(submission.tenant, task_id, content, [])
        except (Rejected, Conflict) as error:
            self.refuse(task_id, error, reply, seq)
            return
        fact = commands.to_fact(submission, content, self._state.term, now_ms, False)
        fact.intake_seq = seq
        self.events.append(Event(task_id, fact))

    def refuse(self, subject: str, error: Rejected | Conflict, reply: str = "", intake_seq: int = 0) -> None:
        """Record that something was turned away."""
        failure = Failure(error.code, error.message[:500])
        fact = Refused(term=self._state.term, failure=failure, reply=reply, intake_seq=intake_seq)
        self.events.append(Event(subject, fact))

    def _is_new(self, task_id: str, content: str, ask: Ask, now_ms: int) -> bool:
        proposed = self.proposed.get(task_id)
        if proposed is not None:
            _check_same(task_id, proposed[0], content)
            if ask is not None:
                proposed[1].append(ask)
            return False
        known = self._known(task_id)
        if known is not None:
            _check_same(task_id, known.digest, content)
            return False
        if self._is_forgotten(task_id):
            raise too_old(task_id)
        # Ids sort by their time, so that most need only the first comparison.
        if task_id[:13] > uuid7_prefix(now_ms + AHEAD_MS_MAX) and is_uuid7(task_id):
            # What is forgotten is known by the youngest such id: one from the future would bar all others.
            raise Rejected("bad_id", f"id {task_id} is of a time that has not come: set the clock that made it")
        return True

    def _known(self, task_id: str) -> Task | Tombstone | None:
        state = self._state
        return state.tasks.get(task_id) or tombstone(state, task_id) or state.dead.get(task_id)

    def _is_forgotten(self, task_id: str) -> bool:
        return task_id <= self._state.forgotten and is_uuid7(task_id)

    def _check_room(self, tenant: str, refusing: str) -> None:
        if refusing:
            raise Rejected("store_full", refusing)
        if self.is_full():
            live = len(self._state.tasks) + len(self.proposed)
            raise Rejected("swarm_full", f"{live} tasks are live, the limit is {self._live_tasks_max}")
        policy, use = self._tenants.get(tenant), self._state.tenants.get(tenant)
        live = (use.live if use is not None else 0) + len(self._entering.get(tenant, ()))
        if policy is not None and 0 < policy.live_max <= live:
            why = f"tenant {tenant!r} has {live} live tasks, its limit is {policy.live_max}"
            raise Rejected("tenant_full", f"{why}: submit again when some have ended")

    def _enter(self, tenant: str, task_id: str, content: str, asks: list[Ask]) -> None:
        """A submission is proposed; of a tenant with a bound it counts from here on."""
        self.proposed[task_id] = (content, asks)
        policy = self._tenants.get(tenant)
        if policy is not None and policy.live_max:
            self._entering.setdefault(tenant, set()).add(task_id)

    def _entered(self, tenant: str, task_id: str) -> tuple[str, list[Ask]]:
        """It is proposed no more."""
        if tenant in self._entering:
            self._entering[tenant].discard(task_id)
        return self.proposed.pop(task_id, ("", []))

    def is_full(self) -> bool:
        """Whether the swarm has as many live tasks as it may have."""
        return len(self._state.tasks) + len(self.proposed) >= self._live_tasks_max

    # --- what became of it ---

    def settle_submitted(self, task_id: str, fact: Submitted, event: Event) -> None:
        """Our own event is folded: answer who asked, and see that a raw submission got its task or refusal."""
        _, asks = self._entered(fact.tenant, task_id)
        self._placing.proposed_is_over(task_id)
        for ask in asks:
            self.answers.append((ask, self._receipt(task_id, fact.digest)))
        if self._is_settled(fact.intake_seq):
            return
        known = self._known(task_id)
        if known is None and self._is_forgotten(task_id):
            self.refuse(task_id, too_old(task_id), fact.reply, fact.intake_seq)
        elif known is None:
            self._enter(fact.tenant, task_id, fact.digest, [])
            self.again.append(event)
        elif known.digest != fact.digest:
            self.refuse(task_id, id_taken(task_id), fact.reply, fact.intake_seq)
        else:
            self._intake_folded.add(fact.intake_seq)

    def settle_refused(self, fact: Refused, event: Event, accepted: bool) -> None:
        """Our own refusal is folded; that of a raw submission is made again until the fold takes it."""
        if not fact.intake_seq:
            return
        if accepted:
            self._intake_folded.add(fact.intake_seq)
        elif not self._is_settled(fact.intake_seq):
            self.again.append(event)

    def dropped(self, task_id: str, fact: Submitted, event: Event, error: Rejected) -> None:
        """The proposal could not be stored: who asked is told, a raw submission is proposed again later."""
        if not fact.intake_seq:
            _, asks = self._entered(fact.tenant, task_id)
            self._placing.withdraw(task_id)
            failure = Failure(error.code, error.message)
            self.answers.extend((ask, Receipt(error=failure)) for ask in asks)
        elif error.code == "too_large":
            self._entered(fact.tenant, task_id)
            self.refuse(task_id, error, fact.reply, fact.intake_seq)
        else:
            self.again.append(event)

    def intake_done(self) -> int:
        """The last place of the intake up to which every raw submission is a task or a refusal in the fold."""
        done = self._state.intake_seq
        self._intake_folded = {seq for seq in self._intake_folded if seq > done}
        while done + 1 in self._intake_folded:
            done += 1
        return done

    def _is_settled(self, intake_seq: int) -> bool:
        """Whether the fold has this place of the intake (0: no place) behind it."""
        return intake_seq <= self._state.intake_seq or intake_seq in self._intake_folded

    def _receipt(self, task_id: str, content: str) -> Receipt:
        task = self._state.tasks.get(task_id)
        if task is not None and task.digest == content:
            return Receipt(task_id)
        known = task or tombstone(self._state, task_id)
        if known is None:
            return Receipt(error=Failure("not_leader", "the submission was not accepted: submit it again"))
        if known.digest != content:
            return Receipt(error=Failure("id_taken", f"id {task_id} belongs to another task"))
        return Receipt(task_id)


def _check_same(task_id: str, known: str, content: str) -> None:
    if known != content:
        raise id_taken(task_id)
