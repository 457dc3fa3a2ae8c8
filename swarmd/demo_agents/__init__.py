"""The agents of `swarmd demo`, a room for each swarm: `library` and `desk`, and the `hive` over them.

A worker that hosts all of them names this module; the demo names one room for each swarm, so that every swarm offers
its own agents only.
"""

from __future__ import annotations

from swarmd.demo_agents.desk import answer, report
from swarmd.demo_agents.hive import survey
from swarmd.demo_agents.library import digest

__all__ = ["answer", "digest", "report", "survey"]
