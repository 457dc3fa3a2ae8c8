"""Simulated people: they answer questions, signal, tell, pause and resume, and contradict each other while they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw

from swarmd.core import subjects
from swarmd.core.wire import Answered, Instruction, Signal
from tests.sim.member import EVENTS
from tests.sim.world import Process

if TYPE_CHECKING:
    from msgspec import Struct

    from tests.sim.orchestrator import Swarm


class Person(Process):
    """Acts on what stands in the log, which it sees at once; while `stubborn`, until nothing waits for people."""

    def __init__(self, swarm: Swarm, name: str) -> None:
        super().__init__(swarm.world, name)
        self._swarm = swarm
        self._said = 0
        self.stubborn = False

    def boot(self) -> None:
        self._look()

    def _look(self) -> None:
        self.later(self.world.chance.randint(60, 300), self._look)
        state, chance = self._swarm.oracle.state, self.world.chance
        for question in list(state.questions):
            if self.stubborn or chance.random() < 0.3:
                self._answer(question)
        if state.closed and chance.random() < 0.2:
            self._answer(chance.choice(list(state.closed)))
        for name in list(state.listeners) if self.stubborn else EVENTS:
            if self.stubborn or chance.random() < 0.1:
                self._ask("signal", Signal(name))
        for task in list(state.tasks.values()):
            if task.paused and (self.stubborn or chance.random() < 0.3):
                self._ask("resume", Instruction(task.id))
            elif not self.stubborn and chance.random() < 0.03:
                self._ask("pause", Instruction(task.id))
            elif not self.stubborn and chance.random() < 0.05:
                self._ask("tell", Instruction(task.id, text=self._next()))

    def _answer(self, question: str) -> None:
        """One answer, or two different ones at once."""
        for _ in range(self.world.chance.choice((1, 1, 2))):
            self._ask("answer", Answered(question, Raw(b"true"), by=self._next()))

    def _next(self) -> str:
        self._said += 1
        return f"{self.name}-{self._said}"

    def _ask(self, verb: str, request: Struct) -> None:
        self._swarm.bus.publish(self, subjects.ctl(self._swarm.swarm, verb), msgspec.json.encode(request), verb)
