"""One seed from beginning to end: faults while clients submit, then healing, then everything must converge."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Raw

from swarmd.core import commits, hedging, policies, quarantine, snapshot
from swarmd.core.codec import Packer, message_id
from swarmd.core.events import TYPES, Completed, Elected, Event, Fact, Limit, Schedule
from swarmd.core.keys import KeyPolicy
from swarmd.core.office import LeaderSettings
from swarmd.core.placement import TenantPolicy
from swarmd.core.policies import PlacementSettings
from tests.sim import script as scripts
from tests.sim.breaks import broken
from tests.sim.checks import Violation
from tests.sim.client import Client
from tests.sim.delegate import SLOTS, ChildSwarm, Delegate
from tests.sim.member import Worker
from tests.sim.orchestrator import Orchestrator, Settings, Swarm, limits
from tests.sim.people import Person
from tests.sim.world import EPOCH_MS, Process, World

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Once faults stop, everything must have ended within this much virtual time.
CONVERGE_MS = 60_000
SHORT_HORIZON = 250
#: What the swarm and a tenant may spend, by turns: nothing limited, much, little, little each day.
LIMITS: list[dict[str, Limit]] = [
    {},
    {"swarm": Limit(tokens=10_000, steps=4_000)},
    {"swarm": Limit(tokens=400), "tenant:acme": Limit(steps=30)},
    {"swarm": Limit(steps=90, period="day"), "tenant:acme": Limit(tokens=60, period="day")},
]
#: How late a deadline may be noticed once faults have stopped: an election and some repeats.
OVERDUE_MS = 4_000


class Simulation:
    """A small swarm: 2 or 3 orchestrators, 2 or 3 worker processes, a delegate, clients, and what befalls them."""

    def __init__(self, seed: int, broken: str = "", ahead_ms: int = 0) -> None:
        self.seed = seed
        self.world = world = World(seed)
        chance, faults = world.chance, world.faults
        self.faults = faults.copy()
        self.span_ms = chance.choice((800, 2_000, 4_000))
        settings = LeaderSettings(
            limits(faults.short_memory),
            lease_ms=500,
            resend_ms=120,
            gone_ms=180,
            settle_ms=100,
            stall_ms=200,
            budgets=LIMITS[seed % 4],
            schedules=self._schedules(),
            placement=PlacementSettings(
                hedge_share=chance.choice((0.0, 0.5, 1.0, 1.0)), hedge_quantile=0.6, ageing_ms=100
            ),
            tenants={"acme": TenantPolicy(weight=0.5), "small": TenantPolicy(slots_max=2, live_max=4)},
            keys={"pair-*": KeyPolicy(2), "rate": KeyPolicy(3, per_minute=600), "leaf": KeyPolicy(4)},
        )
        self.swarm = Swarm(world, Settings("sim", settings, broken))
        self.leaders = [Orchestrator(self.swarm, f"lead{n}") for n in range(chance.randint(2, 3))]
        for number, leader in enumerate(self.leaders):
            leader.ahead_ms = (0, ahead_ms, -ahead_ms)[number]
        self._step_ms = ahead_ms
        self.workers = [Worker(self.swarm, f"work{n}") for n in range(chance.randint(2, 3))]
        self.done: Counter[str] = Counter()
        self.children = [ChildSwarm(world, name, self.done, broken) for name in ("kid", "kin")]
        self.speakers = {child.name: Delegate(self.swarm, child) for child in self.children}
        self.delegates = list(self.speakers.values())
        tasks = chance.randint(8, 30)
        self.clients = [Client(self.swarm, f"client{n}", tasks // 2, self.span_ms) for n in range(2)]
        self.people = [Person(self.swarm, f"person{n}") for n in range(2)]
        self.snapshot_at = chance.randint(1, 400)

    def _schedules(self) -> dict[str, Schedule]:
        """Intervals that begin within the span and end soon after it, so that everything converges."""
        chance = self.world.chance
        begin, end = EPOCH_MS + chance.randint(-500, 1_000), EPOCH_MS + self.span_ms + chance.randint(0, 3_000)
        script = Raw(scripts.encode(scripts.Script(steps=1)))
        found = {}
        for name in ("tick", "tock")[: chance.randint(0, 2)]:
            every = chance.choice((100, 150, 400, 1_100))
            found[name] = Schedule(
                name,
                "work",
                script,
                every_ms=every,
                not_before_ms=begin,
                until_ms=end,
                missed=chance.choice(("all", "all", "once", "skip")),
                grace_ms=chance.choice((0, 600, 60_000)),
                overlap="skip" if chance.random() < 0.5 else "allow",
                declared=True,
            )
        return found

    def run(self) -> None:
        """Raise `Violation` if the core breaks a promise."""
        everyone: list[Process] = [*self.leaders, *self.workers, *self.delegates, *self.clients, *self.people]
        for process in everyone:
            process.start()
        self._plan_intake()
        self._plan_faults()
        if self._step_ms:
            self._plan_steps()
        world = self.world
        world.run(EPOCH_MS + self.span_ms)
        self._heal()
        if not world.run(world.now_ms + CONVERGE_MS, self._converged):
            raise Violation(f"no convergence {CONVERGE_MS} ms after the faults stopped: {self._unfinished()}")
        self._final_checks()

    # --- what befalls them ---

    def _plan_intake(self) -> None:
        world = self.world
        if not world.faults.intake or world.faults.short_memory:
            return
        for _ in range(world.chance.randint(1, 6)):
            script = scripts.draw(world.chance)
            payload = b'{"agent":"%b","input":%b}' % (script.agent.encode(), scripts.encode(script))
            if world.chance.random() < 0.2:
                payload = world.chance.choice((b"{", b'{"agent":"a b"}', b'{"agent":"work","colour":1}', b"[]"))
            world.at(world.chance.randint(0, self.span_ms), partial(self.swarm.intake.append, payload))

    def _plan_faults(self) -> None:
        world, chance, faults = self.world, self.world.chance, self.world.faults
        plan = [
            (faults.crash_workers, lambda: self._bounce(chance.choice(self.workers))),
            (faults.freeze_workers, lambda: chance.choice(self.workers).freeze(chance.randint(100, 2_500))),
            (faults.drain_workers, lambda: self._drain(chance.choice(self.workers))),
            (faults.crash_leaders, lambda: self._bounce(chance.choice(self.leaders))),
            (faults.freeze_leaders, lambda: chance.choice(self.leaders).freeze(chance.randint(100, 2_500))),
            (faults.restart_delegate, self._restart_delegate),
            (faults.busy_children, self._busy_child),
            (faults.cut_off, self._cut_off),
            (faults.broker_outages, self._outage),
            (faults.garbage, self._scribble),
        ]
        for enabled, action in plan:
            if enabled:
                for _ in range(chance.randint(1, 4)):
                    world.at(chance.randint(50, self.span_ms), action)

    def _plan_steps(self) -> None:
        """The clock of each orchestrator steps to where another's was, forwards and back."""

        def step(leader: Orchestrator, ahead_ms: int) -> None:
            self.world.say(f"the clock of {leader.name} steps to {ahead_ms} ms ahead")
            leader.ahead_ms = ahead_ms

        for number, leader in enumerate(self.leaders):
            for turn in range(1, 4):
                ahead_ms = (0, self._step_ms, -self._step_ms)[(number + turn) % 3]
                self.world.at(self.span_ms * turn // 4 + 17 * number, partial(step, leader, ahead_ms))
            self.world.at(self.span_ms, partial(step, leader, 0))

    def _bounce(self, process: Process) -> None:
        process.crash()
        self.world.at(self.world.chance.randint(50, 1_500), process.start)

    def _drain(self, worker: Worker) -> None:
        worker.drain()
        self.world.at(self.world.chance.randint(800, 2_500), lambda: self._after_drain(worker))

    def _after_drain(self, worker: Worker) -> None:
        """Whoever has not drained in time is killed, as a service manager would."""
        if worker.draining or not worker.alive:
            worker.crash()
            worker.start()

    def _restart_delegate(self) -> None:
        """A new process speaks for the child; the old one may return as a zombie."""
        child = self.world.chance.choice(self.children)
        old = self.speakers[child.name]
        if self.world.chance.random() < 0.5:
            old.crash()
        else:
            old.freeze(self.world.chance.randint(100, 1_500))
            self.world.at(self.world.chance.randint(1_500, 3_000), old.crash)
        fresh = self.speakers[child.name] = Delegate(self.swarm, child)
        fresh.start()

    def _busy_child(self) -> None:
        """A child's own clients take its slots for a while, just when much was handed to it."""
        world, chance = self.world, self.world.chance
        child = chance.choice(self.children)
        delay_ms = 0
        if not world.faults.short_memory:
            for _ in range(chance.randint(2, 8)):
                self.swarm.intake.append(b'{"agent":"remote","input":{"steps":1}}')
            delay_ms = chance.choice((0, 60, 150))  # before these are handed over, on their way, or there
        world.at(delay_ms, partial(self._take_slots, child, chance.choice((2, SLOTS, SLOTS))))
        world.at(delay_ms + chance.randint(300, 3_000), partial(setattr, child, "own", 0))

    def _take_slots(self, child: ChildSwarm, slots: int) -> None:
        if self.world.faults.busy_children:
            child.own = slots
            self.world.say(f"{child.name}: {slots} slots are taken by its own clients")

    def _cut_off(self) -> None:
        names = [p.name for p in (*self.leaders, *self.workers, *self.delegates, *self.clients)]
        chosen = self.world.chance.sample(names, self.world.chance.randint(1, 2))
        self.world.say(f"cut off: {chosen}")
        self.world.cut.update(chosen)
        self.world.at(self.world.chance.randint(100, 1_800), lambda: self.world.cut.difference_update(chosen))

    def _outage(self) -> None:
        self.world.say("the broker is down")
        self.swarm.log.down = True
        self.world.at(self.world.chance.randint(50, 900), lambda: setattr(self.swarm.log, "down", False))

    def _scribble(self) -> None:
        """Somebody writes into the log what does not belong there."""
        chance, log = self.world.chance, self.swarm.log
        tasks = sorted(self.swarm.oracle.state.tasks) or ["none"]
        task = chance.choice(tasks)

        def event(subject: str, fact: Fact) -> bytes:
            packer = Packer()
            packer.add(Event(subject, fact, TYPES[type(fact)]))
            return packer.payload()

        done = Completed(epoch=chance.randint(1, 3), output=Raw(b'"forged"'))
        subject, payload = chance.choice(
            [
                ("swarm.sim.log.worker.stranger", b"\xff\x00 no json"),
                ("swarm.sim.log.worker.stranger", b'[{"type":"x","subject":"y","data":1}]'),
                ("swarm.sim.log.worker", b"[]"),
                ("swarm.sim.log.worker.stranger", event(task, done)),
                ("swarm.sim.log.worker.work0", event(task, done)),
                ("swarm.sim.log.worker.work0", event("sim", Elected(term=99))),
                ("swarm.sim.log.client.client0", event(task, done)),
                ("swarm.sim.log.delegate.kid", event(task, done)),
            ]
        )
        log.store(subject, payload, message_id(f"{self.world.bits(32):x}", 1), len(log.records))

    # --- the end ---

    def _heal(self) -> None:
        """Faults stop and a majority of things is well; one worker or orchestrator may stay dead."""
        world = self.world
        world.say("faults stop")
        world.faults.calm()
        world.cut.clear()
        self.swarm.log.down = False
        for child in self.children:
            child.own = 0
        leaders, workers = list(self.leaders), list(self.workers)
        if len(leaders) == 3 and world.chance.random() < 0.3:
            leaders.pop(world.chance.randrange(3)).crash()
        if len(workers) == 3 and world.chance.random() < 0.3:
            workers.pop(world.chance.randrange(3)).crash()
        self._standing: list[Process] = [*leaders, *workers, *self.speakers.values(), *self.clients]
        for person in self.people:
            person.stubborn = True
        self._tend()
        world.at(OVERDUE_MS, self._check_deadlines)

    def _check_deadlines(self) -> None:
        """Somebody leads by now: whoever missed a deadline has been told so."""
        for task in self.swarm.oracle.state.tasks.values():
            if 0 < task.deadline_at_ms < self.world.now_ms - OVERDUE_MS:
                raise Violation(f"{task.id} is {task.state} long after its deadline")

    def _tend(self) -> None:
        """A service manager: whoever should run and does not is started again."""
        for process in self._standing:
            process.thaw()
            process.start()
        self.world.at(500, self._tend)

    def _converged(self) -> bool:
        swarm, state = self.swarm, self.swarm.oracle.state
        if state.tasks or state.untold or state.intake_seq != len(swarm.intake):
            return False
        if any(planned.schedule.until_ms > self.world.now_ms - 2_000 for planned in state.schedules.values()):
            return False
        if not all(client.done() for client in self.clients):
            return False
        return all(
            leader.leader.state.seq == state.seq for leader in self.leaders if leader.alive and not leader.frozen
        )

    def _unfinished(self) -> str:
        state = self.swarm.oracle.state
        tasks = [
            f"{t.id} {t.agent} {t.state} epoch {t.epoch} {list(t.attempts)} {t.waits}" for t in state.tasks.values()
        ]
        wishes = [
            f"{w.submission.id} {w.accepted} {w.outcome}" for c in self.clients for w in c.wishes if not w.outcome
        ]
        behind = {o.name: (o.alive, o.leader.leading, o.leader.state.seq) for o in self.leaders}
        intake = f"intake {state.intake_seq}/{len(self.swarm.intake)}"
        return f"tasks {tasks}, wishes {wishes}, untold {state.untold}, {intake}, log {state.seq}, {behind}"

    def _final_checks(self) -> None:
        oracle, swarm = self.swarm.oracle, self.swarm
        oracle.check_invariants()
        oracle.check_replay(swarm.log.records, min(self.snapshot_at, len(swarm.log.records) - 1))
        truth = snapshot.encode(oracle.state)
        for leader in self.leaders:
            if leader.alive and snapshot.encode(leader.leader.state) != truth:
                raise Violation(f"the fold of {leader.name} differs from the log's")
            if leader.alive:
                oracle.check_overlays(leader.leader)
        for task_id in sorted(oracle.accepted):
            if task_id not in oracle.verdicts:
                raise Violation(f"{task_id} was accepted and never got a verdict")
        for task_id, times in self.done.items():
            if times > 1 + oracle.redriven[task_id]:
                raise Violation(f"{task_id} was run to its end {times} times in child swarms")
        checked = [] if self._step_ms else list(oracle.state.schedules.values())  # by a wrong clock slots are missed
        for planned in checked:
            oracle.check_slots(planned, self.swarm.settings.leader.schedules)
        for client in self.clients:
            for wish in client.wishes:
                if wish.accepted and wish.submission.id not in oracle.verdicts:
                    raise Violation(f"{wish.submission.id} was promised to {client.name} and lost")


@contextmanager
def hasty() -> Iterator[None]:
    """A few runs are enough to learn from, so that short histories have hedges and quarantines too."""
    wanted = [(hedging, "RUNS_MIN", 3), (policies, "RUNS_MIN", 4), (quarantine, "ENDED_MIN", 2)]
    wanted += [(quarantine, "LOOK_MS", 80), (quarantine, "PROBE_MS", 200), (quarantine, "PROBES_MIN", 1)]
    usual = [(where, name, getattr(where, name)) for where, name, _ in wanted]
    try:
        for where, name, value in wanted:
            setattr(where, name, value)
        yield
    finally:
        for where, name, value in usual:
            setattr(where, name, value)


def simulate(seed: int, break_: str = "", ahead_ms: int = 0) -> Simulation:
    """Run one seed, with one rule of the core broken on wish. Raises `Violation` with how to repeat it.

    With `ahead_ms` the clocks of orchestrators differ by so much, and step while they lead.
    """
    simulation = Simulation(seed, break_, ahead_ms)
    horizon = (commits.HORIZON, commits.SWEEP_EVERY)
    with broken(break_), hasty():
        if simulation.world.faults.short_horizon:
            commits.HORIZON, commits.SWEEP_EVERY = SHORT_HORIZON, 64  # type: ignore[misc]
        try:
            simulation.run()
        except Violation as violation:
            raise Violation(f"seed {seed}: {violation}\nrepeat with: make sim SEED={seed}") from violation
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise Violation(f"seed {seed}: {error!r} stopped it\nrepeat with: make sim SEED={seed}") from error
        finally:
            commits.HORIZON, commits.SWEEP_EVERY = horizon  # type: ignore[misc]
    return simulation
