"""Policies of placement, compared by running the real core on a virtual clock. The same seed is the same history."""

from __future__ import annotations

import json
import re
from statistics import fmean
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import msgspec
import pytest

from swarmd.core.errors import Fault, Rejected
from swarmd.edges.cli import main
from swarmd.edges.simulate.chance import Chance
from swarmd.edges.simulate.plot import picture
from swarmd.edges.simulate.recorded import Recording
from swarmd.edges.simulate.results import Result, paired, quantile, summaries
from swarmd.edges.simulate.run import POLICIES, settings_of, simulate
from swarmd.edges.simulate.shapes import Graph, Job, MemberShape, Workload
from swarmd.edges.simulate.swarm import Swarm
from swarmd.edges.simulate.targets import missed
from swarmd.edges.simulate.workloads import GENERATORS, generate

if TYPE_CHECKING:
    from pathlib import Path

    from swarmd.core.codec import Commit
    from swarmd.core.office import LeaderSettings

SEEDS = (1, 2, 3)
TASKS = 1_000
#: How much better it is with slow members takes more to tell: a p99 of few tasks is theirs alone.
LONGER = {"slow-quarter": (range(1, 7), 3_000)}


def figures(workload: str = "steady", policy: str = "pull", seed: int = 1, **more: float) -> Result:
    """A result that somebody might have got."""
    result = Result(workload, policy, seed, 10, 10, 0, 1.0, 2.0, 3.0, 1.0, 4.0, 0, 0, 1.0, 10, 0, 0, 0.0, 100)
    return msgspec.structs.replace(result, **more)


# --- what placement is held to ---------------------------------------------------------------------


@pytest.mark.parametrize("workload", GENERATORS)
def test_ours_keeps_its_promises(workload: str) -> None:
    """The short version; `make simulate` asks for more seeds and longer runs."""
    seeds, tasks = LONGER.get(workload, (SEEDS, TASKS))
    results = [simulate(workload, policy, seed, tasks=tasks) for seed in seeds for policy in ("pull", "adaptive")]
    assert missed(results) == []


