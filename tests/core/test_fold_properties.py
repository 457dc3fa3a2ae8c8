"""Properties of the fold over any log."""

from __future__ import annotations

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


def tell(log: Log) -> tuple[History, list[list[fx.Effect]]]:
    """A history with a leader, members and one task, and then `log`."""
    history = History().joined()
    history.commit(("delegate", "kid", "d1"), (CHILD, offer(CHILD)))
    history.submitted("t").assigned("t")
    return history, [history.commit(writer, *events) for writer, events in log]


@given(logs)
@settings(deadline=None)
def test_the_fold_is_deterministic(log: Log) -> None:
    history, _ = tell(log)
    again = SwarmState("s")
    for record in history.records:
        apply(again, Codec().decode(record))
    assert snapshot.encode(again) == snapshot.encode(history.state)


@given(logs, st.integers(0, 40), st.booleans())
@settings(deadline=None)
def test_a_snapshot_and_the_tail_equal_the_whole_log(log: Log, cut: int, twice: bool) -> None:
    history, _ = tell(log)
    state = SwarmState("s")
    for record in history.records:
        apply(state, Codec().decode(record))
        if record.seq == cut or (twice and record.seq == cut + 5):
            state = snapshot.decode(snapshot.encode(state))
    assert snapshot.encode(state) == snapshot.encode(history.state)
    assert state == history.state


@given(logs)
@settings(deadline=None)
def test_a_verdict_is_final_unless_redriven(log: Log) -> None:
    _, folded = tell(log)
    ended: set[str] = set()
    for effects in folded:
        for effect in effects:
            if isinstance(effect, fx.Ended):
                assert effect.state in TERMINAL
                assert effect.task.id not in ended
                ended.add(effect.task.id)
            elif isinstance(effect, fx.Queued | fx.Delayed):
                ended.discard(effect.task.id)  # redriven, or its tombstone was forgotten and it was wanted again
            elif isinstance(effect, fx.Started):
                assert effect.task.id not in ended


@given(logs)
@settings(deadline=None)
def test_members_and_tasks_agree_about_what_runs(log: Log) -> None:
    history, _ = tell(log)
    oracle = Oracle("s", LeaderSettings())
    oracle.state = history.state
    oracle.check_invariants()


@given(logs)
@settings(deadline=None)
def test_a_wait_is_resolved_once_and_its_result_stays(log: Log) -> None:
    """However often its task moves, dies and is redriven."""
    history = History().joined()
    history.submitted("t").assigned("t")
    results: dict[tuple[Any, str], Any] = {}
    for writer, events in log:
        history.commit(writer, *events)
        for task in (*history.state.tasks.values(), *history.state.dead.values()):
            for key, wait in task.awaited.items():
                known = results.setdefault((task.submitted, key), wait.resolved)
                assert known in (None, wait.resolved)
                results[task.submitted, key] = wait.resolved


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
