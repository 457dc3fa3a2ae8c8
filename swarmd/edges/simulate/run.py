"""One simulation from its workload to its figures. Pure: the same arguments give the same result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import structs

from swarmd.core.errors import Rejected
from swarmd.core.office import LeaderSettings
from swarmd.core.policies import PlacementSettings
from swarmd.edges.simulate.results import Result, measured
from swarmd.edges.simulate.swarm import Swarm
from swarmd.edges.simulate.workloads import generate

if TYPE_CHECKING:
    from swarmd.edges.simulate.shapes import Workload

#: Early binding first, ours last.
POLICIES: Final = ("random", "round-robin", "power-of-two", "least-loaded", "pull", "adaptive")


def simulate(
    workload: str | Workload,
    policy: str = "pull",
    seed: int = 1,
    *,
    tasks: int = 2_000,
    members: int = 16,
    slots: int = 1,
) -> Result:
    """Run a workload, by name or as it is, under a policy of placement.

    `tasks`, `members` and `slots` (of each member) are those of a generated workload. Raises `Rejected("bad_usage")`,
    or `Fault("stuck")` for work that nobody can do.
    """
    made = generate(workload, seed, tasks, members, slots) if isinstance(workload, str) else workload
    return measured(made, policy, Swarm(made, settings_of(policy, seed)).run())


def settings_of(policy: str, seed: int) -> LeaderSettings:
    """What a leader with this policy is set up with; only `adaptive` hedges. Raises `Rejected("bad_usage")`."""
    if policy not in POLICIES:
        raise Rejected("bad_usage", f"no policy {policy!r}: choose one of {', '.join(POLICIES)}")
    defaults = PlacementSettings()
    share = defaults.hedge_share if policy == "adaptive" else 0.0
    return LeaderSettings(placement=structs.replace(defaults, policy=policy, seed=seed, hedge_share=share))
