"""A simulated client: submits, repeats after silence under the same id, cancels, redrives, asks for outcomes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, Raw, Struct

from swarmd.core import ids, subjects
from swarmd.core.events import Budget, RetryPolicy
from swarmd.core.wire import Feedback, Outcome, Receipt, Submission, TaskQuery
from tests.sim import script as scripts
from tests.sim.world import Process

if TYPE_CHECKING:
    from tests.sim.bus import Receive
    from tests.sim.orchestrator import Swarm

#: Errors after which the same request may well succeed.
PASSING = frozenset({"not_leader", "swarm_full", "store_full", "tenant_full"})


class Wish(Struct):
    """One task that a client wants, and what it was told about it."""

    submission: Submission
    at_ms: int
    cancel_at_ms: int = 0
    redrives: int = 0
    accepted: bool = False
    refused: str = ""
    outcome: str = ""


class Client(Process):
    """Stubborn: asks until it knows the outcome of every wish."""

    def __init__(self, swarm: Swarm, name: str, wishes: int, span_ms: int) -> None:
        super().__init__(swarm.world, name)
        self._swarm = swarm
        self.wishes = [self._wish(n, span_ms) for n in range(wishes)]

    def _wish(self, n: int, span_ms: int) -> Wish:
        world, chance = self.world, self.world.chance
        at_ms = world.now_ms + chance.randint(0, span_ms)
        task_id = ids.uuid7(at_ms, world.bits(74))
        if chance.random() < 0.3 and not world.faults.short_memory:
            task_id = f"{self.name}-{n}"
        script = scripts.draw(chance)
        retry = RetryPolicy(attempts_max=chance.randint(1, 4), backoff_ms=50, backoff_ms_max=400)
        submission = Submission(
            script.agent, Raw(scripts.encode(script)), task_id, priority=chance.choice((0, 0, 0, 5, -5)), retry=retry
        )
        if n % 4 == 1:
            submission.budget = Budget(tokens=5 + 7 * (n % 5), steps=3 + n % 7)
        if n % 3 == 0:
            submission.tenant = "acme"
        elif not script.children and chance.random() < 0.4:
            submission.tenant = "small"
        submission.concurrency_key = chance.choice(("", "", "", "one", "pair-a", "rate")) if not script.children else ""
        if chance.random() < 0.1:
            submission.timeout_ms = chance.randint(200, 3_000)
        if chance.random() < 0.1:
            submission.not_before_ms = at_ms + chance.randint(-100, 1_500)
        if chance.random() < 0.5:
            submission.reply = f"inbox.{self.name}.{n}"
        wish = Wish(submission, at_ms)
        if chance.random() < 0.12:
            wish.cancel_at_ms = at_ms + chance.randint(20, 2_000)
        if chance.random() < 0.5:
            wish.redrives = 1
        return wish

    def boot(self) -> None:
        for n, wish in enumerate(self.wishes):
            self._swarm.bus.subscribe(self, f"inbox.{self.name}.{n}", self._hearing_outcome(wish))
            self._swarm.bus.subscribe(self, f"inbox.{self.name}.{n}.submit", self._hearing_receipt(wish))
            self.later(wish.at_ms - self.world.now_ms, partial(self._pursue, n))

    def _pursue(self, n: int) -> None:
        """One more request for this wish, whichever is due."""
        wish = self.wishes[n]
        if wish.refused or self.settled(wish):
            return
        self.later(self.world.chance.randint(200, 500), lambda: self._pursue(n))
        task_id, inbox = wish.submission.id, f"inbox.{self.name}.{n}"
        if not wish.accepted:
            self._request("submit", msgspec.json.encode(wish.submission), f"{inbox}.submit")
            return
        query = msgspec.json.encode(TaskQuery(task_id, 1_000))
        if wish.cancel_at_ms and self.world.now_ms >= wish.cancel_at_ms:
            self._request("cancel", query, inbox)
        if wish.outcome == "dead" and wish.redrives:
            self._request("redrive", query, inbox)
            if self.world.chance.random() < 0.4:
                wish.redrives -= 1
                wish.outcome = ""
        self._request("result", query, inbox)

    def settled(self, wish: Wish) -> bool:
        """Whether the client has nothing more to ask."""
        return bool(wish.outcome) and not (wish.outcome == "dead" and wish.redrives)

    def _request(self, verb: str, payload: bytes, reply: str) -> None:
        self._swarm.bus.publish(self, subjects.ctl(self._swarm.swarm, verb), payload, reply)

    def _hearing_receipt(self, wish: Wish) -> Receive:
        def receive(payload: bytes, reply: str) -> None:
            receipt = msgspec.json.decode(payload, type=Receipt)
            if receipt.task:
                wish.accepted = True
            elif receipt.error is not UNSET and receipt.error.code not in PASSING and not wish.accepted:
                wish.refused = receipt.error.code

        return receive

    def _hearing_outcome(self, wish: Wish) -> Receive:
        def receive(payload: bytes, reply: str) -> None:
            outcome = msgspec.json.decode(payload, type=Outcome)
            if outcome.final and not self.settled(wish):  # an older outcome may arrive late
                wish.accepted = True
                wish.outcome = outcome.state
                judged = Feedback(outcome.task, self.world.chance.choice((-1.0, 0.5, 1.0)), "seen", self.name)
                self._request("feedback", msgspec.json.encode(judged), "")

        return receive

    def done(self) -> bool:
        """Whether every wish has its answer."""
        return all(wish.refused or self.settled(wish) for wish in self.wishes)
