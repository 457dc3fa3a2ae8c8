"""The phi-accrual detector, and what the links make of it: who is given up, when, and who is waited for."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.detector import PHI_MAX, WINDOW, Detector, DetectorSettings
from swarmd.core.events import MemberLost
from swarmd.core.health import LEASES_MAX, HealthSettings, LinkKey, Links
from swarmd.core.leader import Leader
from swarmd.core.office import LeaderSettings
from swarmd.core.state import Member, SwarmState
from swarmd.core.wire import Heartbeat

SETTINGS = DetectorSettings(interval_ms=250, pause_ms=1_000, deviation_ms=100, interval_ms_max=6_000)
KEY: LinkKey = ("worker", "w", "b")
HEALTH = HealthSettings()


def after(intervals: list[int]) -> tuple[Detector, int]:
    """A detector that has heard heartbeats at these intervals, and the time of the last one."""
    detector, now_ms = Detector(SETTINGS, 0), 0
    detector.heard(0)
    for interval in intervals:
        now_ms += interval
        detector.heard(now_ms)
    return detector, now_ms


def test_phi_is_the_logarithm_of_how_unlikely_the_silence_is() -> None:
    detector, now_ms = after([250] * 50)
    assert detector.usual() == (250.0, 100.0)
    assert detector.phi(now_ms + 1_250) == 0.0  # as long as usual, and the pause
    for deviations in (1, 2, 5):
        later = 0.5 * math.erfc(deviations / math.sqrt(2))
        assert detector.phi(now_ms + 1_250 + 100 * deviations) == pytest.approx(-math.log10(later))
    assert detector.phi(now_ms + 10**9) == PHI_MAX


@given(st.lists(st.integers(0, 20_000), max_size=3 * WINDOW), st.integers(0, 30_000), st.integers(0, 30_000))
def test_phi_only_grows_with_silence_and_the_window_is_what_was_heard_last(
    intervals: list[int], one: int, other: int
) -> None:
    detector, now_ms = after(intervals)
    sooner, later = sorted((one, other))
    assert 0.0 <= detector.phi(now_ms + sooner) <= detector.phi(now_ms + later) <= PHI_MAX
    kept = [min(interval, 6_000) for interval in intervals][-WINDOW:]
    if kept:
        mean, deviation = detector.usual()
        spread = math.sqrt(sum((interval - mean) ** 2 for interval in kept) / len(kept))
        assert mean == pytest.approx(sum(kept) / len(kept))
        assert deviation == pytest.approx(max(100.0, spread), rel=1e-6, abs=1e-3)


def test_unsteady_heartbeats_are_waited_for_longer() -> None:
    steady, at_ms = after([250] * 60)
    unsteady, then_ms = after([50, 900] * 30)
    assert steady.phi(at_ms + 2_000) > HEALTH.phi_lost > unsteady.phi(then_ms + 2_000)


def test_an_excused_silence_teaches_nothing() -> None:
    detector, now_ms = after([250] * 20)
    detector.excuse(now_ms + 5_000)
    detector.heard(now_ms + 5_010)
    assert detector.usual() == (250.0, 100.0)
    assert detector.silence_ms(now_ms) == 0  # a clock that went back is no silence


class Process:
    """Links with one worker process of one node, and a hand on the clock."""

    def __init__(self, now_ms: int = 10_000) -> None:
        self.state = SwarmState("s", term=1)
        self.links, self.now_ms = Links(HEALTH), now_ms
        self.member = Member("w/b/0", "node", *KEY, ["a"], 1)
        self.state.members[self.member.id] = self.member
        self.links.take_office(self.state, now_ms)

    def beat(self, after_ms: int = 250, times: int = 1) -> None:
        for _ in range(times):
            self.now_ms += after_ms
            self.links.heard(Heartbeat(*KEY, 1, 0, 0, {}), self.state, self.now_ms)

    def silent(self, until_ms: int, *, refused: bool) -> int:
        """After how many milliseconds of silence the process is given up, looked at every 50; 0 for not until then."""
        for passed in range(50, until_ms + 1, 50):
            now_ms = self.now_ms + passed
            if self.links.lapsed(now_ms):
                return passed
            for key in self.links.to_probe(now_ms):
                if refused:
                    self.links.unheard(key, now_ms)
        return 0


def test_a_silent_process_that_nobody_listens_for_is_gone_soon() -> None:
    process = Process()
    process.beat(times=20)
    assert HEALTH.gone_ms < process.silent(5_000, refused=True) <= HEALTH.gone_ms + 100


def test_a_silent_process_that_still_listens_has_its_lease() -> None:
    process = Process()
    process.beat(times=20)
    assert HEALTH.lease_ms < process.silent(5_000, refused=False) <= HEALTH.lease_ms + 100


def test_an_unsteady_process_has_more_time_but_not_for_ever() -> None:
    process = Process()
    process.beat(50, 40)
    for _ in range(40):
        process.beat(1_900)
        process.beat(20)
    given_up = process.silent(60_000, refused=False)
    assert HEALTH.lease_ms + 500 < given_up <= LEASES_MAX * HEALTH.lease_ms + 50


@pytest.mark.parametrize("what", ["a new office", "the broker's return", "a stall of the leader"])
def test_nobody_is_given_up_for_want_of_listeners_right_after(what: str) -> None:
    """Law 10: then everybody has no responders for a moment."""
    process = Process()
    if what != "a new office":
        process.beat(times=20)
    if what == "the broker's return":
        process.links.renew_all(process.now_ms)
    elif what == "a stall of the leader":
        process.links.forgive(1, process.now_ms)
    assert process.silent(HEALTH.lease_ms, refused=True) == 0
    assert process.silent(HEALTH.lease_ms + 100, refused=True) > HEALTH.lease_ms


def test_a_heartbeat_outweighs_what_the_broker_said() -> None:
    """The connection of the work is away for a moment, that of the heartbeats is not."""
    process = Process()
    process.beat(times=20)
    assert process.silent(650, refused=True) == 0
    process.now_ms += 650
    process.beat(1)
    assert process.silent(HEALTH.gone_ms, refused=False) == 0


def test_only_the_silent_are_asked_for_and_not_all_the_time() -> None:
    process = Process()
    process.beat(times=20)
    asked = [at for at in range(0, 2_000, 10) if process.links.to_probe(process.now_ms + at)]
    assert asked[0] > 2 * 250
    assert min(later - sooner for sooner, later in pairwise(asked)) >= 160
    process.links.gone(process.member)
    assert process.links.to_probe(process.now_ms + 10_000) == []


def test_the_highest_phi_is_that_of_the_most_silent_process() -> None:
    process = Process()
    process.beat(times=20)
    assert process.links.phi_max(process.now_ms + 250) == 0.0
    later = process.now_ms + 1_700
    assert process.links.phi_max(later) == process.links.phi(process.member, later) > 3.0


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_leader_whose_clock_steps_gives_nobody_up_for_it(hours: int) -> None:
    """Forwards it has stood still, as far as it can tell; backwards it resigns, and whoever leads next starts anew."""
    state = SwarmState("s", term=1, leader_writer="o", leader_boot="b")
    state.members["w/b/0"] = Member("w/b/0", "node", *KEY, ["a"], 1)
    leader, now_ms = Leader(state, "o", "b", LeaderSettings()), 10**12
    leader._take_office(now_ms)
    for _ in range(20):
        now_ms += 50
        leader.heartbeat(Heartbeat(*KEY, 1, 0, 0, {}), now_ms)
        leader.tick(now_ms)
    leader.decide()
    now_ms += hours * 3_600_000
    leader.tick(now_ms)
    assert leader.leading is (hours > 0)
    assert leader.decide() == []
    leader._take_office(now_ms)
    leader.tick(now_ms + HEALTH.lease_ms)
    assert not any(isinstance(event.data, MemberLost) for event in leader.decide())
