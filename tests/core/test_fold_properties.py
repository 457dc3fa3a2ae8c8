"""Properties of the fold over any log."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core import effects as fx
from swarmd.core import snapshot
from swarmd.core.codec import Codec
from swarmd.core.evolve import apply
from swarmd.core.office import LeaderSettings
from swarmd.core.state import TERMINAL, SwarmState
from tests.core.facts import WRITERS, logs
from tests.core.history import CHILD, NODE, OTHER, History, offer, submission
from tests.sim.checks import Oracle

Log = list[tuple[tuple[str, str, str], list[tuple[str, Any]]]]


class Verdicts:
    """A verdict is final unless its task is redriven."""

    def __init__(self) -> None:
        self.ended: set[str] = set()

    def look(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, fx.Ended):
                assert effect.state in TERMINAL
                assert effect.task.id not in self.ended
                self.ended.add(effect.task.id)
            elif isinstance(effect, fx.Queued | fx.Delayed):
                self.ended.discard(effect.task.id)  # redriven, or its tombstone was forgotten and it was wanted again
            elif isinstance(effect, fx.Started):
                assert effect.task.id not in self.ended


class Waits:
    """A wait is resolved once and its result stays, however often its task moves, dies and is redriven."""

    def __init__(self) -> None:
        self.results: dict[tuple[Any, str], Any] = {}

    def look(self, state: SwarmState) -> None:
        for task in (*state.tasks.values(), *state.dead.values()):
            for key, wait in task.awaited.items():
                known = self.results.setdefault((task.submitted, key), wait.resolved)
                assert known in (None, wait.resolved)
                self.results[task.submitted, key] = wait.resolved


def tell(log: Log, pauses: list[int]) -> History:
    """A history with a leader, members and one task, and then `log`; verdicts and waits are watched all along."""
    history, verdicts, waits = History().joined(), Verdicts(), Waits()
    history.commit(("delegate", "kid", "d1"), (CHILD, offer(CHILD)))
    history.submitted("t").assigned("t")
    for n, (writer, events) in enumerate(log):
        history.at_ms += pauses[n % len(pauses)]
        verdicts.look(history.commit(writer, *events))
        waits.look(history.state)
    return history


def check_replay(history: History, cut: int, twice: bool) -> None:
    """The fold is deterministic, and a snapshot and the tail equal the whole log: what was learned included."""
    again = SwarmState("s")
    cut_off = SwarmState("s")
    for record in history.records:
        apply(again, Codec().decode(record))
        apply(cut_off, Codec().decode(record))
        if record.seq == cut or (twice and record.seq == cut + 5):
            cut_off = snapshot.decode(snapshot.encode(cut_off))
    truth = snapshot.encode(history.state)
    assert snapshot.encode(again) == truth
    assert snapshot.encode(cut_off) == truth
    assert cut_off == history.state
    assert snapshot.decode(truth) == history.state


def check_members(state: SwarmState) -> None:
    """Members and tasks agree about what runs."""
    oracle = Oracle("s", LeaderSettings())
    oracle.state = state
    oracle.check_invariants()


def check_shares(state: SwarmState) -> None:
    """What tenants and keys use is what a count says."""
    live, slots, keys = Counter[str](), Counter[str](), Counter[str]()
    for task in state.tasks.values():
        live[task.tenant] += 1
        slots[task.tenant] += len(task.attempts)
        if task.concurrency_key and task.attempts:
            keys[task.concurrency_key] += len(task.attempts)
    assert {name: use.live for name, use in state.tenants.items()} == live
    assert {name: use.slots for name, use in state.tenants.items()} == slots
    assert state.keys == keys


@given(logs, st.lists(st.integers(0, 5_000), min_size=1, max_size=5), st.integers(0, 40), st.booleans())
@settings(deadline=None, max_examples=150)
def test_what_holds_of_any_log(log: Log, pauses: list[int], cut: int, twice: bool) -> None:
    """Each law on every log that is drawn: drawing one takes longer than all of them."""
    history = tell(log, pauses)
    check_replay(history, cut, twice)
    check_members(history.state)
    check_shares(history.state)


@given(st.lists(st.tuples(st.sampled_from(WRITERS), st.binary(max_size=60), st.binary(max_size=20)), max_size=8))
@settings(deadline=None)
def test_garbage_between_events_changes_nothing_but_the_count(noise: list[tuple[Any, bytes, bytes]]) -> None:
    history = History().joined()
    for n, (writer, payload, _) in enumerate(noise):
        history.store(f"swarm.s.log.{writer[0]}.{writer[1]}", f"noise{n}.1", payload)
        history.store("swarm.s.log.worker.w1", "no number", payload)
    history.lead("t", submission())
    assert set(history.state.tasks) == {"t"}
    assert set(history.state.members) == {NODE, OTHER}
    assert history.state.seq == 4 + 2 * len(noise)
    assert history.state.message_id == history.records[-1].message_id