@pytest.mark.parametrize("workload", ["steady", "slow-quarter"])
def test_late_binding_beats_whatever_binds_early(workload: str) -> None:
    """By so much that half the tasks tell."""
    late = fmean(simulate(workload, "adaptive", seed, tasks=TASKS // 2).p99_ms for seed in SEEDS)
    for policy in POLICIES[:4]:
        assert 1.1 * late < fmean(simulate(workload, policy, seed, tasks=TASKS // 2).p99_ms for seed in SEEDS)


def test_a_broken_promise_is_told() -> None:
    good = [figures(seed=1), figures(seed=2), figures(policy="adaptive", seed=1), figures(policy="adaptive", seed=2)]
    assert missed(good) == []
    slower = [msgspec.structs.replace(one, p99_ms=3.1) if one.policy == "adaptive" else one for one in good]
    assert missed(slower) == ["steady: adaptive takes 1.033 ±0.000 of pull, more than 1"]
    (told,) = missed([figures("stragglers", "adaptive", hedging_pct=6.0)])
    assert "6.0 %" in told
    (told,) = missed([figures("tenants", "adaptive", passed_max=2)])
    assert "2 attempts" in told
    (told,) = missed([figures("dag", "adaptive", makespan_ratio=1.06)])
    assert "1.060" in told
    (told,) = missed([figures("heavy", "adaptive", completed=9)])
    assert "1 tasks were not completed" in told


# --- what is simulated -----------------------------------------------------------------------------


def test_the_same_seed_is_the_same_history() -> None:
    first = simulate("steady", "random", 7, tasks=200)
    assert first == simulate("steady", "random", 7, tasks=200)
    assert first != simulate("steady", "random", 8, tasks=200)


@pytest.mark.parametrize("workload", GENERATORS)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_task_gets_its_verdict(workload: str, policy: str) -> None:
    result = simulate(workload, policy, 1, tasks=120, members=4, slots=2)
    assert result.completed == result.tasks > 0
    assert 0 < result.p50_ms <= result.p90_ms <= result.p99_ms <= result.max_ms


@pytest.mark.parametrize("policy", POLICIES)
def test_a_lone_task_takes_as_long_as_its_work(policy: str) -> None:
    alone = Workload("alone", 1, [MemberShape(1, speed=0.5)], [Job(0, "work", 400)])
    result = simulate(alone, policy)
    assert 800 <= result.max_ms <= 805


def test_work_that_nobody_offers_is_a_fault() -> None:
    nobody = Workload("nobody", 1, [MemberShape(1)], [Job(0, "dance", 400)])
    with pytest.raises(Fault, match=r"nothing happens any more; waiting: 1 for dance"):
        simulate(nobody)


def test_members_come_and_go() -> None:
    """The first two tasks have the member that leaves, the third waits for the one that comes."""
    members = [MemberShape(1, leaves_ms=1_500), MemberShape(1, joins_ms=5_000)]
    jobs = [Job(0, "work", 1_000), Job(900, "work", 1_000), Job(2_500, "work", 1_000)]
    seen = Swarm(Workload("shifts", 1, members, jobs), settings_of("pull", 1)).run()
    assert [round(one.began_ms, -2) for one in seen.jobs] == [0, 1_000, 5_000]


def test_no_schedule_is_shorter_than_its_bound() -> None:
    graph = Graph(["a"] * 4, [100, 200, 300, 400], [[], [0], [0], [1, 2]])
    assert graph.bound_ms(2) == 800
    assert graph.bound_ms(1) == 1_000
    assert graph.ways_ms([100.0, 200.0, 300.0, 400.0]) == [800, 600, 700, 400]
    assert 1.0 <= simulate("dag", "random", 1, tasks=240).makespan_ratio < 2.5


def test_members_that_fail_are_tried_again() -> None:
    result = simulate("failing", "pull", 1, tasks=300)
    assert result.attempts == result.tasks + result.failures
    assert result.failures > 0


def test_what_hedging_costs_is_counted() -> None:
    ours, plain = simulate("stragglers", "adaptive", 1, tasks=800), simulate("stragglers", "pull", 1, tasks=800)
    assert plain.hedges == plain.hedging_pct == 0
    assert ours.attempts == ours.tasks + ours.hedges
    assert 0 < ours.hedging_pct < 10
    assert ours.work_ms < plain.work_ms


def test_slow_members_are_not_the_first_by_name() -> None:
    slow = [[at for at, one in enumerate(generate("slow-quarter", seed).members) if one.speed < 1] for seed in SEEDS]
    assert all(len(one) == 4 for one in slow)
    assert slow[0] != slow[1] != slow[2]


def test_chance_has_the_moments_that_it_claims() -> None:
    chance, count = Chance(5, "moments"), 20_000
    assert abs(fmean(chance.uniform() for _ in range(count)) - 0.5) < 0.01
    assert abs(fmean(chance.exponential(3.0) for _ in range(count)) - 3.0) < 0.1
    assert abs(fmean(chance.lognormal(2.0, 1.0) for _ in range(count)) - 2.0) < 0.1
    assert abs(fmean(chance.pareto(2.0, 1.5, 300.0) for _ in range(count)) - 2.0) < 0.2
    assert sorted(chance.sample(range(9), 9)) == list(range(9))
    assert Chance(1, "a").uniform() != Chance(1, "b").uniform()


# --- a recorded log --------------------------------------------------------------------------------


class _Kept(Swarm):
    """A simulation that keeps its log."""

    def __init__(self, workload: Workload, settings: LeaderSettings) -> None:
        super().__init__(workload, settings)
        self.commits: list[Commit] = []

    def take(self, commit: Commit) -> None:
        self.commits.append(commit)
        super().take(commit)


def test_a_log_gives_back_the_workload_that_made_it() -> None:
    made = generate("slow-quarter", 3, tasks=300)
    recording = recorded(_Kept(made, settings_of("pull", 3)))
    again = recording.workload()
    assert recording.left_out() == 0
    first_ms = again.jobs[0].at_ms - made.jobs[0].at_ms
    pairs = zip(again.jobs, made.jobs, strict=True)
    assert all(abs(ours.at_ms - first_ms - theirs.at_ms) <= 2 for ours, theirs in pairs)
    slow = {at for at, member in enumerate(made.members) if member.speed < 1}
    assert {at for at, member in enumerate(again.members) if member.speed < 0.6} == slow
    ours, theirs = sum(job.work_ms for job in again.jobs), sum(job.work_ms for job in made.jobs)
    assert 0.6 < ours / theirs < 1.6
    replayed = simulate(again, "pull")
    assert replayed.completed == 300
    assert 0.7 < replayed.mean_ms / simulate(made, "pull", 3).mean_ms < 1.4


def test_failing_members_fail_again_and_graphs_are_kept_as_arrivals() -> None:
    for name in ("failing", "dag"):
        swarm = _Kept(generate(name, 1, tasks=240), settings_of("pull", 1))
        again = recorded(swarm).workload()
        assert simulate(again, "adaptive").completed == len(again.jobs)
        assert (max(member.failing for member in again.members) > 0.4) == (swarm.seen.failures > 0)


def recorded(swarm: _Kept) -> Recording:
    """What a reader of its log finds."""
    swarm.run()
    recording = Recording("s")
    for commit in swarm.commits:
        recording.fold(commit)
    return recording


def test_the_last_who_could_do_it_stays_as_long_as_it_takes() -> None:
    """In the log everything had begun when the members left. Whoever places worse is not as far by then."""
    members = [MemberShape(1, leaves_ms=1_700), MemberShape(1, leaves_ms=1_800)]
    made = Workload("shift", 1, members, [Job(at * 100, "work", 500) for at in range(8)])
    again = recorded(_Kept(made, settings_of("pull", 1))).workload()
    assert [one.leaves_ms > 0 for one in again.members] == [True, False]
    for policy in POLICIES:
        assert simulate(again, policy).completed == 8


def test_a_log_without_a_result_cannot_be_replayed() -> None:
    with pytest.raises(Rejected, match="holds no completed task"):
        Recording("s").workload()


# --- figures, table, picture -----------------------------------------------------------------------


def test_seeds_are_compared_in_pairs() -> None:
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert quantile([1.0, 2.0], 0.75) == 1.75
    assert quantile([], 0.5) == 0.0
    ours = [figures(policy="adaptive", seed=1, p99_ms=1.0), figures(policy="adaptive", seed=2, p99_ms=10.0)]
    theirs = [figures(seed=1, p99_ms=2.0), figures(seed=2, p99_ms=20.0), figures(seed=3, p99_ms=1e9)]
    found = paired(ours, theirs)
    assert found is not None
    assert (found.mean, found.deviation) == (0.5, 0.0)
    assert paired(ours, []) is None
    plain, adaptive = summaries([*theirs, *ours])
    assert plain.ratio is None
    assert adaptive.ratio == found


def test_the_picture_is_sound_and_names_everything() -> None:
    results = [figures("log of <a>", policy, p99_ms=10.0 ** (3 + at)) for at, policy in enumerate(POLICIES)]
    results += [figures("dag", policy, makespan_ratio=1.0 + at) for at, policy in enumerate(POLICIES)]
    drawn = picture(summaries(results))
    root = ElementTree.fromstring(drawn)
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"log of <a>", "dag", *POLICIES} <= set(texts)
    assert "prefers-color-scheme: dark" in drawn
    width = float(root.attrib["width"])
    assert all(0 <= float(x) <= width for x in re.findall(r'cx="([^"]+)"', drawn))


def test_the_command_prints_a_table_json_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["simulate", "--workload", "steady,dag", "--policy", "pull", "--policy", "adaptive"]
    asked += ["--seeds", "2", "--tasks", "120", "--jobs", "1", "--plot", str(tmp_path / "p.svg")]
    assert main(asked) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        [workload, policy] for workload in ("steady", "dag") for policy in ("pull", "adaptive")
    ]
    assert told.err.count("seed") == 8
    assert (tmp_path / "p.svg").read_text().startswith("<svg ")
    assert main([*asked, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [len(report["summaries"]), len(report["runs"])] == [4, 8]
    assert report["summaries"][1]["ratio"]["mean"] > 0


def test_several_processes_find_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["simulate", "--workload", "steady", "--policy", "pull", "--seeds", "2", "--tasks", "50"]
    assert main([*asked, "--jobs", "2"]) == main([*asked, "--jobs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == lines[2:]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--workload", "stedy"], "--workload 'stedy': choose from steady, heavy"),
        (["--policy", "pul"], "--policy 'pul': choose from random"),
        (["--tasks", "0"], "--tasks must be at least 1, not 0"),
        (["--first-seed", "-1"], "--first-seed must be at least 1"),
        (["--plot", "p.png"], "ends in .svg"),
        (["--plot", "nowhere/at/all/p.svg"], "in a directory that exists"),
        (["--log", ".", "--workload", "steady"], "a log has its own work"),
        (["--swarm", "s", "--tasks", "9"], "a log has its own work"),
    ],
)
def test_bad_flags_say_what_to_do(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *flags]) == 2
    assert told in capsys.readouterr().err


def test_a_directory_without_a_log_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--log", str(tmp_path)]) == 3
    assert "is no data directory" in capsys.readouterr().err


@pytest.mark.parametrize(("workload", "policy"), [("stedy", "pull"), ("steady", "pul")])
def test_what_does_not_exist_is_named_with_what_does(workload: str, policy: str) -> None:
    with pytest.raises(Rejected, match=r"no (workload|policy) .* choose one of"):
        simulate(workload, policy)
